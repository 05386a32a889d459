from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlopt_envs import LinearSystemEnv, LinearSystemVectorEnv, random_bimodal

A = np.array([[0.7, 0.2], [0.0, 0.5]])
B = np.array([[1.0], [2.0]])


def test_the_default_is_the_random_bimodal_system_with_one_input_per_state() -> None:
    env = LinearSystemEnv()
    np.testing.assert_array_equal(env.system.A, random_bimodal(5, 0.9, np.random.default_rng(0)))
    np.testing.assert_array_equal(env.system.B, np.eye(5))
    np.testing.assert_array_equal(env.system.noise_cov, np.eye(5))
    assert env.observation_space.dtype == np.float64
    assert env.reset(seed=0)[0].tolist() == [0.0] * 5
    other = LinearSystemEnv(num_states=3, spectral_radius=0.6, matrix_seed=2)
    np.testing.assert_array_equal(other.system.A, random_bimodal(3, 0.6, np.random.default_rng(2)))


def test_a_step_is_the_recursion_and_pays_for_the_state_before_it() -> None:
    Q, R = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[3.0]])
    env = LinearSystemEnv(A, B, np.zeros((2, 2)), Q=Q, R=R)
    env.reset(options={"initial_state": [1.0, -2.0]})
    obs, reward, terminated, truncated, info = env.step(np.array([0.5], np.float32))
    np.testing.assert_allclose(obs, [0.7 - 0.4 + 0.5, -1.0 + 1.0])
    assert reward == pytest.approx(-(2.0 + 2 * 0.5 * -2.0 + 4.0 + 3.0 * 0.25))
    assert (terminated, truncated, info) == (False, False, {})


def test_actions_are_clipped_to_their_limits() -> None:
    env = LinearSystemEnv(A, np.eye(2), np.zeros((2, 2)), action_limit=[0.5, 2.0])
    env.reset()
    obs, reward, *_ = env.step(np.array([3.0, -9.0]))
    assert obs.tolist() == [0.5, -2.0]
    assert reward == -(0.25 + 4.0)
    assert env.action_space.high.tolist() == [0.5, 2.0]


def test_without_reward_all_rewards_are_0() -> None:
    env = LinearSystemEnv(A, B, reward="none")
    env.reset(seed=0)
    assert [env.step(np.ones(1))[1] for _ in range(5)] == [0.0] * 5


def test_the_noise_has_its_covariance() -> None:
    noise_cov = np.array([[1.0, -0.6], [-0.6, 0.5]])
    env = LinearSystemVectorEnv(20_000, A=A, B=B, noise_cov=noise_cov)
    env.reset(seed=0)
    noise = env.step(np.zeros((20_000, 1)))[0]
    np.testing.assert_allclose(noise.T @ noise / 20_000, noise_cov, atol=4 * np.sqrt(2.0 / 20_000))


def test_a_stationary_start_is_stationary() -> None:
    env = LinearSystemVectorEnv(20_000, A=A, B=B, initial_covariance="stationary")
    G = env.stationary_covariance
    first = env.reset(seed=0)[0]
    later = [env.step(np.zeros((20_000, 1)))[0] for _ in range(3)][-1]
    for states in (first, later):
        np.testing.assert_allclose(states.T @ states / 20_000, G, atol=4 * np.sqrt(2.0 / 20_000) * G.max())


def test_it_terminates_where_a_state_leaves_its_bounds() -> None:
    env = LinearSystemEnv(2 * np.eye(2), np.eye(2), np.zeros((2, 2)), state_bounds=[10.0, 3.0])
    env.reset(options={"initial_state": [1.0, 0.5]})
    ends = [env.step(np.zeros(2))[2] for _ in range(3)]  # second state: 1, 2, 4
    assert ends == [False, False, True]
    with pytest.raises(ValueError, match="not after the end of an episode"):
        env.step(np.zeros(2))


def test_episodes_are_cut_after_1000_steps() -> None:
    env = gym.make("rlopt/LinearSystem-v0", num_states=1)
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[3] for _ in range(1000)] == [False] * 999 + [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"A": A, "num_states": 2}, "num_states must be None where A is given, got 2"),
        ({"A": A, "matrix_seed": 0}, "matrix_seed must be None where A is given, got 0"),
        ({"A": A, "B": np.zeros((2, 0))}, r"B must have shape \(2, m\) with m >= 1, got \(2, 0\)"),
        ({"A": np.zeros((2, 3))}, r"A must have shape \(d, d\)"),
        ({"reward": "sparse"}, "reward must be one of 'quadratic', 'none', got 'sparse'"),
        ({"reward": "none", "R": np.eye(5)}, "Q and R must be None with reward='none'"),
        ({"A": A, "Q": np.eye(3)}, r"Q must have shape \(2, 2\), got \(3, 3\)"),
        ({"state_bounds": -1.0}, "state_bounds must be one number > 0 or 5 of them"),
        ({"action_limit": 0.0}, "action_limit must be one number > 0 or 5 of them"),
        ({"initial_covariance": "wide"}, "initial_covariance must be one of 'stationary', got 'wide'"),
        ({"A": np.eye(2), "initial_covariance": "stationary"}, "spectral radius < 1"),
        ({"render_mode": "ansi"}, "render_mode must be one of 'human', 'rgb_array', got 'ansi'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearSystemEnv(**options)
