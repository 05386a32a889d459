"""Searches in this process, whose trials take no time."""

import math
from pathlib import Path

import parabolas
from parabolas import PLACE

from rlopt.study import Range, Task, tune
from rlopt.study.grid import expand
from rlopt.study.pruning import Pruned
from rlopt.study.record import update_study
from rlopt.study.runs import DONE, announce, check_config, prepare, read_status, update_manifest

TASK = Task("t", total_steps=10, goal="minimize")
VARIANTS = {"a": {"rate": Range.around(1e-2, 30), "best": 0.05}, "b": {"rate": Range.around(1.0, 30), "best": 0.3}}


class Killed(BaseException):
    """Stands for the end of the process."""


class FakeStudy:
    """`run_study` in this process: quick, with runs in any order, and able to die."""

    def __init__(self, *, backwards=False):
        self.backwards, self.moments, self.deadline, self.runs, self.jobs = backwards, 0, math.inf, 0, []

    def moment(self):
        """One of the moments at which the process may be killed."""
        self.moments += 1
        if self.moments > self.deadline:
            raise Killed

    def __call__(self, function, *, tasks, variants, seeds, folder, jobs, launcher, retries, baseline=None):
        self.jobs.append(jobs)
        call = function if callable(function) else getattr(parabolas, function.removeprefix(PLACE))
        runs = expand(Path(folder), tasks, variants, seeds)
        update_study(Path(folder), tasks, list(variants), baseline, "python mine.py")
        for run in runs:
            check_config(run)
            announce(run)
        for run in reversed(runs) if self.backwards else runs:
            if read_status(run.folder) in DONE:
                continue
            self.moment()
            prepare(run.folder)
            self.runs += 1
            try:
                call(run.config, run.config["seed"], run.folder)
                update_manifest(run.folder, status="finished", wall_seconds=1.0, cpu_seconds=1.0)
            except RuntimeError:
                update_manifest(run.folder, status="failed")
            except Pruned:
                update_manifest(run.folder, status="pruned")
        self.moment()
        return int(any(read_status(run.folder) not in DONE for run in runs))


def search(folder, function="distance", **changes):
    return tune(PLACE + function, **{"task": TASK, "variants": VARIANTS, "num_trials": 7, "folder": folder, **changes})


def rates(found):
    return [trial.values["rate"] for trial in found.trials]
