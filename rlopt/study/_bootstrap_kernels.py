"""Trimmed means of resampled scores, compiled by numba."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True)
def trimmed_means(
    values: NDArray[np.float64], order: NDArray[np.int64], counts: NDArray[np.int32], low: int, high: int, out: NDArray[np.float64]
) -> None:
    """Set `out` to the mean of the values `low` to `high` - 1 of each resample in ascending order.

    Only how often each score is drawn matters, so the scores are sorted once and not once per resample. The inner loop runs over
    resamples side by side, of which the processor does several at a time.

    Args:
        values: Sorted scores, shape (checkpoints, scores).
        order: Row of `counts` that each of them has, same shape.
        counts: How often each score is drawn, shape (scores, resamples), of equal sum over scores.
        low: First position that counts.
        high: First position that does not count any more.
        out: Shape (checkpoints, resamples).
    """
    num_resamples = counts.shape[1]
    position = np.empty(num_resamples, np.int32)  # values of a resample up to the score that is looked at
    kept = np.empty(num_resamples, np.int32)  # the same, within the part that counts
    first, last = np.int32(low), np.int32(high)
    for c in range(len(values)):
        for r in range(num_resamples):
            position[r], kept[r], out[c, r] = 0, first, 0.0
        for k in range(values.shape[1]):
            value, row = values[c, k] / (high - low), order[c, k]
            for r in range(num_resamples):
                position[r] += counts[row, r]
                now = min(max(position[r], first), last)
                out[c, r] += value * (now - kept[r])
                kept[r] = now
