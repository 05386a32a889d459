"""The T-maze against a simulation written as one reads its description."""

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

from rlopt.agents import GymnasiumVecEnv
from rlopt_envs import TMazeEnv, TMazeVectorEnv

VARIANTS: list[dict[str, Any]] = [
    {},
    {"corridor_length": 0},
    {"corridor_length": 5, "min_corridor_length": 2, "num_cues": 3},
    {"corridor_length": 2, "num_cues": 4, "num_recalls": 3, "distractor_probability": 0.5},
    {"corridor_length": 3, "must_walk": True},
    {"corridor_length": 1, "num_recalls": 2, "must_walk": True, "time_limit": 7, "distractor_probability": 1.0},
]


class Maze:
    """A list of cells and a token."""

    def __init__(self, cues: list[int], length: int, num_cues: int, must_walk: bool, limit: int | None) -> None:
        self.cells = [("sign", cue) for cue in cues] + [("corridor", -1)] * length + [("junction", cue) for cue in cues]
        self.num_cues, self.must_walk, self.limit, self.m = num_cues, must_walk, limit, len(cues)
        self.place, self.time, self.new, self.answers = 0, 0, True, []

    def obs(self) -> list[float]:
        kind, sign = self.cells[self.place]
        shown = [float(kind == "sign" and self.new and c == sign) for c in range(self.num_cues)]
        return shown + [float(kind == name) for name in ("sign", "corridor", "junction")]

    def step(self, action: int) -> tuple[float, bool]:
        kind, sign = self.cells[self.place]
        arm = action - 1 if self.must_walk else action
        walks = not self.must_walk or action == 0
        self.new, reward, over = False, 0.0, False
        if kind == "junction" and arm >= 0:
            self.answers.append(arm == sign)
            reward = (1.0 if arm == sign else -1.0) / self.m
            over = len(self.answers) == self.m
            walks = not over
        elif kind == "junction":
            walks = False
        if walks:
            self.place, self.new = self.place + 1, True
        self.time += 1
        if not over and self.limit is not None and self.time >= self.limit:
            reward, over = reward - (self.m - len(self.answers)) / self.m, True
        return reward, over


@pytest.mark.parametrize("options", VARIANTS)
def test_episodes_are_those_of_the_description(options: dict[str, Any]) -> None:
    env = TMazeEnv(**options)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    num_cues, m = options.get("num_cues", 2), options.get("num_recalls", 1)
    has_distractors = "distractor_probability" in options
    returns, signs_in_corridor = [], 0
    for _ in range(60):
        obs, info = env.reset()
        assert info == {}
        *cues, length, place = (int(x) for x in env.state)
        assert place == 0
        maze = Maze(cues, length, num_cues, env._batch.must_walk, env._batch.time_limit)
        total, over = 0.0, False
        while not over:
            expected = maze.obs()
            if has_distractors and expected[-2] == 1:
                signs_in_corridor += int(obs[:num_cues].sum())
                assert obs[num_cues:].tolist() == expected[num_cues:]
            elif not over:
                assert obs.tolist() == expected
            # Goes on more often than not, so that all ends occur.
            action = 0 if rng.random() < 0.6 else int(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
            if rng.random() < 0.4 and expected[-1] == 1:
                action = cues[len(maze.answers)] + env._batch.must_walk
            wanted_reward, over = maze.step(action)
            obs, reward, terminated, truncated, info = env.step(action)
            assert (reward, terminated, truncated) == (pytest.approx(wanted_reward), over, False)
            assert info["is_success"] == (over and len(maze.answers) == m and all(maze.answers))
            total += reward
        assert total == pytest.approx(2 * sum(maze.answers) / m - 1)
        returns.append(round(total, 6))
    assert {-1.0, 1.0} <= set(returns)
    if has_distractors:
        assert signs_in_corridor > 20


@pytest.mark.parametrize("options", VARIANTS)
def test_optimal_return_is_that_of_the_policy_that_remembers(options: dict[str, Any]) -> None:
    env = TMazeEnv(**options)
    env.reset(seed=1)
    for _ in range(10):
        obs, _ = env.reset()
        num_cues = env.num_cues
        heard, total, over = [], 0.0, False
        while not over:
            if obs[num_cues] == 1:
                heard.append(int(obs[:num_cues].argmax()))
            arm = heard.pop(0) if obs[-1] == 1 else -1
            action = arm + 1 if env._batch.must_walk else max(arm, 0)
            obs, reward, over, _, _ = env.step(action)
            total += reward
        assert total == pytest.approx(env.optimal_return) == 1.0


@pytest.mark.parametrize(("num_cues", "must_walk"), [(2, False), (3, False), (2, True)])
def test_memoryless_return_is_the_best_of_all_memoryless_policies(num_cues: int, must_walk: bool) -> None:
    """Every deterministic map from what is seen to an action, on every sign: 2 / K - 1 is reached and never exceeded."""
    env = TMazeEnv(corridor_length=1, num_cues=num_cues, must_walk=must_walk)
    seen = [*np.eye(num_cues, num_cues + 3) + np.eye(num_cues + 3)[num_cues], *np.eye(num_cues + 3)[num_cues:]]
    keys = [tuple(row) for row in seen]
    best = -1.0
    for actions in itertools.product(range(env.action_space.n), repeat=len(keys)):  # type: ignore[attr-defined]
        policy = dict(zip(keys, actions, strict=True))
        total = 0.0
        for cue in range(num_cues):
            obs, _ = env.reset(options={"initial_state": [cue, 1, 0]})
            over = False
            while not over:
                obs, reward, over, _, _ = env.step(policy[tuple(obs.tolist())])
                total += reward / num_cues
        best = max(best, total)
    assert best == pytest.approx(env.memoryless_return) == pytest.approx(2 / num_cues - 1)


def test_signs_and_lengths_are_uniform_and_independent() -> None:
    env = TMazeVectorEnv(20_000, corridor_length=4, min_corridor_length=2, num_cues=3, num_recalls=2)
    env.reset(seed=0)
    _, counts = np.unique(env.states[:, :3], axis=0, return_counts=True)
    assert len(counts) == 27
    assert ((counts - 20_000 / 27) ** 2 / (20_000 / 27)).sum() < 54.1  # 99.9 % quantile of chi-square, 26 degrees of freedom


def test_distractors_are_as_frequent_as_asked_and_uniform() -> None:
    env = TMazeVectorEnv(20_000, num_cues=4, distractor_probability=0.3)
    env.reset(seed=0)
    obs = env.step(np.zeros(20_000, int))[0]
    counts = np.array([20_000 - obs[:, :4].sum(), *obs[:, :4].sum(0)])
    expected = 20_000 * np.array([0.7, 0.075, 0.075, 0.075, 0.075])
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 4 degrees of freedom


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("options", VARIANTS[2:])
def test_one_copy_equals_the_single_environment_with_the_same_seed(options: dict[str, Any], mode: AutoresetMode) -> None:
    native = TMazeVectorEnv(1, autoreset_mode=mode, **options)
    sync = SyncVectorEnv([lambda: gym.make("rlopt/TMaze-v0", **options)], autoreset_mode=mode)
    np.testing.assert_array_equal(native.reset(seed=5)[0], sync.reset(seed=5)[0])
    native.action_space.seed(0)
    num_ends = 0
    for _ in range(60):
        action = native.action_space.sample()
        one, other = native.step(action), sync.step(action)
        for left, right in zip(one[:4], other[:4], strict=True):
            np.testing.assert_array_equal(left, right)
        done = one[2] | one[3]
        num_ends += int(done.sum())
        if done.any() and mode is AutoresetMode.SAME_STEP:
            np.testing.assert_array_equal(one[4]["final_obs"][0], other[4]["final_obs"][0])
            assert one[4]["final_info"]["is_success"][0] == other[4]["final_info"]["is_success"][0]
        if done.any() and mode is AutoresetMode.DISABLED:
            mask = {"reset_mask": done}
            np.testing.assert_array_equal(native.reset(options=dict(mask))[0], sync.reset(options=dict(mask))[0])
    assert num_ends >= 3


def test_copies_are_independent() -> None:
    """With different actions each copy goes its own way, as the single environment does from the same beginning."""
    options: dict[str, Any] = {"corridor_length": 2, "num_recalls": 2, "must_walk": True}
    env = TMazeVectorEnv(8, autoreset_mode="Disabled", **options)
    starts = [[i % 2, (i // 2) % 2, 2, 0] for i in range(8)]
    env.reset(seed=0, options={"initial_state": starts})
    singles = [TMazeEnv(**options) for _ in range(8)]
    for single, start in zip(singles, starts, strict=True):
        single.reset(seed=0, options={"initial_state": start})
    rng = np.random.default_rng(0)
    over = np.zeros(8, bool)
    while not over.any():
        actions = rng.integers(0, 3, 8) * (rng.random(8) < 0.5)
        obs, rewards, over, _, _ = env.step(actions)
        for i, single in enumerate(singles):
            wanted = single.step(actions[i])
            np.testing.assert_array_equal(obs[i], wanted[0])
            assert (rewards[i], over[i]) == wanted[1:3]


@pytest.mark.parametrize("options", VARIANTS)
def test_environments_follow_the_interfaces(options: dict[str, Any]) -> None:
    check_env(TMazeEnv(**options))
    check_env_for_sb3(gym.make("rlopt/TMaze-v0", **options))


def test_agents_get_the_true_last_observation_and_the_success() -> None:
    env = GymnasiumVecEnv(TMazeVectorEnv(2, corridor_length=0, autoreset_mode="SameStep"))
    env.seed(0)
    cues = env.reset()[:, :2].argmax(1)
    env.step(np.zeros(2, int))
    obs, rewards, dones, infos = env.step(np.array([cues[0], 1 - cues[1]]))
    assert rewards.tolist() == [1.0, -1.0]
    assert dones.all()
    assert [info["is_success"] for info in infos] == [True, False]
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]
    assert all(info["terminal_observation"][-1] == 1 for info in infos)
    assert (obs[:, 2] == 1).all()


@pytest.mark.parametrize("options", [{}, {"corridor_length": 200}, {"num_cues": 4, "num_recalls": 3}])
def test_pictures_show_where_the_agent_is(options: dict[str, Any]) -> None:
    env = gym.make("rlopt/TMaze-v0", render_mode="rgb_array", **options)
    env.reset(seed=0)
    first: Any = env.render()
    assert (first.shape, first.dtype) == ((160, 800, 3), np.uint8)
    for _ in range(4):
        env.step(0)
    assert not np.array_equal(first, env.render())
    red = (first == [214, 39, 40]).all(2)
    assert 20 < red.sum() < 200
    assert red[:, :400].sum() == red.sum()  # at the left end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corridor_length": -1}, "corridor_length must be a whole number >= 0, got -1"),
        ({"min_corridor_length": 11}, "min_corridor_length must be at most the corridor_length 10, got 11"),
        ({"num_cues": 1}, "num_cues must be a whole number >= 2, got 1"),
        ({"num_recalls": 0}, "num_recalls must be a whole number >= 1, got 0"),
        ({"distractor_probability": 1.5}, r"distractor_probability must be in \[0, 1\], got 1.5"),
        ({"time_limit": 50}, "time_limit must be None with must_walk=False"),
        ({"must_walk": True, "time_limit": 11}, "time_limit must be at least the 12 steps of the way through, got 11"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TMazeEnv(**options)


def test_wrong_calls_are_refused() -> None:
    env = TMazeEnv()
    with pytest.raises(ValueError, match="call reset"):
        env.step(0)
    for state in ([2, 10, 0], [0, 9, 0], [0, 10, 1], [0.5, 10, 0]):
        with pytest.raises(ValueError, match="initial_state must be whole numbers"):
            env.reset(options={"initial_state": state})
    env.reset()
    for action in (2, -1, 0.5, [0, 1]):
        with pytest.raises(ValueError, match=r"actions must be 1 whole numbers in \[0, 2\)"):
            env.step(action)
