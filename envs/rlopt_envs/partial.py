"""Environments of which a policy sees only a part, so that it has to remember: observations without velocities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray


class KeepObservations(gym.ObservationWrapper[NDArray[Any], Any, NDArray[Any]], RecordConstructorArgs):
    """Shows only some numbers of the observation.

    Args:
        env: Its observations are vectors, Box with one dimension.
        keep: Indices of the numbers that stay, in their new order; different ones, at least one.

    Raises:
        ValueError: For another space or other indices.

    Example:
        >>> env = KeepObservations(gym.make("CartPole-v1"), keep=[0, 2])  # position and angle
        >>> env.reset(seed=0)[0].shape
        (2,)
    """

    def __init__(self, env: gym.Env[NDArray[Any], Any], keep: Sequence[int]) -> None:
        RecordConstructorArgs.__init__(self, keep=keep)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"env must have vectors as observations, a Box of shape (n,), got {space}.")
        indices: list[Any] = list(keep)
        whole = all(isinstance(i, int | np.integer) and 0 <= i < space.shape[0] for i in indices)
        if not indices or not whole or len(set(indices)) < len(indices):
            raise ValueError(f"keep must be different whole numbers in [0, {space.shape[0]}), at least one, got {keep!r}.")
        self._keep = np.array(indices)
        self.observation_space = spaces.Box(space.low[self._keep], space.high[self._keep], dtype=space.dtype.type)

    def observation(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Return the numbers that stay."""
        kept: NDArray[Any] = observation[self._keep]
        return kept


def cartpole_without_velocities(**options: Any) -> KeepObservations:
    """Gymnasium's CartPole whose observation is (position, angle); velocities must be inferred from successive ones.

    Args:
        **options: Of `gymnasium.make("CartPole-v1")`.

    Example:
        >>> gym.make("rlopt_envs:rlopt/CartPoleNoVelocity-v0").observation_space.shape
        (2,)
    """
    return KeepObservations(CartPoleEnv(**options), (0, 2))


def pendulum_without_velocity(**options: Any) -> KeepObservations:
    """Gymnasium's Pendulum whose observation is (cos, sin) of the angle; the velocity must be inferred from successive ones.

    Args:
        **options: Of `gymnasium.make("Pendulum-v1")`.

    Example:
        >>> gym.make("rlopt_envs:rlopt/PendulumNoVelocity-v0").observation_space.shape
        (2,)
    """
    return KeepObservations(PendulumEnv(**options), (0, 1))
