"""SAC's learning steps in numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from rlopt.agents.fast.numba_blas import compiled, kernel
from rlopt.agents.fast.numba_critics import critic_gradient, joined, smallest_values
from rlopt.agents.fast.numba_mlp import (
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
    forward,
    norm,
)

LOG_STD_RANGE = (-20.0, 2.0)  # as in Stable-Baselines3
EPSILON = 1e-6  # in the logarithm of the derivative of tanh, as there
_LOW, _HIGH = np.float32(LOG_STD_RANGE[0]), np.float32(LOG_STD_RANGE[1])
_SMALL = np.float32(EPSILON)
_HALF_LOG_2_PI = np.float32(0.5 * math.log(2 * math.pi))


@compiled
def _clamped(raw: Any) -> Any:
    return _LOW if raw < _LOW else (_HIGH if raw > _HIGH else raw)


@compiled
def _draw(blas: int, actor: Any, widths: Any, x: Any, noise: Any, kept: Any, actions: Any, log_probs: Any) -> None:
    """Actions (B, A) = tanh(mu + sigma * noise) of one actor, with their log pi (B, 1)."""
    one = np.float32(1.0)
    outputs = forward(blas, actor, widths, x, kept)
    num_actions = actions.shape[1]
    for i in range(len(x)):
        log_probs[i, 0] = 0.0
        for j in range(num_actions):
            log_std = _clamped(outputs[i, num_actions + j])
            action = np.tanh(outputs[i, j] + np.exp(log_std) * noise[i, j])
            actions[i, j] = action
            room = one - action * action + _SMALL
            log_probs[i, 0] += np.float32(-0.5) * noise[i, j] * noise[i, j] - log_std - _HALF_LOG_2_PI - np.log(room)


@kernel(types.void, BLAS, ACTIVE, ROWS, WIDTHS, BATCHES, BATCHES, ROWS, BATCHES, BATCHES, ROWS)
def draw(
    blas: int,
    active: Any,
    actor: Any,
    widths: Any,
    observations: Any,
    noise: Any,
    kept: Any,
    actions: Any,
    log_probs: Any,
    memory: Any,
) -> None:
    """Draw actions (S, B, A) and log pi (S, B, 1) of S actors; `kept` (S, .) is for `learn_actor`, `noise` standard normal."""
    num, rows, size = observations.shape
    x = memory[3, : rows * size].reshape(rows, size)
    for s in range(num):
        if not active[s]:
            continue
        x[:] = observations[s]
        _draw(blas, actor[s], widths, x, noise[s], kept[s], actions[s], log_probs[s])


@kernel(
    types.int64, BLAS,
    ACTIVE, ROWS, WIDTHS, ROWS, ROWS, WIDTHS, types.int64, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES, BATCHES,
    BATCHES,
    VECTOR, VECTOR, BATCHES, ROWS, *ADAM,
)  # fmt: skip
def learn_critics(
    blas: int, active: Any, actor: Any, actor_widths: Any, critics: Any, critics_target: Any, widths: Any, num_critics: int,
    observations: Any,
    actions: Any, next_observations: Any, rewards: Any, dones: Any, discounts: Any, weights: Any, noise: Any, ent_coefs: Any,
    losses: Any, errors: Any, memory: Any, grads: Any, exp_avg: Any, exp_avg_sq: Any, steps: Any,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, sign: float,
) -> int:  # fmt: skip
    """Take a step of the critics of S agents; see `SACGradient.of_critics`, and `numba_td3.learn_critics` for the arguments.

    `noise` is standard normal, `ent_coefs` are the entropy coefficients (S,), `memory` has 7 rows.
    """
    num, rows, size = observations.shape
    num_actions, num_left_out = noise.shape[2], 0
    targets = memory[4, :rows].reshape(rows, 1)
    next_actions = memory[5, : rows * num_actions].reshape(rows, num_actions)
    log_probs = memory[6, :rows].reshape(rows, 1)
    for s in range(num):
        if not active[s]:
            continue
        x = memory[3, : rows * size].reshape(rows, size)
        x[:] = next_observations[s]
        _draw(blas, actor[s], actor_widths, x, noise[s], memory[0], next_actions, log_probs)
        x = joined(next_observations[s], next_actions, memory[3])
        smallest_values(blas, critics_target[s], num_critics, widths, x, memory[1], targets)
        for i in range(rows):
            value = targets[i, 0] - ent_coefs[s] * log_probs[i, 0]
            targets[i, 0] = rewards[s, i, 0] + (np.float32(1.0) - dones[s, i, 0]) * discounts[s, i, 0] * value
        x = joined(observations[s], actions[s], memory[3])
        losses[s] = critic_gradient(blas, critics[s], num_critics, widths, x, targets, weights[s], 0.5, grads[s], errors[s], memory)
        if math.isfinite(losses[s]) and math.isfinite(norm(grads[s])):
            adam(critics[s], grads[s], exp_avg[s], exp_avg_sq[s], steps[s], lr, beta1, beta2, eps, weight_decay, sign)
        else:
            active[s] = False
            num_left_out += 1
    return num_left_out


@kernel(
    types.int64, BLAS,
    ACTIVE, ROWS, WIDTHS, ROWS, types.int64, WIDTHS, BATCHES, BATCHES, BATCHES, BATCHES, ROWS, VECTOR, VECTOR, ROWS, *ADAM,
)  # fmt: skip
def learn_actor(
    blas: int, active: Any, actor: Any, actor_widths: Any, critics: Any, num_critics: int, widths: Any, observations: Any,
    noise: Any,
    actions: Any,
    log_probs: Any, kept: Any, ent_coefs: Any, losses: Any, memory: Any, grads: Any, exp_avg: Any, exp_avg_sq: Any, steps: Any,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, sign: float,
) -> int:  # fmt: skip
    """Take a step of S actors for what `draw` drew, which they have not moved since; see `SACGradient.of_actor`.

    `memory` has 9 + C rows.
    """
    num, rows, size = observations.shape
    length = critics.shape[1] // num_critics
    num_actions, num_left_out, one = noise.shape[2], 0, np.float32(1.0)
    action_grad = memory[4, : rows * num_actions].reshape(rows, num_actions)
    grad = memory[5, : 2 * rows * num_actions].reshape(rows, 2 * num_actions)
    x = memory[6, : rows * size].reshape(rows, size)
    of_values = memory[7, :rows].reshape(rows, 1)
    smallest = memory[8, :rows]
    num_kept = rows * widths[1:].sum()
    for s in range(num):
        if not active[s]:
            continue
        both = joined(observations[s], actions[s], memory[3])
        for c in range(num_critics):
            values = forward(blas, critics[s, c * length : (c + 1) * length], widths, both, memory[9 + c])
            for i in range(rows):
                if c == 0 or values[i, 0] < smallest[i] or math.isnan(values[i, 0]):
                    smallest[i] = values[i, 0]
        total = 0.0
        for i in range(rows):
            total += ent_coefs[s] * log_probs[s, i, 0] - smallest[i]
        losses[s] = total / rows
        action_grad[:] = 0.0
        for c in range(num_critics):
            values = memory[9 + c, num_kept - rows : num_kept].reshape(rows, 1)
            for i in range(rows):
                of_values[i, 0] = 0.0
                if values[i, 0] == smallest[i]:
                    of_values[i, 0] = -one / np.float32(rows)
                    smallest[i] = np.nan  # the first of equal ones
            critic = critics[s, c * length : (c + 1) * length]
            slope = backward(blas, critic, widths, both, memory[9 + c], of_values, grads[s], memory[2], False, True)
            for i in range(rows):
                for j in range(num_actions):
                    action_grad[i, j] += slope[i, size + j]
        share = np.float32(ent_coefs[s]) / np.float32(rows)
        end = kept.shape[1]
        outputs = kept[s, end - 2 * rows * num_actions :].reshape(rows, 2 * num_actions)
        for i in range(rows):
            for j in range(num_actions):
                raw, action = outputs[i, num_actions + j], actions[s, i, j]
                slope_of_tanh = one - action * action
                # d(-log(1 - a^2 + eps)) / da = 2 a / (1 - a^2 + eps)
                of_mean = (action / (slope_of_tanh + _SMALL) * np.float32(2.0) * share + action_grad[i, j]) * slope_of_tanh
                of_log_std = of_mean * np.exp(_clamped(raw)) * noise[s, i, j] - share
                grad[i, j] = of_mean
                grad[i, num_actions + j] = np.float32(0.0) if raw < _LOW or raw > _HIGH else of_log_std
        x[:] = observations[s]
        backward(blas, actor[s], actor_widths, x, kept[s], grad, grads[s], memory[2], True, False)
        if math.isfinite(losses[s]) and math.isfinite(norm(grads[s])):
            adam(actor[s], grads[s], exp_avg[s], exp_avg_sq[s], steps[s], lr, beta1, beta2, eps, weight_decay, sign)
        else:
            active[s] = False
            num_left_out += 1
    return num_left_out


@kernel(types.int64, ACTIVE, ROWS, BATCHES, REAL, VECTOR, *ADAM)
def learn_ent_coefs(
    active: Any, log_ent_coefs: Any, log_probs: Any, target_entropy: float, losses: Any, grads: Any, exp_avg: Any,
    exp_avg_sq: Any, steps: Any,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, sign: float,
) -> int:  # fmt: skip
    """Take a step of the logarithms (S, 1) of S entropy coefficients."""
    num_left_out = 0
    for s in range(len(log_ent_coefs)):
        if not active[s]:
            continue
        total = 0.0
        for i in range(log_probs.shape[1]):
            total += log_probs[s, i, 0] + target_entropy
        distance = total / log_probs.shape[1]
        grads[s, 0] = -distance
        losses[s] = -log_ent_coefs[s, 0] * distance
        if math.isfinite(losses[s]):
            adam(log_ent_coefs[s], grads[s], exp_avg[s], exp_avg_sq[s], steps[s], lr, beta1, beta2, eps, weight_decay, sign)
        else:
            active[s] = False
            num_left_out += 1
    return num_left_out
