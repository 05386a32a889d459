"""How many seeds a question needs, estimated from a few runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.study.bootstrap import check_bootstrap, percentiles, resample
from rlopt.study.statistics import Statistic, as_scores, iqm

FloatArray = NDArray[np.float64]


class TooManySeedsError(ValueError):
    """More seeds are needed than were looked at."""


def seeds_needed(
    pilot: ArrayLike,
    *,
    half_width: float | None = None,
    difference: float | None = None,
    power: float = 0.8,
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    repetitions: int = 10_000,
    max_seeds: int = 1_000,
    seed: int = 0,
) -> int:
    """Return the smallest number of seeds that gives an interval narrow enough, or shows a difference often enough.

    The scores of the pilot stand for all that a seed can give: studies of N seeds are drawn from them, stratified as in
    `bootstrap_interval`, and the statistic is taken of each. With n seeds in the pilot the spread of the draws is multiplied by
    sqrt(n / (n - 1)), as that of a few scores is too small by so much on average.

    * `half_width`: half the width of the interval that `bootstrap_interval` gives for N seeds must be at most this. (That interval
      is itself a little narrow, by sqrt((N - 1) / N), which is allowed for: with N = n the answer is the pilot's own interval.)
      For the mean of normal scores with standard deviation s: z s sqrt(N - 1) / N, with z = 1.96 for 95 %.
    * `difference`: two variants with N seeds each and the spread of the pilot, whose scores are this far apart, must be told apart
      by the difference of the statistics in a share `power` of all studies. For the mean of normal scores:
      N = 2 ((z + z_power) s / difference)^2, with z_power = 0.84 for 80 %.

    Limits: the answer is as good as the pilot. Of normal scores where the mean needs 42 seeds, 80 % of all pilots with 5 seeds ask
    for between 12 and 78 (median 36), with 10 seeds for 18 to 65, with 20 seeds for 25 to 61; and few seeds have not seen the rare
    failure. So run what it says, and ask again. It tells nothing about runs with other settings, and `difference` assumes that a
    better variant has the same spread.

    Args:
        pilot: Scores of shape (seeds,) or (seeds, tasks), at least two seeds.
        half_width: Wanted half width of the interval, > 0. Give either this or `difference`.
        difference: Difference to detect, > 0.
        power: Probability to detect it, in (0, 1).
        statistic: As in `bootstrap_interval`.
        confidence: Probability content of the interval, or one minus the significance level, in (0, 1).
        repetitions: Studies drawn for each N, >= 1; the relative error of N from these draws is about 2 / sqrt(repetitions).
        max_seeds: Largest number of seeds that is looked at, >= 2.
        seed: Seed of the draws.

    Returns:
        A number of seeds, >= 2.

    Raises:
        TooManySeedsError: A `ValueError`: if more than `max_seeds` are needed.
        ValueError: If a parameter is out of its range.

    Example:
        >>> from rlopt.study import mean
        >>> seeds_needed([1.0, 2.0, 4.0, 5.0], half_width=1.0, statistic=mean)
        13
    """
    scores = as_scores(pilot, max_ndim=2)
    check_bootstrap(confidence, repetitions)
    if len(scores) < 2:
        raise ValueError("pilot must have at least 2 seeds, got 1: one score says nothing about the spread")
    if (half_width is None) == (difference is None):
        raise ValueError("either half_width or difference must be given, got " + ("neither" if half_width is None else "both"))
    for name, value in (("half_width", half_width), ("difference", difference)):
        if value is not None and not value > 0.0:
            raise ValueError(f"{name} must be > 0, got {value}")
    if not 0.0 < power < 1.0:
        raise ValueError(f"power must be in (0, 1), got {power}")
    if max_seeds < 2:
        raise ValueError(f"max_seeds must be >= 2, got {max_seeds}")
    spread = (len(scores) / (len(scores) - 1)) ** 0.5

    def draw(num_seeds: int, seed: int) -> FloatArray:
        draws = resample(scores[..., np.newaxis], statistic, repetitions=repetitions, seed=seed, num_seeds=num_seeds)
        return np.asarray(draws[0])

    def half(num_seeds: int) -> float:
        low, high = percentiles(draw(num_seeds, seed), confidence)
        return float((high - low) / 2 * spread * np.sqrt((num_seeds - 1) / num_seeds))

    def detected(num_seeds: int, difference: float) -> float:
        by_chance = (draw(num_seeds, seed) - draw(num_seeds, seed + 1)) * spread
        limit = np.quantile(np.abs(by_chance), confidence)
        return float(np.mean(np.abs(by_chance + difference) > limit))

    def enough(num_seeds: int) -> bool:
        if half_width is not None:
            return half(num_seeds) <= half_width
        assert difference is not None
        return detected(num_seeds, difference) >= power

    found = _smallest(enough, max_seeds)
    if found is None:
        wanted = f"half_width = {half_width:g}" if half_width is not None else f"difference = {difference:g}"
        raise TooManySeedsError(f"{wanted} needs more than max_seeds = {max_seeds} seeds; ask for less, or allow more")
    return found


def _smallest(enough: Callable[[int], bool], largest: int) -> int | None:
    """Return the smallest number >= 2 that is enough, taking for granted that larger ones are too; None beyond `largest`."""
    below, above = 1, 2
    while not enough(above):
        if above == largest:
            return None
        below, above = above, min(2 * above, largest)
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if enough(middle) else (middle, above)
    return above
