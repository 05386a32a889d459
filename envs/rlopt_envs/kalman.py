"""The Kalman filter: the best estimate of a linear system's state from noisy observations.

States move as x' = A x + B u + w with noise w of covariance W, and y = C x + v is observed, v of covariance V. All noises are
Gaussian, independent, of mean 0. All arrays are float64, d states, m inputs, p outputs.

References: Anderson and Moore, Optimal Filtering, 1979.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_discrete_are

from rlopt_envs._linear_algebra import check_modes, symmetrised
from rlopt_envs._validation import covariance, input_matrix, matrix, output_matrix, square

FloatArray = NDArray[np.float64]


class Kalman(NamedTuple):
    """The stationary optimal filter of x' = A x + B u + w, y = C x + v.

    Args:
        gain: L, shape (d, p): estimate = prediction + L (y - C prediction).
        predicted_covariance: Of the state given the observations before it, shape (d, d).
        filtered_covariance: Of the state given the observation of it too, shape (d, d).
    """

    gain: FloatArray
    predicted_covariance: FloatArray
    filtered_covariance: FloatArray


def kalman(A: ArrayLike, C: ArrayLike, noise_cov: ArrayLike, observation_noise_cov: ArrayLike) -> Kalman:
    """Return the filter that is optimal after many steps, from the Riccati equation of the dual problem.

    Args:
        A: Shape (d, d).
        C: Shape (p, d), p >= 1.
        noise_cov: W, shape (d, d), symmetric, no negative eigenvalue.
        observation_noise_cov: V, shape (p, p), symmetric, all eigenvalues > 0.

    Returns:
        Gain and covariances.

    Raises:
        ValueError: For other shapes or values, or if a mode of A whose modulus is >= 1 does not appear in the observations or
            is not excited by the noise.

    Example:
        >>> kalman([[1.0]], [[1.0]], [[1.0]], [[1.0]]).gain.round(4).tolist()
        [[0.618]]
    """
    A, C, noise_cov, observation_noise_cov = observed_problem(A, C, noise_cov, observation_noise_cov)
    check_modes(A.T, C.T, "A, C must be detectable", "does not appear in C; observe it")
    check_modes(A, noise_cov, "A, noise_cov must be stabilisable", "is not excited by noise_cov; add noise to it")
    try:
        predicted = symmetrised(solve_discrete_are(A.T, C.T, noise_cov, observation_noise_cov))
    except np.linalg.LinAlgError as error:
        raise ValueError(f"A, C, noise_cov must be a well-conditioned problem, got one without a solution ({error}).") from None
    gain, filtered = measurement_update(C, observation_noise_cov, predicted)
    return Kalman(gain, predicted, filtered)


class KalmanFilter:
    """Tracks the mean of the state of x' = A x + B u + w given the observations y = C x + v so far.

    Works on one system or on many independent ones at once; all share the matrices, each has its own time. The first state has
    mean 0 and covariance `initial_covariance`; the covariance of the estimate then follows the Riccati recursion, which does not
    depend on the data and is computed once.

    Args:
        A: Shape (d, d).
        B: Shape (d, m); m may be 0.
        C: Shape (p, d).
        noise_cov: W, shape (d, d), symmetric, no negative eigenvalue.
        observation_noise_cov: V, shape (p, p), symmetric, all eigenvalues > 0.
        initial_covariance: Of the first state, shape (d, d). None: the stationary predicted covariance, which makes the gain
            the same at all times.

    Raises:
        ValueError: For other shapes or values, or if there is no stationary filter and `initial_covariance` is None.

    Example:
        >>> kalman_filter = KalmanFilter([[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], initial_covariance=[[1.0]])
        >>> kalman_filter.reset()
        >>> kalman_filter.update([2.0]).tolist(), kalman_filter.update([4.0], [1.0]).tolist()
        ([1.0], [3.2])
    """

    def __init__(
        self,
        A: ArrayLike,
        B: ArrayLike,
        C: ArrayLike,
        noise_cov: ArrayLike,
        observation_noise_cov: ArrayLike,
        initial_covariance: ArrayLike | None = None,
    ) -> None:
        self._A, self._C, self._W, self._V = observed_problem(A, C, noise_cov, observation_noise_cov)
        self._B = input_matrix(B, len(self._A), least=0)
        if initial_covariance is None:
            self._predicted = kalman(self._A, self._C, self._W, self._V).predicted_covariance
        else:
            self._predicted = covariance("initial_covariance", initial_covariance, len(self._A))
        # Row t is the gain of the t-th observation; once the recursion has converged the last row stands for all later ones.
        self._gains = np.empty((0, *self._C.T.shape))
        self._converged = False
        self.reset()

    def reset(self, batch_shape: tuple[int, ...] = ()) -> None:
        """Begin anew with systems of this batch shape: observations are (*batch_shape, p), estimates (*batch_shape, d)."""
        self._times = np.zeros(batch_shape, np.int64)
        self._estimate = np.zeros((*batch_shape, len(self._A)))

    def restart(self, mask: ArrayLike) -> None:
        """Begin anew in the systems where `mask`, bool of shape batch_shape, is true."""
        mask = np.asarray(mask, np.bool_)
        if mask.shape != self._times.shape:
            raise ValueError(f"mask must have the batch shape {self._times.shape}, got {mask.shape}; reset() sets the batch shape.")
        self._times[mask] = 0

    def update(self, observation: ArrayLike, previous_action: ArrayLike | None = None) -> FloatArray:
        """Take an observation and return the mean of the state that it was made in.

        Args:
            observation: y, shape (*batch_shape, p).
            previous_action: u between the last observation and this one, shape (*batch_shape, m), ignored for a first one. None:
                all are first ones.

        Returns:
            Estimates, shape (*batch_shape, d), a new array.

        Raises:
            ValueError: For other shapes, or if the action is missing.
        """
        batch_shape = self._times.shape
        observation = matrix("observation", observation, (*batch_shape, len(self._C)))
        first = self._times == 0
        if previous_action is None:
            if not first.all():
                raise ValueError("previous_action must be given after the first observation, got None.")
            prediction = np.zeros_like(self._estimate)
        else:
            action = matrix("previous_action", previous_action, (*batch_shape, self._B.shape[1]))
            prediction = self._estimate @ self._A.T + action @ self._B.T  # (*batch_shape, d)
            prediction[first] = 0.0
        self._extend(int(self._times.max(initial=0)) + 1)
        gains = self._gains[np.minimum(self._times, len(self._gains) - 1)]  # (*batch_shape, d, p)
        innovation = observation - prediction @ self._C.T
        self._estimate = prediction + (gains @ innovation[..., None])[..., 0]
        self._times += 1
        return self._estimate.copy()

    def _extend(self, num_gains: int) -> None:
        gains: list[FloatArray] = []
        while len(self._gains) + len(gains) < num_gains and not self._converged:
            # A few more than asked for, so that a long episode does not copy the array at each step.
            for _ in range(64):
                gain, filtered = measurement_update(self._C, self._V, self._predicted)
                following = symmetrised(self._A @ filtered @ self._A.T + self._W)
                self._converged = is_close(self._predicted, following)
                self._predicted = following
                gains.append(gain)
                if self._converged:
                    break
        if gains:
            self._gains = np.concatenate([self._gains, gains])


def observed_problem(
    A: ArrayLike, C: ArrayLike, noise_cov: ArrayLike, observation_noise_cov: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the checked matrices of an estimation problem."""
    A = square("A", A)
    C = output_matrix(C, len(A))
    noise_cov = covariance("noise_cov", noise_cov, len(A))
    return A, C, noise_cov, covariance("observation_noise_cov", observation_noise_cov, len(C), positive=True)


def measurement_update(C: FloatArray, observation_noise_cov: FloatArray, predicted: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the Kalman gain and the covariance after an observation (Joseph's form, which stays positive semi-definite)."""
    solution = np.linalg.solve(symmetrised(C @ predicted @ C.T + observation_noise_cov), C @ predicted)
    gain = np.asarray(solution.T, np.float64)
    kept = np.eye(len(predicted)) - gain @ C
    return gain, symmetrised(kept @ predicted @ kept.T + gain @ observation_noise_cov @ gain.T)


def is_close(old: FloatArray, new: FloatArray) -> bool:
    """Return whether the covariance recursion no longer changes anything but rounding."""
    return bool(np.abs(new - old).max() <= 1e-14 * np.abs(new).max())
