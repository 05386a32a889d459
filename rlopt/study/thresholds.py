"""What a run must reach not to be pruned, from the evaluations of earlier trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rlopt.study.results import align
from rlopt.study.task import Task

FloatArray = NDArray[np.float64]
Pruner = Literal["median", "halving"]

# A threshold needs so many earlier scores: the first trials of a search always run to their end.
NUM_JUDGES = 4

# Before this share of the steps the median does not judge: the first evaluations of a training say little.
MEDIAN_START = 0.25

# Where halving judges, as shares of the steps: after each, about half of the trials go on.
HALVING_SHARES = (1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True)
class Curve:
    """Evaluations of a run of an earlier trial that has not failed.

    Args:
        steps: Their steps, shape (evaluations,).
        scores: Their scores, shape (evaluations,).
        whole: Whether the run went to its end.
    """

    steps: FloatArray
    scores: FloatArray
    whole: bool


def check_pruner(pruner: str | None) -> None:
    """Refuse a name that is none of a pruner.

    Raises:
        ValueError: If it is neither `median`, `halving` nor None.
    """
    if pruner is not None and pruner not in get_args(Pruner):
        raise ValueError(f"pruner must be one of {', '.join(get_args(Pruner))} or None, got {pruner!r}")


def make_rule(pruner: Pruner, task: Task, earlier: Mapping[int, Sequence[Curve]]) -> dict[str, Any]:
    """Return the rule for the next trials as it stands in their configs; see `rlopt.study.pruning.Rule`.

    Args:
        pruner: `median`: the best score of a run so far is compared with the median of the scores that earlier runs had at that
            step, of those that went to their end (an earlier run keeps its last score until its next evaluation). `halving`: at
            1/8, 1/4 and 1/2 of the steps the score of a run is to be among the better half of all that got there, itself included.
        task: The run of a trial.
        earlier: Seed -> runs with it of earlier trials. A run is judged against those with its own seed only.

    Raises:
        ValueError: If runs record nothing at which they could be stopped.

    References:
        Golovin et al., Google Vizier, KDD 2017 (the median rule; here the best score stands for the running mean, as in Optuna).
        Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020 (asynchronous halving).
    """
    for curves in earlier.values():
        if curves and not any((curve.steps < task.total_steps).any() for curve in curves):
            raise ValueError(
                f"pruner has no effect: runs on {task.name} record no evaluation before their last step {task.total_steps}; "
                f"evaluate more often or drop it"
            )
    make = _median if pruner == "median" else _halving
    return {
        "goal": task.goal,
        "judged": "best" if pruner == "median" else "last",
        "total_steps": task.total_steps,
        "thresholds": {str(seed): make(task, curves) for seed, curves in earlier.items()},
    }


def _median(task: Task, curves: Sequence[Curve]) -> list[tuple[int, float]]:
    whole = [(curve.steps, curve.scores) for curve in curves if curve.whole]
    if len(whole) < NUM_JUDGES:
        return []
    grid, scores = align(whole)  # (checkpoints,), (runs, checkpoints)
    inside = (grid >= MEDIAN_START * task.total_steps) & (grid < task.total_steps)
    return [(int(step), float(middle)) for step, middle in zip(grid[inside], np.median(scores, axis=0)[inside], strict=True)]


def _halving(task: Task, curves: Sequence[Curve]) -> list[tuple[int, float]]:
    found = []
    sign = 1.0 if task.goal == "maximize" else -1.0
    for share in HALVING_SHARES:
        rung = share * task.total_steps
        scores = [curve.scores[np.argmax(curve.steps >= rung)] for curve in curves if curve.steps[-1] >= rung]
        if len(scores) >= NUM_JUDGES:
            # Among the better (n + 1) // 2 of n + 1: at most so many less one may be better.
            allowed = (len(scores) + 1) // 2 - 1
            found.append((int(np.ceil(rung)), float(sorted(scores, key=lambda score: -sign * score)[allowed])))
    return found
