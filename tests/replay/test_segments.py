"""Files that are written once give back what a replay stores."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlopt.files.state_file import read_state
from rlopt.replay import segments
from rlopt.replay.segments import read_segments, write_segments
from rlopt.replay.storage import TransitionStorage
from rlopt.replay.storage_state import head_state
from tests.replay.histories import History, make_history, make_replay

SPACES = ["box", "dict", "image", "discrete"]


def storage_of(history: History, layout: str) -> Any:
    return make_replay("uniform", history, layout=layout).storage


def add(storage: TransitionStorage, history: History, first: int, last: int) -> None:
    for one in history.adds[first:last]:
        storage.add(one.obs, one.next_obs, one.action, one.reward, one.terminated, one.truncated)


def restored(storage: TransitionStorage, history: History, folder: Path) -> Any:
    other = storage_of(history, storage.layout)
    other.load_state_dict({**head_state(storage), "parts": read_segments(folder)})
    return other


def assert_equal(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    else:
        np.testing.assert_array_equal(left, right)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_linked_files_hold_what_is_stored(tmp_path: Path, data: st.DataObject) -> None:
    seed, n_envs, capacity = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 3)), data.draw(st.integers(3, 25))
    layout, space = data.draw(st.sampled_from(["plain", "shared"])), data.draw(st.sampled_from(SPACES))
    steps = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=6))
    clears = data.draw(st.lists(st.booleans(), min_size=6, max_size=6))
    history = make_history(seed, sum(steps), n_envs, capacity, data.draw(st.sampled_from([0.02, 0.3])), observations=space)
    storage = storage_of(history, layout)
    root = tmp_path / str(len(list(tmp_path.iterdir())))
    previous, resets, done = None, storage.num_resets, 0
    for number, count in enumerate(steps):
        if clears[number] and data.draw(st.integers(0, 3)) == 0:
            storage.clear()
        add(storage, history, done, done + count)
        done += count
        folder = root / str(number)
        root.mkdir(exist_ok=True)
        write_segments(storage, folder, previous if storage.num_resets == resets else None)
        previous, resets = folder, storage.num_resets
        other = restored(storage, history, folder)
        assert_equal(other.state_dict(), storage.state_dict())
        slots = storage.all_slots()
        for direction in ("older", "newer"):
            for within in (False, True):
                assert_equal(other.num_steps(slots, direction, within), storage.num_steps(slots, direction, within))
        assert_equal(other.gather(slots), storage.gather(slots))
        if data.draw(st.booleans()):  # the one that was restored goes on in its place
            storage, resets = other, other.num_resets


def test_only_new_rows_are_written_and_old_files_dropped(tmp_path: Path) -> None:
    history = make_history(0, 40, capacity=8)
    storage = storage_of(history, "plain")
    names = []
    for number in range(4):
        add(storage, history, 4 * number, 4 * number + 4)
        write_segments(storage, tmp_path / str(number), tmp_path / str(number - 1) if number else None)
        names.append(sorted(path.name[5:-4] for path in (tmp_path / str(number)).iterdir()))
    one, two, three, four = (f"{first:012d}-{first + 4:012d}" for first in (0, 4, 8, 12))
    assert names == [[one], [one, two], [two, three], [three, four]]


def test_too_many_files_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MAX_SEGMENTS", 3)
    history = make_history(0, 40, capacity=40)
    storage = storage_of(history, "shared")
    counts = []
    for number in range(6):
        add(storage, history, 5 * number, 5 * number + 5)
        write_segments(storage, tmp_path / str(number), tmp_path / str(number - 1) if number else None)
        counts.append(len(list((tmp_path / str(number)).iterdir())))
    assert counts == [1, 2, 3, 1, 2, 3]
    assert_equal(restored(storage, history, tmp_path / "5").state_dict(), storage.state_dict())


def test_disk_without_links_and_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(segments.os, "link", refuse)
    history = make_history(0, 20, capacity=20)
    storage = storage_of(history, "plain")
    add(storage, history, 0, 5)
    write_segments(storage, tmp_path / "a")
    add(storage, history, 5, 9)
    assert len(write_segments(storage, tmp_path / "b", tmp_path / "a")) == 1
    assert_equal(restored(storage, history, tmp_path / "b").state_dict(), storage.state_dict())
    shutil.rmtree(tmp_path / "b")
    assert write_segments(storage, tmp_path / "c", tmp_path / "b") == []
    (part,) = read_state(next((tmp_path / "c").iterdir()))["parts"]
    assert (part["first"], len(part["truncated"])) == (0, 9)


def test_episode_that_ended_by_a_reset_after_the_file_was_written(tmp_path: Path) -> None:
    history = make_history(0, 1, capacity=10)
    storage = storage_of(history, "shared")

    def add_row(obs: float, next_obs: float) -> None:
        place, no = np.zeros((1, 3), np.float32), np.array([False])
        storage.add(place + obs, place + next_obs, np.zeros((1, 1)), np.zeros(1, np.float32), no, no)

    for step in range(3):
        add_row(step, step + 1)
    write_segments(storage, tmp_path / "a")
    add_row(50.0, 51.0)  # not 3: the environment was reset from outside
    write_segments(storage, tmp_path / "b", tmp_path / "a")
    other = restored(storage, history, tmp_path / "b")
    assert other.gather(np.arange(4))["next_obs"][:, 0].tolist() == [1.0, 2.0, 3.0, 51.0]
    assert_equal(other.state_dict(), storage.state_dict())
