"""Grid search for learning rates, with the same number of equally long trials for every optimizer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _autoencoder_training import LARGEST_LOSS

from rlopt.study import Task, run_study
from rlopt.study.files import read_json, write_json
from rlopt.study.runs import read_evaluations

FUNCTION = f"{Path(__file__).resolve().parent / '_autoencoder_training.py'}:train"
# Trials have a seed that no run of the comparison has.
SEARCH_SEED = 1_000_000


class SearchStoppedError(Exception):
    """The search was stopped by a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def given_rates(words: Sequence[str]) -> dict[str, float]:
    """Read NAME=RATE words.

    Raises:
        ValueError: If a word is not of this form, or a name comes twice.
    """
    rates: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            rate = float(text)
        except ValueError:
            rate = math.nan
        if not name or not 0 < rate < math.inf:
            raise ValueError(f"learning_rates must be NAME=RATE with a rate > 0, got {word}")
        if name in rates:
            raise ValueError(f"learning_rates must name an optimizer once, got {name} twice")
        rates[name] = rate
    return rates


def rate_grid(centre: float, count: int) -> list[float]:
    """Return rates on a logarithmic grid around a rate, each sqrt(10) times the one before, with three digits."""
    return [float(f"{centre * 10 ** ((index - (count - 1) / 2) / 2):.3g}") for index in range(count)]


def search_rates(task: Task, centres: Mapping[str, float], count: int, folder: Path, jobs: int | None) -> dict[str, float]:
    """Return the best learning rate of each optimizer, and write all losses to `search.json`.

    Trials are a study of their own in the sub-folder `search`: those that are finished are not repeated.

    Args:
        task: The run of a trial.
        centres: Optimizer -> centre of its grid.
        count: Rates for each optimizer.
        folder: Folder of the comparison.
        jobs: Trials at a time; None: one per core.

    Raises:
        ValueError: If a trial fails, or all rates of an optimizer diverge.
    """
    variants: dict[str, dict[str, Any]] = {
        f"{name}_lr={rate:g}": {"optimizer": name, "lr": rate} for name in centres for rate in rate_grid(centres[name], count)
    }
    place = folder / "search"
    status = run_study(
        FUNCTION,
        tasks=[task],
        variants=variants,
        seeds=[SEARCH_SEED],
        folder=place,
        jobs=jobs or os.cpu_count() or 1,
    )
    if status == 1:
        raise ValueError(f"every trial of the search must end, but one has failed: see error.txt in {place}")
    if status != 0:
        raise SearchStoppedError(status)
    trials: dict[str, list[dict[str, float]]] = {name: [] for name in centres}
    for variant, options in variants.items():
        rows = read_evaluations(place / task.name / variant / f"seed_{SEARCH_SEED}")
        trials[options["optimizer"]].append({"lr": options["lr"], "loss": rows[-1].score})
    best = {name: min(tried, key=lambda trial: trial["loss"]) for name, tried in trials.items()}
    path = folder / "search.json"
    earlier = read_json(path)["optimizers"] if path.exists() else {}
    found = {name: {"best_lr": best[name]["lr"], "trials": tried} for name, tried in trials.items()}
    write_json(path, {"epochs": task.total_steps, "seed": SEARCH_SEED, "optimizers": {**earlier, **found}})
    for name, trial in best.items():
        if trial["loss"] >= LARGEST_LOSS:
            raise ValueError(f"learning_rates must name a rate at which {name} does not diverge, but the search found none")
        edge = "" if trial["lr"] not in (trials[name][0]["lr"], trials[name][-1]["lr"]) else ", at the edge of the grid"
        print(f"{name}: learning rate {trial['lr']:g}{edge}")
    return {name: trial["lr"] for name, trial in best.items()}
