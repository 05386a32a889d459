"""What LQR and LQG have in common: the problem, its optimal controller, and its optimal cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt_envs import riccati
from rlopt_envs._validation import FloatArray, choice, count, covariance, input_matrix, matrix, quadratic, square
from rlopt_envs.presets import PRESETS, SystemPreset
from rlopt_envs.rendering import SystemPicture
from rlopt_envs.systems import LinearSystem

Steps = NDArray[np.integer[Any]]

DEFAULT_SYSTEM = "double_integrator"
DEFAULT_DISCOUNT = 0.99

_LIMIT_IN_DEVIATIONS = 6.0  # a Gaussian leaves this range with probability 2e-9
_MOST_STEPS = 1000  # over which the optimal action is followed when its limit is sought
_SPREAD = 4.0  # of first states, in standard deviations of the noise that the controller leaves


@dataclass(frozen=True)
class Model:
    """The matrices of a problem, and the preset that they come from.

    Args:
        system: x' = A x + B u + w.
        Q: Cost of states, (d, d).
        R: Cost of inputs, (m, m).
        preset: None for matrices of the user.
    """

    system: LinearSystem
    Q: FloatArray
    R: FloatArray
    preset: SystemPreset | None


def make_model(
    system: str | None,
    A: ArrayLike | None,
    B: ArrayLike | None,
    noise_cov: ArrayLike | None,
    Q: ArrayLike | None,
    R: ArrayLike | None,
) -> Model:
    """Return the matrices of a preset, or of the user; noise and cost of a preset may be replaced.

    Raises:
        ValueError: For an unknown preset, a preset beside matrices, or matrices of wrong shapes.
    """
    preset = None
    if A is None:
        name = choice("system", DEFAULT_SYSTEM if system is None else system, sorted(PRESETS))
        preset = PRESETS[name]
        if B is not None:
            raise ValueError("B must come with A, got B alone; give both, or none and the name of a system.")
        A, B = preset.A, preset.B
        noise_cov = preset.noise_cov if noise_cov is None else noise_cov
        Q, R = preset.Q if Q is None else Q, preset.R if R is None else R
    elif system is not None:
        raise ValueError(f"system must be None where A is given, got {system!r}; leave out one of them.")
    elif B is None:
        raise ValueError("B must be given with A, got None; it has shape (d, m) with m >= 1.")
    d = len(square("A", A))
    linear = LinearSystem(A, input_matrix(B, d), noise_cov)
    m = linear.num_inputs
    return Model(
        linear,
        np.eye(d) if Q is None else covariance("Q", Q, d),
        np.eye(m) if R is None else covariance("R", R, m, positive=True),
        preset,
    )


class Regulator:
    """A linear-quadratic problem with its optimal controller u = -K_t x.

    Attributes:
        gains: K_t, (horizon, m, d), or (1, m, d) where the horizon is infinite.
        prices: S_t with which a departure from the optimal action is paid, (u + K_t x)' S_t (u + K_t x), as `gains`.
        value_matrices: P_t, (horizon + 1, d, d), or (1, d, d).

    Args:
        model: The matrices.
        cost: "discounted" or "average".
        discount: In (0, 1), with a horizon in (0, 1]. None: 0.99 for discounted costs; average costs have none.
        horizon: Steps of an episode. None: infinite.
        final_Q: Cost of the state after the last step, (d, d). None: Q.
        initial_covariance: Of the first state, (d, d). None: 16 times the covariance of the state in the long run under the
            controller that is optimal for the average cost; the identity where there is no noise.

    Raises:
        ValueError: For an argument outside these sets, or without effect.
    """

    def __init__(
        self,
        model: Model,
        cost: str,
        discount: float | None,
        horizon: int | None,
        final_Q: ArrayLike | None,
        initial_covariance: ArrayLike | None,
    ) -> None:
        self.model, self.system = model, model.system
        self.cost = choice("cost", cost, ("discounted", "average"))
        self.horizon = None if horizon is None else count("horizon", horizon)
        if self.cost == "average":
            if discount is not None:
                raise ValueError(f"discount must be None with cost='average', which does not discount, got {discount}.")
            if horizon is not None:
                raise ValueError(f"horizon must be None with cost='average', got {horizon}; use cost='discounted', discount=1.0.")
        discount = DEFAULT_DISCOUNT if discount is None else discount
        most = "1)" if horizon is None else "1]"
        if not (0.0 < discount < 1.0 or (horizon is not None and discount == 1.0)):
            raise ValueError(f"discount must be in (0, {most}, got {discount}.")
        self.discount = 1.0 if self.cost == "average" else float(discount)
        A, B, Q, R = self.system.A, self.system.B, model.Q, model.R
        d = self.system.num_states
        if self.horizon is None:
            if final_Q is not None:
                raise ValueError("final_Q must be None without a horizon, got a matrix; set horizon.")
            gain, value_matrix = riccati.infinite_horizon(A, B, Q, R, self.discount)
            self.gains, self.value_matrices = gain[None], value_matrix[None]
            following = self.value_matrices
        else:
            final_Q = Q if final_Q is None else covariance("final_Q", final_Q, d)
            self.gains, self.value_matrices = riccati.finite_horizon(A, B, Q, R, final_Q, self.horizon, self.discount)
            following = self.value_matrices[1:]
        self.prices = np.array([riccati.regret_matrix(B, R, value_matrix, self.discount) for value_matrix in following])
        if initial_covariance is None:
            self.initial_covariance = self._default_initial_covariance()
        else:
            self.initial_covariance = covariance("initial_covariance", initial_covariance, d)

    def _default_initial_covariance(self) -> FloatArray:
        system = self.system
        if not system.noise_cov.any():
            return np.eye(system.num_states)
        try:
            gain = riccati.infinite_horizon(system.A, system.B, self.model.Q, self.model.R).gain
        except ValueError as error:
            raise ValueError(f"initial_covariance must be given where no controller has a finite average cost ({error}).") from None
        return _SPREAD**2 * riccati.stationary_covariance(system.A - system.B @ gain, system.noise_cov)

    def optimal_cost(self) -> float:
        """Return the expected cost of the optimal controller when the state is observed."""
        noise_cov, first = self.system.noise_cov, self.initial_covariance
        if self.horizon is not None:
            return riccati.finite_horizon_cost(self.value_matrices, noise_cov, first, self.discount)
        if self.cost == "average":
            return riccati.average_cost(self.value_matrices[0], noise_cov)
        return riccati.discounted_cost(self.value_matrices[0], noise_cov, self.discount, first)

    def default_action_limit(self, first: FloatArray, added: FloatArray) -> FloatArray:
        """Return six times the largest standard deviation of each optimal action, over the episode or at most 1000 steps, (m,).

        Args:
            first: Covariance of the first (estimated) state, (d, d).
            added: Covariance of what is added to it in steps 1, 2, ...; the last one stands for all later ones, (T, d, d).
        """
        A, B = self.system.A, self.system.B
        moment, largest = first, np.zeros(self.system.num_inputs)
        for t in range(_MOST_STEPS if self.horizon is None else min(self.horizon, _MOST_STEPS)):
            gain = self.gains[min(t, len(self.gains) - 1)]
            largest = np.maximum(largest, np.einsum("ij,jk,ik->i", gain, moment, gain))
            closed = A - B @ gain
            moment = closed @ moment @ closed.T + added[min(t, len(added) - 1)]
        limits = _LIMIT_IN_DEVIATIONS * np.sqrt(largest)
        return np.where(limits > 0.0, limits, 1.0)  # an action that is always 0 is never cut

    def rows_of(self, table: FloatArray, steps: Steps) -> FloatArray:
        """Return the entries of a table over time, such as `gains`, that belong to steps; later ones have the last entry."""
        rows: FloatArray = table[np.minimum(steps, len(table) - 1)]
        return rows

    def optimal_actions(self, states: FloatArray, steps: Steps) -> FloatArray:
        """Return -K_t x.

        Args:
            states: (..., d).
            steps: t, (...), not used where the horizon is infinite.

        Returns:
            (..., m).
        """
        if self.horizon is None:
            return np.asarray(-(states @ self.gains[0].T), np.float64)
        product = self.rows_of(self.gains, steps) @ states[..., None]  # (..., m, d) @ (..., d, 1)
        return np.asarray(-product[..., 0], np.float64)

    def costs_of(self, states: FloatArray, actions: FloatArray) -> FloatArray:
        """Return x'Qx + u'Ru, (N,)."""
        return quadratic(states, self.model.Q) + quadratic(actions, self.model.R)

    def regrets_of(self, departures: FloatArray, steps: Steps) -> FloatArray:
        """Return e'S_t e of departures e from the optimal action, (N,)."""
        if self.horizon is None:
            return quadratic(departures, self.prices[0])
        weighted = (departures[:, None] @ self.rows_of(self.prices, steps))[:, 0]  # (N, 1, m) @ (N, m, m)
        return np.asarray(np.vecdot(weighted, departures), np.float64)

    def picture(self, name: str) -> SystemPicture:
        """Return how the system is drawn: arrows show where the optimal controller takes a system of two states."""
        preset = self.model.preset
        closed = self.system.A - self.system.B @ self.gains[0]
        return SystemPicture(
            f"{name}: {preset.name.replace('_', ' ')}" if preset else name,
            preset.state_names if preset else None,
            preset.state_units if preset else None,
            preset.time_step if preset else None,
            lambda states: states @ closed.T,
        )


class KnownOptimum:
    """Attributes of environments whose optimal controller is known."""

    _regulator: Regulator

    @property
    def system(self) -> LinearSystem:
        """The system, with `A`, `B` and `noise_cov`."""
        return self._regulator.system

    @property
    def Q(self) -> FloatArray:
        """Cost of states, (d, d)."""
        return self._regulator.model.Q

    @property
    def R(self) -> FloatArray:
        """Cost of inputs, (m, m)."""
        return self._regulator.model.R

    @property
    def discount(self) -> float:
        """Weight of the next cost; 1 for the average cost."""
        return self._regulator.discount

    @property
    def horizon(self) -> int | None:
        """Steps of an episode, None where the horizon is infinite."""
        return self._regulator.horizon

    @property
    def initial_covariance(self) -> FloatArray:
        """Covariance of the first state, whose mean is 0, (d, d)."""
        return self._regulator.initial_covariance

    @property
    def optimal_gain(self) -> FloatArray:
        """K of the optimal action -K x, (m, d); with a horizon one for each step, (horizon, m, d)."""
        gains = self._regulator.gains
        return gains[0] if self.horizon is None else gains

    @property
    def value_matrix(self) -> FloatArray:
        """P of the optimal cost x'Px + constant of a known state, (d, d); with a horizon (horizon + 1, d, d)."""
        matrices = self._regulator.value_matrices
        return matrices[0] if self.horizon is None else matrices


def check_time_limit(horizon: int | None, max_episode_steps: int | None) -> None:
    """Refuse a time limit that would cut the episodes of a task with a horizon.

    Raises:
        ValueError: If it is shorter than the horizon.
    """
    if horizon is not None and max_episode_steps is not None and max_episode_steps < horizon:
        raise ValueError(f"max_episode_steps must be at least the horizon {horizon}, got {max_episode_steps}; raise it.")


def check_states(name: str, value: ArrayLike, size: int) -> FloatArray:
    """Return an array (..., size) of numbers.

    Raises:
        ValueError: For another last dimension, or numbers that are not finite.
    """
    array = np.asarray(value, np.float64)
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(f"{name} must have shape (..., {size}), got {array.shape}.")
    return matrix(name, array, array.shape)
