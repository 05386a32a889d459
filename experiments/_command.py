"""What the commands that run a study have in common: presets, the report at the end, and errors of one line."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from rich.console import Console
from tyro.conf import arg

from rlopt.study import compare_tuned, report, run_study
from rlopt.study.command_line import parse_arguments
from rlopt.study.launchers import Local, Ray, Slurm

Study = TypeVar("Study")
Jobs = Annotated[int | None, arg(metavar="INT", help_behavior_hint="(default: one per core; on a cluster, no limit)")]


@dataclass(frozen=True)
class Machines:
    """Where the runs of a study are."""

    launcher: Literal["local", "ray", "slurm"] = "local"
    """Where the runs are: on this machine, on a Ray cluster, or on a Slurm cluster."""
    shard: Annotated[str | None, arg(metavar="I/N", help_behavior_hint="(default: all)")] = None
    """Do the I-th of N equal parts of the runs only, for commands on N machines with one disk."""
    retries: int = 3
    """How often a run goes on from its checkpoint when its process was killed or its machine lost, >= 0."""
    ray: Ray = field(default_factory=Ray)
    """Runs on a Ray cluster"""
    slurm: Slurm = field(default_factory=Slurm)
    """Runs on a Slurm cluster"""

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"retries must be >= 0, got {self.retries}")
        if self.shard is not None:
            numbers = re.fullmatch(r"(\d+)/(\d+)", self.shard)
            if numbers is None or not 1 <= int(numbers[1]) <= int(numbers[2]):
                raise ValueError(f"shard must be I/N with 1 <= I <= N, got {self.shard}")
        for name, standard in (("ray", Ray()), ("slurm", Slurm())):
            given = getattr(self, name)
            changed = [entry.name for entry in fields(given) if getattr(given, entry.name) != getattr(standard, entry.name)]
            if changed and self.launcher != name:
                raise ValueError(
                    f"{name}.{changed[0]} has no effect: the launcher is {self.launcher}; add --launcher {name} or drop the option"
                )

    def arguments(self, jobs: int | None) -> dict[str, Any]:
        """Return the arguments of `rlopt.study.run_study` that say where the runs are, and how many there are at a time."""
        launcher = Local() if self.launcher == "local" else getattr(self, self.launcher)
        shard = None if self.shard is None else tuple(map(int, self.shard.split("/")))
        jobs = jobs or ((os.cpu_count() or 1) if self.launcher == "local" else None)
        return {"jobs": jobs, "launcher": launcher, "shard": shard, "retries": self.retries}


def parse_with_presets(
    study: type[Study], presets: Mapping[Any, tuple[str, Study]], standard: str, arguments: Sequence[str], description: str | None
) -> Study:
    """Read the command line; what is not given comes from the preset that `--preset` names.

    Args:
        study: Dataclass of the options.
        presets: Name -> what it is, and its options.
        standard: Preset that is taken if none is named.
        arguments: The command line.
        description: Text above the options in `--help`.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=standard)
    name = first.parse_known_args(arguments)[0].preset
    _, default = presets.get(name, presets[standard])  # a wrong name is reported below, with all others
    return parse_arguments(study, arguments, default=default, description=description)


def run_command(prepare: Callable[[Sequence[str]], dict[str, Any]], arguments: Sequence[str] | None) -> int:
    """Run a study, write its report, and return an exit status; an error is one line.

    Args:
        prepare: Turns the command line into the arguments of `rlopt.study.run_study`, with `machines`, the `Machines`, instead of
            those that say where the runs are; `jobs` may be None for one per core, or as many as a cluster has places. If `search`
            is there and not None, it holds what `rlopt.study.compare_tuned` takes besides, and the variants are tuned first.
        arguments: The command line; None: that of the process.
    """
    try:
        options = prepare(sys.argv[1:] if arguments is None else arguments)
        folder: Path = options["folder"]
        where = options.pop("machines").arguments(options["jobs"])
        search = options.pop("search", None)
        if search is None:
            status = run_study(**options | where)
        elif where.pop("shard") is None:
            status = compare_tuned(**options | where | search)
        else:
            raise ValueError("shard must be left out with search, whose trials all commands on one folder share; drop the option")
        if status in (0, 1):
            page = report(folder) if search is None else folder / "report.html"
            lines = f"Report: {page}\nLogs: tensorboard --logdir {folder}"
            Console().print(lines, markup=False, highlight=False, soft_wrap=True)
    except (ValueError, OSError, ImportError) as error:
        Console(stderr=True).print(f"error: {' '.join(str(error).split())}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return status
