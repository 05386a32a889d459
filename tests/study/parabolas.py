"""Run functions for the tests of searches, cheap ones. Fresh processes import this file by its path."""

import json
import math
import time
from pathlib import Path

from rlopt.study import Recorder

PLACE = f"{Path(__file__).resolve()}:"


def distance(config, seed, folder):
    """The score is the squared distance of lg(rate) from lg(config["best"]), and seed / 1000."""
    Recorder(folder).evaluation(10, math.log10(config["rate"] / config["best"]) ** 2 + (seed % 10) / 1000)


def descent(config, seed, folder):
    """Ten evaluations; at each of them the runs have the order of their distances."""
    squared = math.log10(config["rate"] / config["best"]) ** 2
    recorder = Recorder(folder)
    for step in range(1, 11):
        recorder.evaluation(step, squared * (1 + 9 * (10 - step)) + (seed % 10) / 1000)


def descent_or_fails(config, seed, folder):
    if config["rate"] < config["best"] / 4:
        raise RuntimeError("diverged")
    descent(config, seed, folder)


def descent_with_checkpoint(config, seed, folder):
    """Leaves a checkpoint and the names of the options that it got."""
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "x").touch()
    (folder / "seen.json").write_text(json.dumps(sorted(config)))
    descent(config, seed, folder)


def bowl(config, seed, folder):
    """Two nested options and an integer; the largest score, 0, is at x = 0.3, y = -0.5, 5 layers."""
    inner = config["inner"]
    Recorder(folder).evaluation(10, -((inner["x"] - 0.3) ** 2) - (inner["y"] + 0.5) ** 2 - (config["layers"] - 5) ** 2 / 100)


def fails_above_best(config, seed, folder):
    if config["rate"] > config["best"]:
        raise RuntimeError("diverged")
    distance(config, seed, folder)


def silent(config, seed, folder):
    """Ends without an evaluation."""


def slow_sixth(config, seed, folder):
    """The sixth trial waits, unless the folder's search has a file `go`."""
    if config["variant"].endswith("trial_5") and not (folder.parents[2] / "go").exists():
        Recorder(folder).progress(1)
        time.sleep(120)
    descent(config, seed, folder)
