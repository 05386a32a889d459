"""One progress display for all runs of a study: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rlopt.study.live import Row, duration, runs_table

# Seconds between two lines when there is no terminal.
_LINE_SECONDS = 30.0


class Snapshot(NamedTuple):
    """State of a study at one moment.

    Args:
        done_steps: Steps of all runs together so far.
        total_steps: Steps of all runs together.
        done_runs: Runs that need nothing more, finished or failed.
        total_runs: All runs.
        rows: All runs.
    """

    done_steps: int
    total_steps: int
    done_runs: int
    total_runs: int
    rows: Sequence[Row]


class Display(Protocol):
    """What the runner tells its progress to; a context manager."""

    def __enter__(self) -> Display: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def update(self, snapshot: Snapshot) -> None:
        """Show a new state."""
        ...

    def say(self, line: str) -> None:
        """Print a line that stays."""
        ...


def make_display(console: Console) -> Display:
    """Return a live table if the console is a terminal, plain lines otherwise."""
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


class LiveDisplay:
    """A bar for the whole study and a table of its runs, as many as the terminal has lines for."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.fields[runs]}"),
            BarColumn(bar_width=24),
            TextColumn("[cyan]{task.fields[steps]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            speed_estimate_period=300.0,
        )
        self._all = self._progress.add_task("", total=None, runs="", steps="")
        self._rows: Sequence[Row] = ()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Move the bar and show the runs as they are."""
        self._rows = snapshot.rows
        self._progress.update(
            self._all,
            completed=snapshot.done_steps,
            total=snapshot.total_steps,
            runs=f"{snapshot.done_runs}/{snapshot.total_runs} runs",
            steps=f"{snapshot.done_steps:,}/{snapshot.total_steps:,} steps",
        )

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        room = max(1, self._console.height - 4)  # bar, header, an empty line, the cursor
        return Group(self._progress, runs_table(self._rows, most=room))


class LineDisplay:
    """A line of text every half minute, for log files and continuous integration."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._start = self._last = time.monotonic()
        self._first_steps: int | None = None

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def update(self, snapshot: Snapshot) -> None:
        """Print a line if the last one is old enough."""
        now = time.monotonic()
        if self._first_steps is None:
            self._first_steps = snapshot.done_steps
        if now - self._last < _LINE_SECONDS:
            return
        self._last = now
        speed = (snapshot.done_steps - self._first_steps) / (now - self._start)
        left = f", {duration((snapshot.total_steps - snapshot.done_steps) / speed)} left" if speed > 0 else ""
        share = 100 * snapshot.done_steps / snapshot.total_steps
        self.say(
            f"{share:.0f} % ({snapshot.done_steps}/{snapshot.total_steps} steps, "
            f"{snapshot.done_runs}/{snapshot.total_runs} runs{left})"
        )

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
