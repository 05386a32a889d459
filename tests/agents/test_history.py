"""Histories against lists of what an environment gave."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlopt.agents import DQN, GymnasiumVecEnv, HistoryWrapper, VecHistory
from rlopt.replay import UniformReplay


class Counting(gym.Env[Any, Any]):
    """Observes how many steps it ever made; episodes last 2, 3, 4, 2, 3, 4, ... steps and end or are cut in turns."""

    def __init__(self, start: float = 0.0, actions: spaces.Space[Any] | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = actions or spaces.Discrete(3)
        self.count, self.episode, self.step_number = start, -1, 0

    def _obs(self) -> Any:
        return np.array([self.count, -self.count], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode += 1
        self.step_number = 0
        self.count += 1
        return self._obs(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        self.step_number += 1
        over = self.step_number == 2 + self.episode % 3
        return self._obs(), 0.5 * self.count, over and self.episode % 2 == 0, over and self.episode % 2 == 1, {}


def expected(steps: list[tuple[Any, Any, float]], length: int) -> dict[str, Any]:
    """The history of an episode: pairs of observation, action that led there (None: none), reward."""
    rows = steps[-length:]
    pad = length - len(rows)
    one_hot = [np.eye(3)[a] if a is not None else np.zeros(3) for _, a, _ in rows]
    return {
        "observations": np.array([np.zeros(2)] * pad + [obs for obs, _, _ in rows]),
        "valid": np.array([0] * pad + [1] * len(rows)),
        "previous_actions": np.array([np.zeros(3)] * pad + one_hot),
        "previous_rewards": np.array([0.0] * pad + [reward for _, _, reward in rows]),
    }


def assert_history(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert set(given) == set(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(given[key], value, err_msg=key)


@pytest.mark.parametrize("length", [1, 3, 10])
def test_history_is_that_of_the_episode(length: int) -> None:
    env, twin = HistoryWrapper(Counting(), length, include_actions=True, include_rewards=True), Counting()
    rng = np.random.default_rng(0)
    for _ in range(7):
        steps = [(twin.reset()[0], None, 0.0)]
        obs = env.reset()[0]
        over = False
        while not over:
            assert_history(obs, expected(steps, length))
            assert env.observation_space.contains(obs)
            action = int(rng.integers(3))
            raw, reward, terminated, truncated, _ = twin.step(action)
            steps.append((raw, action, reward))
            obs, given_reward, *ends, _ = env.step(action)
            assert (given_reward, *ends) == (reward, terminated, truncated)
            over = terminated or truncated
        assert_history(obs, expected(steps, length))  # the last one too


@pytest.mark.parametrize("make_venv", ["dummy", "gymnasium"])
def test_vector_version_equals_wrapping_each_environment(make_venv: str) -> None:
    starts = [0.0, 100.0, 200.0]
    options: dict[str, Any] = {"length": 3, "include_actions": True, "include_rewards": True}
    each = DummyVecEnv([lambda s=s: HistoryWrapper(Counting(s), **options) for s in starts])
    if make_venv == "dummy":
        inner: Any = DummyVecEnv([lambda s=s: Counting(s) for s in starts])
    else:
        inner = GymnasiumVecEnv(gym.vector.SyncVectorEnv([lambda s=s: Counting(s) for s in starts]))
    together = VecHistory(inner, **options)
    assert together.observation_space == each.observation_space
    assert_history(together.reset(), dict(each.reset()))  # type: ignore[call-overload]
    rng = np.random.default_rng(0)
    num_ends = 0
    kept: list[tuple[Any, Any]] = []
    for t in range(25):
        each.envs[1].unwrapped.step_number += t == 5  # episodes fall out of step
        (inner.envs if make_venv == "dummy" else inner.env.envs)[1].unwrapped.step_number += t == 5
        actions = rng.integers(3, size=3)
        obs, rewards, dones, infos = together.step(actions)
        wanted, wanted_rewards, wanted_dones, wanted_infos = each.step(actions)
        assert_history(obs, wanted)
        np.testing.assert_array_equal(rewards, wanted_rewards)
        np.testing.assert_array_equal(dones, wanted_dones)
        for info, wanted_info in zip(infos, wanted_infos, strict=True):
            assert ("terminal_observation" in info) == ("terminal_observation" in wanted_info)
            if "terminal_observation" in info:
                num_ends += 1
                assert_history(info["terminal_observation"], wanted_info["terminal_observation"])
                kept.append((info["terminal_observation"], {k: v.copy() for k, v in info["terminal_observation"].items()}))
        kept.append((obs, {key: value.copy() for key, value in obs.items()}))
    assert num_ends >= 15
    for given, copy in kept:  # nothing that was given away changed later
        assert_history(given, copy)


ACTIONS: list[tuple[spaces.Space[Any], Any, list[float]]] = [
    (spaces.Discrete(3, start=-1), 1, [0, 0, 1]),
    (spaces.MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
    (spaces.MultiBinary(2), np.array([1, 0]), [1, 0]),
    (spaces.Box(-2, 2, (2,), np.float32), np.array([0.5, -1.5], np.float32), [0.5, -1.5]),
]


@pytest.mark.parametrize(("space", "action", "encoded"), ACTIONS, ids=[type(space).__name__ for space, _, _ in ACTIONS])
def test_actions_are_one_hot_or_as_they_are(space: Any, action: Any, encoded: list[float]) -> None:
    env = HistoryWrapper(Counting(actions=space), 2, include_actions=True)
    env.reset()
    obs = env.step(action)[0]
    assert obs["previous_actions"].tolist() == [[0.0] * len(encoded), encoded]
    assert env.observation_space.contains(obs)


def test_numbers_as_observations_are_one_hot_and_padding_is_in_the_space() -> None:
    env = HistoryWrapper(gym.make("CliffWalking-v1"), 2)
    obs, _ = env.reset(seed=0)
    assert obs["observations"].shape == (2, 48)
    assert obs["observations"][1].argmax() == 36
    assert obs["observations"].sum() == 1
    narrow = gym.wrappers.TransformObservation(Counting(), lambda obs: obs + 5, spaces.Box(5, 9, (2,), np.float32))
    space = HistoryWrapper(narrow, 2).observation_space["observations"]
    assert (space.low.min(), space.high.max(), space.shape) == (0.0, 9.0, (2, 2))


def test_wrapper_follows_gymnasiums_interface_and_can_be_made_again() -> None:
    env = HistoryWrapper(gym.make("CartPole-v1"), 3, include_actions=True, include_rewards=True)
    check_env(env, skip_render_check=True)
    again = gym.make(env.spec)
    assert again.observation_space == env.observation_space


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        HistoryWrapper(Counting(), 0)
    env = Counting()
    env.observation_space = spaces.Dict(a=spaces.Discrete(2))  # type: ignore[assignment]
    with pytest.raises(ValueError, match="observation_space must be a Box, Discrete, MultiDiscrete or MultiBinary space, got Dict"):
        HistoryWrapper(env, 2)
    with pytest.raises(ValueError, match="action_space must be"):
        VecHistory(DummyVecEnv([lambda: Counting(actions=spaces.Tuple([spaces.Discrete(2)]))]), 2, include_actions=True)


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_replay_keeps_histories_within_their_episodes(layout: Any) -> None:
    history = {"wrapper_class": HistoryWrapper, "wrapper_kwargs": {"length": 3}}
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0, **history), norm_obs_keys=["observations"])
    options: dict[str, Any] = {
        "learning_starts": 20,
        "batch_size": 8,
        "policy_kwargs": {"net_arch": [8]},
        "device": "cpu",
        "seed": 0,
    }
    agent = DQN("MultiInputPolicy", env, 1000, replay_buffer_kwargs={"layout": layout}, **options)  # type: ignore[misc]
    agent.learn(150)
    replay: Any = agent.replay_buffer
    assert isinstance(replay, UniformReplay)
    batch = replay._get_samples(replay.storage.all_slots())
    valid, next_valid = batch.observations["valid"], batch.next_observations["valid"]
    obs, next_obs = batch.observations["observations"], batch.next_observations["observations"]
    assert (next_valid[:, :-1] == valid[:, 1:]).all()  # shifted by one, at the last step of an episode too
    th.testing.assert_close(next_obs[:, :-1], obs[:, 1:])  # VecNormalize rounds at ends of episodes
    assert (next_valid[:, -1] == 1).all()
    assert not obs[valid == 0].any()
    assert len({int(n) for n in valid.sum(1)}) == 3
    assert batch.dones.sum() >= 3
