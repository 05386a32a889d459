"""Print the tables of docs/q_learning.md: errors of Q-learners on problems whose optimal values are known.

Examples:
    python scripts/tables_q_learning.py
    python scripts/tables_q_learning.py --seeds 20
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

from rlopt.sysid.q_learning import QLearning, QLearningReplay, QRex, QRexDaRe
from rlopt.sysid.transitions import Transitions
from rlopt_envs.baird_star import BairdStarEnv
from rlopt_envs.ring_mdp import RingMDPEnv

# The schedule of all tables: buffers of 5 + 50 transitions, 40 of them per target of Q-Rex.
BUFFER_SIZE, GAP, NUM_BUFFERS, NUM_TARGETS = 50, 5, 40, 60
PERIOD = NUM_BUFFERS * (GAP + BUFFER_SIZE)
METHODS: dict[str, Callable[..., Any]] = {
    "Q-learning": QLearning,
    "Q-learning with replay": lambda *where, **options: QLearningReplay(*where, buffer_size=BUFFER_SIZE, gap=GAP, **options),
    "Q-Rex": QRex,
    "Q-Rex schedule, forward": lambda *where, **options: QRex(*where, order="forward", **options),
    "Q-Rex schedule, random": lambda *where, **options: QRex(*where, order="random", seed=0, **options),
    "Q-RexDaRe": QRexDaRe,
    "Q-RexDaRe, 1/6 of the data": lambda *where, **options: QRexDaRe(*where, num_buffers=NUM_TARGETS * NUM_BUFFERS // 6, **options),
}


@dataclass(frozen=True)
class Config:
    """Options."""

    seeds: int = 5
    """Streams of data, > 1; seeds 0, 1, ..."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"seeds must be > 1, got {self.seeds}")


def main(config: Config) -> None:
    """Print the tables."""
    ring(config.seeds)
    print()
    star(config.seeds)


def ring(seeds: int) -> None:
    """Print the largest error of each method on the ring for two step sizes."""
    env = RingMDPEnv()
    num_samples = NUM_TARGETS * PERIOD
    data = [Transitions.from_rollout(env.mdp.simulate(num_samples, np.random.default_rng(seed))) for seed in range(seeds)]
    step_sizes = (0.005, 0.02)
    print(f"rlopt/RingMDP-v0, {num_samples} transitions, largest |Q - Q*|: mean (smallest to largest) of {seeds} seeds\n")
    print("| method | " + " | ".join(f"step size {step_size}" for step_size in step_sizes) + " |")
    print("| --- |" + " ---: |" * len(step_sizes))
    for name, make in METHODS.items():
        cells = []
        for step_size in step_sizes:
            learners = [make(env.features, env.discount, step_size=step_size).fit(stream, num_checkpoints=1) for stream in data]
            errors = [float(np.abs(learner.q_values(np.arange(5)) - env.optimal_q).max()) for learner in learners]
            cells.append(f"{np.mean(errors):.3f} ({min(errors):.3f} to {max(errors):.3f})")
        print(f"| {name} | " + " | ".join(cells) + " |")


def star(seeds: int) -> None:
    """Print how the largest value goes on the star, for Q-learning and Q-Rex."""
    env = BairdStarEnv()
    targets = np.array([0, 20, 40, 80, 120, 160])
    num_samples = int(targets[-1]) * PERIOD
    print(f"rlopt/BairdStar-v0, step size 0.01, largest |Q - Q*|: mean of {seeds} seeds\n")
    print("| method | " + " | ".join(f"{count * PERIOD:,} transitions" for count in targets) + " |")
    print("| --- |" + " ---: |" * len(targets))
    streams = [np.random.default_rng(seed) for seed in range(seeds)]
    data = [Transitions.from_rollout(env.mdp.simulate(num_samples, rng, env.behaviour_policy)) for rng in streams]
    for name in ("Q-learning", "Q-learning with replay", "Q-Rex", "Q-Rex schedule, forward"):
        errors = np.zeros((seeds, len(targets)))
        for seed, stream in enumerate(data):
            learner = METHODS[name](env.features, env.discount, step_size=0.01, initial_weights=env.initial_weights)
            errors[seed, 0] = np.abs(env.features @ env.initial_weights).max()
            for column in range(1, len(targets)):
                learner.partial_fit(stream[targets[column - 1] * PERIOD : targets[column] * PERIOD])
                errors[seed, column] = np.abs(learner.q_values(np.arange(7))).max()
        print(f"| {name} | " + " | ".join(_number(value) for value in errors.mean(axis=0)) + " |")


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 1e4 else f"{value:.0e}"


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
