"""Processes of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rlopt.study.launchers.base import Ended, Start
from rlopt.study.launchers.carrier import read_output, start_process
from rlopt.study.launchers.environment import worker_command, worker_environment


@dataclass(frozen=True)
class Local:
    """Starts runs on this machine; needs no service."""

    @property
    def grace_seconds(self) -> float:
        """How long a process that was told to stop may take."""
        return 10.0

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[Start]:
        """Return what starts a worker."""
        yield _start


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


def _start(arguments: Sequence[str]) -> LocalTrial:
    return LocalTrial(*start_process(worker_command(arguments), worker_environment(), os.getcwd()))
