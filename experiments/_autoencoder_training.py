"""One training run of a deep auto-encoder, and the optimizers that can be compared on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from _comparing_optimizers import state_bytes
from numpy.typing import NDArray
from scipy.special import entr
from stable_baselines3.common.logger import configure
from torch import nn

from rlopt.data import Dataset, curves_like, load
from rlopt.optim.specs import Adagrad, Adam, Kfac, Lamb, LocoPropSpec, Muon, RMSprop, Sgd, Shampoo, Soap, Spec
from rlopt.study import Recorder
from rlopt.supervised import Trainer, TrainerConfig, WarmupDecay, deep_autoencoder
from rlopt.supervised.losses import pixel_cross_entropy
from rlopt.supervised.schedules import Schedule

# Losses are kept below this: reports need finite numbers. It means divergence; an untrained network is below 1000.
LARGEST_LOSS = 1e4

_EXACT = LocoPropSpec(lr=1.0, variant="squared", solver="closed_form", gamma=1.0, gamma_mode="per_row", prox_eta=1.0)

# Name -> its setting. Rates of sgd, adam, rmsprop, muon and soap were tuned coarsely on the curves of 14 x 14 pixels; those of
# locoprop_m are published, and the others are what their packages or papers propose.
OPTIMIZERS: dict[str, Spec] = {
    "sgd": Sgd(lr=0.03),
    "momentum": Sgd(lr=0.003, momentum=0.9),
    "nesterov": Sgd(lr=0.003, momentum=0.9, nesterov=True),
    "adam": Adam(lr=2e-3),
    "rmsprop": RMSprop(lr=3e-3, alpha=0.9),
    "adagrad": Adagrad(),
    "lamb": Lamb(weight_decay=0.0),
    "muon": Muon(lr=0.05, weight_decay=0.0, adam_lr=2e-3, precision="float32"),
    "soap": Soap(lr=0.03, weight_decay=0.0),
    "shampoo": Shampoo(),
    "kfac": Kfac(),
    "locoprop_m": LocoPropSpec(lr=1e-5),
    "locoprop_m5": LocoPropSpec(lr=1e-5, local_iters=5),
    "locoprop_s": LocoPropSpec(lr=1e-5, variant="squared"),
    "locoprop_closed": _EXACT,
    "locoprop_closed_near": replace(_EXACT, prox_eta=0.1),
    "locoprop_closed_damped": replace(_EXACT, prox_eta=0.01),
}
ITERATIVE_LOCOPROP = ("locoprop_m", "locoprop_m5", "locoprop_s")


@dataclass(frozen=True)
class PublishedSchedule:
    """The schedule released with LocoProp, constant within an epoch: factor of the learning rate.

    With e = epoch, counted from 0, W = `warmup_epochs` and N = `epochs`: e / W while e < W, then
    1 - (e + 1 - W) / (N + 1 - W). Through the first epoch the rate is 0 and only averages of squared gradients move. The authors
    have W = 5 and run 99 of 100 epochs, which is N = 99 here.

    Example:
        >>> schedule = PublishedSchedule(epochs=99, warmup_epochs=5.0, steps_per_epoch=60)
        >>> [round(schedule(60 * epoch), 4) for epoch in (0, 1, 4, 5, 98)]
        [0.0, 0.2, 0.8, 0.9895, 0.0105]
    """

    epochs: int
    warmup_epochs: float
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        """Factor of the step with this number, counted from 0."""
        epoch = step // self.steps_per_epoch
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        return 1.0 - (epoch + 1 - self.warmup_epochs) / (self.epochs + 1 - self.warmup_epochs)


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train an auto-encoder; the function of the study. Scores are losses on all training images.

    A run that diverges gets `LARGEST_LOSS` from there on.

    Args:
        config: `data`, `size`, `num_images`, `widths`, `activation`, `batch_size`, `epochs`, `schedule_epochs`,
            `warmup_epochs`, `locoprop_schedule`, `eval_every`, `device`, and `optimizer` with its `lr`.
        seed: Seed of the initial weights and the order of the images, equal for all optimizers.
        folder: Where progress.csv and TensorBoard events go.
    """
    recorder = Recorder(folder)
    recorder.progress(0)
    images = load_images(config)
    trainer = make_trainer(config, images, seed)
    steps_per_epoch = len(images.inputs) // config["batch_size"]
    logger = configure(str(folder), ["csv", "tensorboard"])
    wall = cpu = 0.0
    diverged = False
    for epoch in range(1, config["epochs"] + 1):
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        if not diverged:
            diverged = not _train_epoch(trainer, steps_per_epoch)
            wall += time.perf_counter() - wall_start
            cpu += time.process_time() - cpu_start
        recorder.progress(epoch)
        if epoch % config["eval_every"] and epoch < config["epochs"]:
            continue
        losses = _losses(trainer, images, diverged=diverged)
        recorder.evaluation(epoch, losses["loss/train"])
        for name, value in losses.items():
            logger.record(name, value)
        logger.record("time/cpu_seconds", cpu)  # of training alone, without evaluations
        logger.record("time/wall_seconds", wall)
        logger.record("memory/optimizer_state_bytes", state_bytes(trainer.optimizer.state_dict()))
        logger.record("lr", trainer.optimizer.param_groups[0]["lr"])
        logger.record("epochs", epoch, exclude="tensorboard")
        logger.dump(epoch)
    logger.close()


def load_images(config: Mapping[str, Any]) -> Dataset:
    """Return the images of a configuration; generated curves get a quarter of their number as test images.

    Raises:
        FileNotFoundError: If files are nowhere and cannot be downloaded.
        ValueError: If files are damaged.
    """
    if config["data"] == "curves":
        return curves_like(config["num_images"], config["size"], num_test=config["num_images"] // 4)
    return load(config["data"])


def make_trainer(config: Mapping[str, Any], images: Dataset, seed: int) -> Trainer:
    """Return the trainer of a run; its evaluations are on the training images."""
    task = deep_autoencoder(
        replace(images, test_inputs=None, test_targets=None),
        tuple(config["widths"]),
        config["activation"],
        batch_size=config["batch_size"],
        seed=seed,
    )
    steps_per_epoch = len(images.inputs) // config["batch_size"]
    # One step more than are taken: at its last step a trainer evaluates by itself, within the time that is measured.
    num_steps = config["epochs"] * steps_per_epoch + 1
    options = TrainerConfig(num_steps=num_steps, log_every=num_steps, device=config["device"], progress=False, seed=seed)
    return task.trainer(make_spec(config["optimizer"], config["lr"]), options, schedule=make_schedule(config, steps_per_epoch))


def make_spec(optimizer: str, lr: float) -> Spec:
    """Return the specification of an optimizer with a learning rate of its own."""
    spec: Any = OPTIMIZERS[optimizer]  # every one has `lr`, though `Spec` does not say so
    return cast(Spec, replace(spec, lr=lr))


def make_schedule(config: Mapping[str, Any], steps_per_epoch: int) -> Schedule:
    """Return the schedule: LocoProp's own one where it is asked for, else linear warm-up and linear decay per step."""
    if config["optimizer"] in ITERATIVE_LOCOPROP and config["locoprop_schedule"] == "published":
        return PublishedSchedule(config["schedule_epochs"], config["warmup_epochs"], steps_per_epoch)
    num_steps = config["schedule_epochs"] * steps_per_epoch
    return WarmupDecay(num_steps, warmup_steps=min(round(config["warmup_epochs"] * steps_per_epoch), num_steps - 1))


def loss_floor(images: NDArray[Any]) -> float:
    """Return the loss below which no model gets: the entropy of the pixels, summed over an image, mean over images."""
    total = 0.0
    for first in range(0, len(images), 1000):
        pixels = np.asarray(images[first : first + 1000], np.float64) / (255 if images.dtype == np.uint8 else 1)
        total += float((entr(pixels) + entr(1 - pixels)).sum())
    return total / len(images)


def _train_epoch(trainer: Trainer, num_steps: int) -> bool:
    """Train for an epoch; tell whether all stayed finite."""
    try:
        trainer.train(num_steps)
    except (FloatingPointError, torch.linalg.LinAlgError) as error:  # the latter where a factorisation notices first
        print(error)
        return False
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)  # the clock must not stop before the work is done
    return True


def _losses(trainer: Trainer, images: Dataset, *, diverged: bool) -> dict[str, float]:
    found = {"loss/train": LARGEST_LOSS, "squared_error/train": LARGEST_LOSS}
    if images.test_inputs is not None:
        found["loss/test"] = LARGEST_LOSS
    if diverged:
        return found
    measured = trainer.evaluate()
    found["loss/train"], found["squared_error/train"] = measured["loss"], measured["squared_error"]
    if images.test_inputs is not None:
        found["loss/test"] = _mean_loss(trainer.model, images.test_inputs, trainer.device)
    # Comparisons with nan are false.
    return {name: value if value < LARGEST_LOSS else LARGEST_LOSS for name, value in found.items()}


@torch.no_grad()
def _mean_loss(model: nn.Module, images: NDArray[Any], device: torch.device) -> float:
    total = 0.0
    for first in range(0, len(images), 1000):
        rows = torch.from_numpy(np.ascontiguousarray(images[first : first + 1000])).to(device).flatten(1)
        pixels = rows.float() / 255 if images.dtype == np.uint8 else rows.float()
        total += pixel_cross_entropy(model(pixels), pixels).item() * len(rows)
    return total / len(images)
