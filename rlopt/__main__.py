"""`python -m rlopt {status,report,compare}`: look at studies from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg, subcommand

from rlopt.study.command_line import parse_arguments

Folder = Annotated[Path, Positional, arg(metavar="RUNS")]


@dataclass(frozen=True)
class Status:
    """Show how far the runs of a study are."""

    runs: Folder
    """Folder of a study, for instance runs/my-study."""


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


Command = (
    Annotated[Status, subcommand("status")] | Annotated[Report, subcommand("report")] | Annotated[Compare, subcommand("compare")]
)


_DESCRIPTION = "Look at studies: how far they are, what they found, and how two of them differ."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; an error is one line."""
    command: Status | Report | Compare = parse_arguments(Command, arguments, prog="python -m rlopt", description=_DESCRIPTION)
    console = Console()
    try:
        match command:
            case Status(runs):
                return _status(runs, console)
            case Report(runs):
                from rlopt.study import report

                console.print(str(report(runs)), markup=False, highlight=False, soft_wrap=True)
            case Compare(runs_a, runs_b):
                _compare(runs_a, runs_b, console)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {' '.join(str(error).split())}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return 0


def _status(folder: Path, console: Console) -> int:
    """Print a row per task and variant, then the runs in progress and the failed ones; 1 if any failed."""
    from rlopt.study.results import read_results
    from rlopt.study.runs import STATUSES, read_live

    results = read_results(folder)
    table = Table("task", "variant", *STATUSES, box=None, pad_edge=False)
    for task in results.record.tasks:
        for variant in results.record.variants:
            statuses = [run.status for run in results.runs if (run.task, run.variant) == (task.name, variant)]
            table.add_row(task.name, variant, *(str(statuses.count(status) or "") for status in STATUSES))
    console.print(table)
    totals = {task.name: task.total_steps for task in results.record.tasks}
    for run in results.runs:
        label = f"{run.task} / {run.variant} / seed {run.seed}"
        if run.status == "running":
            step, score = read_live(run.folder)
            ending = "" if score is None else f", score {score:.4g}"
            console.print(f"{label}: step {step} of {totals[run.task]}{ending}", highlight=False, soft_wrap=True)
        if run.status == "failed":
            line = f"{label} failed: {run.manifest['error']}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return int(any(run.status == "failed" for run in results.runs))


def _compare(folder_a: Path, folder_b: Path, console: Console) -> None:
    """Print final scores of A and B and the probability that B is better, for each shared task and variant."""
    from rlopt.study.comparison import VERDICTS, compare
    from rlopt.study.record import check_comparable
    from rlopt.study.results import read_results

    a, b = read_results(folder_a), read_results(folder_b)
    check_comparable(folder_a, a.record, folder_b, b.record)
    table = Table("task", "variant", "IQM of A [95 %]", "IQM of B [95 %]", "P(B better)", "verdict on B", box=None)
    for task in a.record.tasks:
        for variant in a.variants(task.name):
            if variant not in b.variants(task.name):
                continue
            result = compare("B", b.finals(task.name, variant), "A", a.finals(task.name, variant), task.goal)
            cells = (result.baseline_score, result.score, result.improvement)
            shown = [f"{float(i.estimate):.4g} [{float(i.low):.4g}, {float(i.high):.4g}]" for i in cells]
            table.add_row(task.name, variant, *shown, VERDICTS.get(result.verdict, result.verdict))
    if not table.row_count:
        raise ValueError(f"{folder_a} and {folder_b} must share a task and variant with finished runs, they share none")
    console.print(f"A: {folder_a}\nB: {folder_b}", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    lower = [task.name for task in a.record.tasks if task.goal == "minimize"]
    if lower:
        console.print(f"Lower is better on {', '.join(lower)}.", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
