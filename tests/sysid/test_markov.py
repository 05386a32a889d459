"""Regression on a Markov chain whose noise does not drive the regressors: random replay wins there, reverse does not."""

from __future__ import annotations

import numpy as np

from rlopt.sysid import SGD, ParallelSGD, SGDDataDrop, SGDReplay, SGDReverseReplay, frobenius_error
from rlopt_envs.ar_chain import ar_chain


def squared_error(estimator, num_samples: int, seed: int) -> float:
    rng = np.random.default_rng([15, seed])
    truth = rng.standard_normal(20)
    truth *= np.sqrt(2.0) / np.linalg.norm(truth)  # as far from the start at 0 as two random points of the sphere are
    x = ar_chain(num_samples, 20, 0.05, rng)
    y = x @ truth + 1e-3 * rng.standard_normal(num_samples)
    return float(frobenius_error(estimator.fit((x, y)).A_, truth[None]) ** 2)


def test_random_replay_is_accurate_where_forward_dropped_and_reverse_are_not() -> None:
    # eta = 0.2 without the factor 2 of the update; buffers of 1 / epsilon^2; drops of ln(d) / epsilon^2.
    makers = {
        "replay": lambda: SGDReplay(buffer_size=400, step_size=0.1, seed=0),
        "reverse": lambda: SGDReverseReplay(buffer_size=400, gap=0, step_size=0.1),
        "forward": lambda: SGD(step_size=0.1),
        "drop": lambda: SGDDataDrop(spacing=1198, step_size=0.1),
        "parallel": lambda: ParallelSGD(num_chains=400, step_size=0.1),
    }
    errors = {name: np.mean([squared_error(make(), 30_000, seed) for seed in range(5)]) for name, make in makers.items()}
    assert errors["replay"] < 1e-4
    assert errors["forward"] > 1e-2
    assert errors["replay"] < errors["reverse"] < errors["forward"] < errors["drop"]
    # A chain of its own has 75 samples only, which is too few here.
    assert errors["parallel"] > 0.1
