"""Folders of files that appear complete or not at all, with a manifest that knows the size and the checksum of each file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = "rlopt-checkpoint-1"
MANIFEST = "manifest.json"
_SCRATCH = ".new-"
_NAME = re.compile(r"step_(\d+)")
_CHUNK = 1 << 20


def make_scratch(folder: Path) -> Path:
    """Make a folder under a temporary name in `folder`, and remove what runs that were killed left there.

    Raises:
        OSError: If nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))


def finish(scratch: Path, target: Path, manifest: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write the manifest, wait until the disk has everything, and give the folder its name.

    Args:
        scratch: From `make_scratch`, with all its files.
        target: The name, in the same folder. One of that name is replaced.
        manifest: What it is to say besides "format" and "files"; JSON values.
        known: Entries of "files" of files that are on the disk already, because they are links to those of another checkpoint.

    Raises:
        OSError: If it cannot be written. What was there before stays, and `scratch` is removed.
    """
    known = known or {}
    try:
        paths = sorted(path for path in scratch.rglob("*") if path.is_file())
        names = [path.relative_to(scratch).as_posix() for path in paths]
        files = {name: known.get(name) or _entry(path, sync=True) for name, path in zip(names, paths, strict=True)}
        with (scratch / MANIFEST).open("w", encoding="utf-8") as text:
            json.dump({"format": FORMAT, **manifest, "files": files}, text, indent=1, allow_nan=False)
            text.flush()
            os.fsync(text.fileno())
        os.chmod(scratch, 0o755)  # mkdtemp's folders are for their owner only
        for place in {scratch, *(path.parent for path in paths)}:
            _sync_folder(place)
        if target.exists():
            shutil.rmtree(target)
        os.replace(scratch, target)
        _sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints `step_<number>` in a folder, the smallest number first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def remove_all_but(folder: Path, keep: int) -> None:
    """Remove the checkpoints in a folder but for the `keep` newest."""
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def remove_all(folder: Path) -> None:
    """Remove a folder of checkpoints in one step: a process that is killed meanwhile leaves none that is half gone."""
    removed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)  # of a process that was killed
    if folder.is_dir():
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def read_manifest(path: Path, kind: str | None = None, check_files: bool = True) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check each of its files.

    Args:
        path: Folder of the checkpoint.
        kind: What the manifest has to give as "kind"; None: anything.
        check_files: Whether to read all files and compare their checksums.

    Raises:
        ValueError: If it is not a checkpoint or is one of another kind, or a file is missing, damaged, or not on the list.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "there is none" if isinstance(error, FileNotFoundError | NotADirectoryError) else str(error)
        raise ValueError(f"{path} must be the folder of a checkpoint, with a {MANIFEST}, but {reason}.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(f"{path} must be a checkpoint of the format {FORMAT!r}, got {found!r}.")
    if kind is not None and manifest.get("kind") != kind:
        raise ValueError(f"{path} must be a checkpoint of the kind {kind!r}, got {manifest.get('kind')!r}.")
    if not check_files:
        return manifest
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()} - {MANIFEST}
    for name in sorted(present | manifest["files"].keys()):
        if name not in present:
            raise ValueError(f"{path} is not complete: the file {name} is missing.")
        if name not in manifest["files"]:
            raise ValueError(f"{path} has a file {name} that its {MANIFEST} does not know: remove it.")
        if _entry(path / name) != manifest["files"][name]:
            raise ValueError(f"{path} is damaged: {name} is not as it was written.")
    return manifest


def pass_over(error: ValueError, is_last: bool) -> None:
    """Tell that a checkpoint cannot be read and the one before it is used.

    Raises:
        ValueError: If there is none before it.
    """
    if is_last:
        raise ValueError(f"{str(error).rstrip('.')}, and there is no good one before it: move it away to start again.") from None
    warnings.warn(f"{error} The checkpoint before it is used.", stacklevel=4)


def _entry(path: Path, sync: bool = False) -> dict[str, Any]:
    """Size and checksum of a file; with `sync`, the disk has it then."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
