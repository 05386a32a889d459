"""Loops over samples, compiled by numba.

The link function comes as an argument, so that each link has code of its own; compilation takes about half a second per process.
Without fastmath: the numbers are those of the same loops in Python, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@numba.njit(inline="always")
def _descend(weights: FloatArray, x: FloatArray, y: FloatArray, rate: float, support: FloatArray, phi: Any, slope: float) -> None:
    """W <- W - rate (phi(W x) - y) x', for entries in the support only (all, if it is empty)."""
    num_targets, num_regressors = weights.shape
    masked = support.shape[0] > 0
    for row in range(num_targets):
        z = 0.0
        for column in range(num_regressors):
            z += weights[row, column] * x[column]
        step = rate * (phi(z, slope) - y[row])
        if masked:
            for column in range(num_regressors):
                weights[row, column] -= step * x[column] * support[row, column]
        else:
            for column in range(num_regressors):
                weights[row, column] -= step * x[column]


@numba.njit
def stream_sgd(
    x: FloatArray,
    y: FloatArray,
    first: int,
    stop: int,
    offset: int,
    spacing: int,
    rate: float,
    weights: FloatArray,
    total: FloatArray,
    support: FloatArray,
    phi: Any,
    slope: float,
) -> None:
    """Forward SGD on the samples `first` to `stop - 1`, for several chains of iterates that take turns.

    Args:
        x: (T, p) regressors.
        y: (T, k) targets.
        first: First sample to use.
        stop: Sample to stop before.
        offset: Number of samples of the stream before row 0.
        spacing: Only every spacing-th sample of the stream makes an update.
        rate: Twice the step size.
        weights: (chains, k, p), changed in place; sample i of the stream belongs to chain i mod chains.
        total: (k, p); the iterate after each sample, of the chain whose turn it is, is added.
        support: (k, p) of zeros and ones, or (0, 0).
        phi: Compiled link.
        slope: Its parameter.
    """
    num_chains, num_targets, num_regressors = weights.shape
    for i in range(first, stop):
        w = weights[(offset + i) % num_chains]
        if (offset + i) % spacing == 0:
            _descend(w, x[i], y[i], rate, support, phi, slope)
        for row in range(num_targets):
            for column in range(num_regressors):
                total[row, column] += w[row, column]


@numba.njit
def buffer_sgd(
    x: FloatArray,
    y: FloatArray,
    first: int,
    stop: int,
    length: int,
    orders: NDArray[np.int64],
    rate: float,
    weights: FloatArray,
    total: FloatArray,
    average_all: bool,
    support: FloatArray,
    phi: Any,
    slope: float,
) -> None:
    """SGD over the buffers `first` to `stop - 1`, each of which holds `length` consecutive samples.

    Args:
        x: (T, p) regressors.
        y: (T, k) targets.
        first: First buffer to use; buffer b begins at row b * length.
        stop: Buffer to stop before.
        length: Samples from the start of a buffer to that of the next.
        orders: (1, B) or (stop - first, B): positions inside the buffer in the order in which they are learned from.
        rate: Twice the step size.
        weights: (k, p), changed in place.
        total: (k, p); iterates are added: all of them, or those at the end of each buffer.
        average_all: Which.
        support: (k, p) of zeros and ones, or (0, 0).
        phi: Compiled link.
        slope: Its parameter.
    """
    num_targets, num_regressors = weights.shape
    for b in range(first, stop):
        order = orders[(b - first) % orders.shape[0]]
        for position in order:
            i = b * length + position
            _descend(weights, x[i], y[i], rate, support, phi, slope)
            if average_all:
                for row in range(num_targets):
                    for column in range(num_regressors):
                        total[row, column] += weights[row, column]
        if not average_all:
            for row in range(num_targets):
                for column in range(num_regressors):
                    total[row, column] += weights[row, column]


@numba.njit
def surrogate_gradient(x: FloatArray, y: FloatArray, weights: FloatArray, phi: Any, slope: float) -> FloatArray:
    """Sum over samples of (phi(W x) - y) x', shape (k, p)."""
    num_targets, num_regressors = weights.shape
    gradient = np.zeros((num_targets, num_regressors))
    for i in range(x.shape[0]):
        for row in range(num_targets):
            z = 0.0
            for column in range(num_regressors):
                z += weights[row, column] * x[i, column]
            residual = phi(z, slope) - y[i, row]
            for column in range(num_regressors):
                gradient[row, column] += residual * x[i, column]
    return gradient
