"""Running a grid of variants, tasks and seeds as independent processes, and going on where it stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from rlopt.study.display import Display, Snapshot, make_display
from rlopt.study.grid import Run, expand
from rlopt.study.live import Place, Watch
from rlopt.study.machine import command_line
from rlopt.study.record import lock_study, update_study
from rlopt.study.runs import (
    Status,
    announce,
    check_config,
    prepare,
    read_manifest,
    read_status,
    summarise,
    update_manifest,
)
from rlopt.study.task import Task
from rlopt.study.worker import RunFunction

# Every library that would start threads of its own is told to use one: with as many runs as cores more only slow down.
_ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0


def run_study(
    function: str | RunFunction,
    *,
    tasks: Sequence[Task],
    variants: Mapping[str, Mapping[str, Any]],
    seeds: int | Sequence[int],
    folder: Path | str,
    baseline: str | None = None,
    jobs: int = 1,
) -> int:
    """Run every variant on every task with every seed, each in a fresh process with one thread.

    Runs that are finished in `folder` are skipped, the others are started again (a run that left a `checkpoint/` goes
    on from it), so a study that was stopped is continued by calling this again. Tasks, variants and seeds may be added
    later. A run that fails does not stop the others; its traceback is in `error.txt` of its folder.

    Args:
        function: What a run does: a function `(config, seed, folder) -> None` at the top level of a module, or its
            place as `"module:name"` or `"path/to/file.py:name"`. It reports through a `Recorder`.
        tasks: What to run on.
        variants: Name -> options. The config of a run is `task`, `variant`, `seed`, the task's config, and these
            options, which win; its values are JSON values.
        seeds: Number of seeds (0, 1, ...), or the seeds themselves.
        folder: Folder of the study, `runs/<study>`.
        baseline: The variant that the report compares the others with; the first one if None.
        jobs: Processes at a time, >= 1; at most the number of cores is sensible.

    Returns:
        An exit status: 0 if all runs are finished, 1 if a run failed, 130 or 143 if stopped by SIGINT or SIGTERM.

    Raises:
        ValueError: If a parameter is out of its range, a run folder holds another configuration, or another process
            works on the study. Nothing was started then.
    """
    folder = Path(folder)
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    if isinstance(seeds, int) and seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    if baseline is not None and baseline not in variants:
        raise ValueError(f"baseline must be one of {', '.join(variants)}, got {baseline}")
    runs = expand(folder, tasks, variants, range(seeds) if isinstance(seeds, int) else seeds)
    place = function if isinstance(function, str) else _place(function)
    console = Console()
    with lock_study(folder):
        for run in runs:
            check_config(run)
        for run in runs:
            announce(run)
        command = command_line()
        update_study(folder, tasks, list(variants), baseline, command)
        waiting = [run for run in runs if _settled_status(run) != "finished"]
        if len(waiting) < len(runs):
            console.print(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already.", markup=False, highlight=False)
        with _Signals() as signals, make_display(console) as display:
            pool = _Pool(place, command, jobs, display)
            try:
                pool.work(runs, waiting, signals)
            finally:
                pool.stop()
    statuses = [read_status(run.folder) for run in runs]
    console.print(f"{len(runs)} runs: {summarise(statuses)}.", markup=False, highlight=False)
    if signals.received is not None:
        console.print("The same command goes on from here:", markup=False)
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        return 128 + signals.received
    return 0 if all(status == "finished" for status in statuses) else 1


@dataclass
class _Active:
    run: Run
    process: subprocess.Popen[bytes]


class _Pool:
    """The processes in progress."""

    def __init__(self, function: str, command: str, jobs: int, display: Display) -> None:
        self._function, self._command, self._jobs, self._display = function, command, jobs, display
        self._active: list[_Active] = []

    def work(self, runs: Sequence[Run], waiting: Sequence[Run], signals: _Signals) -> None:
        """Start runs as places become free until none is left or a signal comes."""
        queue = list(waiting)
        total = sum(run.total_steps for run in runs)
        done = total - sum(run.total_steps for run in waiting)
        num_done = len(runs) - len(waiting)
        watch, places = Watch(), [Place(str(run), run.folder, run.total_steps) for run in runs]
        while (queue or self._active) and signals.received is None:
            while queue and len(self._active) < self._jobs:
                self._start(queue.pop(0))
            for active in [active for active in self._active if active.process.poll() is not None]:
                self._active.remove(active)
                self._collect(active)
                num_done += 1
                done += active.run.total_steps
            rows = watch.rows(places)
            running = {str(active.run) for active in self._active}
            self._display.update(
                Snapshot(
                    done_steps=done + sum(row.step for row in rows if row.label in running),
                    total_steps=total,
                    done_runs=num_done,
                    total_runs=len(runs),
                    rows=rows,
                )
            )
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End the runs in progress and mark them interrupted."""
        for active in self._active:
            active.process.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for active in self._active:
            with contextlib.suppress(subprocess.TimeoutExpired):
                active.process.wait(max(0.0, deadline - time.monotonic()))
            if active.process.poll() is None:
                active.process.kill()
                active.process.wait()
            if read_manifest(active.run.folder).get("status") == "running":
                update_manifest(active.run.folder, status="interrupted")
        self._active.clear()

    def _start(self, run: Run) -> None:
        prepare(run)
        paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if path)]
        with (run.folder / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "rlopt.study.worker", str(run.folder), self._function, self._command],
                env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the runner only, which then stops its workers in order
            )
        self._active.append(_Active(run, process))

    def _collect(self, active: _Active) -> None:
        """Note how a process ended; one that was killed could not write it itself."""
        run, code = active.run, active.process.returncode
        manifest = read_manifest(run.folder)
        if manifest.get("status") in (None, "running"):
            cause = _cause(code)
            update_manifest(run.folder, status="failed", error=cause)
            manifest = read_manifest(run.folder)
        status: Status = manifest["status"]
        if status == "failed":
            error = run.folder / "error.txt"
            place = error if error.exists() else run.folder / "output.txt"
            self._display.say(f"{run} failed: {manifest['error']} (see {place})")
        elif status == "interrupted":
            self._display.say(f"{run} was interrupted from outside")
        else:
            self._display.say(f"{run} finished in {manifest['wall_seconds']:.0f} s")


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying from them, so that workers can be stopped in order."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number


def _settled_status(run: Run) -> Status:
    """Return the status of a run; a process that an earlier, killed runner left behind gets time to notice and stop.

    Raises:
        ValueError: If such a process does not stop.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    while (status := read_status(run.folder)) == "running":
        if time.monotonic() > deadline:
            pid = read_manifest(run.folder)["pid"]
            raise ValueError(f"{run.folder} is being worked on by process {pid}; wait for it, or stop it")
        time.sleep(_POLL_SECONDS)
    return status


def _cause(code: int) -> str:
    if code == -signal.SIGKILL:
        return "killed by SIGKILL; the usual cause is that memory ran out, try fewer jobs or a smaller buffer"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"the process ended with exit status {code} before it could say why"


def _place(function: RunFunction) -> str:
    """Return where a fresh process finds the function."""
    name = getattr(function, "__qualname__", "")
    module = sys.modules.get(getattr(function, "__module__", ""))
    if not name.isidentifier() or module is None:
        raise ValueError(f"function must be defined at the top level of a module, got {name or function!r}")
    if module.__name__ != "__main__":
        return f"{module.__name__}:{name}"
    if module.__spec__ is not None:
        return f"{module.__spec__.name}:{name}"
    if not getattr(module, "__file__", None):
        raise ValueError(f"function must be in a file, got {name} of an interactive interpreter")
    return f"{Path(str(module.__file__)).resolve()}:{name}"
