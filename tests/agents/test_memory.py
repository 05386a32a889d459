"""What needs a memory is learned with a history and not without."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from rlopt.agents import PPO, GymnasiumVecEnv, VecHistory
from rlopt_envs import TMazeVectorEnv

LENGTH = 2


def make_env(seed: int, with_history: bool) -> Any:
    env: Any = GymnasiumVecEnv(TMazeVectorEnv(16, corridor_length=LENGTH, autoreset_mode="SameStep"))
    env.seed(seed)
    return VecMonitor(VecHistory(env, LENGTH + 2) if with_history else env)


@pytest.mark.slow
@pytest.mark.parametrize("with_history", [True, False])
def test_ppo_solves_the_maze_with_a_history_only(with_history: bool) -> None:
    options: dict[str, Any] = {"n_steps": 20, "batch_size": 160, "n_epochs": 5, "learning_rate": 3e-3, "device": "cpu", "seed": 0}
    policy = "MultiInputPolicy" if with_history else "MlpPolicy"
    agent = PPO(policy, make_env(0, with_history), policy_kwargs={"net_arch": [32]}, **options).learn(5_000)
    returns, _ = evaluate_policy(agent, make_env(1, with_history), n_eval_episodes=64, return_episode_rewards=True)
    if with_history:
        assert np.mean(returns) == 1.0  # the optimum
    else:
        assert abs(np.mean(returns)) < 0.5  # 0 in the mean; four standard deviations of 64 episodes
