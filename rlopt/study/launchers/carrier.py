"""Starting the process of a run. Uses nothing but the standard library, so that it can be sent to other machines as it is."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO


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
