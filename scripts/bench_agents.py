"""Measure agents: what an update costs, and how many steps of an environment they do in a second of CPU time.

Stable-Baselines3, SBX (the same in JAX), a bare loop in PyTorch, rlopt's agents, and their fast form take turns in one process, so
that a machine that slows down slows all. Hyper-parameters are equal, all warm up first, which compiles what is compiled. Numbers
are medians over rounds; ratios are those within a round, with their range. The floor of an update is its products of matrices
alone. Updates are those of one call of `train`; SBX runs them in one compiled loop, and its DQN does not clip gradients.

Where oneDNN computes products in full float32, Stable-Baselines3 has a second row with it
(`torch.set_float32_matmul_precision("medium")`); on processors on which this rounds to bfloat16 the row is left out. SBX is
measured where it is installed, on the CPU only. On an accelerator seconds are those of the clock, not of the CPU.

Commands:
    scripts/bench agents
    scripts/bench agents --quick
    scripts/bench agents --tasks sac_pendulum --json agents.json
    scripts/bench agents --device cuda
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
import tyro
from _bare_loop import BareLoop
from _bench import ENVIRONMENT_STEP, Comparison, Work, clock_of, take_turns, write_json
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.noise import NormalActionNoise
from tyro.conf import arg

from rlopt import agents

Agent = Any
OFF_POLICY = {"learning_starts": 500, "buffer_size": 20_000, "gamma": 0.99}
_ZOO = {
    "learning_rate": 2.3e-3, "batch_size": 64, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128,
    "exploration_fraction": 0.01, "exploration_final_eps": 0.04, "net_arch": [256, 256],
}  # fmt: skip
_EVERY_STEP = {
    "learning_rate": 1e-3, "batch_size": 64, "target_update_interval": 500, "train_freq": 1, "gradient_steps": 1,
    "exploration_fraction": 0.01, "exploration_final_eps": 0.05, "net_arch": [64, 64],
}  # fmt: skip
_CONTINUOUS = {
    "learning_rate": 1e-3, "batch_size": 256, "tau": 0.005, "train_freq": 1, "gradient_steps": 1, "net_arch": [256, 256],
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """An agent in an environment."""

    title: str
    kind: str
    env_id: str
    options: dict[str, Any]
    num_steps: int  # of a round
    in_quick: bool = True


TASKS = {
    "dqn_every_step": Task("DQN 2x64, CartPole, an update each step", "DQN", "CartPole-v1", _EVERY_STEP, 2000),
    "dqn_zoo": Task("DQN 2x256, CartPole, 128 updates in 256 steps", "DQN", "CartPole-v1", _ZOO, 2560),
    "td3_pendulum": Task("TD3 2x256, Pendulum", "TD3", "Pendulum-v1", _CONTINUOUS, 300, in_quick=False),
    "td3_cheetah": Task("TD3 2x256, HalfCheetah", "TD3", "HalfCheetah-v5", _CONTINUOUS, 200),
    "sac_pendulum": Task("SAC 2x256, Pendulum", "SAC", "Pendulum-v1", _CONTINUOUS, 200),
}
PEERS = ("Stable-Baselines3", "Stable-Baselines3, oneDNN", "SBX", "bare loop", "rlopt")
OURS = ("rlopt, fast",)
FLOOR = "floor: products of matrices"
EXACT = 1e-5  # relative error of a product in float32; bfloat16 has 3e-3


@dataclass(frozen=True)
class Config:
    """What to measure."""

    tasks: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ()
    """Which agents on which environments; none: all. dqn_every_step (2x64, batch 64, an update each step), dqn_zoo (2x256, 128
    updates after 256 steps), td3_pendulum (not in --quick), td3_cheetah, sac_pendulum (2x256, batch 256, an update each step)."""
    num_rounds: int = 7
    """Rounds of each, > 2."""
    quick: bool = False
    """Three rounds of a seventh of the steps."""
    device: str = "cpu"
    """Where networks live: cpu or cuda."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers go, too."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown:
            raise ValueError(f"tasks must be among {', '.join(TASKS)}, got {unknown[0]}")
        if self.num_rounds < 3:
            raise ValueError(f"num_rounds must be > 2, got {self.num_rounds}")
        clock_of(self.device)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The tasks to measure."""
        return self.tasks or tuple(name for name, task in TASKS.items() if task.in_quick or not self.quick)


class Contestant:
    """An agent or a loop that can be asked to learn for some steps, or to do some updates."""

    def __init__(self, who: str, task: Task, device: str, seed: int = 0) -> None:
        options = task.options | OFF_POLICY | {"device": device, "seed": seed}
        self._batch_size = options["batch_size"]
        self._precision = "medium" if who.endswith("oneDNN") else "highest"
        if who == "bare loop":
            self.agent: Any = BareLoop(task.kind, task.env_id, options)
            self._train, self._learn = self.agent.train, self.agent.learn
            return
        given = {name: value for name, value in options.items() if name != "net_arch"}
        env = gym.make(task.env_id)
        if task.kind == "TD3":
            assert env.action_space.shape is not None
            given["action_noise"] = NormalActionNoise(np.zeros(env.action_space.shape), 0.1 * np.ones(env.action_space.shape))
        if who == "rlopt, fast":
            given["fast"] = True
        network = {"net_arch": task.options["net_arch"]}
        self.agent = getattr(library_of(who), task.kind)("MlpPolicy", env, policy_kwargs=network, **given)
        self._train = lambda count: self.agent.train(gradient_steps=count, batch_size=self._batch_size)
        self._learn = lambda count: self.agent.learn(count, reset_num_timesteps=False, log_interval=10**9)

    def updates(self, count: int) -> None:
        """Learn from batches."""
        self._run(self._train, count)

    def steps(self, count: int) -> None:
        """Act and learn."""
        self._run(self._learn, count)

    def _run(self, work: Callable[[int], object], count: int) -> None:
        torch.set_float32_matmul_precision(self._precision)
        try:
            work(count)
        finally:
            torch.set_float32_matmul_precision("highest")


def library_of(who: str) -> Any:
    """Return the module with the agents' classes."""
    if who.startswith("Stable-Baselines3"):
        return stable_baselines3
    if who != "SBX":
        return agents
    # Read when JAX starts: one thread, as everywhere else.
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import sbx

    return sbx


def error_of_medium() -> float:
    """Relative error of a product of matrices with the precision "medium", against float64."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(256, 256, generator=generator) for _ in range(2))
    torch.set_float32_matmul_precision("medium")
    try:
        product = x @ w
    finally:
        torch.set_float32_matmul_precision("highest")
    exact = x.double() @ w.double()
    return float((product - exact).norm() / exact.norm())


def contestants(device: str) -> tuple[list[str], list[str]]:
    """Return who takes part, and a line for each who does not."""
    left_out = []
    if device != "cpu":
        left_out = [f"{who}: measured on the CPU only" for who in ("Stable-Baselines3, oneDNN", "SBX")]
    else:
        error = error_of_medium()
        if error > EXACT:
            left_out.append(f"Stable-Baselines3, oneDNN: rounds to bfloat16 here (relative error of a product {error:.1e})")
        if importlib.util.find_spec("sbx") is None:
            left_out.append("SBX: not installed (scripts/bench_peers.sh installs it)")
    names = [line.split(":")[0] for line in left_out]
    return [who for who in (*PEERS, *OURS) if who not in names], left_out


def floor(task: Task, device: str) -> Work:
    """Return the products of matrices of one update (two thirds of them where the actor learns every second time)."""
    env, kind, options = gym.make(task.env_id), task.kind, task.options
    assert env.observation_space.shape is not None
    obs, rows = env.observation_space.shape[0], options["batch_size"]
    space: Any = env.action_space
    act = int(space.n) if kind == "DQN" else space.shape[0]

    def passes(size: int, outputs: int) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        widths = [size, *options["net_arch"], outputs]
        values = [torch.randn(rows, width, device=device) for width in widths]
        weights = [torch.randn(before, after, device=device) for before, after in pairwise(widths)]
        grads = [torch.empty_like(weight) for weight in weights]

        def forward() -> None:
            for value, weight, out in zip(values, weights, values[1:], strict=False):
                torch.mm(value, weight, out=out)

        def through() -> None:
            for i in reversed(range(1, len(weights))):
                torch.mm(values[i + 1], weights[i].t(), out=values[i])

        def backward() -> None:
            through()
            for value, grad, out in zip(values, grads, values[1:], strict=False):
                torch.mm(value.t(), out, out=grad)

        return forward, through, backward

    if kind == "DQN":
        forward, _, backward = passes(obs, act)
        return lambda: (forward(), forward(), backward())  # type: ignore[func-returns-value, return-value]
    forward, _, backward = passes(obs, act if kind == "TD3" else 2 * act)
    critic, through, learn = passes(obs + act, 1)
    num_actor = [0]

    def work() -> None:
        forward()
        for _ in range(2):
            critic()
            critic()
            learn()
        num_actor[0] += 1
        if kind == "SAC" or num_actor[0] % 2 == 0:
            forward()
            for _ in range(1 if kind == "TD3" else 2):
                critic()
                through()
            backward()

    return work


def measure(task: Task, config: Config, say: Callable[[str], None]) -> list[Comparison]:
    """Return the times of updates and of steps of all contestants."""
    num_rounds, share = (3, 0.15) if config.quick else (config.num_rounds, 1.0)
    chunk = task.options["train_freq"]
    num_steps = max(int(task.num_steps * share) // chunk, 1) * chunk
    num_updates = max(int(num_steps * share), 20)
    taking_part = {}
    for who in contestants(config.device)[0]:
        say(f"{task.title}: {who} warms up")
        taking_part[who] = Contestant(who, task, config.device)
        taking_part[who].steps(OFF_POLICY["learning_starts"] + 2 * chunk)
        taking_part[who].updates(num_updates)
    products = floor(task, config.device)
    updates: dict[str, Work] = {who: lambda c=c: c.updates(num_updates) for who, c in taking_part.items()}  # type: ignore[misc]
    updates[FLOOR] = lambda: [products() for _ in range(num_updates)]
    steps: dict[str, Work] = {who: lambda c=c: c.steps(num_steps) for who, c in taking_part.items()}  # type: ignore[misc]
    clock, peers = "cpu" if config.device == "cpu" else "wall", tuple(who for who in PEERS if who in taking_part)
    found = []
    for unit, works, count in (("update", updates, num_updates), (ENVIRONMENT_STEP, steps, num_steps)):
        say(f"{task.title}: {unit}s")
        times = take_turns(works, num_rounds, device=config.device)
        seconds = {who: [value / count for value in values] for who, values in times.items()}
        limit = FLOOR if FLOOR in works else None
        what = f"{task.title}: {'update' if unit == 'update' else 'steps'}"
        found.append(Comparison(what, unit, seconds, OURS, peers, limit, clock))
    return found


def rows(name: str, update: Comparison, step: Comparison) -> list[list[str]]:
    """Return the rows of a task for the table."""
    found = []
    for who, times in update.seconds.items():
        to_peer = update.speed_up(PEERS[0], who)
        cells = [name, who, f"{1e6 * statistics.median(times):,.0f}", str(to_peer)]
        if who in step.seconds:
            cells += [f"{1 / statistics.median(step.seconds[who]):,.0f}", str(step.speed_up(who, PEERS[0]))]
        found.append(cells)
    return found


def main(config: Config) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 140)
    left_out = contestants(config.device)[1]
    seconds = "CPU s" if config.device == "cpu" else "s"
    table = Table("task", "who", "update, us", "relative (range)", f"steps / {seconds}", "relative (range)", box=None)
    comparisons: list[Comparison] = []
    with console.status("") as status:
        for name in config.chosen:
            comparisons += measure(TASKS[name], config, status.update)
            for cells in rows(name, *comparisons[-2:]):
                table.add_row(*cells)
    console.print(table)
    for line in left_out:
        console.print(f"left out: {line}")
    if config.json is not None:
        write_json(config.json, comparisons, settings=asdict(config), left_out=left_out)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
