"""The steps of critics that TD3 and SAC share, in numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rlopt.agents.fast.numba_blas import compiled
from rlopt.agents.fast.numba_mlp import backward, forward


@compiled
def joined(observations: Any, actions: Any, memory: Any) -> Any:
    """Observations (B, o) and actions (B, a), side by side (B, o + a) in `memory`."""
    rows, size = observations.shape
    width = size + actions.shape[1]
    x = memory[: rows * width].reshape(rows, width)
    x[:, :size] = observations
    x[:, size:] = actions
    return x


@compiled
def smallest_values(blas: int, critics: Any, num_critics: int, widths: Any, x: Any, kept: Any, out: Any) -> None:
    """Write the smallest of the critics' values (B, 1) for inputs `x` (B, o + a) into `out`; nan wins."""
    size = len(critics) // num_critics
    for c in range(num_critics):
        values = forward(blas, critics[c * size : (c + 1) * size], widths, x, kept)
        for i in range(len(x)):
            if c == 0 or values[i, 0] < out[i, 0] or math.isnan(values[i, 0]):
                out[i, 0] = values[i, 0]


@compiled
def critic_gradient(
    blas: int,
    critics: Any,
    num_critics: int,
    widths: Any,
    x: Any,
    targets: Any,
    weights: Any,
    scale: float,
    grads: Any,
    errors: Any,
    memory: Any,
) -> float:
    """Gradient of scale * sum_c mean_i w_i (Q_c(x_i) - y_i)^2 for one agent.

    Args:
        blas: Address of `sgemm`.
        critics: Parameters of C critics, one behind the other.
        num_critics: C.
        widths: Of one.
        x: (B, o + a).
        targets: y, (B, 1).
        weights: w, (B, 1).
        scale: 1 for TD3, 1/2 for SAC.
        grads: Where the gradient is written, like `critics`.
        errors: Where y - min_c Q_c is written, (B, 1).
        memory: Scratch, (3, at least B times the sum of widths).

    Returns:
        The loss.
    """
    rows, size = len(x), len(critics) // num_critics
    grad = memory[2, :rows].reshape(rows, 1)
    loss = 0.0
    for c in range(num_critics):
        part = critics[c * size : (c + 1) * size]
        values = forward(blas, part, widths, x, memory[0])
        total = 0.0
        for i in range(rows):
            error = targets[i, 0] - values[i, 0]
            if c == 0 or error > errors[i, 0] or math.isnan(error):
                errors[i, 0] = error
            weighted = weights[i, 0] * error
            total += weighted * error
            grad[i, 0] = -np.float32(2.0 * scale) * weighted / np.float32(rows)
        loss += scale * total / rows
        backward(blas, part, widths, x, memory[0], grad, grads[c * size : (c + 1) * size], memory[1], True, False)
    return loss
