"""Stable-Baselines3's agents with a learning step that honours every replay and every optimizer of rlopt."""

from rlopt.agents.callbacks import ReplayPhaseCallback
from rlopt.agents.checkpoints import Checkpoints
from rlopt.agents.ddpg import DDPG
from rlopt.agents.distributed import DistributedPPO
from rlopt.agents.dqn import DQN
from rlopt.agents.history import HistoryWrapper, VecHistory
from rlopt.agents.ppo import PPO
from rlopt.agents.sac import SAC
from rlopt.agents.sequence_learning import SequenceLearning
from rlopt.agents.stacked import StackedAgents
from rlopt.agents.td3 import TD3
from rlopt.agents.td_errors import td_error
from rlopt.agents.transformer_extractor import TransformerExtractor
from rlopt.agents.vector_env import GymnasiumVecEnv

__all__ = [
    "DDPG",
    "DQN",
    "PPO",
    "SAC",
    "TD3",
    "Checkpoints",
    "DistributedPPO",
    "GymnasiumVecEnv",
    "HistoryWrapper",
    "ReplayPhaseCallback",
    "SequenceLearning",
    "StackedAgents",
    "TransformerExtractor",
    "VecHistory",
    "td_error",
]
