"""Where a run was made: package versions, processor, command line, git commit, and which process it is."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("rlopt", "torch", "stable-baselines3", "gymnasium", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return operating system, processor model, number of logical cores and memory in GiB."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def command_line() -> str:
    """Return the command that started this process as one would type it, without passwords in URLs."""
    arguments = [hide_password(argument) for argument in sys.argv]
    # The host of a command is a detail of the installation: show `python`, and scripts relative to the working folder.
    if arguments and os.path.isabs(arguments[0]):
        arguments[0] = os.path.relpath(arguments[0]) if Path(arguments[0]).is_relative_to(Path.cwd()) else arguments[0]
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        name = spec.name.removesuffix(".__main__")
        return shlex.join(["python", "-m", name, *arguments[1:]])
    return shlex.join(["python", *arguments])


def hide_password(text: str) -> str:
    """Return a text with `***` for the passwords in its URLs.

    Example:
        >>> hide_password("postgresql://me:secret@host/db")
        'postgresql://me:***@host/db'
    """
    return re.sub(r"(\w://[^\s:/@]*):\S*@", r"\1:***@", text)


def git_commit(folder: Path) -> str | None:
    """Return the commit of the repository around `folder`, with `-dirty` if tracked files differ; None without one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown"
