"""Muon with its products in float32, for processors that are slow in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` whose Newton-Schulz iterations are made in float32 instead of bfloat16.

    Options, state and update are torch's; the results differ by the rounding of bfloat16, about a percent of the step. Meant for
    CPUs without instructions for bfloat16, where products in it are slow.

    Args: As in `torch.optim.Muon`.

    References: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024, kellerjordan.github.io/posts/muon.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = Float32Muon([weight], lr=1.0)
        >>> weight.grad = torch.diag(torch.tensor([3.0, -1.0]))
        >>> optimizer.step()
        >>> weight.detach().sign().diag().tolist()
        [-1.0, 1.0]
    """

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Clears the gradients, computes the loss and its gradients, and returns it.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            averages: list[Tensor] = []
            self._init_group(group, params, grads, averages)
            lr, momentum = float(group["lr"]), group["momentum"]
            for param, grad, average in zip(params, grads, averages, strict=True):
                average.lerp_(grad, 1.0 - momentum)
                update = grad.lerp(average, momentum) if group["nesterov"] else average
                update = orthogonalised(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                rows, columns = param.shape
                wide = group["adjust_lr_fn"] == "match_rms_adamw"
                scale = 0.2 * math.sqrt(max(rows, columns)) if wide else math.sqrt(max(1.0, rows / columns))
                param.mul_(1.0 - lr * group["weight_decay"]).add_(update, alpha=-lr * scale)
        return loss


def orthogonalised(matrix: Tensor, coefficients: tuple[float, float, float], num_steps: int, eps: float) -> Tensor:
    """Move the singular values of a matrix towards 1, in float32.

    X <- M / |M|;   X <- a X + (b X X' + c (X X')^2) X, `num_steps` times.

    Args:
        matrix: M, two-dimensional.
        coefficients: a, b, c.
        num_steps: Iterations, >= 0.
        eps: Smallest value that |M| counts as.

    Example:
        >>> orthogonalised(torch.diag(torch.tensor([3.0, 4.0])), (1.5, -0.5, 0.0), 20, 1e-7).round(decimals=4).diag().tolist()
        [1.0, 1.0]
    """
    a, b, c = coefficients
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if is_tall else matrix).to(torch.float32)
    x = (x / x.norm().clamp(min=eps)).contiguous()
    for _ in range(num_steps):
        gram = x @ x.mT  # the shorter side squared
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
