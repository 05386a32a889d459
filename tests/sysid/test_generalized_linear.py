"""Quasi-Newton and GLMtron against least squares, against their rates, and on a system with a known matrix."""

from __future__ import annotations

import numpy as np
import pytest
from sgd_twin import random_bimodal, states_of

from rlopt.sysid import GLMtron, LeastSquares, QuasiNewton, Trajectory, frobenius_error


def leaky(z: np.ndarray) -> np.ndarray:
    return np.where(z > 0, z, 0.5 * z)


def data(num_steps: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    matrix = random_bimodal(3, 0.95, rng)
    return matrix, states_of(matrix, num_steps, rng, leaky)


def test_one_full_step_with_the_identity_is_least_squares() -> None:
    _, states = data()
    one = QuasiNewton(link="identity", num_iterations=1, step_size=0.5).fit(states)
    np.testing.assert_allclose(one.A_, LeastSquares().fit(states).A_, rtol=0, atol=1e-8)


def test_iterations_by_hand() -> None:
    _, states = data(50)
    x, y = states[:-1], states[1:]
    weights, inverse = np.zeros((3, 3)), np.linalg.inv(x.T @ x / 50)
    plain = np.zeros((3, 3))
    limit = 1 / np.linalg.eigvalsh(x.T @ x / 50)[-1]
    for _ in range(7):
        weights = weights - 2 * 0.2 * ((leaky(x @ weights.T) - y).T @ x / 50) @ inverse
        plain = plain - 2 * (0.5 * limit) * (leaky(x @ plain.T) - y).T @ x / 50
    np.testing.assert_allclose(QuasiNewton(num_iterations=7).fit(states).A_, weights, rtol=0, atol=1e-12)
    np.testing.assert_allclose(GLMtron(num_iterations=7).fit(states).A_, plain, rtol=0, atol=1e-12)


def test_error_shrinks_by_a_factor_between_the_two_that_the_slopes_allow() -> None:
    matrix, states = data()
    noiseless = (states[:-1], leaky(states[:-1] @ matrix.T))
    iterates = QuasiNewton(num_iterations=20).fit(noiseless).iterates_
    x = states[:-1]
    root = np.linalg.cholesky(x.T @ x / len(x))
    errors = np.array([np.linalg.norm((iterate - matrix) @ root) for iterate in iterates])
    ratios = errors[1:] / errors[:-1]
    assert ratios.max() <= 1 - 2 * 0.2 * 0.5 + 1e-9
    assert ratios.min() >= 1 - 2 * 0.2 - 1e-9


def test_quasi_newton_has_converged_where_glmtron_is_still_far() -> None:
    _, states = data()
    limit = QuasiNewton(num_iterations=200).fit(states).A_
    newton, plain = (frobenius_error(make(num_iterations=30).fit(states).A_, limit) for make in (QuasiNewton, GLMtron))
    assert newton < 1e-3
    assert plain > 10 * newton


def test_singular_covariance_gives_zero() -> None:
    x = np.ones((50, 2))
    assert not QuasiNewton().fit((x, x)).A_.any()


def test_step_size_that_diverges_is_refused_with_its_limit() -> None:
    x = np.diag([2.0, 1.0])  # largest eigenvalue of the mean of x x' is 2
    with pytest.raises(ValueError, match=r"step_size must be below 0.5 for these data"):
        GLMtron(step_size=0.5).fit((x, x))
    GLMtron(step_size=0.49).fit((x, x))


def test_support_history_and_several_trajectories() -> None:
    _, states = data(600)
    support = np.eye(3, dtype=bool)
    assert not QuasiNewton(support=support).fit(states).A_[~support].any()
    fitted = QuasiNewton().fit(states, num_checkpoints=4)
    for samples, estimate in zip(*fitted.history_, strict=True):
        np.testing.assert_allclose(estimate, QuasiNewton().fit(states[: samples + 1]).A_, rtol=0, atol=1e-12)
    parts = [Trajectory.from_states(states[:200]), Trajectory.from_states(states[199:])]
    np.testing.assert_allclose(QuasiNewton().fit(parts).A_, fitted.A_, rtol=0, atol=1e-12)


def test_own_link_has_the_values_of_the_named_one() -> None:
    _, states = data(300)
    own = QuasiNewton(link=lambda z: max(z, 0.5 * z)).fit(states).A_
    np.testing.assert_allclose(own, QuasiNewton().fit(states).A_, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuasiNewton(step_size=1.0), r"step_size must be in \(0, 1\), got 1.0"),
        (lambda: QuasiNewton(num_iterations=0), "num_iterations must be >= 1, got 0"),
        (lambda: GLMtron(step_size=-1.0), "step_size must be > 0 or None, got -1.0"),
        (lambda: GLMtron(link="sigmoid"), "link must be 'identity', 'leaky_relu', 'tanh' or a function"),
    ],
)
def test_wrong_option_is_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
