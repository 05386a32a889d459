"""Top-k activation: only the k largest hidden units of each token take part in the second layer of an MLP.

Trained transformers use few hidden units per token anyway; keeping the k largest makes that a property of the model. It is
reported to make a model less sensitive to wrong labels and corrupted inputs, and better calibrated.

References: Li, You, Bhojanapalli, Li, Rawat, Reddi, Ye, Chern, Yu, Guo, Kumar, The lazy neuron phenomenon: on emergence of
activation sparsity in transformers, ICLR 2023, arXiv 2210.06313.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BaseActivation = Literal["relu", "gelu", "silu"]

_BASES: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class SparseActivations(NamedTuple):
    """Activations of which only the kept ones are stored.

    Args:
        values: The kept activations (..., k); fewer than k of them may be nonzero.
        indices: Hidden unit of each (..., k), int64, all different within a token.
        width: Number of hidden units.
    """

    values: Tensor
    indices: Tensor
    width: int

    def to_dense(self) -> Tensor:
        """Return the activations (..., width), zero where nothing is kept."""
        zeros = self.values.new_zeros(*self.values.shape[:-1], self.width)
        return zeros.scatter(-1, self.indices, self.values)


class TopKSelection(nn.Module):
    """The k largest activations of each token and their places.

    Args:
        k: Activations to keep, >= 1, at most the last dimension of the input.
        base: Activation function that is applied first.

    Shape: (..., hidden_width) to `SparseActivations` of (..., k).

    Raises:
        ValueError: For `k` outside its range, and for another base.

    Example:
        >>> TopKSelection(2)(torch.tensor([[-5.0, 1.0, 3.0, 2.0]])).indices.sort().values.tolist()
        [[2, 3]]
    """

    def __init__(self, k: int, base: BaseActivation = "relu") -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be >= 1, got {k}.")
        if base not in get_args(BaseActivation):
            raise ValueError(f"base must be one of {', '.join(get_args(BaseActivation))}, got {base!r}.")
        self.k, self.base = k, base

    def forward(self, x: Tensor) -> SparseActivations:
        """Select."""
        return _select(x, self.k, self.base)

    def extra_repr(self) -> str:
        """Options."""
        return f"k={self.k}, base={self.base!r}"


class TopKActivation(TopKSelection):
    """Keep the k largest activations of each token and set the others to zero.

        a = base(x),  y_i = a_i if a_i is among the k largest of a, else 0

    Exactly k places are kept: where values tie, `torch.topk` decides, while a comparison with the k-th value would keep more. If
    fewer than k activations are positive, some of the kept ones are zero. The gradient is that of the base at kept places, and
    zero elsewhere. The same in training and evaluation.

    Args:
        k: Activations to keep, >= 1, at most the last dimension of the input.
        base: Activation function that is applied first. "relu" is the paper's; with "gelu" and "silu" the largest are kept, not the
            largest in magnitude.

    Shape: (..., hidden_width) to the same, same dtype.

    Raises:
        ValueError: For `k` outside its range, and for another base.

    Example:
        >>> TopKActivation(2)(torch.tensor([[-5.0, 1.0, 3.0, 2.0]])).tolist()
        [[0.0, 0.0, 3.0, 2.0]]
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the same selection, written out
        """Activate."""
        return _select(x, self.k, self.base).to_dense()


class TopKMLP(nn.Module):
    """Two-layer MLP without biases whose hidden layer keeps k units per token: y = TopK_k(relu(x K)) V.

    Cost per token: 2 width hidden_width operations in the first layer, which stays dense, about hidden_width for the selection,
    and in the second 2 width k instead of 2 width hidden_width, if `sparse_second_matmul` makes use of it. Dense kernels do not
    get faster by zeros.

    Args:
        width: Size of the last dimension of input and output, >= 1.
        hidden_width: Hidden units, >= 1.
        k: Units to keep for each token, in [1, hidden_width]. None: hidden_width // 16, at least 1 (ours; the paper has 128 of a
            few thousand).
        sparse_second_matmul: Whether the second layer sums k rows of V for each token instead of multiplying by all of them. The
            same up to rounding; it pays where tokens are few or k is very small.
        base: Activation function, see `TopKActivation`.
        seed: Seed of the initial weights: normal with variance 1 / width in K and 1 / hidden_width in V.

    The weights are parameters and not of type `nn.Linear`: Stable-Baselines3 would give those other initial weights.

    Shape: (..., width) to the same, dtype of the input.

    Raises:
        ValueError: For arguments outside these sets.

    Differs from the paper: the default of k; k = hidden_width gives an ordinary MLP.

    Example:
        >>> mlp = TopKMLP(8, 64)
        >>> mlp.activation, mlp(torch.ones(2, 3, 8)).shape
        (TopKActivation(k=4, base='relu'), torch.Size([2, 3, 8]))
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        k: int | None = None,
        *,
        sparse_second_matmul: bool = False,
        base: BaseActivation = "relu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("hidden_width", hidden_width)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}.")
        k = max(1, hidden_width // 16) if k is None else k
        if not 1 <= k <= hidden_width:
            raise ValueError(f"k must be in [1, hidden_width = {hidden_width}], got {k}.")
        self.width, self.hidden_width, self.k, self.sparse_second_matmul = width, hidden_width, k, sparse_second_matmul
        generator = torch.Generator().manual_seed(seed)
        self.key = nn.Parameter(torch.empty(width, hidden_width).normal_(0.0, width**-0.5, generator=generator))  # K
        self.value = nn.Parameter(torch.empty(hidden_width, width).normal_(0.0, hidden_width**-0.5, generator=generator))  # V
        self.activation: nn.Module = TopKSelection(k, base) if sparse_second_matmul else TopKActivation(k, base)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network."""
        hidden = self.activation(x @ self.key)
        if isinstance(hidden, SparseActivations):
            return self._sum_of_rows(hidden).to(x.dtype)
        return cast(Tensor, (hidden @ self.value).to(x.dtype))

    def _sum_of_rows(self, hidden: SparseActivations) -> Tensor:
        # A bag is one token: its k rows of V, weighted by its activations; no (tokens, k, width) tensor is made.
        weights = hidden.values.reshape(-1, self.k).to(self.value.dtype)  # (tokens, k)
        summed = F.embedding_bag(hidden.indices.reshape(-1, self.k), self.value, per_sample_weights=weights, mode="sum")
        return summed.view(*hidden.values.shape[:-1], self.width)


def _select(x: Tensor, k: int, base: str) -> SparseActivations:
    width = x.shape[-1]
    if k > width:
        raise ValueError(f"k must be at most the last dimension of the input, {width}, got {k}.")
    values, indices = _BASES[base](x).topk(k, dim=-1, sorted=False)
    return SparseActivations(values, indices, width)
