"""Selecting features of a data set with any model, by one training with Sequential Attention."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rlopt.nn.sequential_attention import SequentialAttention

Loss = Callable[[Any, Tensor], Tensor]
Array = NDArray[Any] | Tensor


class FeatureSelection(NamedTuple):
    """What a selection gives.

    Args:
        indices: The k selected features in the order of selection, int64.
        losses: Mean training loss of each epoch.
    """

    indices: Tensor
    losses: tuple[float, ...]


@dataclass(frozen=True)
class FeatureSelector:
    """Selects k features in one training of a model.

    The model is trained by Adam on inputs that are multiplied by the mask of `SequentialAttention`, whose logits are trained along.
    Its weights afterwards are of no use, as it has seen unselected features for most of the time: train a new one on the selected
    features. Scale the features alike first (for instance to mean 0 and deviation 1): the model sees a feature times its entry of
    the mask, so that large features would win.

    Raises:
        ValueError: For options outside their sets.

    Differs from the paper: logits have a learning rate of their own, that of the model falls exponentially, and no batch
    normalisation precedes the mask.

    References: see `SequentialAttention`.

    Example:
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> selector = FeatureSelector(k=2, epochs=40, batch_size=50, lr=0.01)
        >>> selector.fit(None, (x, x[:, 4] - 2 * x[:, 1])).indices.tolist()
        [1, 4]
    """

    k: int
    """Features to select, >= 1, at most the number there are."""
    per_step: int = 1
    """Features that are selected together, a divisor of `k`."""
    start: float = 0.1
    """Part of training before the first phase, in [0, 1)."""
    stop: float = 1.0
    """Part of training after which all are selected, in (start, 1]."""
    reset: bool = True
    """Whether logits are drawn anew at each selection."""
    loss: Loss | None = None
    """(outputs, targets) -> scalar. None: cross-entropy for integer targets, squared error for others."""
    hidden_width: int = 67
    """Hidden ReLU units of the network that is made where no model is given, >= 1 (the authors' experiments)."""
    batch_size: int = 256
    """Rows of a step, >= 1, at most the number of rows; the incomplete batch of an epoch is left out."""
    epochs: int = 50
    """Passes over the rows, >= 1. There must be at least one step for each selection."""
    lr: float = 1e-3
    """Learning rate of the model, > 0."""
    logit_lr: float = 1e-2
    """Learning rate of the logits, > 0, constant."""
    final_lr_factor: float = 0.02
    """What the learning rate of the model is multiplied by in the course of training, in (0, 1]; it falls exponentially."""
    device: str = "cpu"
    """PyTorch device of the training."""
    seed: int = 0
    """Seed of initial weights, order of the rows, and logits."""

    def __post_init__(self) -> None:
        for name in ("k", "hidden_width", "batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        for name in ("lr", "logit_lr"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number > 0, got {getattr(self, name)}.")
        if not 0.0 < self.final_lr_factor <= 1.0:
            raise ValueError(f"final_lr_factor must be in (0, 1], got {self.final_lr_factor}.")
        self._attention(self.k)  # checks k, per_step, start and stop among themselves

    def fit(self, model: nn.Module | None, data: tuple[Array, Array]) -> FeatureSelection:
        """Select features.

        Args:
            model: Any module that takes (batch, d), with outputs that the loss takes. A copy is trained, with layers in training
                mode; the model itself stays as it is. None: a network with one hidden layer, with as many outputs as there are
                classes or columns of targets.
            data: Inputs (n, d) and targets with n rows, arrays or tensors. Integer targets are classes 0, 1, ...

        Returns:
            The selected features.

        Raises:
            ValueError: If the data do not fit together or hold values that are not finite, or if there are too few steps.
            FloatingPointError: If the training diverges.
        """
        inputs, targets = self._check(*data)
        generator = torch.Generator().manual_seed(self.seed)
        attention = self._attention(inputs.shape[1]).to(self.device)
        model = self._make_model(inputs, targets, generator) if model is None else copy.deepcopy(model)
        model.to(self.device).train()
        loss_of = self.loss if self.loss is not None else _default_loss(targets)
        if self.loss is None and not targets.is_floating_point():
            targets = targets.long()
        optimizer = torch.optim.Adam(
            [{"params": list(model.parameters()), "lr": self.lr}, {"params": [attention.logits], "lr": self.logit_lr}]
        )
        steps_per_epoch = len(inputs) // self.batch_size
        num_steps = steps_per_epoch * self.epochs
        losses: list[float] = []
        step = 0
        for epoch in range(self.epochs):
            order = torch.randperm(len(inputs), generator=generator).to(self.device)
            total = torch.zeros((), device=self.device)
            for rows in order[: steps_per_epoch * self.batch_size].view(-1, self.batch_size):  # (steps, batch)
                optimizer.param_groups[0]["lr"] = self.lr * self.final_lr_factor ** (step / num_steps)
                loss = loss_of(model(inputs[rows] * attention(step / num_steps)), targets[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                step += 1
                attention.step(step / num_steps, optimizer)
                total += loss.detach()
            losses.append(total.item() / steps_per_epoch)
            if not math.isfinite(losses[-1]):
                raise FloatingPointError(f"the loss is {losses[-1]} in epoch {epoch}; scale the inputs, or lower lr = {self.lr}.")
        return FeatureSelection(attention.selected.cpu(), tuple(losses))

    def _attention(self, num_features: int) -> SequentialAttention:
        options = {"per_step": self.per_step, "start": self.start, "stop": self.stop, "reset": self.reset}
        return SequentialAttention(num_features, self.k, **options, seed=self.seed)  # type: ignore[arg-type]

    def _check(self, inputs: Array, targets: Array) -> tuple[Tensor, Tensor]:
        """Return inputs in float32 and targets on the device; refuse what cannot be trained on."""
        x, y = (part if isinstance(part, Tensor) else torch.from_numpy(np.asarray(part)) for part in (inputs, targets))
        if x.ndim != 2:
            raise ValueError(f"inputs must have shape (rows, features), got {tuple(x.shape)}; flatten images.")
        if y.ndim < 1 or len(y) != len(x):
            raise ValueError(f"targets must have one row for each of the {len(x)} inputs, got shape {tuple(y.shape)}.")
        if self.k > x.shape[1]:
            raise ValueError(f"k must be at most the number of features, {x.shape[1]}, got {self.k}.")
        if self.batch_size > len(x):
            raise ValueError(f"batch_size must be at most the number of rows, {len(x)}, got {self.batch_size}.")
        for name, part in (("inputs", x), ("targets", y)):
            if not part.isfinite().all():
                raise ValueError(f"{name} must be finite, got nan or infinity; fill gaps first.")
        if self.loss is None and not y.is_floating_point() and (y.ndim != 1 or y.min() < 0):
            raise ValueError(f"integer targets must be one class >= 0 for each row, got shape {tuple(y.shape)}, least {y.min()}.")
        num_phases = self.k // self.per_step
        num_steps = int(len(x) // self.batch_size * self.epochs * (self.stop - self.start))
        if num_steps < num_phases:
            raise ValueError(
                f"epochs must give at least one step for each of the {num_phases} phases between start and stop, got {self.epochs} "
                f"with {num_steps} steps; raise epochs or lower batch_size."
            )
        y = y.float() if y.is_floating_point() else y
        return x.to(self.device, torch.float32), y.to(self.device)

    def _make_model(self, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> nn.Module:
        is_classification = not targets.is_floating_point()
        if is_classification:
            num_outputs = int(targets.max()) + 1
        else:
            num_outputs = 1 if targets.ndim == 1 else targets.shape[1]
        layers: list[nn.Module] = []
        for num_in, num_out in ((inputs.shape[1], self.hidden_width), (self.hidden_width, num_outputs)):
            # On "meta" the constructor draws no weights, which would come from torch's global generator.
            layer = nn.Linear(num_in, num_out, device="meta").to_empty(device="cpu")
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
        last = [nn.Flatten(0)] if not is_classification and targets.ndim == 1 else []  # (batch, 1) -> (batch,)
        return nn.Sequential(*layers[:-1], *last)


def select_features(model: nn.Module | None, data: tuple[Array, Array], k: int, **options: Any) -> Tensor:
    """Select k features of a data set in one training: `FeatureSelector(k, **options).fit(model, data).indices`.

    Args:
        model: Any module that takes (batch, d); a copy is trained. None: a network with one hidden layer.
        data: Inputs (n, d) and targets, arrays or tensors; integer targets are classes.
        k: Features to select, in [1, d].
        **options: Fields of `FeatureSelector`.

    Returns:
        (k,) int64, features in the order of selection, all different.

    Raises:
        ValueError: For data and options that do not fit.

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> select_features(nn.Linear(3, 1), (x, x[:, 2:]), 1, batch_size=20, lr=0.03).tolist()
        [2]
    """
    return FeatureSelector(k, **options).fit(model, data).indices


def _default_loss(targets: Tensor) -> Loss:
    return _squared_error if targets.is_floating_point() else F.cross_entropy


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    # mse_loss would broadcast (batch, 1) and (batch,) to (batch, batch), with a warning only.
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs of the model must have the shape of the targets, {tuple(targets.shape)}, got {tuple(outputs.shape)}."
        )
    return F.mse_loss(outputs, targets)
