"""The numbers of a report as CSV files, with all digits: `runs.csv` and `comparisons.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rlopt.study.bootstrap import Interval
from rlopt.study.comparison import Comparison
from rlopt.study.results import StudyResults

_RUN = ("task", "variant", "seed", "status", "final_score", "wall_seconds", "cpu_seconds", "steps_per_second", "peak_rss_bytes")
_COMPARISON = (
    "task", "variant", "baseline", "verdict",
    "iqm", "iqm_low", "iqm_high",
    "baseline_iqm", "baseline_iqm_low", "baseline_iqm_high",
    "probability_of_improvement", "probability_of_improvement_low", "probability_of_improvement_high",
    "mean_difference", "mean_difference_low", "mean_difference_high",
    "pairs", "correlation", "variance_ratio", "p", "p_adjusted",
)  # fmt: skip


def runs_csv(results: StudyResults) -> str:
    """Return a row per run; a run that is not finished has no final score."""
    return to_csv(
        _RUN,
        (
            (run.task, run.variant, run.seed, run.status, run.final if run.status == "finished" and run.scores.size else None,
             *(run.manifest.get(name) for name in _RUN[5:]))
            for run in results.runs
        ),
    )  # fmt: skip


def comparisons_csv(compared: Mapping[str, Sequence[Comparison]]) -> str:
    """Return a row per task and variant other than the baseline; no differences without shared seeds."""
    rows = []
    for task, found in compared.items():
        for c in found:
            intervals = [*_ends(c.score), *_ends(c.baseline_score), *_ends(c.improvement)]
            paired = c.paired
            pairs: list[Any] = [None] * 8
            if paired is not None:
                pairs = [*_ends(paired.difference), paired.num_pairs, paired.correlation, paired.variance_ratio, paired.p_value,
                         c.adjusted_p]  # fmt: skip
            rows.append((task, c.variant, c.baseline, c.verdict, *intervals, *pairs))
    return to_csv(_COMPARISON, rows)


def to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV; an empty cell where nothing is known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _ends(found: Interval) -> list[float]:
    return [float(value) for value in found]
