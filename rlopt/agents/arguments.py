"""What agents are made with, checked before Stable-Baselines3 sees it: what it takes in silence, and what it says at length."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

# Name -> whether it is a whole number, lowest and highest value.
_RANGES: dict[str, tuple[bool, float, float]] = {
    "gamma": (False, 0.0, 1.0),
    "tau": (False, 0.0, 1.0),
    "gae_lambda": (False, 0.0, 1.0),
    "exploration_fraction": (False, 0.0, 1.0),
    "exploration_initial_eps": (False, 0.0, 1.0),
    "exploration_final_eps": (False, 0.0, 1.0),
    "vf_coef": (False, 0.0, math.inf),
    "learning_rate": (False, 0.0, math.inf),
    "batch_size": (True, 1, math.inf),
    "buffer_size": (True, 1, math.inf),
    "learning_starts": (True, 0, math.inf),
    "n_steps": (True, 1, math.inf),
    "n_epochs": (True, 1, math.inf),
    "gradient_steps": (True, -1, math.inf),
    "target_update_interval": (True, 1, math.inf),
    "policy_delay": (True, 1, math.inf),
}


def bind_arguments(kind: type, signature: inspect.Signature, args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a constructor by name, and refuse those that cannot be meant.

    Raises:
        TypeError: For an option that the agent does not have.
        ValueError: For a number outside its range, a device that is not there, or no environment.
    """
    for name in kwargs:
        if name not in signature.parameters:
            close = difflib.get_close_matches(name, signature.parameters, n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise TypeError(f"{kind.__name__} has no option {name!r}{hint}")
    given: dict[str, Any] = dict(signature.bind_partial(*args, **kwargs).arguments)
    for name, (is_whole, low, high) in _RANGES.items():
        value = given.get(name)
        if not isinstance(value, (int, float)):
            continue
        if not low <= value <= high or value == math.inf or (is_whole and value != int(value)):
            where = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise ValueError(f"{name} must be a {'whole' if is_whole else 'finite'} number {where}, got {value}.")
    if isinstance(given.get("learning_rate"), str):
        raise ValueError(f"learning_rate must be a number or a schedule, got {given['learning_rate']!r}.")
    if given.get("device", "auto") != "auto":
        try:
            th.zeros(1, device=given["device"])
        except (RuntimeError, AssertionError, NotImplementedError, ValueError):
            raise ValueError(f"device must be one that this machine has, such as cpu or cuda, got {given['device']}.") from None
    if given.get("env") is None and given.get("_init_setup_model", True):
        raise ValueError("env must be an environment, or the id of one, got None.")
    return given


@contextlib.contextmanager
def one_sentence(agent: Any) -> Iterator[None]:
    """Say in one sentence what Stable-Baselines3 finds wrong with an environment's spaces.

    Raises:
        ValueError: Instead of its errors about spaces.
    """
    try:
        yield
    except (AssertionError, NotImplementedError, AttributeError) as error:
        name, policy = type(agent).__name__, agent._given_policy
        text = " ".join(str(error).split())
        observations, actions = getattr(agent, "observation_space", None), getattr(agent, "action_space", None)
        if "only supports" in text:
            kinds = [kind for kind in ("Box", "Discrete", "MultiDiscrete", "MultiBinary") if f".{kind}'" in text]
            text = f"env must have {' or '.join(kinds)} actions for {name}, got {actions}"
        elif "finite lower and upper bound" in text:
            text = f"env must have actions with finite bounds for {name}, got {actions}: bound its action_space"
        elif isinstance(observations, spaces.Tuple):
            text = f"env must have Box, Discrete, MultiDiscrete, MultiBinary or Dict observations, got {observations}"
        elif policy == "MultiInputPolicy" and observations is not None and not isinstance(observations, spaces.Dict):
            text = f"policy must be MlpPolicy or CnnPolicy, as observations are no Dict, got MultiInputPolicy for {observations}"
        elif policy == "CnnPolicy" and observations is not None and not is_image_space(observations):
            text = f"policy must be MlpPolicy, as observations are no images, got CnnPolicy for {observations}"
        elif isinstance(error, AttributeError):
            raise
        raise ValueError(f"{text.rstrip('.')}.") from None
