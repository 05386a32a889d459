from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlopt_envs.systems import LinearSystem, NonlinearSystem, random_bimodal, symmetric_root

A = np.array([[0.8, 0.3], [-0.2, 0.5]])
B = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
W = np.array([[1.0, 0.4], [0.4, 0.5]])


def by_hand(system: NonlinearSystem, link: Callable[[Any], Any], draws: Any, first: Any, inputs: Any) -> Any:
    root = symmetric_root(system.noise_cov)
    states = [np.asarray(first, float)]
    for draw, u in zip(draws, inputs, strict=True):
        states.append(link(system.A @ states[-1]) + system.B @ u + root @ draw)
    return np.array(states)


@pytest.mark.parametrize(
    ("link", "function"),
    [
        ("identity", lambda x: x),
        ("leaky_relu", lambda x: np.where(x > 0, x, 0.3 * x)),
        ("tanh", np.tanh),
        (np.arctan, np.arctan),
    ],
)
def test_trajectories_follow_the_recursion(link: Any, function: Callable[[Any], Any]) -> None:
    system = NonlinearSystem(A, B, W, link=link, slope=0.3)
    inputs = np.random.default_rng(1).normal(size=(30, 3))
    states = system.simulate(30, np.random.default_rng(5), initial_state=[1.0, -2.0], inputs=inputs)
    draws = np.random.default_rng(5).standard_normal((30, 2))
    np.testing.assert_allclose(states, by_hand(system, function, draws, [1.0, -2.0], inputs), rtol=1e-12)
    np.testing.assert_allclose(system.next_states(states[:-1], inputs, draws @ system.noise_factor), states[1:], rtol=1e-12)
    np.testing.assert_allclose(system.link_function(states), function(states))
    free = system.simulate(30, np.random.default_rng(5))
    np.testing.assert_allclose(free, by_hand(system, function, draws, np.zeros(2), np.zeros((30, 3))), rtol=1e-12)


def test_a_linear_system_is_one_with_the_identity_as_link() -> None:
    linear = LinearSystem(A, noise_cov=W).simulate(100, np.random.default_rng(0))
    other = NonlinearSystem(A, noise_cov=W, link="identity").simulate(100, np.random.default_rng(0))
    np.testing.assert_array_equal(linear, other)


@pytest.mark.parametrize("link", ["identity", np.tanh])
def test_a_longer_trajectory_continues_a_shorter_one(link: Any) -> None:
    system = NonlinearSystem(A, noise_cov=W, link=link)
    long = system.simulate(500, np.random.default_rng(3))
    np.testing.assert_array_equal(system.simulate(123, np.random.default_rng(3)), long[:124])
    assert long.shape == (501, 2)
    assert long.dtype == np.float64


def test_defaults_are_no_inputs_and_unit_noise() -> None:
    system = NonlinearSystem(A)
    assert (system.num_states, system.num_inputs, system.B.shape) == (2, 0, (2, 0))
    np.testing.assert_array_equal(system.noise_cov, np.eye(2))
    assert system.simulate(5, np.random.default_rng(0), inputs=np.zeros((5, 0))).shape == (6, 2)


def test_the_long_run_covariance_is_the_stationary_one() -> None:
    system = LinearSystem(A, noise_cov=W)
    G = system.stationary_covariance()
    vec = np.linalg.solve(np.eye(4) - np.kron(A, A), W.reshape(-1))  # vec G = (I - A (x) A)^-1 vec W
    np.testing.assert_allclose(G, vec.reshape(2, 2), rtol=1e-12)
    batches = system.simulate(200_000, np.random.default_rng(0))[1:].reshape(100, 2000, 2)
    moments = np.einsum("bti,btj->bij", batches, batches) / 2000
    error = moments.std(axis=0, ddof=1) / 10.0
    assert (np.abs(moments.mean(axis=0) - G) < 4.0 * error).all()


def test_an_unstable_system_has_no_stationary_law() -> None:
    with pytest.raises(ValueError, match="A must have a spectral radius < 1"):
        LinearSystem([[1.0]]).stationary_covariance()


def test_random_bimodal_has_two_groups_of_modes() -> None:
    A = random_bimodal(5, 0.9, np.random.default_rng(0))
    np.testing.assert_allclose(np.linalg.eigvalsh(A), [0.3, 0.3, 0.9, 0.9, 0.9], rtol=1e-12)
    system = LinearSystem(A)
    assert system.spectral_radius == pytest.approx(0.9)
    G = system.stationary_covariance()
    np.testing.assert_allclose(np.linalg.eigvalsh(G), [1 / 0.91] * 2 + [1 / 0.19] * 3, rtol=1e-10)
    np.testing.assert_allclose([np.trace(G), np.trace(np.linalg.inv(G))], [17.987276, 2.39], rtol=1e-7)
    assert random_bimodal(1, 0.5, np.random.default_rng(0)).tolist() == [[0.5]]


def test_random_bimodal_has_a_uniform_basis() -> None:
    # U diag(1, 1/3) U' with U uniform: the (0, 0) entry is 1/3 + 2/3 cos^2 of a uniform angle, mean 2/3, variance 1/18.
    rng = np.random.default_rng(0)
    entries = np.array([random_bimodal(2, 1.0, rng) for _ in range(4000)])
    assert abs(entries[:, 0, 0].mean() - 2 / 3) < 4 * np.sqrt(1 / 18 / 4000)
    assert abs(entries[:, 0, 0].var() - 1 / 18) < 4 * np.sqrt(0.5) / 18 / np.sqrt(4000)  # fourth moment: 1.5 / 18^2
    assert abs(entries[:, 0, 1].mean()) < 4 * np.sqrt(1 / 18 / 4000)  # 1/3 sin of twice a uniform angle


def test_a_singular_covariance_has_a_root() -> None:
    cov = np.array([[1.0, 1.0], [1.0, 1.0]])
    root = symmetric_root(cov)
    np.testing.assert_allclose(root @ root, cov, atol=1e-14)
    np.testing.assert_allclose(symmetric_root(np.diag([4.0, 0.0, 9.0])), np.diag([2.0, 0.0, 3.0]), atol=1e-15)


def test_arrays_are_protected_copies() -> None:
    given = A.copy()
    system = LinearSystem(given)
    given[0, 0] = 7.0
    np.testing.assert_array_equal(system.A, A)
    with pytest.raises(ValueError, match="read-only"):
        system.A[0, 0] = 1.0
    with pytest.raises(AttributeError):
        system.A = given  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearSystem(np.zeros((2, 3))), r"A must have shape \(d, d\) with d >= 1, got \(2, 3\)"),
        (lambda: LinearSystem(A, np.zeros((3, 1))), r"B must have shape \(2, m\) with m >= 0, got \(3, 1\)"),
        (lambda: LinearSystem(A, noise_cov=np.eye(3)), r"noise_cov must have shape \(2, 2\), got \(3, 3\)"),
        (lambda: LinearSystem(A, noise_cov=A), "noise_cov must be symmetric"),
        (lambda: LinearSystem(A, noise_cov=-np.eye(2)), "noise_cov must be positive semi-definite .* eigenvalue -1"),
        (lambda: NonlinearSystem(A, link="relu"), "link must be one of 'identity', 'leaky_relu', 'tanh' or a function, got 'relu'"),
        (lambda: NonlinearSystem(A, slope=1.5), r"slope must be in \[0, 1\], got 1.5"),
        (lambda: LinearSystem(A).simulate(0, np.random.default_rng()), "num_steps must be a whole number >= 1, got 0"),
        (
            lambda: LinearSystem(A).simulate(5, np.random.default_rng(), initial_state=[1.0]),
            r"initial_state must have shape \(2,\), got \(1,\)",
        ),
        (
            lambda: LinearSystem(A, B).simulate(5, np.random.default_rng(), inputs=np.zeros((4, 3))),
            r"inputs must have shape \(5, 3\), got \(4, 3\)",
        ),
        (lambda: random_bimodal(0, 0.9, np.random.default_rng()), "num_states must be a whole number >= 1, got 0"),
        (lambda: random_bimodal(2, 0.0, np.random.default_rng()), "spectral_radius must be a finite number > 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
