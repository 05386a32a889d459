"""Run functions for the tests of studies: cheap, without agents. Fresh processes import this file by its path."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from rlopt.study import Recorder
from rlopt.study.files import read_json, write_json

PLACE = f"{Path(__file__).resolve()}:"


def score_is_level(config, seed, folder):
    """Ten evaluations that rise to level + seed."""
    recorder = Recorder(folder)
    for step in range(1, 11):
        recorder.progress(step)
        recorder.evaluation(step, (config["level"] + seed) * step / 10)


def fail_on_seed_one(config, seed, folder):
    if seed == 1:
        raise RuntimeError("the cat\nsat on the keyboard")
    score_is_level(config, seed, folder)


def killed_on_seed_one(config, seed, folder):
    if seed == 1:
        print("last words", flush=True)  # noqa: T201
        os.kill(os.getpid(), signal.SIGKILL)
    score_is_level(config, seed, folder)


def slow_after_first(config, seed, folder):
    """Seed 0 is quick; the others report one step and then wait, unless the folder's study has a file `go`."""
    recorder = Recorder(folder)
    if seed > 0 and not (folder.parents[2] / "go").exists():
        recorder.progress(1)
        time.sleep(120)
    score_is_level(config, seed, folder)


def resumes_from_checkpoint(config, seed, folder):
    """Writes a checkpoint at step 5 and dies; the second attempt goes on from there."""
    recorder = Recorder(folder)
    checkpoint = folder / "checkpoint" / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first + 1, 11):
        recorder.evaluation(step, 1.0 if first == 0 else 2.0)
        if step == 7 and first == 0:
            raise RuntimeError("out of luck")
        if step == 5:
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.write_text("5")


def writes_its_threads(config, seed, folder):
    import torch

    lines = [str(torch.get_num_threads()), os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]]
    (folder / "threads.txt").write_text(" ".join(lines))


def killed_after_its_checkpoint(config, seed, folder):
    """Writes a checkpoint at step 5 and is killed at 7; the second attempt goes on from there."""
    recorder = Recorder(folder)
    checkpoint = folder / "checkpoint" / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first + 1, 11):
        recorder.evaluation(step, 1.0 if first == 0 else 2.0)
        if step == 7 and first == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 5:
            checkpoint.parent.mkdir(exist_ok=True)
            checkpoint.write_text("5")


def stopped_once(config, seed, folder):
    """The first attempt is told to stop by somebody who is not the runner."""
    flag = folder.parents[2] / "stopped"
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(120)
    score_is_level(config, seed, folder)


def counts_itself(config, seed, folder):
    """Takes 0.3 s and leaves a line in a file of the study when it begins and when it ends."""
    with (folder.parents[2] / "executed.txt").open("a", encoding="utf-8") as file:
        file.write(f"begin {seed}\n")
    time.sleep(0.3)
    score_is_level(config, seed, folder)
    with (folder.parents[2] / "executed.txt").open("a", encoding="utf-8") as file:
        file.write(f"end {seed}\n")


def fails_slowly(config, seed, folder):
    with (folder.parents[2] / "executed.txt").open("a", encoding="utf-8") as file:
        file.write(f"begin {seed}\n")
    time.sleep(0.3)
    raise RuntimeError("no luck")


def walks(config, seed, folder):
    """A random walk of ten steps with a checkpoint after each; slow, unless the folder's study has a file `fast`."""
    recorder = Recorder(folder)
    path = folder / "checkpoint" / "state.json"
    rng = np.random.default_rng(seed)
    first, position = 0, config["level"]
    if path.exists():
        state = read_json(path)
        first, position, rng.bit_generator.state = state["step"], state["position"], state["generator"]
    for step in range(first + 1, 11):
        if not (folder.parents[2] / "fast").exists():
            time.sleep(0.2)
        with (folder.parents[2] / "executed.txt").open("a", encoding="utf-8") as file:
            file.write(f"{seed} {step}\n")
        position += rng.normal()
        recorder.progress(step)
        recorder.evaluation(step, position)
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"step": step, "position": position, "generator": rng.bit_generator.state})


def saves_slowly(config, seed, folder):
    """Needs a second to save its state when it is stopped."""
    try:
        Recorder(folder).progress(1)
        time.sleep(120)
    except BaseException:
        (folder / "saving").touch()
        time.sleep(1)
        (folder / "saved").touch()
        raise
