from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import rlopt_envs  # noqa: F401 - registers the environments
from rlopt_envs.output_feedback import best_memoryless_gain, memoryless_cost

A, B, C = np.array([[1.0, 0.1], [0.0, 0.9]]), np.array([[0.0], [0.1]]), np.array([[1.0, 0.0]])
W, V, Q, R, S0 = 0.01 * np.eye(2), np.array([[0.05]]), np.diag([1.0, 0.1]), np.array([[0.1]]), np.diag([1.0, 0.5])
SYSTEM = (A, B, C, W, V, Q, R, 0.95, S0)


def test_cost_equals_the_sum_over_time() -> None:
    # Covariances step by step: the state's law under u = F y, and the cost x'Qx + u'Ru it has on average.
    F = np.array([[-1.5]])
    closed, total, covariance = A + B @ F @ C, 0.0, S0
    for t in range(2000):
        action_covariance = F @ (C @ covariance @ C.T + V) @ F.T
        total += 0.95**t * (np.trace(Q @ covariance) + np.trace(R @ action_covariance))
        covariance = closed @ covariance @ closed.T + B @ F @ V @ F.T @ B.T + W
    assert memoryless_cost(F, *SYSTEM) == pytest.approx(total, rel=1e-10)


def test_cost_without_bound_is_infinite() -> None:
    assert memoryless_cost([[50.0]], *SYSTEM) == np.inf


def test_best_gain_of_one_number_is_that_of_a_search_on_a_line() -> None:
    found = best_memoryless_gain(*SYSTEM)
    grid = np.linspace(-10, 5, 3001)
    costs = [memoryless_cost([[f]], *SYSTEM) for f in grid]
    near = grid[int(np.argmin(costs))]
    exact = minimize_scalar(lambda f: memoryless_cost([[f]], *SYSTEM), bracket=(near - 0.01, near, near + 0.01), tol=1e-12)
    assert found.cost == pytest.approx(exact.fun, rel=1e-9)
    assert found.gain[0, 0] == pytest.approx(exact.x, rel=1e-4)


def test_with_an_exact_view_of_the_state_it_is_the_regulator() -> None:
    env = gym.make("rlopt/LQR-v0").unwrapped
    system = env.system
    found = best_memoryless_gain(
        system.A, system.B, np.eye(2), system.noise_cov, np.zeros((2, 2)), env.Q, env.R, env.discount, env.initial_covariance
    )
    np.testing.assert_allclose(found.gain, -env.optimal_gain, rtol=1e-4)
    assert found.cost == pytest.approx(env.optimal_cost, rel=1e-8)


def test_memory_helps_in_lqg() -> None:
    env = gym.make("rlopt/LQG-v0").unwrapped
    system = env.system
    known = (system.A, system.B, env.C, system.noise_cov, env.observation_noise_cov, env.Q, env.R, env.discount)
    found = best_memoryless_gain(*known, env.initial_covariance)
    assert found.cost > env.optimal_cost
    assert found.cost <= memoryless_cost([[0.0]], *known, env.initial_covariance)


def test_wrong_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"discount must be in \(0, 1\), got 1.0"):
        best_memoryless_gain(A, B, C, W, V, Q, R, 1.0, S0)
    with pytest.raises(ValueError, match="num_starts must be > 0, got 0"):
        best_memoryless_gain(*SYSTEM, num_starts=0)
    with pytest.raises(ValueError, match="no gain without memory has a finite cost"):
        best_memoryless_gain(np.diag([9.0, 9.0]), B, C, W, V, Q, R, 0.95, S0, num_starts=2)
