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
        self._batch = ReplayBatch(
            _tensors(self.obs),
            th.from_numpy(fields["actions"]),
            _tensors(self.next_obs),
            th.from_numpy(fields["terminated"]),
            th.from_numpy(self.rewards),
            None,
            _NO_SLOTS,
            th.from_numpy(self._ones),
        )

    def fill(self, slots: NDArray[np.int64], weights: NDArray[np.float32] | None) -> ReplayBatch:
        """Write the transitions of `slots` (B,) over those before; their weights (B,), None for ones, stay those given."""
        self._storage.gather_into(slots, self._blocks)
        obs, actions, next_obs, dones, rewards, discounts, _, ones = self._batch
        if weights is None:
            self._ones[:] = 1.0  # whatever a learner did to them
            return ReplayBatch(obs, actions, next_obs, dones, rewards, discounts, slots, ones)
        return ReplayBatch(obs, actions, next_obs, dones, rewards, discounts, slots, th.from_numpy(weights[:, None]))


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
