"""Data from arrays, environments and replays."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rlopt.replay import UniformReplay
from rlopt.sysid import LeastSquares, Trajectory, rollout, trajectories_of_replay


class Counter(gym.Env):
    """Observation (episode, step); an episode ends after `lengths[episode]` steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.episode = lengths, -1

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0.0]), {}

    def step(self, action: Any):
        self.steps += 1
        return np.array([self.episode, self.steps], float), 0.0, self.steps == self.lengths[self.episode], False, {}


def test_rollout_cuts_at_the_ends_of_episodes_and_keeps_last_observations() -> None:
    parts = rollout(Counter([3, 1, 9]), 7, policy=lambda obs: obs[1:] / 10)
    assert [part.states.tolist() for part in parts] == [[[0, 0], [0, 1], [0, 2]], [[1, 0]], [[2, 0], [2, 1], [2, 2]]]
    assert [part.next_states[-1].tolist() for part in parts] == [[0, 3], [1, 1], [2, 3]]
    assert parts[2].inputs is not None
    np.testing.assert_array_equal(parts[2].inputs, [[0.0], [0.1], [0.2]])
    np.testing.assert_array_equal(parts[2].regressors, [[2, 0, 0.0], [2, 1, 0.1], [2, 2, 0.2]])


def test_rollout_is_reproducible_and_does_not_reset_at_the_very_end() -> None:
    first, second = (rollout(Counter([4]), 4, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first[0].regressors, second[0].regressors)
    with pytest.raises(ValueError, match="num_steps must be > 0, got 0"):
        rollout(Counter([4]), 0)
    with pytest.raises(ValueError, match="env must have a Box action space, got Discrete"):
        rollout(gym.make("CartPole-v1"), 5)


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_replay_gives_back_each_episode_of_each_environment(layout: Any) -> None:
    space, actions = spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Box(-2, 4, (1,))
    replay = UniformReplay(16, space, actions, device="cpu", n_envs=2, layout=layout)  # 8 rows, written 11 times
    lengths = {0: [2, 3, 6], 1: [7, 2, 2]}
    ends = {env: np.cumsum(lengths[env]) for env in lengths}
    for t in range(11):
        obs, new, done, info = np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2, bool), [{}, {}]
        for env in range(2):
            episode = int(np.searchsorted(ends[env], t, side="right"))
            step = t - (ends[env][episode] - lengths[env][episode])
            obs[env], new[env] = [10 * env + episode, step], [10 * env + episode, step + 1]
            done[env] = t + 1 in ends[env]
            if done[env] and episode == 1:
                info[env] = {"TimeLimit.truncated": True}
        replay.add(obs, new, np.full((2, 1), t / 10 - 1), np.zeros(2), done, info)
    parts = trajectories_of_replay(replay)
    found = [(part.states[:, 0].tolist(), part.states[:, 1].tolist(), part.next_states[-1, 1]) for part in parts]
    assert found == [
        ([1.0, 1.0], [1.0, 2.0], 3.0),
        ([2.0] * 6, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 6.0),
        ([10.0] * 4, [3.0, 4.0, 5.0, 6.0], 7.0),
        ([11.0] * 2, [0.0, 1.0], 2.0),
        ([12.0] * 2, [0.0, 1.0], 2.0),
    ]
    assert parts[0].inputs is not None
    np.testing.assert_allclose(parts[0].inputs[:, 0], [-0.7, -0.6], atol=1e-7)
    scaled = trajectories_of_replay(replay, scaled_actions=True)[0].inputs
    assert scaled is not None
    np.testing.assert_allclose(scaled[:, 0], [-2 + 3 * 0.3, -2 + 3 * 0.4], atol=1e-6)


def test_contiguous_states_are_not_copied() -> None:
    states = np.zeros((10, 3))
    part = Trajectory.from_states(states)
    assert np.shares_memory(part.regressors, states)
    assert np.shares_memory(part.next_states, states)
    assert len(part) == 9


def test_single_target_is_a_column() -> None:
    x = np.arange(6.0).reshape(3, 2)
    assert LeastSquares().fit((x, x[:, 0])).A_.shape == (1, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((1, 3)), r"states must have shape \(T \+ 1, d\) with T >= 1, got \(1, 3\)"),
        (np.zeros(5), r"states must have shape \(T, dimension\), got \(5,\)"),
        (np.array([[0.0], [np.nan], [1.0]]), "states must be finite, got 1 rows"),
        ((np.zeros((3, 2)), np.zeros((4, 2))), r"next_states must have shape \(3, dimension\), got \(4, 2\)"),
        ((np.zeros((3, 2)),), "data must be a pair"),
        ("text", "states must be an array of numbers"),
    ],
)
def test_wrong_data_are_named(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeastSquares().fit(data)


def test_trajectories_of_different_systems_are_refused() -> None:
    parts = [Trajectory.from_states(np.zeros((4, size))) for size in (2, 3)]
    with pytest.raises(ValueError, match="data must be trajectories of one system"):
        LeastSquares().fit(parts)
    with pytest.raises(ValueError, match=r"inputs must have shape \(3, dimension\), got \(2, 1\)"):
        Trajectory.from_states(np.zeros((4, 2)), np.zeros((2, 1)))


def test_empty_replay_and_other_spaces_are_refused() -> None:
    box = spaces.Box(-1, 1, (1,))
    with pytest.raises(ValueError, match="replay must hold transitions"):
        trajectories_of_replay(UniformReplay(4, box, box, device="cpu"))
    with pytest.raises(ValueError, match="replay must have a Box action space, got Discrete"):
        trajectories_of_replay(UniformReplay(4, box, spaces.Discrete(2), device="cpu"))
