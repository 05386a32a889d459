"""What a replay stores, in files that are written once: each checkpoint adds one with the rows that came since the one before."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlopt.files.state_file import read_state, write_state
from rlopt.replay.storage import TransitionStorage
from rlopt.replay.storage_state import parts_state

_NAME = re.compile(r"rows_(\d+)-(\d+)\.npz")
# With more files than this, all rows are written anew into one.
MAX_SEGMENTS = 64


def write_segments(storage: TransitionStorage, folder: Path, previous: Path | None = None) -> list[str]:
    """Write the stored rows into files of a folder, which is made.

    Args:
        storage: Of the replay.
        folder: A new one.
        previous: Folder that this function wrote for the same storage earlier, with no reset of the storage in between. Its files
            that hold rows which are still stored are linked (copied where the disk has no links), so only newer rows are written.

    Returns:
        Names of the files that were linked.
    """
    folder.mkdir()
    oldest, covered = storage.num_added - storage.num_filled_rows, 0
    linked: list[str] = []
    known = [] if previous is None or not previous.is_dir() else _listed(previous)
    useful = [(last, path) for _, last, path in known if last > oldest]
    if len(useful) < MAX_SEGMENTS:
        for last, path in useful:
            _link(path, folder / path.name)
            linked.append(path.name)
            covered = last
    first = max(oldest, covered)
    if first < storage.num_added:
        parts = parts_state(storage, first, copy=False)
        write_state({"parts": parts}, folder / f"rows_{first:012d}-{storage.num_added:012d}.npz")
    return linked


def read_segments(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what `rlopt.replay.storage_state.load_rows` takes, one file in memory at a time.

    Raises:
        ValueError: If a file is damaged.
    """
    for _, _, path in _listed(folder):
        yield from read_state(path)["parts"]


def _listed(folder: Path) -> list[tuple[int, int, Path]]:
    """First row, end and path of each file, in order."""
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), int(match[2]), path) for match, path in found)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
