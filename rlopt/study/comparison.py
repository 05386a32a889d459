"""Is one variant better than another? The numbers, and the sentence that they justify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb

import numpy as np
from numpy.typing import NDArray

from rlopt.study.bootstrap import Interval, bootstrap_interval, probability_of_improvement
from rlopt.study.paired import PairedDifference, holm, paired_difference
from rlopt.study.statistics import iqm
from rlopt.study.task import Goal

FloatArray = NDArray[np.float64]

# Verdicts in words, for tables; those not named here are words already.
VERDICTS = {"unclear": "no difference shown", "too few seeds": "too few seeds to tell"}


@dataclass(frozen=True)
class Comparison:
    """Scores of a variant against those of a baseline.

    Args:
        variant: Name of the variant.
        baseline: Name of the baseline.
        score: IQM of the variant with interval.
        baseline_score: IQM of the baseline with interval.
        improvement: Probability that a run of the variant beats one of the baseline, with interval.
        num_seeds: Seeds of the variant and of the baseline.
        num_tasks: Tasks that the scores are from.
        goal: Whether high scores are good ("maximize") or low ones ("minimize").
        paired: Mean difference of the runs that share a seed, variant minus baseline; None with fewer than two such seeds.
        adjusted_p: The paired p-value, adjusted for being one of several; see `adjust`.
    """

    variant: str
    baseline: str
    score: Interval
    baseline_score: Interval
    improvement: Interval
    num_seeds: tuple[int, int]
    num_tasks: int
    goal: Goal = "maximize"
    paired: PairedDifference | None = None
    adjusted_p: float | None = None

    @property
    def chance_of_separation(self) -> float:
        """Probability that all runs of one beat all runs of the other, on every task, if both are the same."""
        return 2.0 * float(comb(sum(self.num_seeds), self.num_seeds[0])) ** -self.num_tasks

    @property
    def verdict(self) -> str:
        """Return `better`, `worse`, `unclear` or `too few seeds`: what the data allow to say about the variant.

        A difference counts as shown if the interval of the probability of improvement leaves out 0.5 and the intervals
        of the IQMs do not overlap.
        """
        if self.chance_of_separation > 0.05:
            return "too few seeds"
        if self.improvement.low > 0.5 and self._apart == "better":
            return "better"
        if self.improvement.high < 0.5 and self._apart == "worse":
            return "worse"
        return "unclear"

    @property
    def _apart(self) -> str:
        """Where the interval of the IQM lies: `better` or `worse` than that of the baseline, or `overlap`."""
        if self.score.low > self.baseline_score.high:
            return "better" if self.goal == "maximize" else "worse"
        if self.score.high < self.baseline_score.low:
            return "worse" if self.goal == "maximize" else "better"
        return "overlap"

    def sentence(self) -> str:
        """Return the result in words."""
        low, high = float(self.improvement.low), float(self.improvement.high)
        numbers = f"probability of improvement {float(self.improvement.estimate):.2f} [{low:.2f}, {high:.2f}]"
        names = f"{self.variant} against {self.baseline}"
        verdict = self.verdict
        if verdict in ("better", "worse"):
            if self.goal == "minimize":
                verdict += " (lower)" if verdict == "better" else " (higher)"
            return f"{names}: {verdict}; {numbers}, and the intervals of the IQMs do not overlap."
        if verdict == "too few seeds":
            return (
                f"{names}: no difference was shown, there are too few seeds ({numbers}; two equal variants separate "
                f"completely in {100 * self.chance_of_separation:.0f} % of such small samples)."
            )
        if low > 0.5 or high < 0.5:
            return (
                f"{names}: no difference of the scores was shown, the intervals of the IQMs overlap; the order of the "
                f"runs points to {'better' if low > 0.5 else 'worse'} ({numbers})."
            )
        if self._apart != "overlap":
            return f"{names}: no difference was shown, the interval holds 0.5 ({numbers})."
        return f"{names}: no difference was shown, the intervals overlap ({numbers})."


def summary(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the results in words, one sentence each, or one for all if no number of them could tell a difference."""
    if len(comparisons) > 1 and all(comparison.verdict == "too few seeds" for comparison in comparisons):
        seeds = sorted({count for comparison in comparisons for count in comparison.num_seeds})
        chance = max(comparison.chance_of_separation for comparison in comparisons)
        shown = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        return [
            f"no difference was shown: {shown} seed{'' if seeds == [1] else 's'} of each variant are too few, two equal "
            f"ones separate completely in {100 * chance:.0f} % of such small samples."
        ]
    return [comparison.sentence() for comparison in comparisons]


def compare(
    variant: str,
    scores: FloatArray,
    baseline: str,
    baseline_scores: FloatArray,
    goal: Goal = "maximize",
    *,
    seeds: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Comparison:
    """Compare final scores.

    Args:
        variant: Name of the variant.
        scores: Its scores, shape (seeds,) or (seeds, tasks).
        baseline: Name of the baseline.
        baseline_scores: Its scores, the same tasks.
        goal: Whether high scores are good ("maximize") or low ones ("minimize").
        seeds: Seed of each row of both; those that share one are compared in pairs. None: no pairs.
    """
    paired = None
    if seeds is not None:
        rows = [dict(zip(found, range(len(found)), strict=True)) for found in seeds]
        shared = [seed for seed in rows[0] if seed in rows[1]]
        if len(shared) > 1:
            places = [[row[seed] for seed in shared] for row in rows]
            paired = paired_difference(scores[places[0]], baseline_scores[places[1]])
    return Comparison(
        variant=variant,
        baseline=baseline,
        score=bootstrap_interval(scores, iqm),
        baseline_score=bootstrap_interval(baseline_scores, iqm),
        improvement=probability_of_improvement(scores, baseline_scores, goal=goal),
        num_seeds=(len(scores), len(baseline_scores)),
        num_tasks=1 if scores.ndim == 1 else scores.shape[1],
        goal=goal,
        paired=paired,
    )


def adjust(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with their paired p-values adjusted, by Holm's method, for all of them that have one."""
    adjusted = iter(holm([found.paired.p_value for found in comparisons if found.paired is not None]))
    return [replace(found, adjusted_p=next(adjusted)) if found.paired is not None else found for found in comparisons]


def note(comparisons: Mapping[str, Comparison]) -> str:
    """Return what the number of comparisons means for their p-values.

    Args:
        comparisons: Label -> comparison, adjusted together; at least one.
    """
    total = len(comparisons)
    tested = {label: found for label, found in comparisons.items() if found.paired is not None and found.adjusted_p is not None}
    many = f"{total} comparisons are made: the more, the sooner one seems to differ by chance." if total > 1 else ""
    if not tested:
        return f"{many} No p-values: no two runs of a variant and the baseline share a seed.".strip()
    below = [label for label, found in tested.items() if found.adjusted_p is not None and found.adjusted_p <= 0.05]
    kind = "The paired p-values, adjusted for that by Holm's method," if total > 1 else "The paired p-value"
    shown = f"{kind} {'are' if total > 1 else 'is'} at most 0.05 for {', '.join(below) if below else 'none'}."
    least = min(found.paired.smallest_p for found in tested.values() if found.paired is not None) * len(tested)
    if least > 0.05:
        shown += f" With so few shared seeds none can be below {min(1.0, least):.2g}: that they are large says nothing."
    return f"{many} {shown}".strip()
