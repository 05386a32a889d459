"""Studies of the functions in `synthetic`, in this process or as commands of their own."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from synthetic import PLACE

from rlopt.study import Task, run_study

ROOT = Path(__file__).parents[2]
STARTED = []


def run(folder, function="score_is_level", **changes):
    options = {
        "tasks": [Task("toy/A-v0", total_steps=10)],
        "variants": {"base": {"level": 1.0}, "other": {"level": 5.0}},
        "seeds": 2,
        "folder": folder,
        "jobs": 2,
        **changes,
    }
    return run_study(PLACE + function, **options)


def start(folder, function, seeds=3, **options):
    """Start a study of one variant in a process of its own."""
    more = "".join(f", {name}={value!r}" for name, value in options.items())
    code = (
        "import sys; from rlopt.study import Task, run_study; from rlopt.study.launchers import Local, Ray, Slurm; "
        f"sys.exit(run_study({PLACE + function!r}, tasks=[Task('t', total_steps=10)], "
        f"variants={{'v': {{'level': 1.0}}}}, seeds={seeds}, folder={str(folder)!r}{more}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    STARTED.append(process)
    return process


def executed(folder):
    """What the runs of a study have noted in a file: (seed, step) -> how often."""
    path = folder / "executed.txt"
    return Counter(tuple(map(int, line.split())) for line in path.read_text().splitlines()) if path.exists() else Counter()


def kill_all():
    for process in STARTED:
        process.kill()  # its workers notice and stop
        process.wait()
        process.stdout.close()
    STARTED.clear()


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
