"""Measure what looking for nan costs: updates of agents with the check of losses and gradients, and without it.

Both agents are made alike, with networks of two layers of 64 units, and take turns, so that a machine that slows down slows
both. Times are CPU times of the process, medians over rounds; the ratio is that of the medians of the turns' own ratios.

Commands:
    scripts/bench finite
    scripts/bench finite --non-finite skip --num-rounds 41
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
import tyro

from rlopt.agents import DDPG, DQN, SAC, TD3, optimizing

AGENTS: dict[str, Any] = {"dqn": DQN, "ddpg": DDPG, "td3": TD3, "sac": SAC}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    agents: tuple[Literal["dqn", "ddpg", "td3", "sac"], ...] = ("dqn", "ddpg", "td3", "sac")
    """Agents."""
    non_finite: Literal["raise", "skip"] = "raise"
    """What the check does with what it finds."""
    batch_size: int = 64
    """Transitions of a batch."""
    num_rounds: int = 21
    """Timed rounds of each, at least 3."""
    num_updates: int = 200
    """Updates of a round."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_rounds < 3:
            raise ValueError(f"num_rounds must be at least 3, got {self.num_rounds}.")


def make(name: str, config: Config) -> Any:
    """Return an agent with a filled replay."""
    options = {"policy_kwargs": {"net_arch": [64, 64]}, "batch_size": config.batch_size, "seed": 0, "device": "cpu"}
    env = "CartPole-v1" if name == "dqn" else "Pendulum-v1"
    agent = AGENTS[name]("MlpPolicy", env, learning_starts=1000, buffer_size=1000, non_finite=config.non_finite, **options)
    return agent.learn(1000)


@contextlib.contextmanager
def unchecked(name: str) -> Iterator[None]:
    """Let the agents' updates do without the check."""

    def take_step(*args: Any, check: Any = None, of: str = "", **kwargs: Any) -> Any:
        return optimizing.take_step(*args, **kwargs)

    module = sys.modules[{"ddpg": "rlopt.agents.td3"}.get(name, f"rlopt.agents.{name}")]
    with mock.patch.object(module, "take_step", take_step):
        yield


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Print the table."""
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    print(f"{'agent':8}{'without [us]':>14}{'with [us]':>12}{'ratio':>8}")
    for name in config.agents:
        checked, plain = make(name, config), make(name, config)
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(config.num_rounds + 2):
            for is_checked in (False, True) if number % 2 else (True, False):
                agent = checked if is_checked else plain
                with contextlib.nullcontext() if is_checked else unchecked(name):
                    times[is_checked].append(seconds(lambda agent=agent: agent.train(config.num_updates, config.batch_size)))
        without, looking = (times[i][2:] for i in (0, 1))  # the first rounds warm up
        ratio = statistics.median(b / a for a, b in zip(without, looking, strict=True))
        shown = [1e6 * statistics.median(values) / config.num_updates for values in (without, looking)]
        print(f"{name:8}{shown[0]:14.0f}{shown[1]:12.0f}{ratio:8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
