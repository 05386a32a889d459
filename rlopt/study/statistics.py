"""Statistics for few runs: interquartile mean, stratified bootstrap, probability of improvement.

A score array has one row per seed and one column per task; a third axis, where allowed, holds checkpoints of a learning
curve. The point estimates follow Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", NeurIPS 2021, arXiv 2108.13264, and equal those of the `rliable` package; the bootstrap is this module's
own, seeded and vectorised.

Example:
    >>> iqm([1.0, 2.0, 3.0, 100.0])
    2.5
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.study.task import Goal

FloatArray = NDArray[np.float64]
Statistic = Callable[[Any], float]

# Resampled scores held in memory at a time: 4M float64 are 32 MB.
_CHUNK_ELEMENTS = 4_000_000


class Interval(NamedTuple):
    """A point estimate with the ends of its percentile interval.

    The fields have shape (checkpoints,) for scores with a checkpoint axis and shape () otherwise, so `float(i.low)`
    works.
    """

    estimate: FloatArray
    low: FloatArray
    high: FloatArray


def mean(scores: ArrayLike) -> float:
    """Return the mean over all seeds and tasks.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).
    """
    return float(_mean(_as_scores(scores, max_ndim=2)))


def median(scores: ArrayLike) -> float:
    """Return the median over tasks of each task's mean over seeds; for a single task, the median over seeds.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).
    """
    return float(_median(_as_scores(scores, max_ndim=2)))


def iqm(scores: ArrayLike) -> float:
    """Return the interquartile mean: the mean of what is left after cutting the lowest and the highest quarter.

    Seeds and tasks are pooled. As in `scipy.stats.trim_mean(scores, 0.25, axis=None)`, the number cut on each side is
    rounded down, so with up to three values it is the mean.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).

    Example:
        >>> iqm([[0.0, 2.0], [4.0, 90.0]])
        3.0
    """
    return float(_iqm(_as_scores(scores, max_ndim=2)))


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> float:
    """Return by how much the runs fall short of `target` on average; what lies above it does not count.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks), usually normalised per task.
        target: The score that is good enough.
    """
    return float(target - np.minimum(_as_scores(scores, max_ndim=2), target).mean())


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> FloatArray:
    """Return, for each threshold, the fraction of runs (seeds and tasks pooled) that score above it.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).
        thresholds: Array of shape (thresholds,).

    Returns:
        Array of shape (thresholds,), non-increasing if the thresholds increase.
    """
    ordered = np.sort(_as_scores(scores, max_ndim=2), axis=None)
    above = ordered.size - np.searchsorted(ordered, np.asarray(thresholds, dtype=np.float64), side="right")
    return np.asarray(above / ordered.size, dtype=np.float64)


def sample_efficiency(steps: ArrayLike, curves: ArrayLike, threshold: float, goal: Goal = "maximize") -> FloatArray:
    """Return for each run the first step at which its evaluation is at least `threshold`, at most for "minimize".

    Args:
        steps: Steps of the evaluations, shape (checkpoints,), increasing.
        curves: Evaluations, shape (seeds, checkpoints).
        threshold: The score to reach.
        goal: Whether high evaluations are good ("maximize") or low ones ("minimize").

    Returns:
        Array of shape (seeds,); infinity for a run that never reached it.
    """
    times = np.asarray(steps, dtype=np.float64)
    values = np.asarray(curves, dtype=np.float64)
    if values.ndim != 2 or times.shape != (values.shape[1],):
        raise ValueError(
            f"curves must have shape (seeds, checkpoints) with one step per checkpoint, "
            f"got curves {values.shape} and steps {times.shape}"
        )
    reached = values >= threshold if goal == "maximize" else values <= threshold  # (seeds, checkpoints)
    return np.where(reached.any(axis=1), times[reached.argmax(axis=1)], np.inf)


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Statistic = iqm,
    *,
    confidence: float = 0.95,
    repetitions: int = 50_000,
    seed: int = 0,
) -> Interval:
    """Return a statistic with its stratified bootstrap percentile interval.

    Each repetition draws, within every task and independently of the other tasks, as many seeds as there are with
    replacement; a drawn seed brings its whole learning curve along.

    Args:
        scores: Array of shape (seeds,), (seeds, tasks) or (seeds, tasks, checkpoints); finite.
        statistic: `iqm`, `mean`, `median`, or any function from a (seeds, tasks) array to a number (slower: called once
            per repetition and checkpoint).
        confidence: Probability content of the interval, in (0, 1).
        repetitions: Number of resampled data sets, >= 1.
        seed: Seed of the resampling, so that equal calls give equal intervals.

    Returns:
        Estimate on the data itself, lower and upper end.

    Raises:
        ValueError: If the scores are not finite or of another shape, or a parameter is out of its range.
    """
    data = _as_scores(scores, max_ndim=3)
    _check_bootstrap(confidence, repetitions)
    cube = data if data.ndim == 3 else data[..., np.newaxis]  # (seeds, tasks, checkpoints)
    cube = np.ascontiguousarray(np.moveaxis(cube, 2, 0))  # (checkpoints, seeds, tasks)
    num_checkpoints, num_seeds, num_tasks = cube.shape
    batched = _BATCHED.get(statistic)

    def evaluate(samples: FloatArray) -> FloatArray:  # (..., seeds, tasks) -> (...)
        if batched is not None:
            return batched(samples)
        flat = samples.reshape(-1, num_seeds, num_tasks)
        return np.array([float(statistic(sample)) for sample in flat]).reshape(samples.shape[:-2])

    rng = np.random.default_rng(seed)
    columns = np.arange(num_tasks)
    draws = np.empty((repetitions, num_checkpoints))
    for rows in _chunks(repetitions, cube.size):
        index = rng.integers(num_seeds, size=(rows.stop - rows.start, num_seeds, num_tasks))
        samples = cube[:, index, columns]  # (checkpoints, repetitions, seeds, tasks)
        draws[rows] = evaluate(samples).T
    estimate = evaluate(cube)
    low, high = _percentiles(draws, confidence)
    if data.ndim < 3:
        return Interval(estimate[0], low[0], high[0])
    return Interval(estimate, low, high)


def probability_of_improvement(
    x: ArrayLike,
    y: ArrayLike,
    *,
    confidence: float = 0.95,
    repetitions: int = 50_000,
    seed: int = 0,
    goal: Goal = "maximize",
) -> Interval:
    """Return the probability that a random run of X beats a random run of Y, with its bootstrap interval.

    For one task it is the Mann-Whitney statistic P(X > Y) + P(X = Y) / 2 over all pairs of seeds, with X < Y for "minimize";
    several tasks are averaged. The bootstrap resamples the seeds of X and of Y within each task.

    Args:
        x: Scores of shape (seeds of x,) or (seeds of x, tasks).
        y: Scores of shape (seeds of y,) or (seeds of y, tasks), the same tasks in the same order.
        confidence: Probability content of the interval, in (0, 1).
        repetitions: Number of resampled data sets, >= 1.
        seed: Seed of the resampling.
        goal: Whether high scores are good ("maximize") or low ones ("minimize").

    Returns:
        Estimate, lower and upper end. The difference between X and Y is not shown as long as the interval holds 0.5.

    Raises:
        ValueError: If the numbers of tasks differ, the scores are not finite, or a parameter is out of its range.

    Example:
        >>> float(probability_of_improvement([1.0, 2.0], [1.0, 0.0]).estimate)
        0.875
    """
    first, second = _as_scores(x, max_ndim=2), _as_scores(y, max_ndim=2)
    _check_bootstrap(confidence, repetitions)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"x and y must have the same tasks, got {first.shape[1]} and {second.shape[1]} columns")
    (num_x, num_tasks), num_y = first.shape, second.shape[0]
    lead = (first[:, np.newaxis] - second) * (1.0 if goal == "maximize" else -1.0)  # (seeds x, seeds y, tasks)
    wins = (lead > 0.0) + 0.5 * (lead == 0.0)
    rng = np.random.default_rng(seed)
    draws = np.zeros(repetitions)
    for task in range(num_tasks):
        for rows in _chunks(repetitions, num_x + num_y):
            size = rows.stop - rows.start
            counts_x = rng.multinomial(num_x, np.full(num_x, 1 / num_x), size=size)  # how often each seed is drawn
            counts_y = rng.multinomial(num_y, np.full(num_y, 1 / num_y), size=size)
            draws[rows] += ((counts_x @ wins[..., task]) * counts_y).sum(axis=1) / (num_x * num_y * num_tasks)
    low, high = _percentiles(draws, confidence)
    return Interval(np.asarray(wins.mean())[()], low[()], high[()])


def _iqm(samples: FloatArray) -> FloatArray:
    flat = samples.reshape(*samples.shape[:-2], -1)
    cut = flat.shape[-1] // 4
    return np.asarray(np.sort(flat, axis=-1)[..., cut : flat.shape[-1] - cut].mean(axis=-1))


def _mean(samples: FloatArray) -> FloatArray:
    return np.asarray(samples.mean(axis=(-2, -1)))


def _median(samples: FloatArray) -> FloatArray:
    if samples.shape[-1] == 1:
        return np.asarray(np.median(samples[..., 0], axis=-1))
    return np.asarray(np.median(samples.mean(axis=-2), axis=-1))


# The statistics that reduce the last two axes of a whole batch of resampled data at once.
_BATCHED: dict[Any, Callable[[FloatArray], FloatArray]] = {iqm: _iqm, mean: _mean, median: _median}


def _as_scores(scores: ArrayLike, max_ndim: int) -> FloatArray:
    """Return the scores as a float64 array with a task axis."""
    data = np.asarray(scores, dtype=np.float64)
    if not 1 <= data.ndim <= max_ndim or data.size == 0:
        shapes = ["(seeds,)", "(seeds, tasks)", "(seeds, tasks, checkpoints)"][:max_ndim]
        raise ValueError(f"scores must be a non-empty array of shape {' or '.join(shapes)}, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"scores must be finite, got {np.count_nonzero(~np.isfinite(data))} values that are not")
    return data[:, np.newaxis] if data.ndim == 1 else data


def _check_bootstrap(confidence: float, repetitions: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if repetitions < 1:
        raise ValueError(f"repetitions must be >= 1, got {repetitions}")


def _chunks(repetitions: int, elements: int) -> Iterator[slice]:
    """Split the repetitions so that one chunk holds at most `_CHUNK_ELEMENTS` numbers."""
    size = max(1, _CHUNK_ELEMENTS // max(1, elements))
    for start in range(0, repetitions, size):
        yield slice(start, min(start + size, repetitions))


def _percentiles(draws: FloatArray, confidence: float) -> tuple[FloatArray, FloatArray]:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return np.asarray(low), np.asarray(high)
