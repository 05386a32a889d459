"""What a sampler is: it chooses slots of a storage; everything else is the buffer's business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlopt.replay.storage import TransitionStorage

ScoreFunction = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Absolute TD errors of the transitions in the given slots, under the current networks: (M,) -> (M,)."""


class Draw(NamedTuple):
    """Slots of a batch, their importance weights (None: all one), and whether they were drawn uniformly."""

    slots: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    uniform: bool = True


class Sampler:
    """Chooses which stored transitions to learn from.

    The base class does nothing but uniform draws; a sampler overrides what it cares about. A learning phase is one call of
    an agent's `train(gradient_steps, batch_size)`: `begin_phase` once, then `draw` and `update` for each gradient step.

    Attributes:
        needs_phase: Whether the sampler works only if `begin_phase` brings it TD errors.
        needs_update: Whether the sampler works only if `update` brings it TD errors.
        config: Frozen dataclass of the options, None if there are none. A saved state fits a sampler of equal options only.
    """

    needs_phase: ClassVar[bool] = False
    needs_update: ClassVar[bool] = False

    config: Any = None
    storage: TransitionStorage
    rng: np.random.Generator

    def bind(self, storage: TransitionStorage, rng: np.random.Generator) -> None:
        """Attach the storage to draw from and the generator to draw with."""
        self.storage = storage
        self.rng = rng

    @property
    def nbytes(self) -> int:
        """Bytes of the sampler's own tables."""
        return 0

    def on_add(self, slots: NDArray[np.int64]) -> None:
        """Take note of new transitions in `slots` (their old content is gone)."""

    def begin_phase(self, gradient_steps: int, score: ScoreFunction | None, progress: float | None) -> None:
        """Prepare for `gradient_steps` draws.

        Args:
            gradient_steps: Draws to come in this phase.
            score: Current TD errors of stored transitions, or None if the agent cannot tell.
            progress: Share of the training that is done, in [0, 1], or None if unknown.
        """

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch."""
        return Draw(self.uniform_slots(batch_size))

    def update(self, slots: NDArray[np.int64], td_errors: NDArray[np.float64]) -> None:
        """Take the absolute TD errors (B,) that the agent just computed for `slots` (B,)."""

    def uniform_slots(self, batch_size: int) -> NDArray[np.int64]:
        """`batch_size` slots, uniform with replacement."""
        # While the ring fills, the stored slots are 0..n-1; afterwards all of them are stored. Scaled doubles cost half of what
        # `integers` does, and are as uniform up to n / 2^53.
        return (self.rng.random(batch_size) * len(self.storage)).astype(np.int64)

    def clear(self) -> None:
        """Forget everything that belongs to stored transitions."""

    def state_dict(self) -> dict[str, Any]:
        """All that `draw` depends on, besides the storage and the generator."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of a sampler with the same options."""


def top_k(scores: NDArray[np.float64] | NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Indices of the `k` largest scores, largest first, equal scores by lowest index first.

    O(n + k log k): a partition finds the threshold, only the chosen ones are sorted.

    Example:
        >>> top_k(np.array([1.0, 3.0, 3.0, 2.0]), 3).tolist()
        [1, 2, 3]
    """
    n = len(scores)
    k = min(k, n)
    if k <= 0:
        return np.empty(0, np.int64)
    threshold = np.partition(scores, n - k)[n - k]
    above = np.flatnonzero(scores > threshold)
    ties = np.flatnonzero(scores == threshold)[: k - len(above)]
    chosen = np.sort(np.concatenate([above, ties]))
    return chosen[np.argsort(-scores[chosen], kind="stable")]
