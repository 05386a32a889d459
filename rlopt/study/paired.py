"""Two variants with the same seeds: their difference seed by seed, and p-values of many comparisons together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.study.bootstrap import Interval, bootstrap_interval, chunks
from rlopt.study.statistics import Statistic, as_scores, batched, mean

FloatArray = NDArray[np.float64]

# Sums in another order differ in their last digits; a flip that changes nothing else is no smaller than what was seen.
_ROUNDING = 1e-12


class PairedDifference(NamedTuple):
    """The difference X - Y of runs that share a seed.

    Args:
        difference: The statistic of the differences, with its bootstrap interval.
        p_value: Two-sided p-value of the sign-flip test.
        exact: Whether all patterns of signs were looked at, not a sample of them.
        correlation: Of X and Y over seeds, within tasks; nan if one of them does not vary.
        variance_ratio: Variance of the differences divided by the sum of the variances of X and Y, within tasks; nan if neither
            varies. Below 1, pairing makes the comparison sharper; 1 is what independent runs give on average; above 1 it does harm.
        num_pairs: Number of differences, seeds x tasks.
    """

    difference: Interval
    p_value: float
    exact: bool
    correlation: float
    variance_ratio: float
    num_pairs: int

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that so few pairs can give, when all differences have the same sign."""
        return 2.0 ** (1 - self.num_pairs)


def paired_difference(
    x: ArrayLike,
    y: ArrayLike,
    statistic: Statistic = mean,
    *,
    confidence: float = 0.95,
    repetitions: int = 50_000,
    seed: int = 0,
) -> PairedDifference:
    """Return the difference X - Y of runs that share their seeds, with its interval and a p-value.

    The interval is the stratified bootstrap of `bootstrap_interval` on the differences. The p-value is that of a sign-flip test: if
    X and Y do the same, each difference could as well have the other sign, so p is the share of all patterns of signs whose
    statistic is as far from 0 as the one seen. All 2^n patterns of n pairs are looked at if they are at most `repetitions`, else
    that many random ones, and p = (1 + as far) / (1 + repetitions).

    Pairing helps where a seed is lucky or unlucky for both variants alike (same initial weights, same data, same environments):
    Var(X - Y) = Var X + Var Y - 2 Cov(X, Y). See `variance_ratio`.

    Args:
        x: Scores of shape (seeds,) or (seeds, tasks).
        y: Scores of the same shape: row i of both has the same seed.
        statistic: `mean` (default: the only one for which the difference of the statistics is the statistic of the differences),
            `iqm`, `median`, or any function from a (seeds, tasks) array to a number. With few pairs the IQM does not see flips of
            the differences that it cuts, so its p-values are larger.
        confidence: Probability content of the interval, in (0, 1).
        repetitions: Resamples of the bootstrap, and most patterns of signs, >= 1.
        seed: Seed of both.

    Raises:
        ValueError: If the shapes differ, the scores are not finite, or a parameter is out of its range.

    Example:
        >>> found = paired_difference([3.0, 5.0, 9.0], [2.0, 3.0, 6.0])
        >>> float(found.difference.estimate), found.p_value  # 2 of the 8 patterns are as far from 0: +++ and ---
        (2.0, 0.25)
    """
    first, second = as_scores(x, max_ndim=2), as_scores(y, max_ndim=2)
    if first.shape != second.shape:
        raise ValueError(f"x and y must have the same seeds and tasks, got shapes {np.shape(x)} and {np.shape(y)}")
    differences = first - second
    interval = bootstrap_interval(differences, statistic, confidence=confidence, repetitions=repetitions, seed=seed)
    p_value, exact = _sign_flips(differences, statistic, repetitions, seed)
    in_x, in_y, in_difference = (scores - scores.mean(axis=0) for scores in (first, second, differences))
    square_x, square_y = float((in_x**2).sum()), float((in_y**2).sum())
    product = float((in_x * in_y).sum())
    return PairedDifference(
        difference=interval,
        p_value=p_value,
        exact=exact,
        correlation=product / (square_x * square_y) ** 0.5 if square_x > 0 and square_y > 0 else float("nan"),
        variance_ratio=float((in_difference**2).sum()) / (square_x + square_y) if square_x + square_y > 0 else float("nan"),
        num_pairs=differences.size,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for being several, by the step-down method of Holm.

    The i-th smallest of m p-values (i = 1, ..., m) is multiplied by m - i + 1; none gets smaller than an adjusted one before it, or
    larger than 1. Calling those below 0.05 different is wrong about one or more of them in at most 5 % of all studies, however the
    comparisons depend on each other.

    Args:
        p_values: In any order, each in [0, 1].

    Returns:
        Adjusted p-values in the same order.

    Raises:
        ValueError: If a p-value is outside [0, 1].

    Reference: S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    wrong = [float(value) for value in values if not 0.0 <= value <= 1.0]
    if wrong:
        raise ValueError(f"p_values must be in [0, 1], got {wrong[0]}")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in adjusted]


def _sign_flips(differences: FloatArray, statistic: Statistic, repetitions: int, seed: int) -> tuple[float, bool]:
    """Return the p-value, and whether it is exact."""
    reduce = batched(statistic)
    scale = float(np.abs(differences).mean())
    seen = abs(float(reduce(differences[np.newaxis])[0])) - _ROUNDING * scale
    num_pairs = differences.size
    exact = num_pairs < 63 and 2**num_pairs <= repetitions
    total = 2**num_pairs if exact else repetitions
    rng = np.random.default_rng(seed)
    bits = np.arange(num_pairs) if exact else None
    as_far = 0
    for rows in chunks(total, num_pairs):
        if bits is not None:
            flipped = (np.arange(rows.start, rows.stop)[:, np.newaxis] >> bits) & 1
        else:
            flipped = rng.integers(2, size=(rows.stop - rows.start, num_pairs))
        samples = (1.0 - 2.0 * flipped).reshape(-1, *differences.shape) * differences
        as_far += int(np.count_nonzero(np.abs(reduce(samples)) >= seen))
    return (as_far / total, True) if exact else ((1 + as_far) / (1 + total), False)
