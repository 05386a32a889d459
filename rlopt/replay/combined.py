"""Combined experience replay (CER): the newest transition is in every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Draw, Sampler


@dataclass(frozen=True)
class CombinedConfig:
    """Combined replay has no options."""


class CombinedSampler(Sampler):
    """One newest transition and `batch_size - 1` uniform ones."""

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch; the newest transition stands first."""
        slots = self.uniform_slots(batch_size)
        newest = self.storage.newest_slots
        slots[0] = newest[0] if len(newest) == 1 else self.rng.choice(newest)
        return Draw(slots)


class CombinedReplay(Replay):
    """Each batch holds the newest transition and `batch_size - 1` uniform ones.

    With several environments the newest transition of one of them, chosen at random, is taken. There are no importance weights.

    Differs from the paper: the batch keeps its size (whether the paper adds the newest transition on top is not verified).

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        **kwargs: As in `rlopt.replay.buffer.Replay`.

    References: Zhang and Sutton, A deeper look at experience replay, 2017, arXiv 1712.01275.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = CombinedReplay(100, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", seed=0)
        >>> for t in range(9):
        ...     obs = np.full((1, 1), t / 10, np.float32)
        ...     replay.add(obs, obs + 0.1, np.array([0]), np.array([float(t)]), np.array([False]), [{}])
        >>> replay.sample(3).rewards[0].item()
        8.0
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, sampler=CombinedSampler(), **kwargs)
