"""Scores of stored transitions, and when each is to be made again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlopt.replay.sampler import top_k


class ScoreTable:
    """Remembers a score per slot, and says in each phase which slots have to be scored.

    No score gets older than `period` phases. New slots come again after 1, ..., `period` phases, equally spread, so that many that
    are scored together, as those from before learning starts, do not all come again in one phase.

    Args:
        size: Number of slots, > 0.
        period: Phases after which a score is made again, > 0.

    Example:
        >>> table = ScoreTable(6, period=3)
        >>> table.due(6, 0).tolist()  # nothing is known
        [0, 1, 2, 3, 4, 5]
        >>> table.note(np.arange(6), np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
        >>> table.due(6, 1).tolist()  # a third of the slots, and the largest score
        [0, 1, 5]
    """

    def __init__(self, size: int, period: int) -> None:
        self.period = period
        self._scores = np.zeros(size, np.float32)
        self._due_at = np.zeros(size, np.int32)  # phase in which the score is to be made; 0: there is none
        self.phase = 1

    @property
    def nbytes(self) -> int:
        """Bytes of the table."""
        return self._scores.nbytes + self._due_at.nbytes

    def forget(self, slots: NDArray[np.int64]) -> None:
        """Forget the scores of slots with new content."""
        self._scores[slots] = 0.0
        self._due_at[slots] = 0

    def due(self, num: int, num_largest: int) -> NDArray[np.int64]:
        """Those of the slots 0..num-1 to score now, ascending: without a score, with an old one, or with a large one.

        Args:
            num: Number of slots in use.
            num_largest: How many of the largest scores are made again, of equal ones those with the lowest slots.
        """
        due_at = self._due_at[:num]
        largest = _largest(self._scores[:num], num_largest)
        due_at[largest] = np.minimum(due_at[largest], self.phase)
        return np.flatnonzero(due_at <= self.phase)

    def note(self, slots: NDArray[np.int64], scores: NDArray[np.float64]) -> None:
        """Take the scores (B,), not negative, of the slots that were due, and end the phase."""
        new = self._due_at[slots] == 0
        num_new = int(np.count_nonzero(new))
        self._scores[slots] = scores
        self._due_at[slots] = self.phase + self.period
        self._due_at[slots[new]] = self.phase + 1 + np.arange(num_new) * self.period // max(num_new, 1)
        self.phase += 1

    def state_dict(self, num: int) -> dict[str, Any]:
        """The scores of the slots 0..num-1."""
        return {"scores": self._scores[:num].copy(), "due_at": self._due_at[:num].copy(), "phase": self.phase}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of a table of the same size and period."""
        for table, name in ((self._scores, "scores"), (self._due_at, "due_at")):
            table[: len(state[name])] = state[name]
            table[len(state[name]) :] = 0
        self.phase = int(state["phase"])


_BLOCK = 256


def _largest(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest scores, none negative, of equal ones the lowest; O(n) with one quick pass over all.

    There are at least `count` scores as large as the `count`-th largest maximum of a block, so all others can be left out.
    """
    # Bits of non-negative floats are in the order of their values, and maxima of integers need no care for NaN.
    values = scores.view(np.int32)
    num_blocks = len(values) // _BLOCK
    if not 0 < count < num_blocks:
        return top_k(values, count)
    blocks = values[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK)
    maxima = blocks.max(1)
    threshold = np.partition(maxima, num_blocks - count)[num_blocks - count]
    chosen = np.flatnonzero(maxima >= threshold)
    row, place = np.nonzero(blocks[chosen] >= threshold)
    rest = np.arange(num_blocks * _BLOCK, len(values))
    large = np.concatenate([chosen[row] * _BLOCK + place, rest])
    return large[top_k(values[large], count)]
