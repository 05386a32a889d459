"""What runs cost, and their scores at equal time: for tasks that say where seconds and memory are recorded."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlopt.study import figures, words
from rlopt.study.document import Block, Figure, Heading, Paragraph, Table
from rlopt.study.figures import Style, TimedCurve
from rlopt.study.results import RunResult, StudyResults
from rlopt.study.task import Costs, Task

_MIB = 2.0**20


class CostRow(NamedTuple):
    """A row of the table of costs; medians over seeds, None where nothing is known.

    Args:
        variant: Name of the variant.
        seeds: Its finished runs that tell their seconds.
        score: Final score.
        seconds: Seconds for all steps of the task; of a run that trained for some of them only, in proportion.
        relative_seconds: `seconds` divided by those of the baseline.
        equal_seconds: Time of the comparison with the baseline, each seed with the same seed: when the quicker of the two ended.
        equal_score: Score at that time, by the last evaluation not later.
        equal_baseline_score: Score of the baseline at that time.
        memory_mib: Largest memory of a run in MiB.
    """

    variant: str
    seeds: int
    score: float
    seconds: float | None
    relative_seconds: float | None
    equal_seconds: float | None
    equal_score: float | None
    equal_baseline_score: float | None
    memory_mib: float | None


class _Timed(NamedTuple):
    run: RunResult
    curve: TimedCurve
    memory: float | None


def section(results: StudyResults, task: Task, style: Mapping[str, Style]) -> list[Block]:
    """Scores against seconds, and the table of costs; nothing for a task without `costs`."""
    costs, rows = task.costs, cost_rows(results, task)
    if costs is None or not rows:
        return []
    baseline, key = results.record.baseline, words.figure_name(task.name)
    curves = {row.variant: [timed.curve for timed in _timed(results, task, costs, row.variant)] for row in rows}
    header = (
        "variant",
        f"{task.score_name} after {task.total_steps:,} {task.step_name}",
        f"{costs.seconds_name} for them",
        f"relative to {baseline}",
        f"equal {costs.seconds_name}",
        f"{task.score_name} then",
        f"{baseline} then",
        *([f"{costs.memory_name} (MiB)"] if costs.memory else []),
        "seeds",
    )
    cells = tuple(_cells(row, with_memory=costs.memory is not None) for row in rows)
    lower = "" if task.goal == "maximize" else " Lower is better."
    return [
        Heading("Equal time", 3),
        Figure(
            f"{key}-time",
            figures.time_curves(curves, style, task, costs.seconds_name),
            f"{task.name}: {task.score_name} against {costs.seconds_name}. Thick lines: medians over seeds of both, at each "
            f"evaluation; thin lines: the seeds.{lower}",
        ),
        Paragraph(
            f"Medians over seeds. For equal time each seed is compared with the same seed of {baseline} when the quicker of the "
            f"two ended, by the last evaluations not later than that (a dash: none by then); the other one is cut short, though "
            f"its schedule was made for all {task.step_name}. Seconds depend on the machine and on what else it did."
        ),
        Table(header, cells),
    ]


def cost_rows(results: StudyResults, task: Task) -> list[CostRow]:
    """Return the rows of the table of costs, none for a task without `costs`.

    Raises:
        ValueError: If a file of a run is damaged; the message names it.
    """
    costs = task.costs
    if costs is None:
        return []
    found = {variant: _timed(results, task, costs, variant) for variant in results.variants(task.name)}
    baseline = {timed.run.seed: timed.curve for timed in found.get(results.record.baseline, [])}
    whole = {variant: _median([_whole_seconds(timed.curve, task) for timed in runs]) for variant, runs in found.items()}
    whole_baseline = whole.get(results.record.baseline)
    rows = []
    for variant, runs in found.items():
        if not runs:
            continue
        seconds = whole[variant]
        equal = [_equal(timed.curve, baseline[timed.run.seed]) for timed in runs if timed.run.seed in baseline]
        rows.append(
            CostRow(
                variant=variant,
                seeds=len(runs),
                score=float(np.median([timed.run.final for timed in runs])),
                seconds=seconds,
                relative_seconds=seconds / whole_baseline if seconds and whole_baseline else None,
                equal_seconds=_median([time for time, _, _ in equal]),
                equal_score=_median([score for _, score, _ in equal]),
                equal_baseline_score=_median([score for _, _, score in equal]),
                memory_mib=_median([None if timed.memory is None else timed.memory / _MIB for timed in runs]),
            )
        )
    return rows


def csv_path(folder: Path, task: Task) -> Path:
    """Return where the table of costs goes in the folder of a study."""
    return folder / f"{words.figure_name(task.name)}-costs.csv"


def _timed(results: StudyResults, task: Task, costs: Costs, variant: str) -> list[_Timed]:
    """Return the finished runs that tell their seconds."""
    return [found for run in results.finished(task.name, variant) if (found := _read(run, costs)) is not None]


def _read(run: RunResult, costs: Costs) -> _Timed | None:
    """Return a run with its seconds; None if no evaluation has any, or the clock began anew, as in a run that was resumed."""
    path = run.folder / "progress.csv"
    if not path.exists():
        return None
    seconds: dict[float, float] = {}
    memory: list[float] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get(costs.step) and row.get(costs.seconds):
                    seconds[float(row[costs.step])] = float(row[costs.seconds])
                if costs.memory and row.get(costs.memory):
                    memory.append(float(row[costs.memory]))
    except ValueError:
        raise ValueError(
            f"{path} must hold numbers in its columns of steps, seconds and memory; delete this run's folder"
        ) from None
    known = np.array([step in seconds for step in run.steps.tolist()], dtype=bool)
    times = np.array([seconds[step] for step in run.steps[known].tolist()])
    if not known.any() or (np.diff(times) < 0).any():
        return None
    return _Timed(run, TimedCurve(run.steps[known], times, run.scores[known]), max(memory, default=None))


def _whole_seconds(curve: TimedCurve, task: Task) -> float | None:
    """Return the seconds for all steps, by the steps until the clock stopped, as it does in a run that diverged."""
    last = int(np.argmax(curve.seconds >= curve.seconds[-1]))
    return float(curve.seconds[last] / curve.steps[last] * task.total_steps) if curve.steps[last] > 0 else None


def _equal(curve: TimedCurve, baseline: TimedCurve) -> tuple[float, float | None, float | None]:
    """Return the time when the quicker of two runs ended, and both scores then."""
    time = float(min(curve.seconds[-1], baseline.seconds[-1]))
    return time, curve.at(time), baseline.at(time)


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median, None without values or if one is not known."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known and len(known) == len(values) else None


def _cells(row: CostRow, *, with_memory: bool) -> tuple[str, ...]:
    values = [row.score, row.seconds, row.relative_seconds, row.equal_seconds, row.equal_score, row.equal_baseline_score]
    values += [row.memory_mib] if with_memory else []
    return (row.variant, *("–" if value is None else words.number(value) for value in values), str(row.seeds))
