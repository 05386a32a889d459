"""Which optimizer trains a deep auto-encoder best? Curves of the training loss against epochs and against CPU seconds.

Auto-encoders with a narrow code are a benchmark on which first-order optimizers are slow. Each seed draws initial weights and an
order of the images, which all optimizers share. The runs go to RUNS/NAME. A study can be stopped at any time; the same command
goes on where it stopped, and more seeds or optimizers can be added later under the same name. progress.csv of each run holds, for
each evaluated epoch, the losses on training and test images, CPU and wall seconds of training alone, and the bytes that the
optimizer keeps; from these the report compares optimizers at equal time too.

With --search the learning rate of each optimizer is tuned, up to 30 times smaller or larger than the default or the given one.
Trials are shorter; those that fail or diverge count.

Examples:
    python experiments/deep_autoencoder.py --preset quick
    python experiments/deep_autoencoder.py --optimizers sgd adam locoprop_m --learning-rates adam=1e-3
    python experiments/deep_autoencoder.py --preset mnist --optimizers adam muon locoprop_m --search 5
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from _autoencoder_training import ITERATIVE_LOCOPROP, LARGEST_LOSS, OPTIMIZERS, load_images, loss_floor
from _checks import check_device, hint
from _command import Jobs, Machines, parse_with_presets, run_command
from _comparing_optimizers import given_numbers, searched_rate
from _searching import SearchOptions
from torch import nn
from tyro.conf import arg

from rlopt.data import Dataset
from rlopt.optim import build_optimizer
from rlopt.study import Costs, Task
from rlopt.study.grid import folder_name

PresetName = Literal["curves14", "curves28", "mnist", "fashion_mnist", "quick"]

_SOAP = ("soap",) if importlib.util.find_spec("pytorch_optimizer") is not None else ()


@dataclass(frozen=True)
class AutoencoderStudy:
    """Options of the comparison."""

    preset: PresetName = "curves14"
    """The images, with options that suit them; every option that is given wins.
    curves14: generated curves of 14 x 14 pixels, 400 steps, a small benchmark. curves28: the same curves of 28 x 28 pixels.
    mnist, fashion_mnist: 60,000 images of 28 x 28 pixels, network and length of the LocoProp release.
    quick: curves14 in less than a minute."""
    optimizers: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = (
        *("sgd", "adam", "rmsprop", "muon"),
        *_SOAP,
        *("locoprop_m", "locoprop_m5", "locoprop_s", "locoprop_closed", "locoprop_closed_near"),
    )
    """Optimizers to compare: sgd, momentum, nesterov, adam, rmsprop, adagrad, lamb, muon, soap, shampoo, kfac, locoprop_m (matching
    losses, 10 local iterations, as published), locoprop_m5 (5 iterations), locoprop_s (squared losses), and squared losses in
    closed form: locoprop_closed (eta 1), locoprop_closed_near (eta 0.1) and locoprop_closed_damped (eta 0.01, for layers about as
    wide as a batch is long). soap and shampoo come with rlopt[optim]; the default leaves out soap where it is not installed. The
    baseline of the comparison is adam if it is there, else the first."""
    learning_rates: Annotated[tuple[str, ...], arg(metavar="NAME=RATE [NAME=RATE ...]")] = ()
    """Learning rates of optimizers, > 0, in place of their defaults. That of muon is of its matrices; that of locoprop is of the
    local iterations, and of the closed form it multiplies gamma, which is the number of rows in a batch."""
    tuning: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)
    """Search of the learning rates"""
    search_epochs: int | None = None
    """Epochs of a trial of the search, > 0, at most epochs; warm-up is shortened in proportion. None: a fifth of epochs."""
    epochs: int = 50
    """Passes over the training images, > 0."""
    schedule_epochs: int | None = None
    """Epochs in which learning rates would reach 0, at least epochs: a larger number shows the first part of a longer training.
    None: epochs."""
    warmup_epochs: float = 2.5
    """Epochs in which learning rates rise from 0, in [0, schedule_epochs); then they fall linearly to 0."""
    locoprop_schedule: Literal["steps", "published"] = "steps"
    """Schedule of the iterative locoprop optimizers. steps: that of all others, which changes each step. published: changes each
    epoch and has rate 0 in the first one."""
    num_images: int | None = 4000
    """Generated training images, > 0; there are a quarter as many test images. Presets with curves."""
    widths: tuple[int, ...] = (256, 128, 64, 12)
    """Units of the encoder's layers, the code last, > 0; the decoder has them backwards."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation of the hidden layers; code and output are linear, with the sigmoid of the output in the loss."""
    batch_size: int = 500
    """Images of a step, > 0; the incomplete batch of an epoch is left out."""
    eval_every: int = 1
    """Epochs between evaluations, > 0, at most epochs; the last epoch is always evaluated."""
    device: str = "cpu"
    """PyTorch device of the training."""
    seeds: int = 3
    """Initial weights and orders of the images, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        for option in ("epochs", "schedule_epochs", "search_epochs", "num_images", "batch_size", "eval_every", "seeds", "jobs"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option} must be > 0, got {value}")
        for option in ("search_epochs", "eval_every"):
            value = getattr(self, option)
            if value is not None and value > self.epochs:
                raise ValueError(f"{option} must be at most epochs = {self.epochs}, got {value}")
        if self.schedule_epochs is not None and self.schedule_epochs < self.epochs:
            raise ValueError(f"schedule_epochs must be at least epochs = {self.epochs}, got {self.schedule_epochs}")
        length = self.schedule_epochs or self.epochs
        if not 0 <= self.warmup_epochs < length:
            raise ValueError(f"warmup_epochs must be in [0, {length}), the epochs of the schedule, got {self.warmup_epochs}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more numbers > 0, got {self.widths or 'none'}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        doubles = [name for name in self.optimizers if self.optimizers.count(name) > 1]
        if doubles or not self.optimizers:
            raise ValueError(f"optimizers must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.optimizers:
            if name not in OPTIMIZERS:
                raise ValueError(f"optimizers must be among {', '.join(OPTIMIZERS)}, got {name}{hint(name, OPTIMIZERS)}")
        given_numbers("learning_rates", self.learning_rates)

    @property
    def setting(self) -> str:
        """The images: curves14, curves28, mnist or fashion_mnist."""
        return "curves14" if self.preset == "quick" else self.preset


_PUBLISHED: dict[str, Any] = {
    "optimizers": ("sgd", "adam", "rmsprop", "muon", *_SOAP, "locoprop_m", "locoprop_closed_damped"),
    "epochs": 99,
    "warmup_epochs": 5.0,
    "locoprop_schedule": "published",
    "widths": (1000, 500, 250, 30),
    "batch_size": 1000,
}

# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, AutoencoderStudy]] = {
    "curves14": ("generated curves of 14 x 14 pixels", AutoencoderStudy()),
    "curves28": ("generated curves of 28 x 28 pixels", AutoencoderStudy(preset="curves28", num_images=20_000, **_PUBLISHED)),
    "mnist": ("handwritten digits", AutoencoderStudy(preset="mnist", num_images=None, **_PUBLISHED)),
    "fashion_mnist": ("pictures of clothes", AutoencoderStudy(preset="fashion_mnist", num_images=None, **_PUBLISHED)),
    "quick": (
        "curves14, in less than a minute",
        AutoencoderStudy(
            preset="quick",
            optimizers=("adam", "locoprop_m", "locoprop_closed"),
            epochs=10,
            warmup_epochs=1.0,
            num_images=2000,
            batch_size=250,
            seeds=2,
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare, arguments)


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study."""
    study = parse(arguments)
    refuse_options_without_effect(study)
    check_device(study.device)
    check_packages(study)
    images = load_images(make_config(study))
    if study.batch_size > len(images.inputs):
        raise ValueError(f"batch_size must be at most the number of training images, {len(images.inputs)}, got {study.batch_size}")
    task = make_task(study, images)
    search = study.tuning.arguments(LARGEST_LOSS)
    rates = learning_rates(study)
    chosen = rates if search is None else {name: searched_rate(rate) for name, rate in rates.items()}
    return {
        "function": f"{Path(__file__).resolve().parent / '_autoencoder_training.py'}:train",
        "tasks": [task],
        "variants": {name: {"optimizer": name, "lr": chosen[name]} for name in study.optimizers},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "adam" if "adam" in study.optimizers else study.optimizers[0],
        "jobs": study.jobs,
        "machines": study.machines,
        "search": search and {**search, "trial_tasks": [search_task(study)]},
    }


def parse(arguments: Sequence[str]) -> AutoencoderStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(AutoencoderStudy, PRESETS, "curves14", arguments, __doc__)


def make_config(study: AutoencoderStudy) -> dict[str, Any]:
    """Return what determines a run, but for optimizer and learning rate."""
    is_curves = study.setting.startswith("curves")
    return {
        "data": "curves" if is_curves else study.setting,
        "size": int(study.setting.removeprefix("curves")) if is_curves else 28,
        "num_images": study.num_images,
        "widths": list(study.widths),
        "activation": study.activation,
        "batch_size": study.batch_size,
        "epochs": study.epochs,
        "schedule_epochs": study.schedule_epochs or study.epochs,
        "warmup_epochs": study.warmup_epochs,
        "locoprop_schedule": study.locoprop_schedule,
        "eval_every": study.eval_every,
        "device": study.device,
    }


def make_task(study: AutoencoderStudy, images: Dataset) -> Task:
    """Return the task, with the loss below which no model gets as a line."""
    floor = loss_floor(images.inputs)
    return Task(
        study.setting,
        study.epochs,
        make_config(study),
        goal="minimize",
        score_name="training loss",
        step_name="epochs",
        log_scale=True,
        # A line needs two points.
        references={"entropy of the pixels": [(1, floor), (study.epochs, floor)]} if study.epochs > 1 and floor > 0 else {},
        final_evaluations=1,
        costs=Costs("epochs", "time/cpu_seconds", memory="memory/optimizer_state_bytes"),
    )


def search_task(study: AutoencoderStudy) -> Task:
    """Return the task of a trial of the search: shorter, with a schedule that is shortened in proportion.

    It is evaluated at its end, with a pruner eight times.
    """
    epochs = study.search_epochs or max(1, study.epochs // 5)
    warmup_epochs = study.warmup_epochs * epochs / (study.schedule_epochs or study.epochs)
    shorter = {"epochs": epochs, "schedule_epochs": epochs, "warmup_epochs": warmup_epochs}
    shorter["eval_every"] = epochs if study.tuning.pruner is None else max(1, epochs // 8)
    return Task(study.setting, epochs, {**make_config(study), **shorter}, goal="minimize", final_evaluations=1)


def learning_rates(study: AutoencoderStudy) -> dict[str, float]:
    """Return the learning rate of each optimizer, given or default."""
    given = given_numbers("learning_rates", study.learning_rates)
    return {name: given.get(name, float(OPTIMIZERS[name].lr)) for name in study.optimizers}  # type: ignore[attr-defined]


def check_packages(study: AutoencoderStudy) -> None:
    """Make each optimizer once.

    Raises:
        ValueError: If a package is missing.
    """
    for name in study.optimizers:
        try:
            build_optimizer(OPTIMIZERS[name], nn.Linear(2, 2))
        except ImportError as error:
            raise ValueError(f"optimizers must not hold {name} here: {error}") from None


def refuse_options_without_effect(study: AutoencoderStudy) -> None:
    """Refuse options of other images, of optimizers that take no part, and of a search that is not made.

    Raises:
        ValueError: Naming the option.
    """
    changed = changes(study)
    is_curves = study.setting.startswith("curves")
    if not is_curves and study.num_images is not None:
        raise ValueError(
            f"num_images has no effect: it belongs to presets with curves, the preset here is {study.preset}; drop the option"
        )
    if is_curves and study.num_images is None:
        raise ValueError(f"num_images must be a number with preset {study.preset}, got None")
    study.tuning.check()
    if study.search_epochs is not None and study.tuning.search is None:
        raise ValueError("search_epochs has no effect without search; add --search or drop the option")
    if "locoprop_schedule" in changed and not set(ITERATIVE_LOCOPROP) & set(study.optimizers):
        raise ValueError(
            f"locoprop_schedule has no effect: the optimizers ({', '.join(study.optimizers)}) hold none of "
            f"{', '.join(ITERATIVE_LOCOPROP)}; add one or drop the option"
        )
    for name in given_numbers("learning_rates", study.learning_rates):
        if name not in study.optimizers:
            raise ValueError(
                f"learning_rates has no effect for {name}: the optimizers are {', '.join(study.optimizers)}"
                f"{hint(name, study.optimizers)}; drop it"
            )


def changes(study: AutoencoderStudy) -> dict[str, Any]:
    """Return the options that determine results and differ from the preset."""
    default = PRESETS[study.preset][1]
    own = {"preset", "optimizers", "seeds", "jobs", "machines", "output", "name", "tuning"}
    values = {entry.name: getattr(study, entry.name) for entry in fields(study) if entry.name not in own}
    return study.tuning.changes() | {option: value for option, value in values.items() if value != getattr(default, option)}


def default_name(study: AutoencoderStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    parts = [
        f"{option}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for option, value in changes(study).items()
    ]
    return folder_name("_".join(["autoencoder", study.preset, *parts]))


if __name__ == "__main__":
    sys.exit(main())
