"""Quality against counted operations and measured time: a table, a CSV file and a figure for each task of a study."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _efficient_attention_training import final_costs
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from rlopt.study import Task
from rlopt.study.files import write_text
from rlopt.study.results import StudyResults, read_results
from rlopt.study.words import figure_name, number

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555", "#000000")
MARKERS = "os^Dv"


class EfficiencyRow(NamedTuple):
    """A row of the table; medians over seeds but for the difference.

    Args:
        task: Name of the task.
        variant: Kind of attention.
        score: Final score.
        low: Least final score of a seed.
        high: Largest.
        difference: Mean over seeds of the score minus that of the baseline with the same seed; None for the baseline.
        difference_sd: Standard deviation of these differences; None below two seeds.
        attention_flops: Operations of attention per token, forward.
        dense_ratio: How many times fewer than exact attention.
        attention_us: Microseconds of attention per token, forward.
        model_flops: Operations of the model per token.
        model_us: Microseconds of the model per token.
        training_seconds: CPU seconds of training.
        empty_leaf_rate: Share of queries of trees whose leaf was empty.
        seeds: Finished runs.
    """

    task: str
    variant: str
    score: float
    low: float
    high: float
    difference: float | None
    difference_sd: float | None
    attention_flops: float
    dense_ratio: float
    attention_us: float
    model_flops: float
    model_us: float
    training_seconds: float
    empty_leaf_rate: float
    seeds: int


def write_efficiency(folder: Path) -> Path:
    """Write efficiency.md, efficiency.csv and TASK-efficiency.svg into the folder of a study.

    Args:
        folder: Of a study with at least one finished run.

    Returns:
        Path of efficiency.md.
    """
    results = read_results(folder)
    lines, rows = ["# Quality, operations and time", ""], []
    for task in results.reported_tasks():
        found = efficiency_rows(results, task)
        rows += found
        figure = f"{figure_name(task.name)}-efficiency.svg"
        draw(found, task, results.record.baseline, folder / figure)
        lines += [*markdown(found, task, results.record.baseline), "", f"![{task.name}]({figure})", ""]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EfficiencyRow._fields)
    writer.writerows(rows)
    write_text(folder / "efficiency.csv", text.getvalue())
    write_text(folder / "efficiency.md", "\n".join(lines))
    return folder / "efficiency.md"


def efficiency_rows(results: StudyResults, task: Task) -> list[EfficiencyRow]:
    """Return a row for each variant that has finished runs."""
    baseline = {run.seed: run.final for run in results.finished(task.name, results.record.baseline)}
    rows = []
    for variant in results.variants(task.name):
        runs = results.finished(task.name, variant)
        finals = np.array([run.final for run in runs])
        costs = [final_costs(run.folder) for run in runs]

        def median(name: str, of: Sequence[dict[str, float]] = costs) -> float:
            return float(np.median([row[name] for row in of]))

        paired = [run.final - baseline[run.seed] for run in runs if run.seed in baseline]
        compared = bool(paired) and variant != results.record.baseline
        rows.append(
            EfficiencyRow(
                task=task.name,
                variant=variant,
                score=float(np.median(finals)),
                low=float(finals.min()),
                high=float(finals.max()),
                difference=float(np.mean(paired)) if compared else None,
                difference_sd=float(np.std(paired, ddof=1)) if compared and len(paired) > 1 else None,
                attention_flops=median("cost/flops"),
                dense_ratio=float(np.median([row["cost/dense_flops"] / row["cost/flops"] for row in costs])),
                attention_us=median("cost/microseconds"),
                model_flops=median("cost/model_flops"),
                model_us=median("cost/model_microseconds"),
                training_seconds=median("time/cpu_seconds"),
                empty_leaf_rate=median("cost/empty_leaf_rate"),
                seeds=len(runs),
            )
        )
    return rows


def markdown(rows: Sequence[EfficiencyRow], task: Task, baseline: str) -> list[str]:
    """Return heading, explanation and table of a task."""
    header = (
        "attention", f"{task.score_name}, median (range)", f"minus {baseline}, mean ± sd", "attention operations",
        "fewer than exact", "attention µs", "model operations", "model µs", "training s", "empty leaves", "seeds",
    )  # fmt: skip
    lines = [
        f"## {task.name}",
        "",
        f"Operations and microseconds are per token of a forward pass; {task.better} scores are better.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
    ]
    for row in rows:
        if row.difference is None:
            difference = ""
        else:
            difference = f"{row.difference:+.3f}" + ("" if row.difference_sd is None else f" ± {row.difference_sd:.3f}")
        cells = (
            row.variant, f"{row.score:.3f} ({row.low:.3f} to {row.high:.3f})", difference, f"{row.attention_flops:,.0f}",
            f"{number(row.dense_ratio)}x", number(row.attention_us), f"{row.model_flops:,.0f}", number(row.model_us),
            number(row.training_seconds), f"{row.empty_leaf_rate:.3f}" if row.empty_leaf_rate else "", str(row.seeds),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(rows: Sequence[EfficiencyRow], task: Task, baseline: str, path: Path) -> None:
    """Draw the medians of scores, with ranges over seeds, against operations and time of attention."""
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"}):
        figure = Figure(figsize=(10.4, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, name, label in (
            (panels[0], "attention_flops", "operations of attention per token"),
            (panels[1], "attention_us", "microseconds of attention per token"),
        ):
            for index, row in enumerate(rows):
                axes.errorbar(
                    getattr(row, name),
                    row.score,
                    yerr=[[row.score - row.low], [row.high - row.score]],
                    label=row.variant,
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index // len(COLOURS) % len(MARKERS)],
                    linestyle="none",
                )
                if row.variant == baseline:
                    axes.axhline(row.score, color="#999999", linewidth=0.8, linestyle=":")
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:,.6g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(label)
            axes.grid(alpha=0.25)
        panels[0].set_ylabel(f"{task.score_name} ({task.better} is better)")
        figure.suptitle(task.name, x=0.01, ha="left", fontweight="bold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
        figure.savefig(path, metadata={"Date": None})
