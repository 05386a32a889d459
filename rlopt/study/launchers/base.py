"""What a launcher does: it starts the process of a run somewhere, and can tell when it has ended and stop it."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import TracebackType
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
        """Return how the process ended, None while it has not."""
        ...

    def stop(self) -> None:
        """Tell the process to save its state and end; it may take its time, `poll` tells when it has."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...


class Launcher(Protocol):
    """Starts processes of runs; a context manager, entered before the first and left after the last."""

    grace_seconds: float
    """How long a process that was told to stop may take."""

    def __enter__(self) -> Launcher: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def start(self, arguments: Sequence[str]) -> Trial:
        """Start `python -m rlopt.study.worker ARGUMENTS` in the working folder of this process, as soon as there is a place.

        Whoever starts it dies with it or sees to it that the process notices: a worker ends in order when its parent is gone.
        """
        ...
