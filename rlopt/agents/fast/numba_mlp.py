"""Perceptrons with ReLU and Adam in numba: what a small network computes, without what it costs to call a library for each part.

Networks are rows of parameters W_1, b_1, W_2, ..., as in `StackedMLP`; all arrays are float32. Products of matrices are those of
`numba_blas.sgemm`, whose address is the argument `blas`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from rlopt.agents.fast.numba_blas import compiled, kernel, times, times_transposed, transposed_times

# Far below what changes a parameter in float32, far above the smallest normal number, 1e-38.
TINY_AVERAGE = np.float32(1e-30)
TINY_SQUARE = np.float32(1e-36)

VECTOR = types.float32[::1]
ROWS = types.float32[:, ::1]  # of S networks or agents
BATCHES = types.float32[:, :, :]  # of S agents, any strides
ACTIONS = types.int64[:, :, :]
WIDTHS = types.int64[::1]
ACTIVE = types.boolean[::1]  # which of S agents take a step
REAL = types.float64
BLAS = types.int64


@compiled
def forward(blas: int, params: Any, widths: Any, x: Any, kept: Any) -> Any:
    """Outputs (B, out) of one network for inputs (B, in); what layers give is written into `kept`, the outputs last."""
    rows, last = x.shape[0], len(widths) - 2
    begin, place = 0, 0
    for layer in range(last + 1):
        before, after = widths[layer], widths[layer + 1]
        weight = params[begin : begin + before * after].reshape(after, before)
        begin += before * after
        bias = params[begin : begin + after]
        begin += after
        out = kept[place : place + rows * after].reshape(rows, after)
        place += rows * after
        times_transposed(blas, x, weight, out)
        if layer < last:
            for i in range(rows):
                for j in range(after):
                    value = out[i, j] + bias[j]
                    out[i, j] = np.float32(0.0) if value < 0.0 else value  # nan stays nan
        else:
            for i in range(rows):
                for j in range(after):
                    out[i, j] += bias[j]
        x = out
    return x


@compiled
def backward(
    blas: int, params: Any, widths: Any, x: Any, kept: Any, grad: Any, grads: Any, scratch: Any, of_params: bool, of_x: bool
) -> Any:
    """Derivatives of the sum of outputs times `grad` (B, out), after `forward` with the same `kept`.

    Those with respect to the parameters are written into `grads` if `of_params`. With `of_x` those with respect to the inputs are
    returned, (B, in), in `scratch`, which has room for B numbers per unit of all layers but the last.
    """
    rows = x.shape[0]
    end, place, free = len(params), 0, 0
    for width in widths[1:]:
        place += rows * width
    for layer in range(len(widths) - 2, -1, -1):
        before, after = widths[layer], widths[layer + 1]
        first = end - after * (before + 1)
        place -= rows * after
        inputs = kept[place - rows * before : place].reshape(rows, before) if layer > 0 else x
        if of_params:
            transposed_times(blas, grad, inputs, grads[first : end - after].reshape(after, before))
            of_bias = grads[end - after : end]
            of_bias[:] = 0.0
            for i in range(rows):
                for j in range(after):
                    of_bias[j] += grad[i, j]
        if layer == 0 and not of_x:
            break
        through = scratch[free : free + rows * before].reshape(rows, before)
        free += rows * before
        times(blas, grad, params[first : end - after].reshape(after, before), through)
        if layer > 0:
            for i in range(rows):
                for j in range(before):
                    through[i, j] = np.float32(0.0) if inputs[i, j] <= 0.0 else through[i, j]
        grad, end = through, first
    return grad


@compiled
def norm(grads: Any) -> float:
    """Euclidean norm of a vector."""
    return math.sqrt(np.dot(grads, grads))


@compiled
def clip(grads: Any, size: float, bound: float) -> None:
    """Shorten a vector of norm `size` to at most `bound`, as `torch.nn.utils.clip_grad_norm_` does."""
    factor = np.float32(bound / (size + 1e-6))
    if factor < 1.0:
        for i in range(len(grads)):
            grads[i] *= factor


@compiled
def adam(
    params: Any, grads: Any, exp_avg: Any, exp_avg_sq: Any, steps: Any,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, sign: float,
) -> None:  # fmt: skip
    """One step of torch's fused Adam for one network; `sign` is -1 to maximise. `steps` (k,) are k times the same count.

    Averages of units that never fire decay towards 0 and stay at numbers below the normal range, with which processors compute many
    times slower: averages become 0 where they are too small to move a parameter.
    """
    steps += np.float32(1.0)
    count = np.float64(steps[0])
    step_size = np.float32(lr / (1.0 - beta1**count))
    root = np.float32(math.sqrt(1.0 - beta2**count))
    b1, b2, e, decay = np.float32(beta1), np.float32(beta2), np.float32(eps), np.float32(weight_decay)
    r1, r2, direction = np.float32(1.0 - beta1), np.float32(1.0 - beta2), np.float32(sign)
    for i in range(len(params)):
        grad = direction * grads[i] + decay * params[i]
        average = b1 * exp_avg[i] + r1 * grad
        square = b2 * exp_avg_sq[i] + r2 * grad * grad
        average = np.float32(0.0) if abs(average) < TINY_AVERAGE else average
        square = np.float32(0.0) if square < TINY_SQUARE else square
        exp_avg[i], exp_avg_sq[i] = average, square
        params[i] -= step_size * average / (np.sqrt(square) / root + e)


# Types of the arguments of an optimizer, in the order of `FlatAdam.arguments`.
ADAM = (ROWS, ROWS, ROWS, ROWS, REAL, REAL, REAL, REAL, REAL, REAL)


@kernel(types.void, BLAS, ROWS, WIDTHS, BATCHES, BATCHES, ROWS)
def act(blas: int, params: Any, widths: Any, observations: Any, out: Any, memory: Any) -> None:
    """Outputs (S, B, out) of S networks for a few rows (S, B, in) each; `memory` (2, at least B times the sum of widths)."""
    num, rows, size = observations.shape
    x = memory[0, : rows * size].reshape(rows, size)
    for s in range(num):
        x[:] = observations[s]
        out[s] = forward(blas, params[s], widths, x, memory[1])
