"""Linear attention: kernel attention whose cost grows with the length, not with its square.

    out_i = sum_j M_ij phi(q_i) . phi(k_j) v_j / sum_j M_ij phi(q_i) . phi(k_j)

Sums over j are formed once for all i. References: Choromanski et al., ICLR 2021, arXiv 2009.14794; Katharopoulos et al., ICML 2020,
arXiv 2006.16236 (state for decoding); Choromanski et al., ICML 2022, arXiv 2107.07999 (masks).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rlopt.nn import _linear_sums as linear_sums
from rlopt.nn.attention import Attention, AttentionState, check_inputs, check_step, repeat_heads, widen
from rlopt.nn.attention_masks import AttentionMask, Decay
from rlopt.nn.random_features import FavorPlus, FavorPlusPlus, FeatureMap

Mask = Literal["causal"] | AttentionMask | Decay | Callable[[Tensor], Tensor] | None


class LinearAttention(Attention):
    """Attention with weights M_ij phi(q_i) . phi(k_j), divided by their sums, in time and memory linear in the length.

    Features are of sqrt(scale) q and sqrt(scale) k. What is done depends on the mask:

    * none: sums over all keys. Causal (`is_causal`, or mask "causal") and `Decay`: chunks; within a chunk the weights are formed,
      and a state of m x (Dv + 1) numbers is carried from chunk to chunk. `step` carries the same state.
    * `Toeplitz` and `BlockToeplitz2D` (also with `is_causal`): a Fourier transform for each of the m x (Dv + 1) products of a
      feature and a value, O(L log L), or, up to `dense_length`, the matrix itself, which is faster there. Both are causal up to
      rounding only: the transform mixes the rounding errors of all positions.
    * any callable x (B, H, L, F) -> M x (B, H, L, F), for any F, linear and >= 0; it must be causal by itself where that is wanted.

    A query that sees no key gives zeros. General masks and dropout of weights cannot be had without forming the weights and are
    refused.

    Args:
        feature_map: Turns queries and keys into features, see `rlopt.nn.random_features`.
        mask: See above.
        chunk_size: Tokens of a chunk, >= 1. The result does not depend on it (default: measured; 32 to 128 are about as fast).
        dense_length: Length up to which masks with Fourier transforms are applied as matrices, >= 0 (default: measured).

    Shape: see `Attention`.

    Raises:
        ValueError: For sizes out of range, a causal mask with features that look at the whole sequence, and, in `forward`,
            arguments that do not fit together or that the mask does not allow.
        NotImplementedError: For a general mask, dropout, and `step` with a mask that has no recurrence.

    With "causal" and logarithmic features, one thing is approximate: among keys of one chunk, features smaller than exp(-87) times
    the largest of the same feature count as zero in float32, also for the queries between them.

    Example:
        >>> x = 0.5 * torch.randn(1, 2, 100, 8, generator=torch.Generator().manual_seed(0))
        >>> attention = LinearAttention(FavorPlus(8, 2000))
        >>> exact = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        >>> bool((attention(x, x, x, is_causal=True) - exact).abs().mean() < 0.1)
        True
        >>> state = attention.init_state(1, num_heads=2, head_dim=8, context=100)
        >>> token, state = attention.step(x[:, :, :1], x[:, :, :1], x[:, :, :1], state)
        >>> bool(torch.allclose(token, x[:, :, :1]))
        True
    """

    def __init__(self, feature_map: FeatureMap, mask: Mask = None, *, chunk_size: int = 64, dense_length: int = 1024) -> None:
        super().__init__()
        if isinstance(mask, str) and mask != "causal":
            raise ValueError(f"mask must be None, 'causal', an AttentionMask, Decay or a callable, got {mask!r}.")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be >= 1, got {chunk_size}.")
        if dense_length < 0:
            raise ValueError(f"dense_length must be >= 0, got {dense_length}.")
        self.feature_map, self.mask = feature_map, mask
        self.chunk_size, self.dense_length = chunk_size, dense_length
        if mask == "causal" or isinstance(mask, Decay):
            self._check_causal()

    def _check_causal(self) -> None:
        if not self.feature_map.causal:
            raise ValueError(
                "feature_map must be causal for causal attention, got one that looks at the whole sequence (A='auto')."
            )

    @property
    def _log_decay(self) -> Tensor | None:
        return self.mask.log_gamma if isinstance(self.mask, Decay) else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        key_padding_mask: Tensor | None = None,
        return_stats: bool = False,
    ) -> Any:
        """Attend, see `Attention`.

        With `return_stats`, "log_normalizer" (B, H, L) is the logarithm of the sum of each query's weights: for random features of
        the softmax kernel an estimate of logsumexp of its scores. -inf where no key is seen.
        """
        check_inputs(query, key, value, attn_mask, is_causal, key_padding_mask)
        if attn_mask is not None:
            raise NotImplementedError("attn_mask must be None for linear attention: use key_padding_mask, is_causal or its mask.")
        if dropout_p != 0.0:
            raise NotImplementedError(f"dropout_p must be 0 for linear attention, which forms no weights, got {dropout_p}.")
        key, value = repeat_heads(query, key, value, enable_gqa=enable_gqa)
        is_causal = is_causal or self.mask == "causal" or isinstance(self.mask, Decay)
        if is_causal:
            self._check_causal()
        with torch.autocast(query.device.type, enabled=False):
            factor = self._factor(query, scale)
            u = with_ones(widen(value))
            sums, log_scale, by_product = self._sums(widen(query) * factor, widen(key) * factor, u, key_padding_mask, is_causal)
            out, normalizer = divide(sums, _has_key(key_padding_mask, is_causal) if by_product else None, noisy=by_product)
        out = out.to(query.dtype)
        if return_stats:
            return out, {"log_normalizer": (normalizer.detach().log() + log_scale.detach()).squeeze(-1)}
        return out

    def _factor(self, query: Tensor, scale: float | None) -> float:
        scale = self.feature_map.default_scale(query.shape[-1]) if scale is None else scale
        if scale < 0.0:
            raise ValueError(f"scale must be >= 0 for linear attention, which takes its square root, got {scale}.")
        return float(scale**0.5)

    def _sums(self, query: Tensor, key: Tensor, u: Tensor, valid: Tensor | None, is_causal: bool) -> tuple[Tensor, Tensor, bool]:
        """Sums of features and values under the mask, their log scale, and whether they come from products of the mask."""
        logarithmic, length = self.feature_map.logarithmic, query.shape[2]
        chunked = self.mask is None or self.mask == "causal" or isinstance(self.mask, Decay)
        if chunked and is_causal:
            self.feature_map.observe(query, key, valid)
            key, u, valid = fit_length(key, u, valid, length)
            causal = partial(linear_sums.causal_sums, log_decay=self._log_decay, chunk_size=self.chunk_size)
            return *causal(query, key, u, valid, self.feature_map.features, logarithmic=logarithmic), False
        query, key = self.feature_map(query, key, valid)
        if valid is not None:
            key = linear_sums.drop_rows(key, valid, logarithmic=logarithmic)
        if chunked:
            return *linear_sums.full_sums(query, key, u, logarithmic=logarithmic), False
        if length != key.shape[2]:
            raise ValueError(f"query and key must have the same length with this mask, got {length} and {key.shape[2]}.")
        mask = self.mask
        if isinstance(mask, AttentionMask):
            if length <= self.dense_length:
                matrix = mask.dense(length, is_causal).to(u.dtype)
                return *linear_sums.dense_sums(query, key, u, matrix, logarithmic=logarithmic), False
            return *linear_sums.matvec_sums(query, key, u, partial(mask, is_causal=is_causal), logarithmic=logarithmic), True
        if is_causal:
            raise ValueError("is_causal must be False with a callable mask: make the callable causal.")
        assert callable(mask)
        return *linear_sums.matvec_sums(query, key, u, mask, logarithmic=logarithmic), True

    def init_state(
        self,
        batch_size: int,
        *,
        num_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        context: int,
        device: Any = None,
        dtype: Any = None,
    ) -> AttentionState:
        """Make the empty state: "sums" (B, H, m, Dv + 1), whose last column is the normaliser, and "log_scale" (B, H, m).

        "log_scale" is missing for features that are not logarithms. `num_heads` are those of queries. `context` has no effect: all
        tokens are remembered. Half precision is replaced by float32.
        """
        for name, size in (("batch_size", batch_size), ("num_heads", num_heads), ("head_dim", head_dim)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}.")
        dtype = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        shape = (batch_size, num_heads, self.feature_map.num_features)
        columns = (head_dim if value_dim is None else value_dim) + 1
        state = {"sums": torch.zeros(*shape, columns, device=device, dtype=dtype)}
        if self.feature_map.logarithmic:
            state["log_scale"] = torch.zeros(shape, device=device, dtype=dtype)
        return state

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, state: AttentionState, *, scale: float | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Attend with one new token to all tokens so far, see `Attention`: with a mask None, "causal" or `Decay`.

        The cost does not depend on the number of tokens. Keys and values may have fewer heads than queries, as with `enable_gqa`.
        """
        check_inputs(query, key, value, None, False, None)
        check_step(query, key, value)
        if not (self.mask is None or self.mask == "causal" or isinstance(self.mask, Decay)):
            raise NotImplementedError(
                f"mask must be None, 'causal' or Decay to decode token by token, got {type(self.mask).__name__}."
            )
        self._check_causal()
        key, value = repeat_heads(query, key, value, enable_gqa=True)
        with torch.autocast(query.device.type, enabled=False):
            factor = self._factor(query, scale)
            # `features`, not a call: a single token must not enter the running mean of "ema".
            query_features = self.feature_map.features(widen(query) * factor)
            key_features = self.feature_map.features(widen(key) * factor)
            sums, _, new, log_scale = linear_sums.step_sums(
                query_features, key_features, with_ones(widen(value)), state["sums"], state.get("log_scale"), self._log_decay
            )
            out, _ = divide(sums)
        after = {"sums": new.to(state["sums"].dtype)}
        if log_scale is not None:
            after["log_scale"] = log_scale.to(state["log_scale"].dtype)
        return out.to(query.dtype), after


class FavorAttention(LinearAttention):
    """Linear attention that estimates softmax attention with random features: FAVOR+ and FAVOR++.

    Args:
        head_dim: D.
        num_features: m, see `FavorPlus`.
        A: Parameter of the features, see `FavorPlusPlus`. None: FAVOR+ (A = 0). The default "ema" is FAVOR+ too until `update_A_`
            of its `feature_map` is called; "auto" (paper) is refused by causal attention.
        mask: See `LinearAttention`.
        orthogonal: See `FavorPlus`.
        num_heads: See `FavorPlus`.
        chunk_size: See `LinearAttention`.
        generator: Draws the projections; None: a fresh one with seed 0.

    Shape: see `Attention`.

    Raises:
        ValueError: As `LinearAttention` and `FavorPlusPlus`.

    Example:
        >>> x = torch.zeros(1, 2, 5, 8)
        >>> FavorAttention(8)(x, x, x).shape
        torch.Size([1, 2, 5, 8])
    """

    feature_map: FavorPlus

    def __init__(
        self,
        head_dim: int,
        num_features: int = 256,
        *,
        A: Literal["auto", "ema"] | float | None = "ema",
        mask: Mask = None,
        orthogonal: bool = True,
        num_heads: int | None = None,
        chunk_size: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        feature_map: FavorPlus
        if A is None:
            feature_map = FavorPlus(head_dim, num_features, orthogonal=orthogonal, num_heads=num_heads, generator=generator)
        else:
            feature_map = FavorPlusPlus(
                head_dim, num_features, A=A, orthogonal=orthogonal, num_heads=num_heads, generator=generator
            )
        super().__init__(feature_map, mask, chunk_size=chunk_size)


def divide(sums: Tensor, has_key: Tensor | None = None, *, noisy: bool = False) -> tuple[Tensor, Tensor]:
    """Divide sums of values by the sums of weights in the last column.

    Args:
        sums: (B, H, L, Dv + 1).
        has_key: Booleans, broadcastable to (B, H, L, 1): whether a query sees a key at all; None: where its sum is not 0.
        noisy: Whether sums have rounding errors of the size of the largest of all queries, as from Fourier transforms: smaller sums
            of weights are not known, and are replaced by that size.

    Returns:
        Quotients (B, H, L, Dv) and denominators (B, H, L, 1), zeros where no key is seen.
    """
    numerator, normalizer = sums[..., :-1], sums[..., -1:]
    limits = torch.finfo(sums.dtype)
    if noisy:
        normalizer = torch.maximum(normalizer, limits.eps * normalizer.detach().amax(-2, keepdim=True))
    # Sums below that consist of subnormal numbers and know nothing; their gradients would overflow.
    seen = normalizer > limits.tiny / limits.eps
    if has_key is not None:
        seen = seen & has_key
    safe = torch.where(seen, normalizer, torch.ones_like(normalizer))
    return (numerator / safe).masked_fill(~seen, 0.0), normalizer.masked_fill(~seen, 0.0)


def _has_key(key_padding_mask: Tensor | None, is_causal: bool) -> Tensor | None:
    """Whether queries see a key, counted from the mask of keys, (B, 1, L or 1, 1); None: all do."""
    if key_padding_mask is None:
        return None
    counted = key_padding_mask.cumsum(-1) > 0 if is_causal else key_padding_mask.any(-1, keepdim=True)
    return counted[:, None, :, None]


def with_ones(value: Tensor) -> Tensor:
    """Values with a column of ones, (B, H, S, Dv) to (B, H, S, Dv + 1), whose weighted sums are the denominators."""
    return torch.cat([value, value.new_ones(*value.shape[:-1], 1)], dim=-1)


def fit_length(key: Tensor, u: Tensor, valid: Tensor | None, length: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give keys the length of queries: a causal query i never sees keys beyond i, and keys that are missing do not count."""
    num_keys = key.shape[2]
    if num_keys < length:
        missing = length - num_keys
        if valid is None:
            valid = key.new_ones(key.shape[0], num_keys, dtype=torch.bool)
        return linear_sums.pad_rows(key, missing), linear_sums.pad_rows(u, missing), torch.nn.functional.pad(valid, (0, missing))
    return key[:, :, :length], u[:, :, :length], None if valid is None else valid[:, :length]
