"""All runs of a study as they are at this moment, and the table that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from rlopt.study.files import read_json
from rlopt.study.record import read_study
from rlopt.study.runs import Status, read_evaluations, read_live, read_manifest, read_status, summarise

# What one looks for first comes first, and is kept where not all fit.
_ORDER: tuple[Status, ...] = ("running", "failed", "interrupted", "waiting", "pruned", "finished")
_STYLES = {"running": "cyan", "failed": "red", "interrupted": "yellow", "waiting": "dim", "pruned": "dim", "finished": "green"}


class Place(NamedTuple):
    """Where a run is: what it is called, its folder, and the steps that it is to do."""

    label: str
    folder: Path
    total_steps: int


class Row(NamedTuple):
    """A run at one moment.

    Args:
        label: Task, variant and seed.
        status: How it is.
        step: Steps done, as far as they are known.
        total_steps: Steps that it is to do.
        steps_per_second: Of the last half minute while it runs, on average when it has ended.
        score: Its last evaluation.
        rss_bytes: Memory of its process while it runs, the most that it was when it has ended.
    """

    label: str
    status: Status
    step: int
    total_steps: int
    steps_per_second: float | None = None
    score: float | None = None
    rss_bytes: int | None = None

    @property
    def seconds_left(self) -> float | None:
        """Time until a running run has done its steps, at its present speed."""
        if self.status != "running" or not self.steps_per_second:
            return None
        return max(0, self.total_steps - self.step) / self.steps_per_second


class Watch:
    """Reads the folders of runs again and again, those that have ended only once."""

    def __init__(self) -> None:
        self._ended: dict[Path, tuple[int, Row]] = {}

    def rows(self, places: Iterable[Place]) -> list[Row]:
        """Return the runs as they are now.

        Raises:
            ValueError: If a file of a run is damaged; the message names it.
        """
        return [self._row(place) for place in places]

    def _row(self, place: Place) -> Row:
        label, folder, total = place
        try:
            changed = (folder / "manifest.json").stat().st_mtime_ns
        except FileNotFoundError:
            return Row(label, "waiting", 0, total)
        if folder in self._ended and self._ended[folder][0] == changed:
            return self._ended[folder][1]
        status = read_status(folder)
        if status == "running":
            live = read_live(folder)
            return Row(label, status, live.step, total, live.steps_per_second, live.score, live.rss_bytes)
        evaluations, manifest = read_evaluations(folder), read_manifest(folder)
        last = evaluations[-1] if evaluations else None
        step = total if status == "finished" else last.step if last else 0
        speed, memory = manifest.get("steps_per_second"), manifest.get("peak_rss_bytes")
        row = Row(label, status, step, total, speed, last.score if last else None, memory)
        self._ended[folder] = changed, row
        return row


def find_runs(study: Path) -> list[Place]:
    """Return the runs of a study, in the order of tasks, variants and seeds.

    Raises:
        ValueError: If the folder is not one of a study, or a file is damaged.
    """
    record = read_study(study)
    steps, variants = {task.name: task.total_steps for task in record.tasks}, list(record.variants)
    found = []
    for path in study.glob("*/*/seed_*/config.json"):
        config = read_json(path)
        task, variant, seed = str(config["task"]), str(config["variant"]), int(config["seed"])
        if task in steps and variant in variants:
            key = (list(steps).index(task), variants.index(variant), seed)
            found.append((key, Place(f"{task} / {variant} / seed {seed}", path.parent, steps[task])))
    return [place for _, place in sorted(found)]


def runs_table(rows: Sequence[Row], most: int | None = None) -> Table:
    """Return the table of all runs.

    Args:
        rows: The runs.
        most: Lines that there is room for, without the header; runs that go first, then those that failed, and so on. The last
            line counts those left out. None: all runs, in their order.
    """
    table = Table("run", "state", box=None, pad_edge=False)
    for name in ("step", "of", "steps/s", "time left", "last score", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    shown, hidden = list(rows), []
    if most is not None and len(rows) > most:
        first = sorted(rows, key=lambda row: _ORDER.index(row.status))
        shown, hidden = first[: max(0, most - 1)], first[max(0, most - 1) :]
    for row in shown:
        table.add_row(
            Text(row.label),  # a name may hold brackets
            Text(row.status, style=_STYLES[row.status]),
            f"{row.step:,}",
            f"{row.total_steps:,}",
            "" if row.steps_per_second is None else f"{row.steps_per_second:,.{0 if row.steps_per_second >= 10 else 1}f}",
            "" if row.seconds_left is None else duration(row.seconds_left),
            "" if row.score is None else f"{row.score:.4g}",
            "" if row.rss_bytes is None else f"{row.rss_bytes / 2**20:,.0f} MiB",
        )
    if hidden:
        table.add_row(f"and {summarise([row.status for row in hidden])}")
    return table


def duration(seconds: float) -> str:
    """Return for instance 1:02:05 or 0:42."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
