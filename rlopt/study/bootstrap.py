"""Stratified bootstrap: intervals of statistics, of performance profiles and of the probability of improvement.

The method is that of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021,
arXiv 2108.13264; the implementation is this module's own, seeded and fast.

Example:
    >>> bootstrap_interval([1.0, 1.0, 1.0])
    Interval(estimate=np.float64(1.0), low=np.float64(1.0), high=np.float64(1.0))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.study.statistics import Statistic, as_scores, iqm, mean, median, optimality_gap
from rlopt.study.task import Goal

FloatArray = NDArray[np.float64]

# Resamples that are worked on at a time: their counts fit in the processor's cache.
_BLOCK = 512

# Counts held in memory at a time: 4M are 32 MB.
_CHUNK_ELEMENTS = 4_000_000


class Interval(NamedTuple):
    """A point estimate with the ends of its percentile interval.

    The fields have shape (checkpoints,) for scores with a checkpoint axis and shape () otherwise, so `float(i.low)`
    works.
    """

    estimate: FloatArray
    low: FloatArray
    high: FloatArray


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
        statistic: `iqm`, `mean`, `median`, `optimality_gap`, or any function from a (seeds, tasks) array to a number (slower:
            called once per repetition and checkpoint).
        confidence: Probability content of the interval, in (0, 1).
        repetitions: Number of resampled data sets, >= 1.
        seed: Seed of the resampling, so that equal calls give equal intervals.

    Returns:
        Estimate on the data itself, lower and upper end.

    Raises:
        ValueError: If the scores are not finite or of another shape, or a parameter is out of its range.
    """
    data = as_scores(scores, max_ndim=3)
    check_bootstrap(confidence, repetitions)
    cube = data if data.ndim == 3 else data[..., np.newaxis]  # (seeds, tasks, checkpoints)
    low, high = percentiles(resample(cube, statistic, repetitions=repetitions, seed=seed), confidence)
    estimate = np.array([float(statistic(cube[..., checkpoint])) for checkpoint in range(cube.shape[2])])
    if data.ndim < 3:
        return Interval(estimate[0], low[0], high[0])
    return Interval(estimate, low, high)


def profile_band(
    scores: ArrayLike, thresholds: ArrayLike, *, confidence: float = 0.95, repetitions: int = 50_000, seed: int = 0
) -> Interval:
    """Return the performance profile with its pointwise bootstrap band, each of shape (thresholds,).

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).
        thresholds: Array of shape (thresholds,).
        confidence: Probability content of the band at each threshold, in (0, 1).
        repetitions: Number of resampled data sets, >= 1.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the scores are not finite, or a parameter is out of its range.
    """
    data, levels = as_scores(scores, max_ndim=2), np.asarray(thresholds, dtype=np.float64)
    # Thresholds between the same two scores have the same profile: one of them is enough.
    _, first, same = np.unique(
        np.searchsorted(np.sort(data, axis=None), levels, side="right"), return_index=True, return_inverse=True
    )
    above = data[..., np.newaxis] > levels[first]
    found = bootstrap_interval(above, mean, confidence=confidence, repetitions=repetitions, seed=seed)
    return Interval(*(values[same] for values in found))


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
    first, second = as_scores(x, max_ndim=2), as_scores(y, max_ndim=2)
    check_bootstrap(confidence, repetitions)
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"x and y must have the same tasks, got {first.shape[1]} and {second.shape[1]} columns")
    (num_x, num_tasks), num_y = first.shape, second.shape[0]
    lead = (first[:, np.newaxis] - second) * (1.0 if goal == "maximize" else -1.0)  # (seeds x, seeds y, tasks)
    wins = (lead > 0.0) + 0.5 * (lead == 0.0)
    rng = np.random.default_rng(seed)
    draws = np.zeros(repetitions)
    for task in range(num_tasks):
        for rows in chunks(repetitions, num_x + num_y):
            size = rows.stop - rows.start
            counts_x = rng.multinomial(num_x, np.full(num_x, 1 / num_x), size=size)  # how often each seed is drawn
            counts_y = rng.multinomial(num_y, np.full(num_y, 1 / num_y), size=size)
            draws[rows] += ((counts_x @ wins[..., task]) * counts_y).sum(axis=1) / (num_x * num_y * num_tasks)
    low, high = percentiles(draws, confidence)
    return Interval(np.asarray(wins.mean())[()], low[()], high[()])


def resample(cube: FloatArray, statistic: Statistic, *, repetitions: int, seed: int, num_seeds: int | None = None) -> FloatArray:
    """Return a statistic of stratified resamples.

    Args:
        cube: Scores of shape (seeds, tasks, checkpoints).
        statistic: Function from a (seeds, tasks) array to a number.
        repetitions: Number of resamples.
        seed: Seed of the resampling.
        num_seeds: Seeds drawn within each task; None: as many as there are.

    Returns:
        Array of shape (checkpoints, repetitions).
    """
    size = len(cube) if num_seeds is None else num_seeds
    evaluate = _evaluator(np.ascontiguousarray(np.moveaxis(cube, 2, 0), dtype=np.float64), statistic, size)
    rng = np.random.default_rng(seed)
    draws = np.empty((cube.shape[2], repetitions))
    for start in range(0, repetitions, _BLOCK):
        stop = min(start + _BLOCK, repetitions)
        draws[:, start:stop] = evaluate(rng.integers(len(cube), size=(stop - start, size, cube.shape[1])))
    return draws


def _evaluator(cube: FloatArray, statistic: Statistic, num_draws: int) -> Callable[[NDArray[np.int64]], FloatArray]:
    """Return a function from drawn seeds (resamples, draws, tasks) to a statistic of each, (checkpoints, resamples)."""
    num_checkpoints, num_seeds, num_tasks = cube.shape
    if statistic not in (iqm, mean, median, optimality_gap):
        columns = np.arange(num_tasks)
        return lambda index: np.array([[float(statistic(scores[rows, columns])) for rows in index] for scores in cube])

    tasks = np.arange(num_tasks)

    def count(index: NDArray[np.int64]) -> NDArray[np.int32]:  # how often each score is drawn, (seeds * tasks, resamples)
        size = len(index)
        places = (index * num_tasks + tasks) * size + np.arange(size)[:, np.newaxis, np.newaxis]
        return np.bincount(places.ravel(), minlength=num_seeds * num_tasks * size).reshape(-1, size).astype(np.int32)

    if statistic is iqm or (statistic is median and num_tasks == 1):
        from rlopt.study._bootstrap_kernels import trimmed_means  # numba is slow to import, and runs never need it

        flat = cube.reshape(num_checkpoints, -1)
        order = np.argsort(flat, axis=1)
        ordered, size = np.take_along_axis(flat, order, axis=1), num_draws * num_tasks
        cut = size // 4 if statistic is iqm else (size - 1) // 2

        def trimmed(index: NDArray[np.int64]) -> FloatArray:
            out = np.empty((num_checkpoints, len(index)))
            trimmed_means(ordered, order, count(index), cut, size - cut, out)
            return out

        return trimmed
    by_task = np.moveaxis(np.minimum(cube, 1.0) if statistic is optimality_gap else cube, 2, 0)  # (tasks, checkpoints, seeds)

    def of_task_means(index: NDArray[np.int64]) -> FloatArray:
        counts = count(index).reshape(num_seeds, num_tasks, -1).astype(np.float64)
        means = by_task @ np.moveaxis(counts, 1, 0) / num_draws  # (tasks, checkpoints, resamples)
        if statistic is median:
            means.sort(axis=0)
            return np.asarray((means[(num_tasks - 1) // 2] + means[num_tasks // 2]) / 2)
        average = means.mean(axis=0)
        return np.asarray(1.0 - average if statistic is optimality_gap else average)

    return of_task_means


def check_bootstrap(confidence: float, repetitions: int) -> None:
    """Refuse parameters of a bootstrap that are out of their range."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if repetitions < 1:
        raise ValueError(f"repetitions must be >= 1, got {repetitions}")


def chunks(repetitions: int, elements: int) -> Iterator[slice]:
    """Split the repetitions so that one chunk holds at most `_CHUNK_ELEMENTS` numbers."""
    size = max(1, _CHUNK_ELEMENTS // max(1, elements))
    for start in range(0, repetitions, size):
        yield slice(start, min(start + size, repetitions))


def percentiles(draws: FloatArray, confidence: float) -> tuple[FloatArray, FloatArray]:
    """Return both ends of the percentile interval of draws of shape (..., repetitions)."""
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(draws, [tail, 100.0 - tail], axis=-1)
    return np.asarray(low), np.asarray(high)
