"""Which optimizer trains an agent best? Trains agents with several optimizers and compares them with statistics.

Everything but the optimizer is the same in all runs of a task. The runs go to RUNS/NAME, with a report when they are done, which
tells scores and costs: CPU seconds of the learning phases, and bytes of the optimizers' states. A study can be stopped at any
time; the same command goes on where it stopped, and more seeds or optimizers can be added later under the same name. A training
that diverges ends early, and its remaining evaluations count as those of random actions.

With --search the learning rates of the networks that get the optimizer are tuned for each optimizer and task, up to 30 times
smaller or larger than the default or the given ones.

Examples:
    python experiments/rl_optimizers.py --preset quick
    python experiments/rl_optimizers.py --optimizers adam sam locoprop_closed --learning-rates adam=3e-4 --seeds 10
    python experiments/rl_optimizers.py --preset pendulum --agents td3 sac --optimizers adam muon --apply-to critic
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import tyro
from _checks import check_device, choose_agent, hint, inspect_env
from _command import Jobs, Machines, parse_with_presets, run_command
from _comparing_optimizers import given_numbers, searched_rate
from _hyperparameters import ACCEPTED, FAILED_RETURN, QUICKSTART, REFERENCE_SCORES, TUNED, TUNED_OTHER, AgentOptions
from _rl_optimizers_training import COSTS, NETWORKS, OPTIMIZERS, ended_diverged
from _searching import SearchOptions
from rich.console import Console
from torch import nn
from tyro.conf import arg

from rlopt.optim import build_optimizer
from rlopt.study import Task
from rlopt.study.grid import folder_name
from rlopt.study.results import read_results

PresetName = Literal["cartpole", "acrobot", "pendulum", "quick"]
Part = Literal["both", "critic", "actor"]

AGENTS = ("dqn", "td3", "sac", "ddpg")


@dataclass(frozen=True)
class LearnerOptions(AgentOptions):
    """Hyper-parameters of the agents; optimizers have their learning rates."""

    learning_rate: tyro.conf.Suppress[tyro.conf.Fixed[float | None]] = None
    """No option: see `learning_rates`."""


@dataclass(frozen=True)
class RlOptimizersStudy:
    """Options of the comparison."""

    preset: PresetName = "cartpole"
    """Agents and environments with hyper-parameters that suit Adam; every option that is given wins.
    cartpole, acrobot: DQN. pendulum: TD3. quick: DQN on CartPole-v1 with three optimizers in less than a minute."""
    agents: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("dqn",)
    """Agents to train, each in every environment that it can act in: dqn (discrete actions), td3, sac, ddpg (continuous ones)."""
    env_id: Annotated[tuple[str, ...], arg(metavar="ID [ID ...]")] = ("CartPole-v1",)
    """Gymnasium environments."""
    optimizers: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = (
        "adam",
        "rmsprop",
        "momentum",
        "sam",
        "locoprop_closed",
    )
    """Optimizers to compare: sgd, momentum, nesterov, adam, adamw, adamp, rmsprop, rmsprop_tf (conventions of TensorFlow),
    adagrad, lamb, lars, sgdp, muon (products in float32), soap, shampoo, kfac, agc (clipping before momentum), sam (around adam),
    lbfgs, locoprop_m (matching losses, 10 local iterations), locoprop_s (squared losses), locoprop_closed (squared losses in
    closed form). adamp, lars, sgdp, soap and shampoo come with rlopt[optim]. The baseline of the comparison is adam if it is
    there, else the first."""
    learning_rates: Annotated[tuple[str, ...], arg(metavar="NAME=RATE [NAME=RATE ...]")] = ()
    """Learning rates of optimizers, > 0, in place of their defaults. NAME.q=RATE, NAME.critic=RATE and NAME.actor=RATE are for
    one network only, the one of dqn or one of those of the other agents. That of muon is of its matrices; that of locoprop_closed
    multiplies gamma, which is 1 per row of a batch."""
    tuning: Annotated[SearchOptions, arg(name="")] = field(default_factory=SearchOptions)
    """Search of the learning rates"""
    apply_to: Part = "both"
    """Networks that get the optimizer; the other one keeps adam. The network of dqn counts as a critic."""
    seeds: int = 5
    """Runs of each optimizer with each agent and environment, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
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
    options: Annotated[LearnerOptions, arg(name="")] = field(default_factory=LearnerOptions)
    """Hyper-parameters of the agents"""

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "num_evaluations", "eval_episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        for option in ("agents", "env_id", "optimizers"):
            names = getattr(self, option)
            doubles = [name for name in names if names.count(name) > 1]
            if doubles or not names:
                raise ValueError(f"{option} must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
        for name in self.agents:
            if name not in AGENTS:
                raise ValueError(f"agents must be among {', '.join(AGENTS)}, got {name}{hint(name, AGENTS)}")
        for name in self.optimizers:
            if name == "scale_invariant_sgd":
                raise ValueError("optimizers must not hold scale_invariant_sgd: the networks of the agents are not scale invariant")
            if name not in OPTIMIZERS:
                raise ValueError(f"optimizers must be among {', '.join(OPTIMIZERS)}, got {name}{hint(name, OPTIMIZERS)}")
        for key in given_numbers("learning_rates", self.learning_rates):
            network = key.partition(".")[2]
            if "." in key and network not in NETWORKS:
                raise ValueError(f"learning_rates must name a network among {', '.join(NETWORKS)} after the dot, got {key}")

    @property
    def moved_networks(self) -> list[str]:
        """The networks that get the optimizers, among those of the agents."""
        pair = [network for network in ("critic", "actor") if self.apply_to in ("both", network)]
        return [*(["q"] if "dqn" in self.agents else []), *(pair if set(self.agents) != {"dqn"} else [])]


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, RlOptimizersStudy]] = {
    "cartpole": ("DQN balances a pole", RlOptimizersStudy()),
    "acrobot": ("DQN swings up a double pendulum", RlOptimizersStudy(preset="acrobot", env_id=("Acrobot-v1",))),
    "pendulum": (
        "TD3 swings up a pendulum",
        RlOptimizersStudy(preset="pendulum", agents=("td3",), env_id=("Pendulum-v1",)),
    ),
    "quick": (
        "a few thousand steps of DQN",
        RlOptimizersStudy(
            preset="quick", optimizers=("adam", "momentum", "locoprop_closed"), seeds=2, num_evaluations=5, eval_episodes=5
        ),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    prepared: dict[str, Any] = {}

    def remember(words: Sequence[str]) -> dict[str, Any]:
        prepared.update(prepare(words))
        return prepared

    status = run_command(remember, arguments)
    if status in (0, 1):
        for line in diverged_runs(prepared["folder"]):
            Console().print(line, markup=False, highlight=False, soft_wrap=True)
    return status


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study."""
    study = parse(arguments)
    tasks = make_tasks(study)
    refuse_options_without_effect(study)
    check_device(study.device)
    check_packages(study.optimizers)
    variants = {name: variant(study, name) for name in study.optimizers}
    search = study.tuning.arguments(FAILED_RETURN)
    return {
        "function": f"{Path(__file__).resolve().parent / '_rl_optimizers_training.py'}:train",
        "tasks": tasks,
        "variants": variants if search is None else lambda task: with_ranges(study, task, variants),
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "adam" if "adam" in study.optimizers else study.optimizers[0],
        "jobs": study.jobs,
        "machines": study.machines,
        "search": search,
    }


def parse(arguments: Sequence[str]) -> RlOptimizersStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(RlOptimizersStudy, PRESETS, "cartpole", arguments, __doc__)


def make_tasks(study: RlOptimizersStudy) -> list[Task]:
    """Return a task for each agent in each environment that it can act in.

    Raises:
        ValueError: If an environment cannot be made or fits no agent, or an agent no environment.
    """
    spaces = {env_id: inspect_env(env_id, ["uniform"]) for env_id in study.env_id}
    pairs = [(agent, env_id) for agent in study.agents for env_id, space in spaces.items() if can_act(agent, env_id, space)]
    for env_id in study.env_id:
        if env_id not in {place for _, place in pairs}:
            raise ValueError(f"env_id must fit one of the agents ({', '.join(study.agents)}), got {env_id}")
    for agent in study.agents:
        if agent not in {learner for learner, _ in pairs}:
            raise ValueError(
                f"agents must be able to act in one of the environments ({', '.join(study.env_id)}), got {agent}; give --env-id"
            )
    return [make_task(study, agent, env_id) for agent, env_id in pairs]


def can_act(agent: str, env_id: str, space: gym.Space[Any]) -> bool:
    """Whether an agent is for the actions of an environment."""
    return (choose_agent("auto", env_id, space) == "dqn") == (agent == "dqn")


def make_task(study: RlOptimizersStudy, agent: str, env_id: str) -> Task:
    """Return the task of an agent in an environment, with the hyper-parameters of the preset and those given."""
    table = QUICKSTART if study.preset == "quick" else TUNED
    options = table.get(env_id, TUNED_OTHER[agent]).given() | study.options.given()
    options = {name: value for name, value in options.items() if name in ACCEPTED[agent]}
    del options["learning_rate"]
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
    return Task(f"{agent}_{env_id}", total_timesteps, config, low, high, costs=COSTS)


def variant(study: RlOptimizersStudy, name: str) -> dict[str, Any]:
    """Return the optimizer and learning rate of each network; the same for all agents, so that others can be added later."""
    given = given_numbers("learning_rates", study.learning_rates)
    kept = {"critic": "actor", "actor": "critic"}.get(study.apply_to)
    networks = {}
    for network in NETWORKS:
        chosen = "adam" if network == kept else name
        rate = given.get(f"{chosen}.{network}", given.get(chosen, getattr(OPTIMIZERS[chosen], network)))
        networks[network] = {"optimizer": chosen, "lr": rate}
    return {"networks": networks}


def with_ranges(study: RlOptimizersStudy, task: Task, variants: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the variants with a range for the rate of each network that the agent of a task has and that gets the optimizer."""
    own = {"q"} if task.config["agent"] == "dqn" else {"critic", "actor"}
    found = {}
    for name, options in variants.items():
        networks = {
            network: {**chosen, "lr": searched_rate(chosen["lr"])} if network in own.intersection(study.moved_networks) else chosen
            for network, chosen in options["networks"].items()
        }
        found[name] = {"networks": networks}
    return found


def check_packages(optimizers: Sequence[str]) -> None:
    """Make each optimizer once.

    Raises:
        ValueError: If a package for one is missing.
    """
    for name in optimizers:
        try:
            build_optimizer(OPTIMIZERS[name].spec, nn.Linear(2, 2))
        except ImportError as error:
            raise ValueError(f"optimizers must not hold {name} here: {error}") from None


def refuse_options_without_effect(study: RlOptimizersStudy) -> None:
    """Refuse hyper-parameters that no agent of the study has, and choices for networks or optimizers that take no part.

    Raises:
        ValueError: Naming the option.
    """
    study.tuning.check()
    for option in study.options.given():
        if not any(option in ACCEPTED[agent] for agent in study.agents):
            having = [agent for agent in AGENTS if option in ACCEPTED[agent]]
            raise ValueError(
                f"{option} has no effect: it belongs to {', '.join(having)}, the agents here are {', '.join(study.agents)}; "
                "drop the option"
            )
    if study.apply_to != "both" and set(study.agents) == {"dqn"}:
        raise ValueError("apply_to has no effect: dqn has a single network; drop the option")
    if study.apply_to == "actor" and "dqn" in study.agents:
        raise ValueError("apply_to must be both or critic with dqn, which has no actor, got actor")
    refuse_rates_without_effect(study)


def refuse_rates_without_effect(study: RlOptimizersStudy) -> None:
    """Refuse learning rates that no network of the study uses.

    Raises:
        ValueError: Naming the rate.
    """
    used: Mapping[str, set[str]] = {name: set(study.moved_networks) for name in study.optimizers}
    if study.apply_to != "both":
        used = {"adam": set(), **used}
        used["adam"].add("actor" if study.apply_to == "critic" else "critic")
    given = given_numbers("learning_rates", study.learning_rates)
    for key in given:
        name, _, network = key.partition(".")
        if name not in used:
            raise ValueError(
                f"learning_rates has no effect for {name}: the optimizers are {', '.join(study.optimizers)}"
                f"{hint(name, study.optimizers)}; drop it"
            )
        if network and network not in used[name]:
            raise ValueError(
                f"learning_rates has no effect for {key}: the networks with {name} are {', '.join(sorted(used[name]))}; drop it"
            )
        if not network and all(f"{name}.{one}" in given for one in used[name]):
            raise ValueError(f"learning_rates has no effect for {name}: each of its networks has a rate of its own; drop it")


def diverged_runs(folder: Path) -> list[str]:
    """Return a line for each task and optimizer of a study with finished runs that diverged."""
    results = read_results(folder)
    lines = []
    for task in results.reported_tasks():
        for name in results.variants(task.name):
            ends = [ended_diverged(found.folder) for found in results.finished(task.name, name)]
            if any(ends):
                lines.append(f"Diverged: {sum(ends)} of {len(ends)} runs of {name} on {task.name}")
    return lines


def changes(study: RlOptimizersStudy) -> dict[str, Any]:
    """Return the options that determine results and differ from the preset."""
    default = PRESETS[study.preset][1]
    given = study.options.given() | study.tuning.changes()
    own = {"preset", "optimizers", "seeds", "jobs", "machines", "output", "name", "options", "tuning"}
    values = {entry.name: getattr(study, entry.name) for entry in dataclasses.fields(study) if entry.name not in own}
    return {option: value for option, value in values.items() if value != getattr(default, option)} | given


def default_name(study: RlOptimizersStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    parts = [
        f"{option}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for option, value in changes(study).items()
    ]
    return folder_name("_".join(["rl_optimizers", study.preset, *parts]))


if __name__ == "__main__":
    sys.exit(main())
