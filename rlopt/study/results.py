"""Reading a study back: runs, final scores, learning curves, normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlopt.study.files import read_json
from rlopt.study.record import StudyRecord, read_study
from rlopt.study.runs import Status, read_evaluations, read_manifest, read_status
from rlopt.study.task import Task

FloatArray = NDArray[np.float64]

# A run's final score is the mean of this last part of its evaluations, unless its task says how many.
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
        final_evaluations: How many last ones the final score averages; see `final_score`.
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
    final_evaluations: int | None

    @property
    def final(self) -> float:
        """The final score, a mean of the last evaluations."""
        return final_score(self.scores, self.final_evaluations)


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

    def seeds(self, task: str, variant: str) -> list[int]:
        """Return the seeds of the final scores."""
        return [run.seed for run in self.finished(task, variant)]

    def curves(self, task: str, variant: str) -> tuple[FloatArray, FloatArray]:
        """Return steps of shape (checkpoints,) and scores of shape (seeds, checkpoints)."""
        return align([(run.steps, run.scores) for run in self.finished(task, variant)])

    def scale(self, task: Task) -> tuple[float, float]:
        """Return the scores that are normalised to 0 and 1: those of the task, else the worst and the best in this study."""
        if task.low is not None and task.high is not None:
            return task.low, task.high
        scores = np.concatenate([run.scores for run in self.runs if run.task == task.name and run.scores.size])
        sign = 1.0 if task.goal == "maximize" else -1.0
        worst, best = sign * float((sign * scores).min()), sign * float((sign * scores).max())
        if worst == best:  # a score that all runs share is normalised to 0
            best = worst * 2.0**sign if task.log_scale else worst + sign
        return worst, best

    def check_scores(self) -> None:
        """Refuse what a logarithmic scale cannot show.

        Raises:
            ValueError: If a task with `log_scale` has an evaluation with a score or step <= 0; the message names its file.
        """
        for task in self.record.tasks:
            for run in self.runs:
                if task.log_scale and run.task == task.name and ((run.scores <= 0) | (run.steps <= 0)).any():
                    bad = int(np.argmax((run.scores <= 0) | (run.steps <= 0)))
                    raise ValueError(
                        f"{run.folder / 'evaluations.csv'} must hold steps and scores > 0, as {task.name} has log_scale, "
                        f"got score {run.scores[bad]:g} at step {run.steps[bad]:.0f}; run the study without log_scale, "
                        f"or delete this run's folder"
                    )

    def reported_tasks(self) -> list[Task]:
        """Return the tasks on which any run is finished."""
        return [task for task in self.record.tasks if self.variants(task.name)]

    def normalised_finals(self, variant: str) -> tuple[list[int], FloatArray]:
        """Return the seeds that finished every reported task, and their normalised final scores, (seeds, tasks)."""
        tasks = self.reported_tasks()
        by_task = [{run.seed: run.final for run in self.finished(task.name, variant)} for task in tasks]
        seeds = sorted(set.intersection(*(set(found) for found in by_task)))
        if not seeds:
            return [], np.empty((0, len(by_task)))
        columns = [
            task.normalise([found[seed] for seed in seeds], *self.scale(task)) for task, found in zip(tasks, by_task, strict=True)
        ]
        return seeds, np.stack(columns, axis=1)  # (seeds, tasks)


def read_results(folder: Path) -> StudyResults:
    """Read all runs of a study.

    Raises:
        ValueError: If the folder is not one of a study, or one of its files is damaged; the message names it.
    """
    record = read_study(folder)
    tasks, variants = {task.name: task for task in record.tasks}, list(record.variants)
    runs = [_read_run(path.parent, tasks) for path in folder.glob("*/*/seed_*/config.json")]
    known = [run for run in runs if run is not None and run.variant in variants]
    known.sort(key=lambda run: (list(tasks).index(run.task), variants.index(run.variant), run.seed))
    return StudyResults(folder, record, tuple(known))


def final_score(scores: FloatArray, num_evaluations: int | None = None) -> float:
    """Return the mean of the last evaluations.

    Args:
        scores: The evaluations of a run, shape (evaluations,).
        num_evaluations: How many, all if there are fewer. None: the last tenth of them, at least one.

    Example:
        >>> final_score(np.arange(20.0))
        18.5
    """
    count = max(1, round(FINAL_SHARE * scores.size)) if num_evaluations is None else num_evaluations
    return float(scores[-count:].mean())


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


def _read_run(folder: Path, tasks: Mapping[str, Task]) -> RunResult | None:
    """Return the run in a folder, None if its task is not part of the study."""
    config = read_json(folder / "config.json")
    missing = [name for name in ("task", "variant", "seed") if name not in config]
    if missing or not isinstance(config["seed"], int):
        what = f"no {missing[0]}" if missing else f"the seed {config['seed']!r}"
        raise ValueError(f"{folder / 'config.json'} must hold the task, variant and seed of a run, got {what}; restore it")
    task = tasks.get(str(config["task"]))
    if task is None:
        return None
    rows = read_evaluations(folder)
    return RunResult(
        folder=folder,
        task=task.name,
        variant=str(config["variant"]),
        seed=int(config["seed"]),
        config=config,
        status=read_status(folder),
        manifest=read_manifest(folder),
        steps=np.array([row.step for row in rows], dtype=np.float64),
        scores=np.array([row.score for row in rows], dtype=np.float64),
        final_evaluations=task.final_evaluations,
    )
