"""Statistics for few runs: interquartile mean, optimality gap, performance profile, sample efficiency.

A score array has one row per seed and one column per task. The statistics follow Agarwal et al., "Deep Reinforcement Learning at
the Edge of the Statistical Precipice", NeurIPS 2021, arXiv 2108.13264, and equal those of the `rliable` package; their intervals
are in `rlopt.study.bootstrap`.

Example:
    >>> iqm([1.0, 2.0, 3.0, 100.0])
    2.5
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.study.task import Goal

FloatArray = NDArray[np.float64]
Statistic = Callable[[Any], float]


def mean(scores: ArrayLike) -> float:
    """Return the mean over all seeds and tasks.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).
    """
    return float(_mean(as_scores(scores, max_ndim=2)))


def median(scores: ArrayLike) -> float:
    """Return the median over tasks of each task's mean over seeds; for a single task, the median over seeds.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).
    """
    return float(_median(as_scores(scores, max_ndim=2)))


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
    return float(_iqm(as_scores(scores, max_ndim=2)))


def optimality_gap(scores: ArrayLike, target: float = 1.0) -> float:
    """Return by how much the runs fall short of `target` on average; what lies above it does not count.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks), usually normalised per task.
        target: The score that is good enough.
    """
    return float(target - np.minimum(as_scores(scores, max_ndim=2), target).mean())


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> FloatArray:
    """Return, for each threshold, the fraction of runs (seeds and tasks pooled) that score above it.

    Args:
        scores: Array of shape (seeds,) or (seeds, tasks).
        thresholds: Array of shape (thresholds,).

    Returns:
        Array of shape (thresholds,), non-increasing if the thresholds increase.
    """
    ordered = np.sort(as_scores(scores, max_ndim=2), axis=None)
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


def batched(statistic: Statistic) -> Callable[[FloatArray], FloatArray]:
    """Return the statistic as a function that reduces the last two axes, seeds and tasks, of a whole batch at once."""
    if statistic in _BATCHED:
        return _BATCHED[statistic]
    return lambda samples: np.array([float(statistic(sample)) for sample in samples])


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


_BATCHED: dict[Any, Callable[[FloatArray], FloatArray]] = {iqm: _iqm, mean: _mean, median: _median}


def as_scores(scores: ArrayLike, max_ndim: int) -> FloatArray:
    """Return the scores as a float64 array with a task axis."""
    data = np.asarray(scores, dtype=np.float64)
    if not 1 <= data.ndim <= max_ndim or data.size == 0:
        shapes = ["(seeds,)", "(seeds, tasks)", "(seeds, tasks, checkpoints)"][:max_ndim]
        raise ValueError(f"scores must be a non-empty array of shape {' or '.join(shapes)}, got shape {data.shape}")
    if not np.isfinite(data).all():
        raise ValueError(f"scores must be finite, got {np.count_nonzero(~np.isfinite(data))} values that are not")
    return data[:, np.newaxis] if data.ndim == 1 else data
