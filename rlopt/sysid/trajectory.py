"""Data for identification: trajectories from arrays, from an environment, and from a replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from rlopt.replay import Replay

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Trajectory:
    """Consecutive transitions of one system: what it did next, given where it was and what it was told.

    Args:
        states: Where it was, shape (T, d), float64.
        next_states: What is to be predicted, shape (T, k); in a trajectory of states row t is row t + 1 of `states`.
        inputs: What it was told, shape (T, m). None: nothing, m = 0.

    Raises:
        ValueError: For other shapes, no transition, or values that are not finite.

    Example:
        >>> Trajectory.from_states([[0.0], [1.0], [3.0]]).next_states.tolist()
        [[1.0], [3.0]]
    """

    states: FloatArray
    next_states: FloatArray
    inputs: FloatArray | None = None
    regressors: FloatArray = field(init=False, repr=False, compare=False)
    """States and inputs side by side, shape (T, d + m)."""

    def __post_init__(self) -> None:
        states = _matrix("states", self.states)
        next_states = _matrix("next_states", self.next_states, len(states))
        inputs = None if self.inputs is None else _matrix("inputs", self.inputs, len(states))
        if len(states) == 0:
            raise ValueError("states must hold at least one transition, got none.")
        object.__setattr__(self, "states", states)
        object.__setattr__(self, "next_states", next_states)
        object.__setattr__(self, "inputs", inputs)
        together = states if inputs is None or inputs.shape[1] == 0 else np.ascontiguousarray(np.hstack([states, inputs]))
        object.__setattr__(self, "regressors", together)

    def __len__(self) -> int:
        return len(self.states)

    @property
    def num_states(self) -> int:
        """Dimension d of the states."""
        return int(self.states.shape[1])

    @classmethod
    def from_states(cls, states: ArrayLike, inputs: ArrayLike | None = None) -> Trajectory:
        """Make a trajectory of T transitions from T + 1 states, shape (T + 1, d), and T inputs, shape (T, m).

        The array is not copied if it is contiguous float64.
        """
        array = _matrix("states", states)
        if len(array) < 2:
            raise ValueError(f"states must have shape (T + 1, d) with T >= 1, got {array.shape}.")
        return cls(array[:-1], array[1:], None if inputs is None else np.asarray(inputs))


Data = ArrayLike | tuple[ArrayLike, ArrayLike] | Trajectory | Sequence[Trajectory] | Replay
"""What estimators learn from: states (T + 1, d); a pair of regressors (T, p) and targets (T, k); trajectories; a replay."""


def as_trajectories(data: Data) -> list[Trajectory]:
    """Return the trajectories in any data that an estimator accepts.

    Args:
        data: An array of consecutive states (T + 1, d); a tuple of regressors (T, p) and targets (T, k) or (T,); a `Trajectory`,
            several of them, or a replay (see `trajectories_of_replay`).
    """
    if isinstance(data, Trajectory):
        return [data]
    if isinstance(data, Replay):
        return trajectories_of_replay(data)
    if isinstance(data, tuple):
        if len(data) != 2:
            raise ValueError(f"data must be a pair of regressors and targets when it is a tuple, got {len(data)} parts.")
        regressors, targets = (np.asarray(part, np.float64) for part in data)
        return [Trajectory(regressors, targets[:, None] if targets.ndim == 1 else targets)]
    if isinstance(data, Sequence) and len(data) and all(isinstance(part, Trajectory) for part in data):
        parts = [part for part in data if isinstance(part, Trajectory)]
        shapes = {(part.num_states, part.regressors.shape[1], part.next_states.shape[1]) for part in parts}
        if len(shapes) > 1:
            raise ValueError(f"data must be trajectories of one system, got dimensions {sorted(shapes)}.")
        return parts
    return [Trajectory.from_states(data)]  # type: ignore[arg-type]


def rollout(
    env: gym.Env[Any, Any], num_steps: int, policy: Callable[[Any], Any] | None = None, seed: int | None = None
) -> list[Trajectory]:
    """Run an environment and return what happened, one trajectory for each episode.

    Observations are taken as states, actions as inputs. For long trajectories of a known system, its own `simulate` is faster.

    Args:
        env: An environment with Box observations and Box actions.
        num_steps: Steps in total, > 0; an episode that ends early is followed by another.
        policy: Observation -> action. None: actions drawn from the action space.
        seed: Seed of the environment, and of the action space for `policy=None`.

    Raises:
        ValueError: If the spaces are not boxes, or `num_steps` is not positive.

    Example:
        >>> import gymnasium
        >>> parts = rollout(gymnasium.make("Pendulum-v1"), 250, seed=0)
        >>> [(part.states.shape, part.inputs.shape) for part in parts]
        [((200, 3), (200, 1)), ((50, 3), (50, 1))]
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be > 0, got {num_steps}.")
    for name, space in (("observation", env.observation_space), ("action", env.action_space)):
        if not isinstance(space, spaces.Box):
            raise ValueError(f"env must have a Box {name} space, got {type(space).__name__}.")
    if policy is None:
        env.action_space.seed(seed)
    parts: list[Trajectory] = []
    states: list[Any] = []
    inputs: list[Any] = []
    observation, _ = env.reset(seed=seed)
    for step in range(num_steps):
        action = env.action_space.sample() if policy is None else policy(observation)
        states.append(np.ravel(observation))
        inputs.append(np.ravel(action))
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
        if ended or step == num_steps - 1:
            states.append(np.ravel(observation))
            parts.append(Trajectory.from_states(np.array(states, np.float64), np.array(inputs, np.float64)))
            states, inputs = [], []
        if ended and step < num_steps - 1:
            observation, _ = env.reset()
    return parts


def trajectories_of_replay(replay: Replay, *, scaled_actions: bool = False) -> list[Trajectory]:
    """Return what a replay holds in order of time: one trajectory for each episode, or the stored part of it, of each environment.

    Args:
        replay: Any replay of rlopt with one-dimensional Box observations and Box actions.
        scaled_actions: Whether the actions were stored as Stable-Baselines3's agents do it, scaled to [-1, 1]; they are then
            brought back to the bounds of the action space.

    Raises:
        ValueError: If the replay is empty or its spaces are not boxes.
    """
    observations, actions = replay.observation_space, replay.action_space
    for name, space in (("observation", observations), ("action", actions)):
        if not isinstance(space, spaces.Box):
            raise ValueError(f"replay must have a Box {name} space, got {type(space).__name__}.")
    storage = replay.storage
    if len(storage) == 0:
        raise ValueError("replay must hold transitions, got an empty one.")
    parts = []
    for env in range(storage.n_envs):
        slots = storage.to_slots(np.arange(env, len(storage), storage.n_envs))  # oldest first
        to_end = storage.num_steps(slots, "newer", within_episode=True)
        last = np.flatnonzero(to_end == 0)  # of an episode, or of the stored data
        for piece in np.split(slots, last[:-1] + 1):
            states, inputs, next_states = _read(replay, piece)
            if scaled_actions:
                assert isinstance(actions, spaces.Box)
                low, high = actions.low.ravel(), actions.high.ravel()
                inputs = low + 0.5 * (inputs + 1.0) * (high - low)
            parts.append(Trajectory(states, next_states, inputs))
    return parts


def _read(replay: Replay, slots: NDArray[np.int64]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return observations, actions and next observations in slots of a replay, float64, (N, d), (N, m), (N, d)."""
    num, storage = len(slots), replay.storage
    fields = storage.gather(slots)
    found = (storage.observation(slots, fields), fields["actions"], storage.next_observation(slots, fields))
    states, inputs, next_states = (np.asarray(part, np.float64).reshape(num, -1) for part in found)
    return states, inputs, next_states


def _matrix(name: str, values: Any, num_rows: int | None = None) -> FloatArray:
    try:
        array = np.ascontiguousarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers, got {type(values).__name__}.") from None
    if array.ndim != 2 or (num_rows is not None and len(array) != num_rows):
        raise ValueError(f"{name} must have shape ({'T' if num_rows is None else num_rows}, dimension), got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).any(axis=1).sum())} rows with NaN or infinity.")
    return array
