"""Sharpness-aware minimisation (SAM): the gradient is taken at the worst point nearby."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlopt.optim.combined import CombinedOptimizer


class SAM(CombinedOptimizer):
    """An optimizer that steps with the gradient at w + rho g / |g| instead of the gradient g at w.

    That point is, to first order, the worst within a ball of radius `rho` around w, so flat minima are preferred. Both gradients
    are of the same batch, so a step costs two forward and backward passes and needs a closure. With `adaptive=True` the ball is
    stretched by the weights and the point is w + rho w^2 g / |w g| (ASAM).

    The model is evaluated twice per step: running statistics of batch normalisation see each batch twice, and dropout draws twice.

    Args:
        optimizer: Takes the step; its groups, state and schedulers are this object's.
        rho: Radius, > 0. Default: paper's for CIFAR. ASAM needs about ten times as much.
        adaptive: Whether the ball is stretched.

    Raises:
        ValueError: For a radius that is not positive.

    References: Foret, Kleiner, Mobahi, Neyshabur, Sharpness-aware minimization for efficiently improving generalization, ICLR 2021,
    arXiv 2010.01412; Kwon, Kim, Park, Choi, ASAM, ICML 2021, arXiv 2102.11600.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (w**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), round(w.item(), 4)  # the gradient is that at 1.5
        (1.0, 0.7)
    """

    def __init__(self, optimizer: Optimizer, *, rho: float = 0.05, adaptive: bool = False) -> None:
        if not rho > 0.0:
            raise ValueError(f"rho must be > 0, got {rho}.")
        self.rho, self.adaptive = rho, adaptive
        super().__init__([optimizer])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rho": self.rho, "adaptive": self.adaptive}

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Evaluate the closure twice and step.

        Args:
            closure: Clears the gradients, computes the loss and its gradients, and returns it.

        Returns:
            The loss at the weights before the step.

        Raises:
            ValueError: Without a closure.
        """
        if closure is None:
            raise ValueError("closure must be given: SAM evaluates the loss at two points; call step(closure).")
        with torch.enable_grad():
            loss = closure()
        params: list[Tensor] = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        before = [p.clone() for p in params]
        self._climb(params)
        try:
            with torch.enable_grad():
                closure()
        finally:
            # Copied back, not subtracted, so that the weights are those from before to the last bit.
            for param, value in zip(params, before, strict=True):
                param.copy_(value)
        self.optimizers[0].step()
        return loss

    def _climb(self, params: list[Tensor]) -> None:
        if not params:
            return
        slopes = [p.grad * p.abs() if self.adaptive else p.grad for p in params if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(s).to(slopes[0].device) for s in slopes]))
        scale = torch.where(norm > 0.0, self.rho / norm, torch.zeros_like(norm))
        for param, slope in zip(params, slopes, strict=True):
            param.add_((slope * param.abs() if self.adaptive else slope) * scale.to(param.device))
