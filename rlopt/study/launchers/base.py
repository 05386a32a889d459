"""What a launcher does: it starts the process of a run or of a group somewhere, and can tell when it has ended and stop it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol


class Ended(NamedTuple):
    """How a process ended.

    Args:
        code: Its exit status, negative for the signal that killed it; None if it was lost with its machine.
        text: What it printed before the run began, or what the launcher knows about the loss.
    """

    code: int | None
    text: str = ""

    @property
    def is_loss(self) -> bool:
        """Whether the process was killed, stopped from outside or lost, so that another one can do better."""
        return self.code is None or self.code < 0 or self.code == 128 + signal.SIGTERM


class Trial(Protocol):
    """The process of a run, in progress or waiting for a place."""

    def poll(self) -> Ended | None:
        """Return how the process ended, None while it has not; not called again after it has."""
        ...

    def stop(self) -> None:
        """Tell the process to save its state and end; it may take its time, `poll` tells when it has."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...


# Starts the process of a run with ARGUMENTS in the working folder of this process, as soon as there is a place for it.
Start = Callable[[Sequence[str]], Trial]


class Launcher(Protocol):
    """A place for the processes of runs, a fresh one for each; they end in order when the process that started them is gone."""

    @property
    def grace_seconds(self) -> float:
        """How long a process that was told to stop may take."""
        ...

    def connect(self, folder: Path) -> AbstractContextManager[Start]:
        """Get ready to start runs of the study in `folder`.

        Raises:
            ImportError: If a package that it needs is not installed.
            ValueError: If the place cannot be reached.
        """
        ...
