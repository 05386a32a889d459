"""Adam over tensors that hold all parameters of networks, with the state of torch's Adam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch as th
from torch import nn


def flatten(networks: Sequence[Sequence[nn.Parameter]]) -> th.Tensor:
    """Put the parameters of S networks of one shape into one tensor, (S, n), a network in a row, and make them views of it."""
    flat = th.stack([th.cat([parameter.detach().reshape(-1) for parameter in parameters]) for parameters in networks])
    with th.no_grad():
        for row, parameters in zip(flat, networks, strict=True):
            for parameter, view in zip(parameters, _views(row, parameters), strict=True):
                parameter.data = view
    return flat


class AdamRows:
    """What Adam keeps for S networks, and their gradients: a network in a row.

    Args:
        flat: Parameters (S, n).
        grads: Gradients (S, n).
        num_counts: Counts of steps that each has, all equal: one per parameter tensor, as torch's Adam has them.
    """

    def __init__(self, flat: th.Tensor, grads: th.Tensor, num_counts: int) -> None:
        self.flat, self.grads = flat, grads
        self.exp_avg, self.exp_avg_sq = th.zeros_like(flat), th.zeros_like(flat)
        self.steps = th.zeros(len(flat), num_counts, device=flat.device)
        parts = grads, self.exp_avg, self.exp_avg_sq, self.steps
        self._arrays = tuple(part.numpy() for part in parts) if flat.device.type == "cpu" else ()

    def arguments(self, group: dict[str, Any]) -> tuple[Any, ...]:
        """Gradients, averages, counts of steps and the options of a group, as the steps in numba take them; on the CPU."""
        sign = -1.0 if group["maximize"] else 1.0
        return *self._arrays, group["lr"], *group["betas"], group["eps"], group["weight_decay"], sign


class FlatAdam(th.optim.Adam):
    """torch's Adam, in one fused step over parameters that are views of one tensor (see `flatten`).

    The step is that of torch's Adam with `fused=True`, the state has its form, so files of one are read by the other.

    Args:
        parameters: In the order of the optimizer that this one replaces.
        in_order: The same in the order of the tensor.
        rows: Where parameters, gradients and averages are.
        index: In which row.
        **options: Of torch's Adam, but for `amsgrad`, `foreach`, `fused`, `capturable`, `differentiable`.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], in_order: Sequence[nn.Parameter], rows: AdamRows, index: int = 0, **options: Any
    ) -> None:
        super().__init__(parameters, **options)
        self._in_order = list(in_order)
        self._flat, self._grads = rows.flat[index], rows.grads[index]
        self._exp_avg, self._exp_avg_sq, self._steps = rows.exp_avg[index], rows.exp_avg_sq[index], rows.steps[index]
        for parameter, grad in zip(self._in_order, _views(self._grads, self._in_order), strict=True):
            parameter.grad = grad
        self._make_state()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients are overwritten, not summed."""

    def _make_state(self) -> None:
        averages, squares = (_views(part, self._in_order) for part in (self._exp_avg, self._exp_avg_sq))
        for parameter, step, average, square in zip(self._in_order, self._steps, averages, squares, strict=True):
            self.state[parameter] = {"step": step, "exp_avg": average, "exp_avg_sq": square}
        self._first_step = self._steps[0]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step along the flat gradient."""
        self.take()

    def take(self) -> None:
        """The step itself, without the hooks and the profiler's mark that torch puts around `step`."""
        group = self.param_groups[0]
        self._steps += 1
        beta1, beta2 = group["betas"]
        th._fused_adam_(
            [self._flat], [self._grads], [self._exp_avg], [self._exp_avg_sq], [], [self._first_step],
            lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=group["maximize"],
        )  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of this or of torch's Adam."""
        super().load_state_dict(state_dict)
        loaded = [self.state[parameter] for parameter in self._in_order]
        if loaded and all(loaded):
            for flat, name in ((self._exp_avg, "exp_avg"), (self._exp_avg_sq, "exp_avg_sq")):
                flat.copy_(th.cat([state[name].reshape(-1) for state in loaded]))
            self._steps.fill_(float(loaded[0]["step"]))
        else:
            for flat in (self._exp_avg, self._exp_avg_sq, self._steps):
                flat.zero_()
        self._make_state()


def _views(flat: th.Tensor, parameters: Sequence[th.Tensor]) -> list[th.Tensor]:
    parts = th.split(flat, [parameter.numel() for parameter in parameters])
    return [part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)]
