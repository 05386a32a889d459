"""How close to the optimal controller does an agent come? Trains agents on linear-quadratic problems whose optimum is known.

The score is the relative excess cost, (cost - optimal cost) / optimal cost, of the deterministic policy: 0 is the best that any
controller can do, 1 is twice the optimal cost. The runs go to RUNS/NAME, with a report when they are done. A study can be stopped
at any time; the same command goes on where it stopped, and more seeds, agents or systems can be added later under the same name.

Examples:
    python experiments/control.py
    python experiments/control.py --agents td3 sac --replay prioritized --seeds 5
    python experiments/control.py --problem lqg --history 4
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from _checks import check_device, hint
from _command import Jobs, Machines, run_command
from _control_training import make_vector_env
from _hyperparameters import ACCEPTED, AgentOptions
from tyro.conf import arg

from rlopt.replay import REPLAYS
from rlopt.study import Task
from rlopt.study.command_line import parse_arguments
from rlopt.study.grid import folder_name
from rlopt_envs.presets import PRESETS
from rlopt_envs.riccati import discounted_cost, policy_value_matrix, spectral_radius

AGENTS = ("sac", "td3", "ddpg")
ENV_IDS = {"lqr": "rlopt/LQR-v0", "lqg": "rlopt/LQG-v0"}

# Of the optimal action at the start, where the limit of actions lies: far enough that it hardly costs anything, and near enough
# that an agent which tries everything within it stays where control matters.
_DEVIATIONS = 2.5

# Found on the double integrator. Short episodes bring the agent back to where control matters before a bad policy has carried it
# far away, and a small memory forgets what happened there.
_TUNED = AgentOptions(
    total_timesteps=12_000,
    learning_rate=1e-3,
    batch_size=128,
    buffer_size=4000,
    learning_starts=200,
    train_freq=1,
    gradient_steps=1,
    net_arch=(64, 64),
    tau=0.02,
)
TUNED: Mapping[str, AgentOptions] = {
    "sac": _TUNED,
    "td3": dataclasses.replace(_TUNED, action_noise=0.1),
    "ddpg": dataclasses.replace(_TUNED, action_noise=0.1),
}


@dataclass(frozen=True)
class ControlStudy:
    """Options of the comparison."""

    agents: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("sac",)
    """Agents to compare, the baseline first: sac, td3, ddpg."""
    problem: Literal["lqr", "lqg"] = "lqr"
    """lqr: the agent sees the state. lqg: it sees noisy measurements, and is compared with a controller that filters them."""
    system: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("double_integrator",)
    """What is controlled: double_integrator, inverted_pendulum, mass_spring_damper_chain, aircraft_longitudinal."""
    replay: str = "uniform"
    """Replay of all agents: uniform, combined, emphasize_recent, greedy, prioritized, reverse, introspective."""
    discount: float = 0.99
    """Weight of the next cost, in (0, 1); the agents learn with the same one unless --gamma is given."""
    action_limit: Annotated[
        float | None, arg(metavar="FLOAT", help_behavior_hint="(default: 2.5 deviations of optimal actions)")
    ] = None
    """Largest input in each direction, > 0."""
    history: int = 1
    """Observations that the agent sees at a time, the newest last, >= 1."""
    episode_steps: int = 25
    """Steps of an episode in training, > 0; evaluations go on until what is left does not count."""
    learning_rate_decay: bool = True
    """Whether the learning rate falls linearly to 0 over the run."""
    activation: Literal["silu", "tanh", "relu"] = "silu"
    """Activation function of all networks; smooth ones fit quadratic values better."""
    seeds: int = 5
    """Runs of each agent on each system, > 0; seeds 0, 1, ..."""
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
    eval_episodes: int = 256
    """Episodes of an evaluation, > 1, all at once."""
    device: str = "cpu"
    """Where networks live: cpu, cuda, ..."""
    options: Annotated[AgentOptions, arg(name="")] = field(default_factory=AgentOptions)
    """Hyper-parameters of the agents."""

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs", "num_evaluations", "history", "episode_steps", "action_limit"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.eval_episodes < 2:
            raise ValueError(f"eval_episodes must be > 1, got {self.eval_episodes}")
        if not 0 < self.discount < 1:
            raise ValueError(f"discount must be in (0, 1), got {self.discount}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        known = {"agents": AGENTS, "system": tuple(PRESETS), "replay": tuple(name for name in REPLAYS if name != "hindsight")}
        for option, allowed in known.items():
            given = getattr(self, option)
            names = given if isinstance(given, tuple) else (given,)
            doubles = [name for name in names if names.count(name) > 1]
            if doubles or not names:
                raise ValueError(f"{option} must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
            for name in names:
                if name not in allowed:
                    raise ValueError(f"{option} must be among {', '.join(allowed)}, got {name}{hint(name, allowed)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    return run_command(prepare, arguments)


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study."""
    study = parse_arguments(ControlStudy, arguments, description=__doc__)
    refuse_options_without_effect(study)
    check_device(study.device)
    return {
        "function": f"{Path(__file__).resolve().parent / '_control_training.py'}:train",
        "tasks": [make_task(study, system) for system in study.system],
        "variants": {agent: variant(study, agent) for agent in study.agents},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": study.agents[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def make_task(study: ControlStudy, system: str) -> Task:
    """Return the task of a system, with lines for 5 % above the optimum and, where its cost is finite, for doing nothing."""
    total_timesteps = study.options.total_timesteps or _TUNED.total_timesteps
    assert total_timesteps is not None
    options: dict[str, Any] = {"system": system, "discount": study.discount}
    config = {"env_id": ENV_IDS[study.problem], "env_options": options}
    problem = make_vector_env(config, 1).unwrapped
    widest = np.asarray(problem.single_action_space.high, np.float64)  # six deviations, see the environment
    options["action_limit"] = study.action_limit or (_DEVIATIONS / 6.0 * widest).tolist()
    config |= {
        "history": study.history,
        "episode_steps": study.episode_steps,
        "learning_rate_decay": study.learning_rate_decay,
        "activation": study.activation,
        "total_timesteps": total_timesteps,
        "num_evaluations": study.num_evaluations,
        "eval_episodes": study.eval_episodes,
        "device": study.device,
        "replay": study.replay,
        "replay_options": dataclasses.asdict(REPLAYS[study.replay].config_class()),
    }
    first = math.ceil(total_timesteps / study.num_evaluations)
    lines = {"5 % above the optimum": 0.05}
    idle = excess_of_doing_nothing(problem)
    if idle is not None:
        lines["no control"] = idle
    return Task(
        f"{study.problem}_{system}",
        total_timesteps,
        config,
        goal="minimize",
        score_name="relative excess cost",
        log_scale=True,
        references={name: [(first, height), (max(total_timesteps, first + 1), height)] for name, height in lines.items()},
    )


def variant(study: ControlStudy, agent: str) -> dict[str, Any]:
    """Return the options of an agent: the tuned ones, and those given that it has."""
    options = {"gamma": study.discount} | TUNED[agent].given() | study.options.given()
    options = {name: value for name, value in options.items() if name in ACCEPTED[agent]}
    del options["total_timesteps"]
    return {"agent": agent, "options": options}


def excess_of_doing_nothing(problem: Any) -> float | None:
    """Return the relative excess cost of no control at all, None where it is infinite."""
    system = problem.system
    if math.sqrt(problem.discount) * spectral_radius(system.A) >= 1:
        return None
    value_matrix = policy_value_matrix(
        system.A, system.B, problem.Q, problem.R, np.zeros_like(problem.optimal_gain), problem.discount
    )
    cost = discounted_cost(value_matrix, system.noise_cov, problem.discount, problem.initial_covariance)
    return cost / problem.optimal_cost - 1.0


def refuse_options_without_effect(study: ControlStudy) -> None:
    """Refuse hyper-parameters that no agent of the study has.

    Raises:
        ValueError: Naming the option.
    """
    for option in study.options.given():
        if not any(option in ACCEPTED[agent] for agent in study.agents):
            having = [agent for agent, accepted in ACCEPTED.items() if option in accepted]
            raise ValueError(
                f"{option} has no effect: it belongs to {', '.join(having)}, the agents here are {', '.join(study.agents)}; "
                "drop the option"
            )


def default_name(study: ControlStudy) -> str:
    """Return a name that tells what differs from the default, so that different studies get different folders."""
    shared = ("agents", "seeds", "jobs", "machines", "output", "name", "options", "system", "problem")
    default = ControlStudy()
    changed = {entry.name: getattr(study, entry.name) for entry in dataclasses.fields(study) if entry.name not in shared}
    changed = {name: value for name, value in changed.items() if value != getattr(default, name)} | study.options.given()
    parts = [f"{name}={'x'.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in changed.items()]
    return "_".join([study.problem, *study.system, *parts])


if __name__ == "__main__":
    sys.exit(main())
