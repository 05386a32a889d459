"""TD3's and DDPG's learning steps in numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from rlopt.agents.fast.numba_blas import kernel
from rlopt.agents.fast.numba_critics import critic_gradient, joined, smallest_values
from rlopt.agents.fast.numba_mlp import ACTIVE, ADAM, BATCHES, BLAS, ROWS, VECTOR, WIDTHS, adam, backward, forward, norm


@kernel(
    types.int64, BLAS,
    ACTIVE, ROWS, WIDTHS, ROWS, ROWS, WIDTHS, types.int64, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES,
    BATCHES,
    VECTOR, BATCHES, ROWS, *ADAM,
)  # fmt: skip
def learn_critics(
    blas: int, active: Any, actor_target: Any, actor_widths: Any, critics: Any, critics_target: Any, widths: Any, num_critics: int,
    observations: Any,
    actions: Any, next_observations: Any, rewards: Any, dones: Any, discounts: Any, weights: Any, noise: Any, losses: Any,
    errors: Any, memory: Any, grads: Any, exp_avg: Any, exp_avg_sq: Any, steps: Any,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, sign: float,
) -> int:  # fmt: skip
    """Take a step of the critics of S agents, each on a batch of its own; see `TD3Gradient.of_critics`.

    Those that are not `active` (S,) take none, nor do those whose loss or gradient is not finite: they become inactive.

    Actors (S, m) are without the tanh at their end, the C critics of an agent are one row (S, C n). Of a batch come observations
    (S, B, o), actions and so on, and noise on the target actions, clipped already, (S, B, a). Losses (S,), TD errors (S, B, 1)
    and gradients are written; the averages of Adam, its counts of steps and its options come last. `memory` is scratch, 5 rows of
    at least B times the sum of widths of all networks.

    Returns:
        How many became inactive.
    """
    num, rows, size = observations.shape
    num_left_out = 0
    targets = memory[4, :rows].reshape(rows, 1)
    for s in range(num):
        if not active[s]:
            continue
        x = memory[3, : rows * size].reshape(rows, size)
        x[:] = next_observations[s]
        next_actions = forward(blas, actor_target[s], actor_widths, x, memory[0])
        for i in range(rows):
            for j in range(next_actions.shape[1]):
                action = np.tanh(next_actions[i, j]) + noise[s, i, j]
                next_actions[i, j] = min(max(action, np.float32(-1.0)), np.float32(1.0)) if not math.isnan(action) else action
        x = joined(next_observations[s], next_actions, memory[3])
        smallest_values(blas, critics_target[s], num_critics, widths, x, memory[1], targets)
        for i in range(rows):
            targets[i, 0] = rewards[s, i, 0] + (np.float32(1.0) - dones[s, i, 0]) * discounts[s, i, 0] * targets[i, 0]
        x = joined(observations[s], actions[s], memory[3])
        losses[s] = critic_gradient(blas, critics[s], num_critics, widths, x, targets, weights[s], 1.0, grads[s], errors[s], memory)
        if math.isfinite(losses[s]) and math.isfinite(norm(grads[s])):
            adam(critics[s], grads[s], exp_avg[s], exp_avg_sq[s], steps[s], lr, beta1, beta2, eps, weight_decay, sign)
        else:
            active[s] = False
            num_left_out += 1
    return num_left_out


@kernel(types.int64, BLAS, ACTIVE, ROWS, WIDTHS, ROWS, types.int64, WIDTHS, BATCHES, VECTOR, ROWS, *ADAM)
def learn_actor(
    blas: int, active: Any, actor: Any, actor_widths: Any, critics: Any, num_critics: int, widths: Any, observations: Any,
    losses: Any,
    memory: Any,
    grads: Any, exp_avg: Any, exp_avg_sq: Any, steps: Any,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, sign: float,
) -> int:  # fmt: skip
    """Take a step of S actors towards larger values of the first critics; see `learn_critics` for the arguments."""
    num, rows, size = observations.shape
    first = critics.shape[1] // num_critics
    num_actions, num_left_out = actor_widths[-1], 0
    x = memory[4, : rows * size].reshape(rows, size)
    for s in range(num):
        if not active[s]:
            continue
        x[:] = observations[s]
        actions = forward(blas, actor[s], actor_widths, x, memory[0])
        for i in range(rows):
            for j in range(num_actions):
                actions[i, j] = np.tanh(actions[i, j])
        both = joined(observations[s], actions, memory[3])
        values = forward(blas, critics[s, :first], widths, both, memory[1])
        total = 0.0
        for i in range(rows):
            total += values[i, 0]
            values[i, 0] = -np.float32(1.0) / np.float32(rows)  # the derivative of the loss takes their place
        losses[s] = -total / rows
        slope = backward(blas, critics[s, :first], widths, both, memory[1], values, grads[s], memory[2], False, True)
        grad = memory[3, : rows * num_actions].reshape(rows, num_actions)
        for i in range(rows):
            for j in range(num_actions):
                grad[i, j] = slope[i, size + j] * (np.float32(1.0) - actions[i, j] * actions[i, j])
        backward(blas, actor[s], actor_widths, x, memory[0], grad, grads[s], memory[2], True, False)
        if math.isfinite(losses[s]) and math.isfinite(norm(grads[s])):
            adam(actor[s], grads[s], exp_avg[s], exp_avg_sq[s], steps[s], lr, beta1, beta2, eps, weight_decay, sign)
        else:
            active[s] = False
            num_left_out += 1
    return num_left_out
