"""Least squares against NumPy's solver, and against the statistical limits."""

from __future__ import annotations

import numpy as np
import pytest
from sgd_twin import random_bimodal, states_of

from rlopt.sysid import LeastSquares, Trajectory


def data(num_steps: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    states = states_of(random_bimodal(4, 0.9, rng), num_steps, rng)
    return states[:-1], states[1:]


def test_it_is_the_solution_of_a_library() -> None:
    x, y = data()
    np.testing.assert_allclose(LeastSquares().fit((x, y)).A_, np.linalg.lstsq(x, y, rcond=None)[0].T, rtol=0, atol=1e-8)


def test_it_multiplies_by_the_inverse_on_the_right() -> None:
    x, y = data()
    expected = (y.T @ x) @ np.linalg.inv(x.T @ x)
    np.testing.assert_allclose(LeastSquares().fit((x, y)).A_, expected, rtol=0, atol=1e-10)


def test_intercept_is_the_solution_with_a_column_of_ones() -> None:
    x, y = data()
    y = y + np.array([1.0, -2.0, 0.0, 5.0])
    expected = np.linalg.lstsq(np.hstack([x, np.ones((len(x), 1))]), y, rcond=None)[0].T
    fitted = LeastSquares(fit_intercept=True).fit((x, y))
    np.testing.assert_allclose(fitted.A_, expected[:, :4], rtol=0, atol=1e-9)
    np.testing.assert_allclose(fitted.intercept_, expected[:, 4], rtol=0, atol=1e-9)


def test_ridge_is_least_squares_with_added_rows_and_leaves_the_intercept_free() -> None:
    x, y = data(30)
    y = y + 3.0
    rows = np.sqrt(5.0) * np.eye(4)
    with_ones = np.hstack([np.vstack([x, rows]), np.r_[np.ones(30), np.zeros(4)][:, None]])
    expected = np.linalg.lstsq(with_ones, np.vstack([y, np.zeros((4, 4))]), rcond=None)[0].T
    fitted = LeastSquares(regularization=5.0, fit_intercept=True).fit((x, y))
    np.testing.assert_allclose(fitted.A_, expected[:, :4], rtol=0, atol=1e-9)
    np.testing.assert_allclose(fitted.intercept_, expected[:, 4], rtol=0, atol=1e-9)


def test_fewer_samples_than_regressors_give_the_solution_of_least_norm() -> None:
    x, y = data(3)
    np.testing.assert_allclose(LeastSquares().fit((x, y)).A_, np.linalg.pinv(x).dot(y).T, rtol=0, atol=1e-7)


def test_pieces_equal_the_whole() -> None:
    x, y = data()
    stream = LeastSquares()
    for begin in range(0, 400, 70):
        stream.partial_fit((x[begin : begin + 70], y[begin : begin + 70]))
    np.testing.assert_allclose(stream.A_, LeastSquares().fit((x, y)).A_, rtol=0, atol=1e-11)
    assert stream.num_samples_ == 400


def test_history_is_the_fit_of_the_first_samples_over_the_ends_of_trajectories() -> None:
    x, y = data()
    parts = [Trajectory(x[:130], y[:130]), Trajectory(x[130:131], y[130:131]), Trajectory(x[131:], y[131:])]
    fitted = LeastSquares().fit(parts, num_checkpoints=9)
    assert fitted.history_.samples[0] == 40
    for samples, estimate in zip(*fitted.history_, strict=True):
        np.testing.assert_allclose(estimate, LeastSquares().fit((x[:samples], y[:samples])).A_, rtol=0, atol=1e-10)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="regularization must be >= 0, got -1"):
        LeastSquares(regularization=-1.0)
    with pytest.raises(ValueError, match="num_checkpoints must be >= 1, got 0"):
        LeastSquares().fit(data(), num_checkpoints=0)
    with pytest.raises(ValueError, match="data must have 4 regressors and 4 targets, got 2 and 4"):
        LeastSquares().partial_fit(data()).partial_fit((data()[0][:, :2], data()[1]))
