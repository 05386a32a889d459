"""The learning steps in numba, for batches and networks as the agents have them: on the CPU, for perceptrons with ReLU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlopt.agents.fast import numba_blas, numba_dqn, numba_mlp, numba_sac, numba_td3
from rlopt.agents.fast.mlp import StackedMLP
from rlopt.agents.fast.sac import SquashedGaussian
from rlopt.agents.fast.td3 import TwinCritics

Array = NDArray[Any]

_SGEMM, _PRODUCTS = numba_blas.sgemm()


class Arrays(NamedTuple):
    """Batches of S agents: the fields of `ReplayBatch` with a leading dimension S, observations flat."""

    observations: Array
    actions: Array
    next_observations: Array
    rewards: Array
    dones: Array
    discounts: Array
    weights: Array


class Learned(NamedTuple):
    """What a step says: how many agents became inactive as something was not finite, losses (S,), TD errors (S, B, 1)."""

    num_left_out: int
    losses: Array
    errors: Array


class Gathering:
    """Puts the batches of S agents into arrays that are used again.

    Args:
        num: S.
        gamma: Discount of batches without discounts of their own.
    """

    def __init__(self, num: int, gamma: float) -> None:
        self._num, self._gamma = num, gamma
        self._kept: dict[int, Arrays] = {}

    def __call__(self, batches: Mapping[int, Any]) -> Arrays:
        """Batches of arrays of equal size, by agent; the fields of the others are whatever is there."""
        rows = len(next(iter(batches.values())).rewards)
        if self._num == 1:
            return Arrays(*(field[None] for field in self._fields(batches[0])))
        fields = {index: self._fields(batch) for index, batch in batches.items()}
        if rows not in self._kept:
            shapes = next(iter(fields.values()))
            self._kept[rows] = Arrays(*(np.zeros((self._num, *field.shape), field.dtype) for field in shapes))
        arrays = self._kept[rows]
        for index, parts in fields.items():
            for array, part in zip(arrays, parts, strict=True):
                array[index] = part
        return arrays

    def _fields(self, batch: Any) -> tuple[Array, ...]:
        rewards = batch.rewards
        discounts = np.full(rewards.shape, self._gamma, np.float32) if batch.discounts is None else batch.discounts
        actions = batch.actions if batch.actions.dtype == np.float32 else batch.actions.astype(np.int64, copy=False)
        return (
            _flat(batch.observations), actions, _flat(batch.next_observations), rewards, batch.dones, discounts, batch.weights,
        )  # fmt: skip


def _flat(observations: Array) -> Array:
    observations = observations.astype(np.float32, copy=False)
    return observations.reshape(len(observations), -1)


class _Memory:
    """Scratch of a number of rows that are long enough for batches of a size."""

    def __init__(self, num_rows: int, *widths: Sequence[int]) -> None:
        self._num_rows, self._width = num_rows, sum(sum(part) for part in widths)
        self._memory = np.empty((num_rows, 0), np.float32)

    def __call__(self, batch_size: int) -> Array:
        if self._memory.shape[1] < batch_size * self._width:
            self._memory = np.zeros((self._num_rows, batch_size * self._width), np.float32)
        return self._memory


class CompiledPolicy:
    """Outputs of S perceptrons for a few rows each, computed for all.

    Args:
        network: Its parameters are read where they are.
    """

    def __init__(self, network: StackedMLP) -> None:
        self._params, self._widths = network.params.numpy(), np.array(network.widths)
        self._memory = _Memory(2, network.widths)

    def __call__(self, observations: Array) -> Array:
        """Outputs (S, B, out) of float32 inputs (S, B, in)."""
        num, rows, _ = observations.shape
        out = np.empty((num, rows, self._widths[-1]), np.float32)
        numba_mlp.act(_SGEMM, self._params, self._widths, observations, out, self._memory(rows))
        return out


class CompiledDQN:
    """Steps of S Q-networks; see `DQNGradient` for the arguments."""

    products = _PRODUCTS

    def __init__(self, online: StackedMLP, target: StackedMLP, double_q: bool, max_grad_norm: float) -> None:
        self._online, self._target, self._widths = online.params.numpy(), target.params.numpy(), np.array(online.widths)
        self._double_q, self._max_grad_norm = double_q, float(max_grad_norm)
        self._memory = _Memory(5, online.widths)

    def learn(self, active: Array, batch: Arrays, optimizer: tuple[Any, ...]) -> Learned:
        """Take a step with Adam; `optimizer` are its `FlatAdam.arguments`."""
        num, rows, _ = batch.rewards.shape
        losses, errors = np.empty(num, np.float32), np.empty((num, rows, 1), np.float32)
        num_left_out = numba_dqn.learn(
            _SGEMM, active, self._online, self._target, self._widths, *batch, self._double_q, self._max_grad_norm, losses, errors,
            self._memory(rows), *optimizer,
        )  # fmt: skip
        return Learned(num_left_out, losses, errors)


class CompiledTD3:
    """Steps of S agents; see `TD3Gradient` for the arguments."""

    products = _PRODUCTS

    def __init__(
        self,
        actor: StackedMLP,
        actor_target: StackedMLP,
        critics: TwinCritics,
        critics_target: TwinCritics,
    ) -> None:
        self._actor, self._actor_target, self._actor_widths = (
            actor.params.numpy(),
            actor_target.params.numpy(),
            np.array(actor.widths),
        )
        self._critics, self._critics_target = critics.params.numpy(), critics_target.params.numpy()
        self._num_critics, self._widths = critics.num_critics, np.array(critics.all.widths)
        self._memory = _Memory(5, actor.widths, critics.all.widths)

    def learn_critics(self, active: Array, batch: Arrays, noise: Array, optimizer: tuple[Any, ...]) -> Learned:
        """Take a step of the critics."""
        num, rows, _ = batch.rewards.shape
        losses, errors = np.empty(num, np.float32), np.empty((num, rows, 1), np.float32)
        num_left_out = numba_td3.learn_critics(
            _SGEMM, active, self._actor_target, self._actor_widths, self._critics, self._critics_target, self._widths,
            self._num_critics,
            *batch, noise, losses, errors, self._memory(rows), *optimizer,
        )  # fmt: skip
        return Learned(num_left_out, losses, errors)

    def learn_actor(self, active: Array, batch: Arrays, optimizer: tuple[Any, ...]) -> Learned:
        """Take a step of the actor; there are no TD errors."""
        losses = np.empty(len(self._actor), np.float32)
        num_left_out = numba_td3.learn_actor(
            _SGEMM, active, self._actor, self._actor_widths, self._critics, self._num_critics, self._widths,
            batch.observations, losses,
            self._memory(batch.rewards.shape[1]), *optimizer,
        )  # fmt: skip
        return Learned(num_left_out, losses, losses[:0])


class Drawn(NamedTuple):
    """What policies drew: actions (S, B, A), log pi (S, B, 1), and what their step needs."""

    actions: Array
    log_probs: Array
    noise: Array
    kept: Array


class CompiledSAC:
    """Steps of S agents; see `SACGradient` for the arguments."""

    products = _PRODUCTS

    def __init__(self, actor: SquashedGaussian, critics: TwinCritics, critics_target: TwinCritics) -> None:
        self._actor, self._actor_widths = actor.network.params.numpy(), np.array(actor.network.widths)
        self._critics, self._critics_target = critics.params.numpy(), critics_target.params.numpy()
        self._num_critics, self._widths = critics.num_critics, np.array(critics.all.widths)
        self._memory = _Memory(9 + critics.num_critics, actor.network.widths, critics.all.widths)

    def draw(self, active: Array, batch: Arrays, noise: Array) -> Drawn:
        """Draw actions with standard normal noise (S, B, A)."""
        num, rows, num_actions = noise.shape
        kept = np.empty((num, rows * int(self._actor_widths[1:].sum())), np.float32)
        drawn = Drawn(np.empty((num, rows, num_actions), np.float32), np.empty((num, rows, 1), np.float32), noise, kept)
        numba_sac.draw(
            _SGEMM,
            active,
            self._actor,
            self._actor_widths,
            batch.observations,
            noise,
            kept,
            drawn.actions,
            drawn.log_probs,
            self._memory(rows),
        )
        return drawn

    def learn_critics(self, active: Array, batch: Arrays, noise: Array, ent_coefs: Array, optimizer: tuple[Any, ...]) -> Learned:
        """Take a step of the critics, with noise of the next actions (S, B, A) and entropy coefficients (S,)."""
        num, rows, _ = batch.rewards.shape
        losses, errors = np.empty(num, np.float32), np.empty((num, rows, 1), np.float32)
        num_left_out = numba_sac.learn_critics(
            _SGEMM, active, self._actor, self._actor_widths, self._critics, self._critics_target, self._widths, self._num_critics,
            *batch, noise, ent_coefs, losses, errors, self._memory(rows), *optimizer,
        )  # fmt: skip
        return Learned(num_left_out, losses, errors)

    def learn_ent_coefs(
        self, active: Array, log_ent_coefs: Array, drawn: Drawn, target_entropy: float, optimizer: tuple[Any, ...]
    ) -> Learned:
        """Take a step of the logarithms of the entropy coefficients, (S, 1); there are no TD errors."""
        losses = np.empty(len(log_ent_coefs), np.float32)
        num_left_out = numba_sac.learn_ent_coefs(active, log_ent_coefs, drawn.log_probs, target_entropy, losses, *optimizer)
        return Learned(num_left_out, losses, losses[:0])

    def learn_actor(self, active: Array, batch: Arrays, drawn: Drawn, ent_coefs: Array, optimizer: tuple[Any, ...]) -> Learned:
        """Take a step of the policies for what they drew; there are no TD errors."""
        losses = np.empty(len(self._actor), np.float32)
        num_left_out = numba_sac.learn_actor(
            _SGEMM, active, self._actor, self._actor_widths, self._critics, self._num_critics, self._widths, batch.observations,
            drawn.noise,
            drawn.actions, drawn.log_probs, drawn.kept, ent_coefs, losses, self._memory(batch.rewards.shape[1]), *optimizer,
        )  # fmt: skip
        return Learned(num_left_out, losses, losses[:0])
