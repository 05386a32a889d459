"""The replay buffer: a storage and a sampler behind Stable-Baselines3's `ReplayBuffer` interface."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from rlopt.files.state_file import read_state, write_state
from rlopt.replay.batch import ReplayBatch, TDErrorFunction
from rlopt.replay.reuse import BatchMemories, BatchMemory
from rlopt.replay.sampler import Draw, Sampler, ScoreFunction
from rlopt.replay.sequences import PivotPlace, SequenceBatch, fold, plan_sequences
from rlopt.replay.storage import Layout, Observation, TransitionStorage

SCORE_BATCH_SIZE = 4096
"""Transitions per forward pass when all stored transitions are scored. Fits the caches of a CPU for ordinary networks."""

UNSCORED_DRAWS = 100
"""Draws without any reported TD error after which a replay that needs them says so."""


class Replay(ReplayBuffer):
    """Base of all replays; drops into Stable-Baselines3's off-policy agents by `replay_buffer_class=`.

    Args:
        buffer_size: Capacity in transitions over all environments; rounded up to a multiple of `n_envs`.
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        device: Device of the sampled tensors.
        n_envs: Number of parallel environments.
        optimize_memory_usage: Stable-Baselines3's word for `layout="shared"`. Unlike there, it works with time limits, several
            environments, Dict observations and n-step returns.
        handle_timeout_termination: Whether an episode cut by a time limit is bootstrapped. With False a cut counts as an end.
        sampler: What chooses the transitions.
        n_steps: Steps of the return, >= 1. Returns never cross an episode's end or the write head.
        gamma: Discount of n-step returns, in (0, 1]; needed if `n_steps` > 1. rlopt's agents pass theirs.
        layout: "plain", or "shared" to store each observation once (half the memory for images, equal batches).
        memmap_path: Folder on a disk for memory-mapped storage. The files are scratch and vanish with the buffer; `save` keeps
            data.
        reuse_memory: Whether `sample` may write over the transitions of the batch before (not over `indices` and importance
            weights): quicker, for a learning step that keeps no batch. Done for one-step batches of the plain layout on the CPU
            that are not normalised.
        seed: Seed of the sampler's own generator. None derives one from NumPy's global generator without advancing it, so that
            the seed of a stock Stable-Baselines3 agent governs the replay as well.

    Raises:
        ValueError: For arguments outside the stated sets.
        MemoryError: If the buffer cannot fit, with its size and what to do.
    """

    storage: TransitionStorage
    sampler: Sampler

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        sampler: Sampler,
        n_steps: int = 1,
        gamma: float | None = None,
        layout: Layout = "plain",
        memmap_path: str | Path | None = None,
        reuse_memory: bool = False,
        seed: int | np.random.SeedSequence | None = None,
    ) -> None:
        if n_steps < 1 or n_steps != int(n_steps):
            raise ValueError(f"n_steps must be a whole number of at least 1, got {n_steps}.")
        if gamma is not None and not 0.0 < gamma <= 1.0:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}.")
        if n_steps > 1 and gamma is None:
            raise ValueError(f"gamma must be given for n_steps={n_steps}: pass the agent's gamma in replay_buffer_kwargs.")
        if optimize_memory_usage and layout == "plain":
            layout = "shared"
        self.storage = TransitionStorage(buffer_size, observation_space, action_space, n_envs, layout, memmap_path)
        # Not ReplayBuffer's own constructor: it would allocate arrays that are never used.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.optimize_memory_usage = layout == "shared"
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps = n_steps
        self.gamma = gamma
        self.seed = seed
        self.memmap_path = memmap_path
        self.reuse_memory = reuse_memory
        self._can_reuse = n_steps == 1 and layout == "plain" and self.device.type == "cpu"
        self._memories = BatchMemories()
        if self.storage.capacity != buffer_size:
            warnings.warn(
                f"buffer_size={buffer_size} is not a multiple of n_envs={n_envs}: rounded up to {self.storage.capacity}.",
                stacklevel=3,  # past the subclass's constructor
            )
        self.buffer_size = self.storage.num_rows  # Stable-Baselines3 counts rows of n_envs transitions
        self.rng = np.random.Generator(np.random.PCG64(_seed_sequence(seed)))
        self.sampler = sampler
        self.sampler.bind(self.storage, self.rng)
        self._never = np.zeros(n_envs, bool)
        self.num_uniform_batches = 0
        self.num_chosen_batches = 0
        self._draws_without_scores = 0

    # ------------------------------------------------------------------ what is in it

    def __len__(self) -> int:
        """Transitions stored, over all environments."""
        return len(self.storage)

    def __bool__(self) -> bool:
        """An empty buffer is still a buffer."""
        return True

    @property
    def capacity(self) -> int:
        """Transitions that fit, over all environments."""
        return self.storage.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of storage and sampler; known at construction (a shared layout may grow with the number of episode ends)."""
        return self.storage.nbytes + self.sampler.nbytes

    @property
    def observations(self) -> Observation:  # type: ignore[override]
        """Stored observations, (num_rows, n_envs, *obs_shape) or a dict of these, as views."""
        return self._stored("obs")

    @property
    def next_observations(self) -> Observation:  # type: ignore[override]
        """Stored next observations; only the plain layout has them."""
        if self.storage.layout == "shared":
            raise AttributeError("next_observations are not stored by layout='shared'; use storage.next_observation(slots).")
        return self._stored("next_obs")

    def _stored(self, prefix: str) -> Observation:
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self.storage.column(f"{prefix}/{key}") for key in self.observation_space}
        return self.storage.column(prefix)

    @property
    def actions(self) -> NDArray[Any]:  # type: ignore[override]
        """Stored actions, (num_rows, n_envs, action_dim), a view."""
        return self.storage.column("actions")

    @property
    def rewards(self) -> NDArray[np.float32]:  # type: ignore[override]
        """Stored rewards, (num_rows, n_envs), a view."""
        rewards: NDArray[np.float32] = self.storage.column("rewards")[..., 0]
        return rewards

    @property
    def timeouts(self) -> NDArray[np.float32]:  # type: ignore[override]
        """1 where an episode was cut without terminating, (num_rows, n_envs), a copy."""
        slots = np.arange(self.storage.capacity).reshape(self.storage.num_rows, self.n_envs)
        timeouts: NDArray[np.float32] = self.storage.truncated(slots).astype(np.float32)
        return timeouts

    @property
    def dones(self) -> NDArray[np.float32]:  # type: ignore[override]
        """1 where an episode ended or was cut, (num_rows, n_envs), a copy as in Stable-Baselines3 (batches differ: see there)."""
        dones: NDArray[np.float32] = np.maximum(self.storage.column("terminated")[..., 0], self.timeouts)
        return dones

    def reset(self) -> None:
        """Forget all transitions; options and generator stay."""
        self.storage.clear()
        self.sampler.clear()
        self.pos, self.full = 0, False

    # ------------------------------------------------------------------ writing

    def add(
        self,
        obs: Observation,
        next_obs: Observation,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of every environment (Stable-Baselines3's signature).

        Args:
            obs: (n_envs, *obs_shape) or a dict of these.
            next_obs: The true successors, also at the end of an episode.
            action: (n_envs, action_dim) or (n_envs,).
            reward: (n_envs,).
            done: (n_envs,), whether the episode ended, by termination or by truncation.
            infos: One dict per environment; "TimeLimit.truncated" says that an end was a cut.
        """
        terminated = np.asarray(done).astype(bool, copy=False).reshape(self.n_envs)
        truncated = self._never
        if self.handle_timeout_termination and np.count_nonzero(terminated):
            truncated = np.fromiter((info.get("TimeLimit.truncated", False) for info in infos), bool, self.n_envs) & terminated
            terminated = terminated & ~truncated
        slots = self.storage.add(obs, next_obs, np.asarray(action), np.asarray(reward), terminated, truncated)
        self.sampler.on_add(slots)
        self.pos, self.full = self.storage.pos, self.storage.full

    # ------------------------------------------------------------------ learning

    def begin_phase(
        self,
        gradient_steps: int,
        td_error_fn: TDErrorFunction | None = None,
        progress: float | None = None,
        env: VecNormalize | None = None,
    ) -> None:
        """Announce a learning phase of `gradient_steps` draws.

        Args:
            gradient_steps: Draws until the next phase, > 0.
            td_error_fn: TD errors of a batch under the current networks; used by replays that rank stored transitions.
            progress: Share of the training that is done, in [0, 1]; drives schedules.
            env: Normalises observations and rewards before they are scored.
        """
        if gradient_steps < 1:
            raise ValueError(f"gradient_steps must be at least 1, got {gradient_steps}.")
        if progress is not None and not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must be in [0, 1], got {progress}.")
        score: ScoreFunction | None = None
        if td_error_fn is not None and self.sampler.needs_phase:
            self._draws_without_scores = -gradient_steps  # the draws of this phase have scores
            score = partial(self._score, td_error_fn=td_error_fn, env=env)
        self.sampler.begin_phase(gradient_steps, score, progress)

    def _score(self, slots: NDArray[np.int64], td_error_fn: TDErrorFunction, env: VecNormalize | None) -> NDArray[np.float64]:
        scores = np.empty(len(slots))
        for start in range(0, len(slots), SCORE_BATCH_SIZE):
            part = slots[start : start + SCORE_BATCH_SIZE]
            scores[start : start + len(part)] = _absolute(td_error_fn(self._make_batch(Draw(part), env)), len(part))
        return scores

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBatch:  # type: ignore[override]
        """Draw a batch.

        Args:
            batch_size: Transitions wanted, > 0. Reverse and introspective replay may return fewer at the edge of the data.
            env: Normalises observations and rewards.

        Raises:
            ValueError: If the buffer is empty or `batch_size` < 1.
        """
        draw = self._draw(batch_size)
        if not (self.reuse_memory and self._can_reuse and env is None):
            return self._make_batch(draw, env)
        return self._filled_memory(draw).batch(draw.slots, draw.weights)

    def sample_arrays(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBatch:
        """Draw the batch that `sample` would, as NumPy arrays, which may be written over by the next call.

        Args:
            batch_size: As in `sample`.
            env: As there.

        Raises:
            ValueError: As there.
        """
        draw = self._draw(batch_size)
        if not self._can_reuse or env is not None:
            return self._make_arrays(draw, env)
        return self._filled_memory(draw).arrays(draw.slots, draw.weights)

    def _filled_memory(self, draw: Draw) -> BatchMemory:
        memory = self._memories.of(self.storage, len(draw.slots))
        memory.fill(draw.slots)
        self._relabel(draw.slots, draw.slots[:, None], memory.obs, memory.next_obs, memory.rewards, 1)
        return memory

    def sample_sequences(
        self,
        batch_size: int,
        length: int,
        burn_in: int = 0,
        env: VecNormalize | None = None,
        *,
        pivot_at: PivotPlace = "random",
    ) -> SequenceBatch:
        """Draw a batch of sequences of consecutive transitions of one episode, for networks with a memory.

        The sampler draws one transition per sequence, the *pivot*, as `sample` does; `weights` and `indices` are the pivots'. The
        sequence is laid around it: `length` transitions to learn from, and `burn_in` before them, from which a memory comes to know
        the past. It stays within the pivot's episode and what is stored of it; where that is shorter, it begins with padding
        (`valid` False), so the last position is always a transition.

        * `pivot_at="random"`: the pivot's place among the last `length` positions is random, as far as the episode goes on after
          it. The first and the last transition of an episode are learned from about half as often as those in the middle.
        * `pivot_at="end"`: the pivot is the last position, and the last transition of an episode is learned from `length` times
          less often than those in the middle.

        Reverse and introspective replay draw neighbours as pivots, so their sequences overlap. Hindsight replay gives all positions
        of a sequence one goal, drawn for the last of them.

        Args:
            batch_size: Sequences wanted, > 0; as in `sample` there may be fewer.
            length: Positions to learn from, > 0.
            burn_in: Positions before them, >= 0.
            env: Normalises observations and rewards.
            pivot_at: See above.

        Raises:
            ValueError: If the buffer is empty, or for arguments outside these sets.

        Example:
            >>> from rlopt.replay import UniformReplay
            >>> replay = UniformReplay(100, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", seed=0)
            >>> for t in range(3):
            ...     obs = np.full((1, 1), t / 10, np.float32)
            ...     replay.add(obs, obs + 0.1, np.array([0]), np.array([float(t)]), np.array([t == 2]), [{}])
            >>> batch = replay.sample_sequences(1, length=4, burn_in=1)
            >>> batch.rewards[0, :, 0].tolist(), batch.learn[0].tolist()
            ([0.0, 0.0, 0.0, 1.0, 2.0], [False, False, True, True, True])
        """
        draw = self._draw(batch_size)
        plan = plan_sequences(self.storage, draw.slots, length, burn_in, pivot_at, self.rng)
        flat = self._make_batch(Draw(plan.slots.reshape(-1)), env, run_length=plan.slots.shape[1])
        return fold(flat, plan, draw.slots, self._weights(draw), burn_in)

    def _draw(self, batch_size: int) -> Draw:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if self.storage.num_added == 0:
            raise ValueError("sample: the replay buffer is empty; add transitions first (learning_starts > 0).")
        if self.sampler.needs_phase or self.sampler.needs_update:
            self._count_unscored_draw()
        draw = self.sampler.draw(batch_size)
        if draw.uniform:
            self.num_uniform_batches += 1
        else:
            self.num_chosen_batches += 1
        return draw

    def update(self, indices: NDArray[np.int64], td_errors: th.Tensor | NDArray[Any]) -> None:
        """Report the TD errors of a sampled batch; replays that do not care ignore it.

        Args:
            indices: `batch.indices`, (B,).
            td_errors: (B,) or (B, 1), sign irrelevant.

        Raises:
            ValueError: If there is not one TD error per index.
        """
        if self.sampler.needs_update:
            self._draws_without_scores = 0
            self.sampler.update(indices, _absolute(td_errors, len(indices)))

    def _count_unscored_draw(self) -> None:
        self._draws_without_scores += 1
        if self._draws_without_scores == UNSCORED_DRAWS:
            remedy = "Use an agent of rlopt.agents"
            if self.sampler.needs_phase:
                remedy += ", or pass callback=rlopt.agents.ReplayPhaseCallback() to learn() of a Stable-Baselines3 agent"
            warnings.warn(
                f"{type(self).__name__} got no TD errors in {UNSCORED_DRAWS} draws and samples as if all were equal. {remedy}.",
                stacklevel=4,  # past `_draw` and what called it
            )

    def _get_samples(self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None) -> ReplayBatch:  # type: ignore[override]
        return self._make_batch(Draw(np.asarray(batch_inds, np.int64)), env)

    def _make_batch(self, draw: Draw, env: VecNormalize | None, run_length: int = 1) -> ReplayBatch:
        """The transitions of a draw; `run_length` neighbours in the batch are of one episode and belong together."""
        batch: Any = self._make_arrays(draw, env, run_length)
        return ReplayBatch(
            observations=self._tensors(batch.observations),
            actions=self._tensor(batch.actions),
            next_observations=self._tensors(batch.next_observations),
            dones=self._tensor(batch.dones),
            rewards=self._tensor(batch.rewards),
            discounts=None if batch.discounts is None else self._tensor(batch.discounts),
            indices=batch.indices,
            weights=self._weights(draw),
        )

    def _make_arrays(self, draw: Draw, env: VecNormalize | None, run_length: int = 1) -> ReplayBatch:
        slots = draw.slots
        fields = self.storage.gather(slots)
        obs = self.storage.observation(slots, fields)
        discounts: NDArray[np.float32] | None = None
        if self.n_steps == 1:
            next_obs = self.storage.next_observation(slots, fields)
            rewards, dones = fields["rewards"], fields["terminated"]  # (B, 1)
            self._relabel(slots, slots[:, None], obs, next_obs, rewards, run_length)
            rewards = self._normalize_reward(rewards, env)
        else:
            steps = np.minimum(self.storage.num_steps(slots, "newer", within_episode=True) + 1, self.n_steps)  # (B,)
            path = self.storage.step(slots[:, None], np.minimum(np.arange(self.n_steps), steps[:, None] - 1))  # (B, n)
            last = path[:, -1]
            next_obs = self.storage.next_observation(last)
            dones = self.storage.terminated(last)[:, None]
            step_rewards = self.storage.rewards(path)  # (B, n), the last one repeated where the return is shorter
            self._relabel(slots, path, obs, next_obs, step_rewards, run_length)
            step_rewards = self._normalize_reward(step_rewards, env)
            assert self.gamma is not None
            powers = np.float32(self.gamma) ** np.arange(self.n_steps, dtype=np.float32)
            used = np.arange(self.n_steps) < steps[:, None]
            rewards = (step_rewards * powers * used).sum(1, keepdims=True, dtype=np.float32)
            discounts = (np.float32(self.gamma) ** steps.astype(np.float32))[:, None]
        weights = np.ones((len(slots), 1), np.float32) if draw.weights is None else draw.weights[:, None]
        arrays: Any = (self._normalize_obs(obs, env), fields["actions"], self._normalize_obs(next_obs, env), dones, rewards)
        return ReplayBatch._make((*arrays, discounts, slots, weights))  # of arrays

    def _weights(self, draw: Draw) -> th.Tensor:
        """Importance weights of a draw, (B, 1)."""
        if draw.weights is None:
            return self._tensor(np.ones((len(draw.slots), 1), np.float32))
        return self._tensor(draw.weights[:, None])

    def _relabel(
        self,
        slots: NDArray[np.int64],
        path: NDArray[np.int64],
        obs: Observation,
        next_obs: Observation,
        rewards: NDArray[np.float32],
        run_length: int,
    ) -> None:
        """Change observations and step rewards (B, n) of a batch in place; hindsight replay does."""

    def _tensor(self, array: NDArray[Any]) -> th.Tensor:
        tensor = th.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)

    def _tensors(self, obs: Observation) -> th.Tensor | dict[str, th.Tensor]:
        if isinstance(obs, dict):
            return {key: self._tensor(value) for key, value in obs.items()}
        return self._tensor(obs)

    # ------------------------------------------------------------------ state

    def _signature(self) -> dict[str, Any]:
        """What must agree between a saved buffer and the one that takes its state."""
        return {
            "version": 2,
            "replay": type(self).__name__,
            "sampler": type(self.sampler).__name__,
            "capacity": self.storage.capacity,
            "n_envs": self.n_envs,
            "layout": self.storage.layout,
            "n_steps": self.n_steps,
            "gamma": self.gamma if self.n_steps > 1 else None,
            "options": {} if self.sampler.config is None else asdict(self.sampler.config),
            "observation_space": str(self.observation_space),
            "action_space": str(self.action_space),
        }

    def _default_options(self) -> dict[str, Any]:
        return {} if self.sampler.config is None else asdict(type(self.sampler.config)())

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """Everything: transitions, sampler, generator and counters. A buffer that loads it goes on exactly as this one.

        Args:
            copy: With False the transitions are views, which further `add` calls change.
        """
        return {
            "signature": self._signature(),
            "storage": self.storage.state_dict(copy),
            "sampler": self.sampler.state_dict(),
            "generator": self.rng.bit_generator.state,
            "num_uniform_batches": self.num_uniform_batches,
            "num_chosen_batches": self.num_chosen_batches,
            "draws_without_scores": self._draws_without_scores,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state.

        Raises:
            ValueError: If it comes from a buffer with another class, capacity, layout, number of environments or space.
        """
        if "signature" not in state:
            raise ValueError("This is not the state of a replay buffer: it has no signature.")
        for name, mine in self._signature().items():
            theirs = state["signature"].get(name)
            if name == "options" and isinstance(theirs, Mapping):  # an option that is newer than the state had its default
                theirs = {**self._default_options(), **theirs}
            if theirs != mine:
                raise ValueError(
                    f"The saved replay buffer has {name}={theirs!r}, this one {mine!r}: build it with the same options."
                )
        self.storage.load_state_dict(state["storage"])
        self.sampler.clear()
        self.sampler.load_state_dict(state["sampler"])
        self.rng.bit_generator.state = dict(state["generator"])
        self.num_uniform_batches = int(state["num_uniform_batches"])
        self.num_chosen_batches = int(state["num_chosen_batches"])
        self._draws_without_scores = int(state["draws_without_scores"])
        self.pos, self.full = self.storage.pos, self.storage.full

    def save(self, path: str | Path) -> None:
        """Write the state to one file (NumPy's npz with JSON inside, no pickle), under a temporary name first."""
        write_state(self.state_dict(copy=False), path)

    def load(self, path: str | Path) -> None:
        """Read a state written by `save`.

        Raises:
            ValueError: If the file is missing, damaged, foreign, or of a buffer with other options.
        """
        self.load_state_dict(read_state(path))


def _absolute(td_errors: th.Tensor | NDArray[Any], num: int) -> NDArray[np.float64]:
    if isinstance(td_errors, th.Tensor):
        td_errors = td_errors.detach().cpu().numpy()
    if np.size(td_errors) != num:
        raise ValueError(f"td_errors must be one number per transition, shape ({num},) or ({num}, 1), got {np.shape(td_errors)}.")
    errors: NDArray[np.float64] = np.abs(td_errors, dtype=np.float64).reshape(-1)
    if not np.isfinite(errors).all():
        raise ValueError(f"td_errors must be finite, got {np.count_nonzero(~np.isfinite(errors))} that are not: learning diverged.")
    return errors


def _seed_sequence(seed: int | np.random.SeedSequence | None) -> np.random.SeedSequence:
    if seed is None:
        # Stable-Baselines3 seeds NumPy's global generator just before it makes the buffer. Its state is read, not advanced.
        state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
        return np.random.SeedSequence([int(word) for word in state["key"][:4]] + [int(state["pos"])])
    return seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
