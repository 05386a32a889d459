"""Which replay learns best? Trains one agent with several replay strategies and compares them with statistics.

The runs go to RUNS/NAME, with a report when they are done. A study can be stopped at any time; the same command goes on
where it stopped, and more seeds, replays or environments can be added later under the same name.

With --search the learning rate is tuned for each replay and environment, up to ten times smaller or larger than that of the preset
(five times for other agents than DQN), and so are the main options of the replays, unless they are given: alpha and beta of
prioritized, mix of reverse and introspective, eta of emphasize_recent, n_sampled_goal of hindsight replay.

Examples:
    python experiments/replay.py --preset quickstart
    python experiments/replay.py --env-id LunarLander-v3 --replays uniform prioritized reverse introspective --seeds 10
    python experiments/replay.py --replays uniform prioritized --search 16 --pruner median
    python experiments/replay.py --env-id Pendulum-v1 --agent sac --replays uniform introspective --introspective.mix 0.3
    python experiments/replay.py --seeds 10 --stack-seeds 10
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import AgentName, check_device, choose_agent, hint, inspect_env
from _command import Jobs, Machines, parse_with_presets, run_command
from _hyperparameters import ACCEPTED, FAILED_RETURN, PAPER, QUICKSTART, REFERENCE_SCORES, TUNED, TUNED_OTHER, AgentOptions
from _replay_ranges import with_ranges
from _searching import SearchOptions
from tyro.conf import arg

from rlopt.replay import (
    REPLAYS,
    EmphasizeRecentConfig,
    HindsightConfig,
    IntrospectiveConfig,
    PrioritizedConfig,
    ReverseConfig,
)
from rlopt.study import Task
from rlopt.study.grid import folder_name

PresetName = Literal["tuned", "paper", "quickstart"]


@dataclass(frozen=True)
class ReplayStudy:
    """Options of the comparison."""

    preset: PresetName = "tuned"
    """Where the hyper-parameters come from; every option that is given wins over it.
    tuned: good values for uniform replay. paper: those released with introspective experience replay.
    quickstart: CartPole-v1 and Acrobot-v1 in a few minutes."""
    env_id: Annotated[tuple[str, ...], arg(metavar="ID [ID ...]")] = ("CartPole-v1",)
    """Gymnasium environments."""
    replays: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = (
        "uniform",
        "prioritized",
        "reverse",
        "introspective",
    )
    """Replays to compare, the baseline first unless uniform is among them: uniform, combined, emphasize_recent, greedy,
    prioritized, hindsight, reverse, introspective."""
    agent: AgentName = "auto"
    """The agent; auto takes DQN for discrete actions and TD3 for continuous ones."""
    seeds: int = 5
    """Runs of each replay on each environment, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Processes at a time, > 0, each with one thread and one run, or as many as --stack-seeds says."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""
    num_evaluations: int = 20
    """Evaluations of a run, > 0, at equal distances."""
    eval_episodes: int = 10
    """Episodes of an evaluation, > 0, with the deterministic policy."""
    device: str = "cpu"
    """Where networks live: cpu, cuda, ..."""
    fast: bool = False
    """Whether agents learn and act in their fast form: the same up to rounding, in less time; for perceptrons on vectors."""
    stack_seeds: int = 1
    """Seeds of a replay and environment that one process trains together, > 0; needs --fast and implies it."""
    tuning: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)
    """Search of the learning rate and of the main options of each replay"""
    options: Annotated[AgentOptions, arg(name="")] = field(default_factory=AgentOptions)
    """Hyper-parameters of the agent."""
    prioritized_lr_factor: float = 1.0
    """Prioritized replay learns with the learning rate times this, > 0; its authors suggest 0.25."""
    prioritized: PrioritizedConfig = field(default_factory=PrioritizedConfig)
    """Prioritized replay"""
    reverse: ReverseConfig = field(default_factory=ReverseConfig)
    """Reverse replay"""
    introspective: IntrospectiveConfig = field(default_factory=IntrospectiveConfig)
    """Introspective replay"""
    emphasize_recent: EmphasizeRecentConfig = field(default_factory=EmphasizeRecentConfig)
    """Replay that emphasizes recent experience"""
    hindsight: HindsightConfig = field(default_factory=HindsightConfig)
    """Hindsight replay"""

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "num_evaluations", "eval_episodes", "stack_seeds", "prioritized_lr_factor"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        for option, names in (("replays", self.replays), ("env_id", self.env_id)):
            doubles = [name for name in names if names.count(name) > 1]
            if doubles or not names:
                raise ValueError(f"{option} must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.replays:
            if name not in REPLAYS:
                raise ValueError(f"replays must be among {', '.join(REPLAYS)}, got {name}{hint(name, REPLAYS)}")


# Name -> what it is, and the options that it changes.
PRESETS: dict[PresetName, tuple[str, ReplayStudy]] = {
    "tuned": ("hyper-parameters that suit uniform replay", ReplayStudy()),
    "paper": ("hyper-parameters released with introspective experience replay", ReplayStudy(preset="paper")),
    "quickstart": (
        "a small comparison for two cores",
        ReplayStudy(
            preset="quickstart",
            env_id=("CartPole-v1", "Acrobot-v1"),
            seeds=4,
            num_evaluations=6,
            eval_episodes=5,
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare, arguments)


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study."""
    study = parse(arguments)
    tasks = [make_task(study, env_id) for env_id in study.env_id]
    refuse_options_without_effect(study, [str(task.config["agent"]) for task in tasks])
    check_device(study.device)
    variants = {name: variant(study, name) for name in study.replays}
    search = study.tuning.arguments(FAILED_RETURN)

    def searched(task: Task) -> dict[str, dict[str, Any]]:
        return {name: with_ranges(options, str(task.config["agent"])) for name, options in variants.items()}

    place, stacked = Path(__file__).resolve().parent / "_training.py", {}
    if study.stack_seeds > 1:
        stacked = {"stacked_function": f"{place}:train_stacked", "stack_seeds": study.stack_seeds}
    return {
        "function": f"{place}:train",
        "tasks": tasks,
        "variants": variants if search is None else searched,
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "uniform" if "uniform" in study.replays else study.replays[0],
        "jobs": study.jobs,
        "machines": study.machines,
        "search": search,
        **stacked,
    }


def parse(arguments: Sequence[str]) -> ReplayStudy:
    """Read the command line; what is not given comes from the preset."""
    study = parse_with_presets(ReplayStudy, PRESETS, "tuned", arguments, __doc__)
    return dataclasses.replace(study, fast=True) if study.stack_seeds > 1 else study


def make_task(study: ReplayStudy, env_id: str) -> Task:
    """Return the task of an environment, with the hyper-parameters of the preset and those given."""
    action_space = inspect_env(env_id, study.replays)
    agent = choose_agent(study.agent, env_id, action_space)
    options = preset_options(study.preset, env_id, agent).given()
    options = {name: value for name, value in options.items() if name in ACCEPTED[agent]}
    options |= {name: value for name, value in study.options.given().items() if name in ACCEPTED[agent]}
    total_timesteps = options.pop("total_timesteps")
    low, high = REFERENCE_SCORES.get(env_id, (None, None))
    config = {
        "env_id": env_id,
        "agent": agent,
        "total_timesteps": total_timesteps,
        "num_evaluations": study.num_evaluations,
        "eval_episodes": study.eval_episodes,
        "device": study.device,
        "options": options,
    }
    if study.fast:
        config["fast"] = True
    return Task(env_id, total_timesteps, config, low, high)


def variant(study: ReplayStudy, name: str) -> dict[str, Any]:
    """Return the options of a replay."""
    options = dataclasses.asdict(getattr(study, name, None) or REPLAYS[name].config_class())
    if options.get("rescore_after") == IntrospectiveConfig.rescore_after:
        del options["rescore_after"]  # studies that were begun before there was this option go on
    factor = study.prioritized_lr_factor if name == "prioritized" else 1.0
    return {"replay": name, "replay_options": options, "learning_rate_factor": factor}


def preset_options(preset: PresetName, env_id: str, agent: str) -> AgentOptions:
    """Return the hyper-parameters of a preset for an environment.

    Raises:
        ValueError: If the preset has none for it.
    """
    table = {"tuned": TUNED, "paper": PAPER, "quickstart": QUICKSTART}[preset]
    if env_id in table:
        return table[env_id]
    if preset == "tuned":
        return TUNED_OTHER[agent]
    raise ValueError(f"env_id must be one of {', '.join(table)} with preset {preset}, got {env_id}; use preset tuned")


def refuse_options_without_effect(study: ReplayStudy, agents: Sequence[str]) -> None:
    """Refuse options for a replay or an agent that takes no part.

    Raises:
        ValueError: Naming the option.
    """
    study.tuning.check()
    if study.stack_seeds > 1 and study.tuning.search is not None:
        raise ValueError("stack_seeds must be 1 with search, whose trials have one seed each; drop one of the two options")
    for name in REPLAYS:
        if name not in study.replays and hasattr(study, name):
            changed = _changes(getattr(study, name))
            if changed:
                raise ValueError(
                    f"{name}.{next(iter(changed))} has no effect: {name} is not among the replays "
                    f"({', '.join(study.replays)}); add it or drop the option"
                )
    if study.introspective.interleave:
        raise ValueError("introspective.interleave has no effect: a run has a single environment; drop the option")
    if study.prioritized_lr_factor != 1.0 and "prioritized" not in study.replays:
        raise ValueError("prioritized_lr_factor has no effect: prioritized is not among the replays; drop the option")
    for option in study.options.given():
        if not any(option in ACCEPTED[agent] for agent in agents):
            having = [agent for agent, accepted in ACCEPTED.items() if option in accepted]
            raise ValueError(
                f"{option} has no effect: it belongs to {', '.join(having)}, "
                f"the agent here is {', '.join(sorted(set(agents)))}; drop the option"
            )


def default_name(study: ReplayStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    default = PRESETS[study.preset][1]
    parts: list[str] = [study.preset]
    if study.env_id != default.env_id or study.preset != "quickstart":
        parts += [folder_name(env_id) for env_id in study.env_id]
    if study.agent != "auto":
        parts.append(study.agent)
    changed = {
        name: getattr(study, name)
        for name in ("num_evaluations", "eval_episodes", "device", "fast", "prioritized_lr_factor")
        if getattr(study, name) != getattr(default, name)
    }
    changed |= study.options.given() | study.tuning.changes()
    for name in study.replays:
        if hasattr(study, name):
            changed |= {f"{name}.{option}": value for option, value in _changes(getattr(study, name)).items()}
    parts += [f"{name}={_text(value)}" for name, value in changed.items()]
    return "_".join(parts)


def _changes(config: Any) -> dict[str, Any]:
    default = dataclasses.asdict(type(config)())
    return {name: value for name, value in dataclasses.asdict(config).items() if value != default[name]}


def _text(value: Any) -> str:
    return "x".join(str(one) for one in value) if isinstance(value, tuple | list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
