"""The process of a run, or of a group of runs, with the arguments FUNCTION COMMAND FOLDER ATTEMPTS [FOLDER ATTEMPTS ...].

It locks the run, imports the function, calls it with the config in FOLDER, and leaves the outcome in the folder's manifest,
whatever happens. COMMAND is the command of the study, for the record. ATTEMPTS is how often the run was started before, as far as
who starts it knows: if the run is locked, or was started since, nothing is done and the exit status is `TAKEN`.

With several folders FUNCTION is a stacked one and is called once with all configs. The group is done as a whole: if one of its runs
is taken, nothing is done.
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
from rlopt.study.stacking import StackedRunsError

RunFunction = Callable[[dict[str, Any], int, Path], None]

# Exit status if somebody else works, or has worked, on the run.
TAKEN = 75

# A batch system announces with the second one that the time is up; it reaches all processes of a job.
_STOPPING = [signal.SIGTERM, *([signal.SIGUSR2] if hasattr(signal, "SIGUSR2") else [])]


class Stopped(BaseException):
    """Raised in the main thread by SIGTERM and SIGUSR2; not an `Exception`, so that a run does not swallow it."""


def load(function: str) -> Callable[..., None]:
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


def execute(attempts: Mapping[Path, int], function: str, command: str) -> int:
    """Run the function on the config in a folder, or in several, keep their manifests, and return an exit status.

    Args:
        attempts: Folder of each run, and the number of this attempt.
        function: Where the function is; a stacked one if there are several runs.
        command: The command of the study.
    """
    start, cpu = time.monotonic(), time.process_time()
    for folder, attempt in attempts.items():
        update_manifest(
            folder,
            status="running",
            pid=os.getpid(),
            runs_in_process=len(attempts),
            attempts=attempt,
            command=command,
            function=function if not function.startswith("/") else os.path.relpath(function),
            start=now(),
            end=None,
            versions=versions(),
            machine=machine(),
            error=None,
        )
    errors = _call(function, list(attempts))
    _ignore_stops()  # the outcome is known: write it
    wall, cpu = time.monotonic() - start, (time.process_time() - cpu) / len(attempts)
    code = 0
    for folder in attempts:
        try:
            code = max(code, _finish(folder, errors.get(folder), wall, cpu, len(attempts)))
        except Exception:  # a damaged file of one run; the others must not suffer from it
            traceback.print_exc()
            code = max(code, 1)
    return code


def _call(function: str, folders: Sequence[Path]) -> dict[Path, BaseException]:
    """Call the function with all runs, and return what ended those that it did not finish."""
    try:
        configs = [read_json(folder / "config.json") for folder in folders]
        callable_ = load(function)
        source = getattr(sys.modules.get(callable_.__module__), "__file__", None)
        commit = git_commit(Path(source).parent) if source else None
        for folder in folders:
            update_manifest(folder, git_commit=commit)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        for config in configs:
            config.pop(RULE_KEY, None)  # the recorder's business
        seeds = [int(config["seed"]) for config in configs]
        if len(folders) == 1:
            callable_(configs[0], seeds[0], folders[0])
            return {}
        try:
            callable_(configs, seeds, list(folders))
        except StackedRunsError as failed:
            if unknown := failed.errors.keys() - set(seeds):
                raise ValueError(f"StackedRunsError must name seeds of {seeds}, got {min(unknown)}") from failed
            return {folder: failed.errors[seed] for folder, seed in zip(folders, seeds, strict=True) if seed in failed.errors}
        return {}
    except BaseException as error:
        return dict.fromkeys(folders, error)


def _finish(folder: Path, error: BaseException | None, wall: float, cpu: float, runs_in_process: int) -> int:
    """Write what became of a run, and return the exit status that tells it."""
    outcome: dict[str, Any] = {"status": "finished"}
    code = 0
    if isinstance(error, Stopped | KeyboardInterrupt):
        outcome, code = {"status": "interrupted"}, 128 + signal.SIGTERM
    elif isinstance(error, Pruned):
        outcome = {"status": "pruned", "reason": str(error)}
    elif error is not None:
        write_text(folder / "error.txt", "".join(traceback.format_exception(error)))
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        outcome, code = {"status": "failed", "error": summary}, 1
    rows = read_evaluations(folder)
    usage = _usage(folder, rows, wall, runs_in_process)
    update_manifest(
        folder,
        **outcome,
        end=now(),
        wall_seconds=round(wall, 3),
        cpu_seconds=round(cpu, 3),
        steps_per_second=usage.steps_per_second,
        peak_rss_bytes=usage.peak_rss_bytes,
        num_evaluations=len(rows),
    )
    if outcome["status"] == "pruned":  # nothing goes on from it, now that it is written down
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    (folder / "live.json").unlink(missing_ok=True)
    log(folder, usage)
    if outcome["status"] == "finished" and rows:
        config, scores = read_json(folder / "config.json"), [row.score for row in rows]
        config.pop(RULE_KEY, None)
        final = final_score(np.array(scores), _final_evaluations(folder, config))
        write_outcome(folder, config, final, [(row.step, row.score) for row in rows])
    return code


def _usage(folder: Path, rows: Sequence[Evaluation], wall: float, runs_in_process: int) -> Usage:
    """Return what the run used, with its average speed, start and evaluations included."""
    live = read_live(folder)
    step = max([live.step, *(row.step for row in rows[-1:])])
    done = step - live.start_step
    return Meter(runs_in_process).usage(step, round(done / wall, 3) if done > 0 and wall > 0 else None)


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
    function, command, *rest = sys.argv[1:]
    attempts = {Path(folder): int(number) for folder, number in zip(rest[::2], rest[1::2], strict=True)}
    try:
        if not all(_claim(folder, attempts[folder]) for folder in sorted(attempts)):  # of groups that overlap one gets all
            return TAKEN
        for folder in attempts:
            prepare(folder)
        _redirect_output(list(attempts))
        return execute({folder: number + 1 for folder, number in attempts.items()}, function, command)
    except Stopped:  # before the run began
        return 128 + signal.SIGTERM


def _claim(folder: Path, attempts: int) -> bool:
    """Hold a run for as long as this process lives, and return whether it is held and nobody has worked on it in between."""
    if not hold_run(folder):
        return False
    manifest = read_manifest(folder)
    return manifest.get("status") not in DONE and manifest.get("attempts", 0) == attempts


def _redirect_output(folders: Sequence[Path]) -> None:
    """Send what this process prints to `output.txt` of the first run; those of the others say so."""
    first, *others = (folder / "output.txt" for folder in folders)
    for path in others:
        with path.open("a", encoding="utf-8") as file:
            place = os.path.relpath(first, path.parent)
            file.write(f"This run shared its process with {len(others)} others; what that printed is in {place}\n")
    with first.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


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
