"""One learning step: forward and backward in parts, mixed precision, clipping, the check for nan, and the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from rlopt.optim import CombinedOptimizer, needs_closure
from rlopt.optim.finite import NonFiniteError, Undo, cause
from rlopt.optim.kfac import KFAC
from rlopt.optim.locoprop import LocoProp
from rlopt.supervised.batches import Batch
from rlopt.supervised.config import TrainerConfig
from rlopt.supervised.distributed import Processes
from rlopt.supervised.sharding import Sharding, clip_, local, without_averaging

Loss = Callable[[Any, Tensor], Tensor]
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def layer_recorder(optimizer: Optimizer) -> Optimizer | None:
    """The optimizer, or the part of it, that needs the hooks that it has put on the layers of the network; None: there is none."""
    if isinstance(optimizer, (LocoProp, KFAC)):
        return optimizer
    parts = optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else ()
    return next((part for part in map(layer_recorder, parts) if part is not None), None)


class LeftOut(Exception):  # a condition that the trainer handles
    """Raised for a step that was left out because something was not finite; everything is as before."""


class Stepper:
    """Takes steps with one model, loss and optimizer.

    Args:
        model: On its device.
        forward: The model, or its compiled form.
        loss: `(outputs, targets)` -> mean over rows.
        optimizer: Of parameters of the model.
        config: Micro-batches, precision, clipping.
        sharding: Where parts of the model are.
        processes: Those that share each batch.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Any],
        loss: Loss,
        optimizer: Optimizer,
        config: TrainerConfig,
        sharding: Sharding,
        processes: Processes,
    ) -> None:
        self._forward, self._loss, self.optimizer, self._config = forward, loss, optimizer, config
        self._sharding, self._processes = sharding, processes
        self._named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        self._params = [param for _, param in self._named]
        self._buffers = [*model.buffers()]
        self._closure_steps = needs_closure(optimizer)
        self._device_type = torch.device(config.device).type
        self.scaler = torch.amp.GradScaler(self._device_type, enabled=config.precision == "float16")
        if self._closure_steps and self.scaler.is_enabled():
            raise ValueError("precision must not be 'float16' with an optimizer that evaluates the loss itself; take 'bfloat16'.")
        name = type(optimizer).__name__
        if config.clip_norm is not None and hasattr(optimizer, "local_losses"):
            raise ValueError(
                f"clip_norm must be None with {name}: it does not step along the gradient; it may have a bound of its own."
            )
        if hasattr(optimizer, "grad_scaler"):
            optimizer.grad_scaler = self.scaler
        # Called around forward pass and loss, for optimizers that look for the activation, or the loss, behind a layer.
        self._watching = getattr(optimizer, "watching", contextlib.nullcontext)
        self._tracks_always = bool(getattr(optimizer, "track_local_losses", False))
        self._loss_value = self._norm = torch.zeros(())

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of forward passes."""
        if self._config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self._device_type, _AUTOCAST[self._config.precision])

    def step(self, batch: Batch, step: int, *, measure: bool, weight: float = 1.0) -> dict[str, Tensor]:
        """Learn from a batch.

        Args:
            batch: Inputs and targets: own rows.
            step: Number of the step, from 0, for the message of the check.
            measure: Whether to measure norms; costs a copy of the parameters.
            weight: Factor of the loss, see `Processes.share`.

        Returns:
            With `measure`: `loss` of the batch before the step, `grad_norm` before clipping, `weight_norm` after the step and
            `update_ratio` (norm of the step / norm of the weights before it), on the device. Else nothing.

        Raises:
            NonFiniteError: If the loss or the gradient is not finite. The weights are then those before the step; those of an
                optimizer that evaluates the loss itself are where it evaluated it, unless steps are left out.
        """
        undo = Undo(self._buffers, self.optimizer) if self._config.non_finite == "skip" else None
        try:
            return self._step(batch, step, measure=measure, weight=weight)
        except NonFiniteError as error:
            if undo is None:
                raise
            undo()
            self.optimizer.zero_grad()
            self.scaler.update()  # it has begun with the step
            self.check_parameters(step)
            raise LeftOut(str(error)) from None

    def _step(self, batch: Batch, step: int, *, measure: bool, weight: float) -> dict[str, Tensor]:
        check = step % self._config.check_finite_every == 0
        before = [local(param.detach()).clone() for param in self._params] if measure else []
        if hasattr(self.optimizer, "track_local_losses"):
            self.optimizer.track_local_losses = measure or self._tracks_always
        first = True

        def closure() -> Tensor:
            nonlocal first
            loss = self._backward(batch, weight)
            self._finish_gradient(loss, step, check=check, measure=measure, first=first)
            first = False
            return loss

        if self._closure_steps:
            # The two kinds of annotation that torch and this package use for closures differ; both only need a number.
            self.optimizer.step(closure)  # type: ignore[arg-type]
        else:
            closure()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return self._measure(before) if measure else {}

    def _backward(self, batch: Batch, weight: float) -> Tensor:
        """Leave the gradient of the mean loss of all processes in `grad`; returns the loss."""
        self.optimizer.zero_grad()
        inputs, targets = batch
        parts = self._config.micro_batches
        if parts > len(inputs):
            raise ValueError(f"micro_batches must be at most the rows of a batch, {len(inputs)}, got {parts}.")
        total: Tensor | None = None
        pairs = zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True)
        for number, (part_inputs, part_targets) in enumerate(pairs, start=1):
            with without_averaging(self._forward) if number < parts else contextlib.nullcontext():
                with self.autocast(), self._watching():
                    # Parts may differ by one row; each counts by its rows.
                    loss = self._loss(self._forward(part_inputs), part_targets) * (len(part_inputs) / len(inputs) * weight)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        if isinstance(self._forward, DistributedDataParallel):
            self._check_all_used()
        # The same number everywhere: so are the decisions of optimizers and checks that depend on it.
        return self._processes.mean(total)

    def _check_all_used(self) -> None:
        """Refuse what makes DistributedDataParallel wait for gradients that never come."""
        for name, param in self._named:
            if param.grad is None:
                raise ValueError(f"parallel must not be 'ddp' with parameters that the loss does not use, such as {name!r}.")

    def _finish_gradient(self, loss: Tensor, step: int, *, check: bool, measure: bool, first: bool) -> None:
        """Unscale, measure, check and clip the gradient."""
        clip_norm = self._config.clip_norm
        if not (check or measure or clip_norm is not None):
            return
        self.scaler.unscale_(self.optimizer)
        used = [param for param in self._params if param.grad is not None]
        norm = self._sharding.total_norm([cast(Tensor, param.grad) for param in used], used)
        if first:
            self._loss_value, self._norm = loss, norm
        # A scaled gradient overflows now and then by design; the scaler leaves out such a step.
        finite = torch.isfinite(loss) if self.scaler.is_enabled() else torch.isfinite(loss) & torch.isfinite(norm)
        if check and not finite:
            raise NonFiniteError(f"step {step}: {self._describe(loss)}")
        if clip_norm is not None and self._sharding.has_shards:
            clip_(self._params, clip_norm, norm)
        elif clip_norm is not None:
            clip_grads_with_norm_(self._params, clip_norm, norm)

    def _describe(self, loss: Tensor) -> str:
        """What is not finite on any process, the cause before its consequences."""
        return min(self._processes.gather(self._describe_own(loss)))[1]

    def _describe_own(self, loss: Tensor) -> tuple[int, str]:
        named = ((name, local(param), None if param.grad is None else local(param.grad)) for name, param in self._named)
        return cause(named, loss)

    def check_parameters(self, step: int) -> None:
        """Refuse weights that are not finite.

        Raises:
            NonFiniteError: With the name of the first one.
        """
        finite = all(torch.stack([torch.isfinite(local(param)).all() for param in self._params]).tolist())
        if not all(self._processes.gather(finite)):
            raise NonFiniteError(f"step {step}: {self._describe(torch.zeros(()))}")

    def _measure(self, before: Sequence[Tensor]) -> dict[str, Tensor]:
        now = [local(param.detach()) for param in self._params]
        moved = self._sharding.total_norm([new - old for new, old in zip(now, before, strict=True)], self._params)
        return {
            "loss": self._loss_value,
            "grad_norm": self._norm,
            "weight_norm": self._sharding.total_norm(now, self._params),
            "update_ratio": moved / self._sharding.total_norm(before, self._params),
        }


def learning_rates(optimizer: Optimizer, sharding: Sharding | None = None) -> dict[str, float]:
    """Learning rate of each group, and its ratio to the squared norm of the weights.

    The latter, `effective_lr`, is what moves the direction of weights whose scale does not matter (behind a normalisation).
    Groups after the first have their number in the name.

    Args:
        optimizer: With one or more groups.
        sharding: Where parts of the parameters are; None: all are whole.

    References: Li et al., Robust training of neural networks using scale invariant architectures, ICML 2022, arXiv 2202.00980.

    Example:
        >>> learning_rates(torch.optim.SGD([torch.nn.Parameter(torch.tensor([3.0, 4.0]))], lr=0.5))
        {'lr': 0.5, 'effective_lr': 0.02}
    """
    found = {}
    for number, group in enumerate(optimizer.param_groups):
        suffix = f"_{number}" if number else ""
        lr = float(group["lr"])
        weights = [param.detach() for param in group["params"]]
        norm = get_total_norm(weights) if sharding is None else sharding.total_norm(weights, group["params"])
        squared = float(norm) ** 2
        found[f"lr{suffix}"] = lr
        found[f"effective_lr{suffix}"] = lr / squared if squared > 0.0 else float("inf")
    return found


def local_losses(optimizer: Optimizer) -> dict[str, float]:
    """What an optimizer with losses per layer reports in `local_losses`; nothing for others.

    Returns:
        `local_loss/<layer>` before the local problem was solved, and `local_loss_after/<layer>`.
    """
    reported = getattr(optimizer, "local_losses", None)
    if not isinstance(reported, Mapping):
        return {}
    found = {}
    for name, (before, after) in reported.items():
        found[f"local_loss/{name}"], found[f"local_loss_after/{name}"] = float(before), float(after)
    return found
