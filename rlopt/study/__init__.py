"""From "is A better than B?" to an answer with confidence intervals.

`run_study` runs a grid of variants, tasks and seeds as independent processes and can be stopped and continued; `tune` searches
good values of options first, with the same number of trials for every variant (it needs Optuna, the extra `rlopt[search]`), and
`compare_tuned` does both;
`report` turns the run folders into tables and figures; the statistics work on any array of scores. The package knows no
method: a study runs a function.

Example: a study of an own function, in a file `mine.py`::

    from pathlib import Path
    from rlopt.study import Recorder, Task, report, run_study

    def train(config: dict, seed: int, folder: Path) -> None:
        recorder = Recorder(folder)
        for step in range(1, 1001):
            recorder.progress(step)
        recorder.evaluation(step=1000, score=config["lr"] * 10)

    if __name__ == "__main__":
        run_study(train, tasks=[Task("toy", total_steps=1000)], variants={"low": {"lr": 0.1}, "high": {"lr": 0.2}},
                  seeds=5, folder="runs/toy", jobs=2)
        print(report("runs/toy"))
"""

from __future__ import annotations

from pathlib import Path

from rlopt.study.bootstrap import Interval, bootstrap_interval, probability_of_improvement, profile_band
from rlopt.study.paired import PairedDifference, holm, paired_difference
from rlopt.study.power import seeds_needed
from rlopt.study.ranges import Range
from rlopt.study.runner import run_study
from rlopt.study.runs import Recorder
from rlopt.study.search import SearchStoppedError, tune
from rlopt.study.stacking import StackedRunsError
from rlopt.study.statistics import iqm, mean, median, optimality_gap, performance_profile, sample_efficiency
from rlopt.study.task import Costs, Task
from rlopt.study.trials import Trial, Tuned
from rlopt.study.tuning import compare_tuned

__all__ = [
    "Costs",
    "Interval",
    "PairedDifference",
    "Range",
    "Recorder",
    "SearchStoppedError",
    "StackedRunsError",
    "Task",
    "Trial",
    "Tuned",
    "bootstrap_interval",
    "compare_tuned",
    "holm",
    "iqm",
    "mean",
    "median",
    "optimality_gap",
    "paired_difference",
    "performance_profile",
    "probability_of_improvement",
    "profile_band",
    "report",
    "run_study",
    "sample_efficiency",
    "seeds_needed",
    "tune",
]


def report(study: Path | str) -> Path:
    """Write `report.html`, `report.md`, tables as CSV and `figures/` into the folder of a study; see `rlopt.study.reporting`.

    Args:
        study: Folder of the study, `runs/<study>`; what is finished so far is reported.

    Returns:
        Path of `report.html`.

    Raises:
        ValueError: If the folder is not one of a study, or no run of it is finished.
    """
    from rlopt.study.reporting import report as write  # plotting is slow to import, and workers never need it

    return write(study)
