"""The dynamics of linear-quadratic-Gaussian control, with the Kalman filter of its optimal controller."""

from __future__ import annotations

import numpy as np

from rlopt_envs import riccati
from rlopt_envs._batch import Infos, Observations
from rlopt_envs._regulator import Regulator
from rlopt_envs._validation import BoolArray, FloatArray
from rlopt_envs.kalman import is_close, measurement_update
from rlopt_envs.lqr import RegulatorBatch
from rlopt_envs.systems import symmetric_root

_MOST_GAINS = 5000  # a filter that has not converged by then is kept as it is


class Estimator:
    """Gains of the Kalman filter over time, for a first state N(0, initial_covariance).

    Attributes:
        gains: L_t, (T, d, p); the last one stands for all later ones.
        covariances: Of the state given y_0 ... y_t, (T, d, d), likewise.
        added: Covariance of what observation t adds to the estimate, (T, d, d), likewise.

    Args:
        regulator: The problem.
        C: (p, d).
        observation_noise_cov: (p, p).
    """

    def __init__(self, regulator: Regulator, C: FloatArray, observation_noise_cov: FloatArray) -> None:
        A, noise_cov = regulator.system.A, regulator.system.noise_cov
        self.C, self.observation_noise_cov = C, observation_noise_cov
        gains, covariances, added = [], [], []
        predicted = regulator.initial_covariance
        for _ in range(_MOST_GAINS if regulator.horizon is None else regulator.horizon + 1):
            gain, filtered = measurement_update(C, observation_noise_cov, predicted)
            gains.append(gain)
            covariances.append(filtered)
            added.append(predicted - filtered)
            following = A @ filtered @ A.T + noise_cov
            if is_close(predicted, following):
                break
            predicted = following
        self.gains, self.covariances, self.added = np.array(gains), np.array(covariances), np.array(added)

    def optimal_cost(self, regulator: Regulator) -> float:
        """Return the expected cost of the optimal controller that sees the observations only."""
        if regulator.horizon is not None:
            steps = np.arange(regulator.horizon)
            filtered = regulator.rows_of(self.covariances, steps)  # (horizon, d, d)
            prices = np.einsum("tji,tjk,tkl->til", regulator.gains, regulator.prices, regulator.gains)  # K'SK
            return regulator.optimal_cost() + float(regulator.discount**steps @ np.einsum("tij,tij->t", prices, filtered))
        system, model = regulator.system, regulator.model
        matrices = (system.A, system.B, self.C, model.Q, model.R, system.noise_cov, self.observation_noise_cov)
        if regulator.cost == "average":
            return riccati.lqg_average_cost(*matrices)
        return riccati.lqg_discounted_cost(*matrices, regulator.discount, regulator.initial_covariance)


class LQGBatch(RegulatorBatch):
    """Copies of a linear-quadratic problem whose controller sees y = C x + v, each with its Kalman filter.

    Args:
        num_envs: Copies N.
        regulator: The problem.
        estimator: The filter.
        action_limit: (m,).
    """

    def __init__(self, num_envs: int, regulator: Regulator, estimator: Estimator, action_limit: FloatArray) -> None:
        num_outputs = len(estimator.C)
        super().__init__(num_envs, regulator, num_outputs, action_limit)
        self.estimator = estimator
        self.num_states = regulator.system.num_states
        self.num_draws = self.num_first_draws = self.num_states + num_outputs
        self._output_noise_factor = symmetric_root(estimator.observation_noise_cov)
        self.outputs = np.zeros((num_envs, num_outputs))
        self.estimates = np.zeros((num_envs, self.num_states))

    def known(self) -> FloatArray:
        """Return the estimates, (N, d)."""
        return self.estimates

    def begin(self, rows: BoolArray, draws: FloatArray, states: FloatArray | None) -> None:
        """Put copies into first states, see `Batch`."""
        d, estimator = self.num_states, self.estimator
        super().begin(rows, draws[:, :d], states)
        outputs = self.states[rows] @ estimator.C.T + draws[:, d:] @ self._output_noise_factor
        self.outputs[rows] = outputs
        self.estimates[rows] = outputs @ estimator.gains[0].T

    def advance(self, actions: FloatArray, draws: FloatArray) -> tuple[FloatArray, BoolArray, Infos]:
        """Step all copies, see `Batch`."""
        d, estimator, system = self.num_states, self.estimator, self.regulator.system
        rewards, terminated, infos = super().advance(actions, draws[:, :d])
        self.outputs = self.states @ estimator.C.T + draws[:, d:] @ self._output_noise_factor
        prediction = self.estimates @ system.A.T + actions @ system.B.T
        innovation = self.outputs - prediction @ estimator.C.T
        gains = self.regulator.rows_of(estimator.gains, self.steps)  # (N, d, p)
        self.estimates = prediction + (gains @ innovation[:, :, None])[:, :, 0]
        return rewards, terminated, infos

    def observe(self) -> Observations:
        """Return the observations, (N, p), with a horizon (N, p + 1)."""
        return self.with_time(self.outputs)

    def describe(self) -> Infos:
        """Return the estimates of the present states."""
        return {"kalman_estimate": self.estimates.copy()}
