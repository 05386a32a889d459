"""The process of one run, with the arguments FOLDER FUNCTION COMMAND ATTEMPTS.

It locks the run, imports the function, calls it with the config in FOLDER, and leaves the outcome in the folder's manifest,
whatever happens. COMMAND is the command of the study, for the record. ATTEMPTS is how often the run was started before, as far as
who starts it knows: if the run is locked, or was started since, nothing is done and the exit status is `TAKEN`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np

from rlopt.study.events import write_outcome
from rlopt.study.files import read_json, write_text
from rlopt.study.locks import hold_run
from rlopt.study.machine import git_commit, machine, versions
from rlopt.study.pruning import RULE_KEY, Pruned
from rlopt.study.record import read_study
from rlopt.study.resources import Meter, Usage, log
from rlopt.study.results import final_score
from rlopt.study.runs import DONE, Evaluation, now, prepare, read_evaluations, read_live, read_manifest, update_manifest

RunFunction = Callable[[dict[str, Any], int, Path], None]

# Exit status if somebody else works, or has worked, on the run.
TAKEN = 75

# A batch system announces with the second one that the time is up; it reaches all processes of a job.
_STOPPING = [signal.SIGTERM, *([signal.SIGUSR2] if hasattr(signal, "SIGUSR2") else [])]


class Stopped(BaseException):
    """Raised in the main thread by SIGTERM and SIGUSR2; not an `Exception`, so that a run does not swallow it."""


def load(function: str) -> RunFunction:
    """Import a function given as `module:name` or `path/to/file.py:name`.

    Raises:
        ValueError: If there is no such module, file or function.
    """
    place, _, name = function.rpartition(":")
    if not place or not name:
        raise ValueError(f"function must be 'module:name' or 'file.py:name', got {function!r}")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"function must name a function of {place}, got {name!r}")
    return found  # type: ignore[no-any-return]


def execute(folder: Path, function: str, command: str, attempt: int) -> int:
    """Run the function on the config in `folder`, keep the manifest, and return an exit status."""
    start, cpu = time.monotonic(), time.process_time()
    update_manifest(
        folder,
        status="running",
        pid=os.getpid(),
        attempts=attempt,
        command=command,
        function=function if not function.startswith("/") else os.path.relpath(function),
        start=now(),
        end=None,
        versions=versions(),
        machine=machine(),
        error=None,
    )
    outcome: dict[str, Any] = {"status": "finished"}
    code = 0
    try:
        config = read_json(folder / "config.json")
        callable_ = load(function)
        source = getattr(sys.modules.get(callable_.__module__), "__file__", None)
        update_manifest(folder, git_commit=git_commit(Path(source).parent) if source else None)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        config.pop(RULE_KEY, None)  # the recorder's business
        callable_(config, int(config["seed"]), folder)
    except (Stopped, KeyboardInterrupt):
        outcome, code = {"status": "interrupted"}, 128 + signal.SIGTERM
    except Pruned as pruned:
        outcome = {"status": "pruned", "reason": str(pruned)}
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # nothing goes on from it
    except BaseException as error:
        write_text(folder / "error.txt", traceback.format_exc())
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        outcome, code = {"status": "failed", "error": summary}, 1
    _ignore_stops()  # the outcome is known: write it
    rows, wall = read_evaluations(folder), time.monotonic() - start
    usage = _usage(folder, rows, wall)
    update_manifest(
        folder,
        **outcome,
        end=now(),
        wall_seconds=round(wall, 3),
        cpu_seconds=round(time.process_time() - cpu, 3),
        steps_per_second=usage.steps_per_second,
        peak_rss_bytes=usage.peak_rss_bytes,
        num_evaluations=len(rows),
    )
    (folder / "live.json").unlink(missing_ok=True)
    log(folder, usage)
    if outcome["status"] == "finished" and rows:
        points = [(row.step, row.score) for row in rows]
        write_outcome(
            folder, config, final_score(np.array([row.score for row in rows]), _final_evaluations(folder, config)), points
        )
    return code


def _usage(folder: Path, rows: Sequence[Evaluation], wall: float) -> Usage:
    """Return what the run used, with its average speed, start and evaluations included."""
    live = read_live(folder)
    step = max([live.step, *(row.step for row in rows[-1:])])
    done = step - live.start_step
    return Meter().usage(step, round(done / wall, 3) if done > 0 and wall > 0 else None)


def _final_evaluations(folder: Path, config: Mapping[str, Any]) -> int | None:
    """Return how many evaluations the final score averages, as the study says; None outside of one."""
    study = folder.parents[2]
    tasks = read_study(study).tasks if (study / "study.json").exists() else ()
    return next((task.final_evaluations for task in tasks if task.name == config.get("task")), None)


def main() -> int:
    """Entry point of the process."""
    for number in _STOPPING:
        signal.signal(number, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's business
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    folder, function, command, attempts = Path(sys.argv[1]), *sys.argv[2:]
    try:
        if not hold_run(folder):
            return TAKEN
        manifest = read_manifest(folder)
        if manifest.get("status") in DONE or manifest.get("attempts", 0) != int(attempts):
            return TAKEN
        prepare(folder)
        with (folder / "output.txt").open("ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        return execute(folder, function, command, int(attempts) + 1)
    except Stopped:  # before the run began
        return 128 + signal.SIGTERM


def _stop(signum: int, frame: FrameType | None) -> None:
    _ignore_stops()  # once is enough, and the run must not be disturbed while it saves its state
    raise Stopped


def _ignore_stops() -> None:
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _watch_parent(parent: int) -> None:
    """Stop this process when its runner is gone: nobody would collect the result or count the core as used."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ValueError(f"function must name a module that can be imported, got {name!r}") from None
        raise


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"function must name an existing file, got {str(path)!r}")
    # Dataclasses look their module up by name; the name must not hide an installed module.
    spec = importlib.util.spec_from_file_location(f"rlopt_run_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"function must name a Python file, got {str(path)!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
