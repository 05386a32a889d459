"""LAMB: Adam whose step on each tensor has a length proportional to the tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class LAMB(Optimizer):
    r"""Layerwise adaptive large-batch optimizer.

    With g the gradient, and all operations but the norms elementwise,

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        u = m' / (sqrt(v') + eps) + weight_decay * w
        w <- w - lr * (|w| / |u|) u

    where m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t). Norms are those of the whole tensor; the ratio is 1 where one of them
    is zero, so a tensor of zeros (a fresh bias) begins with a plain Adam step. The paper's scaling function phi is the identity.

    Differs from some other libraries: the gradient is not clipped, the ratio applies without weight decay too, and the bias
    correction is applied once.

    Args:
        params: Parameters or groups. A group with `adapt=False` takes plain steps u; use it, with weight_decay=0, for biases and
            normalisation, as is usual for transformers.
        lr: >= 0; the paper scales it with the square root of the batch size.
        betas: beta1 and beta2, in [0, 1). Defaults: paper.
        eps: > 0. Default: paper.
        weight_decay: >= 0. Default: paper's for BERT.
        adapt: Whether steps are scaled by the ratio.
        maximize: Whether to ascend.

    Raises:
        ValueError: For values outside these sets, and for sparse gradients.

    References: You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, Large batch optimization for deep learning:
    training BERT in 76 minutes, ICLR 2020, arXiv 1904.00962.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LAMB([w], lr=0.1, weight_decay=0.0)
        >>> w.grad = torch.tensor([0.5, 0.0])
        >>> optimizer.step()
        >>> [round(x, 4) for x in w.tolist()]  # a step of length 0.1 * 5
        [2.5, 4.0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None:
        if not 0.0 <= lr < math.inf:
            raise ValueError(f"lr must be a finite number >= 0, got {lr}.")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}.")
        if not eps > 0.0:
            raise ValueError(f"eps must be > 0, got {eps}.")
        if not weight_decay >= 0.0:
            raise ValueError(f"weight_decay must be >= 0, got {weight_decay}.")
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

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
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _update(self, param: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if grad.is_sparse:
            raise ValueError("gradients must be dense, got a sparse one; build the embedding with sparse=False.")
        if group["maximize"]:
            grad = -grad
        state = self.state[param]
        if not state:
            state["step"] = torch.tensor(0.0)  # a tensor, which state_dict and deep copies of other libraries expect
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        state["step"] += 1
        step = state["step"].item()
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(grad, 1.0 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
        denominator = (state["exp_avg_sq"] / (1.0 - beta2**step)).sqrt_().add_(group["eps"])
        update = (state["exp_avg"] / (1.0 - beta1**step)).div_(denominator).add_(param, alpha=group["weight_decay"])
        if group["adapt"]:
            param_norm, update_norm = torch.linalg.vector_norm(param), torch.linalg.vector_norm(update)
            ratio = torch.where((param_norm > 0.0) & (update_norm > 0.0), param_norm / update_norm, torch.ones_like(param_norm))
            update.mul_(ratio)
        param.add_(update, alpha=-group["lr"])
