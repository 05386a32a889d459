"""Transitions of several environments in time order: the ring that every replay of rlopt stands on.

A *slot* is the number of a place in the ring, `row * n_envs + env`. All environments step together, so a row holds one
transition of each and the rows of one environment are its *stream*. A *logical* index counts from the oldest stored transition
(0) to the newest; `to_logical` and `to_slots` translate, and nobody else needs to know where the ring wraps.

One function, `num_steps`, says how far one may walk from a slot inside its stream without leaving the stored data or, when
asked, the episode. n-step returns, reverse and introspective windows, and hindsight goals all use it.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import get_action_dim

from rlopt.replay.columns import check_space, observation_columns
from rlopt.replay.packed import Column, PackedRows
from rlopt.replay.storage_state import give_state, take_state

Layout = Literal["plain", "shared"]
Direction = Literal["older", "newer"]
Observation = NDArray[Any] | dict[str, NDArray[Any]]

_BOOKKEEPING_BYTES = 4 + 4 + 1  # episode_step, steps_to_end, truncated
_FINAL_SHARE = 1 / 32  # first size of the table of final observations, as a share of the capacity


class TransitionStorage:
    """Ring of transitions with `terminated` and `truncated` kept apart.

    Layouts:
        * "plain": each transition stores its observation and its next observation.
        * "shared": an observation is stored once; the next observation of a transition is the observation of its
          successor. Where that is not so (last step of an episode, newest step, an environment that was reset from outside)
          the true next observation lies in a side table, which grows with the number of stored episode ends. Batches are equal to
          the plain layout's bit for bit.

    An observation that differs from the next observation of the step before, without a recorded end, marks a reset from outside
    (for instance a second `learn()`): the episode ends there and nothing is bootstrapped or summed across it.

    Args:
        capacity: Transitions over all environments, > 0. Rounded up to a multiple of `n_envs`.
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        n_envs: Number of environments that step together.
        layout: "plain" or "shared".
        memmap_path: Folder for memory-mapped files. A subfolder is made in it and removed with the storage.

    Raises:
        ValueError: For a capacity below 1, an unknown layout, or an unsupported space.
        MemoryError: If the data cannot fit, before anything is allocated.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        n_envs: int = 1,
        layout: Layout = "plain",
        memmap_path: str | Path | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"buffer_size must be at least 1, got {capacity}.")
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}.")
        if layout not in ("plain", "shared"):
            raise ValueError(f"layout must be 'plain' or 'shared', got {layout!r}.")
        self.n_envs = n_envs
        self.num_rows = -(-capacity // n_envs)
        self.capacity = self.num_rows * n_envs
        self.layout: Layout = layout
        self.is_dict = isinstance(observation_space, spaces.Dict)

        obs_columns = observation_columns(observation_space, "obs")
        next_columns = observation_columns(observation_space, "next_obs")
        check_space(action_space, "action_space")
        action_dtype = np.dtype(np.float32 if action_space.dtype == np.float64 else action_space.dtype)
        columns = [
            *(column if layout == "plain" else column._replace(group="observations") for column in obs_columns),
            *(next_columns if layout == "plain" else ()),
            Column("actions", (get_action_dim(action_space),), action_dtype),
            Column("rewards", (1,), np.float32),
            Column("terminated", (1,), np.float32),
        ]
        num_final = n_envs + max(1, int(self.capacity * _FINAL_SHARE)) if layout == "shared" else 0

        record_bytes = PackedRows.nbytes_of(columns, self.capacity) + PackedRows.nbytes_of(obs_columns, num_final)
        self.nbytes = record_bytes + self.capacity * _BOOKKEEPING_BYTES
        if layout == "shared":
            self.nbytes += 4 * (self.capacity + num_final)  # which record of the side table, and which of them are free
        folder = self._scratch_folder(memmap_path)
        _refuse_if_too_large(record_bytes, self.nbytes, self.capacity, layout, folder)

        self.num_added = 0  # rows ever written; the ring holds the last `num_rows` of them
        self.num_resets = 0  # times that all rows were forgotten or replaced
        self._rows = PackedRows(columns, self.capacity, folder)
        self._episode_step = np.zeros(self.capacity, np.int32)  # steps since the episode began
        self._steps_to_end = np.full(self.capacity, -1, np.int32)  # -1 while the episode goes on
        self._truncated = np.zeros(self.capacity, bool)
        self._open = np.zeros(n_envs, bool)  # whether the stream's newest transition may still be continued
        self._num_open = 0
        self._env_numbers = np.arange(n_envs)
        self._obs_names = [column.name for column in obs_columns]
        self._next_names = [column.name for column in next_columns]
        self._make_columns()
        if layout == "shared":
            # Records 0..n_envs-1 hold the next observations of the newest row; further ones those of finished episodes.
            if folder is not None:
                (folder / "final").mkdir()
            self._final_folder = None if folder is None else folder / "final"
            self._final = PackedRows(obs_columns, num_final, self._final_folder)
            self._final_id = np.full(self.capacity, -1, np.int32)
            self._free_ids = np.arange(n_envs, num_final, dtype=np.int32)[::-1].copy()  # a stack
            self._num_free = len(self._free_ids)

    def _make_columns(self) -> None:
        """Views of shape (num_rows, n_envs, ...) for writing a row."""
        self._obs_columns = {name: self.column(name) for name in self._obs_names}
        next_columns = self._next_names if self.layout == "plain" else self._obs_names
        self._next_columns = {name: self.column(name) for name in next_columns}
        self._action_column = self.column("actions")
        self._reward_column = self.column("rewards")[..., 0]
        self._terminated_column = self.column("terminated")[..., 0]
        by_row = (self.num_rows, self.n_envs)
        self._truncated_column = self._truncated.reshape(by_row)
        self._to_end_column = self._steps_to_end.reshape(by_row)
        self._step_column = self._episode_step.reshape(by_row)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: views would lose their matrix, so they are made anew."""
        state = {name: value for name, value in self.__dict__.items() if not name.endswith(("_column", "_columns"))}
        if "_final_folder" in state:
            state["_final_folder"] = None  # a copy lives in memory; the files stay the original's
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        self.__dict__.update(state)
        self._make_columns()

    def _scratch_folder(self, memmap_path: str | Path | None) -> Path | None:
        if memmap_path is None:
            return None
        parent = Path(memmap_path)
        try:
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="replay-", dir=parent))
        except OSError as error:
            raise ValueError(f"memmap_path must be a folder that can be written, got {str(parent)!r} ({error}).") from error
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    # ------------------------------------------------------------------ where things are

    @property
    def pos(self) -> int:
        """Row that the next `add` writes."""
        return self.num_added % self.num_rows

    @property
    def full(self) -> bool:
        """Whether every row was written."""
        return self.num_added >= self.num_rows

    @property
    def num_filled_rows(self) -> int:
        """Rows that hold data."""
        return min(self.num_added, self.num_rows)

    def __len__(self) -> int:
        """Transitions stored, over all environments."""
        return self.num_filled_rows * self.n_envs

    @property
    def newest_slots(self) -> NDArray[np.int64]:
        """Slots of the row written last, (n_envs,)."""
        return (self.num_added - 1) % self.num_rows * self.n_envs + np.arange(self.n_envs)

    def to_slots(self, logical: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots of logical indices (0 = oldest; the environments of a row are neighbours)."""
        if not self.full:
            return logical
        return (logical + self.pos * self.n_envs) % self.capacity

    def to_logical(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Logical indices of slots."""
        if not self.full:
            return slots
        return (slots - self.pos * self.n_envs) % self.capacity

    def all_slots(self) -> NDArray[np.int64]:
        """Every stored slot, oldest first."""
        return self.to_slots(np.arange(len(self)))

    def age(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows written after each slot's row: 0 for the newest."""
        return (self.num_added - 1 - slots // self.n_envs) % self.num_rows

    def num_steps(self, slots: NDArray[np.int64], direction: Direction, within_episode: bool) -> NDArray[np.int64]:
        """How many steps one may walk from each slot inside its stream.

        Args:
            slots: Where to start, (B,).
            direction: "older" walks back in time, "newer" forward.
            within_episode: Whether to stop at the first or last transition of the episode as well.

        Returns:
            Steps to the last reachable transition, (B,), >= 0. Never crosses the write head.
        """
        age = self.age(slots)
        if direction == "older":
            stored = self.num_filled_rows - 1 - age
            return np.minimum(stored, self._episode_step[slots]) if within_episode else stored
        if not within_episode:
            return age
        to_end = self._steps_to_end[slots].astype(np.int64)
        return np.where(to_end >= 0, to_end, age)

    def step(self, slots: NDArray[np.int64], count: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """The slots `count` steps newer (older if negative) in the same streams. `num_steps` says how far is allowed."""
        return (slots + count * self.n_envs) % self.capacity

    # ------------------------------------------------------------------ writing

    def add(
        self,
        obs: Observation,
        next_obs: Observation,
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> NDArray[np.int64]:
        """Write one transition of every environment and return their slots (n_envs,).

        Args:
            obs: (n_envs, *obs_shape), or a dict of these.
            next_obs: Same form. The true successor, also at the end of an episode.
            action: (n_envs, action_dim).
            reward: (n_envs,).
            terminated: (n_envs,), the environment ended; nothing is bootstrapped.
            truncated: (n_envs,), the episode was cut; the value is bootstrapped.
        """
        row = self.pos
        begin = row * self.n_envs
        observations, next_observations = self._parts(obs, self._obs_columns), self._parts(next_obs, self._next_columns)
        if self._num_open:
            self._close_interrupted(observations)
        if self.layout == "shared" and self.full:
            self._release(self._final_id[begin : begin + self.n_envs])

        for column, value in zip(self._obs_columns.values(), observations, strict=True):
            column[row] = value
        self._action_column[row] = action.reshape(self._action_column.shape[1:])
        self._reward_column[row] = reward
        self._terminated_column[row] = terminated
        self._truncated_column[row] = truncated
        self._to_end_column[row] = -1
        self._step_column[row] = (self._step_column[row - 1] + 1) * self._open
        self.num_added += 1

        if self.layout == "plain":
            for column, value in zip(self._next_columns.values(), next_observations, strict=True):
                column[row] = value
        else:
            for name, value in zip(self._obs_columns, next_observations, strict=True):
                self._final.view(name)[: self.n_envs] = value
            self._final_id[begin : begin + self.n_envs] = self._env_numbers
        if np.count_nonzero(terminated) or np.count_nonzero(truncated):
            done = terminated | truncated
            self._end_episodes(np.flatnonzero(done))
            self._open = ~done
            self._num_open = self.n_envs - int(np.count_nonzero(done))
        elif self._num_open < self.n_envs:
            self._open = np.ones(self.n_envs, bool)
            self._num_open = self.n_envs
        return self._env_numbers + begin

    def _parts(self, obs: Observation, columns: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """An observation of all environments as one array per column, in the shape and dtype of a row of it."""
        if isinstance(obs, dict):
            values = [obs[name.split("/", 1)[1]] for name in columns]  # names are "obs/key"
        else:
            values = [obs]
        pairs = zip(values, columns.values(), strict=True)
        return [np.asarray(value, column.dtype).reshape(column.shape[1:]) for value, column in pairs]

    def _close_interrupted(self, observations: list[NDArray[Any]]) -> None:
        """End the episodes whose newest next observation is not what comes now: they were reset from outside."""
        row = (self.num_added - 1) % self.num_rows
        if self.layout == "plain":
            expected = [column[row] for column in self._next_columns.values()]
        else:
            expected = [self._final.view(name)[: self.n_envs] for name in self._obs_columns]
        # Compared as bytes: equal NaNs continue an episode, and the shared layout stays exact to the bit.
        if any(given.tobytes() != known.tobytes() for given, known in zip(observations, expected, strict=True)):
            differs = np.zeros(self.n_envs, bool)
            for env in range(self.n_envs):
                differs[env] = any(g[env].tobytes() != k[env].tobytes() for g, k in zip(observations, expected, strict=True))
            differs &= self._open
            self._end_episodes(np.flatnonzero(differs))
            self._open = self._open & ~differs
            self._num_open = int(np.count_nonzero(self._open))
        if self.layout == "shared":
            # The next observation of a continued episode is from now on the observation of the row to come.
            self._final_id.reshape(self.num_rows, self.n_envs)[row][self._open] = -1

    def _end_episodes(self, envs: NDArray[np.int64]) -> None:
        """Mark the newest transition of `envs` as the last of its episode."""
        last = self.newest_slots[envs]
        length = np.minimum(self._episode_step[last].astype(np.int64) + 1, self.num_filled_rows)
        first = np.repeat(np.cumsum(length) - length, length)
        offset = np.arange(int(length.sum())) - first  # 0..length-1 for each episode, one after the other
        self._steps_to_end[self.step(np.repeat(last, length), -offset)] = offset
        if self.layout == "shared":
            if self._num_free < len(envs):
                self._grow_final(len(envs))
            self._num_free -= len(envs)
            ids = self._free_ids[self._num_free : self._num_free + len(envs)].copy()
            for name in self._obs_names:
                view = self._final.view(name)
                view[ids] = view[envs]
            self._final_id[last] = ids

    def _release(self, ids: NDArray[np.int32]) -> None:
        """Give back the side-table records of transitions that are overwritten."""
        freed = ids[ids >= self.n_envs]
        self._free_ids[self._num_free : self._num_free + len(freed)] = freed
        self._num_free += len(freed)
        ids[...] = -1

    def _grow_final(self, at_least: int) -> None:
        old = self._final.num_rows
        new = min(max(2 * old, old + at_least), self.capacity + 2 * self.n_envs)
        extra = PackedRows.nbytes_of(self._final.columns, new - old)
        _refuse_if_too_large(extra, extra, self.capacity, self.layout, self._final_folder)
        folder = None
        if self._final_folder is not None:
            folder = self._final_folder / str(new)
            folder.mkdir()
        self._final = self._final.grown(new, folder)
        self.nbytes += extra + 4 * (new - old)
        free = np.arange(old, new, dtype=np.int32)[::-1]
        stack = np.empty(new, np.int32)
        stack[: self._num_free] = self._free_ids[: self._num_free]
        stack[self._num_free : self._num_free + len(free)] = free
        self._free_ids, self._num_free = stack, self._num_free + len(free)

    # ------------------------------------------------------------------ reading

    def gather(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """All columns of one-step transitions: "obs*", "next_obs*", "actions", "rewards", "terminated" (B, ...)."""
        fields = self._rows.gather(slots)
        if self.layout == "shared":
            fields.update(self._shared_next(slots))
        return fields

    def make_blocks(self, num: int) -> tuple[list[NDArray[Any]], dict[str, NDArray[Any]]]:
        """Memory for `gather_into` (B = num), and what `gather` returns as views of it; with the plain layout."""
        return self._rows.make_blocks(num)

    def gather_into(self, slots: NDArray[np.int64], blocks: Sequence[NDArray[Any]]) -> None:
        """Like `gather`, into blocks of `make_blocks(B)`."""
        self._rows.gather_into(slots, blocks)

    def observation(self, slots: NDArray[np.int64], fields: Mapping[str, NDArray[Any]] | None = None) -> Observation:
        """Observations of `slots` in the form of the space (an array or a dict), taken from `fields` if given."""
        fields = self._rows.gather(slots) if fields is None else fields
        return self._assemble(fields, self._obs_names)

    def next_observation(self, slots: NDArray[np.int64], fields: Mapping[str, NDArray[Any]] | None = None) -> Observation:
        """True next observations of `slots`, also at episode ends and for the newest transition."""
        return self._assemble(self.gather(slots) if fields is None else fields, self._next_names)

    def _assemble(self, fields: Mapping[str, NDArray[Any]], names: Iterable[str]) -> Observation:
        if self.is_dict:
            return {name.split("/", 1)[1]: fields[name] for name in names}
        return fields[next(iter(names))]

    def _shared_next(self, slots: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        ids = self._final_id[slots]
        successors = self._rows.gather(self.step(slots, 1), "observations")
        at_end = np.flatnonzero(ids >= 0)
        final = self._final.gather(ids[at_end].astype(np.int64)) if len(at_end) else {}
        out = {}
        for name, next_name in zip(self._obs_names, self._next_names, strict=True):
            out[next_name] = successors[name]
            if len(at_end):
                out[next_name][at_end] = final[name]
        return out

    def rewards(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Rewards of slots of any shape, same shape."""
        return self._rows.view("rewards")[:, 0][slots]

    def terminated(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """1 where the environment terminated, same shape as `slots`."""
        return self._rows.view("terminated")[:, 0][slots]

    def truncated(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the episode was cut at the slot without terminating."""
        return self._truncated[slots]

    def column(self, name: str) -> NDArray[Any]:
        """A stored column as a view of shape (num_rows, n_envs, ...)."""
        view = self._rows.view(name)
        return view.reshape(self.num_rows, self.n_envs, *view.shape[1:])

    # ------------------------------------------------------------------ state

    def clear(self) -> None:
        """Forget everything."""
        if self.layout == "shared":
            self._free_ids = np.arange(self.n_envs, self._final.num_rows, dtype=np.int32)[::-1].copy()
            self._num_free = len(self._free_ids)
            self._final_id[:] = -1
        self.num_added = 0
        self.num_resets += 1
        self._open = np.zeros(self.n_envs, bool)
        self._num_open = 0

    def state_dict(self, copy: bool = True) -> dict[str, Any]:
        """Everything stored, the transitions as copies or as views; see `rlopt.replay.storage_state`."""
        return take_state(self, copy)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of a storage with the same spaces, capacity, layout and number of environments."""
        give_state(self, state)


def _refuse_if_too_large(record_bytes: int, nbytes: int, capacity: int, layout: Layout, folder: Path | None) -> None:
    """Raise before training what would otherwise kill it hours later."""
    if folder is None:
        available = psutil.virtual_memory().available
        if nbytes > available:
            hints = ["a smaller buffer_size", "memmap_path=<folder on a disk>"]
            if layout == "plain":
                hints.insert(1, "layout='shared' (stores observations once)")
            raise MemoryError(
                f"A replay buffer of {capacity:,} transitions takes {nbytes / 1e9:.2f} GB, but {available / 1e9:.2f} GB of memory "
                f"are free. Use {', or '.join(hints)}."
            )
    elif record_bytes > (free := shutil.disk_usage(folder).free):
        raise MemoryError(
            f"A replay buffer of {capacity:,} transitions takes {record_bytes / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free in "
            f"{str(folder.parent)!r}. Use a smaller buffer_size, layout='shared', or another memmap_path."
        )
