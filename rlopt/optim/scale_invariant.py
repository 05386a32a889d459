"""SGD with weight decay and relative global clipping, for networks whose output ignores the scale of their weights.

Let x be all scale-invariant parameters as one vector, L(c x) = L(x) for every c > 0. The gradient is then orthogonal to x and
shrinks as 1 / |x|. Gradient noise makes |x| grow, weight decay makes it shrink, and they settle where the direction of x turns by
about sqrt(2 lr weight_decay) per step, whatever the initial scale and the scale of the loss: SGD sets its own effective learning
rate, lr / |x|^2, and keeps no state. `rlopt.optim.is_scale_invariant` checks the assumption on a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, cast, overload

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
    momentum: float = 0.0,
    scope: Literal["global", "tensor"] = "global",
    foreach: bool | None = None,
) -> Tensor:
    """Shrink gradients that are large relative to their parameters (relative global clipping, RGC), in place.

    With x the parameters and g the gradients, each as one vector,

        coefficient = min(1, factor * (1 - momentum) * sqrt(2 * weight_decay / lr) * |x| / |g|),    g <- coefficient * g.

    In equilibrium |g| / |x| is (1 - momentum) sqrt(2 weight_decay / lr), so `factor` says how much larger than usual a gradient
    may be. Use it
    before a step that decays the weights by `lr * weight_decay` apart from the gradient; a decay term inside the gradient would
    be clipped too. For several groups of different `lr` call it once per group. No value is read back from the device.

    Args:
        parameters: Scale-invariant parameters. Those without a gradient are left out, from the norms as well.
        lr: Current learning rate, >= 0. The threshold rises when it falls; 0 clips nothing.
        weight_decay: Current weight decay, > 0.
        factor: sqrt(C) in the paper, >= 1; its default is the paper's.
        momentum: Momentum v <- momentum * v + g of the optimizer that follows, in [0, 1); the paper has none.
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
    _check({"lr": lr, "weight_decay": weight_decay, "clip_factor": factor, "momentum": momentum})
    params = [p for p in ([parameters] if isinstance(parameters, Tensor) else parameters) if p.grad is not None]
    grads = [cast(Tensor, p.grad) for p in params]
    if not params:
        return torch.ones(() if scope == "global" else (0,))
    foreach = _use_foreach(params, foreach)
    with torch.no_grad():
        coefficients = _clip_coefficients(params, grads, _Rates(lr, weight_decay, momentum, factor), scope, foreach)
        _scale_(grads, coefficients, foreach)
        return coefficients[0] if scope == "global" else torch.stack([c.to(coefficients[0].device) for c in coefficients])


class ScaleInvariantSGD(Optimizer):
    r"""SGD with decoupled weight decay and relative global clipping (RGC).

    With g the gradient, both norms over all clipped parameters and taken before anything moves,

        coefficient = min(1, clip_factor * (1 - momentum) * sqrt(2 * weight_decay / lr) * |x| / |g|)
        v <- momentum * v + coefficient * g
        x <- (1 - lr * weight_decay) * x - lr * v

    `lr` is the current one, so the threshold follows a schedule. The decay is never clipped. Without momentum (the paper's method)
    v is the clipped gradient and there is no state; with momentum the gradient is clipped before it enters v (not in the paper),
    and in equilibrium |g| / |x| is (1 - momentum) sqrt(2 weight_decay / lr), which the clipping takes into account.

    The way to the equilibrium takes about log(|x| / |x in equilibrium|) / (lr weight_decay) steps, too many for short trainings
    and badly scaled initial weights. `start_in_equilibrium` goes there at once: the first step with a learning rate > 0 begins with

        x <- c x,    c^2 = |g| / (|x| (1 - momentum) sqrt(2 weight_decay / lr)),

    and counts with the gradient g / c that belongs to the rescaled weights. That leaves the function of the network as it is, and
    makes the training independent of the scales of initial weights and loss, and of `lr` at given `lr * weight_decay`. It is for
    trainings without warm-up.

    Parameters that are not scale invariant belong into a group with `clip_factor=None`, or better to another optimizer;
    `rlopt.optim.ScaleInvariantSGDSpec` builds both. `rlopt.optim.split_scale_invariant` finds them.

    Differs from the paper: the scopes "group" and "tensor", momentum, `start_in_equilibrium` and `maximize` are additions.

    Args:
        params: Parameters or groups. A parameter whose gradient is None is left alone, and left out of the norms.
        lr: >= 0. Paper: 8e-4 without warm-up, divided by 10 twice. Only lr * weight_decay matters in the long run.
        weight_decay: >= 0 and lr * weight_decay < 1; > 0 if gradients are clipped. Paper: 0.01.
        clip_factor: sqrt(C) in the paper, >= 1, default 2 from there; None: no clipping.
        momentum: In [0, 1).
        scope: What shares one norm: all parameters of groups with this scope ("global", the paper), each group ("group", for
            networks of several invariant parts), or each tensor ("tensor"). Groups of scope "global" need equal lr, weight_decay,
            momentum and clip_factor.
        start_in_equilibrium: Whether the first step rescales the weights, with the norms of `scope`; only for scale-invariant
            parameters, and with weight_decay > 0. The option of the group becomes False when that is done.
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
        start_in_equilibrium: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "clip_factor": clip_factor, "momentum": momentum, "scope": scope,
            "start_in_equilibrium": start_in_equilibrium, "foreach": foreach, "maximize": maximize,
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
        parts = []
        for group in self.param_groups:
            _check(group)
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if any(cast(Tensor, p.grad).is_sparse for p in params):
                raise ValueError("gradients must be dense, got a sparse one; build the embedding with sparse=False.")
            if params:
                grads = [-cast(Tensor, p.grad) if group["maximize"] else cast(Tensor, p.grad) for p in params]
                if group["clip_factor"] is not None or group["start_in_equilibrium"]:
                    grads = [g.clone() for g in grads]  # the gradients of the user stay as they are
                parts.append(_Part(group, params, grads, _use_foreach(params, group["foreach"])))
        starting = [part for part in parts if part.group["start_in_equilibrium"] and part.group["lr"] > 0.0]
        for whole in _sharing_norms(starting):
            _start_in_equilibrium_(whole)
        for part in starting:
            part.group["start_in_equilibrium"] = False
        for whole in _sharing_norms([part for part in parts if part.group["clip_factor"] is not None]):
            rates, scope = _rates([whole]), whole.group["scope"]
            _scale_(whole.grads, _clip_coefficients(whole.params, whole.grads, rates, scope, whole.foreach), whole.foreach)
        for group, params, grads, foreach in parts:
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
    if options.get("start_in_equilibrium") and weight_decay == 0.0:
        raise ValueError("weight_decay must be > 0 with start_in_equilibrium, got 0: there is no equilibrium without decay.")
    if not 0.0 <= options.get("momentum", 0.0) < 1.0:
        raise ValueError(f"momentum must be in [0, 1), got {options['momentum']}.")
    if options.get("scope", "global") not in SCOPES:
        raise ValueError(f"scope must be 'global', 'group' or 'tensor', got {options['scope']!r}.")


class _Rates(NamedTuple):
    lr: float
    weight_decay: float
    momentum: float
    clip_factor: float | None


class _Part(NamedTuple):
    """What a group has to move."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]
    foreach: bool


def _sharing_norms(parts: list[_Part]) -> list[_Part]:
    """Join the parts of scope "global" to one."""
    shared = [part for part in parts if part.group["scope"] == "global"]
    others = [part for part in parts if part.group["scope"] != "global"]
    if not shared:
        return others
    _rates(shared)
    params, grads = [p for part in shared for p in part.params], [g for part in shared for g in part.grads]
    return [_Part(shared[0].group, params, grads, all(part.foreach for part in shared)), *others]


def _rates(parts: list[_Part]) -> _Rates:
    found = {_Rates(*(part.group[name] for name in _Rates._fields)) for part in parts}
    if len(found) > 1:
        raise ValueError(
            "groups of scope 'global' must have equal lr, weight_decay, momentum and clip_factor, got "
            f"{', '.join(map(str, map(tuple, found)))}; use scope='group' for groups that differ."
        )
    return found.pop()


def _use_foreach(params: list[Tensor], foreach: bool | None) -> bool:
    return all(p.is_cuda for p in params) if foreach is None else foreach


def _clip_coefficients(params: list[Tensor], grads: list[Tensor], rates: _Rates, scope: Scope, foreach: bool) -> list[Tensor]:
    """One coefficient of shape () per gradient; the same object where a norm is shared."""
    if rates.lr == 0.0:
        return [torch.ones((), device=params[0].device)] * len(params)
    relative = cast(float, rates.clip_factor) * (1.0 - rates.momentum) * math.sqrt(2.0 * rates.weight_decay / rates.lr)
    coefficients = [
        # Not min(1, threshold / norm), which is NaN if both are zero.
        torch.where(grad_norm > relative * param_norm, relative * param_norm / grad_norm, torch.ones_like(grad_norm))
        for param_norm, grad_norm in _norm_pairs(params, grads, scope, foreach)
    ]
    return coefficients if scope == "tensor" else coefficients * len(params)


def _start_in_equilibrium_(part: _Part) -> None:
    """Rescale parameters, and gradients by the inverse, so that their norms have the ratio of the equilibrium."""
    rates, scope = _rates([part]), part.group["scope"]
    relative = (1.0 - rates.momentum) * math.sqrt(2.0 * rates.weight_decay / rates.lr)
    factors = [
        torch.where((param_norm > 0.0) & (grad_norm > 0.0), grad_norm / (relative * param_norm), torch.ones_like(grad_norm)).sqrt()
        for param_norm, grad_norm in _norm_pairs(part.params, part.grads, scope, part.foreach)
    ]
    factors = factors if scope == "tensor" else factors * len(part.params)
    _scale_(part.params, factors, part.foreach)
    _scale_(part.grads, [1.0 / factor for factor in factors], part.foreach)


def _norm_pairs(params: list[Tensor], grads: list[Tensor], scope: Scope, foreach: bool) -> list[tuple[Tensor, Tensor]]:
    """Norms of parameters and gradients: of each tensor for scope "tensor", else of all together."""
    param_norms, grad_norms = _norms(params, foreach), _norms(grads, foreach)
    if scope != "tensor":
        param_norms, grad_norms = [_total(param_norms)], [_total(grad_norms)]
    return list(zip(param_norms, grad_norms, strict=True))


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
