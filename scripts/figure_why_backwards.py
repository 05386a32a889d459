"""The figure of docs/system_identification.md: why forward SGD is biased on a trajectory, and backwards is not.

Command:
    python scripts/figure_why_backwards.py docs/figures/system_identification/why_backwards.svg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlopt.sysid import SGD, LeastSquares, SGDReplay, SGDReverseReplay, operator_error, operator_limit
from rlopt_envs.systems import LinearSystem, random_bimodal

FloatArray = NDArray[np.float64]

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
A, STEP_SIZE, BUFFER = 0.6, 0.02, 40  # the scalar system of the middle panel


@dataclass(frozen=True)
class Config:
    """Where the figure goes, and how much is simulated."""

    path: Annotated[Path, tyro.conf.Positional]
    """File to write; the name's end decides the format (svg, pdf, png)."""
    replicas: int = 400_000
    """Buffers that the middle panel averages over."""
    num_samples: int = 1_000_000
    """Length of the trajectories of the right panel."""
    seeds: int = 10
    """Trajectories of the right panel."""


def main(config: Config) -> None:
    """Draw the figure."""
    with rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"}):
        figure = Figure(figsize=(13.2, 4.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1.0, 1.0))
        draw_idea(left)
        draw_bias(middle, config.replicas)
        draw_errors(right, config.num_samples, config.seeds)
        config.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(config.path, dpi=110, metadata={"Date": None} if config.path.suffix == ".svg" else None)


def draw_idea(axes: Axes) -> None:
    """Which states the noise of one step reaches, and which factors multiply it later."""
    axes.set_axis_off()
    axes.set_xlim(-0.35, 5.35)
    axes.set_ylim(-2.75, 2.25)
    axes.set_title("One noise, two orders", loc="left", fontweight="bold")
    names = [r"$x_{t-2}$", r"$x_{t-1}$", r"$x_t$", r"$x_{t+1}$", r"$x_{t+2}$", r"$x_{t+3}$"]
    for place, name in enumerate(names):
        color = "#fbe3d6" if place >= 3 else "#e8f1f8"
        axes.scatter([place], [0.9], s=1150, color=color, edgecolor=GREY, linewidth=0.8, zorder=2)
        axes.text(place, 0.9, name, ha="center", va="center", fontsize=11, zorder=3)
        if place < 5:
            axes.annotate("", (place + 0.68, 0.9), (place + 0.32, 0.9), arrowprops={"arrowstyle": "->", "color": GREY})
    axes.annotate(
        r"noise $\eta_t$", (3, 1.32), (3, 2.05), ha="center", va="center", color=ORANGE, fontsize=11,
        arrowprops={"arrowstyle": "->", "color": ORANGE, "linewidth": 1.5},
    )  # fmt: skip
    for height, start, end, color, title, text in (
        (
            -0.35, 2.0, 5.0, ORANGE, "forward",
            r"update $t$ brings in $\eta_t$; the updates after it multiply it by" "\n"
            r"$(I-2\gamma x_{t+1}x_{t+1}^{\top})\cdots$, and these states contain $\eta_t$:" "\n"
            r"the mean of the product is not 0",
        ),
        (
            -1.85, 2.0, 0.0, BLUE, "backwards",
            r"update $t$ brings in $\eta_t$; the updates after it multiply it by" "\n"
            r"$(I-2\gamma x_{t-1}x_{t-1}^{\top})\cdots$, and these states never saw $\eta_t$:" "\n"
            r"the mean is exactly 0, for every step size",
        ),
    ):  # fmt: skip
        arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 2.2, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (end, height + 0.55), (start, height + 0.55), arrowprops=arrow)
        axes.text(start, height + 0.63, title, color=color, ha="left" if end > start else "right", va="bottom", fontweight="bold")
        axes.text(-0.3, height + 0.36, text, va="top", fontsize=10, linespacing=1.4)


def mean_paths(replicas: int) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Mean error and its standard error after each update of a buffer that starts at the true parameter."""
    rng = np.random.default_rng(0)
    states = np.empty((BUFFER + 1, replicas))
    states[0] = rng.standard_normal(replicas) / np.sqrt(1.0 - A**2)
    for t in range(BUFFER):
        states[t + 1] = A * states[t] + rng.standard_normal(replicas)
    paths = {}
    for name, order in (("forward", range(BUFFER)), ("backwards", range(BUFFER - 1, -1, -1))):
        weights = np.full(replicas, A)
        means, errors = [0.0], [0.0]
        for t in order:
            weights -= 2.0 * STEP_SIZE * (weights * states[t] - states[t + 1]) * states[t]
            means.append(float(weights.mean()) - A)
            errors.append(float(weights.std()) / np.sqrt(replicas))
        paths[name] = (np.array(means), np.array(errors))
    return paths


def draw_bias(axes: Axes, replicas: int) -> None:
    """The mean error along a buffer."""
    axes.set_title("Mean error along a buffer that starts at the truth", loc="left", fontweight="bold", fontsize=10)
    for (name, (means, errors)), color, style in zip(mean_paths(replicas).items(), (ORANGE, BLUE), ("--", "-"), strict=True):
        updates = np.arange(BUFFER + 1)
        axes.plot(updates, means, style, color=color, linewidth=2, label=name)
        axes.fill_between(updates, means - 4 * errors, means + 4 * errors, color=color, alpha=0.25, linewidth=0)
    bias = -4.0 * STEP_SIZE * A / (1.0 - A**2)
    axes.axhline(bias, color=GREY, linewidth=0.9, linestyle=":")
    axes.annotate(
        r"first-order limit $-4\gamma aG$", (BUFFER, bias), ha="right", va="top", xytext=(0, -4), textcoords="offset points",
        color=GREY, fontsize=9,
    )  # fmt: skip
    axes.set_ylim(1.35 * bias, -0.25 * bias)
    axes.set_xlabel("updates")
    axes.set_ylabel(rf"mean of $\hat a - a$   ($a$ = {A}, $\gamma$ = {STEP_SIZE})")
    axes.legend(frameon=False, loc="center right")


def draw_errors(axes: Axes, num_samples: int, seeds: int) -> None:
    """What it does to an estimate."""
    axes.set_title("Error of the estimate, 5 states", loc="left", fontweight="bold", fontsize=10)
    curves: dict[str, list[FloatArray]] = {}
    samples = limit = np.empty(0)
    for seed in range(seeds):
        rng = np.random.default_rng([7, seed])
        system = LinearSystem(random_bimodal(5, 0.9, rng))
        states = system.simulate(num_samples, rng)
        for name, estimator in {
            "SGD, forward": SGD(),
            "SGD, random replay": SGDReplay(gap=10, seed=seed),
            "SGD, reverse replay": SGDReverseReplay(),
            "least squares": LeastSquares(),
        }.items():
            history = estimator.fit(states, num_checkpoints=16).history_
            curves.setdefault(name, []).append(operator_error(history.estimates, system.A))
            samples = history.samples.astype(np.float64)
        limit = operator_limit(system.noise_cov, system.stationary_covariance(), samples)
    styles = ((ORANGE, "--", "s"), (PURPLE, ":", "D"), (BLUE, "-", "o"), (GREEN, "-.", "^"))
    for (name, values), (color, line, marker) in zip(curves.items(), styles, strict=True):
        axes.loglog(
            samples, np.mean(values, axis=0), line, color=color, marker=marker, markersize=4, markevery=3, linewidth=2, label=name
        )
        axes.fill_between(samples, np.min(values, axis=0), np.max(values, axis=0), color=color, alpha=0.15, linewidth=0)
    axes.loglog(samples, limit, color=GREY, linewidth=0.9, label="statistical limit")
    axes.set_xlabel("samples of one trajectory")
    axes.set_ylabel(r"$\|\hat A - A\|$")
    axes.legend(frameon=False, fontsize=8.5, loc="lower left")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
