"""Transitions in time order for learners of Q-functions, from an environment or from a replay, and feature maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import ArrayLike, NDArray

from rlopt.replay.buffer import Replay

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

FeatureMap = FloatArray | Callable[[NDArray[Any]], FloatArray]
"""φ: a table (S, A, d) for whole-number observations, or a function of observations (N, ...) that returns (N, A, d)."""
Policy = ArrayLike | Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]
"""Probabilities (S, A) for whole-number observations, or a function of observations (N, ...) and a generator: actions (N,)."""


class RolloutLike(Protocol):
    """What `Transitions.from_rollout` reads, for instance `rlopt_envs.finite_mdp.Rollout`."""

    @property
    def states(self) -> IntArray:
        """(T+1,)."""

    @property
    def actions(self) -> IntArray:
        """(T,)."""

    @property
    def rewards(self) -> FloatArray:
        """(T,)."""

    @property
    def next_states(self) -> IntArray:
        """(T,)."""

    @property
    def terminated(self) -> BoolArray:
        """(T,)."""


@dataclass(frozen=True, eq=False, init=False)
class Transitions:
    """T transitions in time order, and where one trajectory ends and the next begins.

    Args:
        observations: s_t, (T, ...).
        actions: a_t, (T,) whole numbers >= 0.
        rewards: r_t, (T,).
        next_observations: s_{t+1}, (T, ...), the true successors, also where an episode ended.
        terminated: Whether the environment ended with this transition, (T,) bool; then nothing is bootstrapped. None: never.
        ends: Whether the trajectory ends with this transition, (T,) bool: what follows, here or in later data, does not continue
            it. Always True where `terminated`. None: where it terminated and wherever the next observation is not the observation
            of the next transition; the last transition counts as continued unless it terminated.

    Raises:
        ValueError: For no transitions, lengths that differ, numbers that are not finite, or negative actions.

    Example: the second trajectory begins in state 7.
        >>> data = Transitions(np.array([0, 1, 7]), np.array([0, 0, 0]), np.zeros(3), np.array([1, 2, 8]))
        >>> data.ends.tolist(), len(data), len(data[1:])
        ([False, True, False], 3, 2)
    """

    observations: NDArray[Any]
    actions: IntArray
    rewards: FloatArray
    next_observations: NDArray[Any]
    terminated: BoolArray
    ends: BoolArray

    def __init__(
        self,
        observations: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        next_observations: ArrayLike,
        terminated: ArrayLike | None = None,
        ends: ArrayLike | None = None,
    ) -> None:
        obs, next_obs = np.asarray(observations), np.asarray(next_observations)
        if obs.ndim == 0 or len(obs) == 0 or obs.shape != next_obs.shape:
            raise ValueError(
                f"observations and next_observations must have one shape (T, ...), T >= 1, got {obs.shape} and {next_obs.shape}."
            )
        num = len(obs)
        given = {
            "actions": np.asarray(actions),
            "rewards": np.asarray(rewards, np.float64),
            "terminated": np.zeros(num, bool) if terminated is None else np.asarray(terminated),
        }
        if ends is not None:
            given["ends"] = np.asarray(ends)
        for name, array in given.items():
            if array.shape != (num,):
                raise ValueError(f"{name} must have shape ({num},) for {num} transitions, got {array.shape}.")
            if name in ("terminated", "ends") and array.dtype != bool:
                raise ValueError(f"{name} must be of dtype bool, got {array.dtype}.")
        if given["actions"].dtype.kind not in "iu" or given["actions"].min() < 0:
            raise ValueError(
                f"actions must be whole numbers >= 0, got {given['actions'].dtype} with minimum {given['actions'].min()}."
            )
        for name, array in (("observations", obs), ("rewards", given["rewards"]), ("next_observations", next_obs)):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} must be finite, got {np.count_nonzero(~np.isfinite(array))} numbers that are not.")
        if "ends" not in given:
            differs = (next_obs[:-1] != obs[1:]).any(axis=tuple(range(1, obs.ndim)))  # (T-1,)
            given["ends"] = np.append(differs, False)
        fields = (
            obs,
            given["actions"].astype(np.int64, copy=False),
            given["rewards"],
            next_obs,
            given["terminated"],
            given["ends"] | given["terminated"],
        )
        for name, value in zip(self.__dataclass_fields__, fields, strict=True):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """T."""
        return len(self.actions)

    def __getitem__(self, index: slice) -> Transitions:
        """Return consecutive transitions; a trajectory that is cut by the slice counts as continued."""
        parts = (self.observations, self.actions, self.rewards, self.next_observations, self.terminated, self.ends)
        if index.step not in (None, 1):
            raise ValueError(f"index must be a slice without a step, for instance data[:100], got {index!r}.")
        return Transitions(*(part[index] for part in parts))

    def ended(self) -> Transitions:
        """Return the same transitions; the trajectory ends with the last one."""
        ends = np.append(self.ends[:-1], True)
        return Transitions(self.observations, self.actions, self.rewards, self.next_observations, self.terminated, ends)

    @classmethod
    def concatenate(cls, parts: Sequence[Transitions]) -> Transitions:
        """Join transitions; a trajectory that has not ended in one part goes on in the next."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @classmethod
    def from_rollout(cls, rollout: RolloutLike) -> Transitions:
        """Take over what `FiniteMDP.simulate` of rlopt_envs returns."""
        terminated = rollout.terminated
        return cls(rollout.states[:-1], rollout.actions, rollout.rewards, rollout.next_states, terminated, terminated)

    @classmethod
    def from_replay(cls, replay: Replay) -> Transitions:
        """Read everything that a replay holds, oldest first, one environment after the other.

        Trajectories end where the replay knows an end of an episode, a cut or a reset, and between environments. Rewards are those
        stored (float32, not normalised).

        Raises:
            ValueError: If the replay is empty, its actions are not Discrete, or its observations are a Dict.
        """
        storage = replay.storage
        if not isinstance(replay.action_space, spaces.Discrete):
            raise ValueError(f"actions of the replay must be Discrete, got {replay.action_space}.")
        if storage.is_dict or len(storage) == 0:
            what = f"observations {replay.observation_space}" if storage.is_dict else "an empty one"
            raise ValueError(f"replay must hold transitions with array observations, got {what}.")
        parts = []
        for stream in range(storage.n_envs):
            slots = storage.to_slots(np.arange(storage.num_filled_rows) * storage.n_envs + stream)
            fields = storage.gather(slots)
            obs, next_obs = storage.observation(slots, fields), storage.next_observation(slots, fields)
            assert isinstance(obs, np.ndarray)
            assert isinstance(next_obs, np.ndarray)
            if isinstance(replay.observation_space, spaces.Discrete):
                obs, next_obs = obs[:, 0], next_obs[:, 0]  # (T, 1) -> (T,)
            ends = storage.num_steps(slots, "newer", within_episode=True) == 0
            # The newest transition of the last environment is followed by nothing; only a finished episode ends with it.
            last = stream == storage.n_envs - 1
            ended = bool(fields["terminated"][-1, 0]) or bool(storage.truncated(slots[-1:])[0])
            ends[-1] = ended or not last
            terminated = fields["terminated"][:, 0] > 0
            parts.append(cls(obs, fields["actions"][:, 0], fields["rewards"][:, 0], next_obs, terminated, ends))
        return cls.concatenate(parts)


def collect(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any],
    num_steps: int,
    policy: Policy | None = None,
    seed: int | None = None,
) -> Transitions:
    """Let a policy act and return the transitions, one environment after the other for a vector environment.

    The environment is reset at the start, and whenever an episode ends.

    Args:
        env: A Gymnasium environment, or a vector environment that resets in the next or the same step, with Discrete actions.
        num_steps: Transitions over all environments, >= 1, a multiple of their number.
        policy: What acts; see `Policy`. None: uniformly random actions.
        seed: Seed of the environment and of the actions.

    Raises:
        ValueError: For actions that are not Discrete from 0, a wrong number of steps, or a vector environment that does not reset
            by itself.

    Example:
        >>> data = collect(gym.make("CartPole-v1"), 100, seed=0)
        >>> data.observations.shape, int(data.terminated.sum()) > 0
        ((100, 4), True)
    """
    vector = isinstance(env, VectorEnv)
    num_envs = env.num_envs if isinstance(env, VectorEnv) else 1
    space = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
    if not isinstance(space, spaces.Discrete) or space.start != 0:
        raise ValueError(f"actions of env must be Discrete and start at 0, got {space}.")
    if num_steps < 1 or num_steps % num_envs:
        raise ValueError(f"num_steps must be >= 1 and a multiple of the {num_envs} environments, got {num_steps}.")
    mode = env.metadata.get("autoreset_mode") if vector else None
    if vector and mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        raise ValueError(f"env must reset by itself (autoreset_mode NEXT_STEP or SAME_STEP), got {mode}.")
    rng = np.random.default_rng(seed)
    act = _as_function(policy, int(space.n))
    length = num_steps // num_envs
    streams: list[list[tuple[Any, ...]]] = [[] for _ in range(num_envs)]
    first, _ = env.reset(seed=int(rng.integers(2**31)))
    obs = np.array(first) if vector else np.array(first)[None]  # (num_envs, ...), a copy: some environments change theirs
    resetting = np.zeros(num_envs, bool)
    while any(len(stream) < length for stream in streams):
        actions = act(obs, rng)
        following, reward, terminated, truncated, infos = env.step(actions if vector else actions[0].item())
        following = np.array(following) if vector else np.array(following)[None]
        rewards, terminations, truncations = (np.atleast_1d(np.asarray(x)) for x in (reward, terminated, truncated))
        done = terminations | truncations
        for i in np.flatnonzero(~resetting).tolist():
            if len(streams[i]) < length:
                final = mode is AutoresetMode.SAME_STEP and done[i]
                next_obs = np.asarray(infos["final_obs"][i]) if final else following[i]
                streams[i].append((obs[i], actions[i], rewards[i], next_obs, terminations[i], done[i]))
        obs = following
        if mode is AutoresetMode.NEXT_STEP:
            resetting = done
        elif not vector and done[0]:
            obs = np.array(env.reset()[0])[None]
    for stream in streams[:-1]:
        stream[-1] = (*stream[-1][:-1], True)
    columns = zip(*(step for stream in streams for step in stream), strict=True)
    return Transitions(*(np.array(column) for column in columns))


def tabular_features(num_states: int, num_actions: int) -> FloatArray:
    """Return one coordinate for each pair of state and action, (S, A, S·A): the weights are then a table of Q-values.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> tabular_features(2, 2)[1, 0].tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    if num_states < 1 or num_actions < 1:
        raise ValueError(f"num_states and num_actions must be >= 1, got {num_states} and {num_actions}.")
    return np.eye(num_states * num_actions).reshape(num_states, num_actions, -1)


def _as_function(policy: Policy | None, num_actions: int) -> Callable[[NDArray[Any], np.random.Generator], NDArray[Any]]:
    if policy is None:
        return lambda obs, rng: rng.integers(num_actions, size=len(obs))
    if callable(policy):
        return policy
    table = np.asarray(policy, np.float64)
    if table.ndim != 2 or table.shape[1] != num_actions or (table < 0).any() or not np.allclose(table.sum(axis=1), 1.0):
        raise ValueError(f"policy must be probabilities of shape (S, {num_actions}) that sum to 1 in each row, got {table.shape}.")
    cumulative = np.cumsum(table, axis=1)[:, :-1]  # the last entry is 1
    return lambda obs, rng: np.count_nonzero(cumulative[obs] <= rng.random(len(obs))[:, None], axis=1)
