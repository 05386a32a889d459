"""Riccati equations, costs and filters against hand results, other algorithms, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from rlopt_envs.riccati import (
    KalmanFilter,
    average_cost,
    discounted_cost,
    finite_horizon,
    finite_horizon_cost,
    infinite_horizon,
    kalman,
    lqg_average_cost,
    lqg_discounted_cost,
    policy_value_matrix,
    regret_matrix,
    spectral_radius,
    stationary_covariance,
)

Array = NDArray[np.float64]


def positive_definite(rng: np.random.Generator, size: int) -> Array:
    root = rng.standard_normal((size, size + 2))
    return root @ root.T / size


class Problem:
    """A random problem with an unstable A, of 3 states, 2 inputs and 2 outputs."""

    def __init__(self, seed: int, radius: float = 1.05) -> None:
        rng = np.random.default_rng(seed)
        self.A = rng.standard_normal((3, 3))
        self.A *= radius / spectral_radius(self.A)
        self.B = rng.standard_normal((3, 2))
        self.C = rng.standard_normal((2, 3))
        self.Q, self.R = positive_definite(rng, 3), positive_definite(rng, 2)
        self.W, self.V, self.initial = positive_definite(rng, 3), positive_definite(rng, 2), positive_definite(rng, 3)

    @property
    def control(self) -> tuple[Array, Array, Array, Array]:
        return self.A, self.B, self.Q, self.R

    @property
    def everything(self) -> tuple[Array, ...]:
        return self.A, self.B, self.C, self.Q, self.R, self.W, self.V


def mean_and_error(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


# Stationary law


def test_stationary_covariance_equals_the_vectorised_solution() -> None:
    problem = Problem(0, radius=0.9)
    expected = np.linalg.solve(np.eye(9) - np.kron(problem.A, problem.A), problem.W.flatten()).reshape(3, 3)
    np.testing.assert_allclose(stationary_covariance(problem.A, problem.W), expected, rtol=1e-10)


def test_stationary_covariance_of_a_bimodal_system() -> None:
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))
    A = orthogonal @ np.diag([0.9, 0.9, 0.9, 0.3, 0.3]) @ orthogonal.T
    covariance = stationary_covariance(A, np.eye(5))
    eigenvalues = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(eigenvalues, [1.098901, 1.098901, 5.263158, 5.263158, 5.263158], atol=5e-7)
    assert np.trace(covariance) == pytest.approx(17.987276, abs=5e-7)
    assert np.trace(np.linalg.inv(covariance)) == pytest.approx(2.39, abs=1e-10)


def test_there_is_no_stationary_law_on_the_unit_circle() -> None:
    with pytest.raises(ValueError, match=r"A must have a spectral radius < 1 for a stationary law, got 1; use a stable A"):
        stationary_covariance([[1.0]], [[1.0]])


# Regulators


def test_scalar_regulator_solves_its_quadratic_equation() -> None:
    a, b, q, r, discount = 1.2, 0.7, 2.0, 0.5, 0.9
    # P = q + discount a^2 P r / (r + discount b^2 P), as a quadratic in P
    quadratic = [discount * b * b, r - discount * (q * b * b + a * a * r), -q * r]
    expected = max(np.roots(quadratic).real)
    gain, value_matrix = infinite_horizon([[a]], [[b]], [[q]], [[r]], discount)
    assert value_matrix[0, 0] == pytest.approx(expected, rel=1e-12)
    assert gain[0, 0] == pytest.approx(discount * a * b * expected / (r + discount * b * b * expected), rel=1e-12)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_value_iteration_converges_to_the_infinite_horizon(discount: float) -> None:
    problem = Problem(1)
    gain, value_matrix = infinite_horizon(*problem.control, discount)
    gains, value_matrices = finite_horizon(*problem.control, np.zeros((3, 3)), 300, discount)
    np.testing.assert_allclose(value_matrices[0], value_matrix, rtol=1e-9)
    np.testing.assert_allclose(gains[0], gain, rtol=1e-9)


def test_policy_iteration_converges_to_the_discounted_solution() -> None:
    problem, discount = Problem(2), 0.9
    gain = np.zeros((2, 3))  # sqrt(0.9) * 1.05 < 1: doing nothing has a finite cost
    for _ in range(20):
        value_matrix = policy_value_matrix(*problem.control, gain, discount)
        curvature = problem.R + discount * problem.B.T @ value_matrix @ problem.B
        gain = discount * np.linalg.inv(curvature) @ problem.B.T @ value_matrix @ problem.A
    optimal = infinite_horizon(*problem.control, discount)
    np.testing.assert_allclose(optimal.gain, gain, rtol=1e-9)
    np.testing.assert_allclose(optimal.value_matrix, value_matrix, rtol=1e-9)
    np.testing.assert_allclose(policy_value_matrix(*problem.control, optimal.gain, discount), value_matrix, rtol=1e-9)


@pytest.mark.parametrize("discount", [1.0, 0.8])
def test_finite_horizon_equals_least_squares_over_all_inputs(discount: float) -> None:
    problem, horizon = Problem(3), 6
    final = positive_definite(np.random.default_rng(3), 3)
    gains, value_matrices = finite_horizon(*problem.control, final, horizon, discount)
    start = np.array([1.0, -2.0, 0.5])
    # x_t = free[t] + forced[t] @ (all inputs in a row)
    free, forced = [start], [np.zeros((3, 2 * horizon))]
    for t in range(horizon):
        free.append(problem.A @ free[-1])
        forced.append(problem.A @ forced[-1])
        forced[-1][:, 2 * t : 2 * t + 2] += problem.B
    weights = [discount**t * problem.Q for t in range(horizon)] + [discount**horizon * final]
    hessian = np.kron(np.diag(discount ** np.arange(horizon)), problem.R)
    hessian += sum(f.T @ w @ f for f, w in zip(forced, weights, strict=True))
    linear = sum(f.T @ w @ x for f, w, x in zip(forced, weights, free, strict=True))
    inputs = -np.linalg.solve(hessian, linear)
    cost = linear @ inputs + sum(x @ w @ x for x, w in zip(free, weights, strict=True))
    assert start @ value_matrices[0] @ start == pytest.approx(cost, rel=1e-9)
    state = start
    for t in range(horizon):
        np.testing.assert_allclose(-gains[t] @ state, inputs[2 * t : 2 * t + 2], rtol=1e-6, atol=1e-9)
        state = problem.A @ state + problem.B @ inputs[2 * t : 2 * t + 2]


def simulated_costs(problem: Problem, gains: Array, discount: float, num_runs: int, final: Array | None = None) -> Array:
    """Discounted costs of runs with the given gain of each step, from first states of mean (1, 0, -1)."""
    rng = np.random.default_rng(4)
    states = np.array([1.0, 0.0, -1.0]) + rng.multivariate_normal(np.zeros(3), problem.initial, num_runs)
    costs = np.zeros(num_runs)
    for t, gain in enumerate(gains):
        inputs = -states @ gain.T
        step = np.einsum("ni,ij,nj->n", states, problem.Q, states) + np.einsum("ni,ij,nj->n", inputs, problem.R, inputs)
        costs += discount**t * step
        noise = rng.multivariate_normal(np.zeros(3), problem.W, num_runs)
        states = states @ problem.A.T + inputs @ problem.B.T + noise
    if final is not None:
        costs += discount ** len(gains) * np.einsum("ni,ij,nj->n", states, final, states)
    return costs


SECOND_MOMENT_OF_MEAN = np.outer([1.0, 0.0, -1.0], [1.0, 0.0, -1.0])


@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_discounted_cost_of_a_linear_policy_equals_simulation(factor: float) -> None:
    problem, discount = Problem(5), 0.9
    gain = factor * infinite_horizon(*problem.control, discount).gain
    value_matrix = policy_value_matrix(*problem.control, gain, discount)
    cost = discounted_cost(value_matrix, problem.W, discount, problem.initial + SECOND_MOMENT_OF_MEAN)
    mean, error = mean_and_error(simulated_costs(problem, np.array([gain] * 250), discount, 4000))
    assert abs(mean - cost) < 4 * error
    assert error < 0.02 * cost


def test_finite_horizon_cost_equals_simulation() -> None:
    problem, discount = Problem(6), 0.95
    gains, value_matrices = finite_horizon(*problem.control, 3 * problem.Q, 5, discount)
    cost = finite_horizon_cost(value_matrices, problem.W, problem.initial + SECOND_MOMENT_OF_MEAN, discount)
    mean, error = mean_and_error(simulated_costs(problem, gains, discount, 40_000, final=3 * problem.Q))
    assert abs(mean - cost) < 4 * error
    assert error < 0.01 * cost


def test_average_cost_is_the_cost_of_the_stationary_law() -> None:
    problem = Problem(7)
    gain, value_matrix = infinite_horizon(*problem.control)
    law = stationary_covariance(problem.A - problem.B @ gain, problem.W)
    expected = np.trace((problem.Q + gain.T @ problem.R @ gain) @ law)
    assert average_cost(value_matrix, problem.W) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_regret_is_the_advantage_of_the_optimal_input(discount: float) -> None:
    problem = Problem(8)
    gain, value_matrix = infinite_horizon(*problem.control, discount)
    state, action = np.array([1.0, -0.5, 2.0]), np.array([0.3, -1.0])
    following = problem.A @ state + problem.B @ action
    q_value = state @ problem.Q @ state + action @ problem.R @ action + discount * following @ value_matrix @ following
    departure = action + gain @ state
    regret = departure @ regret_matrix(problem.B, problem.R, value_matrix, discount) @ departure
    assert regret == pytest.approx(q_value - state @ value_matrix @ state, rel=1e-9)


def test_discounted_regret_along_the_path_is_the_excess_cost() -> None:
    """The performance-difference identity, with exact second moments in place of a simulation."""
    problem, discount = Problem(9), 0.9
    optimal = infinite_horizon(*problem.control, discount)
    gain = 0.7 * optimal.gain
    departure = optimal.gain - gain
    weight = departure.T @ regret_matrix(problem.B, problem.R, optimal.value_matrix, discount) @ departure
    closed, moment, regret = problem.A - problem.B @ gain, problem.initial, 0.0
    for t in range(600):
        regret += discount**t * np.trace(weight @ moment)
        moment = closed @ moment @ closed.T + problem.W
    matrices = policy_value_matrix(*problem.control, gain, discount), optimal.value_matrix
    cost, least = (discounted_cost(matrix, problem.W, discount, problem.initial) for matrix in matrices)
    assert regret == pytest.approx(cost - least, rel=1e-9)


# Filters


@pytest.fixture(scope="module")
def observed() -> tuple[Problem, Array, Array, Array]:
    """A problem, and inputs, observations and last state of 2000 runs of 5 steps."""
    problem, rng, num_runs = Problem(10), np.random.default_rng(11), 2000
    states = rng.multivariate_normal(np.zeros(3), problem.initial, num_runs)
    inputs = rng.standard_normal((5, num_runs, 2))
    observations = []
    for t in range(6):
        observations.append(states @ problem.C.T + rng.multivariate_normal(np.zeros(2), problem.V, num_runs))
        if t < 5:
            states = states @ problem.A.T + inputs[t] @ problem.B.T + rng.multivariate_normal(np.zeros(3), problem.W, num_runs)
    return problem, inputs, np.array(observations), states


def batch_conditioning(problem: Problem, num_steps: int) -> tuple[Array, Array]:
    """Return M and F with E[x_T | y_0 ... y_T] = M (y_0, ..., y_T) without inputs, and its error covariance F, by conditioning."""
    # (x_0, ..., x_T) = maps (x_0, w_0, ..., w_{T-1})
    size = 3 * (num_steps + 1)
    maps, source = np.zeros((size, size)), np.zeros((size, size))
    maps[:3, :3], source[:3, :3] = np.eye(3), problem.initial
    for t in range(1, num_steps + 1):
        maps[3 * t : 3 * t + 3] = problem.A @ maps[3 * t - 3 : 3 * t]
        maps[3 * t : 3 * t + 3, 3 * t : 3 * t + 3] = np.eye(3)
        source[3 * t : 3 * t + 3, 3 * t : 3 * t + 3] = problem.W
    states = maps @ source @ maps.T
    outputs = np.kron(np.eye(num_steps + 1), problem.C)
    covariance = outputs @ states @ outputs.T + np.kron(np.eye(num_steps + 1), problem.V)
    weights = np.linalg.solve(covariance, outputs @ states[:, -3:]).T
    return weights, states[-3:, -3:] - weights @ outputs @ states[:, -3:]


def test_filter_equals_batch_gaussian_conditioning(observed: tuple[Problem, Array, Array, Array]) -> None:
    problem, inputs, observations, states = observed
    kalman_filter = KalmanFilter(problem.A, problem.B, problem.C, problem.W, problem.V, problem.initial)
    kalman_filter.reset((2000,))
    estimates = [kalman_filter.update(y, inputs[t - 1] if t else None) for t, y in enumerate(observations)]
    # Inputs shift states and observations by known amounts: take them out, condition, put them back.
    shift, centred = np.zeros((2000, 3)), []
    for t in range(6):
        centred.append(observations[t] - shift @ problem.C.T)
        if t < 5:
            shift = shift @ problem.A.T + inputs[t] @ problem.B.T
    weights, covariance = batch_conditioning(problem, 5)
    np.testing.assert_allclose(estimates[-1], np.concatenate(centred, axis=1) @ weights.T + shift, rtol=1e-8, atol=1e-9)
    errors = states - estimates[-1]
    np.testing.assert_allclose(errors.T @ errors / 2000, covariance, atol=0.15 * np.abs(covariance).max())


def test_single_and_batched_filters_agree_and_restart_on_their_own(observed: tuple[Problem, Array, Array, Array]) -> None:
    problem, inputs, observations, _ = observed
    matrices = problem.A, problem.B, problem.C, problem.W, problem.V, problem.initial
    batched, singles = KalmanFilter(*matrices), [KalmanFilter(*matrices) for _ in range(3)]
    batched.reset((3,))
    for t in range(6):
        if t == 3:
            batched.restart([False, True, False])
            singles[1].reset()
        previous = inputs[t - 1, :3] if t else None
        together = batched.update(observations[t, :3], previous)
        alone = [one.update(observations[t, i], None if previous is None else previous[i]) for i, one in enumerate(singles)]
        np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_filter_settles_on_the_stationary_gain(observed: tuple[Problem, Array, Array, Array]) -> None:
    problem, *_ = observed
    gain, predicted, filtered = kalman(problem.A, problem.C, problem.W, problem.V)
    np.testing.assert_allclose(predicted, problem.A @ filtered @ problem.A.T + problem.W, rtol=1e-9)
    np.testing.assert_allclose(filtered, (np.eye(3) - gain @ problem.C) @ predicted, atol=1e-10)
    for initial in (problem.initial, None):
        kalman_filter = KalmanFilter(problem.A, problem.B, problem.C, problem.W, problem.V, initial)
        for _ in range(300):
            estimate = kalman_filter.update([0.0, 0.0], [0.0, 0.0])
        assert np.array_equal(estimate, np.zeros(3))
        np.testing.assert_allclose(kalman_filter.update([1.0, 0.0], [0.0, 0.0]), gain[:, 0], rtol=1e-8)
    np.testing.assert_allclose(KalmanFilter(*matrices_of(problem)).update([0.0, 1.0]), gain[:, 1], rtol=1e-12)  # from the start


def matrices_of(problem: Problem) -> tuple[Array, ...]:
    return problem.A, problem.B, problem.C, problem.W, problem.V


def test_scalar_filter_by_hand() -> None:
    kalman_filter = KalmanFilter([[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], initial_covariance=[[1.0]])
    # gains: 1/2; then predicted 1/2 + 1 = 3/2, gain (3/2) / (5/2) = 3/5
    assert kalman_filter.update([2.0]).tolist() == [1.0]
    assert kalman_filter.update([4.0], [1.0]).tolist() == pytest.approx([2.0 + 0.6 * (4.0 - 2.0)])


def test_filter_works_without_inputs() -> None:
    kalman_filter = KalmanFilter([[0.5]], np.zeros((1, 0)), [[1.0]], [[1.0]], [[1.0]], [[1.0]])
    kalman_filter.reset((2,))
    kalman_filter.update([[1.0], [2.0]])
    assert kalman_filter.update([[0.0], [0.0]], np.zeros((2, 0))).shape == (2, 1)


# Control by a filter


def lqg_costs(problem: Problem, gain: Array, discount: float, num_steps: int, num_runs: int, initial: Array | None) -> Array:
    """Cost of each step, shape (num_steps, num_runs), undiscounted, of the gain on a Kalman estimate."""
    rng = np.random.default_rng(12)
    first = kalman(problem.A, problem.C, problem.W, problem.V).predicted_covariance if initial is None else initial
    states = rng.multivariate_normal(np.zeros(3), first, num_runs)
    kalman_filter = KalmanFilter(problem.A, problem.B, problem.C, problem.W, problem.V, initial)
    kalman_filter.reset((num_runs,))
    costs, actions = np.empty((num_steps, num_runs)), None
    for t in range(num_steps):
        y = states @ problem.C.T + rng.multivariate_normal(np.zeros(2), problem.V, num_runs)
        actions = -kalman_filter.update(y, actions) @ gain.T
        costs[t] = np.einsum("ni,ij,nj->n", states, problem.Q, states) + np.einsum("ni,ij,nj->n", actions, problem.R, actions)
        noise = rng.multivariate_normal(np.zeros(3), problem.W, num_runs)
        states = states @ problem.A.T + actions @ problem.B.T + noise
    return costs


def test_lqg_discounted_cost_equals_simulation() -> None:
    problem, discount = Problem(13), 0.9
    cost = lqg_discounted_cost(*problem.everything, discount, problem.initial)
    costs = lqg_costs(problem, infinite_horizon(*problem.control, discount).gain, discount, 200, 4000, problem.initial)
    mean, error = mean_and_error(discount ** np.arange(200) @ costs)
    assert abs(mean - cost) < 4 * error
    assert error < 0.02 * cost
    assert cost > 1.02 * discounted_cost(
        infinite_horizon(*problem.control, discount).value_matrix, problem.W, discount, problem.initial
    )


def test_lqg_average_cost_equals_simulation() -> None:
    problem = Problem(14)
    cost = lqg_average_cost(*problem.everything)
    costs = lqg_costs(problem, infinite_horizon(*problem.control).gain, 1.0, 400, 1000, None)
    mean, error = mean_and_error(costs[100:].mean(axis=0))
    assert abs(mean - cost) < 4 * error
    assert error < 0.02 * cost


def test_lqg_cost_in_units_of_the_golden_ratio() -> None:
    one = [[1.0]]
    golden = (1 + np.sqrt(5)) / 2
    # P = predicted covariance = golden, K = L = 1 / golden, filtered covariance = L, K'(R + P)K = 1
    assert lqg_average_cost(one, one, one, one, one, one, one) == pytest.approx(golden + 1 / golden, rel=1e-12)


# Refusals


def test_problems_without_an_optimum_are_refused_in_one_sentence() -> None:
    one, zero = [[1.0]], [[0.0]]
    with pytest.raises(ValueError, match=r"^A, B must be stabilisable, but a mode of modulus 1.*cannot be steered by B"):
        infinite_horizon(one, zero, one, one)
    with pytest.raises(ValueError, match=r"^A, Q must be detectable, but a mode of modulus 2.*costs nothing in Q"):
        infinite_horizon([[2.0]], one, zero, one)
    with pytest.raises(ValueError, match=r"^A, C must be detectable, but a mode of modulus 1.*does not appear in C"):
        kalman(one, zero, one, one)
    with pytest.raises(ValueError, match=r"^A, noise_cov must be stabilisable, but a mode of modulus 1.*is not excited"):
        kalman(one, one, zero, one)
    with pytest.raises(ValueError, match=r"^A, C must be detectable.*lower the discount"):
        lqg_discounted_cost([[2.0]], one, zero, one, one, one, one, 0.9, one)
    with pytest.raises(ValueError, match=r"^gain must keep the cost finite.*got 2;"):
        policy_value_matrix([[2.0]], one, one, one, zero)


def test_discount_makes_a_slowly_growing_mode_harmless() -> None:
    # sqrt(0.9) * 1.05 < 1: no control is needed, none is possible; P = 1 / (1 - 0.9 * 1.05^2)
    gain, value_matrix = infinite_horizon([[1.05]], [[0.0]], [[1.0]], [[1.0]], 0.9)
    assert gain[0, 0] == 0.0
    assert value_matrix[0, 0] == pytest.approx(1 / (1 - 0.9 * 1.05**2), rel=1e-10)
    # Nor needs it to be seen.
    one = [[1.0]]
    assert np.isfinite(lqg_discounted_cost([[1.05]], [[0.0]], [[0.0]], one, one, one, one, 0.9, one))


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: infinite_horizon(np.ones((2, 3)), EYE, EYE, EYE), r"A must have shape \(d, d\) with d >= 1, got \(2, 3\)"),
        (lambda: infinite_horizon(EYE, np.ones(2), EYE, EYE), r"B must have shape \(2, m\) with m >= 1, got \(2,\)"),
        (lambda: infinite_horizon(EYE, np.ones((2, 0)), EYE, EYE), r"B must have shape \(2, m\) with m >= 1, got \(2, 0\)"),
        (lambda: infinite_horizon(EYE, EYE, np.eye(3), EYE), r"Q must have shape \(2, 2\), got \(3, 3\)"),
        (
            lambda: infinite_horizon(EYE, EYE, [[1, 1], [0, 1]], EYE),
            "Q must be symmetric, got a matrix that differs from its transpose by 1",
        ),
        (
            lambda: infinite_horizon(EYE, EYE, -EYE, EYE),
            r"Q must be positive semi-definite \(eigenvalues >= 0\), got a matrix with eigenvalue -1",
        ),
        (
            lambda: infinite_horizon(EYE, EYE, EYE, 0 * EYE),
            r"R must be positive definite \(eigenvalues > 0\), got a matrix with eigenvalue 0",
        ),
        (lambda: infinite_horizon(EYE * np.nan, EYE, EYE, EYE), "A must hold finite numbers, got nan or infinity"),
        (lambda: infinite_horizon(EYE, EYE, EYE, EYE, 0.0), r"discount must be in \(0, 1\], got 0.0"),
        (lambda: discounted_cost(EYE, EYE, 1.0, EYE), r"discount must be in \(0, 1\), got 1.0; use the average cost"),
        (lambda: finite_horizon(EYE, EYE, EYE, EYE, EYE, 0), "horizon must be >= 1, got 0"),
        (lambda: finite_horizon_cost(EYE, EYE, EYE), r"value_matrices must have shape \(horizon \+ 1, d, d\)"),
        (lambda: policy_value_matrix(EYE, EYE, EYE, EYE, np.ones(2)), r"gain must have shape \(2, 2\), got \(2,\)"),
        (lambda: kalman(EYE, np.ones((1, 3)), EYE, [[1.0]]), r"C must have shape \(p, 2\) with p >= 1, got \(1, 3\)"),
        (lambda: kalman(EYE, EYE, EYE, 0 * EYE), "observation_noise_cov must be positive definite"),
    ],
)
def test_wrong_matrices_are_named(call, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_filter_refuses_wrong_use() -> None:
    kalman_filter = KalmanFilter(EYE, EYE, EYE, EYE, EYE)
    kalman_filter.reset((3,))
    with pytest.raises(ValueError, match=r"observation must have shape \(3, 2\), got \(2,\)"):
        kalman_filter.update([0.0, 0.0])
    kalman_filter.update(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="previous_action must be given after the first observation, got None"):
        kalman_filter.update(np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"mask must have the batch shape \(3,\), got \(2,\)"):
        kalman_filter.restart([True, False])
