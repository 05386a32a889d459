"""Locks on files, which tell processes on all machines that share a disk who works on what.

The system lets go of a lock however its process ends, also when its machine is lost. Locks work on local disks and on network
file systems that pass them on to the server, such as NFS version 4.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_POLL_SECONDS = 0.05

# Descriptors of the locks of this process. Children that are forked would share them, and keep them when this process is gone.
_held: set[int] = set()


@contextlib.contextmanager
def lock_study(folder: Path, wait_seconds: float = 0.0) -> Iterator[None]:
    """Hold the study in `folder` for this process.

    Args:
        folder: Folder of the study; it is made if need be.
        wait_seconds: How long to wait for a process that holds it.

    Raises:
        ValueError: If another process holds it for longer than that.
    """
    deadline = time.monotonic() + wait_seconds
    while (descriptor := _take(folder / ".lock")) is None:
        if time.monotonic() >= deadline:
            raise ValueError(f"{folder} is in use by another command; wait for it, or choose another name")
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        _release(descriptor)


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[bool]:
    """Hold a run for this process, unless another one holds it; yields whether this one does.

    Args:
        folder: Folder of the run, `runs/<study>/<task>/<variant>/seed_<n>`.
    """
    descriptor = _take(_lock_of_run(folder))
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(descriptor)


def hold_run(folder: Path) -> bool:
    """Hold a run for as long as this process lives, unless another one holds it; return whether this one does."""
    return _take(_lock_of_run(folder)) is not None


def run_is_held(folder: Path) -> bool:
    """Whether a process, on whichever machine, holds the run in `folder`."""
    try:
        descriptor = os.open(_lock_of_run(folder), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, folder, shared=True)
    finally:
        os.close(descriptor)


def _lock_of_run(folder: Path) -> Path:
    """Return a file outside the folder of the run, which a new attempt empties."""
    study = folder.absolute().parents[2]
    return study / ".locks" / folder.absolute().relative_to(study)


def _take(path: Path) -> int | None:
    """Lock a file and return its descriptor; None if another process has locked it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        while not _try(descriptor, path, shared=False):
            # It is in use, or somebody only looks whether it is (`run_is_held`) and is in the way for a moment.
            if not _try(descriptor, path, shared=True):
                _release(descriptor)
                return None
            _unlock(descriptor)
            time.sleep(_POLL_SECONDS * os.urandom(1)[0] / 255)  # two that try this at once must not do so in step
    except BaseException:
        _release(descriptor)
        raise
    return descriptor


def _release(descriptor: int) -> None:
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)


def _try(descriptor: int, path: Path, *, shared: bool) -> bool:
    """Lock an open file if that needs no waiting, and return whether it is locked.

    Raises:
        ValueError: If its file system has no locks.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # network file systems may answer with either
        return False
    except OSError as error:
        raise ValueError(f"{path.parent} must be on a file system with locks, got {error.strerror}; choose another disk") from None
    return True


def _unlock(descriptor: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _forget() -> None:
    for descriptor in list(_held):
        _release(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
