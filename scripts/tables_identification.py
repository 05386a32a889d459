"""Tables of identification errors: linear systems, replay buffers and gaps, non-linear systems, Markovian regression.

Every number is a mean over seeds, with the standard deviation over seeds; a row of reference numbers comes from an independent
program with other random numbers, written for comparison. Results are appended to a file as they come, so a run that was
stopped goes on where it was.

Commands:
    python scripts/tables_identification.py                       # everything, about an hour on one core
    python scripts/tables_identification.py --tables linear --max-samples 1000000
    python scripts/tables_identification.py --tables limits       # from the results of `linear`
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from rlopt.sysid import (
    SGD,
    GLMtron,
    LeastSquares,
    QuasiNewton,
    SGDDataDrop,
    SGDReplay,
    SGDReverseReplay,
    frobenius_error,
    frobenius_limit,
    nonlinear_frobenius_limit,
    operator_error,
    operator_limit,
    prediction_limit,
    prediction_risk,
)
from rlopt_envs.ar_chain import ar_chain
from rlopt_envs.systems import LinearSystem, NonlinearSystem, random_bimodal

FloatArray = NDArray[np.float64]
TableName = Literal["linear", "limits", "ablation", "nonlinear", "markov"]
BLOCK_ROWS = 100_000  # of a stream that is never whole in memory

# Setting -> estimator -> mean error of the independent program and, where it is known, its spread over seeds.
REFERENCE: dict[str, dict[str, tuple[float, float | None]]] = {
    "linear T=1e5 step=1/(2R)": {
        "least_squares": (8.8e-3, 1.5e-3),
        "sgd_reverse_replay": (1.68e-2, 2.4e-3),
        "sgd_replay": (4.90e-2, 5.7e-3),
        "buffer_forward": (0.241, None),
        "sgd": (0.242, 0.042),
    },
    "linear T=1e6 step=1/(2R)": {
        "least_squares": (2.6e-3, 0.6e-3),
        "sgd_reverse_replay": (5.1e-3, 1.0e-3),
        "sgd_replay": (3.70e-2, 2.3e-3),
        "buffer_forward": (0.198, None),
        "sgd": (0.199, 0.036),
    },
    "linear T=1e7 step=1/(2R)": {
        "least_squares": (7.5e-4, 1.3e-4),
        "sgd_reverse_replay": (1.41e-3, 2.4e-4),
        "sgd_replay": (3.32e-2, 1.9e-3),
        "buffer_forward": (0.167, None),
        "sgd": (0.168, 0.030),
    },
    "linear T=1e6 step=1/(8RB)": {
        "least_squares": (2.6e-3, None),
        "sgd_reverse_replay": (3.9e-3, 0.9e-3),
        "sgd_replay": (6.1e-3, 1.3e-3),
        "buffer_forward": (4.0e-3, None),
        "sgd": (3.8e-3, 0.9e-3),
    },
    "linear T=1e7 step=1/(8RB)": {
        "least_squares": (7.5e-4, None),
        "sgd_reverse_replay": (1.1e-3, 0.2e-3),
        "sgd_replay": (1.8e-3, 0.4e-3),
        "buffer_forward": (1.3e-3, None),
        "sgd": (1.2e-3, 0.2e-3),
    },
    "ablation T=1e6": {
        "B=10 u=0": (3.2e-2, None),
        "B=10 u=10": (7.5e-3, None),
        "B=100 u=0": (4.8e-3, None),
        "B=100 u=10": (5.4e-3, None),
        "B=100 u=50": (6.6e-3, None),
        "B=1000 u=0": (1.25e-2, None),
        "B=1000 u=100": (1.43e-2, None),
    },
    "nonlinear T=1e5": {
        "quasi_newton": (1.30e-2, None),
        "sgd_reverse_replay": (2.1e-2, None),
        "sgd_replay": (3.7e-2, None),
        "sgd": (1.2e-1, None),
    },
    "nonlinear T=1e6": {
        "quasi_newton": (4.2e-3, None),
        "sgd_reverse_replay": (6.3e-3, 0.9e-3),
        "sgd_replay": (1.25e-2, None),
        "sgd": (2.0e-2, 0.9e-2),
        "glmtron": (7e-2, None),
    },
    "markov d=20 eps=0.05 T=1e4": {
        "sgd": (7.2e-1, None),
        "sgd_data_drop": (1.9, None),
        "sgd_replay": (3.6e-3, None),
        "sgd_reverse_replay": (3.4e-1, None),
    },
    "markov d=20 eps=0.05 T=3e4": {
        "sgd": (9.2e-2, None),
        "sgd_data_drop": (1.5, None),
        "sgd_replay": (7.6e-7, None),
        "sgd_reverse_replay": (1.1e-2, None),
    },
    "markov d=20 eps=0.05 T=1e5": {
        "sgd": (1.2e-4, None),
        "sgd_data_drop": (6.5e-1, None),
        "sgd_replay": (2.3e-7, None),
        "sgd_reverse_replay": (7.1e-7, None),
    },
    "markov d=100 eps=0.01 T=1e5": {
        "sgd": (1.73, None),
        "sgd_data_drop": (1.92, None),
        "sgd_replay": (1.1e-1, None),
        "sgd_reverse_replay": (1.66, None),
    },
    "markov d=100 eps=0.01 T=1e6": {
        "sgd": (8.1e-1, None),
        "sgd_data_drop": (1.8, None),
        "sgd_replay": (2.7e-6, None),
        "sgd_reverse_replay": (5.0e-1, None),
    },
    "markov d=100 eps=0.01 T=1e7": {
        "sgd": (9.2e-4, None),
        "sgd_data_drop": (1.1, None),
        "sgd_replay": (2.8e-7, None),
        "sgd_reverse_replay": (1.1e-5, None),
    },
}


@dataclass(frozen=True)
class Config:
    """What is computed."""

    tables: tuple[TableName, ...] = ("linear", "limits", "ablation", "nonlinear", "markov")
    """Tables to make."""
    seeds: int = 40
    """Seeds of each setting at most, > 0; some settings have fewer, down to 4."""
    max_samples: int = 10_000_000
    """Settings with longer trajectories are left out."""
    results: Path = Path("runs/tables_identification.jsonl")
    """File that results are appended to and read from."""
    only_print: bool = False
    """Print what the file holds and compute nothing."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be > 0, got {self.seeds}")


Errors = dict[str, float]


def linear(num_samples: int, rule: Any, seed: int) -> Errors:
    """Errors of all estimators on one trajectory of a random bimodal system, and what the limits are compared with."""
    rng = np.random.default_rng([8, seed])
    system = LinearSystem(random_bimodal(5, 0.9, rng))
    states = system.simulate(num_samples, rng)
    reverse = SGDReverseReplay(step_size=rule).fit(states)
    estimators = {
        "least_squares": LeastSquares().fit(states),
        "sgd_reverse_replay": reverse,
        "sgd_replay": SGDReplay(gap=10, step_size=rule, seed=seed).fit(states),
        "buffer_forward": SGDReverseReplay(step_size=rule, order="forward").fit(states),
        "sgd": SGD(step_size=reverse.step_size_).fit(states),
    }
    errors: Errors = {"step_size": reverse.step_size_}
    covariance = system.stationary_covariance()
    for name, estimator in estimators.items():
        errors[name] = float(operator_error(estimator.A_, system.A))
        errors[f"{name} F2"] = float(frobenius_error(estimator.A_, system.A) ** 2)
        errors[f"{name} risk"] = float(prediction_risk(estimator.A_, system.A, covariance))
    errors["limit"] = float(operator_limit(system.noise_cov, covariance, num_samples))
    errors["limit F2"] = float(frobenius_limit(system.noise_cov, covariance, num_samples) ** 2)
    errors["limit risk"] = float(prediction_limit(system.noise_cov, 5, num_samples))
    return errors


def ablation(num_samples: int, seed: int) -> Errors:
    """Errors of reverse replay with other buffers and gaps."""
    rng = np.random.default_rng([8, seed])
    system = LinearSystem(random_bimodal(5, 0.9, rng))
    states = system.simulate(num_samples, rng)
    errors = {}
    for buffer_size, gap in ((10, 0), (10, 10), (100, 0), (100, 10), (100, 50), (1000, 0), (1000, 100)):
        fitted = SGDReverseReplay(buffer_size=buffer_size, gap=gap).fit(states)
        errors[f"B={buffer_size} u={gap}"] = float(operator_error(fitted.A_, system.A))
    return errors


def nonlinear(num_samples: int, seed: int) -> Errors:
    """Errors on a leaky-ReLU system."""
    rng = np.random.default_rng([9, seed])
    system = NonlinearSystem(random_bimodal(5, 0.98, rng), link="leaky_relu", slope=0.5)
    states = system.simulate(num_samples, rng)
    options: dict[str, Any] = {"link": "leaky_relu", "step_size": "5ln(T)/T"}
    estimators = {
        "quasi_newton": QuasiNewton(),
        "sgd_reverse_replay": SGDReverseReplay(buffer_size=240, gap=10, **options),
        "sgd_replay": SGDReplay(buffer_size=240, gap=10, seed=seed, **options),
        "sgd": SGD(**options),
        "glmtron": GLMtron(step_size=0.017),
    }
    errors = {name: float(frobenius_error(estimator.fit(states).A_, system.A)) for name, estimator in estimators.items()}
    errors["limit"] = float(nonlinear_frobenius_limit(system.A, states, 1.0, num_samples))
    return errors


def markov(dimension: int, epsilon: float, num_samples: int, seed: int) -> Errors:
    """Squared errors of regression on a Gaussian autoregressive chain with exogenous noise, in one pass over a stream."""
    rng = np.random.default_rng([10, seed])
    truth, start = (row / np.linalg.norm(row) for row in rng.standard_normal((2, dimension)))
    # Iterates start at 0 here and at a random point of the sphere in the experiment: in a linear model the same, shifted.
    wanted = truth - start
    buffer_size = round(np.ceil(1.0 / epsilon**2 - 1e-9))
    options: dict[str, Any] = {"step_size": 0.1, "num_samples": num_samples}  # eta = 0.2 without the factor 2
    estimators = {
        "sgd": SGD(**options),
        "sgd_data_drop": SGDDataDrop(spacing=int(np.log(dimension) / epsilon**2), **options),
        "sgd_replay": SGDReplay(buffer_size=buffer_size, seed=seed, **options),
        "sgd_reverse_replay": SGDReverseReplay(buffer_size=buffer_size, gap=0, **options),
    }
    last = None
    for begin in range(0, num_samples, BLOCK_ROWS):
        count = min(BLOCK_ROWS, num_samples - begin)
        chain = ar_chain(count, dimension, epsilon, rng, previous=last)
        last = chain[-1]
        targets = chain @ wanted + 1e-3 * rng.standard_normal(count)
        for estimator in estimators.values():
            estimator.partial_fit((chain, targets))
    return {name: float(frobenius_error(estimator.A_, wanted[None]) ** 2) for name, estimator in estimators.items()}


@dataclass(frozen=True)
class Setting:
    """One group of rows of a table."""

    name: str
    num_samples: int
    run: Callable[[int], Errors]
    num_seeds: int


def settings() -> Iterator[Setting]:
    """All settings, the quick ones first."""
    for text, num_samples, rule in (
        ("1e5", 10**5, "1/(2R)"),
        ("1e6", 10**6, "1/(2R)"),
        ("1e6", 10**6, "1/(8RB)"),
        ("1e7", 10**7, "1/(2R)"),
        ("1e7", 10**7, "1/(8RB)"),
    ):
        yield Setting(f"linear T={text} step={rule}", num_samples, lambda s, n=num_samples, r=rule: linear(n, r, s), 40)
    yield Setting("ablation T=1e6", 10**6, lambda s: ablation(10**6, s), 20)
    for text, num_samples in (("1e5", 10**5), ("1e6", 10**6)):
        yield Setting(f"nonlinear T={text}", num_samples, lambda s, n=num_samples: nonlinear(n, s), 20)
    for dimension, epsilon, text, num_samples, seeds in (
        (20, 0.05, "1e4", 10**4, 40),
        (20, 0.05, "3e4", 3 * 10**4, 40),
        (20, 0.05, "1e5", 10**5, 40),
        (100, 0.01, "1e5", 10**5, 12),
        (100, 0.01, "1e6", 10**6, 12),
        (100, 0.01, "1e7", 10**7, 4),
    ):
        name = f"markov d={dimension} eps={epsilon} T={text}"
        yield Setting(name, num_samples, lambda s, d=dimension, e=epsilon, n=num_samples: markov(d, e, n, s), seeds)


def read(path: Path) -> dict[tuple[str, int], Errors]:
    """Results so far by setting and seed."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {(row["setting"], row["seed"]): row["errors"] for row in map(json.loads, lines)}


def main(config: Config) -> None:
    """Compute what is missing and print the tables."""
    config.results.parent.mkdir(parents=True, exist_ok=True)
    done = read(config.results)
    for setting in settings():
        wanted = ("linear", "limits") if setting.name.startswith("linear") else (setting.name.split()[0],)
        if config.only_print or setting.num_samples > config.max_samples or not set(wanted) & set(config.tables):
            continue
        for seed in range(min(config.seeds, setting.num_seeds)):
            if (setting.name, seed) in done:
                continue
            begin = time.process_time()
            errors = setting.run(seed)
            done[setting.name, seed] = errors
            row = {"setting": setting.name, "seed": seed, "errors": errors, "cpu_seconds": round(time.process_time() - begin, 2)}
            with config.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    for setting in settings():
        rows = [errors for (name, _), errors in sorted(done.items()) if name == setting.name]
        if rows and setting.name.split()[0] in config.tables:
            print_errors(setting.name, rows)
    if "limits" in config.tables:
        print_limits(done)


def print_errors(name: str, rows: list[Errors]) -> None:
    """One setting: measured mean and spread beside the reference, and how far apart they are."""
    print(f"\n### {name}, {len(rows)} seeds\n")
    print("| estimator | error, mean ± sd over seeds | independent program | difference / sd |")
    print("| --- | --- | --- | --- |")
    reference = REFERENCE[name]
    for estimator in [key for key in rows[0] if key in reference or key in ("glmtron", "limit")]:
        values = np.array([row[estimator] for row in rows])
        spread = values.std(ddof=1) if len(values) > 1 else float("nan")
        if estimator not in reference:
            print(f"| {estimator} | {values.mean():.3g} ± {spread:.2g} | | |")
            continue
        expected, sd = reference[estimator]
        shown = f"{expected:.3g}" + ("" if sd is None else f" ± {sd:.2g}")
        print(
            f"| {estimator} | {values.mean():.3g} ± {spread:.2g} | {shown} | {(values.mean() - expected) / (sd or spread):+.1f} |"
        )


def print_limits(done: dict[tuple[str, int], Errors]) -> None:
    """Squared errors and prediction risk against the statistical limit and against least squares on the same data."""
    print("\n### Against the limit\n")
    print("| setting | estimator | operator error / limit | F² / limit | risk / limit | F² / OLS | risk / OLS |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for setting in settings():
        rows = [errors for (name, _), errors in sorted(done.items()) if name == setting.name]
        if not rows or not setting.name.startswith("linear"):
            continue
        for estimator in ("least_squares", "sgd_reverse_replay", "sgd_replay", "buffer_forward", "sgd"):

            def mean(key: str, name: str = estimator, of: list[Errors] = rows) -> float:
                return float(np.mean([row[f"{name}{key}"] for row in of]))

            cells = [mean(key) / mean(key, "limit") for key in ("", " F2", " risk")]
            cells += [mean(key) / mean(key, "least_squares") for key in (" F2", " risk")]
            print(f"| {setting.name.removeprefix('linear ')} | {estimator} | " + " | ".join(f"{cell:.3g}" for cell in cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
