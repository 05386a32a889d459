"""Which order of learning makes Q-learning with linear features converge? Error curves on problems with known optimal values.

Each seed draws one stream of data, which all methods share. The score of a run is the largest error of its Q-values; lower is
better. Errors are kept within 1e-12 and 1e6, so a run that diverges, overflow included, goes on at 1e6. The runs go to RUNS/NAME.
A study can be stopped at any time; the same command goes on where it stopped, and more seeds or methods can be added later under
the same name.

Examples:
    python experiments/linear_q_learning.py --preset quick
    python experiments/linear_q_learning.py --preset baird --seeds 10
    python experiments/linear_q_learning.py --env-id FrozenLake-v1 --discount 0.95 --methods qlearning qrex --gap 0
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import hint, inspect_env
from _command import Jobs, Machines, parse_with_presets, run_command
from _q_training import load_problem
from tyro.conf import arg

from rlopt.study import Task
from rlopt.study.grid import folder_name

PresetName = Literal["ring", "baird", "chain", "quick"]

WITH_TARGETS = ("qrex", "qrex_forward", "qrex_random")
BUFFERED = ("qlearning_replay", *WITH_TARGETS, "qrex_dare")
METHODS = ("qlearning", *BUFFERED)


@dataclass(frozen=True)
class QStudy:
    """Options of the comparison."""

    preset: PresetName = "ring"
    """The problem, with options that suit it; every option that is given wins.
    ring: a walk around five states. baird: a star on which plain Q-learning diverges. chain: a reward after twelve steps.
    quick: the ring, in less than a minute."""
    env_id: Annotated[tuple[str, ...], arg(metavar="ID [ID ...]")] = ("rlopt/RingMDP-v0",)
    """Environments: rlopt/RingMDP-v0, rlopt/BairdStar-v0, rlopt/Chain-v0, rlopt/BlindCliffwalk-v0, or others with a table of their
    transitions, as FrozenLake-v1 and CliffWalking-v1."""
    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = (
        "qlearning",
        "qlearning_replay",
        "qrex",
        "qrex_forward",
        "qrex_dare",
    )
    """Methods to compare: qlearning, qlearning_replay, qrex, qrex_forward (oldest first), qrex_random (random draws), qrex_dare.
    The baseline of the comparison is qlearning if it is there, else the first."""
    num_samples: int = 132_000
    """Transitions of a stream, at least one buffer with its gap."""
    discount: float | None = None
    """Discount of the optimal values, in [0, 1). If not given: the environment's own, or 0.9."""
    features: Literal["own", "tabular"] = "own"
    """own: features and first weights of the environment. tabular: one for each pair of state and action, first weights 0."""
    step_size: float = 0.005
    """Step size, > 0."""
    buffer_size: int = 50
    """Transitions of a buffer that are learned from, > 0."""
    gap: int = 5
    """Transitions left out between buffers, >= 0."""
    num_buffers: int = 40
    """Buffers between two renewals of the target of qrex, > 0."""
    num_targets: int = 60
    """Passes of qrex_dare over the data, each with a target of its own, > 0."""
    num_checkpoints: int = 20
    """Points of a curve, > 1, equally distant on a logarithmic scale."""
    seeds: int = 5
    """Streams of data, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        for option in ("step_size", "buffer_size", "num_buffers", "num_targets", "seeds", "jobs"):
            value = getattr(self, option)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{option} must be > 0, got {value}")
        if self.gap < 0:
            raise ValueError(f"gap must be >= 0, got {self.gap}")
        if self.discount is not None and not 0 <= self.discount < 1:
            raise ValueError(f"discount must be in [0, 1), got {self.discount}")
        if self.num_checkpoints < 2:
            raise ValueError(f"num_checkpoints must be > 1, got {self.num_checkpoints}")
        if self.num_samples < self.gap + self.buffer_size:
            buffer = self.gap + self.buffer_size
            raise ValueError(f"num_samples must be at least one buffer with its gap, {buffer}, got {self.num_samples}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        for option, names in (("methods", self.methods), ("env_id", self.env_id)):
            doubles = [name for name in names if names.count(name) > 1]
            if doubles or not names:
                raise ValueError(f"{option} must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name}{hint(name, METHODS)}")


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, QStudy]] = {
    "ring": ("a walk around five states", QStudy()),
    "baird": (
        "a star on which plain Q-learning diverges",
        QStudy(preset="baird", env_id=("rlopt/BairdStar-v0",), num_samples=440_000, step_size=0.01),
    ),
    "chain": (
        "a reward after twelve steps",
        QStudy(
            preset="chain", env_id=("rlopt/Chain-v0",), num_samples=24_000, step_size=0.1, buffer_size=12, gap=0, num_buffers=10
        ),
    ),
    "quick": (
        "the ring, in less than a minute",
        QStudy(preset="quick", methods=("qlearning", "qrex", "qrex_dare"), seeds=2),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare, arguments)


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study."""
    study = parse(arguments)
    refuse_options_without_effect(study)
    return {
        "function": f"{Path(__file__).resolve().parent / '_q_training.py'}:learn",
        "tasks": [make_task(study, env_id) for env_id in study.env_id],
        "variants": {name: {"method": name} for name in study.methods},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "qlearning" if "qlearning" in study.methods else study.methods[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def parse(arguments: Sequence[str]) -> QStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(QStudy, PRESETS, "ring", arguments, __doc__)


def make_task(study: QStudy, env_id: str) -> Task:
    """Return the task of an environment.

    Raises:
        ValueError: If there is no such environment, or its optimal values cannot be known.
    """
    inspect_env(env_id, ())
    load_problem(env_id, study.discount, study.features)
    names = (
        "discount",
        "features",
        "num_samples",
        "num_checkpoints",
        "step_size",
        "buffer_size",
        "gap",
        "num_buffers",
        "num_targets",
    )
    return Task(
        env_id,
        study.num_samples,
        {"env_id": env_id} | {name: getattr(study, name) for name in names},
        goal="minimize",
        score_name="largest error of Q (1e6: diverged)",
        step_name="samples",
        log_scale=True,
        final_evaluations=1,
    )


def refuse_options_without_effect(study: QStudy) -> None:
    """Refuse options of methods that take no part.

    Raises:
        ValueError: Naming the option.
    """
    users = {
        "buffer_size": BUFFERED,
        "gap": BUFFERED,
        "num_buffers": WITH_TARGETS,
        "num_targets": ("qrex_dare",),
    }
    changed = changes(study)
    for option, methods in users.items():
        if option in changed and not set(methods) & set(study.methods):
            raise ValueError(
                f"{option} has no effect: the methods ({', '.join(study.methods)}) hold none of {', '.join(methods)}; "
                f"add one or drop the option"
            )


def changes(study: QStudy) -> dict[str, Any]:
    """Return the options that determine results and differ from the preset."""
    default = PRESETS[study.preset][1]
    own = {"preset", "methods", "env_id", "seeds", "jobs", "machines", "output", "name"}
    values = {entry.name: getattr(study, entry.name) for entry in fields(study) if entry.name not in own}
    return {option: value for option, value in values.items() if value != getattr(default, option)}


def default_name(study: QStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    parts = ["q_learning", study.preset]
    if study.env_id != PRESETS[study.preset][1].env_id:
        parts += study.env_id
    parts += [f"{option}={value}" for option, value in changes(study).items()]
    return folder_name("_".join(parts))


if __name__ == "__main__":
    sys.exit(main())
