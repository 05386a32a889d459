"""One training run of an agent that must remember, with one of several ways to look at the past."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from _training import Evaluation, learn, play
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import rlopt_envs  # registers its environments
from rlopt import agents
from rlopt.agents import HistoryWrapper, SequenceLearning, TransformerExtractor
from rlopt.nn import (
    FavorAttentionConfig,
    LinearAttentionConfig,
    MoEConfig,
    TopKMLPConfig,
    TransformerConfig,
    TreeAttentionConfig,
)
from rlopt.study import Recorder
from rlopt_envs.output_feedback import best_memoryless_gain

# Episodes behind the reference scores of LQG.
_REFERENCE_EPISODES = 200


class NewestStep(BaseFeaturesExtractor):
    """The newest observation of a history, or those of the wanted steps of sequences: features of a policy without memory."""

    def __init__(self, observation_space: gym.spaces.Dict) -> None:
        shape = cast(tuple[int, ...], observation_space["observations"].shape)
        super().__init__(observation_space, int(np.prod(shape[1:])))

    def forward(self, observations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Features (B, size of an observation)."""
        steps, valid = observations["observations"], observations["valid"]
        newest = steps[:, -1] if valid.ndim == 2 else steps[valid[..., 1] > 0.5]
        return newest.flatten(1)

    def check_sequences(self, num_steps: int) -> None:
        """Nothing stands against sequences, see `rlopt.agents.SequenceLearning`."""


_BASE = TransformerConfig(width=64, num_layers=1, num_heads=4, positions="rotary")

# Name -> transformer of `TransformerExtractor`; None: an extractor of its own, see `policy_options`.
EXTRACTORS: dict[str, TransformerConfig | None] = {
    "memoryless": None,
    "flat": None,
    "transformer": _BASE,
    "gtrxl": replace(_BASE, gating="gru"),
    "favor": replace(_BASE, attention=FavorAttentionConfig(kind="favor+")),
    "linear": replace(_BASE, attention=LinearAttentionConfig()),
    "tree": replace(_BASE, attention=TreeAttentionConfig(height=1)),
    "topk": replace(_BASE, mlp=TopKMLPConfig()),
    "moe": replace(_BASE, moe=MoEConfig(num_experts=4, every=1)),
}

# With "_sequences": the agent learns from sequences of steps instead of transitions between histories.
AGENTS: dict[str, Callable[..., BaseAlgorithm]] = {
    "ppo": agents.PPO,
    "dqn": agents.DQN,
    "dqn_sequences": agents.DQN,
    "td3": agents.TD3,
    "td3_sequences": agents.TD3,
    "sac": agents.SAC,
    "sac_sequences": agents.SAC,
}
# Extractors that cannot look at all steps of a sequence at once.
NOT_FOR_SEQUENCES = ("flat",)


def learns_from_sequences(agent: str) -> bool:
    """Whether an agent of this name does."""
    return agent.endswith("_sequences")


@dataclass(frozen=True)
class MemoryTask:
    """An environment in which one must remember, and how agents are trained in it.

    Args:
        env_id: Its name.
        env_options: Arguments of the environment.
        history: Observations that agents see.
        include_actions: Whether they see the actions between them as well.
        total_timesteps: Steps of a run.
        agents: Agents that can act in it -> hyper-parameters. Besides those of the class: `n_envs`; `log_std_init` of the policy;
            `decay`, whether the learning rate falls to 0; `normalize_rewards`, by the deviation of returns (`VecNormalize`);
            `burn_in` of sequences, which are as long as a history.
        discount: Of the score.
        least_reward: Of a step, for the agent: smaller rewards are this one while it learns, so that a start far from the optimum
            does not make all later differences small. Scores have all rewards in full.
    """

    env_id: str
    env_options: dict[str, Any]
    history: int
    total_timesteps: int
    agents: dict[str, dict[str, Any]]
    include_actions: bool = False
    discount: float = 1.0
    least_reward: float = -np.inf


_PPO = {"n_envs": 16, "n_steps": 64, "batch_size": 256, "n_epochs": 4, "learning_rate": 1e-3, "ent_coef": 0.01}
_PPO_LQG = {
    "n_envs": 16, "n_steps": 200, "batch_size": 800, "n_epochs": 5, "learning_rate": 1e-3, "decay": True, "log_std_init": -0.7,
    "normalize_rewards": True,
}  # fmt: skip
_DQN = {
    "n_envs": 1, "learning_rate": 1e-3, "learning_starts": 500, "train_freq": 4, "gradient_steps": 1, "batch_size": 64,
    "target_update_interval": 200, "exploration_fraction": 0.5, "buffer_size": 20_000,
}  # fmt: skip
_DQN_SEQUENCES = {**_DQN, "batch_size": 16, "burn_in": 0}
_SAC = {
    "n_envs": 1, "learning_rate": 1e-3, "learning_starts": 500, "train_freq": 1, "gradient_steps": 1, "batch_size": 128,
    "buffer_size": 50_000,
}  # fmt: skip
_SAC_SEQUENCES = {**_SAC, "batch_size": 32, "burn_in": 3}
_CONTINUOUS = {"sac": _SAC, "td3": _SAC, "sac_sequences": _SAC_SEQUENCES, "td3_sequences": _SAC_SEQUENCES}
_DISCRETE = {"ppo": _PPO, "dqn": _DQN, "dqn_sequences": _DQN_SEQUENCES}

# Hyper-parameters were chosen by single runs of the transformer.
TASKS: dict[str, MemoryTask] = {
    "tmaze": MemoryTask("rlopt/TMaze-v0", {"corridor_length": 10}, 12, 30_000, _DISCRETE),
    "cartpole": MemoryTask("rlopt/CartPoleNoVelocity-v0", {}, 8, 50_000, _DISCRETE),
    "pendulum": MemoryTask("rlopt/PendulumNoVelocity-v0", {}, 8, 15_000, _CONTINUOUS),
    "lqg": MemoryTask("rlopt/LQG-v0", {}, 16, 160_000, {"ppo": _PPO_LQG}, include_actions=True, discount=0.99, least_reward=-2.0),
}


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train and evaluate; the function of the study. Scores are mean (discounted) returns of the deterministic policy.

    Args:
        config: `environment`, `agent`, `extractor`, `env_options`, `history`, `total_timesteps`, `num_evaluations`,
            `eval_episodes`, `device`, and under `options` the hyper-parameters of the agent.
        seed: Seed of the agent and its transformer; evaluations use seeds of their own, derived from it.
        folder: Where progress.csv and TensorBoard events go.
    """
    evaluation = Evaluation(
        Recorder(folder),
        partial(make_env, config),
        total_timesteps=config["total_timesteps"],
        num_evaluations=config["num_evaluations"],
        num_episodes=config["eval_episodes"],
        seed=seed,
        discount=TASKS[config["environment"]].discount,
    )
    learn(make_agent(config, seed), config["total_timesteps"], folder, evaluation)


def make_env(config: Mapping[str, Any], least_reward: float = -np.inf) -> gym.Env[Any, Any]:
    """Return an environment of a configuration that shows histories, and no rewards below `least_reward`."""
    task = TASKS[config["environment"]]
    env = gym.make(task.env_id, **config["env_options"])
    if np.isfinite(least_reward):
        env = gym.wrappers.TransformReward(env, lambda reward: max(float(reward), least_reward))
    return HistoryWrapper(env, config["history"], include_actions=task.include_actions)


def make_agent(config: Mapping[str, Any], seed: int) -> BaseAlgorithm:
    """Return the agent of a run."""
    options = dict(config["options"])
    least_reward = TASKS[config["environment"]].least_reward
    env: VecEnv = make_vec_env(partial(make_env, config, least_reward), n_envs=options.pop("n_envs"), seed=seed)
    if options.pop("normalize_rewards", False):
        env = VecNormalize(env, norm_obs=False, clip_reward=np.inf, gamma=options.get("gamma", 0.99))
    policy = policy_options(config["extractor"], config["history"], seed)
    if "log_std_init" in options:
        policy["log_std_init"] = options.pop("log_std_init")
    if options.pop("decay", False):
        options["learning_rate"] = LinearSchedule(options["learning_rate"], 0.0, 1.0)
    if learns_from_sequences(config["agent"]):
        burn_in = options.pop("burn_in")
        options["sequences"] = SequenceLearning(config["history"] - burn_in, burn_in)
    kind = AGENTS[config["agent"]]
    return kind("MultiInputPolicy", env, policy_kwargs=policy, seed=seed, device=config["device"], **options)


def policy_options(extractor: str, history: int, seed: int) -> dict[str, Any]:
    """Return the `policy_kwargs` of a way to look at the past."""
    if extractor == "flat":
        return {"net_arch": [64, 64]}  # Stable-Baselines3 puts all parts of a Dict side by side
    if extractor == "memoryless":
        return {"net_arch": [64, 64], "features_extractor_class": NewestStep}
    transformer = EXTRACTORS[extractor]
    assert transformer is not None
    transformer = replace(transformer, context=history + 1, seed=seed)  # sequences have one step more
    return {
        "net_arch": [64],
        "features_extractor_class": TransformerExtractor,
        "features_extractor_kwargs": {"transformer": transformer},
    }


def reference_scores(task: str, env_options: Mapping[str, Any]) -> tuple[float, float] | tuple[None, None]:
    """Return what the best policy without memory and the best policy with memory score, where that is known.

    Those of LQG are means over episodes, of the best linear controller without memory and of Kalman filter and Riccati gain.
    """
    env = gym.make(TASKS[task].env_id, **env_options)
    known: Any = env.unwrapped
    if isinstance(known, rlopt_envs.TMazeEnv):
        return known.memoryless_return, known.optimal_return
    if task != "lqg":
        return None, None
    system = known.system
    covariances = (system.noise_cov, known.observation_noise_cov)
    best = best_memoryless_gain(
        system.A, system.B, known.C, *covariances, known.Q, known.R, known.discount, known.initial_covariance
    )
    seeds = list(range(_REFERENCE_EPISODES))
    envs = [gym.make(TASKS[task].env_id, **env_options) for _ in seeds]
    discount = TASKS[task].discount
    without = play(_Memoryless(best.gain), envs, seeds, discount)
    with_memory = play(_Optimal(envs), envs, seeds, discount)
    return float(np.mean(without)), float(np.mean(with_memory))


@dataclass
class _Memoryless:
    """u = F y."""

    gain: NDArray[np.float64]

    def predict(self, observations: NDArray[Any], *, deterministic: bool) -> tuple[NDArray[Any], None]:
        return (observations @ self.gain.T).astype(np.float32), None


@dataclass
class _Optimal:
    """The optimal controller of environments that end at the same time."""

    envs: list[gym.Env[Any, Any]] = field(default_factory=list)

    def predict(self, observations: NDArray[Any], *, deterministic: bool) -> tuple[NDArray[Any], None]:
        actions = [cast(Any, env.unwrapped).optimal_action() for env in self.envs]
        return np.stack(actions).astype(np.float32), None
