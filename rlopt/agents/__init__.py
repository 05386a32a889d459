"""Stable-Baselines3's off-policy agents with a learning step that honours every replay of rlopt."""

from rlopt.agents.callbacks import ReplayPhaseCallback
from rlopt.agents.ddpg import DDPG
from rlopt.agents.dqn import DQN
from rlopt.agents.sac import SAC
from rlopt.agents.td3 import TD3
from rlopt.agents.td_errors import td_error
from rlopt.agents.vector_env import GymnasiumVecEnv

__all__ = ["DDPG", "DQN", "SAC", "TD3", "GymnasiumVecEnv", "ReplayPhaseCallback", "td_error"]
