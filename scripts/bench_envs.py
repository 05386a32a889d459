"""Measure environment steps per second: a SyncVectorEnv of single environments against the native vectorised version.

The two take turns, so that a machine that slows down slows both. A step counts once for each copy. Times are CPU times of the
process, with random actions drawn beforehand; environments are made as `gymnasium.make_vec` makes them.

Commands:
    scripts/bench envs
    scripts/bench envs --num-envs 256 --ids rlopt/LQR-v0 rlopt/LQG-v0
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

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


def make_stepper(env_id: str, num_envs: int, mode: str) -> Callable[[int], None]:
    """Return a function that makes so many steps of a vector environment."""
    env: Any = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode=mode)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(NUM_ACTIONS)]

    def step(num_steps: int) -> None:
        for t in range(num_steps):
            env.step(actions[t % NUM_ACTIONS])

    return step


def measure(env_id: str, config: Config) -> tuple[float, float]:
    """Return the steps per second of the synchronous and of the native vector environment, medians over the rounds."""
    steppers = [make_stepper(env_id, config.num_envs, mode) for mode in ("sync", "vector_entry_point")]
    num_steps = []
    for step in steppers:
        step(20)  # the first steps of an environment are checked by Gymnasium
        start = time.perf_counter()
        step(20)
        num_steps.append(max(20, int(20 * config.round_seconds / (time.perf_counter() - start))))
    rates: list[list[float]] = [[], []]
    gc.collect()
    gc.disable()
    try:
        for _ in range(config.num_rounds):
            for step, count, results in zip(steppers, num_steps, rates, strict=True):
                start = time.process_time()
                step(count)
                results.append(count * config.num_envs / (time.process_time() - start))
    finally:
        gc.enable()
    return statistics.median(rates[0]), statistics.median(rates[1])


def main(config: Config) -> None:
    """Measure and print the table."""
    print(f"Environment steps per second of CPU time, {config.num_envs} copies, medians of {config.num_rounds} rounds,")
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}, Gymnasium {gym.__version__}.\n")
    print("| environment | SyncVectorEnv | native | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for env_id in config.ids:
        sync, native = measure(env_id, config)
        print(f"| {env_id} | {sync:,.0f} | {native:,.0f} | {native / sync:.1f} |", flush=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
