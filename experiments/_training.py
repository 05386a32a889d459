"""One training run of an agent with a replay, evaluated on the way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from _progress import continued_logger
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space

from rlopt import agents
from rlopt.agents import Checkpoints
from rlopt.files.checkpoint import remove_all
from rlopt.replay import REPLAYS
from rlopt.study import Recorder, StackedRunsError
from rlopt.study.runs import update_manifest

AGENTS: dict[str, type[OffPolicyAlgorithm]] = {
    "dqn": agents.DQN,
    "ddpg": agents.DDPG,
    "td3": agents.TD3,
    "sac": agents.SAC,
}


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train and evaluate; the function of the study.

    Args:
        config: `env_id`, `agent`, `total_timesteps`, `num_evaluations`, `eval_episodes`, `device`, `replay`,
            `replay_options`, under `options` the hyper-parameters of the agent that differ from its defaults, and `fast` (default
            False).
        seed: Seed of the agent; evaluations use seeds of their own, derived from it.
        folder: Where progress.csv and TensorBoard events go.
    """
    learn(make_agent(config, seed), config["total_timesteps"], folder, make_evaluation(config, seed, folder))


def train_stacked(configs: Sequence[dict[str, Any]], seeds: Sequence[int], folders: Sequence[Path]) -> None:
    """Train and evaluate several seeds together; the stacked function of the study.

    Args:
        configs: Those of `train`, equal but for their seeds, with `fast`.
        seeds: Seed of each run.
        folders: Folder of each run.

    Raises:
        StackedRunsError: If runs failed; the others are finished.
    """
    config_of = dict(zip(seeds, configs, strict=True))
    total_timesteps = configs[0]["total_timesteps"]
    stack = agents.StackedAgents(lambda seed: make_agent(config_of[seed], seed), seeds)
    evaluations = [make_evaluation(*run) for run in zip(configs, seeds, folders, strict=True)]
    checkpoints = [begin(agent, total_timesteps, folder) for agent, folder in zip(stack.agents, folders, strict=True)]
    stack.learn(total_timesteps, callbacks=evaluations, log_interval=10, checkpoints=checkpoints)
    for index, (agent, folder) in enumerate(zip(stack.agents, folders, strict=True)):
        if index not in stack.errors:
            end(agent, checkpoints[index], folder)
    if stack.errors:
        raise StackedRunsError({seeds[index]: error for index, error in stack.errors.items()})


def make_agent(config: dict[str, Any], seed: int, env: gym.Env[Any, Any] | None = None) -> OffPolicyAlgorithm:
    """Build the agent of a run, in the environment `env_id` unless one is given."""
    env = Monitor(gym.make(config["env_id"]) if env is None else env)
    options = dict(config["options"])
    policy = dict(options.pop("policy_kwargs", {}))
    widths = options.pop("net_arch", None)
    noise = options.pop("action_noise", None)
    if noise is not None:
        assert isinstance(env.action_space, gym.spaces.Box)
        mean = np.zeros(env.action_space.shape)
        options["action_noise"] = NormalActionNoise(mean, np.full_like(mean, noise)) if noise > 0 else None
    if config["learning_rate_factor"] != 1.0:
        options["learning_rate"] *= config["learning_rate_factor"]
    return AGENTS[config["agent"]](
        _policy(env.observation_space),
        env,
        replay_buffer_class=REPLAYS[config["replay"]].replay_class,
        replay_buffer_kwargs=dict(config["replay_options"]),
        policy_kwargs=policy if widths is None else {**policy, "net_arch": list(widths)},
        seed=seed,
        device=config["device"],
        fast=config.get("fast", False),
        **options,
    )


def make_evaluation(config: dict[str, Any], seed: int, folder: Path) -> Evaluation:
    """Build the callback of a run."""
    return Evaluation(
        Recorder(folder),
        partial(gym.make, config["env_id"]),
        total_timesteps=config["total_timesteps"],
        num_evaluations=config["num_evaluations"],
        num_episodes=config["eval_episodes"],
        seed=seed,
    )


def learn(agent: Any, total_timesteps: int, folder: Path, evaluation: PeriodicEvaluation, log_interval: int | None = 10) -> None:
    """Train an agent of rlopt, from the newest checkpoint in the folder of the run if it was stopped before.

    Args:
        agent: As it was made for the run.
        total_timesteps: Steps of the whole run.
        folder: Where progress.csv, TensorBoard events and `checkpoint/` go; the latter is removed when the run is done.
        evaluation: The callback.
        log_interval: As in Stable-Baselines3.
    """
    checkpoints = begin(agent, total_timesteps, folder)
    agent.learn(total_timesteps, callback=evaluation, log_interval=log_interval, checkpoints=checkpoints)
    end(agent, checkpoints, folder)


def begin(agent: Any, total_timesteps: int, folder: Path) -> Checkpoints:
    """Give an agent the log of its run, and return where its checkpoints go."""
    checkpoints = Checkpoints(folder / "checkpoint", every=max(total_timesteps // 20, 1))
    agent.set_logger(continued_logger(folder, checkpoints.num_timesteps))
    return checkpoints


def end(agent: Any, checkpoints: Checkpoints, folder: Path) -> None:
    """Close the log of a run that is done, and remove its checkpoints."""
    agent.logger.close()
    if checkpoints.restarts_episodes is not None:
        update_manifest(folder, restarts_episodes=checkpoints.restarts_episodes)
    remove_all(checkpoints.folder)


class PeriodicEvaluation(BaseCallback):
    """Evaluates at equal distances and stops training after exactly the wanted steps.

    Args:
        recorder: Where progress and scores go.
        total_timesteps: Steps of the run.
        num_evaluations: How many, the last one after the last step.
    """

    def __init__(self, recorder: Recorder, *, total_timesteps: int, num_evaluations: int) -> None:
        super().__init__()
        self._recorder = recorder
        self._total_timesteps = total_timesteps
        points = np.linspace(0, total_timesteps, num_evaluations + 1)[1:]
        self._points = list(dict.fromkeys(int(point) for point in np.ceil(points)))

    def _on_training_start(self) -> None:
        # A run that goes on from a checkpoint has done the first ones.
        self._points = [point for point in self._points if point > self.num_timesteps]

    @abstractmethod
    def evaluate(self) -> float:
        """Return the score of the agent as it is; what else there is to say goes to the logger."""

    def _on_step(self) -> bool:
        self._recorder.progress(self.num_timesteps)
        if self._points and self.num_timesteps >= self._points[0]:
            self._points.pop(0)
            self._recorder.evaluation(self.num_timesteps, self.evaluate())
            self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
            self.logger.dump(self.num_timesteps)
        return self.num_timesteps < self._total_timesteps


class Evaluation(PeriodicEvaluation):
    """Plays episodes with the deterministic policy.

    Everything random in it comes from environments and seeds of its own, so that training is the same with any number of
    evaluations, and all replays of one seed meet the same episodes.

    Args:
        recorder: Where progress and scores go.
        make_env: Makes an environment to evaluate in.
        total_timesteps: Steps of the run.
        num_evaluations: How many, the last one after the last step.
        num_episodes: Episodes of one evaluation; the score is their mean return.
        seed: Seed of the run.
        discount: Of the returns.
    """

    def __init__(
        self,
        recorder: Recorder,
        make_env: Callable[[], gym.Env[Any, Any]],
        *,
        total_timesteps: int,
        num_evaluations: int,
        num_episodes: int,
        seed: int,
        discount: float = 1.0,
    ) -> None:
        super().__init__(recorder, total_timesteps=total_timesteps, num_evaluations=num_evaluations)
        self._envs = [make_env() for _ in range(num_episodes)]
        self._seed, self._discount = seed, discount

    def evaluate(self) -> float:
        """Return the mean return."""
        seeds = np.random.SeedSequence(self._seed, spawn_key=(1, self.num_timesteps))
        returns = play(self.model, self._envs, seeds.generate_state(len(self._envs)).tolist(), self._discount)
        self.logger.record("eval/mean_reward", float(np.mean(returns)))
        return float(np.mean(returns))

    def _on_training_end(self) -> None:
        for env in self._envs:
            env.close()


def play(agent: Any, envs: Sequence[gym.Env[Any, Any]], seeds: Sequence[int], discount: float = 1.0) -> list[float]:
    """Play one episode in each environment with the deterministic policy, all at once, and return their returns.

    Args:
        agent: Anything with Stable-Baselines3's `predict`.
        envs: Environments of one kind.
        seeds: A seed for each.
        discount: Of the returns.
    """
    returns, weight = [0.0] * len(envs), 1.0
    running = {index: env.reset(seed=seed)[0] for index, (env, seed) in enumerate(zip(envs, seeds, strict=True))}
    while running:
        actions, _ = agent.predict(_stack(list(running.values())), deterministic=True)
        for index, action in zip(list(running), actions, strict=True):
            observation, reward, terminated, truncated, _ = envs[index].step(action)
            returns[index] += weight * float(reward)
            if terminated or truncated:
                del running[index]
            else:
                running[index] = observation
        weight *= discount
    return returns


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {name: np.stack([one[name] for one in observations]) for name in observations[0]}
    return np.stack(observations)


def _policy(space: gym.Space[Any]) -> str:
    if isinstance(space, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"
