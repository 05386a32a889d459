"""What a run uses: steps per second, CPU seconds and memory of its process, in `resources.csv` and for TensorBoard."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections import deque
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import psutil

if sys.platform != "win32":
    import resource

# Speed is that of the last half minute: long enough to smooth over evaluations, short enough to show a slowdown.
_WINDOW_SECONDS = 30.0

# Seconds between two rows of `resources.csv`.
LOG_SECONDS = 10.0


class Usage(NamedTuple):
    """What the process of a run has used up to a step; a row of `resources.csv`.

    Args:
        time: When, in UTC.
        step: Steps done.
        steps_per_second: Of the last half minute, in the last row of a run on average over its process; None before
            two steps are known.
        cpu_seconds: CPU time of the process so far, divided by the number of runs that share it.
        rss_bytes: Memory of the process that is in RAM.
        peak_rss_bytes: The most that it was.
    """

    time: str
    step: int
    steps_per_second: float | None
    cpu_seconds: float
    rss_bytes: int
    peak_rss_bytes: int


class Meter:
    """Measures what a run uses of this process.

    Args:
        runs_in_process: Runs that share the process, each with an equal part of its CPU time.
    """

    def __init__(self, runs_in_process: int = 1) -> None:
        self._process, self._runs = psutil.Process(), runs_in_process
        self._points: deque[tuple[float, int]] = deque()

    def measure(self, step: int) -> Usage:
        """Return what is used at a step."""
        now = time.monotonic()
        self._points.append((now, step))
        while len(self._points) > 2 and self._points[1][0] <= now - _WINDOW_SECONDS:
            self._points.popleft()
        seconds, steps = now - self._points[0][0], step - self._points[0][1]
        return self.usage(step, steps / seconds if seconds > 0 and steps > 0 else None)

    def usage(self, step: int, steps_per_second: float | None) -> Usage:
        """Return what is used, with a speed that is known."""
        rss = int(self._process.memory_info().rss)
        return Usage(
            time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            step=step,
            steps_per_second=steps_per_second,
            cpu_seconds=round(time.process_time() / self._runs, 3),
            rss_bytes=rss,
            peak_rss_bytes=max(_peak_rss(), rss),
        )


def log(folder: Path, usage: Usage) -> None:
    """Add a row to `resources.csv` of a run, and its numbers to TensorBoard's file in `resources/`.

    The file of events has a folder of its own: TensorBoard reads one growing file in a folder, and that of the run is one.
    """
    from rlopt.study.events import append_scalars

    path = folder / "resources.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists():
        writer.writerow(Usage._fields)
    writer.writerow("" if value is None else value for value in usage)
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
    (folder / "resources").mkdir(exist_ok=True)
    scalars = {
        "resources/cpu_seconds": usage.cpu_seconds,
        "resources/rss_mib": usage.rss_bytes / 2**20,
        "resources/peak_rss_mib": usage.peak_rss_bytes / 2**20,
    }
    if usage.steps_per_second is not None:
        scalars["resources/steps_per_second"] = usage.steps_per_second
    append_scalars(folder / "resources" / "events.out.tfevents.resources", usage.step, scalars)


def _peak_rss() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    size = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return size if sys.platform == "darwin" else 1024 * size  # Linux counts in KiB
