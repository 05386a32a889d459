"""Write tests/study/data/rliable.json: random scores, and what `rliable` says about them.

Runs without rlopt, in an environment of its own (scripts/bench_peers.sh makes it), as what rliable needs is older than what
rlopt needs:

    .venv-rliable/bin/python scripts/store_rliable.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rliable import library, metrics

PATH = Path(__file__).parents[1] / "tests" / "study" / "data" / "rliable.json"
SHAPES = {"five_by_one": (5, 1), "seven_by_three": (7, 3), "ten_by_ten": (10, 10), "ties": (6, 4)}
NUM_CHECKPOINTS = 4
THRESHOLDS = np.array([0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2])
REPETITIONS = 10_000
STATISTICS = {
    "iqm": metrics.aggregate_iqm,
    "mean": metrics.aggregate_mean,
    "median": metrics.aggregate_median,
    "optimality_gap": metrics.aggregate_optimality_gap,
}


def estimate(scores: dict, function, repetitions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return point estimates (n,) and the ends of the intervals (2, n)."""
    points, intervals = library.get_interval_estimates(scores, function, reps=repetitions, random_state=np.random.RandomState(0))
    return points["a"], intervals["a"]


def case(shape: tuple[int, int], digits: int, rng: np.random.Generator) -> dict:
    """Return scores of two algorithms and curves of one, with rliable's numbers."""
    spread = rng.uniform(0.1, 0.3, size=shape[1])
    x, y = (np.round(rng.normal(level, spread, size=shape), digits) for level in (0.55, 0.45))
    noise = rng.normal(0.0, 0.05, size=(*shape, NUM_CHECKPOINTS))
    curves = np.round(np.linspace(0.2, 1.0, NUM_CHECKPOINTS) * x[..., np.newaxis] + noise, digits)
    names = list(STATISTICS)
    points, intervals = estimate({"a": x}, lambda scores: np.array([STATISTICS[name](scores) for name in names]), REPETITIONS)

    def improvement(first, second):
        return np.array([metrics.probability_of_improvement(first, second)])

    wins, win_interval = estimate({"a": (x, y)}, improvement, REPETITIONS)
    profiles, bands = library.create_performance_profile({"a": x}, THRESHOLDS, reps=REPETITIONS)
    efficiency, efficiency_bands = {}, {}
    for name, function in STATISTICS.items():

        def of_curves(scores, function=function):
            return np.array([function(scores[..., checkpoint]) for checkpoint in range(NUM_CHECKPOINTS)])

        found = estimate({"a": curves}, of_curves, REPETITIONS // 4)
        efficiency[name], efficiency_bands[name] = (values.tolist() for values in found)
    return {
        "x": x.tolist(),
        "y": y.tolist(),
        "curves": curves.tolist(),
        "point": dict(zip(names, points.tolist(), strict=True)),
        "intervals": {
            **dict(zip(names, intervals.T.tolist(), strict=True)),
            "probability_of_improvement": win_interval[:, 0].tolist(),
        },
        "probability_of_improvement": float(wins[0]),
        "profile": profiles["a"].tolist(),
        "profile_band": np.asarray(bands["a"]).tolist(),
        "efficiency": efficiency,
        "efficiency_bands": efficiency_bands,
    }


def main() -> None:
    """Write the file."""
    np.random.seed(0)  # noqa: NPY002  rliable draws profiles from the global generator
    rng = np.random.default_rng(20)
    made_with = ", ".join(f"{package} {version(package)}" for package in ("rliable", "arch", "numpy"))
    cases = {name: case(shape, 1 if name == "ties" else 3, rng) for name, shape in SHAPES.items()}
    content = {"made_with": made_with, "thresholds": THRESHOLDS.tolist(), "cases": cases}
    PATH.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(PATH)


if __name__ == "__main__":
    main()
