"""Starts programs with torchrun, with a time limit, so that processes that wait for each other fail a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def torchrun(num_processes: int, program: Path, *arguments: str, limit: float = 240.0) -> tuple[int, str]:
    """Returns the exit status and all output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}", str(program)]
    process = subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{num_processes} processes did not end within {limit} s:\n{output}") from None
    return process.returncode, output
