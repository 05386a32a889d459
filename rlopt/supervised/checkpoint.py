"""Checkpoints of a trainer: folders of arrays and JSON, written by one process or by many."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlopt.files.checkpoint import finish, make_scratch, pass_over, read_manifest, remove_all_but
from rlopt.files.state_file import read_state, write_state
from rlopt.supervised.distributed import Processes

_KIND, _STATE = "trainer", "state.npz"


def write_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Any],
    record: Mapping[str, Any],
    keep: int,
    *,
    processes: Processes | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Write `folder/step_<step>` and remove all but the newest `keep` checkpoints.

    It is written under a temporary name and renamed when the disk has it, so a run that is killed leaves the checkpoint before.

    Args:
        folder: Folder of the checkpoints; made if it is not there.
        step: Number of finished steps.
        tensors: What `rlopt.files.state_file.write_state` takes.
        record: What JSON can express; it stands in the manifest.
        keep: Checkpoints to keep, >= 1.
        processes: All of them call this, and the folder is the same for all; the first writes. None: there is one.
        write_more: Called by all processes with the folder under its temporary name, to write more into it.

    Returns:
        The folder of the new checkpoint.

    Raises:
        OSError: If it cannot be written; those before stay.
    """
    processes = Processes(together=False) if processes is None else processes
    scratch = processes.from_first(make_scratch(folder) if processes.is_first else folder)
    target = folder / f"step_{step:08d}"
    if write_more is not None:
        write_more(scratch)
    if processes.is_first:
        try:
            write_state(tensors, scratch / _STATE)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        finish(scratch, target, {"kind": _KIND, "rlopt": version("rlopt"), "record": record})
        remove_all_but(folder, keep)
    return processes.from_first(target)  # when it is there


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint to the CPU, without running any code that a file may hold.

    Returns:
        Tensors and record, as they were given to `write_checkpoint`.

    Raises:
        ValueError: If it is no checkpoint of a trainer, or a damaged one.
    """
    manifest = read_manifest(path, _KIND)
    return read_state(path / _STATE), manifest["record"]


def newest_good(paths: Sequence[Path]) -> Path | None:
    """Return the last of the checkpoints that is as it was written; a warning tells of those that are not. None: there is none.

    Raises:
        ValueError: If there are some and none is good.
    """
    for path in reversed(paths):
        try:
            read_manifest(path, _KIND)
        except ValueError as error:
            pass_over(error, is_last=path == paths[0])
        else:
            return path
    return None
