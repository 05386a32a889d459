"""Processes of this machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import IO

from rlopt.study.launchers.base import Ended
from rlopt.study.launchers.carrier import read_output, start_process
from rlopt.study.launchers.environment import worker_command, worker_environment


class Local:
    """Starts runs on this machine; needs no service."""

    grace_seconds = 10.0

    def __enter__(self) -> Local:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def start(self, arguments: Sequence[str]) -> LocalTrial:
        """Start a worker."""
        return LocalTrial(*start_process(worker_command(arguments), worker_environment(), os.getcwd()))


class LocalTrial:
    """A worker of this machine."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        self._process, self._output = process, output

    def poll(self) -> Ended | None:
        """Return how the process ended, None while it has not."""
        code = self._process.poll()
        return None if code is None else Ended(code, read_output(self._output))

    def stop(self) -> None:
        """Tell the process to save its state and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
