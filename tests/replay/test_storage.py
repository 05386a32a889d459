import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlopt.replay import UniformReplay
from rlopt.replay.packed import PackedRows
from rlopt.replay.storage import TransitionStorage
from tests.replay.histories import (
    OBSERVATION_SPACES,
    History,
    assert_batches_equal,
    equal_bits,
    histories,
    make_history,
    make_replay,
)

BOX = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(2)


def make_storage(history: History, layout: Any = "plain", memmap_path: Path | None = None) -> TransitionStorage:
    return TransitionStorage(history.capacity, history.observation_space, history.action_space, history.n_envs, layout, memmap_path)


def allocated_bytes(storage: TransitionStorage) -> int:
    """Bytes of all arrays that the storage holds, views not counted."""
    tables = [part for part in vars(storage).values() if isinstance(part, PackedRows)]
    arrays = [part for part in vars(storage).values() if isinstance(part, np.ndarray) and part.base is None]
    return sum(part.nbytes for part in [*tables, *arrays])


def scalars(values: Any, num: int) -> NDArray[Any]:
    return np.full((num, 3), values, np.float32)


@given(histories(), st.sampled_from(["plain", "shared"]))
def test_walks_ages_and_order_equal_the_twins(history: History, layout: str) -> None:
    storage, twin = make_storage(history, layout), history.twin(0)
    for add in history.adds:
        written = storage.add(*add)
        twin.add(*add)
        assert written.tolist() == [twin.slot(env, twin.num_added - 1) for env in range(history.n_envs)]
    places = [twin.slot(env, row) for env, row in twin.places()]
    slots = storage.all_slots()
    assert slots.tolist() == places
    assert len(storage) == len(places)
    assert storage.to_logical(slots).tolist() == list(range(len(places)))
    assert storage.newest_slots.tolist() == places[-history.n_envs :]
    assert storage.age(slots).tolist() == [twin.age(slot) for slot in places]
    for direction in ("older", "newer"):
        for within_episode in (False, True):
            steps = storage.num_steps(slots, direction, within_episode)
            assert steps.tolist() == [twin.num_steps(slot, direction, within_episode) for slot in places]
    assert storage.truncated(slots).tolist() == [twin.at(slot).truncated for slot in places]
    assert storage.terminated(slots).tolist() == [twin.at(slot).terminated for slot in places]


@given(histories(), st.sampled_from(["plain", "shared"]))
def test_observations_of_every_moment_equal_the_twins(history: History, layout: str) -> None:
    storage, twin = make_storage(history, layout), history.twin(0)
    for t, add in enumerate(history.adds):
        storage.add(*add)
        twin.add(*add)
        if t % 7 and t != len(history.adds) - 1:
            continue
        slots = storage.all_slots()
        obs, next_obs = storage.observation(slots), storage.next_observation(slots)
        for i, slot in enumerate(slots.tolist()):
            step = twin.at(slot)
            for given_, expected in ((obs, step.obs), (next_obs, step.next_obs)):
                part = {key: value[i] for key, value in given_.items()} if isinstance(given_, dict) else given_[i]
                assert equal_bits(part, expected)


@given(histories())
def test_shared_layout_equals_plain_in_every_bit_also_memory_mapped(tmp_path_factory: Any, history: History) -> None:
    folder = tmp_path_factory.mktemp("maps")
    replays = [
        make_replay("uniform", history),
        make_replay("uniform", history, layout="shared"),
        make_replay("uniform", history, layout="shared", memmap_path=folder),
        make_replay("uniform", history, layout="plain", memmap_path=folder),
    ]
    for t, add in enumerate(history.adds):
        for replay in replays:
            add.to(replay)
        if t % 3 == 0:
            first, *others = [replay.sample(8) for replay in replays]
            for other in others:
                assert_batches_equal(first, other)


@pytest.mark.parametrize("memory_mapped", [False, True])
def test_side_table_grows_when_every_step_ends_an_episode_and_is_used_again(tmp_path: Path, memory_mapped: bool) -> None:
    history = make_history(0, num_adds=700, n_envs=3, capacity=300, end_share=1.0, observations="small_image")
    storage = make_storage(history, "shared", tmp_path if memory_mapped else None)
    plain = make_storage(history)
    at_first = storage.nbytes
    sizes = []
    for add in history.adds:
        storage.add(*add)
        plain.add(*add)
        sizes.append(storage.nbytes)
    assert at_first < sizes[-1] <= sizes[199]  # grown while the ring filled, then never again
    slots = storage.all_slots()
    assert np.array_equal(storage.next_observation(slots), plain.next_observation(slots))
    assert np.array_equal(storage.observation(slots), plain.observation(slots))


def test_a_storage_with_one_row_keeps_the_newest_transition_only() -> None:
    for layout in ("plain", "shared"):
        history = make_history(3, num_adds=9, n_envs=2, capacity=1, end_share=0.4)
        storage = make_storage(history, layout)
        assert storage.capacity == 2
        for add in history.adds:
            storage.add(*add)
            assert np.array_equal(storage.observation(np.arange(2)), add.obs)
            assert np.array_equal(storage.next_observation(np.arange(2)), add.next_obs)
            assert storage.num_steps(np.arange(2), "older", False).tolist() == [0, 0]


def test_reset_from_outside_ends_the_episode_without_termination() -> None:
    storage = TransitionStorage(10, BOX, DISCRETE)
    flags = np.array([False])
    for start, stop in ((0, 1), (1, 2), (5, 6), (6, 7)):  # the step from 2 to 5 never happened
        storage.add(scalars(start, 1), scalars(stop, 1), np.array([0]), np.array([0.0]), flags, flags)
    slots = np.arange(4)
    assert storage.num_steps(slots, "newer", True).tolist() == [1, 0, 1, 0]
    assert storage.num_steps(slots, "older", True).tolist() == [0, 1, 0, 1]
    assert storage.terminated(slots).tolist() == [0, 0, 0, 0]
    assert storage.truncated(slots).tolist() == [False] * 4


def test_an_equal_nan_continues_an_episode() -> None:
    storage = TransitionStorage(10, BOX, DISCRETE, layout="shared")
    flags = np.array([False])
    for start, stop in ((0.0, np.nan), (np.nan, 1.0)):
        storage.add(scalars(start, 1), scalars(stop, 1), np.array([0]), np.array([0.0]), flags, flags)
    assert storage.num_steps(np.array([0]), "newer", True).tolist() == [1]


def test_observations_are_compared_in_the_stored_dtype() -> None:
    storage = TransitionStorage(10, BOX, DISCRETE)
    flags = np.array([False])
    for start in (0.1, 0.2):  # float64 values that float32 cannot hold
        obs = np.full((1, 3), start)
        storage.add(obs, obs + 0.1, np.array([0]), np.array([0.0]), flags, flags)
    assert storage.num_steps(np.array([0]), "newer", True).tolist() == [1]


def test_clear_forgets_transitions_and_open_episodes() -> None:
    for layout in ("plain", "shared"):
        history = make_history(1, num_adds=50, n_envs=2, capacity=31, end_share=0.5)
        used, fresh = make_storage(history, layout), make_storage(history, layout)
        for add in history.adds[:33]:
            used.add(*add)
        used.clear()
        assert len(used) == 0
        for add in history.adds[34:]:
            used.add(*add)
            fresh.add(*add)
        slots = fresh.all_slots()
        assert used.all_slots().tolist() == slots.tolist()
        assert np.array_equal(used.next_observation(slots), fresh.next_observation(slots))
        for direction in ("older", "newer"):
            assert np.array_equal(used.num_steps(slots, direction, True), fresh.num_steps(slots, direction, True))


# ---------------------------------------------------------------------- bytes


@pytest.mark.parametrize("observations", sorted(OBSERVATION_SPACES))
@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_nbytes_is_known_at_construction_and_is_what_is_allocated(observations: str, layout: str) -> None:
    history = make_history(0, num_adds=1, n_envs=4, capacity=1000, observations=observations)
    storage = make_storage(history, layout)
    # Apart from a handful of bytes per environment (flags of open episodes, slots of their newest records).
    assert abs(storage.nbytes - allocated_bytes(storage)) <= 16 * 4
    replay = make_replay("uniform", history, layout=layout) if observations != "goal" else None
    assert replay is None or replay.nbytes == storage.nbytes


def test_nbytes_follows_the_growth_of_the_side_table() -> None:
    history = make_history(0, num_adds=200, n_envs=2, capacity=200, end_share=0.9)
    storage = make_storage(history, "shared")
    for add in history.adds:
        storage.add(*add)
    assert abs(storage.nbytes - allocated_bytes(storage)) <= 16 * 2


def test_shared_layout_takes_about_half_the_memory_for_images() -> None:
    image = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    plain = TransitionStorage(1000, image, DISCRETE, layout="plain")
    shared = TransitionStorage(1000, image, DISCRETE, layout="shared")
    assert shared.nbytes < 0.53 * plain.nbytes


def test_a_record_of_an_ordinary_task_is_as_small_as_its_numbers() -> None:
    # 2 observations of 17 float32, action 6, reward, terminated; and 9 bytes of bookkeeping.
    storage = TransitionStorage(100, spaces.Box(-1, 1, (17,), np.float32), spaces.Box(-1, 1, (6,), np.float32))
    assert storage.nbytes == 100 * (4 * (2 * 17 + 6 + 2) + 9)


def test_buffer_of_a_terabyte_is_refused_before_allocation_with_the_ways_out() -> None:
    space = spaces.Box(-1, 1, (10,), np.float32)
    with pytest.raises(MemoryError) as refusal:
        UniformReplay(10**10, space, DISCRETE, "cpu")  # 2 * 40 + 8 + 4 + 4 + 9 = 105 bytes each
    text = str(refusal.value)
    assert "10,000,000,000 transitions takes 1050.00 GB" in text
    assert all(way in text for way in ("smaller buffer_size", "layout='shared'", "memmap_path="))


def test_refusal_of_a_shared_buffer_does_not_recommend_what_is_chosen_already() -> None:
    with pytest.raises(MemoryError) as refusal:
        UniformReplay(10**11, BOX, DISCRETE, "cpu", layout="shared")
    assert "layout='shared'" not in str(refusal.value)
    assert "memmap_path=" in str(refusal.value)


def test_memory_mapped_buffer_larger_than_the_disk_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"GB are free in .*memmap_path"):
        UniformReplay(10**13, BOX, DISCRETE, "cpu", memmap_path=tmp_path)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- memory-mapped files


def test_memory_mapped_files_vanish_with_the_buffer(tmp_path: Path) -> None:
    history = make_history(0, num_adds=40, capacity=30, end_share=0.9)
    replay = make_replay("uniform", history, memmap_path=tmp_path / "new" / "folder", layout="shared")
    for add in history.adds:
        add.to(replay)
    folder = tmp_path / "new" / "folder"
    assert sum(path.stat().st_size for path in folder.rglob("*.bin")) > 0
    del replay
    gc.collect()
    assert list(folder.iterdir()) == []


def test_two_memory_mapped_buffers_share_a_folder(tmp_path: Path) -> None:
    history = make_history(0, num_adds=40, capacity=30)
    first = make_replay("uniform", history, memmap_path=tmp_path)
    second = make_replay("uniform", history, memmap_path=tmp_path)
    for add in history.adds[:20]:
        add.to(first)
    for add in history.adds[20:]:
        add.to(second)
    assert np.array_equal(first.observations[:20, 0], np.concatenate([add.obs for add in history.adds[:20]]))
    assert np.array_equal(second.observations[:20, 0], np.concatenate([add.obs for add in history.adds[20:]]))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda replay: pickle.loads(pickle.dumps(replay))])
@pytest.mark.parametrize("original_survives", [True, False])
def test_copy_of_a_memory_mapped_buffer_grows_on_its_own(tmp_path: Path, duplicate: Any, original_survives: bool) -> None:
    history = make_history(0, num_adds=500, capacity=400, end_share=0.8)
    replay = make_replay("uniform", history, memmap_path=tmp_path, layout="shared")
    plain = make_replay("uniform", history)
    for add in history.adds[:10]:
        add.to(replay)
        add.to(plain)
    twin = duplicate(replay)
    if original_survives:
        for add in history.adds[10:]:
            add.to(replay)
    else:
        del replay
        gc.collect()
    for add in history.adds[10:]:
        add.to(twin)
        add.to(plain)
    assert_batches_equal(twin.sample(64), plain.sample(64))


def test_memmap_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"memmap_path must be a folder that can be written, got .*file"):
        UniformReplay(10, BOX, DISCRETE, "cpu", memmap_path=tmp_path / "file")
