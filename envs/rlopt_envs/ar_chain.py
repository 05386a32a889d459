"""A Gaussian-like autoregressive Markov chain of regressors, for least squares on dependent samples."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_BLOCK_ROWS = 65536  # steps whose noise is drawn at once; bounds the memory beside the result


def ar_chain(
    num_samples: int, dimension: int, epsilon: float, rng: np.random.Generator, previous: FloatArray | None = None
) -> FloatArray:
    """Return a path of the chain  x_(i+1) = sqrt(1 - epsilon^2) x_i + epsilon g_i.

    The x_0 and g_i are independent and uniform on the unit sphere, so that for every i  E|x_i|^2 = 1, the covariance is
    I / dimension, and the autocorrelation is (1 - epsilon^2)^(k/2) at lag k. The chain mixes in about 1 / epsilon^2 steps. Targets
    y_i = x_i'w + noise make a regression whose noise does not drive the regressors, unlike that of a dynamical system.

    Args:
        num_samples: Length N of the path, >= 1.
        dimension: Dimension d, >= 1.
        epsilon: Share of fresh noise, in (0, 1]; 1 gives independent samples.
        rng: Generator of all draws.
        previous: Last row of the path that is to be continued, shape (d,); None: a new path.

    Returns:
        x_0, ..., x_(N-1), shape (N, d), float64.

    Raises:
        ValueError: If an argument is out of its range.

    References: Nagaraj, Wu, Bresler, Jain, Netrapalli, Least squares regression with Markovian data: fundamental limits and
    algorithms, NeurIPS 2020, arXiv 2006.08916.

    Example:
        >>> x = ar_chain(10_000, 3, 0.5, np.random.default_rng(0))
        >>> x.shape, round(float((x**2).sum(axis=1).mean()), 1)
        ((10000, 3), 1.0)
    """
    for name, value in (("num_samples", num_samples), ("dimension", dimension)):
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}.")
    if not 0.0 < epsilon <= 1.0:
        raise ValueError(f"epsilon must be in (0, 1], got {epsilon}.")
    if previous is not None and np.shape(previous) != (dimension,):
        raise ValueError(f"previous must have shape ({dimension},), got {np.shape(previous)}.")
    path = np.empty((num_samples, dimension))
    decay = math.sqrt(1.0 - epsilon**2)
    for start in range(0, num_samples, _BLOCK_ROWS):
        block = path[start : start + _BLOCK_ROWS]
        rng.standard_normal(out=block)
        block /= np.linalg.norm(block, axis=1, keepdims=True)  # a normalised Gaussian vector is uniform on the sphere
        if start == 0 and previous is not None:
            path[0] = decay * previous + epsilon * path[0]
        _accumulate(path, start, start + len(block), decay, epsilon)
    return path


@numba.njit(cache=True)
def _accumulate(path: FloatArray, start: int, stop: int, decay: float, epsilon: float) -> None:  # pragma: no cover
    """Turn the noise in rows `start` to `stop - 1` into states, in place; row 0 is the first state."""
    for row in range(max(start, 1), stop):
        for column in range(path.shape[1]):
            path[row, column] = decay * path[row - 1, column] + epsilon * path[row, column]
