import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

from rlopt_envs import PARTIAL_ENV_IDS, KeepObservations

ORIGINALS = {"rlopt/CartPoleNoVelocity-v0": ("CartPole-v1", [0, 2]), "rlopt/PendulumNoVelocity-v0": ("Pendulum-v1", [0, 1])}


@pytest.mark.parametrize("env_id", PARTIAL_ENV_IDS)
def test_registered_environment_is_the_original_without_velocities(env_id: str) -> None:
    name, keep = ORIGINALS[env_id]
    env, original = gym.make(env_id), gym.make(name)
    assert env.spec is not None
    assert original.spec is not None
    assert env.spec.max_episode_steps == original.spec.max_episode_steps
    check_env(env)
    np.testing.assert_array_equal(env.reset(seed=3)[0], original.reset(seed=3)[0][keep])
    env.action_space.seed(0)
    ended = False
    while not ended:
        action = env.action_space.sample()
        obs, *rest = env.step(action)
        whole, *expected = original.step(action)
        np.testing.assert_array_equal(obs, whole[keep])
        assert rest == expected
        assert env.observation_space.contains(obs)
        ended = bool(rest[1] or rest[2])


@pytest.mark.parametrize("env_id", PARTIAL_ENV_IDS)
def test_environment_can_be_made_again_and_many_times(env_id: str) -> None:
    first = gym.make(env_id, render_mode="rgb_array")
    assert first.spec is not None
    again = gym.make(first.spec)
    np.testing.assert_array_equal(first.reset(seed=1)[0], again.reset(seed=1)[0])
    assert gym.make_vec(env_id, num_envs=3, vectorization_mode="sync").reset(seed=0)[0].shape == (3, 2)


def test_numbers_stay_in_the_given_order_with_their_bounds() -> None:
    env = KeepObservations(gym.make("CartPole-v1"), keep=[2, 0])
    whole = gym.make("CartPole-v1").reset(seed=0)[0]
    assert env.reset(seed=0)[0].tolist() == [whole[2], whole[0]]
    space = gym.make("CartPole-v1").observation_space
    assert isinstance(space, spaces.Box)
    assert env.observation_space == spaces.Box(space.low[[2, 0]], space.high[[2, 0]])


@pytest.mark.parametrize("keep", [[], [0, 0], [4], [-1], [0.5]])
def test_wrong_indices_are_refused(keep: list[int]) -> None:
    with pytest.raises(ValueError, match=r"keep must be different whole numbers in \[0, 4\)"):
        KeepObservations(gym.make("CartPole-v1"), keep)


def test_other_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="env must have vectors as observations"):
        KeepObservations(gym.make("CliffWalking-v1"), [0])
