"""K-FAC: the gradient of each linear layer times the inverse of a Kronecker-factored curvature."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlopt.optim._capture import LayerRecord, Recorder, attach_hooks
from rlopt.optim._hooks import Link
from rlopt.optim.finite import NonFiniteError


class KFAC(Optimizer):
    r"""Natural gradient of linear layers with a Kronecker-factored empirical Fisher matrix.

    For each layer with inputs x (a 1 appended for the bias) and gradients d of a row's own loss with respect to its
    pre-activations, both averaged over the rows of a batch and then exponentially over steps,

        A <- mean of x x',    S <- mean of d d',    pi = sqrt((tr A / dim A) / (tr S / dim S))
        U = (S + sqrt(damping) / pi I)^-1 G (A + pi sqrt(damping) I)^-1
        c = min(1, sqrt(kl_clip / (lr^2 sum over layers of <U, G>)))
        v <- momentum v + c U,    W <- (1 - lr weight_decay) W - lr v

    with G the gradient of weight and bias. lr^2 <U, G> is the squared length of the step -lr U in the metric of the curvature, to
    second order twice the divergence between the outputs before and after; c keeps it within kl_clip. The loss must be a mean over
    rows, as usual: d is the gradient of the loss times the number of rows. Averages start at their first value. Forward and
    backward passes are recorded by hooks on the layers; a layer without a record so far takes U = G. Copies of the module alone do
    not record, copies of module and optimizer together do.

    Differs from the paper: the Fisher matrix is the empirical one, of the labels in the data instead of labels drawn from the
    model; the damping is constant; the step length is limited as in the second reference instead of optimal for a quadratic model;
    weight decay is decoupled. Linear layers only.

    Args:
        module: The network. Parameters outside its `nn.Linear` layers are not moved; `rlopt.optim.Kfac` gives them to Adam.
        lr: >= 0.
        momentum: In [0, 1).
        weight_decay: >= 0.
        damping: > 0.
        factor_decay: Decay of the averages, in [0, 1).
        inverse_every: Steps from one inversion to the next, > 0.
        kl_clip: Limit of the squared length of a step in the metric of the curvature, > 0; None: none. (1e-3 is usual.)

    Raises:
        ValueError: For values outside these sets, and for a network without linear layers.

    References: Martens, Grosse, Optimizing neural networks with Kronecker-factored approximate curvature, ICML 2015, arXiv
    1503.05671. Ba, Grosse, Martens, Distributed second-order optimization using Kronecker-factored approximations, ICLR 2017.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> _ = nn.init.ones_(net.weight), nn.init.zeros_(net.bias)
        >>> optimizer = KFAC(net, lr=0.03, momentum=0.0)
        >>> loss = (net(torch.eye(2)) ** 2).mean()
        >>> loss.backward()
        >>> optimizer.step()
        >>> bool((net(torch.eye(2)) ** 2).mean() < loss)
        True
    """

    def __init__(
        self,
        module: nn.Module,
        lr: float = 0.03,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 1e-2,
        factor_decay: float = 0.95,
        inverse_every: int = 10,
        kl_clip: float | None = 1e-3,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {value}.")
        for name, value in (("momentum", momentum), ("factor_decay", factor_decay)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {value}.")
        for name, value in (("damping", damping), ("inverse_every", inverse_every)):
            if not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}.")
        if kl_clip is not None and not kl_clip > 0:
            raise ValueError(f"kl_clip must be > 0 or None, got {kl_clip}.")
        layers = {name: (part.weight, part.bias) for name, part in module.named_modules() if type(part) is nn.Linear}
        if not layers:
            raise ValueError("module must have nn.Linear layers, got none.")
        self._module, self._layers = module, layers
        self._link = Link()
        self._link.connect(self)
        self._recorder: Recorder | None = None
        attach_hooks(module, layers, self._link, detect=False)
        params = {id(p): p for layer in self.recorder.layers.values() for p in layer.parameters.values()}
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "damping": damping, "factor_decay": factor_decay,
            "inverse_every": inverse_every, "kl_clip": kl_clip,
        }  # fmt: skip
        super().__init__(list(params.values()), defaults)

    @property
    def recorder(self) -> Recorder:
        """What has been recorded, as the hooks on the module report it."""
        # Made on demand, since a copy is born before its module is complete.
        if self._recorder is None:
            self._recorder = Recorder(self._module, self._layers)
        return self._recorder

    def suspended(self) -> AbstractContextManager[None]:
        """Record no forward pass inside, such as one of a critic for the loss of an actor."""
        return self.recorder.suspended()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_module": self._module, "_layers": self._layers, "_link": self._link}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_module" in state:  # a copy; `load_state_dict` comes here too, without it
            self._recorder = None
            self._link.connect(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: the parameters are those of the module's layers; the constructor adds their group."""
        if self.param_groups:
            raise ValueError("add_param_group is not possible: KFAC takes its parameters from the linear layers of the module.")
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and what was recorded for them."""
        super().zero_grad(set_to_none)
        self.recorder.forget()

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
            NonFiniteError: If the second moments of inputs or gradients are not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]
        steps = [
            (layer, *self._natural_gradient(layer, group))
            for layer in self.recorder.layers.values()
            if layer.weight.grad is not None
        ]
        self.recorder.forget()
        shrink = _shrink_factor([(gradient, update) for _, gradient, update in steps], group["lr"], group["kl_clip"])
        for layer, _, update in steps:
            self._apply(layer, update if shrink is None else update * shrink, group)
        return loss

    def _natural_gradient(self, layer: LayerRecord, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the gradient of weight and bias (out, in + 1), and the same times the inverse curvature."""
        state = self.state[layer.weight]
        has_bias = "bias" in layer.parameters
        if layer.uses:
            _average_factors(state, layer, has_bias, group["factor_decay"])
            if state["num_batches"] % group["inverse_every"] == 0:
                _invert_factors(state, group["damping"])
            state["num_batches"] += 1
        gradient = cast(Tensor, layer.weight.grad)
        if has_bias:
            gradient = torch.cat([gradient, cast(Tensor, cast(nn.Parameter, layer.bias).grad)[:, None]], dim=1)
        if "input_inverse" not in state:
            return gradient, gradient
        return gradient, state["output_inverse"] @ gradient @ state["input_inverse"]

    def _apply(self, layer: LayerRecord, update: Tensor, group: dict[str, Any]) -> None:
        """Take the step of one layer along an update (out, in + 1)."""
        state = self.state[layer.weight]
        if group["momentum"]:
            update = update + group["momentum"] * state.get("momentum_buffer", 0.0)
            state["momentum_buffer"] = update
        parts = [update[:, :-1], update[:, -1]] if "bias" in layer.parameters else [update]
        for param, part in zip(layer.parameters.values(), parts, strict=True):
            param.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(part, alpha=-group["lr"])


def _shrink_factor(pairs: list[tuple[Tensor, Tensor]], lr: float, kl_clip: float | None) -> Tensor | None:
    """Factor of all updates that keeps their length in the metric of the curvature within its limit; None without a limit."""
    if kl_clip is None or not pairs:
        return None
    squared_length = torch.stack([(gradient * update).sum() for gradient, update in pairs]).sum() * lr**2
    return (kl_clip / squared_length.clamp_min(kl_clip)).sqrt()


def _average_factors(state: dict[str, Any], layer: LayerRecord, has_bias: bool, decay: float) -> None:
    """Average the second moments of inputs and gradients of the recorded rows."""
    dtype = layer.weight.dtype
    uses = [use for use in layer.uses if use.delta is not None]
    inputs = torch.cat([use.inputs.flatten(end_dim=-2) for use in uses]).to(dtype)  # (rows, in)
    deltas = torch.cat([cast(Tensor, use.delta).flatten(end_dim=-2) for use in uses]).to(dtype)  # (rows, out)
    if has_bias:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)  # (rows, in + 1)
    rows = len(inputs)
    # The loss is a mean over rows, so the gradient of a row's own loss is `rows` times as large.
    for name, moment in (("input_moment", inputs.T @ inputs / rows), ("output_moment", deltas.T @ deltas * rows)):
        if name in state:
            state[name].lerp_(moment, 1.0 - decay)
        else:
            state[name] = moment
    state.setdefault("num_batches", 0)


def _invert_factors(state: dict[str, Any], damping: float) -> None:
    """Invert both factors, with damping in proportion to their mean eigenvalues."""
    inputs, outputs = state["input_moment"], state["output_moment"]
    ratio = (inputs.diagonal().mean() / outputs.diagonal().mean()).sqrt()
    ratio = torch.where(ratio.isfinite() & (ratio > 0.0), ratio, torch.ones_like(ratio))  # a factor may be zero
    for name, moment, shift in (
        ("input_inverse", inputs, ratio * math.sqrt(damping)),
        ("output_inverse", outputs, math.sqrt(damping) / ratio),
    ):
        state[name] = _damped_inverse(moment, shift)


def _damped_inverse(moment: Tensor, shift: Tensor) -> Tensor:
    """Return (moment + shift I)^-1.

    Rounding can leave a moment with eigenvalues below zero, down to its largest one times the precision. If that defeats Cholesky's
    factorisation, eigenvalues below this bound are taken to be it.
    """
    damped = moment + shift * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    factor, info = torch.linalg.cholesky_ex(damped)
    if bool((info == 0) & damped.diagonal().isfinite().all()):
        return torch.cholesky_inverse(factor)
    if not bool(moment.isfinite().all()):
        raise NonFiniteError("inputs and gradients must be finite in K-FAC, got inf or nan; take a smaller lr or a larger damping.")
    values, vectors = torch.linalg.eigh(moment.double())
    values = values.clamp(min=torch.finfo(moment.dtype).eps * values[-1].item()) + shift
    inverse: Tensor = vectors / values @ vectors.T
    return inverse.to(moment.dtype)
