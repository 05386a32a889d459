"""Trials of a search that have ended, what a search found, and reading trials from their runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlopt.study.grid import Run
from rlopt.study.ranges import filled, ranges_in
from rlopt.study.results import align, final_score
from rlopt.study.runs import DONE, Evaluation, read_evaluations, read_status
from rlopt.study.task import Goal, Task


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Args:
        values: Name of each searched option, dotted where it is nested -> its value.
        score: Mean final score over the seeds; of a run that was pruned, the final score of what it recorded.
        failed: Whether a run of it failed; then the score is `failed_score`.
        pruned: Whether a run of it was stopped early, as clearly worse than earlier ones.
        saved_steps: Steps that its runs did not do as they were pruned.
    """

    values: Mapping[str, float]
    score: float
    failed: bool
    pruned: bool = False
    saved_steps: int = 0


@dataclass(frozen=True)
class Tuned:
    """What a search found for one variant.

    Args:
        variant: The options as they were given, with ranges.
        trials: All trials, in their order.
        goal: Whether high scores are good ("maximize") or low ones ("minimize").
        trial_steps: Steps of a trial that is not pruned, those of its seeds together.
    """

    variant: Mapping[str, Any]
    trials: tuple[Trial, ...]
    goal: Goal
    trial_steps: int

    @property
    def best(self) -> Trial:
        """The trial with the best score, the first of equals: of those that went to their end, else pruned, else failed ones."""
        sign = 1.0 if self.goal == "minimize" else -1.0
        return min(self.trials, key=lambda trial: (trial.failed, trial.pruned, sign * trial.score))

    @property
    def options(self) -> dict[str, Any]:
        """The options with the best values in the places of the ranges."""
        return filled(self.variant, self.best.values)

    @property
    def edges(self) -> dict[str, Literal["lower", "upper"]]:
        """The options whose best value lies in the outer tenth of its range, where a wider range may hold a better one."""
        found = {name: span.edge(self.best.values[name]) for name, span in ranges_in(self.variant).items()}
        return {name: edge for name, edge in found.items() if edge is not None}

    @property
    def total_steps(self) -> int:
        """The steps that all trials would have taken without pruning."""
        return len(self.trials) * self.trial_steps

    @property
    def saved_steps(self) -> int:
        """The steps that pruning saved."""
        return sum(trial.saved_steps for trial in self.trials)


@dataclass(frozen=True)
class Outcome:
    """How the runs of a trial ended.

    Args:
        score: Mean final score; None if a run failed.
        evaluations: Seed -> evaluations of its run; empty if a run failed.
        pruned: Seeds whose runs were pruned.
        saved_steps: Steps that these did not do.
    """

    score: float | None
    evaluations: Mapping[int, Sequence[Evaluation]]
    pruned: tuple[int, ...]
    saved_steps: int

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Seed -> points (step, score), as JSON values."""
        return {str(seed): [(row.step, row.score) for row in rows] for seed, rows in self.evaluations.items()}

    @property
    def mean_curve(self) -> dict[int, float]:
        """Step -> mean score over the seeds; a run keeps its last score until its next evaluation."""
        if not self.evaluations:
            return {}
        columns = [np.array(points, dtype=np.float64).T for points in self.curves.values()]  # each (2, evaluations)
        grid, scores = align([(steps, values) for steps, values in columns])
        return {int(step): float(score) for step, score in zip(grid, scores.mean(axis=0), strict=True)}


def read_outcome(task: Task, runs: Sequence[Run], *, may_fail: bool) -> Outcome | None:
    """Read how a trial ended; None if it has not.

    Args:
        task: The run of a trial.
        runs: Its runs, one for each seed.
        may_fail: Whether a trial with a run that failed has ended.

    Raises:
        ValueError: If a run has ended without an evaluation.
    """
    statuses = {run.seed: read_status(run.folder) for run in runs}
    if may_fail and "failed" in statuses.values():
        return Outcome(None, {}, (), 0)
    if any(status not in DONE for status in statuses.values()):
        return None
    found = {run.seed: read_evaluations(run.folder) for run in runs}
    for run in runs:
        if not found[run.seed]:
            raise ValueError(f"every run of a search must record an evaluation, but {run.folder} has none")
    scores = [final_score(np.array([row.score for row in rows]), task.final_evaluations) for rows in found.values()]
    pruned = tuple(seed for seed, status in statuses.items() if status == "pruned")
    return Outcome(float(np.mean(scores)), found, pruned, sum(task.total_steps - found[seed][-1].step for seed in pruned))
