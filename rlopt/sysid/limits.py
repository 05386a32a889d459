"""How small an error can be: asymptotic limits to divide a measured error by, and the errors themselves.

All limits are for T transitions of one long trajectory, Gaussian noise with covariance S, and the stationary covariance G of
the states; least squares attains them as T grows.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from rlopt.sysid.links import LinkName, ScalarFunction, make_link

FloatArray = NDArray[np.float64]


def operator_error(estimate: ArrayLike, truth: ArrayLike) -> Any:
    """Return the largest singular value of estimate - truth; for estimates (..., k, p) an array of shape (...).

    Example:
        >>> float(operator_error([[1.0, 0.0], [0.0, 3.0]], np.eye(2)))
        2.0
    """
    return np.linalg.norm(_difference(estimate, truth), ord=2, axis=(-2, -1))


def frobenius_error(estimate: ArrayLike, truth: ArrayLike) -> Any:
    """Return the root of the sum of squares of estimate - truth; for estimates (..., k, p) an array of shape (...)."""
    return np.linalg.norm(_difference(estimate, truth), axis=(-2, -1))


def prediction_risk(estimate: ArrayLike, truth: ArrayLike, covariance: ArrayLike) -> Any:
    """Return the mean squared error of the predicted next state beyond the noise: tr((A - A*) G (A - A*)').

    Args:
        estimate: A, shape (..., k, p).
        truth: A*, shape (k, p).
        covariance: Covariance G of the regressors, shape (p, p).
    """
    difference = _difference(estimate, truth)
    return np.einsum("...ij,jk,...ik->...", difference, np.asarray(covariance, np.float64), difference)


def prediction_limit(noise_cov: ArrayLike, num_states: int, num_samples: ArrayLike) -> Any:
    """Return the limit of `prediction_risk`: d tr(S) / T.

    Example:
        >>> float(prediction_limit(np.eye(5), 5, 1000))
        0.025
    """
    return num_states * np.trace(np.asarray(noise_cov, np.float64)) / np.asarray(num_samples, np.float64)


def frobenius_limit(noise_cov: ArrayLike, covariance: ArrayLike, num_samples: ArrayLike) -> Any:
    """Return the limit of `frobenius_error`: sqrt(tr(S) tr(G^-1) / T).

    Example:
        >>> float(frobenius_limit(np.eye(1), [[4.0]], 100))
        0.05
    """
    trace = np.trace(np.asarray(noise_cov, np.float64)) * np.trace(np.linalg.inv(np.asarray(covariance, np.float64)))
    return np.sqrt(trace / np.asarray(num_samples, np.float64))


def operator_limit(
    noise_cov: ArrayLike, covariance: ArrayLike, num_samples: ArrayLike, *, num_draws: int = 20_000, seed: int = 0
) -> Any:
    """Return the limit of `operator_error`: E ||S^(1/2) Z G^(-1/2)|| / sqrt(T) with independent standard normal Z.

    Args:
        noise_cov: S, shape (k, k).
        covariance: G, shape (p, p).
        num_samples: T.
        num_draws: Matrices Z that the mean is taken of; the relative error is about 0.3 / sqrt(num_draws).
        seed: Seed of the draws.
    """
    noise, states = np.asarray(noise_cov, np.float64), np.asarray(covariance, np.float64)
    left = scipy.linalg.sqrtm(noise).real
    right = np.linalg.inv(scipy.linalg.sqrtm(states).real)
    draws = np.random.default_rng(seed).standard_normal((num_draws, len(noise), len(states)))
    return np.linalg.norm(left @ draws @ right, ord=2, axis=(-2, -1)).mean() / np.sqrt(np.asarray(num_samples, np.float64))


def errors_and_ratios(
    estimate: ArrayLike, truth: ArrayLike, noise_cov: ArrayLike, covariance: ArrayLike, num_samples: int
) -> dict[str, float]:
    """Return the three errors of an estimate of a linear system, each also divided by its limit.

    Args:
        estimate: A, shape (d, d).
        truth: A*, shape (d, d).
        noise_cov: S, shape (d, d).
        covariance: G, shape (d, d).
        num_samples: T.

    Returns:
        "operator", "frobenius" (norms of A - A*) and "prediction" (excess risk), and the same names with "_ratio": about 1 for
        least squares. The square of a ratio of norms compares with the ratio of risks.

    Example:
        >>> found = errors_and_ratios([[0.51]], [[0.5]], [[1.0]], [[4.0 / 3.0]], 7500)
        >>> {name: round(value, 6) for name, value in found.items() if name.startswith(("frobenius", "prediction"))}
        {'frobenius': 0.01, 'frobenius_ratio': 1.0, 'prediction': 0.000133, 'prediction_ratio': 1.0}
    """
    matrix = np.asarray(truth, np.float64)
    pairs = {
        "operator": (operator_error(estimate, matrix), operator_limit(noise_cov, covariance, num_samples)),
        "frobenius": (frobenius_error(estimate, matrix), frobenius_limit(noise_cov, covariance, num_samples)),
        "prediction": (
            prediction_risk(estimate, matrix, covariance),
            prediction_limit(noise_cov, len(matrix), num_samples),
        ),
    }
    found = {}
    for name, (error, limit) in pairs.items():
        found[name], found[f"{name}_ratio"] = float(error), float(error / limit)
    return found


def nonlinear_frobenius_limit(
    matrix: ArrayLike,
    states: ArrayLike,
    noise_variance: float,
    num_samples: ArrayLike,
    *,
    link: LinkName | ScalarFunction = "leaky_relu",
    slope: float = 0.5,
    estimator: Literal["surrogate", "least_squares"] = "surrogate",
) -> Any:
    """Return the limit of `frobenius_error` for x' = phi(A x) + noise with noise covariance v I.

    "surrogate" (estimators that leave out phi', as `QuasiNewton` and `SGDReverseReplay` do):
    sqrt(v sum_i tr(H_i^-1 G H_i^-1) / T) with H_i = E[phi'(a_i x) x x']. "least_squares", a little smaller and attained by no
    estimator here: sqrt(v sum_i tr(E[phi'^2 x x']^-1) / T).

    Args:
        matrix: A, shape (d, d).
        states: States of a long trajectory, shape (N, d), in place of the stationary law.
        noise_variance: v.
        num_samples: T.
        link: phi.
        slope: Slope of the leaky ReLU.
        estimator: Which limit.

    Raises:
        ValueError: For another estimator.
    """
    if estimator not in ("surrogate", "least_squares"):
        raise ValueError(f"estimator must be 'surrogate' or 'least_squares', got {estimator!r}.")
    weights, x = np.asarray(matrix, np.float64), np.asarray(states, np.float64)
    derivative = make_link(link, slope).derivative
    second_moment = x.T @ x / len(x)
    trace = 0.0
    for row in weights:
        slopes = derivative(x @ row)
        if estimator == "least_squares":
            trace += float(np.trace(np.linalg.inv((x * (slopes**2)[:, None]).T @ x / len(x))))
        else:
            inverse = np.linalg.inv((x * slopes[:, None]).T @ x / len(x))
            trace += float(np.trace(inverse @ second_moment @ inverse))
    return np.sqrt(noise_variance * trace / np.asarray(num_samples, np.float64))


def _difference(estimate: ArrayLike, truth: ArrayLike) -> FloatArray:
    found, wanted = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    if wanted.ndim != 2 or found.shape[-2:] != wanted.shape:
        raise ValueError(f"estimate must have shape (..., {', '.join(map(str, wanted.shape))}) as truth has, got {found.shape}.")
    return found - wanted
