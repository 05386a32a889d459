"""Adaptive gradient clipping (AGC): gradients are clipped relative to their weights, unit by unit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlopt.optim.combined import CombinedOptimizer


def adaptive_gradient_clip(parameters: Iterable[Tensor], *, clip: float = 0.01, eps: float = 1e-3) -> None:
    """Shrink gradients that are large relative to their weights, per output unit, in place.

    For row i of a weight (all dimensions but the first),

        if |g_i| > clip * max(|w_i|, eps):    g_i <- g_i * clip * max(|w_i|, eps) / |g_i|.

    A vector or a number is one unit.

    Args:
        parameters: Those without a gradient are left out. It is usual to leave out the output layer.
        clip: > 0. Default: paper's for large batches.
        eps: > 0; lets weights leave zero. Default: paper.

    Raises:
        ValueError: For values outside these sets.

    References: Brock, De, Smith, Simonyan, High-performance large-scale image recognition without normalization, ICML 2021,
    arXiv 2102.06171.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> w.grad = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> adaptive_gradient_clip([w])
        >>> [[round(x, 6) for x in row] for row in w.grad.tolist()]
        [[0.0, 0.05], [1e-05, 0.0]]
    """
    _check(clip, eps)
    with torch.no_grad():
        for param in parameters:
            if param.grad is not None:
                largest = clip * _unit_norms(param).clamp(min=eps)
                norms = _unit_norms(param.grad)
                param.grad.mul_(torch.where(norms > largest, largest / norms, torch.ones_like(norms)))


class AGC(CombinedOptimizer):
    """An optimizer that is preceded by `adaptive_gradient_clip`.

    Args:
        optimizer: Takes the step with the clipped gradients; its groups, state and schedulers are this object's.
        clip: As in `adaptive_gradient_clip`.
        eps: As there.
        exclude: Parameters that are not clipped; it is usual to leave out the output layer.

    Raises:
        ValueError: For values outside these sets, and if `exclude` holds something that the optimizer does not have.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = AGC(torch.optim.SGD([w], lr=1.0))
        >>> w.grad = torch.tensor([[0.0, 1.0]])
        >>> optimizer.step()
        >>> [round(x, 4) for x in w[0].tolist()]
        [3.0, 3.95]
    """

    def __init__(self, optimizer: Optimizer, *, clip: float = 0.01, eps: float = 1e-3, exclude: Iterable[Tensor] = ()) -> None:
        _check(clip, eps)
        self.clip, self.eps, self.exclude = clip, eps, tuple(exclude)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in self.exclude):
            raise ValueError("exclude must hold parameters of the optimizer, got one that it does not have.")
        super().__init__([optimizer])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "clip": self.clip, "eps": self.eps, "exclude": self.exclude}

    def _before_step(self) -> None:
        excluded = {id(p) for p in self.exclude}
        clipped = (p for group in self.param_groups for p in group["params"] if id(p) not in excluded)
        adaptive_gradient_clip(clipped, clip=self.clip, eps=self.eps)


def _check(clip: float, eps: float) -> None:
    if not clip > 0.0:
        raise ValueError(f"clip must be > 0, got {clip}.")
    if not eps > 0.0:
        raise ValueError(f"eps must be > 0, got {eps}.")


def _unit_norms(x: Tensor) -> Tensor:
    """Norm of each output unit, in a shape that broadcasts to x."""
    if x.ndim <= 1:
        return cast(Tensor, torch.linalg.vector_norm(x))
    return cast(Tensor, torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True))
