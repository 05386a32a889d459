from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlopt.replay import UniformReplay
from rlopt.sysid.transitions import Transitions, collect, tabular_features
from rlopt_envs.baird_star import BairdStarEnv
from rlopt_envs.blind_cliffwalk import memory
from rlopt_envs.chain import ChainEnv, ChainVectorEnv
from rlopt_envs.ring_mdp import RingMDPEnv

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminated", "ends")


def assert_equal(one: Transitions, other: Transitions) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


GOOD: dict[str, Any] = {
    "observations": np.array([0, 1, 5, 6]),
    "actions": np.array([0, 1, 0, 1]),
    "rewards": [1, 2, 3, 4],
    "next_observations": np.array([1, 2, 6, 7]),
}


def test_ends_are_where_observations_do_not_continue_and_where_terminated() -> None:
    assert Transitions(**GOOD).ends.tolist() == [False, True, False, False]
    assert Transitions(**GOOD, terminated=[True, False, False, True]).ends.tolist() == [True, True, False, True]
    assert Transitions(**GOOD, terminated=[False, False, True, False], ends=[True, False, False, False]).ends.tolist() == [
        True,
        False,
        True,
        False,
    ]


def test_ends_of_vector_observations_see_each_coordinate() -> None:
    obs = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    data = Transitions(obs, [0, 0, 0], [0.0, 0.0, 0.0], np.array([[1.0, 1.0], [2.0, 9.0], [3.0, 3.0]]))
    assert data.ends.tolist() == [False, True, False]
    assert data.rewards.dtype == np.float64
    assert data.actions.dtype == np.int64


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"observations": np.array([])}, r"observations and next_observations must have one shape .* got \(0,\) and \(4,\)"),
        ({"next_observations": np.zeros((4, 2))}, r"got \(4,\) and \(4, 2\)"),
        ({"actions": np.array([0, 1])}, r"actions must have shape \(4,\) for 4 transitions, got \(2,\)"),
        ({"actions": np.array([0.0, 1.0, 0.0, 0.0])}, "actions must be whole numbers >= 0, got float64"),
        ({"actions": np.array([0, -1, 0, 0])}, "actions must be whole numbers >= 0, got int64 with minimum -1"),
        ({"rewards": [[1, 2, 3, 4]]}, r"rewards must have shape \(4,\) for 4 transitions, got \(1, 4\)"),
        ({"rewards": [1, np.nan, np.inf, 4]}, "rewards must be finite, got 2 numbers that are not"),
        ({"terminated": [0, 1, 0, 0]}, "terminated must be of dtype bool, got int64"),
        ({"ends": [True]}, r"ends must have shape \(4,\)"),
        ({"observations": np.array([0, 1, np.nan, 6])}, "observations must be finite, got 1 numbers that are not"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transitions(**(GOOD | wrong))


def test_slices_and_their_concatenation() -> None:
    data = collect(gym.make("CartPole-v1"), 60, seed=0)
    assert_equal(Transitions.concatenate([data[:7], data[7:31], data[31:]]), data)
    with pytest.raises(ValueError, match="index must be a slice without a step"):
        data[::2]


def test_rollouts_of_a_finite_process_become_transitions() -> None:
    data = Transitions.from_rollout(memory(3))
    assert len(data) == 14
    assert data.ends.tolist() == data.terminated.tolist()
    assert np.count_nonzero(data.ends) == 8
    ring = Transitions.from_rollout(RingMDPEnv().mdp.simulate(100, np.random.default_rng(0)))
    assert not ring.ends.any()
    np.testing.assert_array_equal(ring.observations[1:], ring.next_observations[:-1])


# ------------------------------------------------------------------ collecting


def test_collect_records_what_the_environment_did() -> None:
    class Log(gym.Wrapper[Any, Any, Any, Any]):
        rows: list[Any]
        obs: Any

        def reset(self, **options: Any) -> Any:
            self.obs, info = super().reset(**options)
            return self.obs, info

        def step(self, action: Any) -> Any:
            result = super().step(action)
            self.rows.append((self.obs, action, result[1], result[0], result[2], result[2] or result[3]))
            self.obs = result[0]
            return result

    env = Log(gym.make("CartPole-v1", max_episode_steps=20))
    env.rows = []
    data = collect(env, 400, seed=1)
    for name, column in zip(FIELDS, zip(*env.rows, strict=True), strict=True):
        np.testing.assert_array_equal(getattr(data, name), np.array(column))
    assert np.count_nonzero(data.ends & ~data.terminated) > 0  # cuts by the time limit
    assert np.count_nonzero(data.terminated) > 0
    assert_equal(collect(gym.make("CartPole-v1", max_episode_steps=20), 400, seed=1), data)


def test_collect_copies_observations_that_the_environment_changes_in_place() -> None:
    class InPlace(gym.Env[Any, Any]):
        observation_space = spaces.Box(0, 100, (1,))
        action_space = spaces.Discrete(1)
        state = np.zeros(1, np.float32)

        def reset(self, **options: Any) -> Any:
            self.state[:] = 0
            return self.state, {}

        def step(self, action: Any) -> Any:
            self.state += 1
            return self.state, 0.0, self.state[0] == 3, False, {}

    data = collect(InPlace(), 5)
    assert data.observations[:, 0].tolist() == [0, 1, 2, 0, 1]
    assert data.next_observations[:, 0].tolist() == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("limit", [None, 3])
def test_collecting_from_several_environments_gives_their_streams_one_after_the_other(
    mode: AutoresetMode, native: bool, limit: int | None
) -> None:
    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = ChainEnv(num_states=4)
        return env if limit is None else gym.wrappers.TimeLimit(env, limit)

    vector: Any = ChainVectorEnv(3, num_states=4, max_episode_steps=limit, autoreset_mode=mode)
    if not native:
        vector = SyncVectorEnv([make] * 3, autoreset_mode=mode)
    data = collect(vector, 3 * 10, seed=0)
    single = collect(make(), 10, seed=0)
    for stream in range(3):
        part = data[10 * stream : 10 * stream + 10]
        for name in FIELDS[:-1]:
            np.testing.assert_array_equal(getattr(part, name), getattr(single, name))
        assert part.ends[:-1].tolist() == single.ends[:-1].tolist()
        assert part.ends[-1] == (stream < 2 or single.ends[-1])


def test_collect_follows_a_policy() -> None:
    env = BairdStarEnv()
    data = collect(env, 4000, env.behaviour_policy, seed=0)
    assert np.mean(data.actions) == pytest.approx(1 / 7, abs=5 * np.sqrt(6 / 49 / 4000))
    uniform = collect(env, 4000, seed=0)
    assert np.mean(uniform.actions) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(4000))
    towards_parity = collect(env, 50, lambda obs, rng: obs % 2, seed=0)
    np.testing.assert_array_equal(towards_parity.actions, towards_parity.observations % 2)


def test_wrong_arguments_of_collect_are_refused() -> None:
    with pytest.raises(ValueError, match="actions of env must be Discrete and start at 0, got Box"):
        collect(gym.make("Pendulum-v1"), 10)
    with pytest.raises(ValueError, match="num_steps must be >= 1 and a multiple of the 3 environments, got 10"):
        collect(ChainVectorEnv(3), 10)
    with pytest.raises(ValueError, match="env must reset by itself"):
        collect(ChainVectorEnv(2, autoreset_mode=AutoresetMode.DISABLED), 10)
    with pytest.raises(ValueError, match=r"policy must be probabilities of shape \(S, 2\)"):
        collect(RingMDPEnv(), 10, np.full((5, 2), 0.4))


# ------------------------------------------------------------------ reading a replay


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("num_adds", [7, 30])
@pytest.mark.parametrize("discrete", [True, False])
def test_a_replay_is_read_in_time_order_per_stream_and_cut_at_ends_and_resets(layout: Any, num_adds: int, discrete: bool) -> None:
    rng = np.random.default_rng(0)
    space = spaces.Discrete(1000) if discrete else spaces.Box(0, 1000, (2,))
    replay = UniformReplay(3 * 12, space, spaces.Discrete(4), "cpu", n_envs=3, layout=layout, seed=0)
    streams: list[list[list[Any]]] = [[], [], []]
    obs = rng.integers(500, size=3)
    for step in range(num_adds):
        if step == num_adds - 4:  # a reset from outside, unknown to the replay's `add`
            obs[1] = 999
            for row in streams[1][-1:]:
                row[5] = True
        next_obs, action, reward = rng.integers(500, size=3), rng.integers(4, size=3), rng.normal(size=3).astype(np.float32)
        done, cut = rng.random(3) < 0.25, rng.random(3) < 0.5
        for i in range(3):
            terminated = bool(done[i] and not cut[i])
            streams[i].append([obs[i], action[i], reward[i], next_obs[i], terminated, bool(done[i])])
        infos = [{"TimeLimit.truncated": bool(cut[i])} for i in range(3)]
        shaped = (lambda x: x) if discrete else (lambda x: np.repeat(x[:, None], 2, axis=1).astype(np.float32))
        replay.add(shaped(obs), shaped(next_obs), action, reward, done, infos)
        obs = np.where(done, rng.integers(500, size=3), next_obs)
    rows = []
    for i, stream in enumerate(streams):
        kept = stream[-12:]
        kept[-1][5] = kept[-1][5] or i < 2
        rows += kept
    data = Transitions.from_replay(replay)
    for name, column in zip(FIELDS, zip(*rows, strict=True), strict=True):
        found = getattr(data, name)
        if name in ("observations", "next_observations") and not discrete:
            assert found.shape == (len(rows), 2)
            found = found[:, 1]
        np.testing.assert_array_equal(found, np.array(column), err_msg=name)


def test_replays_that_cannot_be_read_are_refused() -> None:
    box, two = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    with pytest.raises(ValueError, match="replay must hold transitions with array observations, got an empty one"):
        Transitions.from_replay(UniformReplay(10, box, two, "cpu", seed=0))
    with pytest.raises(ValueError, match="actions of the replay must be Discrete, got Box"):
        Transitions.from_replay(UniformReplay(10, box, box, "cpu", seed=0))
    with pytest.raises(ValueError, match="got observations Dict"):
        Transitions.from_replay(UniformReplay(10, spaces.Dict({"x": box}), two, "cpu", seed=0))


def test_tabular_features_are_one_coordinate_for_each_pair() -> None:
    features = tabular_features(3, 2)
    np.testing.assert_array_equal(features.reshape(6, 6), np.eye(6))
    with pytest.raises(ValueError, match="num_states and num_actions must be >= 1, got 0 and 2"):
        tabular_features(0, 2)
