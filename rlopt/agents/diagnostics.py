"""What the replay did lately, for the logs."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from rlopt.replay import Replay, ReplayBatch

NUM_BATCHES = 64
"""Batches that the statistics describe: the most recent ones."""


Numbers = th.Tensor | NDArray[Any]


class ReplayDiagnostics:
    """Keeps references to the last batches' indices, TD errors and weights; computes only when asked.

    Statistics:
        * `td_error_q10`, `_q50`, `_q90`: quantiles of the absolute TD errors of sampled transitions, and `td_error_mean`;
        * `age_mean`: mean number of rows written after a sampled transition, at the time of the draw;
        * `weights_ess`: effective sample size (sum w)^2 / (B sum w^2), averaged over batches; 1 for equal weights;
        * `uniform_share`: share of batches drawn uniformly since the last report.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[NDArray[np.int64], int, Numbers, Numbers]] = deque(maxlen=NUM_BATCHES)
        self._num_uniform = 0
        self._num_chosen = 0

    def note(self, replay: Replay, batch: ReplayBatch, td_errors: Numbers) -> None:
        """Remember a batch; no computation."""
        self._batches.append((batch.indices, replay.storage.num_added, td_errors, batch.weights))

    def report(self, replay: Replay) -> dict[str, float]:
        """Statistics of the last batches; empty if there were none."""
        if not self._batches:
            return {}
        errors = np.abs(np.concatenate([_array(td_errors) for _, _, td_errors, _ in self._batches]))
        # The age at the draw: rows written until then, minus the rows up to the transition's own.
        rows = replay.storage.num_rows
        ages = [(num_added - 1 - indices // replay.n_envs) % rows for indices, num_added, _, _ in self._batches]
        sizes = [float(w.sum() ** 2 / (len(w) * (w**2).sum())) for w in (_array(weights) for _, _, _, weights in self._batches)]
        q10, q50, q90 = np.quantile(errors, (0.1, 0.5, 0.9))
        num_uniform = replay.num_uniform_batches - self._num_uniform
        num_chosen = replay.num_chosen_batches - self._num_chosen
        self._num_uniform, self._num_chosen = replay.num_uniform_batches, replay.num_chosen_batches
        report = {
            "td_error_q10": float(q10),
            "td_error_q50": float(q50),
            "td_error_q90": float(q90),
            "td_error_mean": float(errors.mean()),
            "age_mean": float(np.concatenate(ages).mean()),
            "weights_ess": float(np.mean(sizes)),
        }
        if num_uniform + num_chosen > 0:
            report["uniform_share"] = num_uniform / (num_uniform + num_chosen)
        return report


def _array(numbers: Numbers) -> NDArray[Any]:
    return np.asarray(numbers.detach().cpu() if isinstance(numbers, th.Tensor) else numbers).reshape(-1)
