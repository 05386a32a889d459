import gc

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlopt.replay import UniformReplay
from rlopt.replay.packed import PACK_LIMIT, RECYCLE_LIMIT, Column, PackedRows
from tests.replay.histories import History, make_history, make_replay


def image_replay(layout: str = "plain") -> tuple[UniformReplay, History]:
    """A replay whose batches of 64 frames take more than `RECYCLE_LIMIT` bytes."""
    history = make_history(0, num_adds=60, capacity=50, observations="image")
    replay = make_replay("uniform", history, layout=layout)
    for add in history.adds:
        add.to(replay)
    assert isinstance(replay, UniformReplay)
    assert RECYCLE_LIMIT < 64 * 36 * 36
    return replay, history


def address(tensor: th.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@given(
    st.lists(st.tuples(st.sampled_from(["f4", "f8", "u1", "i8"]), st.integers(1, 3), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 9),
    st.integers(0, 2**31),
)
def test_gather_returns_what_was_written(columns: list[tuple[str, int, bool]], num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # "large" columns are above the packing limit and get a matrix of their own
    fields = [
        Column(f"c{i}", (width, PACK_LIMIT if large else 1), np.dtype(dtype), group="a" if i % 2 else "b")
        for i, (dtype, width, large) in enumerate(columns)
    ]
    table = PackedRows(fields, num_rows)
    truth = {}
    for field in fields:
        truth[field.name] = rng.integers(0, 200, (num_rows, *field.shape)).astype(field.dtype)
        table.view(field.name)[:] = truth[field.name]
    index = rng.integers(0, num_rows, 7)
    gathered = table.gather(index)
    assert gathered.keys() == truth.keys()
    for name, values in gathered.items():
        assert values.dtype == truth[name].dtype
        assert np.array_equal(values, truth[name][index])
    assert table.gather(index, "a").keys() == {field.name for field in fields if field.group == "a"}
    assert table.nbytes == sum(part.nbytes for part in truth.values()) == PackedRows.nbytes_of(fields, num_rows)
    larger = table.grown(num_rows + 3)
    assert all(np.array_equal(larger.view(name)[:num_rows], truth[name]) for name in truth)


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_a_batch_that_is_kept_is_never_changed(layout: str) -> None:
    replay, _ = image_replay(layout)
    kept = [replay.sample(64) for _ in range(20)]
    copies = [(batch.observations.clone(), batch.next_observations.clone()) for batch in kept]
    for _ in range(50):
        replay.sample(64)
    for batch, (obs, next_obs) in zip(kept, copies, strict=True):
        assert th.equal(batch.observations, obs)
        assert th.equal(batch.next_observations, next_obs)


def derived_row(batch: th.Tensor) -> th.Tensor:
    return batch[3]


def derived_view(batch: th.Tensor) -> th.Tensor:
    return batch.view(64, -1)[:, ::7]


def derived_array(batch: th.Tensor) -> NDArray[np.uint8]:
    return batch.numpy()[5:9].T


def derived_detached(batch: th.Tensor) -> th.Tensor:
    return batch.detach().unsqueeze(0)


@pytest.mark.parametrize("derive", [derived_row, derived_view, derived_array, derived_detached])
def test_a_view_of_a_batch_keeps_its_memory(derive) -> None:
    replay, _ = image_replay()
    view = derive(replay.sample(64).observations)
    before = np.asarray(view).copy()
    gc.collect()
    for _ in range(20):
        replay.sample(64)
    assert np.array_equal(np.asarray(view), before)


def test_memory_of_a_dropped_batch_is_used_again() -> None:
    replay, _ = image_replay()
    addresses = set()
    for _ in range(30):
        batch = replay.sample(64)
        addresses |= {address(batch.observations), address(batch.next_observations)}
        del batch
    assert len(addresses) <= 4


def test_observations_and_next_observations_never_share_memory() -> None:
    for layout in ("plain", "shared"):
        replay, _ = image_replay(layout)
        for _ in range(5):
            batch = replay.sample(64)
            assert address(batch.observations) != address(batch.next_observations)


def test_writing_into_a_batch_does_not_change_the_buffer() -> None:
    replay, _ = image_replay()
    before = replay.observations.copy()
    replay.sample(64).observations.zero_()
    replay.sample(2).observations.zero_()
    assert np.array_equal(replay.observations, before)
