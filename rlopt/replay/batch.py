"""What a replay gives to learn from: a batch of transitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray


class ReplayBatch(NamedTuple):
    """A batch with Stable-Baselines3's field names plus `indices` and `weights`.

    Attributes:
        observations: (B, *obs_shape), dtype of the space, or a dict of these.
        actions: (B, action_dim).
        next_observations: Like `observations`; with n-step returns those after the last step used.
        dones: (B, 1) float32, 1 where the environment terminated; never set by truncation.
        rewards: (B, 1) float32; with n-step returns sum_j gamma^j r_{t+j}.
        discounts: None for one-step batches (the agent's gamma applies), else (B, 1) float32, gamma^k of the k steps used.
        indices: (B,) int64 NumPy array for `update`.
        weights: (B, 1) float32 importance weights, ones for replays without.

    The learning target is `rewards + discounts * (1 - dones) * value(next_observations)`.
    """

    observations: th.Tensor | dict[str, th.Tensor]
    actions: th.Tensor
    next_observations: th.Tensor | dict[str, th.Tensor]
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    indices: NDArray[np.int64]
    weights: th.Tensor


TDErrorFunction = Callable[[ReplayBatch], th.Tensor]
"""TD errors (B,) or (B, 1), sign irrelevant, of a batch under the current networks, without gradient."""
