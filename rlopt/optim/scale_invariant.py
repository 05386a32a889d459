"""SGD with weight decay and relative global clipping, for networks whose output ignores the scale of their weights.

Let x be all scale-invariant parameters as one vector, L(c x) = L(x) for every c > 0. The gradient is then orthogonal to x and
shrinks as 1 / |x|. Gradient noise makes |x| grow, weight decay makes it shrink, and they settle where the direction of x turns by
about sqrt(2 lr weight_decay) per step, whatever the initial scale and the scale of the loss: SGD sets its own effective learning
rate, lr / |x|^2, and keeps no state. `rlopt.optim.is_scale_invariant` checks the assumption on a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

Scope = Literal["global", "group", "tensor"]
SCOPES: tuple[Scope, ...] = ("global", "group", "tensor")


def relative_global_clip(
    parameters: Iterable[Tensor],
    *,
    lr: float,
    weight_decay: float,
    factor: float = 2.0,
    scope: Literal["global", "tensor"] = "global",
    foreach: bool | None = None,
) -> Tensor:
    """Shrink gradients that are large relative to their parameters (relative global clipping, RGC), in place.

    With x the parameters and g the gradients, each as one vector,

        coefficient = min(1, factor * sqrt(2 * weight_decay / lr) * |x| / |g|),    g <- coefficient * g.

    In equilibrium |g| / |x| is sqrt(2 weight_decay / lr), so `factor` says how much larger than usual a gradient may be. Use it
    before a step that decays the weights by `lr * weight_decay` apart from the gradient; a decay term inside the gradient would
    be clipped too. For several groups of different `lr` call it once per group. No value is read back from the device.

    Args:
        parameters: Scale-invariant parameters. Those without a gradient are left out, from the norms as well.
        lr: Current learning rate, >= 0. The threshold rises when it falls; 0 clips nothing.
        weight_decay: Current weight decay, > 0.
        factor: sqrt(C) in the paper, >= 1; its default is the paper's.
        scope: "global" takes one norm over all parameters, as the paper; "tensor" one for each parameter, for networks in which
            every tensor is scale invariant by itself (not in the paper).
        foreach: Whether to compute all norms in one call; None: on CUDA only.

    Returns:
        The coefficients in (0, 1]: shape () for "global", (number of gradients,) for "tensor".

    Raises:
        ValueError: For values outside these sets; without weight decay every gradient would be clipped to nothing.

    References: Li, Bhojanapalli, Zaheer, Reddi, Kumar, Robust training of neural networks using scale invariant architectures,
    ICML 2022, arXiv 2202.00980.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> x.grad = torch.tensor([0.0, 100.0])
        >>> relative_global_clip([x], lr=8e-4, weight_decay=0.01)
        tensor(0.5000)
        >>> x.grad
        tensor([ 0., 50.])
    """
    if scope not in ("global", "tensor"):
        raise ValueError(f"scope must be 'global' or 'tensor', got {scope!r}; call the function once per group for groups.")
    _check({"lr": lr, "weight_decay": weight_decay, "clip_factor": factor})
    params = [p for p in ([parameters] if isinstance(parameters, Tensor) else parameters) if p.grad is not None]
    grads = [cast(Tensor, p.grad) for p in params]
    if not params:
        return torch.ones(() if scope == "global" else (0,))
    foreach = _use_foreach(params, foreach)
    with torch.no_grad():
        coefficients = _clip_coefficients(params, grads, lr, weight_decay, factor, scope, foreach)
        _scale_(grads, coefficients, foreach)
        return coefficients[0] if scope == "global" else torch.stack([c.to(coefficients[0].device) for c in coefficients])


class ScaleInvariantSGD(Optimizer):
    r"""SGD with decoupled weight decay and relative global clipping (RGC).

    With g the gradient, both norms over all clipped parameters and taken before anything moves,

        coefficient = min(1, clip_factor * sqrt(2 * weight_decay / lr) * |x| / |g|)
        v <- momentum * v + coefficient * g
        x <- (1 - lr * weight_decay) * x - lr * v

    `lr` is the current one, so the threshold follows a schedule. The decay is never clipped. Without momentum (the paper's method)
    v is the clipped gradient and there is no state; with momentum the gradient is clipped before it enters v (not in the paper).

    Parameters that are not scale invariant belong into a group with `clip_factor=None`, or better to another optimizer;
    `rlopt.optim.ScaleInvariantSGDSpec` builds both. `rlopt.optim.split_scale_invariant` finds them.

    Differs from the paper: the scopes "group" and "tensor", momentum, and `maximize` are additions.

    Args:
        params: Parameters or groups. A parameter whose gradient is None is left alone, and left out of the norms.
        lr: >= 0. Paper: 8e-4 without warm-up, divided by 10 twice. Only lr * weight_decay matters in the long run.
        weight_decay: >= 0 and lr * weight_decay < 1; > 0 if gradients are clipped. Paper: 0.01.
        clip_factor: sqrt(C) in the paper, >= 1, default 2 from there; None: no clipping.
        momentum: In [0, 1).
        scope: What shares one norm: all parameters of groups with this scope ("global", the paper), each group ("group", for
            networks of several invariant parts), or each tensor ("tensor"). Groups of scope "global" need equal lr, weight_decay
            and clip_factor.
        foreach: Whether to update all tensors in one call; None: on CUDA only.
        maximize: Whether to ascend.

    Raises:
        ValueError: For values outside these sets.

    References: Li, Bhojanapalli, Zaheer, Reddi, Kumar, Robust training of neural networks using scale invariant architectures,
    ICML 2022, arXiv 2202.00980.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        >>> optimizer = ScaleInvariantSGD([x], lr=8e-4, weight_decay=0.01)
        >>> x.grad = torch.tensor([0.0, 100.0], dtype=torch.float64)
        >>> optimizer.step()
        >>> x.tolist()
        [2.999976, 3.959968]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 8e-4,
        weight_decay: float = 1e-2,
        *,
        clip_factor: float | None = 2.0,
        momentum: float = 0.0,
        scope: Scope = "global",
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "clip_factor": clip_factor, "momentum": momentum, "scope": scope,
            "foreach": foreach, "maximize": maximize,
        }  # fmt: skip
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

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

        Raises:
            ValueError: If a group was changed to options that are not allowed, or if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = []
        for group in self.param_groups:
            _check(group)
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if any(cast(Tensor, p.grad).is_sparse for p in params):
                raise ValueError("gradients must be dense, got a sparse one; build the embedding with sparse=False.")
            if params:
                grads = [-cast(Tensor, p.grad) if group["maximize"] else cast(Tensor, p.grad) for p in params]
                groups.append((group, params, grads, _use_foreach(params, group["foreach"])))
        shared = [entry for entry in groups if entry[0]["scope"] == "global" and entry[0]["clip_factor"] is not None]
        shared_coefficient = None
        if shared:
            lr, weight_decay, factor = _common_options([entry[0] for entry in shared])
            all_params, all_grads = [p for entry in shared for p in entry[1]], [g for entry in shared for g in entry[2]]
            foreach = all(entry[3] for entry in shared)
            shared_coefficient = _clip_coefficients(all_params, all_grads, lr, weight_decay, factor, "global", foreach)[0]
        for group, params, grads, foreach in groups:
            if group["clip_factor"] is None:
                coefficients = None
            elif group["scope"] == "global":
                coefficients = [cast(Tensor, shared_coefficient)] * len(params)
            else:
                lr, weight_decay, factor = _common_options([group])
                coefficients = _clip_coefficients(params, grads, lr, weight_decay, factor, group["scope"], foreach)
            if coefficients is not None:
                grads = [g.clone() for g in grads]  # the gradients of the user stay as they are
                _scale_(grads, coefficients, foreach)
            if group["momentum"]:
                grads = self._add_momentum(params, grads, group["momentum"])
            _move_(params, grads, group["lr"], group["weight_decay"], foreach)
        return loss

    def _add_momentum(self, params: list[Tensor], grads: list[Tensor], momentum: float) -> list[Tensor]:
        buffers = []
        for param, grad in zip(params, grads, strict=True):
            state = self.state[param]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(momentum).add_(grad)
            else:
                state["momentum_buffer"] = grad.clone()
            buffers.append(state["momentum_buffer"])
        return buffers


def _check(options: dict[str, Any]) -> None:
    """Refuse options that the method does not allow; those that are missing are not looked at."""
    lr, weight_decay, factor = options["lr"], options["weight_decay"], options["clip_factor"]
    if not 0.0 <= lr < math.inf:
        raise ValueError(f"lr must be a finite number >= 0, got {lr}.")
    if not 0.0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be a finite number >= 0, got {weight_decay}.")
    if lr * weight_decay >= 1.0:
        raise ValueError(f"lr * weight_decay must be < 1, got {lr} * {weight_decay}; the decay would turn the weights around.")
    if factor is not None and not factor >= 1.0:
        raise ValueError(f"factor (clip_factor) must be >= 1 or None, got {factor}; None switches clipping off.")
    if factor is not None and weight_decay == 0.0:
        raise ValueError("weight_decay must be > 0 when gradients are clipped, got 0; without clipping pass clip_factor=None.")
    if not 0.0 <= options.get("momentum", 0.0) < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {options['momentum']}.")
    if options.get("scope", "global") not in SCOPES:
        raise ValueError(f"scope must be 'global', 'group' or 'tensor', got {options['scope']!r}.")


def _common_options(groups: list[dict[str, Any]]) -> tuple[float, float, float]:
    options = {(float(g["lr"]), float(g["weight_decay"]), float(g["clip_factor"])) for g in groups}
    if len(options) > 1:
        raise ValueError(
            "groups of scope 'global' must have equal lr, weight_decay and clip_factor, got "
            f"{', '.join(map(str, sorted(options)))}; use scope='group' for groups that differ."
        )
    return options.pop()


def _use_foreach(params: list[Tensor], foreach: bool | None) -> bool:
    return all(p.is_cuda for p in params) if foreach is None else foreach


def _clip_coefficients(
    params: list[Tensor], grads: list[Tensor], lr: float, weight_decay: float, factor: float, scope: Scope, foreach: bool
) -> list[Tensor]:
    """One coefficient of shape () per gradient; the same object where a norm is shared."""
    if lr == 0.0:
        return [torch.ones((), device=params[0].device)] * len(params)
    relative = factor * math.sqrt(2.0 * weight_decay / lr)
    param_norms, grad_norms = _norms(params, foreach), _norms(grads, foreach)
    if scope != "tensor":
        param_norms, grad_norms = [_total(param_norms)], [_total(grad_norms)]
    coefficients = [
        # Not min(1, threshold / norm), which is NaN if both are zero.
        torch.where(grad_norm > relative * param_norm, relative * param_norm / grad_norm, torch.ones_like(grad_norm))
        for param_norm, grad_norm in zip(param_norms, grad_norms, strict=True)
    ]
    return coefficients if scope == "tensor" else coefficients * len(params)


def _norms(tensors: list[Tensor], foreach: bool) -> list[Tensor]:
    """Norms, those of half precision in float32, in which they neither overflow nor lose digits."""
    wide = [torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else None for t in tensors]
    if foreach and not any(wide):
        return list(torch._foreach_norm(tensors))
    return [cast(Tensor, torch.linalg.vector_norm(t, dtype=dtype)) for t, dtype in zip(tensors, wide, strict=True)]


def _total(norms: list[Tensor]) -> Tensor:
    return cast(Tensor, torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms])))


def _scale_(tensors: list[Tensor], coefficients: list[Tensor], foreach: bool) -> None:
    local = [c.to(t.device) for c, t in zip(coefficients, tensors, strict=True)]
    if foreach:
        torch._foreach_mul_(tensors, local)
    else:
        for tensor, coefficient in zip(tensors, local, strict=True):
            tensor.mul_(coefficient)


def _move_(params: list[Tensor], updates: list[Tensor], lr: float, weight_decay: float, foreach: bool) -> None:
    """Decay and step: x <- (1 - lr weight_decay) x - lr update."""
    if foreach:
        torch._foreach_mul_(params, 1.0 - lr * weight_decay)
        torch._foreach_add_(params, updates, alpha=-lr)
    else:
        for param, update in zip(params, updates, strict=True):
            param.mul_(1.0 - lr * weight_decay).add_(update, alpha=-lr)
