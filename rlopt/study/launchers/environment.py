"""What the process of a run needs to be the same wherever it is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

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


def worker_command(arguments: Sequence[str]) -> list[str]:
    """Return the command of the process of a run."""
    # Not with -m, which would import the module twice: the package has it already.
    return [sys.executable, "-c", "import sys; from rlopt.study.worker import main; sys.exit(main())", *arguments]


def worker_environment() -> dict[str, str]:
    """Return the variables that it needs beside those of its machine: one thread, and this process's modules and settings."""
    paths = [str(Path(__file__).parents[3]), *(path for path in sys.path if path)]
    settings = {name: value for name, value in os.environ.items() if name.startswith("RLOPT_")}
    return {**settings, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
