"""Which columns a space needs."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape

from rlopt.replay.packed import Column


def observation_columns(space: spaces.Space[Any], prefix: str) -> list[Column]:
    """Columns of an observation space: one, or one per key of a Dict."""
    if not isinstance(space, spaces.Dict):
        check_space(space, "observation_space")
        return [Column(prefix, get_obs_shape(space), np.dtype(space.dtype))]  # type: ignore[arg-type]
    for key, part in space.items():
        check_space(part, f"observation_space[{key!r}]")
    return [
        Column(f"{prefix}/{key}", get_obs_shape(part), np.dtype(part.dtype))  # type: ignore[arg-type]
        for key, part in space.items()
    ]


def check_space(space: spaces.Space[Any], name: str) -> None:
    """Refuse a space that a replay cannot store.

    Raises:
        ValueError: Naming `name`, what is allowed, and the space.
    """
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(f"{name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}.")
