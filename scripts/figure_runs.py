"""A figure from the folders of runs: a score against steps and against seconds, one line per label, for the documentation.

Runs of several studies can be drawn together, which a report cannot do. Seeds of a label are given as several folders; the line
is then their mean.

Command:
    python scripts/figure_runs.py OUT.svg --lines "Adam=runs/a/mnist/adam/seed_0" "LocoProp-M=runs/b/mnist/locoprop_m/seed_0" \
        --score loss/train --step epochs --title "MNIST"
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from numpy.typing import NDArray
from tyro.conf import arg

FloatArray = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555", "#000000")
DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Config:
    """What is drawn, and where it goes."""

    path: Annotated[Path, tyro.conf.Positional]
    """File to write; the name's end decides the format (svg, pdf, png)."""
    lines: Annotated[tuple[str, ...], arg(metavar="LABEL=FOLDER[,FOLDER] [...]")]
    """Labels with folders that hold progress.csv."""
    score: str = "loss/train"
    """Column of the score."""
    step: str = "epochs"
    """Column of the steps."""
    seconds: str = "time/cpu_seconds"
    """Column of the seconds since the start."""
    title: str = ""
    """Over the figure."""
    score_label: str = "training loss"
    """At the vertical axis."""
    last_step: float | None = None
    """Rows after this step are left out; None: none."""
    bounds: tuple[float, float] | None = None
    """Of the vertical axis; None: those of the data."""
    log: bool = True
    """Whether the vertical axis is logarithmic."""


def main(config: Config) -> None:
    """Draw the figure."""
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"}):
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for number, line in enumerate(config.lines):
            label, _, folders = line.partition("=")
            steps, seconds, scores = mean_of([read(Path(folder), config) for folder in folders.split(",")])
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
            for axes, x in ((left, steps), (right, seconds)):
                axes.plot(x, scores, label=label, linewidth=1.8, **style)
        finish(left, config.step, config)
        finish(right, "CPU seconds of training", config)
        right.set_xscale("log")
        left.set_ylabel(config.score_label)
        figure.suptitle(config.title, x=0.01, ha="left", fontweight="bold")
        figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
        config.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(config.path, dpi=110, metadata={"Date": None} if config.path.suffix == ".svg" else None)


def read(folder: Path, config: Config) -> FloatArray:
    """Return rows of step, seconds and score.

    Raises:
        SystemExit: If there is no progress.csv, or a column is missing.
    """
    try:
        with (folder / "progress.csv").open() as file:
            rows = [[float(row[name]) for name in (config.step, config.seconds, config.score)] for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise SystemExit(f"error: lines must name folders with progress.csv, got {folder}") from None
    except KeyError as missing:
        raise SystemExit(f"error: score, step and seconds must be columns of progress.csv in {folder}, got {missing}") from None
    last = np.inf if config.last_step is None else config.last_step
    return np.asarray([row for row in rows if row[0] <= last])


def mean_of(runs: list[FloatArray]) -> FloatArray:
    """Average runs up to the end of the shortest, and return columns."""
    length = min(len(run) for run in runs)
    return np.mean([run[:length] for run in runs], axis=0).T  # (runs, rows, 3) -> (3, rows)


def finish(axes: Axes, name: str, config: Config) -> None:
    """Label and scale the axes."""
    axes.set_xlabel(name)
    if config.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
    if config.bounds:
        axes.set_ylim(*config.bounds)
    axes.grid(axis="y", alpha=0.25)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
