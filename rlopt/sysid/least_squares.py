"""Ordinary and ridge least squares from sufficient statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from rlopt.sysid.estimator import Estimator
from rlopt.sysid.trajectory import Data, Trajectory, as_trajectories

FloatArray = NDArray[np.float64]

_BLOCK_ROWS = 65536  # rows of a matrix product; larger ones gain nothing and need copies


class LeastSquares(Estimator):
    """Least squares: A = (sum y x') (sum x x' + regularization I)^-1.

    For a stable linear system it attains the statistical limits of `rlopt.sysid.limits` as the number of samples grows, so it is
    the measure for all others. It keeps the sums only: memory O(p^2 + p k), independent of the number of samples.

    Args:
        fit_intercept: Whether y = A x + c; then `intercept_` is c, shape (k,), and it is not regularised.
        regularization: Ridge penalty, >= 0, added to the diagonal of the sum (not the mean) of x x'.

    Raises:
        ValueError: For a negative penalty.

    Example:
        >>> states = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # a quarter turn per step
        >>> LeastSquares().fit(states).A_.round(12).tolist()
        [[0.0, -1.0], [1.0, 0.0]]
    """

    intercept_: FloatArray

    def __init__(self, *, fit_intercept: bool = False, regularization: float = 0.0) -> None:
        if not regularization >= 0.0:
            raise ValueError(f"regularization must be >= 0, got {regularization}.")
        self.fit_intercept = fit_intercept
        self.regularization = regularization
        self._gram: FloatArray | None = None

    def partial_fit(self, data: Data) -> Self:
        """Add data to those seen and estimate from all of them.

        Each call brings trajectories of their own: from an array of states (T + 1, d) it takes T transitions.
        """
        parts = as_trajectories(data)
        if self._gram is None:
            self._start(parts[0])
        for part in parts:
            self._add(part.regressors, part.next_states)
        self.weights_ = self._solve()
        return self

    def _fit(self, parts: list[Trajectory], points: NDArray[np.int64]) -> FloatArray:
        self._start(parts[0])
        estimates = []
        seen = 0
        for part in parts:
            begin = 0
            for point in [*points[(points > seen) & (points < seen + len(part))].tolist(), seen + len(part)]:
                self._add(part.regressors[begin : point - seen], part.next_states[begin : point - seen])
                begin = point - seen
                if point in points:
                    estimates.append(self._solve())
            seen += len(part)
        return np.stack(estimates)

    def _start(self, part: Trajectory) -> None:
        extra = int(self.fit_intercept)
        num_regressors, num_targets = part.regressors.shape[1] + extra, part.next_states.shape[1]
        self._num_states = part.num_states
        self._gram = np.zeros((num_regressors, num_regressors))
        self._cross = np.zeros((num_regressors, num_targets))
        self.num_samples_ = 0

    def _add(self, x: FloatArray, y: FloatArray) -> None:
        assert self._gram is not None
        num = self._gram.shape[0] - int(self.fit_intercept)
        if x.shape[1] != num or y.shape[1] != self._cross.shape[1]:
            raise ValueError(
                f"data must have {num} regressors and {self._cross.shape[1]} targets, got {x.shape[1]} and {y.shape[1]}."
            )
        for begin in range(0, len(x), _BLOCK_ROWS):
            block, targets = x[begin : begin + _BLOCK_ROWS], y[begin : begin + _BLOCK_ROWS]
            if self.fit_intercept:
                block = np.hstack([block, np.ones((len(block), 1))])
            self._gram += block.T @ block
            self._cross += block.T @ targets
        self.num_samples_ += len(x)

    def _solve(self) -> FloatArray:
        assert self._gram is not None
        gram = self._gram.copy()
        num = len(gram) - int(self.fit_intercept)
        gram[np.arange(num), np.arange(num)] += self.regularization
        # With fewer samples than regressors: the solution of least norm.
        solution = np.linalg.lstsq(gram, self._cross, rcond=len(gram) * np.finfo(np.float64).eps)[0]
        if self.fit_intercept:
            self.intercept_ = solution[-1].copy()
            solution = solution[:-1]
        return np.ascontiguousarray(solution.T)
