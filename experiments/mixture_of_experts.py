"""Which mixture of experts learns best at equal cost? Validation loss of a small model of text, and loads of the experts.

In every n-th layer of a transformer the MLP makes room for a mixture of experts: each token takes its best expert (top1, Switch) or
its two best (top2), each expert takes its best tokens (expert_choice), or experts compute mixtures of tokens (soft). Experts are as
wide as the matrix products of the layer cost what those of the dense MLP cost, routers included. The model finds hidden characters
of Tiny Shakespeare, or the next one. Loads of all experts are in progress.csv and TensorBoard of each run. The runs go to
RUNS/NAME. A study can be stopped at any time; the same command goes on where it stopped.

Examples:
    python experiments/mixture_of_experts.py --preset quick
    python experiments/mixture_of_experts.py --methods dense top1 top2 top2_capacity expert_choice soft --seeds 3
    python experiments/mixture_of_experts.py --objective causal --methods dense top1 top2
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import check_device, hint
from _command import Jobs, Machines, parse_with_presets, run_command
from _comparing_optimizers import given_numbers
from _mixture_training import METHODS, equal_hidden_width, method_sizes
from tyro.conf import arg

from rlopt.data import load
from rlopt.study import Costs, Task
from rlopt.study.grid import folder_name

PresetName = Literal["cpu", "quick"]


@dataclass(frozen=True)
class MixtureStudy:
    """Options of the comparison."""

    preset: PresetName = "cpu"
    """cpu: two layers of width 128, both with experts, and rotary positions. quick: a tiny model, a minute."""
    objective: Literal["masked", "causal"] = "masked"
    """masked: find hidden characters from both sides. causal: the next character; without top1_capacity, top2_capacity,
    expert_choice and soft, which look at later characters."""
    methods: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("dense", "top1", "top2", "expert_choice", "soft")
    """Methods to compare: dense, top1, top1_capacity, top2, top2_capacity, expert_choice, soft. Without capacity, experts take all
    tokens that choose them. The baseline of the comparison is top2 if it is there, else the first."""
    learning_rates: Annotated[tuple[str, ...], arg(metavar="NAME=RATE [NAME=RATE ...]")] = ()
    """Learning rates of methods, > 0, in place of lr."""
    lr: float = 1.5e-3
    """Learning rate of AdamW, > 0."""
    capacity_factors: Annotated[tuple[str, ...], arg(metavar="NAME=FACTOR [NAME=FACTOR ...]")] = ()
    """Tokens per expert, relative to all tokens divided by the experts, in (0, experts], in place of 1.25 (2 in evaluations) for
    top1_capacity, 2 for top2_capacity and expert_choice, and 1 (slots) for soft."""
    num_experts: int = 8
    """Experts of a layer, > 1."""
    every: int = 1
    """Of every so many layers the last one has experts, in [1, num_layers]."""
    balance_coef: float = 0.01
    """Coefficient of the balance loss of top1 and top2, >= 0 (Switch: 0.01)."""
    router_z_coef: float = 0.001
    """Coefficient of the z-loss of routers, >= 0 (ST-MoE: 0.001); soft has none."""
    num_steps: int = 1500
    """Steps of a run, > 0."""
    warmup_steps: int = 100
    """Steps in which the rate rises from 0, in [0, num_steps); then it falls linearly to 0."""
    num_evaluations: int = 10
    """Evaluations of a run, > 0, at equal distances."""
    num_eval_windows: int = 512
    """Windows of an evaluation, > 0."""
    context: int = 64
    """Characters that the model sees, > 1."""
    batch_size: int = 12
    """Windows of a step, > 0."""
    num_layers: int = 2
    """Layers, > 0."""
    num_heads: int = 4
    """Heads of the attention, > 0; they divide width."""
    width: int = 128
    """Width of the residual stream, > 0; the hidden layer of the dense MLP is four times as wide."""
    device: str = "cpu"
    """PyTorch device of the training."""
    seeds: int = 3
    """Initial weights, windows and hidden characters, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        sizes = (
            "num_steps",
            "num_evaluations",
            "num_eval_windows",
            "batch_size",
            "num_layers",
            "num_heads",
            "width",
            "seeds",
            "jobs",
        )
        for option in sizes:
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option} must be > 0, got {value}")
        for option in ("context", "num_experts"):
            if getattr(self, option) < 2:
                raise ValueError(f"{option} must be > 1, got {getattr(self, option)}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width = {self.width}, got {self.num_heads}")
        if not 1 <= self.every <= self.num_layers:
            raise ValueError(f"every must be in [1, num_layers = {self.num_layers}], got {self.every}")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps must be in [0, num_steps = {self.num_steps}), got {self.warmup_steps}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        for option in ("balance_coef", "router_z_coef"):
            if not 0 <= getattr(self, option) < math.inf:
                raise ValueError(f"{option} must be >= 0, got {getattr(self, option)}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        self._check_methods()

    def _check_methods(self) -> None:
        doubles = [name for name in self.methods if self.methods.count(name) > 1]
        if doubles or not self.methods:
            raise ValueError(f"methods must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {', '.join(METHODS)}, got {name}{hint(name, METHODS)}")
            if self.objective == "causal" and not METHODS[name].causal_safe:
                safe = ", ".join(name for name, method in METHODS.items() if method.causal_safe)
                raise ValueError(f"methods must be among {safe} with objective causal, got {name}, which looks at later characters")
        for option in ("learning_rates", "capacity_factors"):
            for name, value in given_numbers(option, getattr(self, option)).items():
                if name not in self.methods:
                    raise ValueError(f"{option} must be of methods that take part ({', '.join(self.methods)}), got {name}")
                if option == "capacity_factors" and METHODS[name].factor is None:
                    raise ValueError(f"capacity_factors must be of methods with a capacity, got {name}")
                if option == "capacity_factors" and value > self.num_experts:
                    raise ValueError(f"capacity_factors must be at most num_experts = {self.num_experts}, got {value:g} for {name}")


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, MixtureStudy]] = {
    "cpu": ("two layers", MixtureStudy()),
    "quick": (
        "a tiny model",
        MixtureStudy(
            "quick",
            lr=1e-2,
            num_steps=100,
            warmup_steps=10,
            num_evaluations=5,
            num_eval_windows=128,
            context=32,
            num_heads=2,
            width=32,
            num_experts=4,
            seeds=1,
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare, arguments)


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study.

    Raises:
        ValueError: If the text is nowhere to be found, the device is not there, or the model is too small for experts.
    """
    study = parse(arguments)
    check_device(study.device)
    load("tiny_shakespeare")
    task, variants = make_task(study), make_variants(study)
    for name, options in variants.items():
        equal_hidden_width(METHODS[name], method_sizes({**task.config, **options}), 4 * study.width)
    return {
        "function": f"{Path(__file__).resolve().parent / '_mixture_training.py'}:train",
        "tasks": [task],
        "variants": variants,
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "top2" if "top2" in study.methods else study.methods[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def parse(arguments: Sequence[str]) -> MixtureStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(MixtureStudy, PRESETS, "cpu", arguments, __doc__)


def make_variants(study: MixtureStudy) -> dict[str, dict[str, Any]]:
    """Return name -> options of the methods."""
    rates, factors = (given_numbers(name, getattr(study, name)) for name in ("learning_rates", "capacity_factors"))
    return {name: {"method": name, "lr": rates.get(name, study.lr), "capacity_factor": factors.get(name)} for name in study.methods}


def make_task(study: MixtureStudy) -> Task:
    """Return the task of the study."""
    own = {"preset", "methods", "learning_rates", "lr", "capacity_factors", "seeds", "jobs", "machines", "output", "name"}
    config = {field.name: getattr(study, field.name) for field in fields(study) if field.name not in own}
    kind = "hidden" if study.objective == "masked" else "next"
    return Task(
        f"{study.objective}_tiny_shakespeare",
        study.num_steps,
        {"data": "tiny_shakespeare", **config},
        goal="minimize",
        score_name=f"validation loss, nats per {kind} character",
        step_name="steps",
        references={"uniform guess": ((1.0, math.log(65)), (float(study.num_steps), math.log(65)))},
        final_evaluations=1,
        costs=Costs("steps", "time/cpu_seconds"),
    )


def default_name(study: MixtureStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    default = PRESETS[study.preset][1]
    shared = {"preset", "objective", "methods", "seeds", "jobs", "machines", "output", "name"}
    parts = [f"mixture_{study.objective}_{study.preset}"]
    for entry in fields(study):
        value = getattr(study, entry.name)
        if entry.name not in shared and value != getattr(default, entry.name):
            text = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append(f"{entry.name}={text}")
    return "_".join(parts)


if __name__ == "__main__":
    sys.exit(main())
