"""What all estimators have in common: what they return, and their estimates along the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from rlopt.sysid.trajectory import Data, Trajectory, as_trajectories

FloatArray = NDArray[np.float64]


class History(NamedTuple):
    """Estimates along the way, each as if the data had ended there.

    Attributes:
        samples: Number of transitions seen, shape (H,).
        estimates: [A B], shape (H, k, p).
    """

    samples: NDArray[np.int64]
    estimates: FloatArray


class Estimator(ABC):
    """Estimates A (and B) in y = phi(A x + B u) + noise; for a trajectory, y is the next state.

    Attributes:
        weights_: [A B], shape (k, p) with p = d + m.
        A_: Shape (k, d).
        B_: Shape (k, m); m = 0 without inputs.
        num_samples_: Transitions seen.
        history_: `History` of the last `fit`.
    """

    weights_: FloatArray
    num_samples_: int
    history_: History
    _num_states: int

    @property
    def A_(self) -> FloatArray:
        """Estimate of A, shape (k, d)."""
        return self.weights_[:, : self._num_states]

    @property
    def B_(self) -> FloatArray:
        """Estimate of B, shape (k, m)."""
        return self.weights_[:, self._num_states :]

    def fit(self, data: Data, num_checkpoints: int = 1) -> Self:
        """Estimate from data, forgetting earlier ones.

        Args:
            data: States (T + 1, d); a pair of regressors (T, p) and targets (T, k); a `Trajectory` or several; a replay.
            num_checkpoints: Entries of `history_`, >= 1, at sample counts that are equally distant on a logarithmic scale from a
                thousandth of the data (at least ten samples per regressor) to all of them.

        Raises:
            ValueError: For data that do not fit, or too few of them.
        """
        if num_checkpoints < 1:
            raise ValueError(f"num_checkpoints must be >= 1, got {num_checkpoints}.")
        parts = as_trajectories(data)
        num_samples = sum(len(part) for part in parts)
        self._num_states = parts[0].num_states
        points = log_checkpoints(num_samples, num_checkpoints, 10 * parts[0].regressors.shape[1])
        self.history_ = History(points, self._fit(parts, points))
        self.weights_ = self.history_.estimates[-1].copy()
        self.num_samples_ = num_samples
        return self

    @abstractmethod
    def _fit(self, parts: list[Trajectory], points: NDArray[np.int64]) -> FloatArray:
        """Return the estimates after the given numbers of samples, (H, k, p); the last number is that of all samples."""

    def _check_support(self, support: ArrayLike | None, shape: tuple[int, int]) -> FloatArray:
        if support is None:
            return np.zeros((0, 0))
        array = np.asarray(support)
        if array.shape != shape or array.dtype != np.bool_:
            raise ValueError(f"support must be a boolean array of shape {shape}, got {array.dtype} of shape {array.shape}.")
        return array.astype(np.float64)


def log_checkpoints(num_samples: int, num_checkpoints: int, smallest: int = 1) -> NDArray[np.int64]:
    """Return increasing sample counts, equally distant on a logarithmic scale, the last one `num_samples`.

    Args:
        num_samples: All samples.
        num_checkpoints: How many counts; fewer come back if they would coincide.
        smallest: The first count is the larger of this and `num_samples / 1000`, but at most `num_samples`.

    Example:
        >>> log_checkpoints(1000, 4, smallest=1).tolist()
        [1, 10, 100, 1000]
    """
    if num_checkpoints == 1:
        return np.array([num_samples])
    first = min(num_samples, max(smallest, num_samples // 1000))
    return np.unique(np.round(np.geomspace(first, num_samples, num_checkpoints)).astype(np.int64))


def prefix(parts: list[Trajectory], num_samples: int) -> list[Trajectory]:
    """Return the first `num_samples` transitions."""
    kept = []
    for part in parts:
        count = min(len(part), num_samples)
        if count == 0:
            break
        inputs = None if part.inputs is None else part.inputs[:count]
        kept.append(part if count == len(part) else Trajectory(part.states[:count], part.next_states[:count], inputs))
        num_samples -= count
    return kept
