"""Speed of bootstrap intervals of learning curves: rlopt beside rliable.

Scores of 10 seeds on 10 tasks at 100 checkpoints; intervals of the IQM, the mean and the median at every checkpoint. A number
is the CPU time of one call with one thread, the median of `--rounds`. "First call" is that of a fresh process whose machine
code is in numba's cache, with the import of numba; "compiling" the same with an empty cache, as after an installation. (Mean and
median of several tasks need no machine code.)

rliable has an environment of its own (scripts/bench_peers.sh makes it; RLOPT_RLIABLE_VENV is its folder, default .venv-rliable).
Its function is the one that its documentation gives for sample-efficiency curves. It takes the same time for every repetition,
so its `--peer-repetitions` are fewer and its time is scaled up. It draws every checkpoint on its own, rlopt whole learning curves.

Commands:
    scripts/bench statistics
    scripts/bench statistics --quick
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tyro

from rlopt.study import bootstrap_interval, iqm, mean, median
from rlopt.study.machine import machine

STATISTICS: dict[str, Callable[..., float]] = {"iqm": iqm, "mean": mean, "median": median}
ROOT = Path(__file__).parents[1]

# Reads scores, the name of a statistic and a number of repetitions; prints CPU seconds, points and intervals.
PEER = """
import json, sys, time
import numpy as np
from rliable import library, metrics
path, name, repetitions = sys.argv[1], sys.argv[2], int(sys.argv[3])
scores = np.load(path)
aggregate = getattr(metrics, "aggregate_" + name)
curve = lambda x: np.array([aggregate(x[..., frame]) for frame in range(x.shape[-1])])
start = time.process_time()
points, intervals = library.get_interval_estimates({"a": scores}, curve, reps=repetitions)
print(json.dumps([time.process_time() - start, points["a"].tolist(), intervals["a"].tolist()]))
"""
FIRST = """
import time
import numpy as np
from rlopt.study import {name}, bootstrap_interval
scores = np.load({path!r})
start = time.process_time()
bootstrap_interval(scores, {name}, repetitions={repetitions})
print(time.process_time() - start)
"""


@dataclass(frozen=True)
class Config:
    """What to measure."""

    seeds: int = 10
    tasks: int = 10
    checkpoints: int = 100
    repetitions: int = 50_000
    peer_repetitions: int = 500
    rounds: int = 5
    quick: bool = False
    """2,000 repetitions, 50 for rliable, one round."""


def first_call(path: Path, name: str, repetitions: int, cache: str | None) -> float:
    """Return the CPU seconds of the first call in a fresh process."""
    code = FIRST.format(name=name, path=str(path), repetitions=repetitions)
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    config = tyro.cli(Config, description=__doc__)
    repetitions, peer_repetitions, rounds = config.repetitions, config.peer_repetitions, config.rounds
    if config.quick:
        repetitions, peer_repetitions, rounds = 2_000, 50, 1
    peer = Path(os.environ.get("RLOPT_RLIABLE_VENV", ROOT / ".venv-rliable")) / "bin" / "python"
    shape = (config.seeds, config.tasks, config.checkpoints)
    scores = np.random.default_rng(0).normal(size=shape)
    print(f"{machine()['cpu']}, one thread; numpy {version('numpy')}, numba {version('numba')}")
    print(f"scores (seeds, tasks, checkpoints) = {shape}, {repetitions} repetitions; CPU seconds\n")
    print("| statistic | rlopt | first call | compiling | rliable, scaled | ratio | largest difference of estimates |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.npy"
        np.save(path, scores)
        for name, statistic in STATISTICS.items():
            compiling = first_call(path, name, repetitions, tempfile.mkdtemp(dir=folder))
            bootstrap_interval(scores[..., :1], statistic, repetitions=10)
            first = first_call(path, name, repetitions, None)
            times = []
            for _ in range(rounds):
                start = time.process_time()
                interval = bootstrap_interval(scores, statistic, repetitions=repetitions)
                times.append(time.process_time() - start)
            ours = statistics.median(times)
            theirs, ratio, difference = "not installed", "", ""
            if peer.exists():
                command = [str(peer), "-W", "ignore", "-c", PEER, str(path), name, str(peer_repetitions)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, points, _ = json.loads(done.stdout)
                scaled = seconds * repetitions / peer_repetitions
                theirs, ratio = f"{scaled:.0f} ({seconds:.2f} for {peer_repetitions})", f"{scaled / ours:.0f}"
                difference = f"{np.abs(np.array(points) - interval.estimate).max():.1e}"
            print(f"| {name} | {ours:.2f} | {first:.2f} | {compiling:.2f} | {theirs} | {ratio} | {difference} |", flush=True)


if __name__ == "__main__":
    main()
