"""Running a grid of variants, tasks and seeds as independent processes, and going on where it stopped."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from rlopt.study.display import make_display
from rlopt.study.grid import expand, part_of
from rlopt.study.launchers import Launcher, Local, make_launcher
from rlopt.study.locks import lock_study
from rlopt.study.machine import command_line
from rlopt.study.record import update_study
from rlopt.study.runs import DONE, announce, check_config, read_status, summarise
from rlopt.study.schedule import Schedule
from rlopt.study.stacking import StackedFunction
from rlopt.study.task import Task
from rlopt.study.worker import RunFunction

# How long another command may keep `study.json` for itself; a second is much.
_WAIT_SECONDS = 60.0


def run_study(
    function: str | RunFunction,
    *,
    tasks: Sequence[Task],
    variants: Mapping[str, Mapping[str, Any]],
    seeds: int | Sequence[int],
    folder: Path | str,
    baseline: str | None = None,
    jobs: int | None = None,
    launcher: str | Launcher = "local",
    shard: tuple[int, int] | None = None,
    retries: int = 3,
    stacked_function: str | StackedFunction | None = None,
    stack_seeds: int | None = None,
) -> int:
    """Run every variant on every task with every seed, each in a fresh process with one thread.

    Runs that are finished in `folder` are skipped, the others are started again (a run that left a `checkpoint/` goes
    on from it), so a study that was stopped is continued by calling this again. Tasks, variants and seeds may be added
    later. A run that fails does not stop the others; its traceback is in `error.txt` of its folder.

    Several commands may work on one folder at the same time, on one machine or on several that share the disk: no run is done by
    two of them, and each returns when all runs that it was asked for have ended, whoever did them.

    With `stack_seeds` one process does several seeds of one task and variant together, for functions that do this in less time than
    one after the other. Each run keeps its folder and all that is in it. Its config does not depend on that, so a study may go on
    with another number than it was begun with. CPU seconds of a run are then those of its process divided by the number of runs
    that share it, which its manifest tells (`runs_in_process`); wall seconds and memory are those of the process.

    Args:
        function: What a run does: a function `(config, seed, folder) -> None` at the top level of a module, or its
            place as `"module:name"` or `"path/to/file.py:name"`. It reports through a `Recorder`.
        tasks: What to run on.
        variants: Name -> options. The config of a run is `task`, `variant`, `seed`, the task's config, and these
            options, which win; its values are JSON values.
        seeds: Number of seeds (0, 1, ...), or the seeds themselves.
        folder: Folder of the study, `runs/<study>`.
        baseline: The variant that the report compares the others with; the first one if None.
        jobs: Processes at a time, >= 1; on one machine at most the number of cores is sensible. None: one with the launcher
            `local`; with the others all, they start runs as places become free.
        launcher: Where the processes are: `local` is this machine, `ray` a Ray cluster, `slurm` a Slurm cluster, with their
            standard options; or a `Local`, `Ray` or `Slurm` of `rlopt.study.launchers` with other ones. A study may go on with
            another launcher than it was begun with.
        shard: (i, n) to do the i-th of n parts of the runs only, i = 1, ..., n, so that commands on n machines share them.
        retries: How often a run is started again, from its checkpoint if it has one, when its process was killed or stopped from
            outside, or its machine was lost; >= 0. A run that ends with an error is not started again.
        stacked_function: What a process with several runs does: a function `(configs, seeds, folders) -> None`, given like
            `function`. Some of its runs may have left a checkpoint, and others not. If some fail, it goes on with the others and
            raises a `StackedRunsError` that names them at its end; any other exception fails all of its runs. A process with a
            single run calls `function`.
        stack_seeds: Seeds of one task and variant that a process does together at most, >= 1; None: 1. They stay together in a
            `shard`.

    Returns:
        An exit status: 0 if all runs are finished, 1 if a run failed, 130 or 143 if stopped by SIGINT or SIGTERM.

    Raises:
        ImportError: If the launcher needs a package that is not installed.
        ValueError: If a parameter is out of its range, a run folder holds another configuration, or the launcher's cluster cannot
            be reached. Nothing was started then.
    """
    folder = Path(folder)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    if retries < 0:
        raise ValueError(f"retries must be >= 0, got {retries}")
    if isinstance(seeds, int) and seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    if baseline is not None and baseline not in variants:
        raise ValueError(f"baseline must be one of {', '.join(variants)}, got {baseline}")
    if stack_seeds is not None and stack_seeds < 1:
        raise ValueError(f"stack_seeds must be >= 1, got {stack_seeds}")
    if stack_seeds is not None and stack_seeds > 1 and stacked_function is None:
        raise ValueError(f"stacked_function must be given for stack_seeds = {stack_seeds}, got None")
    if stack_seeds is None and stacked_function is not None:
        raise ValueError("stacked_function has no effect without stack_seeds; give the number of seeds or drop the function")
    place, stacked_place = _place(function, "function"), None
    if stacked_function is not None:
        stacked_place = _place(stacked_function, "stacked_function")
    launcher = make_launcher(launcher)
    if jobs is None and isinstance(launcher, Local):
        jobs = 1
    grid = expand(folder, tasks, variants, range(seeds) if isinstance(seeds, int) else seeds)
    runs = grid if shard is None else part_of(grid, *shard, stack_seeds or 1)
    part = "" if shard is None else f" in part {shard[0]} of {shard[1]}"
    console = Console()
    command = command_line()
    with lock_study(folder, _WAIT_SECONDS):
        for run in grid:
            check_config(run)
        for run in grid:
            announce(run)
        update_study(folder, tasks, list(variants), baseline, command)
    with _Signals() as signals, launcher.connect(folder) as start, make_display(console) as display:
        signals.install()  # again: Ray has handlers of its own
        schedule = Schedule(
            runs,
            start,
            place,
            command,
            stacked_function=stacked_place,
            stack_seeds=stack_seeds or 1,
            jobs=jobs,
            retries=retries,
            display=display,
        )
        if schedule.num_settled:
            display.say(f"{schedule.num_settled} of {len(runs)} runs{part} are finished already.")
        try:
            schedule.work(lambda: signals.received is not None)
        finally:
            schedule.stop(launcher.grace_seconds)
    statuses = [read_status(run.folder) for run in runs]
    console.print(f"{len(runs)} runs{part}: {summarise(statuses)}.", markup=False, highlight=False)
    if signals.received is not None:
        console.print("The same command goes on from here:", markup=False)
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
        return 128 + signals.received
    return 0 if all(status in DONE for status in statuses) else 1


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying from them, so that workers can be stopped in order."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        self.install()
        return self

    def install(self) -> None:
        """Begin to note signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous.setdefault(number, signal.signal(number, self._note))

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number


def _place(function: str | RunFunction | StackedFunction, what: str) -> str:
    """Return where a fresh process finds the function that is the parameter `what`."""
    if isinstance(function, str):
        return function
    name = getattr(function, "__qualname__", "")
    module = sys.modules.get(getattr(function, "__module__", ""))
    if not name.isidentifier() or module is None:
        raise ValueError(f"{what} must be defined at the top level of a module, got {name or function!r}")
    if module.__name__ != "__main__":
        return f"{module.__name__}:{name}"
    if module.__spec__ is not None:
        return f"{module.__spec__.name}:{name}"
    if not getattr(module, "__file__", None):
        raise ValueError(f"{what} must be in a file, got {name} of an interactive interpreter")
    return f"{Path(str(module.__file__)).resolve()}:{name}"
