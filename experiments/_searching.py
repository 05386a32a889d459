"""What experiments that can tune before they compare share: the options of a search on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from rlopt.study.storage import check_installed
from rlopt.study.thresholds import Pruner


@dataclass(frozen=True)
class SearchOptions:
    """Tuning before comparing (needs rlopt[search])."""

    search: Annotated[int | None, arg(metavar="INT")] = None
    """Tune each variant in each task by so many trials, > 1, before the comparison, which then takes the best values of each and
    seeds of its own. The first trial has the values of a comparison without search, the others are drawn from ranges, later near
    good ones. Trials are kept in RUNS/NAME/search; the report tells what they found, and values at the edge of a range. Several
    machines that share RUNS may run the same command."""
    pruner: Annotated[Pruner | None, arg(metavar="{median,halving}")] = None
    """Stop trials that are clearly worse than earlier ones were at equal steps. median: from a quarter of the steps on, those worse
    than the median. halving: at 1/8, 1/4 and 1/2 of the steps, the worse half. None: all trials go to their end."""
    storage: Annotated[str | None, arg(metavar="URL")] = None
    """Database for the trials, as Optuna takes it: sqlite:///search.db, postgresql://user@host/name, ... None: a journal in
    RUNS/NAME/search."""

    def __post_init__(self) -> None:
        if self.search is not None and self.search < 2:
            raise ValueError(f"search must be > 1, got {self.search}")

    def check(self) -> None:
        """Refuse options without a search, and a search that is not possible.

        Raises:
            ValueError: Naming the option, or the package that is missing.
        """
        for option in ("pruner", "storage"):
            if self.search is None and getattr(self, option) is not None:
                raise ValueError(f"{option} has no effect without search; add --search or drop the option")
        if self.search is not None:
            try:
                check_installed()
            except ImportError as error:
                raise ValueError(f"search is not possible here: {error}") from None

    def changes(self) -> dict[str, Any]:
        """Return the options that determine results and are set."""
        return {name: value for name in ("search", "pruner") if (value := getattr(self, name)) is not None}

    def arguments(self, failed_score: float) -> dict[str, Any] | None:
        """Return the arguments of `rlopt.study.compare_tuned` that a search adds to those of `run_study`, None without one.

        Args:
            failed_score: Score of a trial that fails.
        """
        if self.search is None:
            return None
        return {"num_trials": self.search, "pruner": self.pruner, "storage": self.storage, "failed_score": failed_score}
