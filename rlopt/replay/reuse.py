"""Batches whose memory is used again by the next one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from rlopt.replay.batch import ReplayBatch
from rlopt.replay.storage import Observation, TransitionStorage

MAX_SIZES = 8
"""Batch sizes for which memory is kept."""


class BatchMemory:
    """Arrays of one-step transitions of one batch size, and tensors that share their memory.

    Args:
        storage: Where the transitions are, with the plain layout.
        num: Batch size B.
    """

    def __init__(self, storage: TransitionStorage, num: int) -> None:
        self._storage = storage
        self._blocks, fields = storage.make_blocks(num)
        self.obs, self.next_obs = storage.observation(_NO_SLOTS, fields), storage.next_observation(_NO_SLOTS, fields)
        self.rewards: NDArray[np.float32] = fields["rewards"]
        self._ones = np.ones((num, 1), np.float32)
        self._fields = (self.obs, fields["actions"], self.next_obs, fields["terminated"], self.rewards)
        self._tensors = tuple(_tensors(field) for field in self._fields)

    def fill(self, slots: NDArray[np.int64]) -> None:
        """Write the transitions of `slots` (B,) over those before."""
        self._storage.gather_into(slots, self._blocks)

    def batch(self, slots: NDArray[np.int64], weights: NDArray[np.float32] | None) -> ReplayBatch:
        """The transitions as tensors; their weights (B,), None for ones, stay those given."""
        return ReplayBatch._make((*self._tensors, None, slots, th.from_numpy(self._column(weights))))

    def arrays(self, slots: NDArray[np.int64], weights: NDArray[np.float32] | None) -> ReplayBatch:
        """The same as arrays."""
        return ReplayBatch._make((*self._fields, None, slots, self._column(weights)))

    def _column(self, weights: NDArray[np.float32] | None) -> NDArray[np.float32]:
        if weights is not None:
            return weights[:, None]
        self._ones[:] = 1.0  # whatever a learner did to them
        return self._ones


class BatchMemories(dict[int, BatchMemory]):
    """Memory by batch size. A copy begins empty: what is written to copied arrays would not show in copied tensors."""

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchMemories, ()

    def of(self, storage: TransitionStorage, num: int) -> BatchMemory:
        """The memory for a batch size."""
        memory = self.get(num)
        if memory is None:
            if len(self) == MAX_SIZES:
                del self[next(iter(self))]
            memory = self[num] = BatchMemory(storage, num)
        return memory


_NO_SLOTS = np.empty(0, np.int64)


def _tensors(obs: Observation) -> th.Tensor | dict[str, th.Tensor]:
    if isinstance(obs, dict):
        return {key: th.from_numpy(value) for key, value in obs.items()}
    return th.from_numpy(obs)
