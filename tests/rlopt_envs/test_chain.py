import numpy as np
import pytest

from rlopt_envs.chain import ChainEnv, ChainVectorEnv


@pytest.mark.parametrize(("num_states", "discount"), [(12, 0.5), (1, 0.9), (7, 0.99)])
def test_optimal_values_are_powers_of_the_discount(num_states: int, discount: float) -> None:
    env = ChainEnv(num_states, discount)
    np.testing.assert_allclose(env.optimal_q[:-1, 0], discount ** np.arange(num_states - 1, -1, -1.0), rtol=1e-12)
    assert env.optimal_q[-1, 0] == 0.0
    assert env.discount == discount


def test_an_episode_walks_through_all_states_to_the_reward() -> None:
    env = ChainEnv(num_states=4)
    observations, rewards, ends = [env.reset(seed=0)[0]], [], []
    while not any(ends):
        obs, reward, terminated, _, _ = env.step(0)
        observations.append(obs)
        rewards.append(reward)
        ends.append(terminated)
    assert observations == [0, 1, 2, 3, 4]
    assert rewards == [0.0, 0.0, 0.0, 1.0]
    assert ends == [False, False, False, True]


def test_features_are_one_coordinate_for_each_state() -> None:
    env = ChainEnv(num_states=3)
    np.testing.assert_array_equal(env.features[:, 0], np.eye(4, 3))


def test_states_are_visited_equally_often() -> None:
    np.testing.assert_allclose(ChainEnv(num_states=5).mdp.stationary_law(), [0.2] * 5 + [0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_states": 0}, "num_states must be a whole number >= 1, got 0"),
        ({"num_states": 2.5}, "num_states must be a whole number >= 1, got 2.5"),
        ({"discount": 1.0}, r"discount must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    for make in (ChainEnv, ChainVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)  # type: ignore[arg-type]
