"""Does SGD train a transformer as well as Adam, if the transformer is scale invariant? Validation loss of a small language model.

A character-level transformer learns Tiny Shakespeare. The variants: Adam on an ordinary transformer, SGD on the same, and SGD with
weight decay and relative global clipping on a scale-invariant transformer of equal size. Scaling the initial weights or the loss
tells how robust each is: every combination of the given scales is a task. The runs go to RUNS/NAME. A study can be stopped at any
time; the same command goes on where it stopped.

Examples:
    python experiments/language_model.py --preset quick
    python experiments/language_model.py --methods adam sgd si_sgd --num-steps 2000 --seeds 3
    python experiments/language_model.py --methods adam si_sgd --initial-scales 0.01 1 100 --loss-scales 0.001 1 1000
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import check_device, hint
from _command import Jobs, Machines, parse_with_presets, run_command
from _comparing_optimizers import given_numbers
from _language_training import METHODS
from tyro.conf import arg

from rlopt.data import load
from rlopt.study import Costs, Task
from rlopt.study.grid import folder_name

PresetName = Literal["cpu", "quick"]


@dataclass(frozen=True)
class LanguageStudy:
    """Options of the comparison."""

    preset: PresetName = "cpu"
    """cpu: four layers of width 128, the setting of nanoGPT for a CPU. quick: a tiny model, a minute."""
    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("adam", "sgd", "si_sgd")
    """Methods to compare: adam and sgd (with momentum) on an ordinary transformer; on a scale-invariant one with softmax attention,
    squared ReLUs and balanced initial weights si_adam, si_sgd (with momentum, starting in equilibrium), si_sgd_slow_start (without
    the start in equilibrium) and si_sgd_noclip (without clipping); si_sgd_paper on one with ReLU attention, ReLUs and the weights
    and schedule of the paper. The baseline of the comparison is adam if it is there, else the first."""
    learning_rates: Annotated[tuple[str, ...], arg(metavar="NAME=RATE [NAME=RATE ...]")] = ()
    """Learning rates of methods, > 0, in place of their defaults."""
    weight_decays: Annotated[tuple[str, ...], arg(metavar="NAME=DECAY [NAME=DECAY ...]")] = ()
    """Weight decays of methods, > 0, in place of their defaults."""
    initial_scales: Annotated[tuple[float, ...], arg(metavar="SCALE [SCALE ...]")] = (1.0,)
    """Factors of the initial weights of all but the head, > 0."""
    loss_scales: Annotated[tuple[float, ...], arg(metavar="SCALE [SCALE ...]")] = (1.0,)
    """Factors of the training loss, > 0; validation losses are not scaled."""
    num_steps: int = 2000
    """Steps of a run, > 0."""
    warmup_steps: int = 100
    """Steps in which the rates of adam, sgd and si_adam rise from 0, in [0, num_steps)."""
    decay: Literal["linear", "cosine"] = "linear"
    """How rates then, and from the start for si_sgd, fall to 0; those of si_sgd_paper are divided by 10 after 60 % and 90 % of the
    steps instead."""
    num_evaluations: int = 20
    """Evaluations of a run, > 0, at equal distances."""
    context: int = 64
    """Characters that the model sees, > 1."""
    batch_size: int = 12
    """Windows of a step, > 0."""
    num_layers: int = 4
    """Layers, > 0."""
    num_heads: int = 4
    """Heads of the attention, > 0; they divide width."""
    width: int = 128
    """Width of the residual stream, > 0."""
    device: str = "cpu"
    """PyTorch device of the training."""
    seeds: int = 3
    """Initial weights and windows, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        for option in ("num_steps", "num_evaluations", "batch_size", "num_layers", "num_heads", "width", "seeds", "jobs"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option} must be > 0, got {value}")
        if self.context < 2:
            raise ValueError(f"context must be > 1, got {self.context}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width = {self.width}, got {self.num_heads}")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps must be in [0, num_steps = {self.num_steps}), got {self.warmup_steps}")
        for option in ("initial_scales", "loss_scales"):
            values = getattr(self, option)
            if not values or len(set(values)) < len(values) or not all(0 < value < math.inf for value in values):
                raise ValueError(f"{option} must be one or more different numbers > 0, got {values or 'none'}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        doubles = [name for name in self.methods if self.methods.count(name) > 1]
        if doubles or not self.methods:
            raise ValueError(f"methods must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name}{hint(name, METHODS)}")
        for option in ("learning_rates", "weight_decays"):
            for name in given_numbers(option, getattr(self, option)):
                if name not in self.methods:
                    raise ValueError(f"{option} must be of methods that take part ({', '.join(self.methods)}), got {name}")


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, LanguageStudy]] = {
    "cpu": ("the setting of nanoGPT for a CPU", LanguageStudy()),
    "quick": (
        "a tiny model",
        LanguageStudy(
            "quick", num_steps=100, warmup_steps=10, num_evaluations=5, context=32, num_layers=1, num_heads=2, width=32, seeds=1
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare, arguments)


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study.

    Raises:
        ValueError: If the text is nowhere to be found, or the device is not there.
    """
    study = parse(arguments)
    check_device(study.device)
    load("tiny_shakespeare")
    rates, decays = (given_numbers(name, getattr(study, name)) for name in ("learning_rates", "weight_decays"))
    return {
        "function": f"{Path(__file__).resolve().parent / '_language_training.py'}:train",
        "tasks": [make_task(study, *scales) for scales in itertools.product(study.initial_scales, study.loss_scales)],
        "variants": {name: {"method": name, "lr": rates.get(name), "weight_decay": decays.get(name)} for name in study.methods},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "adam" if "adam" in study.methods else study.methods[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def parse(arguments: Sequence[str]) -> LanguageStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(LanguageStudy, PRESETS, "cpu", arguments, __doc__)


def make_task(study: LanguageStudy, initial_scale: float, loss_scale: float) -> Task:
    """Return the task of a scale of the initial weights and one of the loss."""
    names = (
        "num_steps",
        "warmup_steps",
        "decay",
        "num_evaluations",
        "context",
        "batch_size",
        "num_layers",
        "num_heads",
        "width",
        "device",
    )
    config = {name: getattr(study, name) for name in names}
    scales = {"initial_scale": initial_scale, "loss_scale": loss_scale}
    parts = [f"{name.partition('_')[0]}_x{value:g}" for name, value in scales.items() if value != 1.0]
    return Task(
        "_".join(["tiny_shakespeare", *parts]),
        study.num_steps,
        {"data": "tiny_shakespeare", **config, **scales},
        goal="minimize",
        score_name="validation loss, nats per character",
        step_name="steps",
        references={"uniform guess": ((1.0, math.log(65)), (float(study.num_steps), math.log(65)))},
        final_evaluations=1,
        costs=Costs("steps", "time/cpu_seconds"),
    )


def default_name(study: LanguageStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    default = PRESETS[study.preset][1]
    shared = {"preset", "methods", "seeds", "jobs", "machines", "output", "name", "initial_scales", "loss_scales"}
    parts = [f"language_{study.preset}"]
    for entry in fields(study):
        value = getattr(study, entry.name)
        if entry.name not in shared and value != getattr(default, entry.name):
            text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{entry.name}={text}")
    return "_".join(parts)


if __name__ == "__main__":
    sys.exit(main())
