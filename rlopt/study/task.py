"""A task of a study: what is run, and how its scores are to be read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Goal = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Costs:
    """Columns of `progress.csv` that tell what a run costs; the report then compares variants at equal time too.

    Args:
        step: Column with the step of a row; evaluations find their seconds by it.
        seconds: Column with the seconds since the start of a run, best of training alone, without evaluations.
        seconds_name: What the seconds are, for axes and headings.
        memory: Column with bytes of memory, for instance of the state of an optimizer. None: no memory is told.
        memory_name: What the memory is for, for headings.
    """

    step: str
    seconds: str
    seconds_name: str = "CPU seconds"
    memory: str | None = None
    memory_name: str = "optimizer state"


@dataclass(frozen=True)
class Task:
    """A problem that every variant is run on.

    Args:
        name: Name in tables and folders, for instance an environment id.
        total_steps: Steps of one run, >= 1; the progress display counts in them.
        config: Options of the run that all variants share.
        low: Score of an agent that knows nothing, normalised to 0. None: the worst evaluation in the study.
        high: Score at which the task counts as solved, normalised to 1; better than `low`, so it is the smaller one with
            goal "minimize". None: the best evaluation in the study.
        goal: Whether high scores are good ("maximize") or low ones ("minimize", for errors and costs). Everything in the
            report that says or means "better" follows it.
        score_name: What the scores are, for axes and headings.
        step_name: What the steps count, in the plural, for axes and headings.
        log_scale: Whether the learning curves have logarithmic axes and the final scores a logarithmic one; normalisation and the
            thresholds of sample efficiency then work on logarithms. Scores and steps must be > 0; the report refuses others.
        references: Name -> (step, score) points of a line drawn in the learning curves, at least two, steps increasing; between
            them it is straight in the scale of the axes, so that a power law needs two points only. Where such a line reaches
            the last step, the report tells the ratio of the final scores to it.
        final_evaluations: How many last evaluations the final score of a run averages, >= 1. None: the last tenth of them.
        costs: Where runs tell their seconds and memory. None: the report compares at equal steps only.

    Raises:
        ValueError: If a field is out of its range.

    Example: an error that cannot fall faster than 3 / sqrt(samples).
        >>> task = Task("arm", 10_000, goal="minimize", log_scale=True, references={"limit": [(1, 3.0), (10_000, 0.03)]})
        >>> round(task.reference("limit", 100), 12)
        0.3
    """

    name: str
    total_steps: int
    config: Mapping[str, Any] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    goal: Goal = "maximize"
    score_name: str = "evaluation score"
    step_name: str = "environment steps"
    log_scale: bool = False
    references: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    final_evaluations: int | None = None
    costs: Costs | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("name of a task must not be empty")
        if self.total_steps < 1:
            raise ValueError(f"total_steps of task {self.name} must be >= 1, got {self.total_steps}")
        if self.goal not in get_args(Goal):
            raise ValueError(f"goal of task {self.name} must be one of {', '.join(get_args(Goal))}, got {self.goal!r}")
        for label in ("score_name", "step_name"):
            if not getattr(self, label):
                raise ValueError(f"{label} of task {self.name} must not be empty")
        if self.final_evaluations is not None and self.final_evaluations < 1:
            raise ValueError(f"final_evaluations of task {self.name} must be >= 1, got {self.final_evaluations}")
        self._check_range()
        self._check_references()

    @property
    def better(self) -> str:
        """Which scores are better: `higher` or `lower`."""
        return "higher" if self.goal == "maximize" else "lower"

    def record(self) -> dict[str, Any]:
        """Return what a report needs to know, as JSON values: every field but `config`, which each run has of its own."""
        record = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in ("config", "costs")}
        return record if self.costs is None else {**record, "costs": asdict(self.costs)}

    def normalise(self, scores: ArrayLike, zero: float, one: float) -> FloatArray:
        """Return the scores with `zero` moved to 0 and `one` to 1, on logarithms with `log_scale`; more is better.

        Args:
            scores: Scores of any shape.
            zero: The worse score.
            one: The better score.
        """
        values, start, end = (self._transform(value) for value in (scores, zero, one))
        return np.asarray((values - start) / (end - start))

    def part_way(self, zero: float, one: float, share: float) -> float:
        """Return the score that is normalised to `share`: the inverse of `normalise`."""
        start, end = (self._transform(value) for value in (zero, one))
        found = float(start + share * (end - start))
        return math.exp(found) if self.log_scale else found

    def reference(self, name: str, step: float) -> float | None:
        """Return the height of a reference line at a step, None where the line does not reach."""
        steps, scores = (self._transform(column) for column in np.array(self.references[name]).T)
        place = float(self._transform(step))
        if not steps[0] <= place <= steps[-1]:
            return None
        found = float(np.interp(place, steps, scores))
        return math.exp(found) if self.log_scale else found

    def _transform(self, values: ArrayLike) -> FloatArray:
        array = np.asarray(values, dtype=np.float64)
        return np.log(array) if self.log_scale else array

    def _check_range(self) -> None:
        low, high = self.low, self.high
        if low is None and high is None:
            return
        if low is None or high is None:
            raise ValueError(f"low and high of task {self.name} must be given together, got {low} and {high}")
        if self.goal == "maximize" and low >= high:
            raise ValueError(f"low of task {self.name} must be below high, got {low} and {high}")
        if self.goal == "minimize" and low <= high:
            raise ValueError(f"low of task {self.name} must be above high with goal minimize, got {low} and {high}")
        if self.log_scale and min(low, high) <= 0:
            raise ValueError(f"low and high of task {self.name} must be > 0 with log_scale, got {low} and {high}")

    def _check_references(self) -> None:
        clean = {}
        for name, points in self.references.items():
            where = f"reference {name!r} of task {self.name}"
            if len(points) < 2 or any(len(point) != 2 for point in points):
                raise ValueError(f"{where} must have at least two points (step, score), got {points!r}")
            array = np.array(points, dtype=np.float64)  # (points, 2)
            if not np.isfinite(array).all() or (self.log_scale and (array <= 0).any()):
                allowed = "finite points, > 0 with log_scale" if self.log_scale else "finite points"
                raise ValueError(f"{where} must have {allowed}, got {points!r}")
            if any(after <= before for before, after in pairwise(array[:, 0])):
                raise ValueError(f"{where} must have increasing steps, got {array[:, 0].tolist()}")
            clean[name] = tuple((float(step), float(score)) for step, score in array)
        object.__setattr__(self, "references", clean)  # plain numbers, as JSON gives them back
