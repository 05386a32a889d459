"""Gymnasium's vector environments in every autoreset mode, against Stable-Baselines3's `DummyVecEnv` of the same environments."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecTransposeImage

import rlopt.agents
from rlopt.agents import GymnasiumVecEnv
from rlopt.agents.vector_env import split_infos
from rlopt.replay import UniformReplay

MODES = list(AutoresetMode)
KINDS = [SyncVectorEnv, AsyncVectorEnv]
ENDS = [(3, True, False), (2, False, True), (1, True, False), (4, True, True)]
"""Length of the episodes in turn, and whether they terminate and are truncated at their end."""


class Counting(gym.Env[Any, Any]):
    """Observes step, episode, number of the environment and last action; each step's reward is the number of the step."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}

    def __init__(self, number: int = 0, space: str = "box", render_mode: str | None = "rgb_array") -> None:
        self.number, self.space, self.render_mode = number, space, render_mode
        self.action_space = spaces.Discrete(4)
        parts: dict[str, spaces.Space[Any]] = {
            "box": spaces.Box(0, 1000, (4,), np.float32),
            "image": spaces.Box(0, 255, (8, 9, 3), np.uint8),
            "discrete": spaces.Discrete(1000),
            "multi": spaces.MultiDiscrete([1000, 1000]),
            "bits": spaces.MultiBinary(3),
        }
        self.observation_space = spaces.Dict(parts) if space == "dict" else parts[space]
        self.episode, self.t, self.action, self.options, self.scale = -1, 0, 0, None, 1.0

    def _obs(self) -> Any:
        image = np.arange(216, dtype=np.uint8).reshape(8, 9, 3) + np.uint8(self.t)
        obs = {
            "box": np.array([self.t, self.episode, self.number, self.action], np.float32),
            "image": image,
            "discrete": 10 * self.episode + self.t,
            "multi": np.array([self.t, self.episode]),
            "bits": np.array([self.t % 2, self.episode % 2, 1], np.int8),
        }
        return obs if self.space == "dict" else obs[self.space]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.options = options or self.options
        self.t, self.action, self.episode = 0, 0, self.episode + 1
        return self._obs(), {"start": self.episode}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t, self.action = self.t + 1, int(action)
        length, terminates, truncates = ENDS[(self.episode + self.number) % len(ENDS)]
        end = self.t == length
        info = {"t": self.t, "word": f"{self.t}", "pair": np.array([self.t, self.number]), "nested": {"half": self.t / 2}}
        if self.t == 2:
            info["two"] = True
            info["nested"]["two"] = 2
        return self._obs(), self.t * self.scale, end and terminates, end and truncates, info

    def render(self) -> np.ndarray:
        return np.full((4, 6, 3), self.number, np.uint8)

    def add_to(self, value: int) -> int:
        self.total = getattr(self, "total", 0) + value
        return self.total + self.number


class CountingVector(VectorEnv[Any, Any, Any]):
    """Natively vectorized: writes into the arrays it returned, gives final_obs as one array, and no final_info."""

    def __init__(self, num_envs: int, mode: Any, respects_mask: bool = True, gives_final: bool = True) -> None:
        self.num_envs, self.mode, self.respects_mask, self.gives_final = num_envs, mode, respects_mask, gives_final
        self.metadata = {"autoreset_mode": mode}
        self.envs = [Counting(i) for i in range(num_envs)]
        self.single_observation_space, self.single_action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.obs, self.final = np.zeros((2, num_envs, 4), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, bool)) if self.respects_mask else np.ones(self.num_envs)
        for i in np.flatnonzero(mask):
            self.obs[i] = self.envs[i].reset()[0]
        return self.obs, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        results = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        self.obs[:] = [result[0] for result in results]
        self.final[:] = self.obs
        rewards, terminations, truncations = (np.array([result[k] for result in results]) for k in (1, 2, 3))
        infos = {"t": np.array([result[4]["t"] for result in results])}
        if self.mode is AutoresetMode.SAME_STEP:
            for i in np.flatnonzero(terminations | truncations):
                self.obs[i] = self.envs[i].reset()[0]
            if self.gives_final:
                infos["final_obs"] = self.final
        return self.obs, rewards, terminations, truncations, infos


def make_fns(num_envs: int, **options: Any) -> list[Any]:
    return [partial(Counting, i, **options) for i in range(num_envs)]


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes vector environments and closes them."""
    made: list[GymnasiumVecEnv] = []

    def build(kind: Any, mode: AutoresetMode, fns: list[Any], **options: Any) -> GymnasiumVecEnv:
        made.append(GymnasiumVecEnv(kind(fns, autoreset_mode=mode, **options)))
        return made[-1]

    yield build
    for env in made:
        env.close()
        env.close()


def train(library: Any, env: Any, steps: int, **options: Any) -> UniformReplay:
    small = {"learning_starts": 45, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 3}
    agent = library.DQN("MlpPolicy", env, buffer_size=1200, replay_buffer_class=UniformReplay, **small, **options)
    replay = agent.learn(steps).replay_buffer
    assert isinstance(replay, UniformReplay)
    return replay


def assert_equal(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_equal(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    else:
        assert actual == expected
        assert isinstance(actual, (type(expected), np.integer))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("library", [sb3, rlopt.agents])
def test_every_mode_stores_the_data_of_dummy_vec_env(make: Any, library: Any, num_envs: int, kind: Any, mode: Any) -> None:
    replay = train(library, make(kind, mode, make_fns(num_envs)), 90)
    expected = train(library, DummyVecEnv(make_fns(num_envs)), 90)
    assert replay.size() == expected.size() >= 30
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert_equal(getattr(replay, name), getattr(expected, name))
    assert len(np.unique(replay.actions)) == 4


@pytest.mark.parametrize("mode", MODES)
def test_stored_columns_and_n_step_returns_are_those_worked_out_by_hand(make: Any, mode: AutoresetMode) -> None:
    replay = train(rlopt.agents, make(SyncVectorEnv, mode, make_fns(1)), 12, gamma=0.5, n_steps=3)
    obs, next_obs = replay.observations, replay.next_observations
    assert isinstance(obs, np.ndarray)
    assert isinstance(next_obs, np.ndarray)
    assert obs[:10, 0, 0].tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2, 3]
    assert next_obs[:10, 0, 0].tolist() == [1, 2, 3, 1, 2, 1, 1, 2, 3, 4]
    assert obs[:10, 0, 1].tolist() == next_obs[:10, 0, 1].tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    assert next_obs[:10, 0, 3].tolist() == replay.actions[:10, 0, 0].tolist()
    assert replay.dones[:10, 0].tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 0, 1]
    assert replay.timeouts[:10, 0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    batch = replay._get_samples(np.arange(10))
    assert batch.discounts is not None
    assert batch.rewards.flatten().tolist() == [2.75, 3.5, 3, 2, 2, 1, 2.75, 4.5, 5, 4]
    assert batch.discounts.flatten().tolist() == [0.125, 0.25, 0.5, 0.25, 0.5, 0.5, 0.125, 0.125, 0.25, 0.5]
    assert batch.dones.flatten().tolist() == [1, 1, 1, 0, 0, 1, 0, 1, 1, 1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", ["box", "image", "discrete", "multi", "bits", "dict"])
def test_observations_and_infos_are_those_of_dummy_vec_env(make: Any, space: str, kind: Any, mode: AutoresetMode) -> None:
    env, expected = make(kind, mode, make_fns(3, space=space), copy=False), DummyVecEnv(make_fns(3, space=space))
    if space == "image":
        env, expected = VecTransposeImage(env), VecTransposeImage(expected)
    assert env.observation_space == expected.observation_space
    assert_equal(env.reset(), expected.reset())
    assert_equal(env.reset_infos, expected.reset_infos)
    kept = []
    for t in range(15):
        actions = np.array([t % 4, 1, 3])
        results = env.step(actions), expected.step(actions)
        assert_equal(list(results[0]), list(results[1]))
        assert_equal(env.reset_infos, expected.reset_infos)
        kept.append(results)
    for result, other in kept:  # still, after the vector environment wrote over its arrays
        assert_equal(list(result), list(other))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_native_environment_that_reuses_its_arrays(mode: AutoresetMode) -> None:
    env, expected = GymnasiumVecEnv(CountingVector(3, mode)), DummyVecEnv(make_fns(3))
    kept = [(env.reset(), expected.reset())]
    for _ in range(15):
        (obs, rewards, dones, infos), other = env.step(np.array([1, 2, 3])), expected.step(np.array([1, 2, 3]))
        kept += [(obs, other[0]), (rewards, other[1]), (dones, other[2])]
        for info, other_info in zip(infos, other[3], strict=True):
            keys = {"t", "TimeLimit.truncated"} | ({"terminal_observation"} & other_info.keys())
            assert info.keys() == keys
            kept += [({key: info[key] for key in keys}, {key: other_info[key] for key in keys})]
    for one, two in kept:
        assert_equal(one, two)


def test_split_infos_follows_the_masks() -> None:
    mask = np.array([True, False])
    infos = {"a": np.array([1, 0]), "_a": mask, "n": {"x": np.array([[5, 6], [0, 0]]), "_x": mask, "y": np.array(["s", None])}}
    one, two = split_infos(infos | {"_n": np.array([True, True]), "_lone": np.array([2, 3]), "all": "word"}, 2)
    assert_equal(one, {"a": 1, "n": {"x": np.array([5, 6]), "y": "s"}, "_lone": 2, "all": "word"})
    assert_equal(two, {"n": {"y": None}, "_lone": 3, "all": "word"})
    assert split_infos([{"a": 1}, {}], 2) == [{"a": 1}, {}]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("source", ["VecMonitor", "Monitor", "RecordEpisodeStatistics"])
def test_episode_statistics(make: Any, source: str, mode: AutoresetMode) -> None:
    def member(number: int) -> gym.Env[Any, Any]:
        env = Counting(number)
        return {"VecMonitor": lambda: env, "Monitor": lambda: Monitor(env)}.get(source, lambda: RecordEpisodeStatistics(env))()

    env = make(SyncVectorEnv, mode, [partial(member, i) for i in range(2)])
    env = VecMonitor(env) if source == "VecMonitor" else env
    env.reset()
    episodes = [info["episode"] for _ in range(6) for info in env.step(np.zeros(2, int))[3] if "episode" in info]
    # Lengths of environment 0: 3, 2, 1; of environment 1: 2, 1, 4. The rewards are 1, 2, 3, ...
    assert [(episode["l"], episode["r"]) for episode in episodes] == [(2, 3), (3, 6), (1, 1), (2, 3), (1, 1)]
    assert all(episode["t"] >= 0 for episode in episodes)


def test_statistics_of_the_vector_wrapper_reach_the_infos_of_the_episode() -> None:
    env = vector_wrappers.RecordEpisodeStatistics(SyncVectorEnv(make_fns(1), autoreset_mode=AutoresetMode.SAME_STEP))
    vec_env = GymnasiumVecEnv(env)
    vec_env.reset()
    infos = [vec_env.step(np.zeros(1, int))[3][0] for _ in range(3)]
    assert ["episode" in info for info in infos] == [False, False, True]
    assert (infos[2]["t"], infos[2]["episode"]["l"], infos[2]["episode"]["r"]) == (3, 3, 6)
    assert vec_env.reset_infos == [{"start": 1}]


def test_native_cartpole_does_what_its_own_autoreset_does_without_the_idle_step() -> None:
    raw = CartPoleVectorEnv(num_envs=1, max_episode_steps=8)
    env = GymnasiumVecEnv(CartPoleVectorEnv(num_envs=1, max_episode_steps=8))
    env.seed(7)
    raw_obs, obs = raw.reset(seed=7)[0], env.reset()
    np.testing.assert_array_equal(obs, raw_obs)
    num_ends = 0
    for t in range(40):
        action = np.array([t % 2])
        raw_obs, raw_rewards, terminated, truncated, _ = raw.step(action)
        obs, rewards, dones, infos = env.step(action)
        assert dones == (terminated | truncated)
        assert rewards == raw_rewards == 1
        if dones[0]:
            num_ends += 1
            np.testing.assert_array_equal(infos[0]["terminal_observation"], raw_obs[0])
            assert infos[0]["TimeLimit.truncated"]
            raw_obs = raw.step(action)[0]  # the idle step
        np.testing.assert_array_equal(obs, raw_obs)
    assert num_ends == 5


def test_dqn_trains_on_native_cartpole() -> None:
    env = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point", max_episode_steps=14)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    replay = train(rlopt.agents, VecMonitor(GymnasiumVecEnv(env)), 800)
    assert not replay.full
    stored = slice(0, replay.size())
    obs, next_obs, ends = replay.observations[stored], replay.next_observations[stored], replay.dones[stored] > 0
    assert 0 < replay.timeouts.sum() < ends.sum()
    # Physics of every stored transition: x' = x + 0.02 x_dot, theta' = theta + 0.02 theta_dot.
    np.testing.assert_allclose(next_obs[..., [0, 2]], obs[..., [0, 2]] + 0.02 * obs[..., [1, 3]], atol=1e-6)
    assert (replay.rewards[stored] == 1).all()
    np.testing.assert_array_equal(next_obs[:-1][~ends[:-1]], obs[1:][~ends[:-1]])
    assert (np.abs(obs[1:][ends[:-1]]) <= 0.05).all()


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_options_and_evaluation(make: Any, kind: Any) -> None:
    fns = [partial(gym.make, "CartPole-v1") for _ in range(2)]
    env, expected = make(kind, AutoresetMode.NEXT_STEP, fns), DummyVecEnv(fns)
    assert env.seed(11) == expected.seed(11) == [11, 12]
    np.testing.assert_array_equal(env.reset(), expected.reset())
    for _ in range(25):
        assert_equal(env.step(np.array([1, 0]))[0], expected.step(np.array([1, 0]))[0])
    np.testing.assert_array_equal(env.reset(), expected.reset())  # seeds are used once, the generators go on
    env.set_options({"low": 0.01, "high": 0.02})
    first = env.reset()
    assert ((first >= 0.01) & (first <= 0.02)).all()
    assert (env.reset() < 0.01).any()
    agent = rlopt.agents.DQN("MlpPolicy", env, buffer_size=10, device="cpu", seed=1)
    assert len(evaluate_policy(agent, VecMonitor(env), 3, return_episode_rewards=True)[0]) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_and_methods_of_chosen_environments(make: Any, kind: Any) -> None:
    fns = [partial(lambda i: TimeLimit(Monitor(Counting(i)), 100), i) for i in range(3)]
    env = make(kind, AutoresetMode.SAME_STEP, fns)
    assert env.get_attr("number") == [0, 1, 2]
    assert env.get_attr("number", [2, 0]) == [2, 0]
    assert not env.has_attr("missing")
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        env.get_attr("missing")
    env.set_attr("scale", [5, 6], indices=1)
    assert env.get_attr("scale") == [1.0, [5, 6], 1.0]
    assert env.env_method("add_to", 3, indices=[1]) == [4]
    assert env.env_method("add_to", value=10) == [10, 14, 12]
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.Wrapper, indices=0) == [True]
    assert env.env_is_wrapped(RecordEpisodeStatistics) == [False] * 3
    env.reset()
    assert [image[0, 0, 0] for image in env.get_images()] == [0, 1, 2]
    image = env.render()
    assert image is not None
    assert image.shape == (8, 12, 3)  # 2 x 2 tiles


def test_native_environment_stands_for_all_of_its_environments() -> None:
    env = GymnasiumVecEnv(CountingVector(2, AutoresetMode.DISABLED))
    env.set_attr("factor", 4)
    assert env.get_attr("factor") == [4, 4]
    assert len(env.env_method("reset", indices=[1])) == 1
    assert env.env_is_wrapped(Monitor) == [False, False]
    with pytest.raises(ValueError, match="indices must name all environments"):
        env.set_attr("factor", 4, indices=[1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CountingVector(2, AutoresetMode.NEXT_STEP), "autoreset mode NEXT_STEP.*make it with autoreset_mode SAME_STEP or"),
        (lambda: CountingVector(2, None), "must be a gymnasium.vector.AutoresetMode .*got None"),
        (lambda: vector_wrappers.TransformReward(CartPoleVectorEnv(2), lambda r: r), "CartPoleVectorEnv without wrappers"),
        (lambda: vector_wrappers.RecordEpisodeStatistics(SyncVectorEnv(make_fns(2))), "mode NEXT_STEP.*put VecMonitor"),
        (lambda: vector_wrappers.NormalizeObservation(SyncVectorEnv(make_fns(2))), "put VecNormalize"),
    ],
)
def test_what_would_store_wrong_data_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GymnasiumVecEnv(build())


def test_async_environment_without_shared_memory(make: Any) -> None:
    env = AsyncVectorEnv(make_fns(2), shared_memory=False)
    with pytest.raises(ValueError, match=r"autoreset mode NEXT_STEP.*an AsyncVectorEnv with shared_memory=True"):
        GymnasiumVecEnv(env)
    env.close()
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
        env, expected = make(AsyncVectorEnv, mode, make_fns(2), shared_memory=False), DummyVecEnv(make_fns(2))
        assert_equal(env.reset(), expected.reset())
        for _ in range(8):
            assert_equal(list(env.step(np.array([1, 2]))), list(expected.step(np.array([1, 2]))))


def test_broken_promises_are_noticed() -> None:
    for env, message in (
        (CountingVector(2, AutoresetMode.DISABLED, respects_mask=False), "ignores options\\['reset_mask'\\]"),
        (CountingVector(2, AutoresetMode.SAME_STEP, gives_final=False), "no infos\\['final_obs'\\]"),
    ):
        vec_env = GymnasiumVecEnv(env)
        vec_env.reset()
        vec_env.step(np.zeros(2, int))
        with pytest.raises(RuntimeError, match=message):
            vec_env.step(np.zeros(2, int))


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"must be a gymnasium\.vector\.VectorEnv, got Counting"):
        GymnasiumVecEnv(Counting())  # type: ignore[arg-type]
    env = CountingVector(2, AutoresetMode.DISABLED)
    for options in ([{}, {}], {"reset_mask": np.ones(2, bool)}):
        with pytest.raises(ValueError, match="options must be one dict"):
            GymnasiumVecEnv(env).set_options(options)
    env.single_observation_space = spaces.Tuple([spaces.Discrete(2)])
    with pytest.raises(ValueError, match="observations must be Box, Discrete, MultiDiscrete, MultiBinary or a Dict"):
        GymnasiumVecEnv(env)


def test_mode_is_that_of_the_object_and_not_of_its_class(make: Any) -> None:
    first = SyncVectorEnv(make_fns(1), autoreset_mode=AutoresetMode.DISABLED)
    make(SyncVectorEnv, AutoresetMode.SAME_STEP, make_fns(1))  # overwrites metadata of the class in older Gymnasium
    assert GymnasiumVecEnv(first).autoreset_mode is AutoresetMode.DISABLED
