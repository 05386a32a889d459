"""DQN's learning step in numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from rlopt.agents.fast.numba_blas import kernel
from rlopt.agents.fast.numba_mlp import (
    ACTIONS,
    ACTIVE,
    ADAM,
    BATCHES,
    BLAS,
    REAL,
    ROWS,
    VECTOR,
    WIDTHS,
    adam,
    backward,
    clip,
    forward,
    norm,
)


@kernel(
    types.int64, BLAS,
    ACTIVE, ROWS, ROWS, WIDTHS, BATCHES, ACTIONS, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES, types.boolean, REAL,
    VECTOR, BATCHES,
    ROWS, *ADAM,
)  # fmt: skip
def learn(
    blas: int, active: Any, online: Any, target: Any, widths: Any, observations: Any, actions: Any, next_observations: Any,
    rewards: Any, dones: Any,
    discounts: Any, weights: Any, double_q: bool, max_grad_norm: float, losses: Any, errors: Any, memory: Any,
    grads: Any, exp_avg: Any, exp_avg_sq: Any, steps: Any,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, sign: float,
) -> int:  # fmt: skip
    """Take a step of S Q-networks, each on a batch of its own; see `DQNGradient` for the arguments.

    Those that are not `active` (S,) take none, nor do those whose loss or gradient is not finite: they become inactive. Writes
    the losses (S,), the TD errors (S, B, 1) and the gradients (S, n). `memory` (5, at least B times the sum of widths) is scratch.

    Returns:
        How many became inactive.
    """
    num, rows, size = observations.shape
    num_actions, num_left_out = widths[-1], 0
    kept, kept_next, scratch = memory[0], memory[1], memory[2]
    x = memory[3, : rows * size].reshape(rows, size)
    grad = memory[4, : rows * num_actions].reshape(rows, num_actions)
    for s in range(num):
        if not active[s]:
            continue
        x[:] = next_observations[s]
        next_q = forward(blas, target[s], widths, x, kept_next)
        if double_q:
            choosing = forward(blas, online[s], widths, x, kept)
        else:
            choosing = next_q
        for i in range(rows):
            best = 0
            for j in range(1, num_actions):
                if choosing[i, j] > choosing[i, best]:
                    best = j
            value = next_q[i, best]
            for j in range(num_actions):  # argmax must not hide nan
                if math.isnan(next_q[i, j]):
                    value = next_q[i, j]
            errors[s, i, 0] = rewards[s, i, 0] + (np.float32(1.0) - dones[s, i, 0]) * discounts[s, i, 0] * value
        x[:] = observations[s]
        q = forward(blas, online[s], widths, x, kept)
        loss = 0.0
        grad[:] = 0.0
        for i in range(rows):
            action = actions[s, i, 0]
            error = errors[s, i, 0] - q[i, action]
            errors[s, i, 0] = error
            clipped = min(max(error, np.float32(-1.0)), np.float32(1.0))
            slope = clipped * weights[s, i, 0]
            loss += (error - np.float32(0.5) * clipped) * slope
            grad[i, action] = -slope / np.float32(rows)
        losses[s] = loss / rows
        backward(blas, online[s], widths, x, kept, grad, grads[s], scratch, True, False)
        size_of_grad = norm(grads[s])
        if not (math.isfinite(losses[s]) and math.isfinite(size_of_grad)):
            active[s] = False
            num_left_out += 1
            continue
        clip(grads[s], size_of_grad, max_grad_norm)
        adam(online[s], grads[s], exp_avg[s], exp_avg_sq[s], steps[s], lr, beta1, beta2, eps, weight_decay, sign)
    return num_left_out
