"""The limits in closed form, and least squares at them."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from sgd_twin import random_bimodal, states_of

from rlopt.sysid import (
    LeastSquares,
    QuasiNewton,
    frobenius_error,
    frobenius_limit,
    nonlinear_frobenius_limit,
    operator_error,
    operator_limit,
    prediction_limit,
    prediction_risk,
)


def system(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    matrix = random_bimodal(5, 0.9, np.random.default_rng(seed))
    return matrix, scipy.linalg.solve_discrete_lyapunov(matrix, np.eye(5))


def test_limits_of_the_random_bimodal_system() -> None:
    _, covariance = system()
    assert prediction_limit(np.eye(5), 5, 1.0) == pytest.approx(25)
    assert frobenius_limit(np.eye(5), covariance, 1.0) ** 2 == pytest.approx(11.95, abs=0.005)
    assert operator_limit(np.eye(5), covariance, 1.0) == pytest.approx(2.709, abs=0.01)
    np.testing.assert_allclose(frobenius_limit(np.eye(5), covariance, [1, 4]), np.sqrt(11.95) / np.array([1, 2]), rtol=1e-3)


@pytest.mark.slow
def test_least_squares_attains_the_limits() -> None:
    risks, squares, operators = [], [], []
    for seed in range(40):
        matrix, covariance = system(seed)
        estimate = LeastSquares().fit(states_of(matrix, 5_000, np.random.default_rng(100 + seed))).A_
        risks.append(prediction_risk(estimate, matrix, covariance) / prediction_limit(np.eye(5), 5, 5_000))
        squares.append((frobenius_error(estimate, matrix) / frobenius_limit(np.eye(5), covariance, 5_000)) ** 2)
        operators.append(operator_error(estimate, matrix) / operator_limit(np.eye(5), covariance, 5_000))
    assert 0.8 < np.mean(risks) < 1.2
    assert 0.8 < np.mean(squares) < 1.2
    assert 0.85 < np.mean(operators) < 1.15


def test_nonlinear_limit_is_the_linear_one_for_the_identity() -> None:
    matrix, _ = system()
    states = states_of(matrix, 5000, np.random.default_rng(1))
    empirical = states.T @ states / len(states)
    for estimator in ("surrogate", "least_squares"):
        found = nonlinear_frobenius_limit(matrix, states, 2.0, 100, link="identity", estimator=estimator)
        assert found == pytest.approx(float(frobenius_limit(2.0 * np.eye(5), empirical, 100)))


@pytest.mark.slow
def test_quasi_newton_attains_the_nonlinear_limit() -> None:
    def leaky(z: np.ndarray) -> np.ndarray:
        return np.where(z > 0, z, 0.5 * z)

    squares = []
    for seed in range(10):
        matrix = random_bimodal(3, 0.9, np.random.default_rng(seed))
        states = states_of(matrix, 10_000, np.random.default_rng(50 + seed), leaky)
        limit = nonlinear_frobenius_limit(matrix, states, 1.0, 10_000)
        assert nonlinear_frobenius_limit(matrix, states, 1.0, 10_000, estimator="least_squares") < limit
        squares.append((frobenius_error(QuasiNewton().fit(states).A_, matrix) / limit) ** 2)
    assert 0.7 < np.mean(squares) < 1.35


def test_errors_by_hand_and_of_several_estimates_at_once() -> None:
    difference = np.array([[3.0, 0.0], [0.0, 4.0]])
    both = np.stack([np.eye(2), np.eye(2) + difference])
    np.testing.assert_allclose(operator_error(both, np.eye(2)), [0, 4])
    np.testing.assert_allclose(frobenius_error(both, np.eye(2)), [0, 5])
    np.testing.assert_allclose(prediction_risk(both, np.eye(2), np.diag([1.0, 2.0])), [0, 9 + 32])
    with pytest.raises(ValueError, match=r"estimate must have shape \(..., 2, 2\) as truth has, got \(3, 2\)"):
        operator_error(np.zeros((3, 2)), np.eye(2))
    with pytest.raises(ValueError, match="estimator must be 'surrogate' or 'least_squares', got 'mle'"):
        nonlinear_frobenius_limit(np.eye(2), np.ones((5, 2)), 1.0, 10, estimator="mle")


def test_nonlinear_limits_of_one_state_by_hand() -> None:
    # For a law that is symmetric about 0 and slope 1/2 below it: E phi' x^2 = 3/4 G, E phi'^2 x^2 = 5/8 G.
    states = np.array([[1.0], [-1.0], [2.0], [-2.0]])  # G = 2.5
    surrogate = nonlinear_frobenius_limit([[0.5]], states, 3.0, 10, slope=0.5)
    least = nonlinear_frobenius_limit([[0.5]], states, 3.0, 10, slope=0.5, estimator="least_squares")
    assert surrogate**2 == pytest.approx(3 * 2.5 / (0.75 * 2.5) ** 2 / 10)
    assert least**2 == pytest.approx(3 / (0.625 * 2.5) / 10)
