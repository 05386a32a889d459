"""Questions about an environment and a machine that are answered before anything is started."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import gymnasium as gym
import torch

AgentName = Literal["auto", "dqn", "ddpg", "td3", "sac"]


def inspect_env(env_id: str, replays: Sequence[str]) -> gym.Space[Any]:
    """Return the action space of an environment.

    Raises:
        ValueError: If there is no such environment, a package for it is missing, or hindsight has no goals in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is a newer version is said by the error below
            env = gym.make(env_id)
    except (gym.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        if env_id in gym.registry:
            extra = next((name for name in ("box2d", "mujoco") if name in str(gym.registry[env_id].entry_point)), None)
            advice = f"; its packages come with pip install 'rlopt[{extra}]'" if extra else ""
            raise ValueError(f"env_id {env_id} cannot be made here: {reason}{advice}") from None
        message = f"env_id must be an environment that is installed, got {env_id}{hint(env_id, gym.registry)}"
        raise ValueError(message) from None
    if isinstance(env.observation_space, gym.spaces.Tuple):
        raise ValueError(f"env_id must have Box, Discrete or Dict observations, those of {env_id} are a Tuple")
    goals = isinstance(env.observation_space, gym.spaces.Dict) and "desired_goal" in env.observation_space.spaces
    if "hindsight" in replays and not goals:
        raise ValueError(f"replays must not hold hindsight for {env_id}: its observations have no desired_goal")
    env.close()
    return env.action_space


def choose_agent(agent: AgentName, env_id: str, space: gym.Space[Any]) -> str:
    """Return the agent for an action space.

    Raises:
        ValueError: If the agent cannot act in it.
    """
    kind = "discrete" if isinstance(space, gym.spaces.Discrete) else "continuous"
    if kind == "continuous" and not isinstance(space, gym.spaces.Box):
        raise ValueError(f"env_id must have Discrete or Box actions, {env_id} has {type(space).__name__}")
    fitting = {"discrete": ("dqn",), "continuous": ("td3", "ddpg", "sac")}[kind]
    if agent == "auto":
        return fitting[0]
    if agent not in fitting:
        raise ValueError(f"agent must be {' or '.join(fitting)} for the {kind} actions of {env_id}, got {agent}")
    return agent


def check_device(device: str) -> None:
    """Try the device.

    Raises:
        ValueError: If it does not exist or is not there.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        text = str(error).partition("\n")[0]
        reason = "; try cpu or cuda" if text.startswith("Expected one of") else f": {text}"
        raise ValueError(f"device must be one that this machine has, got {device}{reason}") from None


def hint(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests names like `name`, empty if there are none."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
