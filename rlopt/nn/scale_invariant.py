"""Modules whose composition ignores the scale of their parameters.

A tensor has degree k if multiplying all parameters by c > 0 multiplies it by c^k. Data have degree 0; a linear map without bias
and an embedding add 1; a bias may only be added where its summand has degree 1; ReLU keeps any degree, while GELU, SiLU, tanh and
softmax keep none but 0; two tensors may be added only at equal degree; normalisation without gain and bias sends every degree to
0. A network is scale invariant if its output has degree 0.

References: Li, Bhojanapalli, Zaheer, Reddi, Kumar, Robust training of neural networks using scale invariant architectures, ICML
2022, arXiv 2202.00980.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from rlopt.nn.attention import AttentionState, ReluAttention, SoftmaxAttention
from rlopt.nn.heads import check_heads
from rlopt.nn.multi_head import MultiHeadAttention

AttentionWeights = Literal["relu", "softmax"]
ScaleInvariantActivation = Literal["relu", "squared_relu"]


class LayerNormNoAffine(nn.Module):
    """Layer normalisation over the last dimension without gain, bias and epsilon: any degree to 0.

    y = (x - mean) / sqrt(var), with the variance over all entries (divided by their number). An epsilon would break the invariance:
    it matters as soon as the variance is not much larger. Instead, a row whose entries are equal up to rounding gives zeros, with
    zero gradients; that rule is itself independent of scale. Half precision is computed in float32.

    Shape: (..., d) to (..., d), same dtype.

    Example:
        >>> LayerNormNoAffine()(torch.tensor([[1.0, 3.0], [1e-12, 3e-12], [5.0, 5.0]])).tolist()
        [[-1.0, 1.0], [-1.0, 1.0], [0.0, 0.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the rows."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = wide - wide.mean(dim=-1, keepdim=True)
        spread = centred.square().mean(dim=-1, keepdim=True).sqrt()
        # The mean of equal entries is off by rounding; without this bound what is left would be blown up to size 1.
        rounding = 4.0 * torch.finfo(wide.dtype).eps * wide.detach().abs().amax(dim=-1, keepdim=True)
        proper = spread > rounding
        # `where` on both sides: the gradient of the branch not taken must be finite as well.
        safe = torch.where(proper, centred, torch.zeros_like(centred)).square().mean(dim=-1, keepdim=True)
        safe = torch.where(proper, safe, torch.ones_like(safe)).sqrt()
        return torch.where(proper, centred / safe, torch.zeros_like(centred)).to(x.dtype)


class QueryKeyNormAttention(SoftmaxAttention):
    """Softmax attention of normalised queries and keys: softmax(2 LN q (LN k)' / sqrt(head_dim)) v, of the degree of v.

    LN is `LayerNormNoAffine` of each head. The factor 2 (of `scale`, unless it is given) is from a small search.

    Shape: see `Attention`.

    References: Henry et al., Query-key normalization for transformers, 2020, arXiv 2010.04245; with other norms and a learned
    factor.

    Example:
        >>> x = torch.arange(6.0).view(1, 1, 3, 2)
        >>> bool(torch.equal(QueryKeyNormAttention()(x, x, x), QueryKeyNormAttention()(100 * x, x, x)))
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = LayerNormNoAffine()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, scale: float | None = None, **options: Any) -> Any:
        """Attend, see `Attention`."""
        scale = 2.0 * query.shape[-1] ** -0.5 if scale is None else scale
        return super().forward(self.norm(query), self.norm(key), value, *args, scale=scale, **options)


class ScaleInvariantAttention(MultiHeadAttention):
    """Multi-head self-attention without biases: degree 0 to degree 2.

    For every head, with q, k, v = x W_q, x W_k, x W_v, the output is the sum over heads of P v W_o, with P of degree 0:

        "relu":     P = N(ReLU(q k')),    N(S)_ij = S_ij / sum_j S_ij
        "softmax":  P = softmax(2 LN q (LN k)' / sqrt(head width))

    "relu" is the paper's. A factor such as 1 / sqrt(head width) would cancel in N. Masked entries of S are zero. A query without
    any positive score attends to nothing: its row of N is zero (the paper does not say what happens there). "softmax" normalises
    queries and keys first (`LayerNormNoAffine` of each head), so that scores have degree 0, where a softmax is allowed; it can
    attend more sharply. It is not in the paper, see `QueryKeyNormAttention`.

    Args:
        width: Size of the last dimension.
        num_heads: Heads; they divide `width`.
        causal: Whether position i sees only positions <= i.
        weights: How scores become weights.

    Shape: (batch, length, width) to the same.

    Raises:
        ValueError: If the heads do not divide the width, for other weights, and for "softmax" with heads of width 1.

    Example:
        >>> ScaleInvariantAttention(8, 2, causal=True)(torch.ones(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(self, width: int, num_heads: int, *, causal: bool, weights: AttentionWeights = "relu") -> None:
        check_heads(width, num_heads)
        check_weights(weights, width // num_heads)
        kernel = QueryKeyNormAttention() if weights == "softmax" else ReluAttention()
        super().__init__(width, num_heads, kernel, causal=causal)
        self.weights = weights


class ScaleInvariantBlock(nn.Module):
    """Transformer layer that keeps degree 2: z + attention(LN z), then z + f(LN z W1 + b1) W2.

    LN is `LayerNormNoAffine`. b1 is allowed, its summand has degree 1; W2 has none. f is of degree 1: ReLU (paper), or its square
    divided by its root mean square, `squared_relu` (ours).

    Args:
        width: Size of the last dimension.
        num_heads: Heads; they divide `width`.
        causal: Whether position i sees only positions <= i.
        hidden_width: Width of the hidden layer; None: 4 * width.
        weights: Of the attention, see `ScaleInvariantAttention`.
        activation: "relu" or "squared_relu".
        dropout: Module applied to each branch before it is added; None: nothing.

    Raises:
        ValueError: As `ScaleInvariantAttention`, and for another activation.

    Shape: (batch, length, width) of degree 2 to the same.

    Example:
        >>> ScaleInvariantBlock(8, 2, causal=True)(torch.ones(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        causal: bool,
        hidden_width: int | None = None,
        weights: AttentionWeights = "relu",
        activation: ScaleInvariantActivation = "relu",
        dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_activation(activation)
        self.activation = activation
        hidden_width = 4 * width if hidden_width is None else hidden_width
        self.norm = LayerNormNoAffine()
        self.attention = ScaleInvariantAttention(width, num_heads, causal=causal, weights=weights)
        self.expand = nn.Linear(width, hidden_width)
        self.contract = nn.Linear(hidden_width, width, bias=False)
        self.dropout = nn.Identity() if dropout is None else dropout

    def forward(self, z: Tensor, valid: Tensor | None = None) -> Tensor:
        """Apply the layer; `valid` (batch, length) is True for tokens that may be attended to, None: all."""
        return self._mix(z + self.dropout(self.attention(self.norm(z), valid)))

    def step(self, z: Tensor, state: AttentionState) -> tuple[Tensor, AttentionState]:
        """Apply the layer to one more token (batch, 1, width), see `MultiHeadAttention.step`."""
        attended, state = self.attention.step(self.norm(z), state)
        return self._mix(z + self.dropout(attended)), state

    def _mix(self, z: Tensor) -> Tensor:
        hidden = self.expand(self.norm(z))
        hidden = squared_relu(hidden) if self.activation == "squared_relu" else torch.relu(hidden)
        return cast(Tensor, z + self.dropout(self.contract(hidden)))


class ScaleInvariantLinear(nn.Sequential):
    """Linear map with bias, `LayerNormNoAffine`, ReLU: its weight and bias are a scale-invariant group of their own.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output, >= 2 (of one number, nothing remains after normalisation).

    Shape: (..., in_features) to (..., out_features).

    Raises:
        ValueError: For fewer than two outputs.

    Example:
        >>> ScaleInvariantLinear(3, 4)(torch.ones(5, 3)).shape
        torch.Size([5, 4])
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        if out_features < 2:
            raise ValueError(f"out_features must be >= 2, got {out_features}: normalising a single number gives 0.")
        super().__init__(nn.Linear(in_features, out_features), LayerNormNoAffine(), nn.ReLU())

    def scale_invariant_parameters(self) -> Iterator[nn.Parameter]:
        """Weight and bias."""
        return self.parameters()


class ScaleInvariantMLP(nn.Sequential):
    """Blocks of `ScaleInvariantLinear`: features for a value or policy head.

    The output does not change when each block is multiplied by a positive number of its own, so each block is a group
    (`scope="group"` of `rlopt.optim.ScaleInvariantSGD`), and all together are one as well. Heads are not scale invariant and
    belong to another optimizer. (An addition of rlopt; the paper treats transformers.)

    Args:
        in_features: Size of the input.
        hidden_features: Width of each block, at least one.

    Shape: (..., in_features) to (..., hidden_features[-1]).

    Raises:
        ValueError: Without blocks, or for a block of width 1.

    Example:
        >>> ScaleInvariantMLP(3, (64, 32))(torch.ones(5, 3)).shape
        torch.Size([5, 32])
    """

    def __init__(self, in_features: int, hidden_features: Sequence[int]) -> None:
        if not hidden_features:
            raise ValueError("hidden_features must hold at least one width, got none.")
        widths = [in_features, *hidden_features]
        super().__init__(*(ScaleInvariantLinear(a, b) for a, b in pairwise(widths)))

    def scale_invariant_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters."""
        return self.parameters()


def squared_relu(x: Tensor) -> Tensor:
    """Squared ReLU divided by its root mean square over the last dimension: r^2 / sqrt(mean r^2) with r = ReLU(x).

    Of degree 1, unlike r^2 itself, so that a branch keeps its degree. Rows without a positive entry give zeros, with zero
    gradients. So et al., Primer: searching for efficient transformers, 2021, arXiv 2109.08668, found r^2 to help language models;
    the division is ours.

    Shape: (..., d) to the same.

    Example:
        >>> squared_relu(torch.tensor([[2.0, -1.0, 0.0, 2.0], [-1.0, -1.0, 0.0, -3.0]])).tolist()
        [[2.8284270763397217, 0.0, 0.0, 2.8284270763397217], [0.0, 0.0, 0.0, 0.0]]
    """
    positive = torch.relu(x)
    mean = positive.square().mean(dim=-1, keepdim=True)
    return positive.square() / torch.where(mean > 0.0, mean, torch.ones_like(mean)).sqrt()


def check_weights(weights: str, head_width: int) -> None:
    """Refuse unknown attention weights, and normalised heads of one number."""
    if weights not in get_args(AttentionWeights):
        raise ValueError(f"weights must be 'relu' or 'softmax', got {weights!r}.")
    if weights == "softmax" and head_width < 2:
        raise ValueError(f"weights 'softmax' need heads of width >= 2, got {head_width}: normalising a single number gives 0.")


def check_activation(activation: str) -> None:
    """Refuse unknown activations."""
    if activation not in get_args(ScaleInvariantActivation):
        raise ValueError(f"activation must be 'relu' or 'squared_relu', got {activation!r}.")
