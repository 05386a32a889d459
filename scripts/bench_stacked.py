"""Measure seeds that are trained together: what an update costs each of them, and their steps in a second of CPU time.

Stable-Baselines3 and rlopt's fast form, each one run (ten runs one after the other take ten times as long), and rlopt's
`StackedAgents` take turns in one process. Times are those of one update or step of one seed. The floor are the products of
matrices of one update.

Commands:
    scripts/bench stacked
    scripts/bench stacked --quick
    scripts/bench stacked --tasks dqn_every_step --num-seeds 40
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from _bench import ENVIRONMENT_STEP, Comparison, Work, take_turns, write_json
from bench_agents import FLOOR, OFF_POLICY, PEERS, TASKS, Contestant, Task, floor
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

from rlopt.agents import StackedAgents

SB3, FAST, STACKED = PEERS[0], "rlopt, fast", "rlopt, stacked"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    tasks: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("dqn_every_step", "dqn_zoo", "td3_cheetah")
    """Which agents on which environments, as in bench_agents."""
    num_seeds: int = 10
    """Agents that are trained together, > 0."""
    num_rounds: int = 7
    """Rounds of each, > 2."""
    quick: bool = False
    """Three rounds of a quarter of the steps, of dqn_every_step only."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers go, too."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown:
            raise ValueError(f"tasks must be among {', '.join(TASKS)}, got {unknown[0]}")
        for name, least in (("num_rounds", 3), ("num_seeds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be > {least - 1}, got {getattr(self, name)}")


class Together:
    """Agents of a task that are trained together."""

    def __init__(self, task: Task, num_seeds: int) -> None:
        self._stack = StackedAgents(lambda seed: Contestant(FAST, task, "cpu", seed).agent, range(num_seeds))
        self._batch_size, self._num_seeds = task.options["batch_size"], num_seeds

    def steps(self, count: int) -> None:
        """Act and learn."""
        self._stack.learn(count, reset_num_timesteps=False, log_interval=None)

    def updates(self) -> Callable[[int], None]:
        """Return what learns from batches."""
        agents = self._stack.agents
        together = type(agents[0]._fast)(agents)
        return lambda count: together.train(count, self._batch_size, range(self._num_seeds))


def measure(task: Task, config: Config, say: Callable[[str], None]) -> list[Comparison]:
    """Return the times of an update and of a step of a seed."""
    num_rounds, share = (3, 0.25) if config.quick else (config.num_rounds, 1.0)
    chunk = task.options["train_freq"]
    num_steps = max(int(task.num_steps * share) // chunk, 1) * chunk
    num_updates = max(int(num_steps * share), 20)
    say(f"{task.title}: warms up")
    alone = {who: Contestant(who, task, "cpu") for who in (SB3, FAST)}
    together = Together(task, config.num_seeds)
    for one in (*alone.values(), together):
        one.steps(OFF_POLICY["learning_starts"] + 2 * chunk)
    of = config.num_seeds
    # A round of the stack does as many steps in all as one of the others.
    shared = max(num_steps // of // chunk, 1) * chunk
    steps: dict[str, Work] = {who: lambda one=one: one.steps(num_steps) for who, one in alone.items()}  # type: ignore[misc]
    steps[STACKED] = lambda: together.steps(shared)
    say(f"{task.title}: steps")
    counts = {SB3: num_steps, FAST: num_steps, STACKED: shared * of}
    seconds = {who: [value / counts[who] for value in values] for who, values in take_turns(steps, num_rounds).items()}
    step = Comparison(f"{task.title}, {of} seeds: step of one", ENVIRONMENT_STEP, seconds, (STACKED,), (SB3, FAST))
    learn, products = together.updates(), floor(task, "cpu")
    shared = max(num_updates // of, 1)
    updates: dict[str, Work] = {who: lambda one=one: one.updates(num_updates) for who, one in alone.items()}  # type: ignore[misc]
    updates[STACKED] = lambda: learn(shared)
    updates[FLOOR] = lambda: [products() for _ in range(num_updates)]
    say(f"{task.title}: updates")
    counts = {SB3: num_updates, FAST: num_updates, STACKED: shared * of, FLOOR: num_updates}
    seconds = {who: [value / counts[who] for value in values] for who, values in take_turns(updates, num_rounds).items()}
    return [Comparison(f"{task.title}, {of} seeds: update of one", "update", seconds, (STACKED,), (SB3, FAST), FLOOR), step]


def main(config: Config) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("per seed", "who", "us", "faster than Stable-Baselines3", "faster than fast alone", box=None)
    comparisons: list[Comparison] = []
    with console.status("") as status:
        for name in config.tasks[:1] if config.quick else config.tasks:
            comparisons += measure(TASKS[name], config, status.update)
    for comparison in comparisons:
        for who, times in comparison.seconds.items():
            ratios = [str(comparison.speed_up(who, peer)) for peer in (SB3, FAST)]
            table.add_row(comparison.what, who, f"{1e6 * statistics.median(times):,.0f}", *ratios)
    console.print(table)
    if config.json is not None:
        write_json(config.json, comparisons, settings=asdict(config))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
