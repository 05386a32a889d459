from typing import Any

import numpy as np
import pytest

from rlopt_envs import NonlinearSystemEnv, NonlinearSystemVectorEnv, random_bimodal

A = np.array([[0.7, 0.2], [0.0, 0.5]])


def test_the_default_is_a_leaky_relu_of_the_random_bimodal_system() -> None:
    env = NonlinearSystemEnv()
    np.testing.assert_array_equal(env.system.A, random_bimodal(5, 0.9, np.random.default_rng(0)))
    assert (env.system.link, env.system.slope, env.system.num_inputs) == ("leaky_relu", 0.5, 5)
    np.testing.assert_array_equal(env.initial_covariance, np.zeros((5, 5)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.3, -0.5]),  # A x = (0.3, -1.0)
        ({"slope": 0.1}, [0.3, -0.1]),
        ({"link": "tanh"}, [np.tanh(0.3), np.tanh(-1.0)]),
        ({"link": "identity"}, [0.3, -1.0]),
        ({"link": np.square}, [0.09, 1.0]),
    ],
)
def test_a_step_applies_the_link_before_the_input(options: dict[str, Any], expected: list[float]) -> None:
    env = NonlinearSystemEnv(A, np.eye(2), np.zeros((2, 2)), **options)
    env.reset(options={"initial_state": [1.0, -2.0]})
    obs, reward, *_ = env.step(np.array([0.25, -0.5]))
    np.testing.assert_allclose(obs, np.add(expected, [0.25, -0.5]))
    assert reward == pytest.approx(-(1.0 + 4.0 + 0.0625 + 0.25))


def test_environment_and_simulation_have_the_same_law() -> None:
    env = NonlinearSystemVectorEnv(4000, A=A)
    env.reset(seed=0)
    last = [env.step(np.zeros((4000, 2)))[0] for _ in range(30)][-1]
    states = env.system.simulate(120_000, np.random.default_rng(1))[30::30]
    error = np.sqrt(last.var(axis=0) * 2 / 4000)
    assert (np.abs(last.mean(axis=0) - states.mean(axis=0)) < 4 * error).all()
    np.testing.assert_allclose(np.cov(last.T), np.cov(states.T), atol=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"link": "tanh", "slope": 0.5}, "slope must be None with link='tanh'"),
        ({"link": "relu"}, "link must be one of"),
        ({"slope": -0.5}, r"slope must be in \[0, 1\], got -0.5"),
        ({"A": A, "spectral_radius": 0.5}, "spectral_radius must be None where A is given, got 0.5"),
        ({"initial_covariance": "stationary"}, "initial_covariance must be an array of numbers, got 'stationary'"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NonlinearSystemEnv(**options)
