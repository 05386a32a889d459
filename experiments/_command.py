"""What the commands that run a study have in common: presets, the report at the end, and errors of one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from rlopt.study import report, run_study
from rlopt.study.command_line import parse_arguments

Study = TypeVar("Study")


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
        prepare: Turns the command line into the arguments of `rlopt.study.run_study`; `jobs` may be None for one per core.
        arguments: The command line; None: that of the process.
    """
    try:
        options = prepare(sys.argv[1:] if arguments is None else arguments)
        folder: Path = options["folder"]
        options["jobs"] = options["jobs"] or os.cpu_count() or 1
        status = run_study(**options)
        if status in (0, 1):
            lines = f"Report: {report(folder)}\nLogs: tensorboard --logdir {folder}"
            Console().print(lines, markup=False, highlight=False, soft_wrap=True)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {' '.join(str(error).split())}", markup=False, highlight=False, soft_wrap=True)
        return 2
    return status
