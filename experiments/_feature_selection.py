"""One run of a comparison of feature selections: select, then train a fresh network on what was selected."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _feature_rankings as rankings
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import configure
from torch import nn

from rlopt.data import Dataset, load
from rlopt.nn.feature_selection import FeatureSelector
from rlopt.optim.specs import AdamW
from rlopt.study import Recorder
from rlopt.supervised import ArrayData, Trainer, TrainerConfig
from rlopt.supervised.tasks import glorot_mlp

Array = NDArray[Any]

METHODS = ("sequential_attention", "omp", "lasso", "mutual_information", "random", "all")

# Width of the hidden layer, share of the training part that is held out for validation, and features to select: from the authors'
# code (google-research/sequential_attention).
HIDDEN_WIDTH = 67
VALIDATION_SHARE = 0.125

# Columns of madelon that matter have a correlation of at least this with another one; those of the noise have less than 0.1.
MADELON_CORRELATION = 0.5


@dataclass(frozen=True)
class Settings:
    """How networks are trained on a data set.

    Args:
        batch_size: Rows of a step, for selection and for the fresh network.
        select_epochs: Epochs of the selection by Sequential Attention.
        select_lr: Its learning rate at the start; it falls exponentially to a fiftieth.
        logit_lr: Learning rate of its logits, constant.
        epochs: Epochs of the fresh network.
        lr: Its learning rate at the start; it falls exponentially to a fiftieth.
        weight_decay: Of the fresh network, decoupled.
    """

    batch_size: int
    select_epochs: int
    select_lr: float
    logit_lr: float
    epochs: int
    lr: float
    weight_decay: float = 0.0


# Batch sizes of mice, mnist and fashion_mnist are from the authors' code. Its learning rates are not usable for mice and fashion
# (Adam with 1 and 0.4, and a decay every 0 steps); those and all other numbers here were tuned coarsely on validation accuracy.
SETTINGS: dict[str, Settings] = {
    "mice": Settings(16, 100, 1e-3, 1e-2, 60, 3e-3),
    "mice_by_mouse": Settings(16, 100, 1e-3, 1e-2, 60, 3e-3),
    "madelon": Settings(32, 60, 1e-3, 1e-2, 60, 3e-3, 0.1),
    "mnist": Settings(349, 20, 5e-3, 1e-2, 15, 3e-3),
    "fashion_mnist": Settings(391, 20, 5e-3, 1e-2, 15, 3e-3),
    "digits": Settings(32, 40, 5e-3, 1e-2, 30, 3e-3),
}


@dataclass(frozen=True)
class Parts:
    """Standardised inputs (n, d) in float32 and classes (n,) of a training, validation and test part."""

    inputs: Array
    targets: Array
    validation_inputs: Array
    validation_targets: Array
    test_inputs: Array
    test_targets: Array

    @property
    def num_classes(self) -> int:
        """Classes in the training part."""
        return int(self.targets.max()) + 1


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Select features and train a network on them; the function of the study. Scores are its accuracies on the test part.

    Besides progress.csv and TensorBoard events, `selected.json` holds the features in their order.

    Args:
        config: `data`, `method`, `k`, `num_evaluations`, `device`, and the fields of `Settings`.
        seed: Of splits, selection, initial weights and order of rows.
        folder: Where files go.
    """
    recorder = Recorder(folder)
    recorder.progress(0)
    parts = prepare(load_data(config["data"]), config["data"], seed)
    start = time.process_time()
    selected = select(config, parts, seed)
    seconds = time.process_time() - start
    (folder / "selected.json").write_text(json.dumps(selected.tolist()) + "\n", encoding="utf-8")
    trainer = make_trainer(config, parts, selected, seed)
    logger = configure(str(folder), ["csv", "tensorboard"])
    steps_per_epoch = len(parts.inputs) // config["batch_size"]
    points = np.unique(np.linspace(0, config["epochs"], config["num_evaluations"] + 1).round().astype(int))[1:]
    for epoch in points.tolist():
        trainer.train(epoch * steps_per_epoch - trainer.step)
        recorder.progress(epoch)
        accuracy = test_accuracy(trainer, parts, selected)
        recorder.evaluation(epoch, accuracy)
        logger.record("accuracy/test", accuracy)
        logger.record("accuracy/validation", trainer.evaluate()["accuracy"])
        logger.record("time/selection_cpu_seconds", seconds)
        if config["data"] == "madelon":
            logger.record("selected/informative", len(set(selected.tolist()) & madelon_informative(parts.inputs)))
        logger.record("epochs", epoch, exclude="tensorboard")
        logger.dump(epoch)
    logger.close()


def load_data(name: str) -> Dataset:
    """Return the data set of a preset."""
    return load({"mice": "mice_protein", "mice_by_mouse": "mice_protein"}.get(name, name))


def prepare(data: Dataset, name: str, seed: int) -> Parts:
    """Split into three parts, fill gaps, and bring every column to mean 0 and deviation 1 of the training part.

    Of the training part, 12.5 % are held out for validation. Mice: as published, gaps are filled with the mean of the column over
    rows of the same class, which looks at the labels, and 20 % of the rows are drawn for testing, so that rows of one mouse lie in
    both parts. mice_by_mouse is without both: whole mice are held out, and gaps get the mean of the column in the training part.

    Args:
        data: Data set.
        name: Name of the preset.
        seed: Seed of the splits.
    """
    assert data.targets is not None
    rng = np.random.default_rng(seed)
    inputs, targets = _flat(data.inputs), data.targets
    if name == "mice":
        inputs = fill_by_class(inputs, targets)
        order = rng.permutation(len(inputs))
        train_rows, test_rows = np.split(order, [len(order) * 4 // 5])
        test_inputs, test_targets = inputs[test_rows], targets[test_rows]
        inputs, targets = inputs[train_rows], targets[train_rows]
    elif name == "mice_by_mouse":
        split = data.split(0.2, seed=seed)
        assert split.targets is not None
        assert split.test_inputs is not None
        assert split.test_targets is not None
        means = np.nanmean(split.inputs, axis=0)
        inputs, test_inputs = (np.where(np.isnan(part), means, part) for part in (split.inputs, split.test_inputs))
        targets, test_targets = split.targets, split.test_targets
    else:
        assert data.test_inputs is not None
        assert data.test_targets is not None
        test_inputs, test_targets = _flat(data.test_inputs), data.test_targets
    order = rng.permutation(len(inputs))
    num_validation = int(len(order) * VALIDATION_SHARE)
    fit, held_out = order[num_validation:], order[:num_validation]
    mean, deviation = inputs[fit].mean(0, dtype=np.float64), inputs[fit].std(0, dtype=np.float64)
    deviation[deviation < 1e-9] = 1.0  # constant columns become zero

    def scale(part: Array) -> Array:
        return ((part - mean.astype(part.dtype)) / deviation.astype(part.dtype)).astype(np.float32)

    labels = [part.astype(np.int64) for part in (targets[fit], targets[held_out], test_targets)]
    return Parts(scale(inputs[fit]), labels[0], scale(inputs[held_out]), labels[1], scale(test_inputs), labels[2])


def fill_by_class(inputs: Array, targets: Array) -> Array:
    """Return the inputs with nan replaced by the mean of the column over rows of the same class."""
    filled = inputs.copy()
    for label in np.unique(targets):
        rows = filled[targets == label]
        filled[targets == label] = np.where(np.isnan(rows), np.nanmean(rows, axis=0), rows)
    return filled


def select(config: Mapping[str, Any], parts: Parts, seed: int) -> NDArray[np.int64]:
    """Return the features that a method selects from the training part, best first; all of them for "all"."""
    k, num_features = config["k"], parts.inputs.shape[1]
    method = config["method"]
    if method == "sequential_attention":
        selector = FeatureSelector(
            k,
            hidden_width=HIDDEN_WIDTH,
            batch_size=config["batch_size"],
            epochs=config["select_epochs"],
            lr=config["select_lr"],
            logit_lr=config["logit_lr"],
            device=config["device"],
            seed=seed,
        )
        return selector.fit(None, (parts.inputs, parts.targets)).indices.numpy()
    if method in ("omp", "lasso"):
        function = rankings.matching_pursuit if method == "omp" else rankings.lasso
        return function(parts.inputs.astype(np.float64), np.eye(parts.num_classes)[parts.targets], k)
    if method == "mutual_information":
        return rankings.mutual_information(parts.inputs, parts.targets, k, seed)
    if method == "random":
        return rankings.random_features(num_features, k, seed)
    return np.arange(num_features)


def make_trainer(config: Mapping[str, Any], parts: Parts, selected: NDArray[np.int64], seed: int) -> Trainer:
    """Return the trainer of a fresh network with one hidden layer on the selected features; it evaluates on the validation part."""
    model = glorot_mlp((len(selected), HIDDEN_WIDTH, parts.num_classes), (1,), "relu", seed)
    data = ArrayData(
        np.ascontiguousarray(parts.inputs[:, selected]),
        parts.targets,
        np.ascontiguousarray(parts.validation_inputs[:, selected]),
        parts.validation_targets,
        batch_size=config["batch_size"],
        seed=seed,
    )
    # One step more than are taken: at its last step a trainer evaluates by itself.
    num_steps = config["epochs"] * (len(parts.inputs) // config["batch_size"]) + 1
    return Trainer(
        model,
        nn.functional.cross_entropy,
        AdamW(lr=config["lr"], weight_decay=config["weight_decay"]),
        data,
        TrainerConfig(num_steps=num_steps, log_every=num_steps, device=config["device"], progress=False, seed=seed),
        schedule=lambda step: 0.02 ** (step / num_steps),
        metrics={"accuracy": accuracy_of},
    )


def accuracy_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Share of rows whose largest output is that of the target."""
    return (outputs.argmax(dim=-1) == targets).float().mean()


@torch.no_grad()
def test_accuracy(trainer: Trainer, parts: Parts, selected: NDArray[np.int64]) -> float:
    """Return the accuracy on the test part."""
    inputs = torch.from_numpy(np.ascontiguousarray(parts.test_inputs[:, selected])).to(trainer.device)
    return float(accuracy_of(trainer.model(inputs).cpu(), torch.from_numpy(parts.test_targets)))


def madelon_informative(inputs: Array) -> set[int]:
    """Return the columns of madelon that carry the label, found without labels.

    The file does not say which they are. Five columns are informative and fifteen are linear combinations of them, the other 480
    are independent noise: so those are the ones that correlate with another column.
    """
    correlations = np.abs(np.corrcoef(inputs.T))
    np.fill_diagonal(correlations, 0.0)
    return set(np.flatnonzero(correlations.max(axis=0) > MADELON_CORRELATION).tolist())


def _flat(inputs: Array) -> Array:
    flat = inputs.reshape(len(inputs), -1)  # (n, h, w) -> (n, h * w)
    return flat.astype(np.float32 if inputs.dtype == np.uint8 else np.float64)  # pixels are exact in float32
