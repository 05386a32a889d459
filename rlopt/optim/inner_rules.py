"""First-order update rules that LocoProp applies inside its local problems: functions of (parameter, gradient, state)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rlopt.optim.rmsprop_tf import rmsprop_tf

State = dict[str, Tensor]


@runtime_checkable
class InnerRule(Protocol):
    """What an update rule offers. Its state lives with the caller and is never reset by the rule."""

    def init_state(self, param: Tensor) -> State:
        """Return the state of a parameter before its first update: tensors of its shape, or single numbers."""
        ...

    def update(self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], lr: float) -> None:
        """Update parameters and states in place; gradients stay as they are."""
        ...


def _check(name: str, value: float, low: float, high: float = float("inf")) -> None:
    if not low <= value < high:
        raise ValueError(f"{name} must be in [{low}, {high}), got {value}.")


@dataclass(frozen=True)
class RMSpropTFRule:
    """RMSProp as TensorFlow defines it, see `rlopt.optim.rmsprop_tf.RMSpropTF`; defaults of the authors' LocoProp notebook.

    Example:
        >>> weight = torch.zeros(1, dtype=torch.float64)
        >>> rule = RMSpropTFRule()
        >>> rule.update([weight], [torch.full((1,), -0.6, dtype=torch.float64)], [rule.init_state(weight)], lr=1e-5)
        >>> f"{weight.item():.6e}"
        '6.201704e-06'
    """

    alpha: float = 0.9
    """Decay of the mean of squared gradients, in [0, 1)."""
    momentum: float = 0.999
    """Decay of the sum of steps, in [0, 1); 0.999 makes a steady step 1000 times as long."""
    eps: float = 1e-5
    """Added to the mean square under the root, >= 0."""

    def __post_init__(self) -> None:
        """Check the options."""
        _check("alpha", self.alpha, 0.0, 1.0)
        _check("momentum", self.momentum, 0.0, 1.0)
        _check("eps", self.eps, 0.0)

    def init_state(self, param: Tensor) -> State:
        """Return a mean square of 1, as TensorFlow does, and no momentum."""
        state = {"square_avg": torch.ones_like(param)}
        if self.momentum > 0.0:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state

    def update(self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], lr: float) -> None:
        """Update parameters and states in place."""
        for param, grad, state in zip(params, grads, states, strict=True):
            rmsprop_tf(
                param,
                grad,
                state["square_avg"],
                state.get("momentum_buffer"),
                lr=lr,
                alpha=self.alpha,
                momentum=self.momentum,
                eps=self.eps,
            )


@dataclass(frozen=True)
class SGDRule:
    """Gradient descent: v <- momentum v + g;  w <- w - lr v.

    Example:
        >>> weight = torch.ones(1)
        >>> SGDRule().update([weight], [torch.ones(1)], [{}], lr=0.25)
        >>> weight.item()
        0.75
    """

    momentum: float = 0.0
    """Decay of the sum of gradients, in [0, 1)."""

    def __post_init__(self) -> None:
        """Check the options."""
        _check("momentum", self.momentum, 0.0, 1.0)

    def init_state(self, param: Tensor) -> State:
        """Return no momentum."""
        return {"momentum_buffer": torch.zeros_like(param)} if self.momentum > 0.0 else {}

    def update(self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], lr: float) -> None:
        """Update parameters and states in place."""
        for param, grad, state in zip(params, grads, states, strict=True):
            if self.momentum > 0.0:
                grad = state["momentum_buffer"].mul_(self.momentum).add_(grad)
            param.add_(grad, alpha=-lr)


@dataclass(frozen=True)
class RMSpropRule:
    """RMSProp as in `torch.optim.RMSprop`: the root without eps, a mean square that starts at 0, lr outside the momentum.

    Example:
        >>> weight = torch.zeros(1, dtype=torch.float64)
        >>> rule = RMSpropRule()
        >>> rule.update([weight], [torch.full((1,), -0.6, dtype=torch.float64)], [rule.init_state(weight)], lr=1e-5)
        >>> f"{weight.item():.6e}"
        '3.162111e-05'
    """

    alpha: float = 0.9
    """Decay of the mean of squared gradients, in [0, 1)."""
    momentum: float = 0.999
    """Decay of the sum of steps, in [0, 1)."""
    eps: float = 1e-5
    """Added to the root, >= 0."""

    def __post_init__(self) -> None:
        """Check the options."""
        _check("alpha", self.alpha, 0.0, 1.0)
        _check("momentum", self.momentum, 0.0, 1.0)
        _check("eps", self.eps, 0.0)

    def init_state(self, param: Tensor) -> State:
        """Return zeros."""
        state = {"square_avg": torch.zeros_like(param)}
        if self.momentum > 0.0:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state

    def update(self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], lr: float) -> None:
        """Update parameters and states in place."""
        for param, grad, state in zip(params, grads, states, strict=True):
            square = state["square_avg"].mul_(self.alpha).addcmul_(grad, grad, value=1.0 - self.alpha)
            root = square.sqrt().add_(self.eps)
            if self.momentum > 0.0:
                param.add_(state["momentum_buffer"].mul_(self.momentum).addcdiv_(grad, root), alpha=-lr)
            else:
                param.addcdiv_(grad, root, value=-lr)


@dataclass(frozen=True)
class AdamRule:
    """Adam as in `torch.optim.Adam`; its steps count local iterations.

    Example:
        >>> weight = torch.ones(1, dtype=torch.float64)
        >>> rule = AdamRule(eps=0.0)
        >>> rule.update([weight], [torch.full((1,), 5.0, dtype=torch.float64)], [rule.init_state(weight)], lr=0.25)
        >>> round(weight.item(), 12)
        0.75
    """

    beta1: float = 0.9
    """Decay of the mean gradient, in [0, 1)."""
    beta2: float = 0.999
    """Decay of the mean squared gradient, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root, >= 0."""

    def __post_init__(self) -> None:
        """Check the options."""
        _check("beta1", self.beta1, 0.0, 1.0)
        _check("beta2", self.beta2, 0.0, 1.0)
        _check("eps", self.eps, 0.0)

    def init_state(self, param: Tensor) -> State:
        """Return zeros."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=param.device),
            "exp_avg": torch.zeros_like(param),
            "exp_avg_sq": torch.zeros_like(param),
        }

    def update(self, params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[State], lr: float) -> None:
        """Update parameters and states in place."""
        for param, grad, state in zip(params, grads, states, strict=True):
            # The count stays on the device, so that nothing waits for it.
            count = state["step"].add_(1.0).double()
            mean = state["exp_avg"].lerp_(grad, 1.0 - self.beta1)
            square = state["exp_avg_sq"].mul_(self.beta2).addcmul_(grad, grad, value=1.0 - self.beta2)
            scale = (lr / (1.0 - self.beta1**count)).to(param.dtype)
            root = (square / (1.0 - self.beta2**count).to(param.dtype)).sqrt_().add_(self.eps)
            param.sub_((mean / root).mul_(scale))


INNER_RULES: dict[str, InnerRule] = {
    "rmsprop_tf": RMSpropTFRule(),
    "rmsprop": RMSpropRule(),
    "sgd": SGDRule(),
    "adam": AdamRule(),
}
