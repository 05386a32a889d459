"""Checkpoints: folders that appear complete or not at all, and hold nothing but numbers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from rlopt.supervised.distributed import Processes

_TENSORS, _RECORD = "tensors.pt", "record.json"
_UNFINISHED = ".new-"
_NAME = re.compile(r"step_(\d+)")


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
        tensors: Nested dictionaries and lists of tensors and numbers.
        record: What JSON can express.
        keep: Checkpoints to keep, >= 1.
        processes: All of them call this, and the folder is the same for all; the first writes. None: there is one.
        write_more: Called by all processes with the folder under its temporary name, to write more into it.

    Returns:
        The folder of the new checkpoint.
    """
    processes = Processes(together=False) if processes is None else processes
    scratch = processes.from_first(_make_scratch(folder) if processes.is_first else folder)
    target = folder / f"step_{step:08d}"
    if write_more is not None:
        write_more(scratch)
    if processes.is_first:
        _finish(scratch, target, tensors, record)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return processes.from_first(target)  # when it is there


def _make_scratch(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_UNFINISHED}*"):  # of a run that was killed while it wrote
        shutil.rmtree(stale)
    return Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))


def _finish(scratch: Path, target: Path, tensors: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    try:
        with (scratch / _TENSORS).open("wb") as file:
            torch.save(dict(tensors), file)
            os.fsync(file.fileno())
        sums = {_TENSORS: _sum((scratch / _TENSORS).read_bytes()), _RECORD: _sum(json.dumps(record).encode())}
        with (scratch / _RECORD).open("w", encoding="utf-8") as text:
            json.dump({"sums": sums, "record": record}, text, indent=1)
            text.flush()
            os.fsync(text.fileno())
        os.chmod(scratch, 0o755)  # mkdtemp's folders are for their owner only
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("step_*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint to the CPU, without running any code that a file may hold.

    Returns:
        Tensors and record, as they were given to `write_checkpoint`.

    Raises:
        ValueError: If the folder does not hold a complete checkpoint.
    """
    try:
        content = json.loads((path / _RECORD).read_text(encoding="utf-8"))
        record, sums = content["record"], content["sums"]
        found = {_TENSORS: (path / _TENSORS).read_bytes(), _RECORD: json.dumps(record).encode()}
    except OSError as error:
        raise ValueError(f"{path} must hold {_TENSORS} and {_RECORD} of a checkpoint, got {_reason(error)}.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path / _RECORD} must be the record of a checkpoint, got a damaged or foreign file.") from None
    for name, data in found.items():
        if not isinstance(sums, dict) or sums.get(name) != _sum(data):
            raise ValueError(f"{path / name} must be as it was written, got other content (its checksum differs).")
    try:
        tensors = torch.load(io.BytesIO(found[_TENSORS]), map_location="cpu", weights_only=True)
    except Exception:  # of many types
        raise ValueError(f"{path / _TENSORS} must hold tensors and numbers only, got something else; it was not run.") from None
    return tensors, record


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _reason(error: OSError) -> str:
    name = "" if error.filename is None else f" ({Path(error.filename).name})"
    return f"{error.strerror or type(error).__name__}{name}"
