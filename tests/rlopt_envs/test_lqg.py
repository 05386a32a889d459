from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlopt_envs import PRESETS, KalmanFilter, LQGEnv, LQGVectorEnv, LQREnv

Array = NDArray[np.float64]

A = np.array([[1.05, 0.3], [-0.1, 0.8]])
B = np.array([[0.2], [1.0]])
C = np.array([[1.0, 0.5]])
Q = np.array([[1.0, 0.2], [0.2, 0.5]])
R = np.array([[0.4]])
W = np.array([[0.3, 0.1], [0.1, 0.2]])
V = np.array([[0.5]])
FIRST = np.array([[2.0, -0.5], [-0.5, 1.0]])
PROBLEM: dict[str, Any] = {
    "A": A, "B": B, "C": C, "Q": Q, "R": R, "noise_cov": W, "observation_noise_cov": V, "initial_covariance": FIRST,
}  # fmt: skip
OUTPUT_GAIN = np.array([[0.5]])  # u = -F y: stabilises, but forgets all earlier observations


def roll_out(env: LQGVectorEnv, optimal: bool, num_steps: int, discount: float, burn_in: int = 0) -> tuple[Array, Array]:
    obs, _ = env.reset(seed=0)
    costs, regrets = np.zeros(env.num_envs), np.zeros(env.num_envs)
    for t in range(-burn_in, num_steps):
        action = env.optimal_action() if optimal else -(obs[:, :1] @ OUTPUT_GAIN.T)
        obs, rewards, *_, infos = env.step(action)
        np.testing.assert_array_equal(rewards, -infos["cost"])
        if t >= 0:
            costs += discount**t * infos["cost"]
            regrets += discount**t * infos["regret"]
    return costs, regrets


def assert_mean(values: Array, expected: float) -> None:
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4.0 * error, (values.mean(), expected, error)
    assert error < 0.03 * abs(expected)  # otherwise the test shows little


def moments(num_steps: int) -> tuple[list[Array], float]:
    """Covariances of x_t under u = -F y, forwards in time, and the cost of the input that the measuring noise causes."""
    closed = A - B @ OUTPUT_GAIN @ C
    added = W + B @ OUTPUT_GAIN @ V @ OUTPUT_GAIN.T @ B.T
    states = [FIRST]
    for _ in range(num_steps):
        states.append(closed @ states[-1] @ closed.T + added)
    return states, float(np.trace(OUTPUT_GAIN.T @ R @ OUTPUT_GAIN @ V))


STEP_COST = Q + C.T @ OUTPUT_GAIN.T @ R @ OUTPUT_GAIN @ C


def test_the_estimate_is_the_mean_given_all_observations() -> None:
    env = LQGEnv(**PROBLEM, action_limit=3.0)
    rng, num_steps, d = np.random.default_rng(0), 7, 2
    obs, info = env.reset(seed=4)
    observations, actions, estimates = [obs], [], [info["kalman_estimate"]]
    for _ in range(num_steps):
        actions.append(rng.uniform(-3.0, 3.0, 1))
        obs, *_, info = env.step(actions[-1])
        observations.append(obs)
        estimates.append(info["kalman_estimate"])
    # All states are linear in z = (x_0, w_0, w_1, ...) and known inputs; condition the joint Gaussian on all outputs at once.
    size = d * (num_steps + 1)
    cov_z = np.kron(np.eye(num_steps + 1), W)
    cov_z[:d, :d] = FIRST
    maps, means = [np.eye(d, size)], [np.zeros(d)]
    for t in range(num_steps):
        maps.append(A @ maps[-1] + np.eye(d, size, k=d * (t + 1)))
        means.append(A @ means[-1] + B @ actions[t])
    for t in range(num_steps + 1):
        outputs = np.concatenate([C @ maps[s] for s in range(t + 1)])
        cov_y = outputs @ cov_z @ outputs.T + np.kron(np.eye(t + 1), V)
        surprise = np.concatenate([observations[s] - C @ means[s] for s in range(t + 1)])
        expected = means[t] + maps[t] @ cov_z @ outputs.T @ np.linalg.solve(cov_y, surprise)
        np.testing.assert_allclose(estimates[t], expected, atol=1e-5)  # observations are single precision


def test_the_estimate_is_that_of_the_kalman_filter_after_any_reset() -> None:
    env = LQGVectorEnv(5, **PROBLEM, action_limit=3.0, max_episode_steps=4, autoreset_mode="SameStep")
    kalman = KalmanFilter(A, B, C, W, V, FIRST)
    obs, infos = env.reset(seed=0)
    kalman.reset((5,))
    np.testing.assert_allclose(infos["kalman_estimate"], kalman.update(obs), atol=1e-5)
    for _ in range(10):
        actions = env.action_space.sample()
        obs, _, _, truncated, infos = env.step(actions)
        if truncated.any():
            np.testing.assert_allclose(
                infos["final_info"]["kalman_estimate"], kalman.update(np.stack(infos["final_obs"]), actions), atol=1e-5
            )
            kalman.restart(truncated)
        np.testing.assert_allclose(infos["kalman_estimate"], kalman.update(obs, actions), atol=1e-5)


def test_the_optimal_discounted_cost_is_met() -> None:
    env = LQGVectorEnv(10_000, **PROBLEM, discount=0.9)
    costs, regrets = roll_out(env, True, 200, 0.9)
    assert_mean(costs, env.optimal_cost)
    assert regrets.max() == 0.0


def test_regrets_sum_up_to_the_cost_above_the_optimum() -> None:
    env = LQGVectorEnv(10_000, **PROBLEM, discount=0.9, action_limit=100.0)
    states, noise_cost = moments(400)
    cost = sum(0.9**t * (np.trace(STEP_COST @ state) + noise_cost) for t, state in enumerate(states))
    assert cost > 1.05 * env.optimal_cost
    costs, regrets = roll_out(env, False, 200, 0.9)
    assert_mean(costs, cost)
    assert_mean(regrets, cost - env.optimal_cost)


def test_the_average_cost_is_met_and_so_is_the_regret_per_step() -> None:
    env = LQGVectorEnv(2000, **PROBLEM, cost="average", action_limit=100.0)
    costs, _ = roll_out(env, True, 200, 1.0, burn_in=100)
    assert_mean(costs / 200, env.optimal_cost)
    states, noise_cost = moments(500)
    cost = np.trace(STEP_COST @ states[-1]) + noise_cost
    costs, regrets = roll_out(env, False, 200, 1.0, burn_in=100)
    assert_mean(costs / 200, cost)
    assert_mean(regrets / 200, cost - env.optimal_cost)


def test_a_finite_horizon_has_its_cost_and_its_regrets() -> None:
    options = {"horizon": 8, "discount": 0.95, "final_Q": 3 * Q, "action_limit": 100.0, "autoreset_mode": "Disabled"}
    env = LQGVectorEnv(20_000, **PROBLEM, **options)
    costs, regrets = roll_out(env, True, 8, 0.95)
    assert_mean(costs, env.optimal_cost)
    assert regrets.max() == 0.0
    states, noise_cost = moments(8)
    cost = sum(0.95**t * (np.trace(STEP_COST @ state) + noise_cost) for t, state in enumerate(states[:-1]))
    cost += 0.95**8 * np.trace(3 * Q @ states[-1])
    costs, regrets = roll_out(env, False, 8, 0.95)
    assert_mean(costs, cost)
    assert_mean(regrets, cost - env.optimal_cost)


@pytest.mark.parametrize("options", [{}, {"cost": "average"}, {"horizon": 5}])
def test_exact_observations_make_it_lqr(options: dict[str, Any]) -> None:
    problem = {key: value for key, value in PROBLEM.items() if key not in ("C", "observation_noise_cov")}
    hidden = LQGEnv(**problem, **options, C=np.eye(2), observation_noise_cov=1e-10 * np.eye(2))
    seen = LQREnv(**problem, **options)
    assert hidden.optimal_cost == pytest.approx(seen.optimal_cost, rel=1e-6)
    np.testing.assert_allclose(hidden.action_space.high, seen.action_space.high, rtol=1e-5)
    np.testing.assert_array_equal(hidden.optimal_gain, seen.optimal_gain)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_default_limit_is_six_deviations_of_the_optimal_action(name: str) -> None:
    env = LQGVectorEnv(4000, name, action_limit=1e6)
    env.reset(seed=0)
    largest = np.zeros(env.system.num_inputs)
    for _ in range(60):
        actions = env.optimal_action()
        largest = np.maximum(largest, actions.std(axis=0))
        env.step(actions)
    np.testing.assert_allclose(LQGEnv(name).action_space.high, 6.0 * largest, rtol=0.06)


def test_observations_and_their_time() -> None:
    env = LQGEnv(**PROBLEM, horizon=3)
    obs, info = env.reset(seed=0)
    assert obs.shape == (2,)
    for t in range(1, 4):
        before = info["kalman_estimate"]
        np.testing.assert_array_equal(env.optimal_action(before), env.optimal_action())
        np.testing.assert_allclose(env.optimal_action(), -env.optimal_gain[t - 1] @ before)
        obs, _, terminated, _, info = env.step(env.optimal_action())
        np.testing.assert_allclose(info["optimal_action"], -env.optimal_gain[t - 1] @ before)
        assert (obs[1], terminated) == (np.float32(t / 3), t == 3)


def test_a_given_first_state_is_measured_but_not_told() -> None:
    env = LQGEnv(**PROBLEM)
    outputs = []
    for seed in range(400):
        obs, info = env.reset(seed=seed, options={"initial_state": [3.0, -2.0]})
        outputs.append(obs[0])
        gain = FIRST @ C.T / (C @ FIRST @ C.T + V)
        np.testing.assert_allclose(info["kalman_estimate"], gain[:, 0] * obs[0], atol=1e-6)
        assert env.state.tolist() == [3.0, -2.0]
    assert abs(np.mean(outputs) - 2.0) < 4 * np.sqrt(0.5 / 400)
    assert np.var(outputs) == pytest.approx(0.5, rel=4 * np.sqrt(2 / 400))


def test_defaults_of_the_measurement() -> None:
    preset = PRESETS["inverted_pendulum"]
    env = LQGEnv("inverted_pendulum")
    np.testing.assert_array_equal(env.C, preset.C)
    np.testing.assert_array_equal(env.observation_noise_cov, preset.observation_noise_cov)
    assert LQGEnv("inverted_pendulum", C=[[1.0, 0.0, 0.0, 0.0]]).observation_noise_cov.tolist() == [[1.0]]
    own = LQGEnv(A=A, B=B)
    assert own.C.tolist() == own.observation_noise_cov.tolist() == np.eye(2).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"C": np.eye(3)}, r"C must have shape \(p, 2\) with p >= 1, got \(3, 3\)"),
        ({"observation_noise_cov": np.eye(2)}, r"observation_noise_cov must have shape \(1, 1\), got \(2, 2\)"),
        ({"observation_noise_cov": [[0.0]]}, "observation_noise_cov must be positive definite"),
        ({"C": [[0.0, 0.0]], "cost": "average"}, "detectable"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LQGEnv(**options)


def test_estimates_of_wrong_shape_are_refused() -> None:
    env = LQGVectorEnv(3)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"kalman_estimate must have shape \(3, 2\), got \(2,\)"):
        env.optimal_action([0.0, 0.0])
