"""Uniform replay: every stored transition is equally likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Sampler


@dataclass(frozen=True)
class UniformConfig:
    """Uniform replay has no options."""


class UniformReplay(Replay):
    """Every stored transition is equally likely, with replacement.

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        **kwargs: As in `rlopt.replay.buffer.Replay`: `n_steps`, `gamma`, `layout`, `memmap_path`, `seed`.

    References: Lin, Self-improving reactive agents based on reinforcement learning, planning and teaching, 1992.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = UniformReplay(100, spaces.Box(-1, 1, (2,)), spaces.Discrete(3), device="cpu", seed=0)
        >>> obs = np.zeros((1, 2), np.float32)
        >>> replay.add(obs, obs + 1, np.array([2]), np.array([0.5]), np.array([False]), [{}])
        >>> batch = replay.sample(4)
        >>> batch.rewards.flatten().tolist(), batch.weights.shape
        ([0.5, 0.5, 0.5, 0.5], torch.Size([4, 1]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, sampler=Sampler(), **kwargs)
