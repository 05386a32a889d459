"""The last observations as one observation, for policies that look back: transformers and recurrent networks."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

Mask = NDArray[np.bool_]
HistoryObs = dict[str, NDArray[Any]]


class _Entry:
    """How the values of a space stand in a history: as arrays of its own dtype, numbers of a finite set as one-hot vectors."""

    def __init__(self, name: str, space: spaces.Space[Any]) -> None:
        self.sizes: NDArray[np.int64] | None = None
        self.low: Any
        self.high: Any
        if isinstance(space, spaces.Box):
            # Padding is 0, which need not lie in the space itself.
            self.shape, self.dtype = space.shape, np.dtype(space.dtype)
            self.low, self.high = np.minimum(space.low, 0).astype(self.dtype), np.maximum(space.high, 0).astype(self.dtype)
        elif isinstance(space, spaces.MultiBinary):
            self.shape, self.dtype, self.low, self.high = space.shape, np.dtype(np.int8), 0, 1
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            self.start = np.asarray(space.start).reshape(-1)
            self.sizes = np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec).reshape(-1)
            self.shape, self.dtype, self.low, self.high = (int(self.sizes.sum()),), np.dtype(np.float32), 0.0, 1.0
        else:
            remedy = "; put gymnasium.wrappers.FlattenObservation around the environment" if name == "observation_space" else ""
            raise ValueError(f"{name} must be a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}{remedy}.")

    def space(self, length: int) -> spaces.Box:
        """Space of a history of such values, (length, *shape)."""
        shape = (length, *self.shape)
        low, high = (np.broadcast_to(np.asarray(bound, self.dtype), shape) for bound in (self.low, self.high))
        return spaces.Box(low, high, shape, self.dtype.type)

    def encode(self, values: Any, num: int) -> NDArray[Any]:
        """Values of `num` environments, (num, *shape)."""
        if self.sizes is None:
            return np.asarray(values, self.dtype).reshape(num, *self.shape)
        numbers = np.asarray(values).reshape(num, len(self.sizes)) - self.start
        encoded = np.zeros((num, *self.shape), self.dtype)
        np.put_along_axis(encoded, numbers + np.cumsum(self.sizes) - self.sizes, 1.0, axis=1)
        return encoded


class _Histories:
    """The histories of `num` environments. Arrays are never changed once they were given away."""

    def __init__(
        self, observation_space: Any, action_space: Any, num: int, length: int, include_actions: bool, include_rewards: bool
    ) -> None:
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}.")
        entries = {"observations": _Entry("observation_space", observation_space)}
        if include_actions:
            entries["previous_actions"] = _Entry("action_space", action_space)
        if include_rewards:
            entries["previous_rewards"] = _Entry("rewards", spaces.Box(-np.inf, np.inf, (), np.float32))
        self.num, self._entries = num, entries
        parts: dict[str, spaces.Space[Any]] = {name: entry.space(length) for name, entry in entries.items()}
        parts["valid"] = spaces.MultiBinary(length)
        self.space = spaces.Dict(parts)
        self._arrays = {name: np.zeros((num, *part.shape), part.dtype) for name, part in parts.items()}  # type: ignore[misc]

    def begin(self, obs: Any, mask: Mask) -> None:
        """Begin new histories where `mask` (num,) is True; `obs` holds the observations of all environments."""
        for name, old in self._arrays.items():
            new = old.copy()
            new[mask] = 0
            if name == "observations":
                new[mask, -1] = self._entries[name].encode(obs, self.num)[mask]
            elif name == "valid":
                new[mask, -1] = 1
            self._arrays[name] = new

    def append(self, **values: Any) -> None:
        """Append `observations`, `previous_actions` and `previous_rewards` of all environments."""
        for name, old in self._arrays.items():
            newest = np.ones(self.num, np.int8) if name == "valid" else self._entries[name].encode(values[name], self.num)
            self._arrays[name] = np.concatenate([old[:, 1:], newest[:, None]], axis=1)  # (num, length, *shape)

    def all(self) -> HistoryObs:
        """The histories, (num, length, ...)."""
        return dict(self._arrays)

    def of(self, env: int) -> HistoryObs:
        """The history of one environment, (length, ...)."""
        return {name: array[env] for name, array in self._arrays.items()}


class HistoryWrapper(gym.Wrapper[HistoryObs, Any, Any, Any], RecordConstructorArgs):
    """Makes the last `length` observations of the episode one observation, a Dict.

    With K = `length`, its keys are:

    * `observations`, (K, ...): the observations, the newest last.
    * `valid`, (K,) int8: 1 where there was an observation, 0 before the episode began.
    * `previous_actions`, (K, ...): the actions that led to the observations.
    * `previous_rewards`, (K,) float32: the rewards that came with the observations.

    Where `valid` is 0, everything is 0; so are action and reward of the first observation of an episode. Numbers of a finite set
    are one-hot vectors of float32 (MultiDiscrete: one after another), everything else keeps shape and dtype.

    Wrap each environment, and put what Stable-Baselines3 has for several of them around that. `VecNormalize` then needs
    `norm_obs_keys=["observations"]`; it counts padding as observations.

    Each transition of a replay holds two such histories; agents that learn from sequences (`SequenceLearning`) need a `length`-th
    of that.

    Args:
        env: Observations are Box, Discrete, MultiDiscrete or MultiBinary.
        length: Observations to show, >= 1.
        include_actions: Whether there are `previous_actions`; actions are Box, Discrete, MultiDiscrete or MultiBinary.
        include_rewards: Whether there are `previous_rewards`.

    Raises:
        ValueError: If `length` < 1, or for another space.

    Example:
        >>> env = HistoryWrapper(gym.make("CartPole-v1"), length=3, include_actions=True)
        >>> obs, _ = env.reset(seed=0)
        >>> obs["valid"].tolist(), obs["observations"].shape
        ([0, 0, 1], (3, 4))
        >>> obs = env.step(1)[0]
        >>> obs["valid"].tolist(), obs["previous_actions"].tolist()
        ([0, 1, 1], [[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    """

    def __init__(self, env: gym.Env[Any, Any], length: int, include_actions: bool = False, include_rewards: bool = False) -> None:
        RecordConstructorArgs.__init__(self, length=length, include_actions=include_actions, include_rewards=include_rewards)
        super().__init__(env)
        self._histories = _Histories(env.observation_space, env.action_space, 1, length, include_actions, include_rewards)
        self.observation_space = self._histories.space  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[HistoryObs, dict[str, Any]]:
        """Begin an episode and its history."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._histories.begin(obs, np.ones(1, bool))
        return self._histories.of(0), info

    def step(self, action: Any) -> tuple[HistoryObs, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and append to the history; the last observation of an episode has its history too."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._histories.append(observations=obs, previous_actions=action, previous_rewards=reward)
        return self._histories.of(0), reward, terminated, truncated, info


class VecHistory(VecEnvWrapper):
    """`HistoryWrapper` for a Stable-Baselines3 `VecEnv`, such as a native vector environment in a `GymnasiumVecEnv`.

    Observations, also the `terminal_observation` in infos, are those that wrapping each environment would give.

    Args:
        venv: The environments.
        length: See `HistoryWrapper`, as the following.
        include_actions: Whether there are `previous_actions`.
        include_rewards: Whether there are `previous_rewards`.

    Raises:
        ValueError: If `length` < 1, or for another space.

    Example:
        >>> from rlopt.agents import GymnasiumVecEnv
        >>> env = GymnasiumVecEnv(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point"))
        >>> VecHistory(env, length=3).reset()["observations"].shape
        (2, 3, 4)
    """

    def __init__(self, venv: VecEnv, length: int, include_actions: bool = False, include_rewards: bool = False) -> None:
        self._histories = _Histories(
            venv.observation_space, venv.action_space, venv.num_envs, length, include_actions, include_rewards
        )
        self._actions: Any = None
        super().__init__(venv, observation_space=self._histories.space)

    def reset(self) -> HistoryObs:
        """Begin all episodes."""
        self._histories.begin(self.venv.reset(), np.ones(self.num_envs, bool))
        return self._histories.all()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for the history, and step."""
        self._actions = np.array(actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Append to the histories; where an episode ended, its history goes into infos and a new one begins."""
        obs, rewards, dones, infos = self.venv.step_wait()
        observations = obs
        if dones.any():  # what belongs to the old history is not in `obs` any more
            observations = np.array(obs)
            for env in np.flatnonzero(dones).tolist():
                observations[env] = infos[env]["terminal_observation"]
        self._histories.append(observations=observations, previous_actions=self._actions, previous_rewards=rewards)
        if dones.any():
            for env in np.flatnonzero(dones).tolist():
                infos[env]["terminal_observation"] = self._histories.of(env)
            self._histories.begin(obs, dones)
        return self._histories.all(), rewards, dones, infos
