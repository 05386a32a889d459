"""Stacked functions for the tests of studies: several seeds in one process. Fresh processes import this file by its path."""

import os
import signal
import time
from pathlib import Path

from synthetic import score_is_level

from rlopt.study import Recorder, StackedRunsError
from rlopt.study.files import read_json, write_json

PLACE = f"{Path(__file__).resolve()}:"


def note(folder, seeds):
    """Leave a line with the seeds in a file of the study."""
    with (folder.parents[2] / "groups.txt").open("a", encoding="utf-8") as file:
        file.write(f"{folder.parent.name} {' '.join(map(str, seeds))}\n")


def together(configs, seeds, folders):
    note(folders[0], seeds)
    assert [config["seed"] for config in configs] == seeds
    print("hello", flush=True)  # noqa: T201
    for config, seed, folder in zip(configs, seeds, folders, strict=True):
        score_is_level(config, seed, folder)


def odd_ones_fail(configs, seeds, folders):
    errors = {}
    for config, seed, folder in zip(configs, seeds, folders, strict=True):
        try:
            if seed % 2:
                raise RuntimeError(f"{seed} is odd")
            score_is_level(config, seed, folder)
        except RuntimeError as error:
            errors[seed] = error
    raise StackedRunsError(errors)


def names_a_stranger(configs, seeds, folders):
    raise StackedRunsError({99: RuntimeError("who?")})


def breaks(configs, seeds, folders):
    score_is_level(configs[0], seeds[0], folders[0])
    raise RuntimeError("all of them")


def killed_once(configs, seeds, folders):
    """All runs take turns, each with a checkpoint after its step; in the first process the end comes in the middle of step 5."""
    note(folders[0], seeds)
    recorders = [Recorder(folder) for folder in folders]
    paths = [folder / "checkpoint" / "step.json" for folder in folders]
    steps = [read_json(path)["step"] if path.exists() else 0 for path in paths]
    first = not any(steps)
    while min(steps) < 10:
        for index, seed in enumerate(seeds):
            if first and steps[index] == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            if steps[index] < 10 and steps[index] == min(steps):
                steps[index] += 1
                recorders[index].evaluation(steps[index], float(seed) if first else 10.0 + seed)
                paths[index].parent.mkdir(exist_ok=True)
                write_json(paths[index], {"step": steps[index]}, sync=False)


def always_killed(configs, seeds, folders):
    note(folders[0], seeds)
    os.kill(os.getpid(), signal.SIGKILL)


def waits(configs, seeds, folders):
    """Says one step for each run and then waits, unless the study has a file `go`."""
    if not (folders[0].parents[2] / "go").exists():
        for folder in folders:
            Recorder(folder).progress(1)
        time.sleep(120)
    together(configs, seeds, folders)


def spends_cpu(configs, seeds, folders):
    end = time.process_time() + 1.0
    while time.process_time() < end:
        pass
    together(configs, seeds, folders)
    (folders[0].parents[2] / "cpu.txt").write_text(str(time.process_time()))


def blocks_the_first(configs, seeds, folders):
    """Puts a file where a folder of the first run is to be."""
    together(configs, seeds, folders)
    (folders[0] / "resources").touch()
