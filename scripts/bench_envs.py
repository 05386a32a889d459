"""Measure environment steps per second: a SyncVectorEnv of single environments against the native vectorised version.

The two take turns, so that a machine that slows down slows both. A step counts once for each copy. Times are CPU times of the
process, with random actions drawn beforehand; environments are made as `gymnasium.make_vec` makes them.

Commands:
    scripts/bench envs
    scripts/bench envs --num-envs 256 --ids rlopt/LQR-v0 rlopt/LQG-v0
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro
from _bench import ENVIRONMENT_STEP, Comparison, Work, take_turns, write_json
from tyro.conf import arg

import rlopt_envs  # registers the environments


@dataclass(frozen=True)
class Config:
    """What to measure."""

    ids: tuple[str, ...] = rlopt_envs.ENV_IDS
    """Environments."""
    num_envs: int = 64
    """Copies in a vector environment."""
    num_rounds: int = 7
    """Timed rounds of each, at least 3; the table has the medians."""
    round_seconds: float = 0.2
    """Duration of a round."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers go, too."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_rounds < 3:
            raise ValueError(f"num_rounds must be at least 3, got {self.num_rounds}.")
        if self.num_envs < 1 or self.round_seconds <= 0.0:
            raise ValueError("num_envs and round_seconds must be positive.")
        unknown = set(self.ids) - set(rlopt_envs.ENV_IDS)
        if unknown:
            raise ValueError(f"ids must be among {', '.join(rlopt_envs.ENV_IDS)}, got {', '.join(sorted(unknown))}.")


NUM_ACTIONS = 64  # batches of actions that are used in turns


def make_stepper(env_id: str, num_envs: int, mode: str) -> Work:
    """Return a function that makes a step of a vector environment with each batch of actions."""
    env: Any = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode=mode)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(NUM_ACTIONS)]

    def step() -> None:
        for action in actions:
            env.step(action)

    return step


def measure(env_id: str, config: Config) -> Comparison:
    """Return the seconds per step and copy of the synchronous and of the native vector environment."""
    modes = {"SyncVectorEnv": "sync", "native": "vector_entry_point"}
    works = {name: make_stepper(env_id, config.num_envs, mode) for name, mode in modes.items()}
    times = take_turns(works, config.num_rounds, block_seconds=config.round_seconds)
    seconds = {name: [value / (NUM_ACTIONS * config.num_envs) for value in values] for name, values in times.items()}
    return Comparison(f"{env_id}, {config.num_envs} copies", ENVIRONMENT_STEP, seconds, ("native",), ("SyncVectorEnv",))


def main(config: Config) -> None:
    """Measure and print the table."""
    print(f"Environment steps per second of CPU time, {config.num_envs} copies, medians of {config.num_rounds} rounds,")
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}, Gymnasium {gym.__version__}.\n")
    print("| environment | SyncVectorEnv | native | ratio |")
    print("| --- | ---: | ---: | ---: |")
    found = []
    for env_id in config.ids:
        found.append(measure(env_id, config))
        sync, native = (1 / statistics.median(found[-1].seconds[who]) for who in ("SyncVectorEnv", "native"))
        print(f"| {env_id} | {sync:,.0f} | {native:,.0f} | {native / sync:.1f} |", flush=True)
    if config.json is not None:
        write_json(config.json, found, settings=asdict(config))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
