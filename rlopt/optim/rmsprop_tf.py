"""RMSProp with TensorFlow's semantics: a mean square that starts at 1, eps inside the root, lr inside the momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT


def rmsprop_tf(
    param: Tensor,
    grad: Tensor,
    square_avg: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    alpha: float,
    momentum: float,
    eps: float,
) -> None:
    """Make one step of RMSProp in place, see `RMSpropTF`.

    Args:
        param: w.
        grad: g, of the same shape.
        square_avg: v, of the same shape.
        momentum_buffer: m, of the same shape; None for momentum 0.
        lr: Step size.
        alpha: Decay of v.
        momentum: Decay of m.
        eps: Added to v under the root.

    Example:
        >>> w, v = torch.zeros(1), torch.ones(1)
        >>> rmsprop_tf(w, torch.ones(1), v, None, lr=0.5, alpha=0.0, momentum=0.0, eps=0.0)
        >>> w.item()
        -0.5
    """
    square_avg.mul_(alpha).addcmul_(grad, grad, value=1.0 - alpha)
    root = torch.add(square_avg, eps).sqrt_()
    if momentum_buffer is None:
        param.addcdiv_(grad, root, value=-lr)
    else:
        param.sub_(momentum_buffer.mul_(momentum).addcdiv_(grad, root, value=lr))


class RMSpropTF(Optimizer):
    """RMSProp as TensorFlow defines it.

    v <- alpha v + (1 - alpha) g^2;   m <- momentum m + lr g / sqrt(v + eps);   w <- w - m,   from v = 1 and m = 0.

    `torch.optim.RMSprop` differs three times: its mean square starts at 0, which makes the first steps up to 1 / sqrt(1 - alpha)
    times as long; it adds eps to the root; and it multiplies m by the step size of the moment, so that a change of lr acts on old
    gradients as well.

    Args:
        params: Parameters, or groups of them.
        lr: Step size, >= 0; 1e-3 is Keras' default.
        alpha: Decay of the mean square, in [0, 1); TensorFlow's default.
        momentum: Decay of the sum of steps, in [0, 1).
        eps: >= 0; TensorFlow's default. LocoProp was published with 1e-5.
        maximize: Ascend instead of descend.
        foreach: Update all parameters of a group by multi-tensor operations; None: on CUDA devices.

    Raises:
        ValueError: For arguments outside these sets.

    References: Tieleman, Hinton, Lecture 6.5, Coursera: Neural networks for machine learning, 2012.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = RMSpropTF([w], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        >>> abs(w.item()) < 0.1
        True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        alpha: float = 0.9,
        momentum: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        if not lr >= 0.0:
            raise ValueError(f"lr must be >= 0, got {lr}.")
        if not 0.0 <= alpha < 1.0:
            raise ValueError(f"alpha must be in [0, 1), got {alpha}.")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
        if not eps >= 0.0:
            raise ValueError(f"eps must be >= 0, got {eps}.")
        defaults = {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps, "maximize": maximize, "foreach": foreach}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step; a closure is called with gradients enabled, and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params, grads, squares, buffers = self._init_group(group)
            if not params:
                continue
            options = {name: group[name] for name in ("lr", "alpha", "momentum", "eps")}
            foreach = group["foreach"]
            if foreach or (foreach is None and all(param.is_cuda for param in params)):
                _multi_tensor_rmsprop_tf(params, grads, squares, buffers, **options)
            else:
                for index, param in enumerate(params):
                    rmsprop_tf(param, grads[index], squares[index], buffers[index] if buffers else None, **options)
        return loss

    def _init_group(self, group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        params = [param for param in group["params"] if param.grad is not None]
        for param in params:
            if param.grad.is_sparse:
                raise ValueError("gradients must be dense, got a sparse one; make the embedding with sparse=False.")
            state = self.state[param]
            if "square_avg" not in state:
                state["square_avg"] = torch.ones_like(param)
            if group["momentum"] > 0.0 and "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(param)
        states = [self.state[param] for param in params]
        grads = [-param.grad if group["maximize"] else param.grad for param in params]
        buffers = [state["momentum_buffer"] for state in states] if group["momentum"] > 0.0 else []
        return params, grads, [state["square_avg"] for state in states], buffers


def _multi_tensor_rmsprop_tf(
    params: list[Tensor],
    grads: list[Tensor],
    squares: list[Tensor],
    buffers: list[Tensor],
    *,
    lr: float,
    alpha: float,
    momentum: float,
    eps: float,
) -> None:
    """Do what `rmsprop_tf` does for many parameters at once."""
    torch._foreach_mul_(squares, alpha)
    torch._foreach_addcmul_(squares, grads, grads, value=1.0 - alpha)
    roots = torch._foreach_add(squares, eps)
    torch._foreach_sqrt_(roots)
    if buffers:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_addcdiv_(buffers, grads, roots, value=lr)
        torch._foreach_sub_(params, buffers)
    else:
        torch._foreach_addcdiv_(params, grads, roots, value=-lr)
