from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlopt.replay.storage import TransitionStorage
from rlopt.replay.windows import DIRECTIONS, window
from tests.replay.histories import History, histories, make_history


class FixedOffset:
    """Stands for a generator whose next number is known."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def integers(self, high: int) -> int:
        return self.offset % high


def fill(history: History, layout: Any = "plain") -> TransitionStorage:
    storage = TransitionStorage(history.capacity, history.observation_space, history.action_space, history.n_envs, layout)
    for add in history.adds:
        storage.add(*add)
    return storage


@given(
    history=histories(observations=("discrete",), max_adds=80),
    length=st.integers(1, 12),
    direction=st.sampled_from(DIRECTIONS),
    mode=st.sampled_from(["free", "respect_episodes", "interleave"]),
    offset=st.integers(0, 11),
)
def test_window_equals_the_twins(history: History, length: int, direction: Any, mode: str, offset: int) -> None:
    storage, twin = fill(history), history.twin()
    respect, interleave = mode == "respect_episodes", mode == "interleave"
    offset %= length
    for slot in storage.all_slots().tolist():
        rng: Any = FixedOffset(offset)
        given_ = window(storage, slot, length, rng, direction, respect, interleave).tolist()
        assert given_ == twin.window(slot, length, direction, respect, offset, interleave)
        assert slot in given_


@pytest.mark.parametrize("n_envs", [1, 3])
def test_windows_are_consecutive_and_never_cross_the_write_head(n_envs: int) -> None:
    # A ring of 50 rows that 137 rows went through holds rows 87..136 of each stream.
    history = make_history(0, num_adds=137, n_envs=n_envs, capacity=50 * n_envs, end_share=0.1)
    storage, twin = fill(history), history.twin()
    rng = np.random.default_rng(0)
    for slot in storage.all_slots().tolist():
        for direction in DIRECTIONS:
            slots = window(storage, slot, 10, rng, direction)  # type: ignore[arg-type]
            envs, rows = zip(*[twin.place(found) for found in slots.tolist()], strict=True)
            assert len(set(envs)) == 1
            assert set(np.diff(rows)) == {1 if direction == "forward" else -1}
            assert min(rows) >= 87
            assert max(rows) <= 136
            assert len(rows) == 10


def test_random_offset_is_uniform() -> None:
    storage = fill(make_history(0, num_adds=100, capacity=100, end_share=0.0))
    rng = np.random.default_rng(0)
    newest = np.array([window(storage, 50, 5, rng, "random")[0] for _ in range(5000)])
    counts = np.bincount(newest - 50, minlength=5)
    assert counts.sum() == 5000
    assert np.abs(counts - 1000).max() < 120  # 4 standard deviations of a share of one fifth
