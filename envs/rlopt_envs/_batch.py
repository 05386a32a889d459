"""The dynamics of many copies of a system at once, without episodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from rlopt_envs._validation import BoolArray, FloatArray, count, positive_vector

Observations = NDArray[np.floating[Any]]
Infos = dict[str, Any]


class Batch(ABC):
    """Independent copies of one dynamical system and their states; knows nothing of episodes that are cut or begin again.

    Args:
        num_envs: Copies N.
        num_states: d.
        observation_space: Of one copy.
        action_limit: Actions are clipped to [-action_limit, action_limit], shape (m,).
    """

    def __init__(self, num_envs: int, num_states: int, observation_space: spaces.Box, action_limit: FloatArray) -> None:
        self.num_envs = count("num_envs", num_envs)
        self.states: FloatArray = np.zeros((num_envs, num_states))
        self.steps = np.zeros(num_envs, np.int64)
        self.action_limit = action_limit
        limit = action_limit.astype(np.float32)
        self.observation_space = observation_space
        self.action_space = spaces.Box(-limit, limit, dtype=np.float32)

    num_draws: int
    """Standard normal numbers that a copy needs for a step."""
    num_first_draws: int
    """Standard normal numbers that a copy needs for a first state."""

    def begin(self, rows: BoolArray, draws: FloatArray, states: FloatArray | None) -> None:
        """Put copies into first states.

        Args:
            rows: Which copies, (N,).
            draws: Standard normal numbers, (number of true rows, num_first_draws).
            states: Their first states, (number of true rows, d). None: drawn from the initial law.
        """
        self.states[rows] = self._first_states(draws) if states is None else states
        self.steps[rows] = 0

    @abstractmethod
    def _first_states(self, draws: FloatArray) -> FloatArray:
        """Return first states, (count, d)."""

    @abstractmethod
    def advance(self, actions: FloatArray, draws: FloatArray) -> tuple[FloatArray, BoolArray, Infos]:
        """Step all copies.

        Args:
            actions: Clipped, (N, m).
            draws: Standard normal numbers, (N, num_draws).

        Returns:
            Rewards (N,), whether the task is over (N,), and what there is to say about the step, arrays (N, ...); all new.
        """

    @abstractmethod
    def observe(self) -> Observations:
        """Return the observations, a new array (N, p)."""

    def describe(self) -> Infos:
        """Return what there is to say about the present states, new arrays (N, ...)."""
        return {}

    def clipped(self, actions: ArrayLike) -> FloatArray:
        """Return the actions that are applied, float64 (N, m).

        Raises:
            ValueError: For another shape, or nan.
        """
        array = np.asarray(actions, np.float64)
        shape = (self.num_envs, len(self.action_limit))
        if array.shape != shape:
            raise ValueError(f"actions must have shape {shape} (copies, inputs), got {array.shape}.")
        array = np.minimum(np.maximum(array, -self.action_limit), self.action_limit)
        if np.isnan(array.sum()):
            raise ValueError("actions must be numbers, got nan.")
        return array


def action_limits(value: ArrayLike | None, default: ArrayLike, num_inputs: int) -> FloatArray:
    """Return the limit of each input, (m,)."""
    return positive_vector("action_limit", default if value is None else value, num_inputs)
