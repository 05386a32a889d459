"""The state of an agent as plain data: all that its next step depends on."""

from __future__ import annotations

import dataclasses
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.save_util import recursive_getattr

from rlopt.agents.making import describe, describe_space
from rlopt.agents.plain_state import CannotBeSaved, give_state, take_state
from rlopt.replay.buffer import Replay

# What changes while an agent trains, besides networks, optimizers, replay, environment and generators.
_COUNTERS = (
    "num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate", "_current_progress_remaining", "action_noise",
    "ep_info_buffer", "ep_success_buffer", "_last_episode_starts", "_last_obs", "_last_original_obs", "_diagnostics", "_aux",
    "num_skipped_updates",
)  # fmt: skip
_OF_EPISODE = ("_last_episode_starts", "_last_obs", "_last_original_obs")
_STATISTICS = ("obs_rms", "ret_rms")
_LOGGED = ("name_to_value", "name_to_count", "name_to_excluded")
# Options that must be the same when a run goes on; they are compared where an agent has them.
_OPTIONS = (
    "learning_rate", "gamma", "batch_size", "n_envs", "learning_starts", "tau", "gradient_steps", "target_update_interval",
    "policy_delay", "n_steps", "n_epochs", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "buffer_size",
    "double_q", "use_sde", "seed",
)  # fmt: skip
_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "exploration_schedule")


def take_agent(agent: Any, callback: BaseCallback | None) -> tuple[dict[str, Any], str | None]:
    """Return the state of an agent, and why that of its environment is not in it. The transitions of a replay are views."""
    modules, variables = agent._get_torch_save_params()
    env, reason = None, None
    try:
        env = take_state(agent.env)
    except CannotBeSaved as error:
        reason = str(error)
        if agent.num_timesteps:
            warnings.warn(f"After a stop the environment begins new episodes: {reason}.", stacklevel=4)
    counters = {name: take_state(getattr(agent, name)) for name in _COUNTERS if hasattr(agent, name)}
    if env is None:
        for name in _OF_EPISODE:
            counters.pop(name, None)
    replay = getattr(agent, "replay_buffer", None)
    normalize = agent.get_vec_normalize_env()
    state = {
        "agent": type(agent).__name__,
        "made_of": _made_of(agent),
        "options": _options(agent),
        "counters": counters,
        "modules": {name: recursive_getattr(agent, name).state_dict() for name in modules},
        "variables": {name: recursive_getattr(agent, name) for name in variables},
        "replay": replay.state_dict(copy=False) if isinstance(replay, Replay) else None if replay is None else take_state(replay),
        "env": env,
        "normalize": None if normalize is None else take_state({name: vars(normalize).get(name) for name in _STATISTICS}),
        "callbacks": [_state_or_none(part) for part in _parts(callback)],
        "logger": take_state({name: dict(getattr(agent.logger, name)) for name in _LOGGED}),
        "spaces": take_state(agent.action_space),
        "random": take_random(),
    }
    return state, reason


def give_agent(agent: Any, state: dict[str, Any], callback: BaseCallback | None, path: Path) -> None:
    """Give an agent, made like the one it came from, the state that `take_agent` returned.

    Raises:
        ValueError: If it is one of another agent; the message names `path`.
    """
    if state["agent"] != type(agent).__name__:
        raise ValueError(f"{path} is a checkpoint of {state['agent']}, got a {type(agent).__name__}.")
    options = _options(agent)
    for name, value in state["options"].items():
        if options.get(name) != value:
            raise ValueError(
                f"{name} must be {value!r} as in {path}, got {options.get(name)!r}; take another folder for another run."
            )
    give_learned(agent, state, path)
    for name, value in state["counters"].items():
        setattr(agent, name, give_state(getattr(agent, name), value))
    agent._num_timesteps_at_start = agent.num_timesteps
    if state["env"] is not None:
        give_state(agent.env, state["env"])
    for part, saved in zip(_parts(callback), state["callbacks"], strict=False):
        if saved is not None:
            give_state(part, saved)
    for name, values in state["logger"].items():
        getattr(agent.logger, name).update(values)
    give_state(agent.action_space, state["spaces"])
    give_random(state["random"])


def give_learned(agent: Any, state: dict[str, Any], path: Path) -> None:
    """Give an agent what it has learned: networks, optimizers, replay, and the statistics of observations and rewards.

    Raises:
        ValueError: If the networks or the replay are others; the message names `path`.
    """
    try:
        for name, part in state["modules"].items():
            recursive_getattr(agent, name).load_state_dict(part)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"{path} holds other networks or optimizers than the agent: {' '.join(str(error).split())}") from None
    with th.no_grad():
        for name, value in state["variables"].items():
            recursive_getattr(agent, name).copy_(value)
    replay = getattr(agent, "replay_buffer", None)
    if isinstance(replay, Replay):
        replay.load_state_dict(state["replay"])
    elif replay is not None:
        give_state(replay, state["replay"])
    normalize = agent.get_vec_normalize_env()
    if normalize is not None and state["normalize"] is not None:
        for name, value in state["normalize"].items():
            if value is None:  # it normalises rewards only
                continue
            setattr(normalize, name, give_state(getattr(normalize, name), value))


def _made_of(agent: Any) -> dict[str, Any]:
    """What `Learner.load` needs to make the agent again."""
    arguments = agent.made_with
    said, unsaid = describe({} if arguments is None else arguments)
    return {
        "arguments": None if arguments is None else said,
        "unsaid": unsaid,
        "n_envs": agent.n_envs,
        "target_entropy": getattr(agent, "target_entropy", None),
        "observation_space": describe_space(agent.observation_space),
        "action_space": describe_space(agent.action_space),
    }


def _options(agent: Any) -> dict[str, Any]:
    found = {name: getattr(agent, name) for name in _OPTIONS if hasattr(agent, name)}
    plain: dict[str, Any] = {name: value for name, value in found.items() if isinstance(value, bool | int | float | str)}
    for name in _SCHEDULES:  # functions of the progress that remains
        if callable(schedule := getattr(agent, name, None)):
            plain[name] = [float(schedule(progress)) for progress in (1.0, 0.75, 0.5, 0.25, 0.0)]
    optimizer = getattr(agent, "optimizer", None)
    known = optimizer is None or isinstance(optimizer, str | dict) or dataclasses.is_dataclass(optimizer)
    return {"optimizer": repr(optimizer) if known else type(optimizer).__name__, **plain}


def _parts(callback: BaseCallback | None) -> list[BaseCallback]:
    """Callbacks in a tree of them, in order."""
    if callback is None:
        return []
    if isinstance(callback, CallbackList):
        return [found for part in callback.callbacks for found in _parts(part)]
    return [callback]


def _state_or_none(callback: BaseCallback) -> Any:
    try:
        return take_state(callback)
    except CannotBeSaved:
        return None


def take_random() -> dict[str, Any]:
    """State of the generators that a process has."""
    return {
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002  # Stable-Baselines3 draws from it
        "python": random.getstate(),
    }


def give_random(state: Mapping[str, Any]) -> None:
    """Let the generators of the process go on from a state."""
    th.set_rng_state(state["torch"])
    if state["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
