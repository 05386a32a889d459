"""Several seeds of one task and variant in one process: the function that does them, and how it says that some of them failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

StackedFunction = Callable[[list[dict[str, Any]], list[int], list[Path]], None]


class StackedRunsError(Exception):
    """Raised by a stacked function at its end, if some of its runs failed and the others did not.

    The runs that it names have failed, each with its exception, whose traceback is in `error.txt` of its folder; those that it does
    not name are finished. Any other exception of a stacked function fails all its runs.

    Args:
        errors: Seed -> what ended its run; not empty.

    Raises:
        ValueError: If `errors` is empty.

    Example:
        >>> error = StackedRunsError({3: ZeroDivisionError("division by zero")})
        >>> str(error)
        'seed 3: ZeroDivisionError: division by zero'
    """

    def __init__(self, errors: Mapping[int, BaseException]) -> None:
        if not errors:
            raise ValueError("errors must name a seed, got none; return instead of raising if no run failed")
        self.errors = dict(errors)
        super().__init__("; ".join(f"seed {seed}: {type(error).__name__}: {error}" for seed, error in self.errors.items()))
