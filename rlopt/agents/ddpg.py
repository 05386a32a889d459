"""DDPG with any replay."""

from __future__ import annotations

from stable_baselines3 import DDPG as SB3DDPG

from rlopt.agents.td3 import TD3


class DDPG(TD3, SB3DDPG):
    """Stable-Baselines3's DDPG with rlopt's learning step: TD3 with one critic, no delay and no target smoothing.

    Args: As in Stable-Baselines3's DDPG; `n_steps` works with every replay of rlopt, `optimizer` as in `TD3`.

    References: Lillicrap et al., Continuous control with deep reinforcement learning, ICLR 2016, arXiv 1509.02971.

    Example:
        >>> from rlopt.replay import PrioritizedReplay
        >>> agent = DDPG("MlpPolicy", "Pendulum-v1", replay_buffer_class=PrioritizedReplay, batch_size=32, seed=0)
        >>> agent.learn(120).num_timesteps
        120
    """
