"""The estimators once more, as plain loops over samples that follow the formulas and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def random_bimodal(num_states: int, spectral_radius: float, rng: np.random.Generator) -> FloatArray:
    q, r = np.linalg.qr(rng.standard_normal((num_states, num_states)))
    q = q * np.sign(np.diag(r))
    large = -(-num_states // 2)
    eigenvalues = np.r_[np.full(large, spectral_radius), np.full(num_states - large, spectral_radius / 3)]
    return (q * eigenvalues) @ q.T


def states_of(matrix: FloatArray, num_steps: int, rng: np.random.Generator, phi: Callable = lambda z: z) -> FloatArray:
    states = np.zeros((num_steps + 1, len(matrix)))
    noise = rng.standard_normal((num_steps, len(matrix)))
    for t in range(num_steps):
        states[t + 1] = phi(matrix @ states[t]) + noise[t]
    return states


def descend(weights: FloatArray, x: FloatArray, y: FloatArray, step_size: float, phi: Callable = lambda z: z) -> FloatArray:
    """One update, summed from left to right."""
    new = weights.copy()
    for row in range(len(weights)):
        z = 0.0
        for w, value in zip(weights[row], x, strict=True):
            z += w * value
        factor = 2.0 * step_size * (phi(z) - y[row])
        for column, value in enumerate(x):
            new[row, column] -= factor * value
    return new


def run(x: FloatArray, y: FloatArray, order: Iterable[int], step_size: float, weights: FloatArray, phi: Callable = lambda z: z):
    """Return the iterate after each sample of the order."""
    iterates = []
    for i in order:
        weights = descend(weights, x[i], y[i], step_size, phi)
        iterates.append(weights)
    return iterates


def mean(iterates: list[FloatArray]) -> FloatArray:
    total = np.zeros_like(iterates[0])
    for iterate in iterates:
        total = total + iterate
    return total / len(iterates)


def reverse_replay(states: FloatArray, buffer_size: int, gap: int, step_size: float, tail_start: float = 0.5, phi=lambda z: z):
    """The mean of the iterates at the ends of the buffers t > a, and all iterates."""
    length = buffer_size + gap
    num_buffers = (len(states) - 1) // length
    x, y = states[:-1], states[1:]
    weights, ends, everything = np.zeros((states.shape[1],) * 2), [], []
    for buffer in range(num_buffers):
        newest = buffer * length + length - 1
        iterates = run(x, y, range(newest, newest - buffer_size, -1), step_size, weights, phi)
        weights = iterates[-1]
        ends.append(weights)
        everything.append(iterates)
    tail = int(num_buffers * tail_start)
    return mean(ends[tail:]), everything, tail
