"""Run folders: `runs/<study>/<task>/<variant>/seed_<n>/`, their status and what a run records.

A folder holds `config.json` (what was asked for), `manifest.json` (where, when and how it went), `evaluations.csv`,
what it used (`resources.csv`), whatever the run itself writes (`progress.csv`, TensorBoard events, `checkpoint/`),
`output.txt` with its printed text, and `error.txt` if it failed.
"""

from __future__ import annotations

import csv
import io
import math
import shutil
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rlopt.study.files import read_json, write_json, write_text
from rlopt.study.grid import Run, first_difference
from rlopt.study.locks import run_is_held
from rlopt.study.pruning import read_rule
from rlopt.study.resources import LOG_SECONDS, Meter, log

Status = Literal["waiting", "running", "finished", "pruned", "failed", "interrupted"]
STATUSES: tuple[Status, ...] = ("finished", "pruned", "running", "interrupted", "failed", "waiting")

# Runs that are done: they are not started again. Only the finished ones count in statistics.
DONE: tuple[Status, ...] = ("finished", "pruned")

# The live file is for people who watch: there is no need to write it more often than they can read.
_LIVE_SECONDS = 0.5


class Evaluation(NamedTuple):
    """One row of `evaluations.csv`: the score after `step` steps, `seconds` after the start."""

    step: int
    score: float
    seconds: float


class Live(NamedTuple):
    """What a run in progress last told; `live.json`.

    Args:
        step: Steps done.
        score: Its last evaluation, None before the first.
        start_step: Step at which its process began: 0, or the first that it told if it goes on from a checkpoint.
        steps_per_second: Of the last half minute.
        cpu_seconds: CPU time of its process, divided by the number of runs that share it.
        rss_bytes: Memory of its process.
        peak_rss_bytes: The most that it was.
    """

    step: int = 0
    score: float | None = None
    start_step: int = 0
    steps_per_second: float | None = None
    cpu_seconds: float | None = None
    rss_bytes: int | None = None
    peak_rss_bytes: int | None = None


class Recorder:
    """Writes what a run reports while it goes: how far it is, and its evaluations.

    A run that continues from a checkpoint finds its earlier evaluations in the folder and adds to them; an evaluation
    at step s replaces those at s and later, which belong to the part that is done again.

    A trial of a search that prunes is judged at each evaluation, and ended by an exception that is no `Exception`.

    Args:
        folder: The folder of the run.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> recorder = Recorder(folder)
        >>> recorder.evaluation(step=100, score=1.5)
        >>> [(row.step, row.score) for row in read_evaluations(folder)]
        [(100, 1.5)]
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows = read_evaluations(folder)
        self._start = time.monotonic() - (self._rows[-1].seconds if self._rows else 0.0)
        self._live_time, self._log_time = -_LIVE_SECONDS, time.monotonic()
        self._meter = Meter(read_manifest(folder).get("runs_in_process", 1))
        self._start_step = None if self._rows or (folder / "checkpoint").is_dir() else 0
        self._rule = read_rule(folder)
        for count in range(1, len(self._rows) + 1):  # a run that was stopped while it was judged
            self._judge(self._rows[:count])

    def progress(self, step: int) -> None:
        """Tell how many steps are done. Cheap: call it every step."""
        now = time.monotonic()
        if now - self._live_time >= _LIVE_SECONDS:
            self._live_time = now
            step = int(step)
            if self._start_step is None:
                self._start_step = step
            usage = self._meter.measure(step)
            live = Live(
                step=step,
                score=self._rows[-1].score if self._rows else None,
                start_step=self._start_step,
                steps_per_second=usage.steps_per_second,
                cpu_seconds=usage.cpu_seconds,
                rss_bytes=usage.rss_bytes,
                peak_rss_bytes=usage.peak_rss_bytes,
            )
            write_json(self._folder / "live.json", live._asdict(), sync=False)
            if now - self._log_time >= LOG_SECONDS:
                self._log_time = now
                log(self._folder, usage)

    def evaluation(self, step: int, score: float) -> None:
        """Add a row to `evaluations.csv`.

        Raises:
            ValueError: If the score is infinite or not a number, as happens when a run diverges.
            rlopt.study.pruning.Pruned: If the run is a trial that is to stop here.
        """
        if not math.isfinite(score):
            raise ValueError(f"score must be finite, got {score} at step {step}")
        kept = [row for row in self._rows if row.step < step]
        self._rows = [*kept, Evaluation(int(step), float(score), time.monotonic() - self._start)]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(Evaluation._fields)
        writer.writerows((row.step, repr(row.score), f"{row.seconds:.3f}") for row in self._rows)
        write_text(self._folder / "evaluations.csv", text.getvalue())
        self._judge(self._rows)

    def _judge(self, rows: Sequence[Evaluation]) -> None:
        if self._rule is not None:
            self._rule.check([row.step for row in rows], [row.score for row in rows])


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Return the evaluations of a run so far, in the order of their steps.

    Raises:
        ValueError: If the file is damaged; the message names it.
    """
    path = folder / "evaluations.csv"
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [Evaluation(int(r["step"]), float(r["score"]), float(r["seconds"])) for r in reader]
        if reader.fieldnames is None:
            raise ValueError("nothing")
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} must have the columns step, score, seconds; delete this run's folder") from None
    for row in rows:
        if not math.isfinite(row.score):
            raise ValueError(f"{path} must hold finite scores, got {row.score} at step {row.step}; delete this run's folder")
    return rows


def read_live(folder: Path) -> Live:
    """Return how far a run in progress is; nothing but zeros and None before its first report."""
    try:
        live = read_json(folder / "live.json")
        return Live(**live)
    except (FileNotFoundError, TypeError, ValueError):
        return Live()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run, empty before it was started."""
    try:
        return read_json(folder / "manifest.json")
    except FileNotFoundError:
        return {}


def update_manifest(folder: Path, **changes: Any) -> None:
    """Set fields of a run's manifest."""
    write_json(folder / "manifest.json", {**read_manifest(folder), **changes})


def read_status(folder: Path) -> Status:
    """Return the status of a run: `running` while a process holds it; one whose process has vanished counts as interrupted."""
    held = run_is_held(folder)  # before the manifest, so that a run that ends in between does not look interrupted
    status: Status = read_manifest(folder).get("status", "waiting")
    if held:
        return status if status in DONE else "running"
    return "interrupted" if status == "running" else status


def check_config(run: Run) -> None:
    """Refuse a folder that holds a run of another configuration.

    Raises:
        ValueError: If `config.json` is there and differs; the message names the first field and both values.
    """
    path = run.folder / "config.json"
    if not path.exists():
        return
    difference = first_difference(read_json(path), run.config)
    if difference is not None:
        field, old, new = difference
        raise ValueError(
            f"{run.folder} holds a run with {field} = {old}, but {field} = {new} is asked for; "
            f"choose another study name or delete that folder"
        )


def announce(run: Run) -> None:
    """Make the folder of a run that is going to come, so that its status is known to be `waiting`."""
    if not (run.folder / "config.json").exists():
        run.folder.mkdir(parents=True, exist_ok=True)
        write_json(run.folder / "config.json", run.config, sync=False)


def prepare(folder: Path) -> None:
    """Make the folder of a run ready to start.

    What an earlier attempt left is deleted, unless it left a `checkpoint/`: then the run is expected to go on from it.
    `config.json` stays where it is all the time: other commands look at it.
    """
    checkpoint = folder / "checkpoint"
    if checkpoint.is_dir() and any(checkpoint.iterdir()):
        for leftover in ("error.txt", "live.json"):
            (folder / leftover).unlink(missing_ok=True)
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "config.json":
            path.unlink()


def now() -> str:
    """Return the time in UTC as text."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def summarise(statuses: Sequence[Status]) -> str:
    """Return for instance `5 finished, 1 failed`."""
    counts = {status: statuses.count(status) for status in STATUSES}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no runs"
