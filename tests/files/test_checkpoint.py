"""Folders that appear complete or not at all, and tell when a file is not as it was written."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from rlopt.files.checkpoint import finish, list_checkpoints, make_scratch, read_manifest, remove_all, remove_all_but


def write(folder: Path, step: int, text: str = "hello", **manifest: Any) -> Path:
    scratch = make_scratch(folder)
    (scratch / "inner").mkdir()
    (scratch / "a").write_text(text)
    (scratch / "inner" / "b").write_text(text * 2)
    finish(scratch, folder / f"step_{step}", manifest)
    return folder / f"step_{step}"


def test_manifest_has_what_was_given_and_a_checksum_per_file(tmp_path: Path) -> None:
    path = write(tmp_path, 3, kind="test", number=1)
    manifest = read_manifest(path, "test")
    assert manifest == json.loads((path / "manifest.json").read_text())
    assert (manifest["kind"], manifest["number"], manifest["format"]) == ("test", 1, "rlopt-checkpoint-1")
    assert manifest["files"] == {
        "a": {"bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()},
        "inner/b": {"bytes": 10, "sha256": hashlib.sha256(b"hellohello").hexdigest()},
    }


def test_checkpoints_are_listed_by_number_and_the_oldest_removed(tmp_path: Path) -> None:
    for step in (9, 10, 100, 2):
        write(tmp_path, step)
    (tmp_path / "step_x").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_2", "step_9", "step_10", "step_100"]
    remove_all_but(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_10", "step_100"]
    assert list_checkpoints(tmp_path / "nothing") == []


def test_one_of_the_same_name_is_replaced_and_what_a_kill_left_removed(tmp_path: Path) -> None:
    write(tmp_path, 1, "old")
    make_scratch(tmp_path)
    path = write(tmp_path, 1, "new")
    assert (path / "a").read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["step_1"]
    assert os.stat(path).st_mode & 0o777 == 0o755


def test_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 1, "old")
    with pytest.raises(ValueError, match="Out of range float"):
        write(tmp_path, 1, "new", number=float("nan"))
    real, good = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal good
        if good == 0:
            raise OSError("No space left on device")
        good -= 1
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for before in range(5):  # two files, the manifest, two folders
        good = before
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 1, "new")
        assert [found.name for found in tmp_path.iterdir()] == ["step_1"]
        read_manifest(path)
        assert (path / "a").read_text() == "old"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: cut(path / "a"), "is damaged: a is not as it was written"),
        (lambda path: flip(path / "inner" / "b"), "is damaged: inner/b is not as it was written"),
        (lambda path: (path / "a").unlink(), "is not complete: the file a is missing"),
        (lambda path: (path / "c").write_text(""), r"has a file c that its manifest.json does not know: remove it"),
        (
            lambda path: (path / "manifest.json").unlink(),
            r"must be the folder of a checkpoint, with a manifest.json, but there is none",
        ),
        (lambda path: cut(path / "manifest.json"), "must be the folder of a checkpoint"),
        (
            lambda path: (path / "manifest.json").write_text("[]"),
            "must be a checkpoint of the format 'rlopt-checkpoint-1', got None",
        ),
        (lambda path: (path / "manifest.json").write_text('{"format": "x"}'), "got 'x'"),
        (lambda path: (path / "manifest.json").write_text("[" * 100_000), "must be the folder of a checkpoint"),
    ],
)
def test_what_is_not_as_it_was_written_is_told(tmp_path: Path, damage: Any, words: str) -> None:
    path = write(tmp_path, 1, kind="test")
    damage(path)
    with pytest.raises(ValueError, match=words) as refusal:
        read_manifest(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_other_kinds_are_refused_and_files_need_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, 1, kind="test")
    with pytest.raises(ValueError, match="must be a checkpoint of the kind 'agent', got 'test'"):
        read_manifest(path, "agent")
    cut(path / "a")
    assert read_manifest(path, check_files=False)["kind"] == "test"


def test_removal_that_is_cut_short_leaves_nothing_behind_that_is_half_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    (folder / "step_1").mkdir(parents=True)
    (folder / "step_1" / "manifest.json").write_text("{}")

    def killed(path: Path, **options: Any) -> None:
        if path.exists():
            (path / "step_1" / "manifest.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("rlopt.files.checkpoint.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_all(folder)
    assert not folder.exists()
    folder.mkdir()
    remove_all(folder)
    assert not list(tmp_path.iterdir())
    remove_all(folder)  # nothing is there
