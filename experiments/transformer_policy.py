"""Which network remembers best? Trains agents with transformers and other extractors on tasks that need a memory.

Agents see the last observations (`HistoryWrapper`); extractors differ in what they make of them. Reference scores are those of the
best policies without and with memory where they are known, so that a normalised score of 1 is the optimum and 0 what can be had
without memory. The runs go to RUNS/NAME, with a report when they are done. A study can be stopped at any time; the same command
goes on where it stopped, and more seeds or extractors can be added later under the same name.

Examples:
    python experiments/transformer_policy.py --preset quick
    python experiments/transformer_policy.py --tasks tmaze --agents ppo dqn --corridor-length 30 --seeds 10
    python experiments/transformer_policy.py --tasks lqg --agents ppo --extractors memoryless flat transformer gtrxl
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import check_device, hint
from _command import Jobs, Machines, parse_with_presets, run_command
from _transformer_policy_training import AGENTS, EXTRACTORS, NOT_FOR_SEQUENCES, TASKS, learns_from_sequences, reference_scores
from tyro.conf import arg

from rlopt.study import Task
from rlopt.study.grid import folder_name

PresetName = Literal["standard", "quick"]


@dataclass(frozen=True)
class MemoryStudy:
    """Options of the comparison."""

    preset: PresetName = "standard"
    """standard: T-maze and LQG, five seeds. quick: a short T-maze, a minute."""
    tasks: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("tmaze", "lqg")
    """Tasks: tmaze (a cue in the first observation says what to do in the last), cartpole and pendulum without velocities, lqg
    (noisy positions of a mass that is pushed)."""
    agents: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("ppo", "dqn")
    """Agents, each in the tasks that it can act in: ppo (tmaze, cartpole, lqg), dqn (tmaze, cartpole), td3 and sac (pendulum);
    dqn_sequences, td3_sequences and sac_sequences learn from sequences of steps instead of transitions between histories."""
    extractors: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("memoryless", "flat", "transformer")
    """What looks at the history: memoryless (an MLP on the newest observation), flat (an MLP on all of them), transformer (exact
    attention), gtrxl (with its gates and rotary positions), favor, linear, tree (other attention), topk, moe (other layers). The
    baseline of the comparison is memoryless if it is there, else the first."""
    corridor_length: int | None = None
    """Steps between the cue of tmaze and its question, >= 0; None: 10. The history is two longer."""
    history: int | None = None
    """Observations that agents see, > 0; None: as the task proposes."""
    total_timesteps: int | None = None
    """Steps of a run, > 0; None: as the task proposes."""
    num_evaluations: int = 10
    """Evaluations of a run, > 0, at equal distances."""
    eval_episodes: int = 50
    """Episodes of an evaluation, > 0, with the deterministic policy."""
    device: str = "cpu"
    """Where networks live: cpu, cuda, ..."""
    seeds: int = 5
    """Runs of each extractor with each agent and task, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        for option in ("history", "total_timesteps", "num_evaluations", "eval_episodes", "seeds", "jobs"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"{option} must be > 0, got {value}")
        if self.corridor_length is not None and self.corridor_length < 0:
            raise ValueError(f"corridor_length must be >= 0, got {self.corridor_length}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        for option, known in (("tasks", TASKS), ("agents", AGENTS), ("extractors", EXTRACTORS)):
            names = getattr(self, option)
            doubles = [name for name in names if names.count(name) > 1]
            if doubles or not names:
                raise ValueError(f"{option} must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
            for name in names:
                if name not in known:
                    raise ValueError(f"{option} must be among {', '.join(known)}, got {name}{hint(name, known)}")
        if self.corridor_length is not None and "tmaze" not in self.tasks:
            raise ValueError(f"corridor_length has no effect without the task tmaze, got {self.corridor_length}; drop it")
        for task in self.tasks:
            if not set(self.agents) & TASKS[task].agents.keys():
                raise ValueError(f"agents must hold one for {task} ({', '.join(TASKS[task].agents)}), got {', '.join(self.agents)}")
        for agent in self.agents:
            impossible = sorted(set(self.extractors) & set(NOT_FOR_SEQUENCES))
            if learns_from_sequences(agent) and impossible:
                raise ValueError(
                    f"extractors must not hold {impossible[0]} with {agent}: it cannot look at sequences; drop one of them"
                )
            if not any(agent in TASKS[task].agents for task in self.tasks):
                raise ValueError(f"agents must be able to act in one of the tasks ({', '.join(self.tasks)}), got {agent}")


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, MemoryStudy]] = {
    "standard": ("T-maze and LQG", MemoryStudy()),
    "quick": (
        "a short T-maze",
        MemoryStudy(
            "quick", tasks=("tmaze",), agents=("ppo",), extractors=("memoryless", "transformer"), corridor_length=3, seeds=2,
            total_timesteps=8_000, num_evaluations=4,
        ),
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare, arguments)


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study."""
    study = parse(arguments)
    check_device(study.device)
    return {
        "function": f"{Path(__file__).resolve().parent / '_transformer_policy_training.py'}:train",
        "tasks": [make_task(study, task, agent) for task in study.tasks for agent in study.agents if agent in TASKS[task].agents],
        "variants": {name: {"extractor": name} for name in study.extractors},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "memoryless" if "memoryless" in study.extractors else study.extractors[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def parse(arguments: Sequence[str]) -> MemoryStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(MemoryStudy, PRESETS, "standard", arguments, __doc__)


def make_task(study: MemoryStudy, name: str, agent: str) -> Task:
    """Return the task of an agent, with the reference scores of its environment."""
    task = TASKS[name]
    env_options, history = dict(task.env_options), task.history
    if name == "tmaze" and study.corridor_length is not None:
        env_options["corridor_length"] = study.corridor_length
        history = study.corridor_length + 2
    history = history if study.history is None else study.history
    least = task.agents[agent].get("burn_in", 0) + 1
    if history < least:
        raise ValueError(f"history must be at least {least} with {agent} in {name}, got {history}")
    total_timesteps = task.total_timesteps if study.total_timesteps is None else study.total_timesteps
    config = {
        "environment": name,
        "agent": agent,
        "env_options": env_options,
        "history": history,
        "total_timesteps": total_timesteps,
        "num_evaluations": study.num_evaluations,
        "eval_episodes": study.eval_episodes,
        "device": study.device,
        "options": task.agents[agent],
    }
    low, high = reference_scores(name, env_options)
    return Task(f"{agent}_{name}", total_timesteps, config, low, high)


def default_name(study: MemoryStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    default = PRESETS[study.preset][1]
    shared = {"preset", "tasks", "agents", "extractors", "seeds", "jobs", "machines", "output", "name"}
    parts = [
        f"{field.name}={getattr(study, field.name)}"
        for field in fields(study)
        if field.name not in shared and getattr(study, field.name) != getattr(default, field.name)
    ]
    return folder_name("_".join(["transformer_policy", study.preset, *parts]))


if __name__ == "__main__":
    sys.exit(main())
