"""Starting an experiment as a user does, and reading how it refuses wrong input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# What every command that runs a study says about where the runs are. Changing it changes the interface that users type.
MACHINES = [
    *("--launcher", "--ray.address", "--ray.cpus", "--ray.gpus", "--ray.memory", "--retries", "--shard"),
    *("--slurm.account", "--slurm.cluster", "--slurm.cpus", "--slurm.gpus", "--slurm.memory", "--slurm.partition"),
    *("--slurm.qos", "--slurm.time"),
]


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start `python experiments/<script>` in a fresh process from the root of the repository."""
    paths = [str(ROOT), *filter(None, sys.path)]
    return subprocess.Popen(
        [sys.executable, f"experiments/{script}", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script: str, *arguments: object) -> tuple[int, str]:
    """Start a script, wait for its end, and return its exit status and all that it said."""
    process = start(script, *arguments)
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, output


def refusal(main: Any, arguments: list[str], capsys: Any) -> str:
    """Run `main` in this process with wrong arguments; return what it says, without the frame that the parser draws."""
    try:
        status = main(arguments)
    except SystemExit as exit_:  # where the parser itself refuses
        status = exit_.code
    assert status == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "Traceback" not in error
    return error
