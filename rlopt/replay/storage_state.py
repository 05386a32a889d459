"""The state of a storage: what belongs to no row, and rows, taken together or in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rlopt.replay.storage import TransitionStorage


def take_state(storage: TransitionStorage, copy: bool = True) -> dict[str, Any]:
    """Everything stored, the transitions as copies or as views."""
    return {**head_state(storage), "parts": parts_state(storage, storage.num_added - storage.num_filled_rows, copy)}


def give_state(storage: TransitionStorage, state: Mapping[str, Any]) -> None:
    """Take over a state of a storage with the same spaces, capacity, layout and number of environments."""
    load_head(storage, state)
    for part in state["parts"]:
        load_rows(storage, part)


def head_state(storage: TransitionStorage) -> dict[str, Any]:
    """What belongs to no row: small, whatever is stored."""
    state: dict[str, Any] = {"num_added": storage.num_added, "open": storage._open.copy()}
    if storage.layout == "shared":
        with_record = np.flatnonzero(storage._final_id[: len(storage)] >= 0)
        state["newest"] = {name: storage._final.view(name)[: storage.n_envs].copy() for name in storage._obs_names}
        state["final_slots"], state["final_ids"] = with_record, storage._final_id[with_record]
        state["free_ids"] = storage._free_ids[: storage._num_free].copy()
        state["num_final"] = storage._final.num_rows
    return state


def parts_state(storage: TransitionStorage, first: int, copy: bool = True) -> list[dict[str, Any]]:
    """The rows from `first` on, counted from the first one ever written, in two parts if the ring begins anew between them.

    With the shared layout also the final observations of episodes that ended in them, or in the row before: that one may have
    been the newest when it was taken, and have ended later by a reset from outside.
    """
    wrap = max(first, storage.num_added - storage.pos)
    return [_part(storage, begin, end, copy) for begin, end in ((first, wrap), (wrap, storage.num_added)) if begin < end]


def _part(storage: TransitionStorage, first: int, last: int, copy: bool) -> dict[str, Any]:
    begin = first % storage.num_rows * storage.n_envs
    slots = slice(begin, begin + (last - first) * storage.n_envs)
    state: dict[str, Any] = {
        "first": first,
        "columns": {column.name: _taken(storage._rows.view(column.name)[slots], copy) for column in storage._rows.columns},
        "episode_step": _taken(storage._episode_step[slots], copy),
        "truncated": _taken(storage._truncated[slots], copy),
    }
    if storage.layout == "shared":
        from_row = max(first - 1, storage.num_added - storage.num_filled_rows)
        numbers = np.arange(from_row * storage.n_envs, last * storage.n_envs)  # of transitions, from the first one ever written
        ids = storage._final_id[numbers % storage.capacity]
        ended = ids >= storage.n_envs
        state["ended"] = numbers[ended]
        state["final"] = {name: storage._final.view(name)[ids[ended]] for name in storage._obs_names}
    return state


def load_head(storage: TransitionStorage, state: Mapping[str, Any]) -> None:
    """Take over what `head_state` returned; the rows have to follow by `load_rows`, the oldest first."""
    storage.num_resets += 1
    storage.num_added = int(state["num_added"])
    storage._open = np.array(state["open"], bool)
    storage._num_open = int(np.count_nonzero(storage._open))
    if storage.layout == "shared":
        num_final = int(state["num_final"])
        while storage._final.num_rows < num_final:
            storage._grow_final(num_final - storage._final.num_rows)
        for name, value in state["newest"].items():
            storage._final.view(name)[: storage.n_envs] = value
        storage._final_id[:] = -1
        storage._final_id[state["final_slots"]] = state["final_ids"]
        free = np.concatenate([np.arange(num_final, storage._final.num_rows, dtype=np.int32), state["free_ids"]])
        storage._free_ids = np.zeros(storage._final.num_rows, np.int32)
        storage._free_ids[: len(free)] = free
        storage._num_free = len(free)


def load_rows(storage: TransitionStorage, state: Mapping[str, Any]) -> None:
    """Take over one of the parts that `parts_state` returned, but for rows that are older than the oldest of the head."""
    oldest = storage.num_added - storage.num_filled_rows
    given, num = int(state["first"]), len(state["truncated"]) // storage.n_envs
    first, end = max(given, oldest), given + num
    if end <= first:
        return
    begin = first % storage.num_rows * storage.n_envs
    slots = slice(begin, begin + (end - first) * storage.n_envs)
    skip = (first - given) * storage.n_envs
    for name, value in state["columns"].items():
        storage._rows.view(name)[slots] = value[skip:]
    storage._episode_step[slots] = state["episode_step"][skip:]
    storage._truncated[slots] = state["truncated"][skip:]
    if storage.layout == "shared":
        stored = state["ended"] >= oldest * storage.n_envs
        ids = storage._final_id[state["ended"][stored] % storage.capacity]
        for name, value in state["final"].items():
            storage._final.view(name)[ids] = value[stored]
    if end == storage.num_added:
        _find_ends(storage)


def _find_ends(storage: TransitionStorage) -> None:
    """Compute the steps to the end of each episode: it ends where another begins behind, or where the newest is not open."""
    rows = storage.all_slots().reshape(-1, storage.n_envs)
    is_last = np.empty(rows.shape, bool)
    is_last[:-1] = storage._episode_step[rows[1:]] == 0
    is_last[-1] = ~storage._open
    places = np.arange(len(rows), dtype=np.int32)[:, np.newaxis]
    never = np.int32(2 * storage.num_rows)
    next_end = np.minimum.accumulate(np.where(is_last, places, never)[::-1], axis=0)[::-1]
    storage._steps_to_end[rows] = np.where(next_end == never, -1, next_end - places)


def _taken(view: NDArray[Any], copy: bool) -> NDArray[Any]:
    return view.copy() if copy else view
