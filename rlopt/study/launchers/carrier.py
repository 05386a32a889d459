"""Starting the process of a run on the machine where it is to be.

This uses the standard library only and is sent to other machines as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

_POLL_SECONDS = 0.1


def start_process(command: Sequence[str], environment: Mapping[str, str], folder: str) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a command and return it with the file of what it prints.

    Args:
        command: The command.
        environment: Variables to set beside those of this process.
        folder: Working folder.
    """
    output = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches the runner only, which then stops its workers in order
    )
    return process, output


def read_output(output: IO[bytes]) -> str:
    """Return the end of what a process printed, and close the file."""
    with output:
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4000))
        return output.read().decode(errors="replace")


def carry(command: Sequence[str], environment: Mapping[str, str], folder: str, grace_seconds: float) -> tuple[int, str]:
    """Run a command, and return its exit status and the end of what it printed; if this is interrupted, stop it in order."""
    process, output = start_process(command, environment, folder)
    try:
        while process.poll() is None:  # a wait in the system would not notice every kind of interruption
            time.sleep(_POLL_SECONDS)
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
        process.kill()
        process.wait()
        output.close()
        raise
    return process.returncode, read_output(output)


def carry_and_note(command: Sequence[str], environment: Mapping[str, str], folder: str, grace_seconds: float, outcome: str) -> None:
    """Do as `carry`, for a job of a batch system: its signals interrupt, and what is returned goes to the file `outcome`."""

    def interrupt(number: int, frame: Any) -> None:
        for other in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, interrupt)
    try:
        code, text = carry(command, environment, folder, grace_seconds)
    except KeyboardInterrupt:
        code, text = 128 + signal.SIGTERM, ""
    with open(f"{outcome}.new", "w", encoding="utf-8") as file:
        json.dump({"code": code, "text": text}, file)
    os.replace(f"{outcome}.new", outcome)
