"""Feature maps for linear attention: random features of the softmax kernel, ReLU features, and ELU + 1.

A feature map turns x (queries or keys, scaled) into m numbers >= 0 so that the product of two feature vectors is the weight of a
pair. The exponential ones estimate exp(x . y), the weight of softmax attention, without bias, and return logarithms: their range
is far too large for float32.

References: Choromanski et al., Rethinking attention with Performers, ICLR 2021, arXiv 2009.14794 (FAVOR+, ReLU features).
Likhosherstov et al., Chefs' random tables: non-trigonometric random features, NeurIPS 2022, arXiv 2205.15317 (FAVOR++).
Katharopoulos, Vyas, Pappas, Fleuret, Transformers are RNNs, ICML 2020, arXiv 2006.16236 (ELU + 1).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from rlopt.nn.kernel_variances import mean_pair_norm, optimal_a


def orthogonal_projections(num_features: int, head_dim: int, generator: torch.Generator) -> Tensor:
    """Draw m normal vectors in D dimensions that are orthogonal within blocks of D.

    Every row alone is exactly normal with identity covariance: a direction uniform on the sphere times the length of an independent
    normal vector. For that, the columns of the Q of a QR decomposition are multiplied by the signs of the diagonal of R: LAPACK
    fixes signs in a way that makes rows of Q not uniform. Cosine features do not notice; positive ones are off by up to a factor.

    Args:
        num_features: m.
        head_dim: D.
        generator: Source of randomness, on the CPU.

    Returns:
        (m, D), float64.

    Example:
        >>> w = orthogonal_projections(3, 3, torch.Generator().manual_seed(0))
        >>> gram = w @ w.T
        >>> bool((gram - gram.diag().diag()).abs().max() < 1e-12)
        True
    """
    num_blocks = -(-num_features // head_dim)
    normal = torch.randn(num_blocks, head_dim, head_dim, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    others = torch.randn(num_features, head_dim, generator=generator, dtype=torch.float64)
    lengths: Tensor = torch.linalg.vector_norm(others, dim=-1, keepdim=True)
    directions: Tensor = q.reshape(-1, head_dim)[:num_features]  # (num_blocks, D, D) -> (m, D)
    return directions * lengths


class FeatureMap(nn.Module):
    """Base class: queries and keys to features.

    Attributes:
        num_features: m.
        logarithmic: Whether features are returned as logarithms.
        causal: Whether the features of a token depend on nothing but the token.
    """

    num_features: int
    logarithmic: bool = False
    causal: bool = True

    def default_scale(self, head_dim: int) -> float:
        """Scale s of the attention, unless its caller gives one: features are taken of sqrt(s) q and sqrt(s) k."""
        return 1.0 / math.sqrt(head_dim)

    def features(self, x: Tensor) -> Tensor:
        """Features of tokens: (B, H, L, D) to (B, H, L, m)."""
        raise NotImplementedError(f"{type(self).__name__} has no features of single tokens.")

    def observe(self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None = None) -> None:
        """Record what is wanted of a batch whose features are then taken with `features`; by default nothing.

        Args: as of `forward`.
        """

    def forward(self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of queries and keys.

        Args:
            query: (B, H, L, D), scaled.
            key: (B, H, S, D), scaled.
            key_padding_mask: (B, S), True for real keys.

        Returns:
            (B, H, L, m) and (B, H, S, m).
        """
        self.observe(query, key, key_padding_mask)
        return self.features(query), self.features(key)


class _Projected(FeatureMap):
    """Features of random projections, which are a buffer: (m, D), or (H, m, D) with projections of each head's own."""

    projections: Tensor

    def __init__(
        self,
        head_dim: int,
        num_features: int,
        *,
        orthogonal: bool,
        num_heads: int | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        for name, value in (("head_dim", head_dim), ("num_features", num_features), ("num_heads", num_heads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}.")
        self.head_dim, self.num_features, self.orthogonal, self.num_heads = head_dim, num_features, orthogonal, num_heads
        shape = (num_features, head_dim) if num_heads is None else (num_heads, num_features, head_dim)
        self.register_buffer("projections", torch.empty(shape))
        self.redraw_(torch.Generator().manual_seed(0) if generator is None else generator)

    @torch.no_grad()
    def redraw_(self, generator: torch.Generator) -> None:
        """Draw new projections, in place.

        Args:
            generator: Source of randomness, on the CPU.
        """
        shape = (self.num_features, self.head_dim)
        draws = [
            orthogonal_projections(*shape, generator)
            if self.orthogonal
            else torch.randn(*shape, generator=generator, dtype=torch.float64)
            for _ in range(self.num_heads or 1)
        ]
        self.projections.copy_(torch.stack(draws).view(self.projections.shape))

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.head_dim:
            raise ValueError(f"queries and keys must have head_dim = {self.head_dim} entries, got {x.shape[-1]}.")
        if self.num_heads is not None and x.shape[1] != self.num_heads:
            raise ValueError(f"queries and keys must have num_heads = {self.num_heads} heads, got {x.shape[1]}.")


class FavorPlus(_Projected):
    """Positive random features of the softmax kernel (FAVOR+), as logarithms.

        f(w, x) = exp(w . x - |x|^2 / 2),  E f(w, x) f(w, y) = exp(x . y),  w normal

    with w from the rows of `projections`; the returned logarithms include 1 / sqrt(m).

    Args:
        head_dim: D.
        num_features: m >= 1 (default: TensorFlow Model Garden; performer-pytorch takes floor(D log D)).
        orthogonal: Whether projections are orthogonal in blocks of D (paper), which lowers the variance.
        num_heads: None: all heads share projections. Otherwise each of that many heads has its own.
        feature_eps: Added to every feature, >= 0 (default: ours, 0). Public codes add 1e-4 or 1e-6 to shifted features for
            stability, which is not needed here; it biases the estimate.
        generator: Draws the projections; None: a fresh one with seed 0, so that layers made without one share projections.

    Projections stay as they are until `redraw_(generator)` is called. Never do that between acting and learning from it: the
    probabilities of actions would change.

    Shape: (B, H, L, D) to (B, H, L, m).

    Raises:
        ValueError: For sizes below 1 or a negative `feature_eps`.

    Example:
        >>> x = torch.full((1, 1, 1, 4), 0.5)
        >>> log_features = FavorPlus(4, 5000).features(x)
        >>> estimate = (2 * log_features).exp().sum()  # of exp(x . x) = exp(1)
        >>> bool((estimate - 2.718).abs() < 0.3)
        True
    """

    logarithmic = True

    def __init__(
        self,
        head_dim: int,
        num_features: int = 256,
        *,
        orthogonal: bool = True,
        num_heads: int | None = None,
        feature_eps: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if feature_eps < 0.0:
            raise ValueError(f"feature_eps must be >= 0, got {feature_eps}.")
        super().__init__(head_dim, num_features, orthogonal=orthogonal, num_heads=num_heads, generator=generator)
        self.feature_eps = feature_eps

    def features(self, x: Tensor) -> Tensor:
        """Logarithms of the features."""
        return self._log_features(x, None)

    def _log_features(self, x: Tensor, A: Tensor | None) -> Tensor:
        """Log features with parameter A, broadcastable to (B, H, 1, 1); None: 0."""
        self._check(x)
        projections = self.projections.to(x.dtype)
        rest = -0.5 * x.square().sum(-1, keepdim=True) - 0.5 * math.log(self.num_features)  # (B, H, L, 1)
        # All terms by one product with longer vectors: passes over (B, H, L, m) cost more than the product.
        if A is None:
            longer = torch.cat([x, rest], dim=-1)
            matrix = torch.cat([projections, torch.ones_like(projections[..., :1])], dim=-1)
        else:
            rest = rest + self.head_dim / 4.0 * torch.log1p(-4.0 * A)
            longer = torch.cat([(1.0 - 4.0 * A).sqrt() * x, rest, A.expand_as(rest)], dim=-1)
            norms = projections.square().sum(-1, keepdim=True)
            matrix = torch.cat([projections, torch.ones_like(norms), norms], dim=-1)
        logs = longer @ matrix.mT
        if self.feature_eps > 0.0:
            floor = math.log(self.feature_eps) - 0.5 * math.log(self.num_features)
            logs = torch.logaddexp(logs, torch.full_like(logs, floor))
        return logs


class FavorPlusPlus(FavorPlus):
    """Positive and bounded random features of the softmax kernel (FAVOR++), as logarithms.

        f(w, x) = (1 - 4A)^(D/4) exp(A |w|^2 + sqrt(1 - 4A) w . x - |x|^2 / 2),  E f(w, x) f(w, y) = exp(x . y)

    for every A < 1/8. A = 0 is FAVOR+. The best A for pairs with |x + y|^2 = z is `optimal_a(z, D)`; it takes the mean of z over
    all pairs of a sequence, `mean_pair_norm`, and has no gradient.

    Args:
        head_dim: D.
        num_features: m >= 1.
        A: "auto": of each sample and head, from its own queries and keys (paper). It looks at the whole sequence, also at later
            tokens, so causal attention refuses it. Where queries are as many as keys, the mask of keys is taken to hold for both.
            "ema": of each head, from a running mean of z over batches (ours). Forward passes in training mode only record; features
            stay as they are (A = 0 at first) until `update_A_()`, so that actions keep their probabilities between acting and
            learning. Number: fixed, < 1/8.
        ema_decay: Of the running mean, in [0, 1); None: 0.99 with "ema", and not allowed otherwise. The first batches are averaged
            evenly.
        orthogonal: See `FavorPlus`.
        num_heads: See `FavorPlus`. With "ema" and None, all heads share one A.
        feature_eps: See `FavorPlus`.
        generator: See `FavorPlus`.

    Shape: (B, H, L, D) to (B, H, L, m).

    Raises:
        ValueError: For A >= 1/8, for an `ema_decay` out of range or without "ema", and as `FavorPlus`.

    Example:
        >>> query, key = torch.full((1, 1, 3, 4), 0.5), torch.full((1, 1, 3, 4), 0.5)
        >>> log_query, log_key = FavorPlusPlus(4, 5000)(query, key)
        >>> bool(((log_query + log_key).exp().sum(-1) - 2.718).abs().max() < 0.1)
        True
    """

    A: Tensor
    """(H,) or (1,), the parameter in use, unless A is "auto"."""
    mean_norm: Tensor
    """(H,) or (1,), running mean of |x + y|^2 with "ema"."""
    num_batches: Tensor
    """Batches in the running mean with "ema"."""

    def __init__(
        self,
        head_dim: int,
        num_features: int = 256,
        *,
        A: Literal["auto", "ema"] | float = "auto",
        ema_decay: float | None = None,
        orthogonal: bool = True,
        num_heads: int | None = None,
        feature_eps: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(A, str):
            if A not in ("auto", "ema"):
                raise ValueError(f"A must be 'auto', 'ema' or a number < 1/8, got {A!r}.")
        elif not A < 0.125:
            raise ValueError(f"A must be 'auto', 'ema' or a number < 1/8, where the variance is finite, got {A}.")
        if ema_decay is not None and A != "ema":
            raise ValueError(f"ema_decay must be None unless A is 'ema', got {ema_decay}.")
        if ema_decay is not None and not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}.")
        super().__init__(
            head_dim, num_features, orthogonal=orthogonal, num_heads=num_heads, feature_eps=feature_eps, generator=generator
        )
        self.mode = A if isinstance(A, str) else "fixed"
        self.causal = self.mode != "auto"
        self.ema_decay = 0.99 if ema_decay is None else ema_decay
        if self.mode != "auto":
            value = torch.full((num_heads or 1,), 0.0 if isinstance(A, str) else A)
            self.register_buffer("A", value)
        if self.mode == "ema":
            self.register_buffer("mean_norm", torch.zeros(num_heads or 1))
            self.register_buffer("num_batches", torch.zeros((), dtype=torch.long))

    def features(self, x: Tensor) -> Tensor:
        """Logarithms of the features, with the A in use."""
        if self.mode == "auto":
            raise ValueError(
                "A must be 'ema' or a number where tokens come one by one: 'auto' needs the whole sequence, got 'auto'."
            )
        return self._log_features(x, self.A.to(x.dtype)[:, None, None])

    def observe(self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None = None) -> None:
        """Let the batch enter the running mean of "ema", in training mode."""
        if self.mode == "ema" and self.training:
            self._record(self._mean_norms(query, key, key_padding_mask))

    def forward(self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features of queries and keys."""
        if self.mode != "auto":
            return super().forward(query, key, key_padding_mask)
        A = optimal_a(self._mean_norms(query, key, key_padding_mask), self.head_dim)[..., None, None]
        return self._log_features(query, A), self._log_features(key, A)

    @torch.no_grad()
    def _mean_norms(self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Mean of |x + y|^2 of each sample and head, (B, H)."""
        query_valid = key_padding_mask if query.shape[-2] == key.shape[-2] else None
        return mean_pair_norm(query, key, query_valid, key_padding_mask)

    @torch.no_grad()
    def _record(self, norms: Tensor) -> None:
        """Let the mean over a batch enter the running mean."""
        mean = norms.mean(0) if self.num_heads is not None else norms.mean()[None]
        self.num_batches += 1
        share = (1.0 / self.num_batches).clamp(min=1.0 - self.ema_decay)
        self.mean_norm.lerp_(mean.to(self.mean_norm.dtype), share.to(self.mean_norm.dtype))

    @torch.no_grad()
    def update_A_(self) -> None:
        """Set A to the best value for the running mean of |x + y|^2; for A="ema". Without a recorded batch, A becomes 0.

        Raises:
            ValueError: With another A.
        """
        if self.mode != "ema":
            raise ValueError(f"A must be 'ema' for update_A_, got {self.mode!r}.")
        self.A.copy_(optimal_a(self.mean_norm, self.head_dim))


class ReluFeatures(_Projected):
    """ReLU of random projections: relu(w . x) + feature_eps, divided by sqrt(m).

    The "generalised attention" of the FAVOR+ paper with a ReLU. It estimates the arc-cosine kernel of order 1 (Cho and Saul, 2009),
    not a softmax.

    Args:
        head_dim: D.
        num_features: m >= 1.
        orthogonal: See `FavorPlus`.
        num_heads: See `FavorPlus`.
        feature_eps: Added to every feature, >= 0 (default: code of the paper, 1e-3). It keeps rows from being zero.
        generator: See `FavorPlus`.

    Shape: (B, H, L, D) to (B, H, L, m), not logarithms.

    Raises:
        ValueError: For sizes below 1 or a negative `feature_eps`.

    Example:
        >>> bool((ReluFeatures(4, 16).features(torch.ones(1, 1, 2, 4)) >= 0.00025).all())
        True
    """

    def __init__(
        self,
        head_dim: int,
        num_features: int = 256,
        *,
        orthogonal: bool = True,
        num_heads: int | None = None,
        feature_eps: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        if feature_eps < 0.0:
            raise ValueError(f"feature_eps must be >= 0, got {feature_eps}.")
        super().__init__(head_dim, num_features, orthogonal=orthogonal, num_heads=num_heads, generator=generator)
        self.feature_eps = feature_eps

    def features(self, x: Tensor) -> Tensor:
        """Features."""
        self._check(x)
        return (torch.relu(x @ self.projections.to(x.dtype).mT) + self.feature_eps) / math.sqrt(self.num_features)


class EluFeatures(FeatureMap):
    """elu(x) + 1, one feature for each entry, nothing random; without scale unless the attention is given one (paper).

    Args:
        head_dim: D, the number of features too.

    Shape: (B, H, L, D) to (B, H, L, D), not logarithms.

    Example:
        >>> EluFeatures(2).features(torch.tensor([[[[0.0, 2.0]]]])).flatten().tolist()
        [1.0, 3.0]
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        if head_dim < 1:
            raise ValueError(f"head_dim must be >= 1, got {head_dim}.")
        self.num_features = head_dim

    def default_scale(self, head_dim: int) -> float:
        """Scale 1."""
        return 1.0

    def features(self, x: Tensor) -> Tensor:
        """Features."""
        if x.shape[-1] != self.num_features:
            raise ValueError(f"queries and keys must have head_dim = {self.num_features} entries, got {x.shape[-1]}.")
        # exp, not elu(x) + 1: that is rounded to 0 already at x = -17.
        return torch.where(x > 0.0, x + 1.0, x.clamp(max=0.0).exp())
