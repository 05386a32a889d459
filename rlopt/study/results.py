"""Reading a study back: runs, final scores, learning curves, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlopt.study.files import read_json
from rlopt.study.record import StudyRecord, TaskRecord, read_study
from rlopt.study.runs import Status, read_evaluations, read_manifest, read_status

FloatArray = NDArray[np.float64]

# A run's final score is the mean of this last part of its evaluations.
FINAL_SHARE = 0.1


@dataclass(frozen=True)
class RunResult:
    """One run as it was left.

    Args:
        folder: Its folder.
        task: Name of the task.
        variant: Name of the variant.
        seed: The seed.
        config: What was asked for.
        status: How it went.
        manifest: Where, when, how long.
        steps: Steps of its evaluations, shape (evaluations,).
        scores: The evaluations, shape (evaluations,).
    """

    folder: Path
    task: str
    variant: str
    seed: int
    config: dict[str, Any]
    status: Status
    manifest: dict[str, Any]
    steps: FloatArray
    scores: FloatArray

    @property
    def final(self) -> float:
        """Mean of the last tenth of the evaluations, of at least one."""
        return final_score(self.scores)


@dataclass(frozen=True)
class StudyResults:
    """A study read back.

    Args:
        folder: Its folder.
        record: Its tasks, variants, baseline and commands.
        runs: All runs, in the order of tasks, variants and seeds.
    """

    folder: Path
    record: StudyRecord
    runs: tuple[RunResult, ...]

    def finished(self, task: str, variant: str) -> list[RunResult]:
        """Return the runs that count in statistics: finished, with at least one evaluation."""
        return [run for run in self.runs if (run.task, run.variant, run.status) == (task, variant, "finished") and run.scores.size]

    def variants(self, task: str) -> list[str]:
        """Return the variants that have a finished run on a task."""
        return [variant for variant in self.record.variants if self.finished(task, variant)]

    def finals(self, task: str, variant: str) -> FloatArray:
        """Return the final scores, shape (seeds,)."""
        return np.array([run.final for run in self.finished(task, variant)])

    def curves(self, task: str, variant: str) -> tuple[FloatArray, FloatArray]:
        """Return steps of shape (checkpoints,) and scores of shape (seeds, checkpoints)."""
        return align([(run.steps, run.scores) for run in self.finished(task, variant)])

    def scale(self, task: TaskRecord) -> tuple[float, float]:
        """Return the scores that are normalised to 0 and 1: those of the task, else the extremes in this study."""
        if task.low is not None and task.high is not None:
            return task.low, task.high
        scores = np.concatenate([run.scores for run in self.runs if run.task == task.name and run.scores.size])
        low, high = float(scores.min()), float(scores.max())
        return low, high if high > low else low + 1.0

    def reported_tasks(self) -> list[TaskRecord]:
        """Return the tasks on which any run is finished."""
        return [task for task in self.record.tasks if self.variants(task.name)]

    def normalised_finals(self, variant: str) -> tuple[list[int], FloatArray]:
        """Return the seeds that finished every reported task, and their normalised final scores, (seeds, tasks)."""
        tasks = self.reported_tasks()
        by_task = [{run.seed: run.final for run in self.finished(task.name, variant)} for task in tasks]
        seeds = sorted(set.intersection(*(set(found) for found in by_task)))
        if not seeds:
            return [], np.empty((0, len(by_task)))
        scales = [self.scale(task) for task in tasks]
        rows = [[(found[seed] - low) / (high - low) for found, (low, high) in zip(by_task, scales, strict=True)] for seed in seeds]
        return seeds, np.array(rows)


def read_results(folder: Path) -> StudyResults:
    """Read all runs of a study.

    Raises:
        ValueError: If the folder is not one of a study, or one of its files is damaged; the message names it.
    """
    record = read_study(folder)
    tasks, variants = [task.name for task in record.tasks], list(record.variants)
    runs = [_read_run(path.parent) for path in folder.glob("*/*/seed_*/config.json")]
    known = [run for run in runs if run.task in tasks and run.variant in variants]
    known.sort(key=lambda run: (tasks.index(run.task), variants.index(run.variant), run.seed))
    return StudyResults(folder, record, tuple(known))


def final_score(scores: FloatArray) -> float:
    """Return the mean of the last tenth of the evaluations, of at least one.

    Example:
        >>> final_score(np.arange(20.0))
        18.5
    """
    return float(scores[-max(1, round(FINAL_SHARE * scores.size)) :].mean())


def align(curves: list[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    """Bring learning curves to common steps: each keeps its last score until its next evaluation.

    Curves evaluated at equal steps come back unchanged. Steps before the first evaluation of the slowest are left out.

    Args:
        curves: For each seed the steps and the scores, both of shape (evaluations,).

    Returns:
        Steps of shape (checkpoints,), scores of shape (seeds, checkpoints).
    """
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = grid[grid >= max(steps[0] for steps, _ in curves)]
    rows = [scores[np.searchsorted(steps, grid, side="right") - 1] for steps, scores in curves]
    return grid, np.stack(rows)


def _read_run(folder: Path) -> RunResult:
    config = read_json(folder / "config.json")
    rows = read_evaluations(folder)
    return RunResult(
        folder=folder,
        task=str(config["task"]),
        variant=str(config["variant"]),
        seed=int(config["seed"]),
        config=config,
        status=read_status(folder),
        manifest=read_manifest(folder),
        steps=np.array([row.step for row in rows], dtype=np.float64),
        scores=np.array([row.score for row in rows], dtype=np.float64),
    )
