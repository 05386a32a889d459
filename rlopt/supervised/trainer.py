"""The trainer: any model, loss, optimizer and data, and runs that can be stopped and continued exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlopt.files.checkpoint import list_checkpoints
from rlopt.optim import NonFiniteError, OptimizerLike, build_optimizer
from rlopt.supervised.batches import Batch, TrainingData
from rlopt.supervised.checkpoint import newest_good, read_checkpoint, write_checkpoint
from rlopt.supervised.config import TrainerConfig
from rlopt.supervised.distributed import Processes
from rlopt.supervised.draws import DrawState
from rlopt.supervised.logs import Logs, Row
from rlopt.supervised.schedules import Constant, Schedule
from rlopt.supervised.sharded_checkpoint import merge, save_shards, split
from rlopt.supervised.sharding import Sharding
from rlopt.supervised.step import LeftOut, Loss, Stepper, layer_recorder, learning_rates, local_losses
from rlopt.supervised.stopping import BestSoFar

Metric = Callable[[Any, Tensor], Tensor]
# Options that change the numbers of a run: a checkpoint is continued with the same ones only.
_FIXED_OPTIONS = ("micro_batches", "clip_norm", "precision", "seed")
_RANDOM = "_extra_state"  # ending of what layers with random numbers of their own add to a `state_dict`


class Trainer:
    """Trains a model step by step.

    A step draws a batch, sets the learning rate of every parameter group to its initial one times `schedule(step)`, computes
    the gradient of the loss (in `micro_batches` parts) and lets the optimizer step. Optimizers that evaluate the loss
    themselves (L-BFGS, SAM) get a closure over the same batch. Evaluations run in `eval()` mode without gradients.

    What the layers draw (dropout) comes from a generator of the trainer; torch's global generators are as before when `train`
    returns. Together with the state of model, optimizer, data, scaler and counters it is in each checkpoint: a run that is
    continued has the same weights and logged numbers, to the bit, as one that was never stopped, on the same machine and
    versions. That holds for layers that draw from torch's generators or keep theirs in their `state_dict`.

    A loss or gradient that is not finite ends training before the weights are touched; the last checkpoint is the last good one.
    With `non_finite="skip"` in the config the step is left out instead.

    With `parallel` in the config, processes that torchrun started (see `process_group`) train together: each draws the same batches
    and learns from its own rows of them, so that the run is, up to rounding and dropout, that of one process; without torchrun it
    is one. Numbers are over all processes and the same on all; the first one writes. A checkpoint can be continued by another
    number of processes.

    Args:
        model: Is moved to `config.device`.
        loss: `(outputs, targets)` -> scalar, a mean over the rows of the batch.
        optimizer: A specification, a name or a callable for `rlopt.optim.build_optimizer`, or an optimizer of the model's
            parameters.
        data: Batches, see `TrainingData`; `ArrayData` and `TextWindows` are two.
        config: Options.
        schedule: Step, from 0, -> factor for the learning rate of each group.
        metrics: Name -> `(outputs, targets)` -> mean over rows, for evaluations besides "loss".
        folder: Where checkpoints and TensorBoard events go; None: nothing is written.

    Attributes:
        step: Number of finished steps.
        history: One row per `log_every` steps: `step` (finished steps), `loss` of the batch before the step, `grad_norm` before
            clipping, `weight_norm`, `update_ratio` (norm of the step over that of the weights), `lr` and `effective_lr` (lr
            over squared weight norm) of each group, and `local_loss/<layer>`, `local_loss_after/<layer>` of optimizers that
            have such (LocoProp). With `non_finite="skip"` also `skipped_updates` so far; a step that was left out has no row.
        num_skipped_updates: Steps that were left out.
        evaluations: One row per evaluation: `step`, `loss` and the metrics.

    Raises:
        ValueError: For combinations without effect or sense.

    Example:
        >>> from rlopt.supervised import ArrayData
        >>> x = torch.linspace(-1, 1, 64).reshape(-1, 1)
        >>> model = nn.Linear(1, 1)
        >>> trainer = Trainer(
        ...     model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), lr=0.5),
        ...     ArrayData(x, 3 * x, batch_size=64), TrainerConfig(num_steps=100),
        ... )
        >>> round(trainer.train()["loss"], 6)
        0.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: OptimizerLike | Optimizer,
        data: TrainingData,
        config: TrainerConfig | None = None,
        *,
        schedule: Schedule | None = None,
        metrics: Mapping[str, Metric] | None = None,
        folder: Path | str | None = None,
    ) -> None:
        self.config = config if config is not None else TrainerConfig()
        self.device = torch.device(self.config.device)
        self.model = model.to(self.device)
        self._processes = Processes.of(self.config)
        self._sharding = Sharding(self.model, self.config, self._processes)
        if isinstance(optimizer, Optimizer) and self._sharding.has_shards:
            raise ValueError(
                "optimizer must be a specification, a name or a callable if processes have parts of the parameters, got a "
                f"finished {type(optimizer).__name__}."
            )
        self.optimizer = optimizer if isinstance(optimizer, Optimizer) else build_optimizer(optimizer, self.model)
        self._sharding.check(self.optimizer)
        self.data, self._loss = data, loss
        self.schedule: Schedule = schedule if schedule is not None else Constant()
        self.metrics = dict(metrics or {})
        self.folder = None if folder is None else Path(folder)
        if self.folder is None and self.config.save_every is not None:
            raise ValueError("folder must be given with save_every, got None.")
        if "loss" in self.metrics or "step" in self.metrics:
            raise ValueError("metrics must not be named 'loss' or 'step'; both are always there.")
        stopping = self.config.early_stopping
        if stopping is not None and stopping.monitor not in ("loss", *self.metrics):
            raise ValueError(f"monitor must be one of {', '.join(('loss', *self.metrics))}, got {stopping.monitor!r}.")
        self._best = None if stopping is None else BestSoFar(stopping)
        recorder = layer_recorder(self.optimizer)
        if recorder is not None and self.config.compile:
            name = type(recorder).__name__
            raise ValueError(f"compile must be False with {name}: its hooks on the layers would not be called.")
        if recorder is not None and self._processes.size > 1:
            name = type(recorder).__name__
            raise ValueError(f"parallel must be 'none' with {name}: it would learn from the rows of one process only.")
        self._forward: Callable[[Tensor], Any] = torch.compile(self.model) if self.config.compile else self.model
        forward = self._forward if self.config.compile else self._sharding.forward()
        self._stepper = Stepper(self.model, forward, loss, self.optimizer, self.config, self._sharding, self._processes)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.step = self.num_skipped_updates = 0
        self.history: list[Row] = []
        self.evaluations: list[Row] = []
        self._draws = DrawState(self.device, self._processes.seed(self.config.seed))
        self._owns_folder = False

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done or early stopping has ended training."""
        return self.step >= self.config.num_steps or (self._best is not None and self._best.is_exhausted)

    def train(self, num_steps: int | None = None) -> Row:
        """Train to the end, or for at most `num_steps` further steps; then write a checkpoint if there is a folder.

        Args:
            num_steps: Further steps, >= 0; None: all that `config.num_steps` leaves.

        Returns:
            The latest evaluation, with its `step`; empty if there was none yet.

        Raises:
            ValueError: If the folder holds checkpoints of another run.
            NonFiniteError: If the loss, a gradient or a weight is not finite, with the step.
        """
        if num_steps is not None and num_steps < 0:
            raise ValueError(f"num_steps must be >= 0 or None, got {num_steps}.")
        self._claim_folder()
        stop = self.config.num_steps if num_steps is None else min(self.step + num_steps, self.config.num_steps)
        with contextlib.ExitStack() as stack:
            folder, progress = (self.folder, self.config.progress) if self._processes.is_first else (None, False)
            logs = stack.enter_context(Logs(folder, self.step, self.config.num_steps, progress=progress))
            stack.enter_context(self._draws.in_use())
            while self.step < stop and not self.is_finished:
                self._train_step(logs)
        if self.folder is not None:
            self.save()
        return self.evaluations[-1] if self.evaluations else {}

    def _train_step(self, logs: Logs) -> None:
        config = self.config
        factor = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        batch = self.data.draw()
        own, weight = self._processes.share(batch, config.micro_batches, equal=self._sharding.needs_equal_shares)
        is_logged = (self.step + 1) % config.log_every == 0
        self.model.train()
        measured: dict[str, Tensor] = {}
        try:
            measured = self._stepper.step(self._to_device(own), self.step, measure=is_logged, weight=weight)
        except LeftOut as reason:
            self._note_skipped(reason)
        except NonFiniteError as error:
            raise self._explain(error) from None
        self.step += 1
        logs.advance(len(batch[0]))
        if measured:
            numbers = dict(zip(measured, torch.stack([*measured.values()]).tolist(), strict=True))
            rates = learning_rates(self.optimizer, self._sharding)
            row = {"step": self.step, **numbers, **rates, **local_losses(self.optimizer)}
            if config.non_finite == "skip":
                row["skipped_updates"] = self.num_skipped_updates
            self.history.append(row)
            logs.train_row(row)
        is_last = self.step == config.num_steps
        if is_last or (config.eval_every is not None and self.step % config.eval_every == 0):
            row = {"step": self.step, **self.evaluate()}
            self.evaluations.append(row)
            logs.eval_row(row)
            if self._best is not None:
                self._best.update(row, self.model)
        if config.save_every is not None and self.step % config.save_every == 0:
            self.save()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean loss and metrics over the evaluation batches, each row counted once; all processes must call it."""
        was_training = self.model.training
        self.model.eval()
        self._sharding.copy_buffers()
        functions: dict[str, Metric] = {"loss": self._loss, **self.metrics}
        sums = torch.zeros(len(functions) + 1, dtype=torch.float64, device=self.device)  # the last one: rows
        for batch, counts in self._processes.turns(self.data.evaluation()):
            inputs, targets = self._to_device(batch)
            with self._stepper.autocast():
                outputs = self._forward(inputs)
                values = torch.stack([function(outputs, targets).double() for function in functions.values()])
            if counts:
                sums[:-1] += values * len(inputs)
                sums[-1] += len(inputs)
        self.model.train(was_training)
        *totals, num_rows = self._processes.sum(sums).tolist()
        return {name: total / num_rows for name, total in zip(functions, totals, strict=True)}

    def load_best(self) -> None:
        """Give the model the weights of the best evaluation.

        Raises:
            ValueError: Without early stopping, or before the first evaluation.
        """
        if self._best is None or self._best.weights is None:
            raise ValueError("load_best needs early_stopping and at least one evaluation; give TrainerConfig(early_stopping=...).")
        self.model.load_state_dict(self._best.weights)

    def whole_state_dict(self) -> dict[str, Any]:
        """`state_dict` of the model with whole parameters, whatever `parallel` is; all processes must call it."""
        return self._sharding.whole_state_dict()

    def save(self) -> Path:
        """Write a checkpoint to the folder, which all processes must see; all must call it.

        Returns:
            Folder of the checkpoint.

        Raises:
            ValueError: If the trainer has no folder, or the folder holds checkpoints of another run.
            NonFiniteError: If a weight is not finite; the checkpoints before stay.
        """
        if self.folder is None:
            raise ValueError("folder must be given to save checkpoints, got None.")
        self._claim_folder()
        try:
            self._stepper.check_parameters(self.step)
        except NonFiniteError as error:
            raise self._explain(error) from None
        self._sharding.copy_buffers()
        tensors: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": self.data.state_dict(),
            "scaler": self._stepper.scaler.state_dict(),
            "draws": self._draws.state_dict(),
            "best": {} if self._best is None else self._best.state_dict(),
        }
        record = {
            "step": self.step,
            "num_skipped_updates": self.num_skipped_updates,
            "fixed": self._fixed(),
            "config": dataclasses.asdict(self.config),
            "history": self.history,
            "evaluations": self.evaluations,
        }
        write_shards: Callable[[Path], None] | None = None
        if self._processes.size > 1:
            random = {name: value for name, value in tensors["model"].items() if name.endswith(_RANDOM)}
            tensors["processes"] = {"random": self._processes.gather({"draws": tensors["draws"], "layers": random})}
            tensors, shards = split(tensors, self.model, self.optimizer, self._sharding)
            if shards:
                write_shards = functools.partial(save_shards, shards)
        return write_checkpoint(
            self._checkpoints, self.step, tensors, record, self.config.keep_checkpoints,
            processes=self._processes, write_more=write_shards,
        )  # fmt: skip

    def resume(self) -> bool:
        """Continue from the newest checkpoint in the folder that is not damaged; all processes must call it, any number of them.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If it is that of a run with other options, or none can be read. A damaged one is passed over with a warning.
        """
        saved = [] if self.folder is None else list_checkpoints(self._checkpoints)
        path = self._processes.from_first(newest_good(saved) if self._processes.is_first else None)
        self._owns_folder = True
        if path is None:
            return False
        tensors, record = read_checkpoint(path)
        for name, value in self._fixed().items():
            if record["fixed"].get(name) != value:
                raise ValueError(f"{name} must be that of the run in {path}, {record['fixed'].get(name)!r}, got {value!r}.")
        tensors = merge(tensors, path, self.model, self.optimizer, self._sharding)
        everyone = tensors.get("processes", {"random": [{"draws": tensors["draws"], "layers": {}}]})["random"]
        own = everyone[self._processes.rank] if self._processes.rank < len(everyone) else None
        try:
            self.model.load_state_dict({**tensors["model"], **({} if own is None else own["layers"])})
            self.optimizer.load_state_dict(tensors["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"model and optimizer must be those of the run in {path}, got others: {reason}") from None
        self.data.load_state_dict(tensors["data"])
        self._stepper.scaler.load_state_dict(tensors["scaler"])
        if own is not None:
            self._draws.load_state_dict(own["draws"])
        else:  # a process that was not there when the checkpoint was made
            self._draws = DrawState(self.device, self._processes.seed(self.config.seed, record["step"]))
            self._processes.fork_generators(self.model, record["step"])
        if self._best is not None and tensors["best"]:
            self._best.load_state_dict(tensors["best"])
        self.step, self.history, self.evaluations = record["step"], record["history"], record["evaluations"]
        self._owns_folder = True
        self.num_skipped_updates = record.get("num_skipped_updates", 0)
        return True

    def _fixed(self) -> dict[str, Any]:
        options = {name: getattr(self.config, name) for name in _FIXED_OPTIONS}
        return {"optimizer": type(self.optimizer).__name__, "schedule": _describe(self.schedule), **options}

    @property
    def _checkpoints(self) -> Path:
        assert self.folder is not None
        return self.folder / "checkpoints"

    def _claim_folder(self) -> None:
        """Refuse to mix the checkpoints of two runs."""
        if self.folder is not None and not self._owns_folder:
            if self._processes.from_first(bool(list_checkpoints(self._checkpoints))):
                raise ValueError(
                    f"folder must be a new one, or resume() called first, got {self.folder} with checkpoints of a run."
                )
            self._owns_folder = True

    def _note_skipped(self, reason: LeftOut) -> None:
        self.num_skipped_updates += 1
        if self.num_skipped_updates == 1:
            warnings.warn(f"{reason}; the update is left out, as all such: skipped_updates counts.", stacklevel=4)

    def _explain(self, error: NonFiniteError) -> NonFiniteError:
        saved = [] if self.folder is None else list_checkpoints(self._checkpoints)
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint"
        return NonFiniteError(f"{error}; {last}; try a lower learning rate, a warm-up, or clip_norm.")

    def _to_device(self, batch: Batch) -> Batch:
        inputs, targets = batch
        return inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)


def _describe(schedule: object) -> str:
    """Words for a schedule that are the same in another process."""
    if dataclasses.is_dataclass(schedule):
        return repr(schedule)
    return str(getattr(schedule, "__qualname__", type(schedule).__qualname__))
