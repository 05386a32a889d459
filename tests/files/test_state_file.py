import json
import math
import tempfile
import zipfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlopt.files.state_file import read_state, write_state

STATE: dict[str, Any] = {
    "array": np.arange(18.0).reshape(9, 2),
    "inner": {"number": 2**100, "list": [1, 2.5, None, "x", True], "empty": {}},
    "flags": np.array([True, False]),
}


def agrees(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(agrees(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(agrees, left, right))
    return type(left) is type(right) and (left == right or (left != left and right != right))


values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**130), 2**130),
        st.floats(),
        st.text(max_size=5),
        st.builds(np.arange, st.integers(0, 4), dtype=st.sampled_from([np.uint8, np.int32, np.float32, np.float64])),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=15)
@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_reading_returns_what_was_written(tmp_path_factory: Any, state: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    write_state(state, path)
    assert agrees(state, read_state(path))


def test_file_holds_no_pickle_and_lies_under_the_name_as_given(tmp_path: Path) -> None:
    write_state(STATE, tmp_path / "deep" / "name.without.ending")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["name.without.ending"]
    with np.load(tmp_path / "deep" / "name.without.ending", allow_pickle=False) as file:
        for name in file.files:
            assert file[name].dtype != object
        assert json.loads(file["json"].tobytes())["format"] == "rlopt-state-2"


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
        | st.sampled_from([np.float32(1.5), np.int64(3), np.arange(3), th.arange(3.0), th.ones(2, dtype=th.bfloat16)]),
        lambda part: st.lists(part, max_size=3) | st.lists(part, max_size=3).map(tuple) | st.lists(part, max_size=3).map(deque)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$tensor"), part, max_size=3),
        max_leaves=10,
    )
)  # fmt: skip
def test_trees_survive_a_file(tree: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_state({"tree": tree}, Path(folder) / "state.npz")
        assert _same(read_state(Path(folder) / "state.npz")["tree"], tree)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, th.Tensor):
        return one.dtype == other.dtype and th.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": object()}}, r"state\['a'\]\['b'\] is a object; only"),
        ({"a": [1, {2}]}, r"state\['a'\]\[1\] is a set; only"),
        ({"a": np.array([object()])}, r"state\['a'\] is an array of objects"),
        ({"a": {(1, object()): 2}}, r"state\['a'\], a key\[1\] is a object; only"),
    ],
)
def test_what_cannot_be_written_is_refused_with_its_place(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    write_state(STATE, tmp_path / "state")
    with pytest.raises(TypeError, match=message):
        write_state(state, tmp_path / "state")
    assert agrees(read_state(tmp_path / "state"), STATE)  # the older file stays
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(STATE, tmp_path / "state")

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("rlopt.files.state_file.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_state({"a": 1}, tmp_path / "state")
    assert agrees(read_state(tmp_path / "state"), STATE)
    assert len(list(tmp_path.iterdir())) == 1


def test_every_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(STATE, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a state file of rlopt, or it is damaged"):
            read_state(path)


def test_a_flipped_bit_anywhere_is_refused_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(STATE, path)
    whole = path.read_bytes()
    refused = 0
    for place in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place // 2 % 8)
        path.write_bytes(damaged)
        try:
            assert agrees(read_state(path), STATE)
        except ValueError:
            refused += 1
    assert refused > len(whole) // 4


@pytest.mark.parametrize("flag", [0x01, 0x20])
def test_a_file_that_claims_to_be_encrypted_or_compressed_is_refused(tmp_path: Path, flag: int) -> None:
    path = tmp_path / "state"
    write_state(STATE, path)
    whole = bytearray(path.read_bytes())
    start = whole.index(b"PK\x01\x02")  # first entry of the table of contents; bytes 8 and 10: flags and compression
    while start >= 0:
        whole[start + 8] |= flag
        whole[start + 10] = 99 if flag == 0x20 else whole[start + 10]
        start = whole.find(b"PK\x01\x02", start + 1)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="is not a state file of rlopt, or it is damaged"):
        read_state(path)


def test_missing_file_and_folder_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_state(tmp_path / "nothing")
    np.save(tmp_path / "array.npy", np.arange(3))
    np.savez(tmp_path / "arrays.npz", a=np.arange(3))
    np.savez(tmp_path / "version.npz", json=np.frombuffer(b'{"format": "other"}', np.uint8))
    np.savez(tmp_path / "list.npz", json=np.frombuffer(b"[]", np.uint8))
    np.savez(tmp_path / "no_dict.npz", json=np.frombuffer(b'{"format": "rlopt-state-2", "state": 3}', np.uint8))
    np.savez(
        tmp_path / "dangling.npz",
        json=np.frombuffer(b'{"format": "rlopt-state-2", "state": {"a": {"$array": "array7"}}}', np.uint8),
    )
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("json", "{}")
    for path in [tmp_path, *sorted(tmp_path.iterdir())]:
        with pytest.raises(ValueError, match="is not a state file of rlopt") as refusal:
            read_state(path)
        assert str(path) in str(refusal.value)


def test_a_pickled_array_in_the_file_is_refused(tmp_path: Path) -> None:
    content = b'{"format": "rlopt-state-2", "state": {"a": {"$array": "evil"}}}'
    evil: Any = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "evil.npz", json=np.frombuffer(content, np.uint8), evil=evil)
    with pytest.raises(ValueError, match="is not a state file of rlopt, or it is damaged"):
        read_state(tmp_path / "evil.npz")


def test_infinity_and_nan_survive(tmp_path: Path) -> None:
    write_state({"a": math.inf, "b": math.nan, "c": np.array([np.inf])}, tmp_path / "state")
    state = read_state(tmp_path / "state")
    assert state["a"] == math.inf
    assert math.isnan(state["b"])
    assert state["c"].tolist() == [math.inf]
