"""Speed and memory of the estimators of rlopt.sysid on one trajectory of five states.

CPU seconds of `fit` on one thread, medians over rounds in which all estimators take turns, and the ratio to NumPy's least-squares
solver on the same data. The first call also compiles the inner loop; it is shown by itself. A stream of ten times as many samples
goes through `partial_fit` in pieces, and the growth of the process is shown.

Commands:
    scripts/bench identification
    scripts/bench identification --num-samples 10000000 --num-rounds 3
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import psutil
import tyro

from rlopt.sysid import SGD, GLMtron, LeastSquares, ParallelSGD, QuasiNewton, SGDDataDrop, SGDReplay, SGDReverseReplay
from rlopt_envs.systems import LinearSystem, random_bimodal


@dataclass(frozen=True)
class Config:
    """What is measured."""

    num_samples: int = 1_000_000
    """Transitions of the trajectory, > 0."""
    num_rounds: int = 5
    """Rounds, > 0."""

    def __post_init__(self) -> None:
        for name in ("num_samples", "num_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main(config: Config) -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    system = LinearSystem(random_bimodal(5, 0.9, rng))
    simulation = [cpu_seconds(lambda: system.simulate(config.num_samples, rng)) for _ in range(2)][1]
    states = system.simulate(config.num_samples, rng)
    estimators = {
        "LeastSquares": LeastSquares(),
        "SGD": SGD(),
        "SGDDataDrop, spacing 10": SGDDataDrop(spacing=10),
        "ParallelSGD, 10 chains": ParallelSGD(num_chains=10),
        "SGDReplay, B = 100": SGDReplay(seed=0),
        "SGDReverseReplay, B = 100, u = 10": SGDReverseReplay(),
        "SGDReverseReplay, B = 1, u = 0": SGDReverseReplay(buffer_size=1, gap=0, step_size=1e-3),
        "QuasiNewton, identity, 30 passes": QuasiNewton(link="identity"),
        "GLMtron, identity, 60 passes": GLMtron(link="identity"),
    }
    first = {name: cpu_seconds(lambda e=estimator: e.fit(states)) for name, estimator in estimators.items()}
    rounds: dict[str, list[float]] = {name: [] for name in ["numpy.linalg.lstsq", *estimators]}
    for _ in range(config.num_rounds):
        rounds["numpy.linalg.lstsq"].append(cpu_seconds(lambda: np.linalg.lstsq(states[:-1], states[1:], rcond=None)))
        for name, estimator in estimators.items():
            rounds[name].append(cpu_seconds(lambda e=estimator: e.fit(states)))
    print(f"{config.num_samples} transitions, 5 states; simulating them took {simulation:.2f} CPU seconds.\n")
    print("| estimator | CPU seconds | ratio to lstsq | first call |")
    print("| --- | --- | --- | --- |")
    for name, values in rounds.items():
        ratio = statistics.median(a / b for a, b in zip(values, rounds["numpy.linalg.lstsq"], strict=True))
        print(f"| {name} | {statistics.median(values):.3f} | {ratio:.2f} | " + (f"{first[name]:.2f} |" if name in first else "|"))
    print_stream(system, config.num_samples)


def print_stream(system: LinearSystem, num_samples: int) -> None:
    """Memory of a stream that is ten times as long."""
    rng = np.random.default_rng(1)
    estimator = SGDReverseReplay(num_samples=10 * num_samples)
    process, state, sizes = psutil.Process(), np.zeros(system.num_states), []
    piece = min(100_000, num_samples)
    for _ in range(10 * num_samples // piece):
        states = system.simulate(piece, rng, initial_state=state)
        state = states[-1]
        estimator.partial_fit(states)
        sizes.append(process.memory_info().rss)
    grown = (sizes[-1] - sizes[len(sizes) // 10]) / 2**20
    error = np.linalg.norm(estimator.A_ - system.A, 2)
    print(
        f"\nA stream of {estimator.num_samples_} transitions through SGDReverseReplay.partial_fit in pieces of {piece}: "
        f"the process grew by {grown:.1f} MiB between 10 % and 100 % of it; error {error:.1e}."
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
