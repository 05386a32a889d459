"""Stock Stable-Baselines3 agents run with every replay as they are."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from rlopt.agents import ReplayPhaseCallback
from rlopt.replay import REPLAYS, HindsightReplay, IntrospectiveReplay, Replay, UniformReplay

NAMES = sorted(set(REPLAYS) - {"hindsight"})


def small() -> dict[str, Any]:
    """Arguments of a small agent; new ones each time, since SAC writes into them."""
    return {"policy_kwargs": {"net_arch": [16]}, "learning_starts": 40, "batch_size": 16, "seed": 0, "device": "cpu"}


class Corridor(gym.Env[dict[str, NDArray[np.float32]], Any]):
    """Walk on a line to a goal; an episode is cut after 8 steps. The reward is 0 at the goal and -1 elsewhere."""

    def __init__(self, discrete: bool = True) -> None:
        box = spaces.Box(-10, 10, (1,), np.float32)
        self.observation_space = spaces.Dict(observation=box, achieved_goal=box, desired_goal=box)
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.position, self.goal, self.time = 0.0, 0.0, 0

    def _obs(self) -> dict[str, NDArray[np.float32]]:
        position, goal = np.array([self.position], np.float32), np.array([self.goal], np.float32)
        return {"observation": position, "achieved_goal": position.copy(), "desired_goal": goal}

    def compute_reward(self, achieved: Any, desired: Any, info: Any) -> Any:
        return -(np.abs(achieved - desired) > 0.5).astype(np.float32)[..., 0]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.goal, self.time = 0.0, float(self.np_random.integers(-5, 6)), 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[dict[str, NDArray[np.float32]], float, bool, bool, dict[str, Any]]:
        move = 2.0 * action - 1.0 if isinstance(self.action_space, spaces.Discrete) else float(action[0])
        self.position += float(move)
        self.time += 1
        obs = self._obs()
        reward = float(self.compute_reward(obs["achieved_goal"], obs["desired_goal"], {}))
        return obs, reward, False, self.time >= 8, {}


def parameters(agent: BaseAlgorithm) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()])


def dqn(replay_class: type[Replay], env: Any = "CartPole-v1", policy: str = "MlpPolicy", **options: Any) -> DQN:
    arguments: dict[str, Any] = {"train_freq": 8, "gradient_steps": 2, "buffer_size": 150, **small(), **options}
    return DQN(policy, env, replay_buffer_class=replay_class, **arguments)


@pytest.mark.filterwarnings("ignore:.*got no TD errors in 100 draws:UserWarning")
@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_dqn_runs_with(name: str, announced: bool) -> None:
    agent = dqn(REPLAYS[name].replay_class)
    before = parameters(agent)
    agent.learn(200, callback=ReplayPhaseCallback() if announced else None)
    assert not th.equal(parameters(agent), before)
    replay = agent.replay_buffer
    assert isinstance(replay, REPLAYS[name].replay_class)
    assert len(replay) == 150
    assert replay.num_uniform_batches + replay.num_chosen_batches == agent._n_updates == 40
    if name in ("introspective", "greedy"):
        assert replay.num_chosen_batches == (40 if announced else 0)


@pytest.mark.filterwarnings("ignore:.*got no TD errors in 100 draws:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_sac_runs_with(name: str) -> None:
    options: dict[str, Any] = {"buffer_size": 150, "train_freq": 4, "replay_buffer_kwargs": {"layout": "shared"}, **small()}
    agent = SAC("MlpPolicy", "Pendulum-v1", replay_buffer_class=REPLAYS[name].replay_class, **options)
    before = parameters(agent)
    agent.learn(210, callback=ReplayPhaseCallback())
    assert not th.equal(parameters(agent), before)
    assert isinstance(agent.replay_buffer, Replay)
    assert len(agent.replay_buffer) == 150


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("agent_class", [DQN, SAC])
def test_hindsight_replay_takes_the_environment_of_the_agent(agent_class: Any, announced: bool) -> None:
    agent = agent_class(
        "MultiInputPolicy",
        Corridor(discrete=agent_class is DQN),
        replay_buffer_class=HindsightReplay,
        replay_buffer_kwargs={"goal_selection_strategy": "future"},
        buffer_size=150,
        train_freq=8,
        **small(),
    )
    before = parameters(agent)
    agent.learn(200, callback=ReplayPhaseCallback() if announced else None)
    assert not th.equal(parameters(agent), before)
    batch = agent.replay_buffer.sample(500)
    reached = (batch.next_observations["achieved_goal"] - batch.observations["desired_goal"]).abs() <= 0.5
    assert th.equal(batch.rewards, reached.float() - 1.0)
    assert 0.1 < batch.rewards.eq(0).float().mean().item() < 0.9
    assert batch.dones.sum().item() == 0


def test_n_step_returns_reach_a_stock_agent() -> None:
    agent = dqn(UniformReplay, replay_buffer_kwargs={"n_steps": 3, "gamma": 0.99})
    agent.learn(120)
    assert agent.replay_buffer is not None
    assert set(np.round(agent.replay_buffer.sample(300).discounts.flatten().tolist(), 4)) >= {0.9703}  # type: ignore[union-attr]


def test_several_environments_and_the_seed_of_the_agent() -> None:
    ends = []
    for seed in (0, 0, 1):
        env = make_vec_env("CartPole-v1", n_envs=3, seed=0)
        agent = dqn(IntrospectiveReplay, env=env, buffer_size=300, seed=seed, replay_buffer_kwargs={"mix": 0.5})
        agent.learn(300, callback=ReplayPhaseCallback())
        ends.append(parameters(agent))
    assert th.equal(ends[0], ends[1])
    assert not th.equal(ends[0], ends[2])


def test_a_second_learn_does_not_join_episodes() -> None:
    agent = dqn(UniformReplay, optimize_memory_usage=True, replay_buffer_kwargs={"n_steps": 5, "gamma": 0.99})
    agent.learn(43)
    replay = agent.replay_buffer
    assert isinstance(replay, UniformReplay)
    last = replay.storage.newest_slots
    true_successor = replay.storage.next_observation(last)
    agent.learn(8, reset_num_timesteps=False)
    assert np.array_equal(replay.storage.next_observation(last), true_successor)  # type: ignore[arg-type]
    successor = replay.storage.observation(replay.storage.step(last, 1))
    if not np.array_equal(successor, true_successor):  # type: ignore[arg-type]
        assert replay.storage.num_steps(last, "newer", within_episode=True).tolist() == [0]


@pytest.mark.parametrize("name", ["introspective", "hindsight"])
def test_save_and_load_of_the_buffer_by_the_agent(tmp_path: Path, name: str) -> None:
    if name == "hindsight":
        agent = dqn(HindsightReplay, Corridor(), "MultiInputPolicy")
    else:
        agent = dqn(REPLAYS[name].replay_class)
    agent.learn(100, callback=ReplayPhaseCallback())
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "replay")
    loaded = DQN.load(tmp_path / "agent", env=agent.get_env())
    loaded.load_replay_buffer(tmp_path / "replay")
    mine, other = agent.replay_buffer, loaded.replay_buffer
    assert isinstance(mine, Replay)
    assert isinstance(other, Replay)
    for _ in range(5):
        left, right = mine.sample(8), other.sample(8)
        assert np.array_equal(left.indices, right.indices)
        assert th.equal(left.rewards, right.rewards)
    loaded.learn(20, reset_num_timesteps=False, callback=ReplayPhaseCallback())
