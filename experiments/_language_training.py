"""One training run of a small language model, ordinary or scale invariant."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import configure
from torch import Tensor

from rlopt.nn import CharTransformer, ScaleInvariantConfig, TransformerConfig
from rlopt.optim.specs import Adam, AdamW, ScaleInvariantSGDSpec, Sgd, Spec
from rlopt.study import Recorder
from rlopt.supervised import Trainer, TrainerConfig, WarmupDecay, language_model
from rlopt.supervised.losses import token_cross_entropy
from rlopt.supervised.schedules import Schedule

# Losses are kept below this: reports need finite numbers. It means divergence; guessing uniformly among 65 characters costs 4.2.
LARGEST_LOSS = 100.0


@dataclass(frozen=True)
class Method:
    """A form of the model with an optimizer.

    Args:
        spec: The optimizer.
        form: The model but for its sizes.
        in_steps: Whether the rates are divided by 10 after 60 % and 90 % of the steps, instead of the decay of the configuration.
        warmup: Whether rates rise from 0 in the warm-up steps.
    """

    spec: Spec
    form: TransformerConfig | ScaleInvariantConfig
    in_steps: bool = False
    warmup: bool = True


_STANDARD = TransformerConfig()
_PAPER = ScaleInvariantConfig()
_OURS = ScaleInvariantConfig(attention="softmax", activation="squared_relu", balanced=True)
_HEAD = Adam(lr=1e-3)  # what is not scale invariant: the head
_ADAM = AdamW(lr=6e-3, weight_decay=0.1, decay_matrices_only=True)
_SI_SGD = ScaleInvariantSGDSpec(lr=1.0, weight_decay=5e-4, momentum=0.9, start_in_equilibrium=True, others=_HEAD)
_SI_SGD_PAPER = ScaleInvariantSGDSpec(lr=1.0, weight_decay=1e-3, others=_HEAD)

# Name -> what it is.
METHODS: dict[str, Method] = {
    "adam": Method(_ADAM, _STANDARD),
    "sgd": Method(Sgd(lr=0.1, momentum=0.9), _STANDARD),
    "si_adam": Method(_ADAM, _OURS),
    "si_sgd": Method(_SI_SGD, _OURS, warmup=False),
    "si_sgd_slow_start": Method(replace(_SI_SGD, start_in_equilibrium=False), _OURS, warmup=False),
    "si_sgd_noclip": Method(replace(_SI_SGD, clip_factor=None), _OURS, warmup=False),
    "si_sgd_paper": Method(_SI_SGD_PAPER, _PAPER, in_steps=True, warmup=False),
}


@dataclass(frozen=True)
class StepDecay:
    """Factor 1, 0.1 from 60 % of `num_steps` on, 0.01 from 90 % on.

    Example:
        >>> [StepDecay(10)(step) for step in (0, 5, 6, 9)]
        [1.0, 1.0, 0.1, 0.01]
    """

    num_steps: int

    def __call__(self, step: int) -> float:
        """Factor of the step with this number, counted from 0."""
        return 1.0 if step < 0.6 * self.num_steps else 0.1 if step < 0.9 * self.num_steps else 0.01


@dataclass(frozen=True)
class ScaledLoss:
    """Cross-entropy per character times a factor, to see whether a method minds."""

    factor: float

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over characters, times the factor."""
        return self.factor * token_cross_entropy(logits, targets)


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train a language model; the function of the study. Scores are validation losses in nats per character, unscaled.

    A run that diverges gets `LARGEST_LOSS` from there on.

    Args:
        config: `data`, `method`, `lr`, `weight_decay`, `num_steps`, `warmup_steps`, `decay`, `num_evaluations`, `initial_scale`,
            `loss_scale`, `context`, `batch_size`, `num_layers`, `num_heads`, `width`, `device`.
        seed: Of initial weights and windows, equal for all methods.
        folder: Where progress.csv and TensorBoard events go.
    """
    recorder = Recorder(folder)
    recorder.progress(0)
    trainer = make_trainer(config, seed)
    logger = configure(str(folder), ["csv", "tensorboard"])
    points = np.unique(np.linspace(0, config["num_steps"], config["num_evaluations"] + 1).round().astype(int))[1:]
    cpu, diverged = 0.0, False
    for point in points.tolist():
        start = time.process_time()
        if not diverged:
            diverged = not _train_to(trainer, point, recorder)
        cpu += time.process_time() - start
        found = LARGEST_LOSS if diverged else min(trainer.evaluate()["nats"], LARGEST_LOSS)
        recorder.evaluation(point, found if found == found else LARGEST_LOSS)
        logger.record("eval/nats_per_character", found)
        logger.record("time/cpu_seconds", cpu)  # of training alone, without evaluations
        logger.record("norm/encoder", encoder_norm(trainer.model))
        logger.record("steps", point, exclude="tensorboard")
        logger.dump(point)
    logger.close()


def make_trainer(config: Mapping[str, Any], seed: int) -> Trainer:
    """Return the trainer of a run."""
    method = METHODS[config["method"]]
    task = language_model(
        config["data"],
        transformer=replace(method.form, **{name: config[name] for name in ("num_layers", "num_heads", "width")}),
        length=config["context"],
        batch_size=config["batch_size"],
        seed=seed,
    )
    with torch.no_grad():
        for parameter in encoder_parameters(task.model):
            parameter.mul_(config["initial_scale"])
    # One step more than are taken: at its last step a trainer evaluates by itself, within the time that is measured.
    num_steps = config["num_steps"] + 1
    options = TrainerConfig(num_steps=num_steps, log_every=num_steps, device=config["device"], progress=False, seed=seed)
    scaled = replace(task, loss=ScaledLoss(config["loss_scale"]), metrics={"nats": token_cross_entropy})
    return scaled.trainer(make_spec(config), options, schedule=make_schedule(config))


def make_spec(config: Mapping[str, Any]) -> Spec:
    """Return the specification of an optimizer with the rates of a configuration, where it has any."""
    given = {name: config[name] for name in ("lr", "weight_decay") if config[name] is not None}
    return replace(METHODS[config["method"]].spec, **given)


def make_schedule(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a method."""
    method = METHODS[config["method"]]
    if method.in_steps:
        return StepDecay(config["num_steps"])
    return WarmupDecay(config["num_steps"], config["warmup_steps"] if method.warmup else 0, decay=config["decay"])


def encoder_parameters(model: Any) -> list[Tensor]:
    """Return what is scale invariant in the invariant form of the model: all but the head."""
    assert isinstance(model, CharTransformer)
    head = {id(parameter) for parameter in model.head.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in head]


def encoder_norm(model: Any) -> float:
    """Return the norm of all parameters but those of the head, as one vector."""
    return float(torch.linalg.vector_norm(torch.stack([p.detach().norm() for p in encoder_parameters(model)])))


def _train_to(trainer: Trainer, point: int, recorder: Recorder) -> bool:
    """Train to a step; tell whether all stayed finite."""
    report: Callable[[int], None] = recorder.progress
    try:
        while trainer.step < point:
            trainer.train(min(50, point - trainer.step))
            report(trainer.step)
    except FloatingPointError as error:
        print(error)
        return False
    return True
