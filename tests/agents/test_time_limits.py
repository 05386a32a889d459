"""What an agent believes at a time limit and at a true end, on tasks with known values."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

import rlopt.agents
from rlopt.replay import REPLAYS, UniformReplay

GAMMA = 0.8
LENGTH = 4
AGENTS = [("DQN", 1), ("DQN", 3), ("DDPG", 1), ("TD3", 3), ("SAC", 1)]


class Walk(gym.Env[np.ndarray, Any]):
    """Reward 1 per step whatever the action; the observation is the step, one-hot, or constant if it never ends by itself.

    With `terminates` the episode ends truly after LENGTH steps, so V(step k) = sum_{j < LENGTH - k} gamma^j. Otherwise it is cut
    there by a time limit, and the value is 1 / (1 - gamma) = 5 everywhere.
    """

    def __init__(self, terminates: bool, discrete: bool) -> None:
        self.terminates = terminates
        self.observation_space = spaces.Box(0, 1, (LENGTH + 1,), np.float32)
        self.action_space = spaces.Discrete(2) if discrete else spaces.Box(-1, 1, (1,), np.float32)
        self.t = 0

    def _obs(self) -> np.ndarray:
        obs = np.zeros(LENGTH + 1, np.float32)
        obs[self.t if self.terminates else 0] = 1
        return obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        end = self.t == LENGTH
        return self._obs(), 1.0, end and self.terminates, end and not self.terminates, {}


def learned_values(agent_name: str, terminates: bool, replay: Any, n_steps: int = 1, layout: str = "plain") -> np.ndarray:
    """Mean Q of a trained agent in the observations of steps 0..LENGTH-1."""
    discrete = agent_name == "DQN"
    options: dict[str, Any] = {"train_freq": 16, "gradient_steps": 16}
    if discrete:
        options |= {"target_update_interval": 50, "exploration_fraction": 1.0, "exploration_final_eps": 1.0}
    else:
        options |= {"tau": 0.05}
    if agent_name == "SAC":
        options |= {"ent_coef": 0.0}  # without entropy bonus the values are those of the rewards
    agent = getattr(rlopt.agents, agent_name)(
        "MlpPolicy",
        Walk(terminates, discrete),
        seed=1,
        gamma=GAMMA,
        n_steps=n_steps,
        learning_rate=3e-3,
        batch_size=32,
        learning_starts=64,
        buffer_size=2000,
        replay_buffer_class=replay,
        replay_buffer_kwargs={"layout": layout},
        policy_kwargs={"net_arch": [32]},
        device="cpu",
        **options,
    )
    agent.learn(1200)
    obs = th.eye(LENGTH + 1)[:LENGTH]
    with th.no_grad():
        if discrete:
            return agent.q_net(obs).mean(1).numpy()
        return agent.critic(obs, th.zeros(LENGTH, 1))[0][:, 0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("agent_name", "n_steps"), AGENTS)
def test_value_at_a_time_limit_is_bootstrapped(agent_name: str, n_steps: int) -> None:
    values = learned_values(agent_name, terminates=False, replay=UniformReplay, n_steps=n_steps)
    assert values[0] == pytest.approx(1 / (1 - GAMMA), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("agent_name", "n_steps"), AGENTS)
def test_value_before_a_true_end_is_the_rest_of_the_rewards(agent_name: str, n_steps: int) -> None:
    expected = [sum(GAMMA**j for j in range(LENGTH - k)) for k in range(LENGTH)]
    values = learned_values(agent_name, terminates=True, replay=UniformReplay, n_steps=n_steps)
    np.testing.assert_allclose(values, expected, atol=0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(REPLAYS) - {"uniform", "hindsight"}))
@pytest.mark.parametrize("terminates", [False, True])
def test_every_replay_learns_the_known_values(name: str, terminates: bool) -> None:
    expected = [sum(GAMMA**j for j in range(LENGTH - k)) if terminates else 1 / (1 - GAMMA) for k in range(LENGTH)]
    values = learned_values("DQN", terminates, REPLAYS[name].replay_class, layout="shared")
    np.testing.assert_allclose(values if terminates else values[:1], expected if terminates else expected[:1], atol=0.5)
