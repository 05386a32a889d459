"""Hindsight experience replay (HER): learn as if what was achieved had been the goal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Sampler
from rlopt.replay.storage import Observation

GoalSelection = Literal["future", "final", "episode", "random"]
ComputeReward = Callable[[NDArray[Any], NDArray[Any], list[dict[str, Any]]], NDArray[Any]]
_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


@dataclass(frozen=True)
class HindsightConfig:
    """Options of hindsight replay."""

    n_sampled_goal: int = 4
    """k >= 0: a sampled transition gets a hindsight goal with probability k / (k + 1)."""
    goal_selection_strategy: GoalSelection = "future"
    """Where the goal comes from: a later step of the episode, its last one, any of its steps, or any stored step."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.n_sampled_goal < 0:
            raise ValueError(f"n_sampled_goal must be at least 0, got {self.n_sampled_goal}.")
        if self.goal_selection_strategy not in ("future", "final", "episode", "random"):
            raise ValueError(
                f"goal_selection_strategy must be 'future', 'final', 'episode' or 'random', got {self.goal_selection_strategy!r}."
            )


class HindsightReplay(Replay):
    """Uniform replay in which most goals are replaced by achieved ones, with the reward computed anew.

    Observations are Dicts with `achieved_goal` and `desired_goal`. With ag_t the achieved goal before step t and T the steps of the
    episode so far, a sampled transition t gets, with probability k / (k + 1), the goal g = ag_{t'}:

    * "future": t' uniform on {t + 1, ..., T};
    * "final": t' = T;
    * "episode": t' uniform on {1, ..., T} as far as the steps are still stored;
    * "random": the achieved goal after any stored transition.

    Its reward becomes `compute_reward(ag_{t+1}, g, info)`; with n-step returns that of every step. `dones` stays what was stored.
    Unfinished episodes take part with the steps they have, so learning can start within the first episode.

    Stock Stable-Baselines3 agents and rlopt's pass their environment, as to `HerReplayBuffer`. Otherwise give `env` or
    `compute_reward`.

    Differs from the authors' release (Baselines): each transition is drawn uniformly, not first an episode and then a step of
    it, and the reward of a transition that keeps its goal is the stored one.

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        env: Vectorised environment whose `compute_reward(achieved_goal, desired_goal, infos)` is used; the infos are empty dicts.
        compute_reward: A function with that signature; it is used even if there is an `env`, which agents always pass.
        n_sampled_goal: See `HindsightConfig`.
        goal_selection_strategy: See `HindsightConfig`.
        sampler: What chooses the transitions, uniform by default; goals are replaced afterwards.
        **kwargs: As in `rlopt.replay.buffer.Replay`.

    Raises:
        ValueError: If the observation space has no goals.

    References: Andrychowicz et al., Hindsight experience replay, NeurIPS 2017, arXiv 1707.01495.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> box = spaces.Box(-9, 9, (1,))
        >>> space = spaces.Dict(observation=box, achieved_goal=box, desired_goal=box)
        >>> def compute_reward(achieved, desired, infos):
        ...     return -(np.abs(achieved - desired) > 0.5).astype(np.float32)[:, 0]
        >>> replay = HindsightReplay(
        ...     9, space, spaces.Discrete(2), "cpu", seed=0, compute_reward=compute_reward, goal_selection_strategy="final"
        ... )
        >>> for t in range(3):
        ...     obs = {key: np.full((1, 1), float(t), np.float32) for key in space}
        ...     obs["desired_goal"][:] = 9
        ...     next_obs = {key: obs[key] + (key != "desired_goal") for key in space}
        ...     replay.add(obs, next_obs, np.array([0]), np.array([-1.0]), np.array([t == 2]), [{}])
        >>> sorted(set(replay.sample(99).observations["desired_goal"].flatten().tolist()))
        [3.0, 9.0]
    """

    def __init__(
        self,
        *args: Any,
        env: VecEnv | None = None,
        compute_reward: ComputeReward | None = None,
        n_sampled_goal: int = HindsightConfig.n_sampled_goal,
        goal_selection_strategy: GoalSelection = HindsightConfig.goal_selection_strategy,
        sampler: Sampler | None = None,
        **kwargs: Any,
    ) -> None:
        self.config = HindsightConfig(n_sampled_goal, goal_selection_strategy)
        super().__init__(*args, sampler=Sampler() if sampler is None else sampler, **kwargs)
        space = self.observation_space
        if not isinstance(space, spaces.Dict) or not set(_GOAL_KEYS) <= set(space):
            raise ValueError(f"observation_space must be a Dict with the keys {', '.join(_GOAL_KEYS)}, got {space}.")
        self.env = env
        self.compute_reward = compute_reward

    def set_env(self, env: VecEnv) -> None:
        """Attach the environment that computes rewards (Stable-Baselines3 calls this when it loads a buffer)."""
        self.env = env

    def truncate_last_trajectory(self) -> None:
        """Nothing to do: if the next observation does not continue the episode, the storage ends the episode there."""

    def _signature(self) -> dict[str, Any]:
        return {**super()._signature(), "goals": asdict(self.config)}

    def __getstate__(self) -> dict[str, Any]:
        """For pickling by Stable-Baselines3: environments cannot be pickled."""
        return {**self.__dict__, "env": None}

    def _reward(self, achieved: NDArray[Any], desired: NDArray[Any]) -> NDArray[np.float32]:
        infos: list[dict[str, Any]] = [{} for _ in range(len(achieved))]
        if self.compute_reward is not None:
            rewards = self.compute_reward(achieved, desired, infos)
        elif self.env is not None:
            # All environments are alike: the first one answers for the batch.
            rewards = self.env.env_method("compute_reward", achieved, desired, infos, indices=[0])[0]
        else:
            raise ValueError("HindsightReplay needs env or compute_reward to compute rewards: give one of them, or call set_env.")
        return np.asarray(rewards, np.float32).reshape(len(achieved))

    def _goal_slots(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each slot the slot of the transition whose next achieved goal becomes the goal."""
        strategy, storage = self.config.goal_selection_strategy, self.storage
        if strategy == "random":
            return self.rng.integers(0, len(storage), len(slots))
        after = storage.num_steps(slots, "newer", within_episode=True)
        if strategy == "final":
            return storage.step(slots, after)
        before = storage.num_steps(slots, "older", within_episode=True) if strategy == "episode" else 0
        # Uniform on -before..after; at offset 0 the goal is what the transition itself reached, ag_{t+1}.
        return storage.step(slots, self.rng.integers(-before, after, endpoint=True))

    def _relabel(
        self,
        slots: NDArray[np.int64],
        path: NDArray[np.int64],
        obs: Observation,
        next_obs: Observation,
        rewards: NDArray[np.float32],
        run_length: int,
    ) -> None:
        assert isinstance(obs, dict)
        assert isinstance(next_obs, dict)
        k = self.config.n_sampled_goal
        runs = np.flatnonzero(self.rng.random(len(slots) // run_length) < k / (k + 1))
        if len(runs) == 0:
            return
        # A run has one goal: what is in the future of its last transition is in that of all.
        reached = self.storage.next_observation(self._goal_slots(slots[runs * run_length + run_length - 1]))
        assert isinstance(reached, dict)
        goals = np.repeat(reached["achieved_goal"], run_length, axis=0)  # (M, *goal_shape)
        chosen = (runs[:, None] * run_length + np.arange(run_length)).reshape(-1)  # (M,)
        num_steps = path.shape[1]
        achieved = next_obs["achieved_goal"][chosen]  # (M, *goal_shape)
        if num_steps > 1:
            along = self.storage.next_observation(path[chosen].reshape(-1))
            assert isinstance(along, dict)
            achieved = along["achieved_goal"]  # (M * n, *goal_shape)
        # Goals repeat for each step of a return: (M, ...) -> (M * n, ...); rewards come back as (M, n).
        rewards[chosen] = self._reward(achieved, np.repeat(goals, num_steps, axis=0)).reshape(len(chosen), num_steps)
        obs["desired_goal"][chosen] = goals
        next_obs["desired_goal"][chosen] = goals


# Stable-Baselines3 passes the environment to subclasses of its own class; this makes ours one in its eyes.
HerReplayBuffer.register(HindsightReplay)
