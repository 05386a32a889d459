"""`python -m rlopt {status,report,compare,power}`: look at studies from the command line."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg, subcommand

from rlopt.study.command_line import parse_arguments

if TYPE_CHECKING:
    from rlopt.study import Interval
    from rlopt.study.results import FloatArray

Folder = Annotated[Path, Positional, arg(metavar="RUNS")]


@dataclass(frozen=True)
class Status:
    """Show how far the runs of a study are."""

    runs: Folder
    """Folder of a study, for instance runs/my-study."""
    watch: bool = False
    """Show the table again every second until no run is running or waiting; Ctrl-C ends it sooner."""


@dataclass(frozen=True)
class Report:
    """Write report.html, report.md and figures/ into the folder of a study, from what is finished so far."""

    runs: Folder
    """Folder of a study, for instance runs/my-study."""


@dataclass(frozen=True)
class Compare:
    """Compare two studies, for instance before and after a change: the same tasks and variants, A against B."""

    runs_a: Annotated[Path, Positional, arg(metavar="RUNS_A")]
    """Folder of the study to compare with."""
    runs_b: Annotated[Path, Positional, arg(metavar="RUNS_B")]
    """Folder of the study in question."""


@dataclass(frozen=True)
class Power:
    """Estimate how many seeds each variant of a study needs for a narrower interval, or to show a difference."""

    runs: Folder
    """Folder of a study, for instance runs/my-study."""
    half_width: float | None = None
    """Wanted half width of the 95 % interval of the IQM. Give either this or --difference."""
    difference: float | None = None
    """Difference of the IQMs of two variants, with as many seeds each, that is to be shown."""
    power: float = 0.8
    """Share of all studies in which the difference is to be shown."""
    max_seeds: int = 1000
    """Largest number of seeds that is looked at."""


Command = (
    Annotated[Status, subcommand("status")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Power, subcommand("power")]
)


_DESCRIPTION = "Look at studies: how far they are, what they found, how two of them differ, and how many seeds they need."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error is one line."""
    command: Status | Report | Compare | Power = parse_arguments(
        Command, arguments, prog="python -m rlopt", description=_DESCRIPTION
    )
    console = Console()
    try:
        match command:
            case Status(runs, watch):
                if watch:
                    _watch(runs, console)
                return _status(runs, console)
            case Report(runs):
                from rlopt.study import report

                console.print(str(report(runs)), markup=False, highlight=False, soft_wrap=True)
            case Compare(runs_a, runs_b):
                _compare(runs_a, runs_b, console)
            case Power():
                _power(command, console)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {' '.join(str(error).split())}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


def _status(folder: Path, console: Console) -> int:
    """Print a row per task and variant, then all runs, then what the failed ones died of; 1 if any failed."""
    from rlopt.study.live import Watch, find_runs, runs_table
    from rlopt.study.results import read_results
    from rlopt.study.runs import STATUSES

    results = read_results(folder)
    # Only trials of a search can be pruned.
    shown = [status for status in STATUSES if status != "pruned" or any(run.status == status for run in results.runs)]
    table = Table("task", "variant", *shown, box=None, pad_edge=False)
    for task in results.record.tasks:
        for variant in results.record.variants:
            statuses = [run.status for run in results.runs if (run.task, run.variant) == (task.name, variant)]
            table.add_row(task.name, variant, *(str(statuses.count(status) or "") for status in shown))
    console.print(table)
    console.print()
    console.print(runs_table(Watch().rows(find_runs(folder))))
    for run in results.runs:
        if run.status == "failed":
            line = f"{run.task} / {run.variant} / seed {run.seed} failed: {run.manifest['error']}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(any(run.status == "failed" for run in results.runs))


def _watch(folder: Path, console: Console) -> None:
    """Show all runs, as many as the terminal has lines for, until there is nothing to wait for."""
    from rich.live import Live

    from rlopt.study.live import Watch, find_runs, runs_table

    watch = Watch()
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, transient=True, auto_refresh=False) as live:
        while True:
            rows = watch.rows(find_runs(folder))
            live.update(runs_table(rows, most=max(1, console.height - 2)), refresh=True)
            if not any(row.status in ("running", "waiting") for row in rows):
                return
            time.sleep(1.0)


def _compare(folder_a: Path, folder_b: Path, console: Console) -> None:
    """Print final scores of A and B and the probability that B is better, for each shared task and variant."""
    from rlopt.study.comparison import VERDICTS, adjust, compare, note
    from rlopt.study.record import check_comparable
    from rlopt.study.results import read_results

    a, b = read_results(folder_a), read_results(folder_b)
    check_comparable(folder_a, a.record, folder_b, b.record)
    shared = [(task, variant) for task in a.record.tasks for variant in a.variants(task.name) if variant in b.variants(task.name)]
    if not shared:
        raise ValueError(f"{folder_a} and {folder_b} must share a task and variant with finished runs, they share none")
    found = adjust(
        [
            compare(
                "B", b.finals(task.name, variant), "A", a.finals(task.name, variant), task.goal,
                seeds=(b.seeds(task.name, variant), a.seeds(task.name, variant)),
            )
            for task, variant in shared
        ]
    )  # fmt: skip
    header = (
        "task",
        "variant",
        "IQM of A [95 %]",
        "IQM of B [95 %]",
        "P(B better)",
        "verdict on B",
        "B - A by seed",
        "p",
        "adjusted",
    )
    table = Table(*header, box=None)
    for (task, variant), result in zip(shared, found, strict=True):
        cells = (result.baseline_score, result.score, result.improvement)
        paired = [_interval(result.paired.difference), f"{result.paired.p_value:.2g}"] if result.paired else ["", ""]
        adjusted = "" if result.adjusted_p is None else f"{result.adjusted_p:.2g}"
        verdict = VERDICTS.get(result.verdict, result.verdict)
        table.add_row(task.name, variant, *(_interval(cell) for cell in cells), verdict, *paired, adjusted)
    console.print(f"A: {folder_a}\nB: {folder_b}", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    lower = [task.name for task in a.record.tasks if task.goal == "minimize"]
    if lower:
        console.print(f"Lower is better on {', '.join(lower)}.", markup=False, highlight=False, soft_wrap=True)
    labels = [f"{variant} on {task.name}" for task, variant in shared]
    console.print(note(dict(zip(labels, found, strict=True))), markup=False, highlight=False, soft_wrap=True)


def _power(command: Power, console: Console) -> None:
    """Print, for each task and variant, the interval that the runs give and the seeds that the question needs."""
    from rlopt.study.bootstrap import bootstrap_interval
    from rlopt.study.results import read_results

    if (command.half_width is None) == (command.difference is None):
        raise ValueError("either --half-width or --difference must be given, and not both")
    results = read_results(command.runs)
    table = Table("task", "variant", "seeds", "IQM [95 %]", "seeds needed", box=None)
    for task in results.record.tasks:
        for variant in results.variants(task.name):
            scores = results.finals(task.name, variant)
            table.add_row(task.name, variant, str(len(scores)), _interval(bootstrap_interval(scores)), _needed(command, scores))
    if not table.row_count:
        raise ValueError(f"{command.runs} must hold a finished run to estimate from, got none of {len(results.runs)}")
    console.print(table)
    wanted = (
        f"an interval of the IQM of ± {command.half_width:g}"
        if command.half_width is not None
        else f"a difference of {command.difference:g} shown in {100 * command.power:g} % of all studies"
    )
    text = f"Seeds for {wanted}, if these runs are typical; few of them say little about rare failures."
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _needed(command: Power, scores: FloatArray) -> str:
    from rlopt.study.power import TooManySeedsError, seeds_needed

    if len(scores) < 2:
        return "at least 2 for a guess"
    try:
        return str(
            seeds_needed(
                scores, half_width=command.half_width, difference=command.difference, power=command.power,
                max_seeds=command.max_seeds,
            )
        )  # fmt: skip
    except TooManySeedsError:
        return f"over {command.max_seeds}"


def _interval(found: Interval) -> str:
    return f"{float(found.estimate):.4g} [{float(found.low):.4g}, {float(found.high):.4g}]"


if __name__ == "__main__":
    sys.exit(main())
