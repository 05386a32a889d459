"""One progress display for all runs of a study: live bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Task as Row
from rich.text import Text

# Seconds between two lines when there is no terminal.
_LINE_SECONDS = 30.0


class Snapshot(NamedTuple):
    """State of a study at one moment.

    Args:
        done_steps: Steps of all runs together so far.
        total_steps: Steps of all runs together.
        done_runs: Runs that need nothing more, finished or failed.
        total_runs: All runs.
        active: Label -> (step, total steps, last score or None) of the runs in progress.
    """

    done_steps: int
    total_steps: int
    done_runs: int
    total_runs: int
    active: Mapping[str, tuple[int, int, float | None]]


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
    """Return live bars if the console is a terminal, plain lines otherwise."""
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


class LiveDisplay:
    """A bar for the whole study and one for each run in progress."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _StepsColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            speed_estimate_period=300.0,
            refresh_per_second=4,
        )
        self._all: TaskID = self._progress.add_task("[bold]all runs", total=None, note="")
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> LiveDisplay:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, snapshot: Snapshot) -> None:
        """Move the bars, drop those of runs that ended, add those of runs that began."""
        self._progress.update(
            self._all,
            completed=snapshot.done_steps,
            total=snapshot.total_steps,
            note=f"{snapshot.done_runs}/{snapshot.total_runs} runs",
        )
        for label in [label for label in self._rows if label not in snapshot.active]:
            self._progress.remove_task(self._rows.pop(label))
        for label, (step, total, score) in snapshot.active.items():
            if label not in self._rows:
                self._rows[label] = self._progress.add_task(f"  {label}", total=total, note="")
            note = "" if score is None else f"score {score:.4g}"
            self._progress.update(self._rows[label], completed=step, note=note)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


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
        left = f", {_duration((snapshot.total_steps - snapshot.done_steps) / speed)} left" if speed > 0 else ""
        share = 100 * snapshot.done_steps / snapshot.total_steps
        self.say(
            f"{share:.0f} % ({snapshot.done_steps}/{snapshot.total_steps} steps, "
            f"{snapshot.done_runs}/{snapshot.total_runs} runs{left})"
        )

    def say(self, line: str) -> None:
        """Print a line."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _StepsColumn(ProgressColumn):
    def render(self, task: Row) -> Text:
        if task.total is None:
            return Text("")
        return Text(f"{task.completed:,.0f}/{task.total:,.0f} steps", style="cyan")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
