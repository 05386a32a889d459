"""Acting without the detours that cost more than a small network's forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn


class LeanVecEnv(DummyVecEnv):
    """Stable-Baselines3's `DummyVecEnv` for spaces that are no dicts, which copies what it returns but not what is inside infos."""

    @classmethod
    def of(cls, env: DummyVecEnv) -> LeanVecEnv:
        """Return an environment that shares everything with another one."""
        lean = cls.__new__(cls)
        lean.__dict__ = env.__dict__
        return lean

    def step_wait(self) -> VecEnvStepReturn:
        """Step each environment; one that ends is reset, and its last observation is in its info."""
        buffer = self.buf_obs[None]  # type: ignore[index]
        infos: list[dict[str, Any]] = []
        for i, env in enumerate(self.envs):
            obs, self.buf_rews[i], terminated, truncated, info = env.step(self.actions[i])
            info = {**info, "TimeLimit.truncated": truncated and not terminated}
            self.buf_dones[i] = terminated or truncated
            if self.buf_dones[i]:
                info["terminal_observation"] = obs
                obs, self.reset_infos[i] = env.reset()
            buffer[i] = obs
            infos.append(info)
        self.buf_infos = infos
        return buffer.copy(), self.buf_rews.copy(), self.buf_dones.copy(), infos


def collect_rollouts(
    self: Any,
    env: Any,
    callback: BaseCallback,
    train_freq: TrainFreq,
    replay_buffer: Any,
    action_noise: Any = None,
    learning_starts: int = 0,
    log_interval: int | None = None,
) -> RolloutReturn:
    """Collect steps into a replay, as Stable-Baselines3's method of this name does for perceptrons with vectors as observations.

    Callbacks see the local variables that they see there.

    Args:
        self: Agent with `fast=True`.
        env: Its environment.
        callback: Called at each step.
        train_freq: How much to collect.
        replay_buffer: Where it goes.
        action_noise: Added to actions.
        learning_starts: Steps with random actions.
        log_interval: Episodes between two writes of the log.

    Returns:
        How much was collected, and whether training goes on.

    Raises:
        ValueError: For phases of whole episodes with several environments.
    """
    num_steps, num_episodes = 0, 0
    if env.num_envs > 1 and train_freq.unit != TrainFrequencyUnit.STEP:
        raise ValueError(f"train_freq must be in steps with several environments, got episodes with {env.num_envs} environments.")
    callback.on_rollout_start()
    while should_collect_more_steps(train_freq, num_steps, num_episodes):
        actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)
        num_steps += 1
        num_done = advance(self, env, callback, replay_buffer, actions, buffer_actions, action_noise, log_interval, num_steps)
        if num_done is None:
            return RolloutReturn(num_steps * env.num_envs, num_episodes, continue_training=False)
        num_episodes += num_done
    callback.on_rollout_end()
    return RolloutReturn(num_steps * env.num_envs, num_episodes, True)


def advance(
    self: Any,
    env: Any,
    callback: BaseCallback,
    replay_buffer: Any,
    actions: Any,
    buffer_actions: Any,
    action_noise: Any,
    log_interval: int | None,
    num_collected_steps: int,
) -> int | None:
    """Take one step of the environment, and all that belongs to it.

    Args:
        self: Agent with `fast=True`.
        env: Its environment.
        callback: Called at the step.
        replay_buffer: Where it goes.
        actions: For the environment.
        buffer_actions: For the replay.
        action_noise: What was added to them; it is told of ends of episodes.
        log_interval: Episodes between two writes of the log.
        num_collected_steps: Steps of the phase, this one included; for callbacks.

    Returns:
        Episodes that ended; None if the callback ends training.
    """
    num_envs, normalize = env.num_envs, self._vec_normalize_env
    new_obs, rewards, dones, infos = env.step(actions)
    self.num_timesteps += num_envs
    callback.update_locals(locals())
    if not callback.on_step():
        return None
    num_done = int(np.count_nonzero(dones))
    if num_done or "episode" in infos[0]:
        self._update_info_buffer(infos, dones)
    if num_done or normalize is not None:
        self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
    else:  # the next observation is what came, and the replay copies it
        self._last_original_obs = self._last_obs
        replay_buffer.add(self._last_obs, new_obs, buffer_actions, rewards, dones, infos)
        self._last_obs = new_obs
    self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
    self._on_step()
    for idx in np.flatnonzero(dones).tolist() if num_done else ():
        self._episode_num += 1
        if action_noise is not None:
            action_noise.reset(**({"indices": [idx]} if num_envs > 1 else {}))
        if log_interval is not None and self._episode_num % log_interval == 0:
            self.dump_logs()
    return num_done
