"""Which runs are started when: beside other commands on the same study, and again when their process was lost."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlopt.study.display import Display, Snapshot
from rlopt.study.grid import Run, groups_of, name_of
from rlopt.study.launchers import Ended, Start, Trial
from rlopt.study.live import Place, Watch
from rlopt.study.locks import lock_run, run_is_held
from rlopt.study.runs import DONE, Status, announce, read_manifest, read_status, update_manifest
from rlopt.study.worker import TAKEN

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0  # between two looks at what other commands do
_MOST_AHEAD = 32  # of the order in which runs are asked for


@dataclass
class _Active:
    runs: list[Run]  # that the process does together; mostly one
    trial: Trial


class Schedule:
    """Works off the runs of a study.

    Each run is locked by its own process for as long as that lives, so any number of commands can work on one study: a run that
    another one has in hand is left to it, and looked at again until it has ended or nobody holds it any more.

    Runs of one task and variant that wait for a process may be given to one together. What became of it is looked up for each run.

    Args:
        runs: The runs, in the order in which they are started.
        start: Starts the process of a run, or of several.
        function: Where the processes find what to run, as `module:name` or `file.py:name`.
        command: The command of the study, for the record.
        stacked_function: The same for processes with several runs.
        stack_seeds: Most runs of a process, >= 1.
        jobs: Processes at a time; None: no limit.
        retries: How often a run is started again when its process was lost or stopped from outside.
        display: Is told what happens.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        start: Start,
        function: str,
        command: str,
        *,
        stacked_function: str | None = None,
        stack_seeds: int = 1,
        jobs: int | None,
        retries: int,
        display: Display,
    ) -> None:
        self._start, self._function, self._command, self._display = start, function, command, display
        self._stacked_function, self._stack_seeds = stacked_function, stack_seeds
        self._jobs, self._retries = jobs, retries
        self._active: list[_Active] = []
        self._elsewhere: list[Run] = []  # in the hands of other commands
        self._going: list[Run] = []  # those of the active ones that have got a place, at the last look
        self._losses: Counter[Path] = Counter()
        self._collisions = 0
        self._generator = random.Random()  # other numbers in each command
        statuses = [read_status(run.folder) for run in runs]
        self._failed_before = {run.folder: _attempts(run) for run, status in zip(runs, statuses, strict=True) if status == "failed"}
        open_runs = [run for run, status in zip(runs, statuses, strict=True) if status not in DONE]
        self.num_settled = len(runs) - len(open_runs)
        self._watch, self._places = Watch(), [Place(str(run), run.folder, run.total_steps) for run in runs]
        self._total_steps = sum(run.total_steps for run in runs)
        self._settled_steps = self._total_steps - sum(run.total_steps for run in open_runs)
        self._queue = deque(open_runs)

    def work(self, stopped: Callable[[], bool]) -> None:
        """Start runs as places become free, until all have ended or `stopped()`."""
        next_look, told = 0.0, False
        while (self._queue or self._active or self._elsewhere) and not stopped():
            if time.monotonic() >= next_look:
                free = [run for run in self._elsewhere if read_status(run.folder) != "running"]
                self._elsewhere = [run for run in self._elsewhere if run not in free]
                self._queue.extendleft(reversed(free))
                self._going = [run for active in self._active for run in active.runs if run_is_held(run.folder)]
                next_look = time.monotonic() + _LOOK_SECONDS
            while self._queue and (self._jobs is None or len(self._active) < self._jobs) and not stopped():
                self._take(self._next())
            for active in list(self._active):
                if (ended := active.trial.poll()) is not None:
                    self._active.remove(active)
                    self._going = [run for run in self._going if run not in active.runs]
                    self._collect(active.runs, ended)
            if self._elsewhere and not self._queue and not self._active and not told:
                told = True
                self._display.say(f"Waiting for {len(self._elsewhere)} runs that other commands work on.")
            self._show()
            time.sleep(_POLL_SECONDS)

    def stop(self, grace_seconds: float) -> None:
        """End the processes in progress, in order if they need no longer than `grace_seconds`."""
        for active in self._active:
            active.trial.stop()
        deadline = time.monotonic() + grace_seconds
        while self._active:
            self._active = [active for active in self._active if active.trial.poll() is None]
            if time.monotonic() >= deadline:
                for active in self._active:
                    active.trial.kill()
                    active.trial.poll()
                self._active.clear()
            time.sleep(_POLL_SECONDS / 4)

    def _next(self) -> list[Run]:
        """Return the first runs of the queue that go together; of the first few such groups one, once there were collisions.

        Commands that all take the first run would start most processes in vain.
        """
        ahead = self._queue if self._stack_seeds > 1 else itertools.islice(self._queue, _MOST_AHEAD)
        groups = groups_of(ahead, self._stack_seeds)
        group = groups[self._generator.randrange(min(1 + 2 * self._collisions, _MOST_AHEAD, len(groups)))]
        for run in group:
            self._queue.remove(run)
        return group

    def _take(self, runs: Sequence[Run]) -> None:
        """Start runs in one process, without those that need nothing more or that another command has."""
        found: list[tuple[Run, int]] = []
        for run in runs:
            attempts = _attempts(run)  # before the status: if the run is started in between, the worker notices
            status = read_status(run.folder)
            if self._has_ended(run, status):
                self._settle(run)
            elif status == "running":
                self._elsewhere.append(run)
            else:
                announce(run)  # somebody may have deleted the folder
                found.append((run, attempts))
        if found:
            function = self._function if len(found) == 1 else str(self._stacked_function)
            arguments = [text for run, attempts in found for text in (str(run.folder), str(attempts))]
            self._active.append(_Active([run for run, _ in found], self._start([function, self._command, *arguments])))

    def _has_ended(self, run: Run, status: Status) -> bool:
        """Whether a run needs nothing more: it is done, or has failed since this command began."""
        return status in DONE or (status == "failed" and _attempts(run) != self._failed_before.get(run.folder))

    def _settle(self, run: Run) -> None:
        manifest = read_manifest(run.folder)
        if manifest["status"] == "finished":
            self._display.say(f"{run} finished in {manifest['wall_seconds']:.0f} s")
        elif manifest["status"] == "pruned":
            self._display.say(f"{run} {manifest['reason']}")
        else:
            error = run.folder / "error.txt"
            place = error if error.exists() else run.folder / "output.txt"
            self._display.say(f"{run} failed: {manifest['error']} (see {place})")
        self._count(run)

    def _count(self, run: Run) -> None:
        self.num_settled += 1
        self._settled_steps += run.total_steps

    def _collect(self, runs: Sequence[Run], ended: Ended) -> None:
        """Look how a process ended; one that was killed could not tell it itself."""
        self._collisions += ended.code == TAKEN
        lost: dict[int, list[Run]] = {}  # how often they were -> runs
        for run in runs:
            if self._has_ended(run, read_status(run.folder)):
                self._settle(run)
            elif ended.code == TAKEN:
                self._elsewhere.append(run)
            else:
                self._losses[run.folder] += 1
                lost.setdefault(self._losses[run.folder], []).append(run)
        for num_losses, group in lost.items():
            if ended.is_loss and num_losses <= self._retries:
                again = "it is" if len(group) == 1 else "they are"
                self._display.say(
                    f"{name_of(group)}: {_cause(ended)}; {again} started again ({num_losses} of {self._retries} times)"
                )
                self._queue.extendleft(reversed(group))
            else:
                for run in group:
                    self._give_up(run, ended, f"{_cause(ended)}, {num_losses} times" if num_losses > 1 else _cause(ended))

    def _give_up(self, run: Run, ended: Ended, cause: str) -> None:
        with lock_run(run.folder) as mine:
            status = read_manifest(run.folder).get("status", "waiting")
            if not mine or self._has_ended(run, status):  # another command has taken it over
                self._elsewhere.append(run)
            elif status == "interrupted":
                self._display.say(f"{run}: {cause}")
                self._count(run)
            else:
                if status != "running":  # it did not come so far as to write there itself
                    with (run.folder / "output.txt").open("a", encoding="utf-8") as output:
                        output.write(ended.text)
                hint = "; the usual cause is that memory ran out, try fewer jobs or a smaller buffer"
                hint += ", or fewer stacked seeds" if self._stack_seeds > 1 else ""
                update_manifest(run.folder, status="failed", error=cause + (hint if ended.code == -signal.SIGKILL else ""))
                self._settle(run)

    def _show(self) -> None:
        rows = self._watch.rows(self._places)
        running = {str(run) for run in (*self._going, *self._elsewhere)}
        self._display.update(
            Snapshot(
                done_steps=self._settled_steps + sum(row.step for row in rows if row.label in running),
                total_steps=self._total_steps,
                done_runs=self.num_settled,
                total_runs=len(self._places),
                rows=rows,
            )
        )


def _attempts(run: Run) -> int:
    return int(read_manifest(run.folder).get("attempts", 0))


def _cause(ended: Ended) -> str:
    if ended.code is None:
        return f"lost with its machine ({ended.text})"
    if ended.code == 128 + signal.SIGTERM:
        return "stopped from outside"
    if ended.code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-ended.code).name}"
    return f"the process ended with exit status {ended.code} before it could say why"
