"""The drawings of a report, as SVG text.

The colours are those of Okabe and Ito, told apart with any common colour vision; line styles and markers say the same
again for print in black and white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from rlopt.study.bootstrap import Interval, profile_band
from rlopt.study.task import Task

FloatArray = NDArray[np.float64]


class Style(NamedTuple):
    """How a variant is drawn in every figure."""

    color: str
    line: str | tuple[int, tuple[float, ...]]
    marker: str


_STYLES = (
    Style("#0072B2", "-", "o"),
    Style("#D55E00", "--", "s"),
    Style("#009E73", "-.", "^"),
    Style("#CC79A7", ":", "D"),
    Style("#E69F00", (0, (5, 1, 1, 1, 1, 1)), "v"),
    Style("#56B4E9", (0, (8, 2)), "P"),
    Style("#000000", (0, (1, 2)), "X"),
    Style("#8A7B00", (0, (4, 2, 4, 2, 1, 2)), "*"),
)

_SETTINGS: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "rlopt",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


# Markers for the variants after the eighth, which use the colours again.
_MORE_MARKERS = ("<", ">", "p", "h", "d")


def styles(variants: Sequence[str]) -> dict[str, Style]:
    """Return the style of each variant.

    The first eight differ in colour, line and marker, each alone. Up to 64 differ in each pair of the three, so that
    colours are not needed to tell them apart.
    """
    count = len(_STYLES)
    markers = (*(style.marker for style in _STYLES), *_MORE_MARKERS)
    return {
        variant: Style(_STYLES[i % count].color, _STYLES[(i + i // count) % count].line, markers[i % len(markers)])
        for i, variant in enumerate(variants)
    }


class Curve(NamedTuple):
    """A learning curve: steps (checkpoints,), IQM with band, and the scores (seeds, checkpoints) behind it."""

    steps: FloatArray
    band: Interval
    scores: FloatArray


def learning_curves(curves: Mapping[str, Curve], style: Mapping[str, Style], task: Task) -> str:
    """Draw the IQM over seeds against steps, with its band; thin lines mark the references and what counts as solved."""
    with rc_context(_SETTINGS):
        figure, axes = _new(7.6, 4.0)
        for variant, curve in curves.items():
            color, line, marker = style[variant]
            every = max(1, len(curve.steps) // 10)
            axes.fill_between(curve.steps, curve.band.low, curve.band.high, color=color, alpha=0.15, linewidth=0)
            axes.plot(
                curve.steps, curve.band.estimate, color=color, linestyle=line, marker=marker, markevery=every,
                markersize=5, linewidth=1.8, label=variant,
            )  # fmt: skip
        if task.high is not None:
            axes.axhline(task.high, color="#777777", linewidth=0.8)
            axes.annotate(
                "solved", (0.0, task.high), xycoords=("axes fraction", "data"), xytext=(3, 2),
                textcoords="offset points", ha="left", va="bottom", fontsize=8, color="#555555",
            )  # fmt: skip
        for name in task.references:
            _reference(axes, task, name, first_step=min(float(curve.steps[0]) for curve in curves.values()))
        axes.set_xlabel(task.step_name)
        axes.set_ylabel(_score_label(task.score_name, task))
        if task.log_scale:
            _logarithmic(axes, "x")
            _logarithmic(axes, "y")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _legend_outside(axes)
        return _svg(figure)


class TimedCurve(NamedTuple):
    """Scores of one run against seconds: both of shape (evaluations,), with their steps."""

    steps: FloatArray
    seconds: FloatArray
    scores: FloatArray

    def at(self, seconds: float) -> float | None:
        """Return the score of the last evaluation not later than a time, None if there is none yet."""
        count = int(np.searchsorted(self.seconds, seconds, side="right"))
        return float(self.scores[count - 1]) if count else None


def time_curves(curves: Mapping[str, Sequence[TimedCurve]], style: Mapping[str, Style], task: Task, seconds_name: str) -> str:
    """Draw scores against seconds: thin lines for the seeds, and at each step the medians over seeds of both."""
    with rc_context(_SETTINGS):
        figure, axes = _new(7.6, 4.4)
        ends = []
        for variant, runs in curves.items():
            color, line, marker = style[variant]
            for run in runs:
                axes.plot(run.seconds, run.scores, color=color, linewidth=0.6, alpha=0.45)
            middle = _middle(runs)
            axes.plot(
                middle.seconds, middle.scores, color=color, linestyle=line, marker=marker, linewidth=1.8, markersize=5,
                markevery=max(1, len(middle.steps) // 10),
            )  # fmt: skip
            ends.append((float(middle.seconds[-1]), float(middle.scores[-1]), variant, color))
        axes.set_xlabel(seconds_name)
        axes.set_ylabel(_score_label(task.score_name, task))
        if task.log_scale:
            _logarithmic(axes, "x")
            _logarithmic(axes, "y")
        _label_ends(figure, axes, ends)
        return _svg(figure)


def seed_points(finals: Mapping[str, FloatArray], intervals: Mapping[str, Interval], style: Mapping[str, Style], task: Task) -> str:
    """Draw the final score of every seed, and beside them the IQM with its interval."""
    with rc_context(_SETTINGS):
        figure, axes = _new(7.6, 0.9 + 0.5 * len(finals))
        for row, (variant, scores) in enumerate(finals.items()):
            color, _, marker = style[variant]
            ordered = np.sort(scores)
            heights = row - 0.14 - 0.14 * (np.arange(len(ordered)) % 2)  # two levels keep neighbours apart
            axes.plot(ordered, heights, marker, color=color, markersize=5, alpha=0.75, linestyle="none", mew=0)
            _interval(axes, row + 0.14, intervals[variant], style[variant])
        _rows(axes, list(finals))
        for name in task.references:
            value = task.reference(name, task.total_steps)
            if value is not None:
                axes.axvline(value, color="#777777", linewidth=0.8)
                axes.annotate(
                    name, (value, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 1), textcoords="offset points",
                    ha="left", va="bottom", fontsize=8, color="#555555",
                )  # fmt: skip
        if task.log_scale:
            _logarithmic(axes, "x")
        name = "score" if task.score_name == "evaluation score" else task.score_name
        axes.set_xlabel(_score_label(f"final {name}", task))
        return _svg(figure)


def improvement(intervals: Mapping[str, Interval], baseline: str, style: Mapping[str, Style]) -> str:
    """Draw the probability that a run of a variant beats one of the baseline, with intervals."""
    with rc_context(_SETTINGS):
        figure, axes = _new(7.6, 0.9 + 0.38 * len(intervals))
        axes.axvline(0.5, color="#777777", linewidth=1.0)
        for row, (label, interval) in enumerate(intervals.items()):
            variant = label.rpartition(": ")[2]
            _interval(axes, row, interval, style[variant])
        _rows(axes, list(intervals))
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0])
        axes.set_xlabel(f"P(better than {baseline}): 0.5 = no difference, right = better")
        return _svg(figure)


def profiles(scores: Mapping[str, FloatArray], style: Mapping[str, Style]) -> str:
    """Draw the share of runs above each normalised score; (seeds, tasks) per variant."""
    with rc_context(_SETTINGS):
        figure, axes = _new(7.6, 3.4)
        everything = np.concatenate([values.ravel() for values in scores.values()])
        grid = np.linspace(min(0.0, float(everything.min())), max(1.0, float(everything.max())), 201)
        for variant, values in scores.items():
            color, line, marker = style[variant]
            band = profile_band(values, grid)
            axes.fill_between(grid, band.low, band.high, color=color, alpha=0.15, linewidth=0, step="post")
            axes.plot(
                grid, band.estimate, color=color, linestyle=line, marker=marker, markevery=20, markersize=5, linewidth=1.8,
                label=variant, drawstyle="steps-post",
            )  # fmt: skip
        axes.set_xlabel("normalised score")
        axes.set_ylabel("share of runs above")
        axes.set_ylim(-0.02, 1.02)
        _legend_outside(axes)
        return _svg(figure)


def _middle(runs: Sequence[TimedCurve]) -> TimedCurve:
    """Return the medians over runs at the steps that all of them have; without such a step, the first run."""
    common = sorted(set.intersection(*(set(run.steps.tolist()) for run in runs)))
    if not common:
        return runs[0]
    chosen = [np.searchsorted(run.steps, common) for run in runs]
    seconds, scores = (
        np.median([getattr(run, column)[index] for run, index in zip(runs, chosen, strict=True)], axis=0)
        for column in ("seconds", "scores")
    )
    return TimedCurve(np.array(common), seconds, scores)


def _label_ends(figure: Figure, axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the name of each line at its end, moved up where it would cover another name."""
    figure.draw_without_rendering()  # the layout must be known
    points = 72.0 / figure.dpi
    placed: list[tuple[float, float, float]] = []  # left, right and height of the names so far, in points
    for x, y, name, color in sorted(ends, key=lambda end: end[1]):
        left, bottom = (float(value) * points for value in axes.transData.transform((x, y)))
        right, height = left + 8 + 5.5 * len(name), bottom
        while any(left < other[1] and other[0] < right and abs(height - other[2]) < 11 for other in placed):
            height += 1
        placed.append((left, right, height))
        axes.annotate(
            name, (x, y), xytext=(6, height - bottom), textcoords="offset points", va="center", fontsize=9, color=color,
            annotation_clip=False, path_effects=[withStroke(linewidth=3, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6} if height > bottom else None,
        )  # fmt: skip


def _new(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")  # no global figure registry
    return figure, figure.add_subplot()


def _interval(axes: Axes, row: float, interval: Interval, style: Style) -> None:
    estimate, low, high = (float(value) for value in interval)
    axes.plot([low, high], [row, row], color=style.color, linewidth=2.5, solid_capstyle="butt")
    axes.plot([estimate], [row], style.marker, color=style.color, markersize=9, markeredgecolor="white", markeredgewidth=1.0)


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(7))


def _score_label(name: str, task: Task) -> str:
    return name if task.goal == "maximize" else f"{name} (lower is better)"


def _reference(axes: Axes, task: Task, name: str, first_step: float) -> None:
    """Draw a reference line from the first evaluation on, with its name beside the middle, away from the line."""
    steps = np.array([step for step, _ in task.references[name]])
    begin, end = max(first_step, steps[0]), steps[-1]
    if begin >= end:
        return
    middle = np.sqrt(begin * end) if task.log_scale else (begin + end) / 2
    drawn = [begin, *steps[(steps > begin) & (steps < end)], end]
    heights = np.array([task.reference(name, step) for step in drawn], dtype=np.float64)
    axes.plot(drawn, heights, color="#444444", linewidth=1.0, zorder=1.5)
    falling = heights[0] > heights[-1]
    axes.annotate(
        name, (middle, task.reference(name, middle)), xytext=(-10 if falling else 0, -8 if falling else 2),
        textcoords="offset points", ha="right" if falling else "center", va="top" if falling else "bottom", fontsize=8,
        color="#555555",
    )  # fmt: skip


def _logarithmic(axes: Axes, side: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with at least two labelled ticks however short it is."""
    axis = axes.xaxis if side == "x" else axes.yaxis
    (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 3.5 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(MaxNLocator(6) if decades < 0.5 else LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_outside(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, handlelength=3.2, borderaxespad=0.2)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # An inline drawing starts at its <svg> element.
    return re.sub(r"\A.*?(?=<svg )", "", text.getvalue(), flags=re.DOTALL)
