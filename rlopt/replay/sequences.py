"""Sequences of consecutive transitions of one episode, for networks with a memory: recurrent ones and transformers."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import torch as th
from numpy.typing import NDArray

from rlopt.replay.batch import ReplayBatch
from rlopt.replay.storage import TransitionStorage

PivotPlace = Literal["random", "end"]


class SequenceBatch(NamedTuple):
    """B sequences of T = burn_in + length transitions in order of time, the newest last.

    Positions of which `valid` is False stand before the episode, or before what is still stored of it; there everything is 0
    but the weights. They are always on the left. `next_observations`, `dones`, `rewards`, `discounts` of a position are those
    that `Replay.sample` gives for its transition, so the target of each position is `rewards + discounts * (1 - dones) *
    value(next_observations)`, at the last one too.

    Attributes:
        observations: (B, T, *obs_shape), dtype of the space, or a dict of these.
        actions: (B, T, action_dim).
        next_observations: Like `observations`.
        dones: (B, T, 1) float32, 1 where the environment terminated.
        rewards: (B, T, 1) float32.
        discounts: None for one-step returns, else (B, T, 1) float32.
        indices: (B,) int64 NumPy array: the drawn transitions, for `Replay.update`.
        weights: (B, T, 1) float32, the importance weight of the drawn transition at all positions of its sequence.
        valid: (B, T) bool, whether there is a transition.
        learn: (B, T) bool, valid and not burn-in: the positions that a loss counts.
        pivots: (B,) int64, the position of the drawn transition; it is one to learn from.
    """

    observations: th.Tensor | dict[str, th.Tensor]
    actions: th.Tensor
    next_observations: th.Tensor | dict[str, th.Tensor]
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    indices: NDArray[np.int64]
    weights: th.Tensor
    valid: th.Tensor
    learn: th.Tensor
    pivots: th.Tensor

    def at_pivots(self, values: th.Tensor) -> th.Tensor:
        """What belongs to the drawn transitions: (B, T) or (B, T, 1) -> (B,). TD errors of these go to `Replay.update`."""
        return values.reshape(self.valid.shape).gather(1, self.pivots[:, None])[:, 0]


class SequencePlan(NamedTuple):
    """Where the transitions of sequences are: slots and validity (B, T), positions of the pivots (B,)."""

    slots: NDArray[np.int64]
    valid: NDArray[np.bool_]
    pivots: NDArray[np.int64]


def plan_sequences(
    storage: TransitionStorage,
    pivots: NDArray[np.int64],
    length: int,
    burn_in: int,
    pivot_at: PivotPlace,
    rng: np.random.Generator,
) -> SequencePlan:
    """Lay a sequence around each pivot.

    The last transition is the one k steps after the pivot in its episode, or the last stored one of the episode if that comes
    earlier. k is uniform on 0..length-1 ("random") or 0 ("end"). The sequence goes back from there, and ends on the left at the
    first stored transition of the episode. So it never leaves the episode nor crosses the write head, and the pivot is among the
    last `length` positions.

    Args:
        storage: The transitions.
        pivots: Slots, (B,).
        length: Positions to learn from, >= 1.
        burn_in: Positions before them, >= 0.
        pivot_at: See above.
        rng: Used by "random" only.

    Returns:
        Slots in order of time; the slots of invalid positions are stored ones without meaning.

    Raises:
        ValueError: For arguments outside these sets.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}.")
    if burn_in < 0:
        raise ValueError(f"burn_in must be at least 0, got {burn_in}.")
    if pivot_at not in get_args(PivotPlace):
        raise ValueError(f"pivot_at must be 'random' or 'end', got {pivot_at!r}.")
    ahead = np.zeros(len(pivots), np.int64)
    if pivot_at == "random":
        ahead = np.minimum(rng.integers(length, size=len(pivots)), storage.num_steps(pivots, "newer", within_episode=True))
    last = storage.step(pivots, ahead)
    before = storage.num_steps(last, "older", within_episode=True)[:, None]  # (B, 1)
    back = np.arange(burn_in + length - 1, -1, -1)  # (T,), steps before the last
    return SequencePlan(storage.step(last[:, None], -np.minimum(back, before)), back <= before, burn_in + length - 1 - ahead)


def fold(flat: ReplayBatch, plan: SequencePlan, pivots: NDArray[np.int64], weights: th.Tensor, burn_in: int) -> SequenceBatch:
    """Give a batch of all positions its two leading dimensions, and clear the padding.

    Args:
        flat: The transitions of `plan.slots`, row by row, (B * T, ...). Its tensors are changed.
        plan: The sequences.
        pivots: Slots of the pivots, (B,).
        weights: Of the pivots, (B, 1).
        burn_in: First positions, which are not learned from.
    """
    num, total = plan.valid.shape
    valid = th.as_tensor(plan.valid, device=flat.rewards.device)
    padding = None if plan.valid.all() else ~valid

    def folded(values: th.Tensor) -> th.Tensor:
        values = values.reshape(num, total, *values.shape[1:])  # (B * T, ...) -> (B, T, ...)
        if padding is not None:
            values[padding] = 0
        return values

    def folded_obs(values: th.Tensor | dict[str, th.Tensor]) -> th.Tensor | dict[str, th.Tensor]:
        return {key: folded(part) for key, part in values.items()} if isinstance(values, dict) else folded(values)

    learn = valid.clone()
    learn[:, :burn_in] = False
    return SequenceBatch(
        observations=folded_obs(flat.observations),
        actions=folded(flat.actions),
        next_observations=folded_obs(flat.next_observations),
        dones=folded(flat.dones),
        rewards=folded(flat.rewards),
        discounts=None if flat.discounts is None else folded(flat.discounts),
        indices=pivots,
        weights=weights[:, None].expand(num, total, 1),
        valid=valid,
        learn=learn,
        pivots=th.as_tensor(plan.pivots, device=valid.device),
    )
