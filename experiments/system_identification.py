"""How many samples does an estimator need? Curves of the parameter error of estimators on systems with a known answer.

Each seed draws a system and one trajectory of it, which all estimators share; the report compares their errors with each other
and with the statistical limit. The runs go to RUNS/NAME. A study can be stopped at any time; the same command goes on where it
stopped, and more seeds or estimators can be added later under the same name.

Examples:
    python experiments/system_identification.py --preset quick
    python experiments/system_identification.py --preset linear --num-samples 100000 --metric prediction
    python experiments/system_identification.py --preset markov --estimators sgd sgd_replay --seeds 10
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from _checks import hint
from _command import Jobs, Machines, parse_with_presets, run_command
from _identification import METRICS, limit
from tyro.conf import arg

from rlopt.study import Task
from rlopt.study.grid import folder_name
from rlopt.sysid.step_size import StepRule

PresetName = Literal["linear", "nonlinear", "markov", "quick"]
Metric = Literal["operator", "frobenius", "squared", "prediction"]

BUFFERED = ("sgd_replay", "sgd_reverse_replay")
STEPPED = ("sgd", "sgd_data_drop", "parallel_sgd", *BUFFERED)
ITERATED = ("quasi_newton", "glmtron")
ESTIMATORS = ("least_squares", *STEPPED, *ITERATED)


@dataclass(frozen=True)
class IdentificationStudy:
    """Options of the comparison."""

    preset: PresetName = "linear"
    """The problem, with options that suit it; every option that is given wins.
    linear: states of x' = A x + noise with eigenvalues of two sizes. nonlinear: x' = leaky_relu(A x) + noise.
    markov: regression on an autoregressive chain, whose noise does not drive the regressors.
    quick: linear, in less than a minute."""
    estimators: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = (
        "least_squares",
        "sgd",
        "sgd_replay",
        "sgd_reverse_replay",
    )
    """Estimators to compare: least_squares, sgd, sgd_data_drop, sgd_replay, sgd_reverse_replay, parallel_sgd, quasi_newton,
    glmtron. The baseline of the comparison is sgd if it is there, else the first."""
    num_samples: int = 1_000_000
    """Transitions of a trajectory."""
    num_states: int = 5
    """Dimension of the states, or of the regressors with preset markov, > 0."""
    noise_std: float = 1.0
    """Standard deviation of the noise, > 0."""
    spectral_radius: float | None = 0.9
    """Largest eigenvalue of A, in (0, 1); the smaller ones are a third of it. Presets linear, nonlinear, quick."""
    slope: float | None = None
    """Slope of the leaky ReLU below zero, in (0, 1]. Preset nonlinear."""
    epsilon: float | None = None
    """Share of fresh noise in a step of the chain, in (0, 1]; it mixes in about 1 / epsilon^2 steps. Preset markov."""
    step_size: float | StepRule = "1/(2R)"
    """Step size of the sgd estimators, > 0, or a rule of it; an update is w - 2 step_size gradient."""
    tail_start: float = 0.5
    """Share of the iterates of the sgd estimators before the average begins, in [0, 1)."""
    buffer_size: int | None = 100
    """Samples of a replay buffer, > 0. None: as many as the problem takes to mix, see num_chains."""
    gap: int = 10
    """Samples left out between buffers, >= 0."""
    spacing: int | None = None
    """Sgd_data_drop learns from one of so many samples, > 0. None: 1 / (1 - spectral radius), or ln(num states) / epsilon^2."""
    num_chains: int | None = None
    """Chains of parallel_sgd, > 0. None: as many steps as the problem takes to mix, 1 / (1 - spectral radius) or 1 / epsilon^2."""
    num_iterations: int = 30
    """Passes of quasi_newton and glmtron over the data, > 0."""
    quasi_newton_step_size: float = 0.2
    """Step size of quasi_newton, in (0, 1)."""
    glmtron_step_size: float | None = None
    """Step size of glmtron, > 0. None: half of the largest stable one."""
    metric: Metric = "operator"
    """The error of the report. operator, frobenius: norm of the difference from the true matrix. squared: frobenius^2.
    prediction: mean squared error of the prediction beyond the noise, not for preset nonlinear."""
    num_checkpoints: int = 20
    """Points of a curve, > 1, equally distant on a logarithmic scale."""
    seeds: int = 5
    """Systems and trajectories, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        positive = (
            *("num_states", "noise_std", "buffer_size", "spacing", "num_chains", "num_iterations", "glmtron_step_size"),
            *("step_size", "seeds", "jobs"),
        )
        for option in positive:
            value = getattr(self, option)
            if isinstance(value, int | float) and not 0 < value < math.inf:
                raise ValueError(f"{option} must be > 0, got {value}")
        ranges = {
            "spectral_radius": ("in (0, 1)", lambda value: 0 < value < 1),
            "slope": ("in (0, 1]", lambda value: 0 < value <= 1),
            "epsilon": ("in (0, 1]", lambda value: 0 < value <= 1),
            "tail_start": ("in [0, 1)", lambda value: 0 <= value < 1),
            "quasi_newton_step_size": ("in (0, 1)", lambda value: 0 < value < 1),
            "gap": (">= 0", lambda value: value >= 0),
            "num_checkpoints": ("> 1", lambda value: value > 1),
            "num_samples": (f">= 10 num_states = {10 * self.num_states}", lambda value: value >= 10 * self.num_states),
        }
        for option, (allowed, holds) in ranges.items():
            value = getattr(self, option)
            if value is not None and not holds(value):
                raise ValueError(f"{option} must be {allowed}, got {value}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        doubles = [name for name in self.estimators if self.estimators.count(name) > 1]
        if doubles or not self.estimators:
            raise ValueError(f"estimators must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.estimators:
            if name not in ESTIMATORS:
                raise ValueError(f"estimators must be among {', '.join(ESTIMATORS)}, got {name}{hint(name, ESTIMATORS)}")

    @property
    def setting(self) -> str:
        """The kind of problem: linear, nonlinear or markov."""
        return "linear" if self.preset == "quick" else self.preset


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, IdentificationStudy]] = {
    "linear": ("a linear system, one trajectory", IdentificationStudy()),
    "nonlinear": (
        "a system with a leaky ReLU",
        IdentificationStudy(
            preset="nonlinear",
            estimators=("quasi_newton", "glmtron", "sgd", "sgd_replay", "sgd_reverse_replay"),
            num_samples=100_000,
            spectral_radius=0.98,
            slope=0.5,
            step_size="5ln(T)/T",
            buffer_size=240,
            metric="frobenius",
        ),
    ),
    "markov": (
        "regression on an autoregressive chain",
        IdentificationStudy(
            preset="markov",
            estimators=("least_squares", "sgd", "sgd_data_drop", "sgd_replay", "sgd_reverse_replay"),
            num_samples=100_000,
            num_states=20,
            noise_std=1e-3,
            spectral_radius=None,
            epsilon=0.05,
            step_size=0.1,  # w - 0.2 gradient: the update has a factor 2
            buffer_size=None,
            gap=0,
            metric="squared",
        ),
    ),
    "quick": (
        "a linear system, in less than a minute",
        IdentificationStudy(
            preset="quick", estimators=("least_squares", "sgd", "sgd_reverse_replay"), num_samples=100_000, seeds=4
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
    return {
        "function": f"{Path(__file__).resolve().parent / '_identification.py'}:identify",
        "tasks": [make_task(study)],
        "variants": {name: {"estimator": name} for name in study.estimators},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "sgd" if "sgd" in study.estimators else study.estimators[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def parse(arguments: Sequence[str]) -> IdentificationStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(IdentificationStudy, PRESETS, "linear", arguments, __doc__)


def make_task(study: IdentificationStudy) -> Task:
    """Return the task: the problem, the options of the estimators, and the limit to measure errors by."""
    if study.epsilon is not None:
        mixing_time = math.ceil(round(study.epsilon**-2, 6))
        spacing = max(1, math.floor(math.log(study.num_states) * study.epsilon**-2))
    else:
        assert study.spectral_radius is not None
        mixing_time = spacing = math.ceil(round(1 / (1 - study.spectral_radius), 6))
    config = {
        "setting": study.setting,
        "num_samples": study.num_samples,
        "num_states": study.num_states,
        "noise_std": study.noise_std,
        "spectral_radius": study.spectral_radius,
        "slope": study.slope,
        "epsilon": study.epsilon,
        "step_size": study.step_size,
        "tail_start": study.tail_start,
        "buffer_size": study.buffer_size or mixing_time,
        "gap": study.gap,
        "spacing": study.spacing or spacing,
        "num_chains": study.num_chains or mixing_time,
        "num_iterations": study.num_iterations,
        "quasi_newton_step_size": study.quasi_newton_step_size,
        "glmtron_step_size": study.glmtron_step_size,
        "metric": study.metric,
        "num_checkpoints": study.num_checkpoints,
    }
    buffer = config["buffer_size"] + study.gap
    if study.num_samples < buffer and set(study.estimators) & set(BUFFERED):
        raise ValueError(f"num_samples must be at least one buffer with its gap, {buffer}, got {study.num_samples}")
    points = limit(config, study.seeds)
    return Task(
        study.setting,
        study.num_samples,
        config,
        goal="minimize",
        score_name=METRICS[study.metric],
        step_name="samples",
        log_scale=True,
        references={"statistical limit": points} if points else {},
        final_evaluations=1,
    )


def refuse_options_without_effect(study: IdentificationStudy) -> None:
    """Refuse options of another problem or of estimators that take no part, and what has no meaning for the problem.

    Raises:
        ValueError: Naming the option.
    """
    owners: dict[str, tuple[str, ...]] = {
        "spectral_radius": ("linear", "nonlinear"),
        "slope": ("nonlinear",),
        "epsilon": ("markov",),
    }
    changed = changes(study)
    for option, settings in owners.items():
        if option in changed and study.setting not in settings:
            raise ValueError(
                f"{option} has no effect: it belongs to preset {' or '.join(settings)}, the preset here is {study.preset}; "
                f"drop the option"
            )
        if study.setting in settings and getattr(study, option) is None:
            raise ValueError(f"{option} must be a number with preset {study.preset}, got None")
    users: dict[str, tuple[str, ...]] = {
        "step_size": STEPPED,
        "tail_start": STEPPED,
        "buffer_size": STEPPED if study.step_size == "1/(8RB)" else BUFFERED,
        "gap": BUFFERED,
        "spacing": ("sgd_data_drop",),
        "num_chains": ("parallel_sgd",),
        "num_iterations": ITERATED,
        "quasi_newton_step_size": ("quasi_newton",),
        "glmtron_step_size": ("glmtron",),
    }
    for option, estimators in users.items():
        if option in changed and not set(estimators) & set(study.estimators):
            raise ValueError(
                f"{option} has no effect: the estimators ({', '.join(study.estimators)}) hold none of "
                f"{', '.join(estimators)}; add one or drop the option"
            )
    if study.setting == "nonlinear" and "least_squares" in study.estimators:
        raise ValueError("estimators must not hold least_squares with preset nonlinear: it knows no link; use quasi_newton")
    if study.setting == "nonlinear" and study.metric == "prediction":
        known = ", ".join(name for name in get_args(Metric) if name != "prediction")
        raise ValueError(f"metric must be one of {known} with preset nonlinear, got prediction")


def changes(study: IdentificationStudy) -> dict[str, Any]:
    """Return the options that determine results and differ from the preset."""
    default = PRESETS[study.preset][1]
    own = {"preset", "estimators", "seeds", "jobs", "machines", "output", "name"}
    values = {entry.name: getattr(study, entry.name) for entry in fields(study) if entry.name not in own}
    return {option: value for option, value in values.items() if value != getattr(default, option)}


def default_name(study: IdentificationStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    parts = [f"{option}={value}" for option, value in changes(study).items()]
    return folder_name("_".join(["identification", study.preset, *parts]))


if __name__ == "__main__":
    sys.exit(main())
