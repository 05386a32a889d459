from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from rlopt_envs import PRESETS, LQREnv, LQRVectorEnv

Array = NDArray[np.float64]

A = np.array([[1.05, 0.3], [-0.1, 0.8]])
B = np.array([[0.2, 0.0], [1.0, 0.5]])
Q = np.array([[1.0, 0.2], [0.2, 0.5]])
R = np.array([[0.4, 0.1], [0.1, 0.3]])
W = np.array([[0.3, 0.1], [0.1, 0.2]])
FIRST = np.array([[2.0, -0.5], [-0.5, 1.0]])
PROBLEM: dict[str, Any] = {"A": A, "B": B, "Q": Q, "R": R, "noise_cov": W, "initial_covariance": FIRST}
OTHER_GAIN = np.array([[0.3, 0.2], [0.1, 0.3]])  # stabilises, but is not optimal


def lyapunov(M: Array, N: Array) -> Array:
    """P = N + M'PM, by a linear system."""
    d = len(M)
    return np.linalg.solve(np.eye(d * d) - np.kron(M.T, M.T), N.reshape(-1)).reshape(d, d)


def roll_out(env: LQRVectorEnv, gain: Array | None, num_steps: int, discount: float, burn_in: int = 0) -> tuple[Array, Array]:
    """Discounted sums of costs and regrets of each copy, under a gain or the optimal controller."""
    obs, _ = env.reset(seed=0)
    costs, regrets = np.zeros(env.num_envs), np.zeros(env.num_envs)
    for t in range(-burn_in, num_steps):
        action = env.optimal_action(obs) if gain is None else -(env.states @ gain.T)
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


def test_the_optimal_discounted_cost_is_met() -> None:
    env = LQRVectorEnv(10_000, **PROBLEM, discount=0.9)
    costs, regrets = roll_out(env, None, 200, 0.9)
    assert_mean(costs, env.optimal_cost)
    assert regrets.max() < 1e-8  # observations are single precision


def test_regrets_sum_up_to_the_cost_above_the_optimum() -> None:
    env = LQRVectorEnv(10_000, **PROBLEM, discount=0.9)
    value = lyapunov(np.sqrt(0.9) * (A - B @ OTHER_GAIN), Q + OTHER_GAIN.T @ R @ OTHER_GAIN)
    cost = np.trace(value @ FIRST) + 9.0 * np.trace(value @ W)
    assert cost > 1.1 * env.optimal_cost
    costs, regrets = roll_out(env, OTHER_GAIN, 200, 0.9)
    assert_mean(costs, cost)
    assert_mean(regrets, cost - env.optimal_cost)


def test_the_average_cost_is_met_and_so_is_the_regret_per_step() -> None:
    env = LQRVectorEnv(2000, **PROBLEM, cost="average")
    assert env.discount == 1.0
    costs, _ = roll_out(env, None, 200, 1.0, burn_in=100)
    assert_mean(costs / 200, env.optimal_cost)
    value = lyapunov(A - B @ OTHER_GAIN, Q + OTHER_GAIN.T @ R @ OTHER_GAIN)
    costs, regrets = roll_out(env, OTHER_GAIN, 200, 1.0, burn_in=100)
    assert_mean(costs / 200, np.trace(value @ W))
    assert_mean(regrets / 200, np.trace(value @ W) - env.optimal_cost)


@pytest.mark.parametrize("discount", [0.8, 1.0])
def test_a_finite_horizon_is_solved_as_the_quadratic_program_over_all_inputs(discount: float) -> None:
    horizon, final_Q, first = 6, np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.5, -1.0])
    options = {**PROBLEM, "noise_cov": np.zeros((2, 2)), "horizon": horizon, "final_Q": final_Q, "discount": discount}
    # Minimise |M u + c|^2 over the vector u of all inputs: rows are the square roots of all costs.
    responses = [np.zeros((2, 2 * horizon))]  # of x_t to u
    for t in range(horizon):
        responses.append(A @ responses[-1])
        responses[-1][:, 2 * t : 2 * t + 2] += B
    rows, constants = [], []
    for t in range(horizon + 1):
        root = discount ** (t / 2) * np.linalg.cholesky(Q if t < horizon else final_Q).T
        rows.append(root @ responses[t])
        constants.append(root @ np.linalg.matrix_power(A, t) @ first)
    for t in range(horizon):
        rows.append(discount ** (t / 2) * np.linalg.cholesky(R).T @ np.eye(2 * horizon)[2 * t : 2 * t + 2])
        constants.append(np.zeros(2))
    M, c = np.concatenate(rows), np.concatenate(constants)
    inputs = np.linalg.lstsq(M, -c, rcond=None)[0]
    least = float(np.sum((M @ inputs + c) ** 2))

    env = LQREnv(**options, action_limit=100.0)
    assert first @ env.value_matrix[0] @ first == pytest.approx(least, rel=1e-10)
    assert env.optimal_cost == pytest.approx(np.trace(env.value_matrix[0] @ FIRST))
    obs, _ = env.reset(options={"initial_state": first})
    total, terminated = 0.0, False
    for t in range(horizon):
        assert not terminated
        assert obs[2] == np.float32(t / horizon)
        action = env.optimal_action(obs)
        np.testing.assert_allclose(action, inputs[2 * t : 2 * t + 2], atol=1e-6)
        obs, reward, terminated, truncated, _ = env.step(action)
        total += discount**t * reward
    assert (terminated, truncated, obs[2]) == (True, False, 1.0)
    assert -total == pytest.approx(least, rel=1e-6)


def test_a_finite_horizon_with_noise_has_its_cost_and_its_regrets() -> None:
    env = LQRVectorEnv(20_000, **PROBLEM, horizon=8, discount=0.95, final_Q=3 * Q, autoreset_mode="Disabled")
    costs, regrets = roll_out(env, None, 8, 0.95)
    assert_mean(costs, env.optimal_cost)
    assert regrets.max() < 1e-8
    # The other controller, backwards in time without Riccati: its cost is a sum over the moments of the state forwards.
    moment, cost = FIRST, 0.0
    for t in range(8):
        cost += 0.95**t * np.trace((Q + OTHER_GAIN.T @ R @ OTHER_GAIN) @ moment)
        moment = (A - B @ OTHER_GAIN) @ moment @ (A - B @ OTHER_GAIN).T + W
    cost += 0.95**8 * np.trace(3 * Q @ moment)
    costs, regrets = roll_out(env, OTHER_GAIN, 8, 0.95)
    assert_mean(costs, cost)
    assert_mean(regrets, cost - env.optimal_cost)


@pytest.mark.parametrize(
    "options", [{"discount": 0.9}, {"cost": "average"}, {"horizon": 3, "discount": 0.9}, {"horizon": 3, "final_Q": 2 * Q}]
)
def test_regret_is_the_cost_now_and_later_above_the_optimal_value(options: dict[str, Any]) -> None:
    env = LQREnv(**{**PROBLEM, **options, "noise_cov": np.zeros((2, 2)), "action_limit": 10.0})
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    for t in range(3):
        x, u = env.state, rng.normal(size=2)
        now, later = (env.value_matrix[t : t + 2]) if env.horizon else (env.value_matrix, env.value_matrix)
        *_, info = env.step(u)
        last = t == 2 and env.horizon is not None  # the cost of the last state is in the last reward
        following = 0.0 if last else env.discount * env.state @ later @ env.state
        assert info["regret"] == pytest.approx(info["cost"] + following - x @ now @ x, rel=1e-9)
        gain = env.optimal_gain[t] if env.horizon else env.optimal_gain
        np.testing.assert_allclose(info["optimal_action"], -gain @ x, rtol=1e-12)


def test_actions_are_clipped_and_their_applied_value_counts() -> None:
    env = LQREnv(**PROBLEM, action_limit=[0.5, 1.0])
    env.reset(seed=0, options={"initial_state": [0.0, 0.0]})
    *_, info = env.step(np.array([5.0, -7.0]))
    u = np.array([0.5, -1.0])
    assert info["cost"] == pytest.approx(u @ R @ u)
    np.testing.assert_array_equal(env.action_space.high, np.array([0.5, 1.0], np.float32))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_default_limit_is_six_deviations_of_the_optimal_action(name: str) -> None:
    env = LQRVectorEnv(4000, name, action_limit=1e6)
    obs, _ = env.reset(seed=0)
    largest = np.zeros(env.system.num_inputs)
    for _ in range(60):
        actions = env.optimal_action(obs)
        largest = np.maximum(largest, actions.std(axis=0))
        obs, *_ = env.step(actions)
    np.testing.assert_allclose(LQREnv(name).action_space.high, 6.0 * largest, rtol=0.06)


def test_first_states_have_16_times_the_covariance_that_the_noise_leaves() -> None:
    env = LQRVectorEnv(20_000)
    system = env.system
    gain = LQREnv(cost="average").optimal_gain
    closed = system.A - system.B @ gain
    np.testing.assert_allclose(env.initial_covariance / 16.0, lyapunov(closed.T, system.noise_cov), rtol=1e-8)
    states = env.reset(seed=0)[0]
    np.testing.assert_allclose(np.cov(states.T), env.initial_covariance, atol=4 * np.sqrt(2 / 20_000) * 0.4)
    np.testing.assert_array_equal(LQREnv(noise_cov=np.zeros((2, 2))).initial_covariance, np.eye(2))


def test_presets_and_their_replacements() -> None:
    preset = PRESETS["inverted_pendulum"]
    env = LQREnv("inverted_pendulum", R=[[5.0]])
    np.testing.assert_array_equal(env.system.A, preset.A)
    np.testing.assert_array_equal(env.Q, preset.Q)
    assert env.R.tolist() == [[5.0]]
    np.testing.assert_array_equal(LQREnv().system.A, PRESETS["double_integrator"].A)
    own = LQREnv(A=A, B=B)
    assert own.Q.tolist() == own.R.tolist() == own.system.noise_cov.tolist() == np.eye(2).tolist()


def test_time_limit_and_horizon_through_gymnasium() -> None:
    env = gym.make("rlopt/LQR-v0")
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(200)]
    assert ends == [(False, False)] * 199 + [(False, True)]
    env = gym.make("rlopt/LQR-v0", horizon=250, max_episode_steps=250)
    env.reset(seed=0)
    assert [env.step(np.zeros(1, np.float32))[2] for _ in range(250)] == [False] * 249 + [True]


def test_optimal_actions_of_many_observations_at_once() -> None:
    env = LQREnv(**PROBLEM, horizon=4)
    states = np.random.default_rng(0).normal(size=(5, 3, 2))
    for t in range(4):
        actions = env.optimal_action(np.concatenate([states, np.full((5, 3, 1), t / 4)], axis=-1))
        np.testing.assert_allclose(actions, -np.einsum("ij,abj->abi", env.optimal_gain[t], states))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": "rocket"}, "system must be one of 'aircraft_longitudinal', .* got 'rocket'"),
        ({"system": "double_integrator", "A": A, "B": B}, "system must be None where A is given, got 'double_integrator'"),
        ({"A": A}, "B must be given with A, got None"),
        ({"B": B}, "B must come with A, got B alone"),
        ({"A": A, "B": np.zeros((3, 1))}, r"B must have shape \(2, m\) with m >= 1, got \(3, 1\)"),
        ({"A": 2 * np.eye(2), "B": np.zeros((2, 1))}, "stabilisable"),
        ({"A": [[1.1]], "B": [[0.0]], "Q": [[1.0]], "discount": 0.5}, "initial_covariance must be given where no controller"),
        ({"R": [[0.0]]}, "R must be positive definite"),
        ({"Q": np.eye(3)}, r"Q must have shape \(2, 2\), got \(3, 3\)"),
        ({"cost": "total"}, "cost must be one of 'discounted', 'average', got 'total'"),
        ({"cost": "average", "discount": 0.9}, "discount must be None with cost='average'"),
        ({"cost": "average", "horizon": 5}, "horizon must be None with cost='average'"),
        ({"discount": 1.0}, r"discount must be in \(0, 1\), got 1.0"),
        ({"discount": 1.1, "horizon": 5}, r"discount must be in \(0, 1\], got 1.1"),
        ({"final_Q": np.eye(2)}, "final_Q must be None without a horizon"),
        ({"horizon": 0}, "horizon must be a whole number >= 1, got 0"),
        ({"action_limit": [1.0, 1.0]}, "action_limit must be one number > 0 or 1 of them"),
        ({"initial_covariance": [[1.0]]}, r"initial_covariance must have shape \(2, 2\), got \(1, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LQREnv(**options)


def test_wrong_observations_and_actions_are_refused() -> None:
    env = LQREnv(horizon=3)
    with pytest.raises(ValueError, match=r"observation must have shape \(..., 3\), got \(2,\)"):
        env.optimal_action(np.zeros(2))
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.zeros(1))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(1, 1\)"):
        env.step(np.zeros(2))
    for _ in range(3):
        env.step(np.zeros(1))
    with pytest.raises(ValueError, match="not after the end of an episode"):
        env.step(np.zeros(1))
