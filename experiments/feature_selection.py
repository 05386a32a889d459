"""Which features are worth keeping? Accuracy of a fresh network on features that Sequential Attention and classic methods select.

Each method selects k features on the training part of a data set; then a network with one hidden layer of 67 ReLU units is trained
on these features alone, with the same settings for all methods, and its accuracy on the test part is the score. The runs go to
RUNS/NAME; each has its features in selected.json. A study can be stopped at any time; the same command goes on where it stopped.

Examples:
    python experiments/feature_selection.py --preset quick
    python experiments/feature_selection.py --preset mice --seeds 5
    python experiments/feature_selection.py --preset mnist --methods sequential_attention lasso --k 25
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import check_device, hint
from _command import Jobs, Machines, parse_with_presets, run_command
from _feature_selection import METHODS, SETTINGS, load_data, prepare
from tyro.conf import arg

from rlopt.study import Task
from rlopt.study.grid import folder_name

PresetName = Literal["mice", "mice_by_mouse", "madelon", "mnist", "fashion_mnist", "quick"]

# Methods that scikit-learn provides.
_BY_SCIKIT_LEARN = ("lasso", "mutual_information")
# Options of the selection by Sequential Attention alone.
_OF_SEQUENTIAL_ATTENTION = ("select_epochs", "select_lr", "logit_lr")


@dataclass(frozen=True)
class FeatureStudy:
    """Options of the comparison."""

    preset: PresetName = "mice"
    """The data, with options that suit them; every option that is given wins.
    mice: 77 protein levels, 8 classes, prepared and split as in published experiments (rows of one mouse in both parts).
    mice_by_mouse: the same with whole mice held out. madelon: 500 columns, 20 of which matter, 2 classes.
    mnist, fashion_mnist: 784 pixels, 10 classes. quick: 64 pixels of the digits of scikit-learn, k = 10, a minute."""
    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = METHODS
    """Methods to compare: sequential_attention; omp (orthogonal matching pursuit for all classes together); lasso (multi-task
    lasso) and mutual_information, by scikit-learn; random; all (no selection). The baseline of the comparison is lasso if it is
    there, else the first."""
    k: int = 50
    """Features to select, > 0, at most the number there are."""
    select_epochs: int = SETTINGS["mice"].select_epochs
    """Epochs of the selection by sequential_attention, > 0."""
    select_lr: float = SETTINGS["mice"].select_lr
    """Its learning rate of the model at the start, > 0."""
    logit_lr: float = SETTINGS["mice"].logit_lr
    """Its learning rate of the logits, > 0."""
    epochs: int = SETTINGS["mice"].epochs
    """Epochs of the fresh network, > 0."""
    lr: float = SETTINGS["mice"].lr
    """Learning rate of the fresh network at the start, > 0; it falls exponentially to a fiftieth."""
    weight_decay: float = SETTINGS["mice"].weight_decay
    """Decoupled weight decay of the fresh network, >= 0."""
    batch_size: int = SETTINGS["mice"].batch_size
    """Rows of a step, > 0, for selection and for the fresh network."""
    num_evaluations: int = 5
    """Evaluations of the fresh network, > 0, at equal distances; the last one is the score."""
    device: str = "cpu"
    """PyTorch device of the training."""
    seeds: int = 3
    """Splits, initial weights and orders of rows, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        for option in ("k", "select_epochs", "epochs", "batch_size", "num_evaluations", "seeds", "jobs"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option} must be > 0, got {value}")
        for option in ("select_lr", "logit_lr", "lr"):
            if not 0 < getattr(self, option) < math.inf:
                raise ValueError(f"{option} must be a number > 0, got {getattr(self, option)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be a number >= 0, got {self.weight_decay}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        doubles = [name for name in self.methods if self.methods.count(name) > 1]
        if doubles or not self.methods:
            raise ValueError(f"methods must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name}{hint(name, METHODS)}")

    @property
    def data(self) -> str:
        """Name of the data and of their settings."""
        return "digits" if self.preset == "quick" else self.preset


def _preset(preset: PresetName, **options: Any) -> FeatureStudy:
    return FeatureStudy(preset, **{**asdict(SETTINGS["digits" if preset == "quick" else preset]), **options})


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, FeatureStudy]] = {
    "mice": ("protein levels of mice, as published", _preset("mice")),
    "mice_by_mouse": ("protein levels of mice, whole mice held out", _preset("mice_by_mouse")),
    "madelon": ("20 columns among 480 of noise", _preset("madelon", k=20)),
    "mnist": ("handwritten digits", _preset("mnist")),
    "fashion_mnist": ("pictures of clothes", _preset("fashion_mnist")),
    "quick": ("small digits", _preset("quick", k=10)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare_study, arguments)


def prepare_study(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study.

    Raises:
        ValueError: If something is missing, or options do not fit the data or have no effect.
    """
    study = parse(arguments)
    refuse_options_without_effect(study)
    check_device(study.device)
    needed = [name for name in study.methods if name in _BY_SCIKIT_LEARN]
    if needed and importlib.util.find_spec("sklearn") is None:
        raise ValueError(f"methods must not hold {needed[0]} here: it needs scikit-learn; pip install 'rlopt[data]'")
    try:
        data = load_data(study.data)
    except ImportError as error:
        raise ValueError(str(error)) from None
    rows, num_features = prepare(data, study.data, seed=0).inputs.shape
    for option, most in (("k", num_features), ("batch_size", rows)):
        if getattr(study, option) > most:
            raise ValueError(f"{option} must be at most {most} with preset {study.preset}, got {getattr(study, option)}")
    return {
        "function": f"{Path(__file__).resolve().parent / '_feature_selection.py'}:train",
        "tasks": [make_task(study)],
        "variants": {name: {"method": name} for name in study.methods},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "lasso" if "lasso" in study.methods else study.methods[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def parse(arguments: Sequence[str]) -> FeatureStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(FeatureStudy, PRESETS, "mice", arguments, __doc__)


def make_task(study: FeatureStudy) -> Task:
    """Return the task: the data with a number of features."""
    own = {"preset", "methods", "seeds", "jobs", "machines", "output", "name"}
    config = {entry.name: getattr(study, entry.name) for entry in fields(study) if entry.name not in own}
    return Task(
        f"{study.data}_k{study.k}",
        study.epochs,
        {"data": study.data, **config},
        score_name="accuracy on the test part",
        step_name="epochs",
        final_evaluations=1,
    )


def refuse_options_without_effect(study: FeatureStudy) -> None:
    """Refuse options of Sequential Attention where it takes no part, and `k` where nothing is selected.

    Raises:
        ValueError: Naming the option.
    """
    changed = changes(study)
    for option in _OF_SEQUENTIAL_ATTENTION:
        if option in changed and "sequential_attention" not in study.methods:
            raise ValueError(f"{option} has no effect: the methods ({', '.join(study.methods)}) hold no sequential_attention")
    if "k" in changed and study.methods == ("all",):
        raise ValueError("k has no effect: the method all selects nothing")


def changes(study: FeatureStudy) -> dict[str, Any]:
    """Return the options that determine results and differ from the preset."""
    default = PRESETS[study.preset][1]
    own = {"preset", "methods", "seeds", "jobs", "machines", "output", "name"}
    values = {entry.name: getattr(study, entry.name) for entry in fields(study) if entry.name not in own}
    return {option: value for option, value in values.items() if value != getattr(default, option)}


def default_name(study: FeatureStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    parts = [f"{option}={value}" for option, value in changes(study).items()]
    return folder_name("_".join(["features", study.preset, *parts]))


if __name__ == "__main__":
    sys.exit(main())
