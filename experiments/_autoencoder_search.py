"""Learning rates by search, with the same number of equally long trials for every optimizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from _autoencoder_training import LARGEST_LOSS

from rlopt.study import Range, Task, Tuned, tune
from rlopt.study.files import read_json, write_json
from rlopt.study.search import TRIAL_SEED

FUNCTION = f"{Path(__file__).resolve().parent / '_autoencoder_training.py'}:train"
# How far a search goes from the centre, either way.
RANGE_FACTOR = 30.0


def search_rates(task: Task, centres: Mapping[str, float], count: int, folder: Path, jobs: int | None) -> dict[str, float]:
    """Return the best learning rate of each optimizer, and write all losses to `search.json`.

    Trials are a study of their own in the sub-folder `search`: those that are finished are not repeated.

    Args:
        task: The run of a trial.
        centres: Optimizer -> centre of its range, the rate of its first trial.
        count: Trials of each optimizer; those that fail or diverge count, with `LARGEST_LOSS`.
        folder: Folder of the comparison.
        jobs: Trials at a time; None: one per core.

    Raises:
        ValueError: If all rates of an optimizer diverge or fail, or the folder holds another search.
        rlopt.study.SearchStoppedError: If a signal stopped it.
    """
    found = tune(
        FUNCTION,
        task=task,
        variants={name: {"optimizer": name, "lr": Range.around(centre, RANGE_FACTOR)} for name, centre in centres.items()},
        num_trials=count,
        folder=folder / "search",
        failed_score=LARGEST_LOSS,
        jobs=jobs or os.cpu_count() or 1,
    )
    path = folder / "search.json"
    earlier = read_json(path)["optimizers"] if path.exists() else {}
    entries = {name: _entry(of) for name, of in found.items()}
    write_json(path, {"epochs": task.total_steps, "seed": TRIAL_SEED, "optimizers": {**earlier, **entries}})
    for name, of in found.items():
        if of.best.score >= LARGEST_LOSS:
            raise ValueError(
                f"learning_rates must name a rate at which {name} does not diverge, but none of {count} trials around "
                f"{centres[name]:g} ended well; see {folder / 'search'}"
            )
        failed = sum(trial.failed for trial in of.trials)
        tail = f"; {failed} of {count} trials failed, see error.txt in {folder / 'search'}" if failed else ""
        print(f"{name}: learning rate {of.best.values['lr']:g}{_edge(of)}{tail}")
    return {name: of.best.values["lr"] for name, of in found.items()}


def _entry(found: Tuned) -> dict[str, object]:
    span = found.variant["lr"]
    return {
        "best_lr": found.best.values["lr"],
        "range": [span.low, span.high],
        "trials": [{"lr": trial.values["lr"], "loss": trial.score, "failed": trial.failed} for trial in found.trials],
    }


def _edge(found: Tuned) -> str:
    span, edge = found.variant["lr"], found.edges.get("lr")
    return f", at the {edge} edge of the range from {span.low:.3g} to {span.high:.3g}" if edge else ""
