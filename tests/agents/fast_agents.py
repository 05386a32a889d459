"""Small agents that have a fast form, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from rlopt.agents import DDPG, DQN, SAC, TD3
from rlopt.replay import IntrospectiveReplay, PrioritizedReplay

OPTIONS: dict[str, Any] = {
    "seed": 0, "device": "cpu", "learning_starts": 30, "batch_size": 16, "learning_rate": 1e-3, "buffer_size": 300,
}  # fmt: skip


def discrete(env: Any = "CartPole-v1", **changes: Any) -> DQN:
    options = OPTIONS | {"train_freq": 2, "gradient_steps": 2, "target_update_interval": 20} | changes
    return DQN("MlpPolicy", env, policy_kwargs={"net_arch": [24, 16]} | options.pop("policy_kwargs", {}), **options)


def continuous(kind: Any, env: Any = "Pendulum-v1", **changes: Any) -> Any:
    options = OPTIONS | changes
    return kind("MlpPolicy", env, policy_kwargs={"net_arch": [24, 16]} | options.pop("policy_kwargs", {}), **options)


def noise() -> NormalActionNoise:
    return NormalActionNoise(np.zeros(1), 0.2 * np.ones(1))


AGENTS: dict[str, Any] = {
    "dqn": discrete,
    "dqn_double": lambda **o: discrete(double_q=True, n_steps=3, **o),
    "dqn_prioritized": lambda **o: discrete(replay_buffer_class=PrioritizedReplay, max_grad_norm=0.5, **o),
    "dqn_introspective": lambda **o: discrete(replay_buffer_class=IntrospectiveReplay, **o),
    "dqn_tanh": lambda **o: discrete(policy_kwargs={"activation_fn": nn.Tanh}, **o),
    "dqn_shared": lambda **o: discrete(optimize_memory_usage=True, **o),
    "dqn_episodes": lambda **o: discrete(**o | {"train_freq": (1, "episode"), "gradient_steps": -1}),
    "dqn_normalize": lambda **o: discrete(VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=1)), tau=0.5, **o),
    "dqn_weight_decay": lambda **o: discrete(policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.1, "eps": 1e-5}}, **o),
    "dqn_schedule": lambda **o: discrete(**o | {"learning_rate": lambda progress: 1e-3 * progress}),
    "td3": lambda **o: continuous(TD3, action_noise=noise(), **o),
    "td3_tanh": lambda **o: continuous(TD3, policy_kwargs={"activation_fn": nn.Tanh}, action_noise=noise(), **o),
    "td3_prioritized": lambda **o: continuous(TD3, replay_buffer_class=PrioritizedReplay, n_steps=3, **o),
    "ddpg": lambda **o: continuous(DDPG, **o),
    "sac": lambda **o: continuous(SAC, **o),
    "sac_tanh": lambda **o: continuous(SAC, policy_kwargs={"activation_fn": nn.Tanh}, **o),
    "sac_fixed": lambda **o: continuous(SAC, ent_coef=0.2, target_update_interval=2, **o),
    "sac_normalize": lambda **o: continuous(SAC, VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=1)), **o),
}


def weights(agent: Any) -> np.ndarray[Any, Any]:
    return th.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()]).numpy()
