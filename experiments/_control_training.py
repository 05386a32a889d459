"""One training run of an agent on a linear-quadratic problem, measured by what it costs more than the optimum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from _training import PeriodicEvaluation, learn, make_agent
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TransformObservation, TransformReward
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

import rlopt_envs  # noqa: F401  (registers the environments)
from rlopt.study import Recorder

FloatArray = NDArray[np.float64]

# Smooth ones fit quadratic values and linear policies better.
ACTIVATIONS = {"silu": torch.nn.SiLU, "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}

# Costs after the step where discount^t falls below this are not simulated any more.
_LEAST_WEIGHT = 1e-3
# An episode whose relative excess cost has come to this is stopped and counts as this: the states of an unstable system that is
# not controlled soon leave the range of numbers.
_LARGEST_EXCESS = 1e4
# Rewards are scaled so that this is the optimal cost: values are then of order 1 to 100 in any units.
_SCALED_COST = 10.0


class Policy(Protocol):
    """What is evaluated; agents of Stable-Baselines3 are such."""

    def predict(self, observation: Any, *, deterministic: bool) -> tuple[Any, Any]:
        """Return actions (N, m) for observations (N, ...), and something else."""
        ...


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train and evaluate; the function of the study.

    Args:
        config: `env_id`, `env_options`, `history`, `episode_steps`, `learning_rate_decay`, `activation`, `agent`,
            `total_timesteps`, `num_evaluations`, `eval_episodes`, `device`, `replay`, `replay_options`, and under `options` the
            hyper-parameters of the agent.
        seed: Seed of the agent; evaluations use seeds of their own, derived from it.
        folder: Where progress.csv and TensorBoard events go.
    """
    evaluation = ControlEvaluation(Recorder(folder), config, seed)
    learn(make_control_agent(config, seed), config["total_timesteps"], folder, evaluation, log_interval=None)


def make_control_agent(config: dict[str, Any], seed: int) -> OffPolicyAlgorithm:
    """Build the agent of a run."""
    options = dict(config["options"])
    if config["learning_rate_decay"]:
        start = options["learning_rate"]
        options["learning_rate"] = lambda remaining: start * remaining
    options["policy_kwargs"] = {"activation_fn": ACTIVATIONS[config["activation"]]}
    return make_agent({**config, "options": options, "learning_rate_factor": 1.0}, seed, make_env(config))


def make_env(config: dict[str, Any]) -> gym.Env[Any, Any]:
    """Return the environment to train in: observations and rewards have a scale of order 1, the last observations are stacked."""
    env: gym.Env[Any, Any] = gym.make(config["env_id"], max_episode_steps=config["episode_steps"], **config["env_options"])
    scale = _observation_scale(env.unwrapped)
    factor = _SCALED_COST / env.unwrapped.optimal_cost
    env = TransformObservation(env, lambda observation: (observation / scale).astype(np.float32), env.observation_space)
    env = TransformReward(env, lambda reward: factor * reward)
    if config["history"] > 1:
        env = FlattenObservation(FrameStackObservation(env, config["history"]))
    return env


def make_vector_env(config: dict[str, Any], num_envs: int) -> Any:
    """Return many copies of the environment as it is, whose episodes do not end."""
    return gym.make_vec(
        config["env_id"],
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        max_episode_steps=None,
        **config["env_options"],
    )


def relative_excess_costs(policy: Policy, env: Any, history: int, seed: int) -> FloatArray:
    """Return what a policy costs more than the optimal controller, relative to the optimal cost, of one episode per copy.

    Each is sum_t discount^t regret_t / optimal cost; its expectation is exactly (cost - optimal cost) / optimal cost, but for the
    steps where discount^t < 0.001, and for episodes that diverge, which count as 10,000.

    Args:
        policy: Sees what `make_env` shows.
        env: A vectorised environment of `make_vector_env`.
        history: Observations that the policy sees.
        seed: Of the episodes.

    Returns:
        Shape (num_envs,).
    """
    task = env.unwrapped
    scale = _observation_scale(task)
    observations, _ = env.reset(seed=seed)
    frames = np.repeat(_scaled(observations, scale)[:, None], history, axis=1)  # (N, history, p), the newest last
    excess = np.zeros(env.num_envs)
    diverged = np.zeros(env.num_envs, np.bool_)
    for t in range(math.ceil(math.log(_LEAST_WEIGHT) / math.log(task.discount))):
        actions, _ = policy.predict(frames.reshape(env.num_envs, -1), deterministic=True)
        observations, _, _, _, infos = env.step(actions)
        excess += np.where(diverged, 0.0, task.discount**t * infos["regret"] / task.optimal_cost)
        outside = excess > _LARGEST_EXCESS
        excess[outside], diverged[outside] = _LARGEST_EXCESS, True
        if diverged.all():
            break
        far = diverged & (infos["regret"] > _LARGEST_EXCESS * task.optimal_cost)
        if far.any():  # what they do does not count any more
            observations, _ = env.reset(options={"reset_mask": far})
        frames = np.concatenate([frames[:, 1:], _scaled(observations, scale)[:, None]], axis=1)
    return excess


def gain_of(policy: Policy, env: Any) -> FloatArray:
    """Return K of the linear policy -K x that a policy is near the origin, by central differences, shape (m, d).

    The differences are over two standard deviations of the state in the long run, as the environment chooses it by default (a
    quarter of those of the first state).
    """
    deviations = np.sqrt(np.diag(env.unwrapped.initial_covariance)) / 4.0
    points = np.diag(deviations) / _observation_scale(env.unwrapped)
    actions, _ = policy.predict(np.concatenate([points, -points]).astype(np.float32), deterministic=True)
    plus, minus = np.split(np.asarray(actions, np.float64), 2)  # (d, m) each
    return -((plus - minus) / (2.0 * deviations[:, None])).T


class ControlEvaluation(PeriodicEvaluation):
    """Measures the relative excess cost of the deterministic policy in many episodes at once.

    Args:
        recorder: Where progress and scores go.
        config: As of `train`.
        seed: Seed of the run.
    """

    def __init__(self, recorder: Recorder, config: dict[str, Any], seed: int) -> None:
        super().__init__(recorder, total_timesteps=config["total_timesteps"], num_evaluations=config["num_evaluations"])
        self._env = make_vector_env(config, config["eval_episodes"])
        self._history = config["history"]
        self._sees_state = config["env_id"] == "rlopt/LQR-v0" and config["history"] == 1
        self._seed = seed

    def evaluate(self) -> float:
        """Return the mean relative excess cost."""
        seeds = np.random.SeedSequence(self._seed, spawn_key=(1, self.num_timesteps))
        excess = relative_excess_costs(self.model, self._env, self._history, int(seeds.generate_state(1)[0]))
        score, task = float(excess.mean()), self._env.unwrapped
        self.logger.record("eval/relative_excess_cost", score)
        self.logger.record("eval/standard_error", float(excess.std(ddof=1) / math.sqrt(len(excess))))
        self.logger.record("eval/cost", (1.0 + score) * task.optimal_cost)
        self.logger.record("eval/optimal_cost", task.optimal_cost)
        if self._sees_state:
            error = np.linalg.norm(gain_of(self.model, self._env) - task.optimal_gain) / np.linalg.norm(task.optimal_gain)
            self.logger.record("eval/relative_gain_error", float(error))
        return score

    def _on_training_end(self) -> None:
        self._env.close()


def _observation_scale(task: Any) -> FloatArray:
    """Return the standard deviation of each entry of the first observation, (p,)."""
    second_moment = task.initial_covariance
    if hasattr(task, "C"):
        second_moment = task.C @ second_moment @ task.C.T + task.observation_noise_cov
    deviations = np.sqrt(np.diag(second_moment))
    return np.asarray(np.where(deviations > 0.0, deviations, 1.0))


def _scaled(observations: FloatArray, scale: FloatArray) -> NDArray[np.float32]:
    return (observations / scale).astype(np.float32)
