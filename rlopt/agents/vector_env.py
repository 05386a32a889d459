"""Gymnasium's vector environments as environments of the agents, whatever their autoreset mode."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import NormalizeObservation, NormalizeReward, RecordEpisodeStatistics
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

Mask = NDArray[np.bool_]
Columns = dict[str, NDArray[Any]]
"""Batched observations by key of a Dict space, or under the key "" for other spaces."""


def _reset_by_option(env: Any, mask: Mask) -> tuple[Any, Any]:
    obs, infos = env.reset(options={"reset_mask": mask.copy()})
    return obs, infos


def _reset_cartpole(env: Any, mask: Mask) -> tuple[Any, Any]:
    # Its `reset` knows no mask. This is what its `step` does for `prev_done`, with the same draws, one step earlier.
    env.state[:, mask] = env.np_random.uniform(low=env.low, high=env.high, size=(4, np.count_nonzero(mask)))
    env.steps[mask] = 0
    env.prev_done[mask] = False
    return env.state.T.astype(np.float32), {}


# Gymnasium's vector wrappers that refuse a reset of some environments or take it for one of all, and what replaces them.
_BROKEN_BY_MASKS = {RecordEpisodeStatistics: "VecMonitor", NormalizeObservation: "VecNormalize", NormalizeReward: "VecNormalize"}


def split_infos(infos: Any, num_envs: int) -> list[dict[str, Any]]:
    """Turn Gymnasium's infos, a dict of arrays, into one dict per environment.

    Args:
        infos: Arrays (num_envs, ...) or dicts of these. `_key` is a mask of the environments that have `key`; without a mask all
            have it. Other values go to all. A list of dicts is copied.
        num_envs: Number of environments.

    Example:
        >>> split_infos({"lives": np.array([3, 0]), "_lives": np.array([True, False])}, 2)
        [{'lives': 3}, {}]
    """
    if isinstance(infos, Sequence):
        return [dict(info) for info in infos]
    result: list[dict[str, Any]] = [{} for _ in range(num_envs)]
    for key, value in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        mask = infos.get(f"_{key}")
        values: Sequence[Any] | NDArray[Any]
        if isinstance(value, dict):
            values = split_infos(value, num_envs)
        elif getattr(value, "ndim", 0) > 0 and len(value) == num_envs:
            values = value.tolist() if value.ndim == 1 and value.dtype != object else value
        else:
            values = [value] * num_envs
        for i in range(num_envs) if mask is None else np.flatnonzero(mask).tolist():
            result[i][key] = values[i]
    return result


class GymnasiumVecEnv(VecEnv):
    """A `gymnasium.vector.VectorEnv` behind Stable-Baselines3's `VecEnv`, for rlopt's and Stable-Baselines3's agents.

    Agents expect that a finished environment is reset in the same step: `step` returns the first observation of the next episode,
    and the last one of the old is in `infos[i]["terminal_observation"]`. All three autoreset modes give that, and equal data:

    * SAME_STEP: the last observations are `infos["final_obs"]`, the last infos `infos["final_info"]`.
    * DISABLED: finished environments are reset with `options={"reset_mask": mask}`.
    * NEXT_STEP: likewise, instead of the reset in the next step, which ignores an action and would be stored as a transition from
      one episode to another. SyncVectorEnv, AsyncVectorEnv and CartPoleVectorEnv without wrappers allow it; others are refused.

    Statistics of episodes come from Stable-Baselines3's `VecMonitor` around this class, or from its `Monitor` or Gymnasium's
    `RecordEpisodeStatistics` around each environment. Infos of resets are in `reset_infos`.

    An environment that returns one array again and again, changed in place, loses its last observation in SAME_STEP mode inside
    Gymnasium; take another mode for it.

    `get_attr`, `set_attr` and `env_method` reach the environments in a SyncVectorEnv or AsyncVectorEnv. Another vector environment
    stands for all of its environments: it is asked once and the answer repeated.

    Args:
        env: The vector environment; its observations are Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these.

    Raises:
        TypeError: If `env` is not a vector environment.
        ValueError: If its observation space, its autoreset mode or one of its vector wrappers cannot be used.

    References: Farama Foundation, Vector environments' autoreset modes, https://farama.org/Vector-Autoreset-Mode.

    Example:
        >>> from stable_baselines3.common.vec_env import VecMonitor
        >>> from rlopt.agents import DQN
        >>> env = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        >>> env.metadata["autoreset_mode"]
        <AutoresetMode.NEXT_STEP: 'NextStep'>
        >>> agent = DQN("MlpPolicy", VecMonitor(GymnasiumVecEnv(env)), buffer_size=1000, device="cpu").learn(100)
        >>> agent.replay_buffer.size() * 2 == agent.num_timesteps
        True
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env, VectorEnv):
            raise TypeError(f"env must be a gymnasium.vector.VectorEnv, got {type(env).__name__}.")
        self.env = env
        self.spec = env.spec
        self._base: Any = env.unwrapped
        self._has_members = isinstance(self._base, (SyncVectorEnv, AsyncVectorEnv))
        space = env.single_observation_space
        self._spaces = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        for part in self._spaces.values():
            if not isinstance(part, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
                raise ValueError(f"observations must be Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these, got {space}.")
        self.autoreset_mode = self._read_mode()
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            self._masked_reset = self._find_masked_reset()
            self._mask_is_trusted = self._has_members or env is not self._base or self.autoreset_mode is AutoresetMode.NEXT_STEP
        self._must_copy = not (self._has_members and env is self._base and getattr(env, "copy", False))  # Its arrays may change.
        self._actions: NDArray[Any] = np.empty(0)
        super().__init__(env.num_envs, space, env.single_action_space)

    def _read_mode(self) -> AutoresetMode:
        # Older Gymnasium writes the mode into metadata that all environments of a class share: ask the object first.
        mode = self._base.autoreset_mode if self._has_members else self.env.metadata.get("autoreset_mode")
        try:
            return AutoresetMode(mode)
        except ValueError:
            raise ValueError(
                f"metadata['autoreset_mode'] of {self._base} must be a gymnasium.vector.AutoresetMode (NEXT_STEP, SAME_STEP or "
                f"DISABLED), got {mode!r}: set it to what the environment does."
            ) from None

    def _find_masked_reset(self) -> Callable[[Any, Mask], tuple[Any, Any]]:
        """How to reset finished environments so that they owe no reset any more."""
        wrapper = self.env
        while isinstance(wrapper, VectorWrapper):
            for broken, substitute in _BROKEN_BY_MASKS.items():
                if isinstance(wrapper, broken):
                    raise ValueError(
                        f"{broken.__name__} cannot be used in autoreset mode {self.autoreset_mode.name}, because it does not know "
                        f"resets of single environments: put {substitute} of stable_baselines3 around GymnasiumVecEnv instead."
                    )
            wrapper = wrapper.env
        # The processes of an AsyncVectorEnv without shared memory repeat in the next step a reset they were told to do.
        if self.autoreset_mode is AutoresetMode.DISABLED or (self._has_members and getattr(self._base, "shared_memory", True)):
            return _reset_by_option
        if isinstance(self.env, CartPoleVectorEnv):
            return _reset_cartpole
        raise ValueError(
            f"{self.env} cannot be used in autoreset mode NEXT_STEP, because its reset steps would be stored as transitions: make "
            "it with autoreset_mode SAME_STEP or DISABLED, or use a SyncVectorEnv, an AsyncVectorEnv with shared_memory=True, or a "
            "CartPoleVectorEnv without wrappers."
        )

    def reset(self) -> VecEnvObs:
        """Reset all environments, with the seeds of `seed` and the options of `set_options`, which are used once."""
        seed: Any = None
        if self._seeds[0] is not None:
            seed = list(self._seeds) if self._has_members else self._seeds[0]
        obs, infos = self.env.reset(seed=seed, options=self._options[0] or None)
        self.reset_infos = split_infos(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return self._to_obs(self._to_columns(obs, self._must_copy))

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Set the options of the next `reset`, one dict for all environments."""
        if isinstance(options, list) or "reset_mask" in (options or {}):
            raise ValueError("options must be one dict for all environments and without 'reset_mask': Gymnasium resets all alike.")
        super().set_options(options)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step, reset what is finished, and return observations in arrays of their own, rewards, dones and infos."""
        obs, rewards, terminations, truncations, vector_infos = self.env.step(self._actions)
        columns = self._to_columns(obs, self._must_copy)
        terminated, truncated = np.asarray(terminations, bool), np.asarray(truncations, bool)
        dones = terminated | truncated
        infos = split_infos(vector_infos, self.num_envs)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            self._take_final(infos, dones)
        elif dones.any():
            self._reset_finished(columns, infos, dones)
        for info, cut in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            info["TimeLimit.truncated"] = cut
        return self._to_obs(columns), np.array(rewards, np.float32), dones, infos

    def _take_final(self, infos: list[dict[str, Any]], dones: Mask) -> None:
        """Sort out what a vector environment says that reset in the same step."""
        for i, (done, reset_info) in enumerate(zip(dones.tolist(), infos, strict=True)):
            final_obs, info = reset_info.pop("final_obs", None), reset_info.pop("final_info", None)
            if not done:
                continue
            if final_obs is None:
                raise RuntimeError(f"{self.env} is in autoreset mode SAME_STEP but gave no infos['final_obs'] at an episode's end.")
            if info is None:  # some give no final_info: what they say belongs to the step
                info, reset_info = reset_info, {}
            elif "episode" in reset_info:  # written by RecordEpisodeStatistics around the vector environment
                info.setdefault("episode", reset_info.pop("episode"))
            final = self._to_columns(final_obs, copy=True)
            info["terminal_observation"] = self._to_obs({key: value[()] for key, value in final.items()})  # [()]: 0-d to scalar
            infos[i], self.reset_infos[i] = info, reset_info

    def _reset_finished(self, columns: Columns, infos: list[dict[str, Any]], dones: Mask) -> None:
        """Reset finished environments; their first observations take the place of the last in `columns`."""
        finished = np.flatnonzero(dones)
        last = {key: value[finished] for key, value in columns.items()}  # copies
        obs, reset_infos = self._masked_reset(self.env, dones)
        first = self._to_columns(obs, copy=False)
        if not self._mask_is_trusted and not dones.all():
            if any(not np.array_equal(first[key][~dones], value[~dones], equal_nan=True) for key, value in columns.items()):
                raise RuntimeError(
                    f"{self.env} in autoreset mode DISABLED ignores options['reset_mask'] and reset environments in the middle of "
                    "their episodes: take a SyncVectorEnv or an AsyncVectorEnv."
                )
            self._mask_is_trusted = True
        for key, value in columns.items():
            value[finished] = first[key][finished]
        split = split_infos(reset_infos, self.num_envs)
        for row, i in enumerate(finished.tolist()):
            infos[i]["terminal_observation"] = self._to_obs({key: value[row] for key, value in last.items()})
            self.reset_infos[i] = split[i]

    def _to_columns(self, obs: Any, copy: bool) -> Columns:
        make = np.array if copy else np.asarray
        return {key: make(obs[key] if key else obs, dtype=space.dtype) for key, space in self._spaces.items()}

    def _to_obs(self, columns: Columns) -> VecEnvObs:
        return columns if isinstance(self.observation_space, spaces.Dict) else columns[""]

    def _call_each(self, indices: VecEnvIndices, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a method of the chosen environments; an AsyncVectorEnv itself can only call it on all."""
        chosen, base = list(self._get_indices(indices)), self._base
        if isinstance(base, SyncVectorEnv):
            return [base.envs[i].get_wrapper_attr(name)(*args, **kwargs) for i in chosen]
        if not isinstance(base, AsyncVectorEnv):
            return [self.get_attr(name, 0)[0](*args, **kwargs)] * len(chosen)
        for i in chosen:
            base.parent_pipes[i].send(("_call", (name, args, kwargs)))
        answers = {i: base.parent_pipes[i].recv() for i in chosen}
        base._raise_if_errors([answers[i][1] if i in answers else True for i in range(self.num_envs)])
        return [answers[i][0] for i in chosen]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Attribute of each environment."""
        if self._has_members:  # Asked for an attribute that is missing, the process of an AsyncVectorEnv would end.
            if not all(self._call_each(indices, "has_wrapper_attr", attr_name)):
                raise AttributeError(f"The environments in {self.env} have no attribute {attr_name!r}.")
            return self._call_each(indices, "get_wrapper_attr", attr_name)
        owner = self.env if hasattr(self.env, attr_name) else self._base
        return [getattr(owner, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of each environment to `value`."""
        if self._has_members:
            self._call_each(indices, "set_wrapper_attr", attr_name, value)
        elif set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(f"indices must name all environments, got {indices}: {self.env} has no separate environments.")
        else:
            setattr(self._base, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Result of a method of each environment."""
        return self._call_each(indices, method_name, *method_args, **method_kwargs)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """Whether each environment is inside such a wrapper; in other processes the names of classes decide."""
        if isinstance(self._base, SyncVectorEnv):
            return [is_wrapped(self._base.envs[i], wrapper_class) for i in self._get_indices(indices)]
        if not self._has_members:
            return [False for _ in self._get_indices(indices)]
        kinds = [wrapper_class]
        for kind in kinds:  # grows
            kinds += kind.__subclasses__()
        names = {kind.__name__ for kind in kinds}
        return [not names.isdisjoint(re.findall(r"\w+", text)) for text in self._call_each(indices, "__str__")]

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """One RGB image per environment."""
        images: Any = self.env.render()
        return [None] * self.num_envs if images is None else list(images)

    def close(self) -> None:
        """Close the vector environment."""
        self.env.close()
