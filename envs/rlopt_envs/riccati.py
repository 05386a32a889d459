"""Linear-quadratic control in closed form: optimal gains, their costs, and the stationary law of a linear system.

States move as x' = A x + B u + w with noise w of covariance W, the cost of a step is x'Qx + u'Ru (here ' transposes), costs are
summed with weights discount^t, and a controller is u = -K x. With S = R + discount B'PB the optimal value matrix P solves

    P = Q + discount A'PA - discount^2 A'PB S^-1 B'PA,    K = discount S^-1 B'PA.

All arrays are float64, d states, m inputs. The value of a state is x'Px plus a constant that the noise adds.

References: Anderson and Moore, Optimal Control: Linear Quadratic Methods, 1990; Bertsekas, Dynamic Programming and Optimal
Control, 4th edition, volume 1 (2017).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_discrete_are, solve_discrete_lyapunov

from rlopt_envs._linear_algebra import check_modes, symmetrised
from rlopt_envs._linear_algebra import spectral_radius as spectral_radius
from rlopt_envs._validation import covariance, input_matrix, matrix, square
from rlopt_envs.kalman import Kalman as Kalman
from rlopt_envs.kalman import KalmanFilter as KalmanFilter
from rlopt_envs.kalman import is_close, measurement_update, observed_problem
from rlopt_envs.kalman import kalman as kalman

FloatArray = NDArray[np.float64]


class Regulator(NamedTuple):
    """A linear controller u = -K x and its cost.

    Args:
        gain: K, shape (m, d).
        value_matrix: P, shape (d, d), symmetric: the cost from state x is x'Px plus a constant.
    """

    gain: FloatArray
    value_matrix: FloatArray


def stationary_covariance(A: ArrayLike, noise_cov: ArrayLike) -> FloatArray:
    """Return the covariance G = A G A' + W of the stationary law of x' = A x + w.

    Args:
        A: Shape (d, d), spectral radius < 1.
        noise_cov: W, shape (d, d), symmetric, no negative eigenvalue.

    Returns:
        G, shape (d, d).

    Raises:
        ValueError: For other shapes, or if there is no stationary law.

    Example:
        >>> stationary_covariance([[0.6]], [[1.0]]).round(4).tolist()  # 1 / (1 - 0.36)
        [[1.5625]]
    """
    A = square("A", A)
    noise_cov = covariance("noise_cov", noise_cov, len(A))
    radius = spectral_radius(A)
    if radius >= 1.0:
        raise ValueError(f"A must have a spectral radius < 1 for a stationary law, got {radius:.6g}; use a stable A.")
    return symmetrised(solve_discrete_lyapunov(A, noise_cov))


def infinite_horizon(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike, discount: float = 1.0) -> Regulator:
    """Return the controller of least cost over an infinite horizon.

    It does not depend on the noise. With discount 1 it minimises the cost per step.

    Args:
        A: Shape (d, d).
        B: Shape (d, m), m >= 1.
        Q: Cost of states, shape (d, d), symmetric, no negative eigenvalue.
        R: Cost of inputs, shape (m, m), symmetric, all eigenvalues > 0.
        discount: Weight of the next cost, in (0, 1].

    Returns:
        The gain K and the value matrix P.

    Raises:
        ValueError: For other shapes or values, or if a mode of A whose modulus is >= 1 / sqrt(discount) cannot be steered by B
            or does not appear in the cost.

    Example:
        >>> gain, value_matrix = infinite_horizon([[1.0]], [[1.0]], [[1.0]], [[1.0]])
        >>> gain.round(4).tolist(), value_matrix.round(4).tolist()  # the golden ratio
        ([[0.618]], [[1.618]])
    """
    A, B, Q, R = _problem(A, B, Q, R)
    A_scaled, B_scaled = np.sqrt(_discount_in(discount)) * A, np.sqrt(discount) * B
    check_modes(A_scaled, B_scaled, "A, B must be stabilisable", "cannot be steered by B; change B or lower the discount")
    check_modes(A_scaled.T, Q, "A, Q must be detectable", "costs nothing in Q; change Q or lower the discount")
    try:
        value_matrix = symmetrised(solve_discrete_are(A_scaled, B_scaled, Q, R))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"A, B, Q, R must be a well-conditioned problem, got one without a solution ({error}); rescale it."
        ) from None
    return Regulator(_greedy_gain(A, B, R, value_matrix, discount), value_matrix)


def finite_horizon(
    A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike, final_Q: ArrayLike, horizon: int, discount: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """Return the controllers of least cost over `horizon` steps, one per step, by the Riccati recursion backwards in time.

    The cost is sum_{t < horizon} discount^t (x_t'Q x_t + u_t'R u_t) + discount^horizon x_horizon' final_Q x_horizon.

    Args:
        A: Shape (d, d).
        B: Shape (d, m), m >= 1.
        Q: Cost of states, shape (d, d), symmetric, no negative eigenvalue.
        R: Cost of inputs, shape (m, m), symmetric, all eigenvalues > 0.
        final_Q: Cost of the state after the last step, as Q.
        horizon: Number of steps, >= 1.
        discount: In (0, 1].

    Returns:
        Gains, shape (horizon, m, d), and value matrices, shape (horizon + 1, d, d): at time t the input is -gains[t] x and
        the cost from then on, discounted to time t, is x' value_matrices[t] x plus a constant.

    Raises:
        ValueError: For other shapes or values.

    Example:
        >>> gains, value_matrices = finite_horizon([[1.0]], [[1.0]], [[1.0]], [[1.0]], [[0.0]], horizon=2)
        >>> gains.flatten().tolist(), value_matrices.flatten().tolist()
        ([0.5, 0.0], [1.5, 1.0, 0.0])
    """
    A, B, Q, R = _problem(A, B, Q, R)
    final_Q = covariance("final_Q", final_Q, len(A))
    discount = _discount_in(discount)
    if horizon < 1:
        raise ValueError(f"horizon must be >= 1, got {horizon}.")
    gains = np.empty((horizon, B.shape[1], len(A)))
    value_matrices = np.empty((horizon + 1, len(A), len(A)))
    value_matrices[horizon] = final_Q
    for t in reversed(range(horizon)):
        following = value_matrices[t + 1]
        gains[t] = _greedy_gain(A, B, R, following, discount)
        closed = A - B @ gains[t]
        value_matrices[t] = symmetrised(Q + gains[t].T @ R @ gains[t] + discount * closed.T @ following @ closed)
    return gains, value_matrices


def policy_value_matrix(
    A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike, gain: ArrayLike, discount: float = 1.0
) -> FloatArray:
    """Return the value matrix P_K = Q + K'RK + discount (A - BK)' P_K (A - BK) of the controller u = -K x.

    Args:
        A: Shape (d, d).
        B: Shape (d, m), m >= 1.
        Q: Cost of states, shape (d, d), symmetric, no negative eigenvalue.
        R: Cost of inputs, shape (m, m), symmetric, all eigenvalues > 0.
        gain: K, shape (m, d).
        discount: In (0, 1].

    Returns:
        P_K, shape (d, d).

    Raises:
        ValueError: For other shapes or values, or if the cost is infinite: spectral radius of A - BK >= 1 / sqrt(discount).

    Example:
        >>> policy_value_matrix([[1.0]], [[1.0]], [[1.0]], [[1.0]], gain=[[0.5]]).round(4).tolist()  # 1.25 / (1 - 0.25)
        [[1.6667]]
    """
    A, B, Q, R = _problem(A, B, Q, R)
    gain = matrix("gain", gain, (B.shape[1], len(A)))
    closed = np.sqrt(_discount_in(discount)) * (A - B @ gain)
    radius = spectral_radius(closed)
    if radius >= 1.0:
        raise ValueError(
            f"gain must keep the cost finite, sqrt(discount) (A - B gain) with a spectral radius < 1, got {radius:.6g}; "
            "use a stabilising gain or a lower discount."
        )
    return symmetrised(solve_discrete_lyapunov(closed.T, Q + gain.T @ R @ gain))


def discounted_cost(value_matrix: ArrayLike, noise_cov: ArrayLike, discount: float, initial_second_moment: ArrayLike) -> float:
    """Return E sum_t discount^t (x'Qx + u'Ru) = tr(P E[x0 x0']) + discount / (1 - discount) tr(P W).

    Args:
        value_matrix: P of the controller, shape (d, d).
        noise_cov: W, shape (d, d).
        discount: In (0, 1).
        initial_second_moment: E[x0 x0'], shape (d, d): the covariance of the first state plus the square of its mean.

    Raises:
        ValueError: For other shapes, or a discount outside (0, 1).

    Example:
        >>> discounted_cost([[2.0]], [[1.0]], discount=0.5, initial_second_moment=[[3.0]])
        8.0
    """
    value_matrix = square("value_matrix", value_matrix)
    noise_cov = covariance("noise_cov", noise_cov, len(value_matrix))
    second_moment = covariance("initial_second_moment", initial_second_moment, len(value_matrix))
    discount = _discount_below_1(discount)
    return float(np.vdot(value_matrix, second_moment) + discount / (1.0 - discount) * np.vdot(value_matrix, noise_cov))


def average_cost(value_matrix: ArrayLike, noise_cov: ArrayLike) -> float:
    """Return the cost per step in the long run, tr(P W), where P is the value matrix of the controller with discount 1.

    Args:
        value_matrix: P, shape (d, d).
        noise_cov: W, shape (d, d).

    Raises:
        ValueError: For other shapes.

    Example:
        >>> average_cost([[2.0]], [[0.25]])
        0.5
    """
    value_matrix = square("value_matrix", value_matrix)
    return float(np.vdot(value_matrix, covariance("noise_cov", noise_cov, len(value_matrix))))


def finite_horizon_cost(
    value_matrices: ArrayLike, noise_cov: ArrayLike, initial_second_moment: ArrayLike, discount: float = 1.0
) -> float:
    """Return the cost over a finite horizon, tr(P_0 E[x0 x0']) + sum_{t = 1}^{horizon} discount^t tr(P_t W).

    Args:
        value_matrices: P_0 ... P_horizon of `finite_horizon`, shape (horizon + 1, d, d).
        noise_cov: W, shape (d, d).
        initial_second_moment: E[x0 x0'], shape (d, d).
        discount: In (0, 1].

    Raises:
        ValueError: For other shapes or values.

    Example:
        >>> finite_horizon_cost([[[1.5]], [[1.0]], [[0.0]]], noise_cov=[[1.0]], initial_second_moment=[[2.0]])
        4.0
    """
    matrices = np.asarray(value_matrices, np.float64)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or len(matrices) < 2:
        raise ValueError(f"value_matrices must have shape (horizon + 1, d, d) with horizon >= 1, got {matrices.shape}.")
    noise_cov = covariance("noise_cov", noise_cov, matrices.shape[1])
    second_moment = covariance("initial_second_moment", initial_second_moment, matrices.shape[1])
    weights = _discount_in(discount) ** np.arange(1, len(matrices))
    return float(np.vdot(matrices[0], second_moment) + weights @ np.einsum("tij,ij->t", matrices[1:], noise_cov))


def regret_matrix(B: ArrayLike, R: ArrayLike, value_matrix: ArrayLike, discount: float = 1.0) -> FloatArray:
    """Return S = R + discount B'PB, the price of a departure from the optimal input.

    With P of the optimal controller, an input u in state x costs (u + Kx)' S (u + Kx) more than the optimal one if one is optimal
    afterwards. The expected discounted sum of this along any controller's own path is the controller's cost minus the optimal one.

    Args:
        B: Shape (d, m).
        R: Shape (m, m), symmetric, all eigenvalues > 0.
        value_matrix: P, shape (d, d).
        discount: In (0, 1].

    Returns:
        S, shape (m, m), symmetric, all eigenvalues > 0.

    Raises:
        ValueError: For other shapes or values.

    Example:
        >>> regret_matrix([[1.0]], [[1.0]], [[2.0]], discount=0.5).tolist()
        [[2.0]]
    """
    value_matrix = square("value_matrix", value_matrix)
    B = input_matrix(B, len(value_matrix))
    R = covariance("R", R, B.shape[1], positive=True)
    return symmetrised(R + _discount_in(discount) * B.T @ value_matrix @ B)


def lqg_average_cost(
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    Q: ArrayLike,
    R: ArrayLike,
    noise_cov: ArrayLike,
    observation_noise_cov: ArrayLike,
) -> float:
    """Return the least cost per step when only y = C x + v is observed: tr(P W) + tr(K'SK filtered_covariance).

    The controller is -K times the estimate of the Kalman filter, with K as if the state were observed (separation principle);
    the second term is the price of not knowing the state, S = R + B'PB.

    Args:
        A: Shape (d, d).
        B: Shape (d, m), m >= 1.
        C: Shape (p, d), p >= 1.
        Q: Cost of states, shape (d, d), symmetric, no negative eigenvalue.
        R: Cost of inputs, shape (m, m), symmetric, all eigenvalues > 0.
        noise_cov: W, shape (d, d), symmetric, no negative eigenvalue.
        observation_noise_cov: V, shape (p, p), symmetric, all eigenvalues > 0.

    Raises:
        ValueError: As in `infinite_horizon` and `kalman`.

    Example:
        >>> matrices = [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]]
        >>> round(lqg_average_cost(*matrices), 4)  # 1.618 for the noise, 0.618 for not knowing the state
        2.2361
    """
    gain, value_matrix = infinite_horizon(A, B, Q, R)
    price = gain.T @ regret_matrix(B, R, value_matrix) @ gain
    return average_cost(value_matrix, noise_cov) + float(
        np.vdot(price, kalman(A, C, noise_cov, observation_noise_cov).filtered_covariance)
    )


def lqg_discounted_cost(
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    Q: ArrayLike,
    R: ArrayLike,
    noise_cov: ArrayLike,
    observation_noise_cov: ArrayLike,
    discount: float,
    initial_covariance: ArrayLike,
) -> float:
    """Return the least discounted cost when only y = C x + v is observed, from a first state of mean 0.

    It is the cost with the state observed plus sum_t discount^t tr(K'SK F_t), where F_t is the covariance of the state given
    y_0 ... y_t and S = R + discount B'PB.

    Args:
        A: Shape (d, d).
        B: Shape (d, m), m >= 1.
        C: Shape (p, d), p >= 1.
        Q: Cost of states, shape (d, d), symmetric, no negative eigenvalue.
        R: Cost of inputs, shape (m, m), symmetric, all eigenvalues > 0.
        noise_cov: W, shape (d, d), symmetric, no negative eigenvalue.
        observation_noise_cov: V, shape (p, p), symmetric, all eigenvalues > 0.
        discount: In (0, 1).
        initial_covariance: Of the first state, shape (d, d), symmetric, no negative eigenvalue.

    Raises:
        ValueError: As in `infinite_horizon`, or if a mode of A whose modulus is >= 1 / sqrt(discount) does not appear in the
            observations.

    Example:
        >>> matrices = [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]]
        >>> round(lqg_discounted_cost(*matrices, discount=0.9, initial_covariance=[[1.0]]), 4)
        20.9677
    """
    gain, value_matrix = infinite_horizon(A, B, Q, R, _discount_below_1(discount))
    price = gain.T @ regret_matrix(B, R, value_matrix, discount) @ gain
    A, C, noise_cov, observation_noise_cov = observed_problem(A, C, noise_cov, observation_noise_cov)
    check_modes(np.sqrt(discount) * A.T, C.T, "A, C must be detectable", "does not appear in C; observe it or lower the discount")
    predicted = covariance("initial_covariance", initial_covariance, len(A))
    cost = discounted_cost(value_matrix, noise_cov, discount, predicted)
    weight = 1.0
    while True:
        _, filtered = measurement_update(C, observation_noise_cov, predicted)
        following = symmetrised(A @ filtered @ A.T + noise_cov)
        if is_close(predicted, following):
            return cost + weight / (1.0 - discount) * float(np.vdot(price, filtered))
        step = weight * float(np.vdot(price, filtered))
        cost += step
        if step < 1e-16 * cost and weight < 1e-16:
            return cost
        predicted, weight = following, weight * discount


def _greedy_gain(A: FloatArray, B: FloatArray, R: FloatArray, following: FloatArray, discount: float) -> FloatArray:
    """Return the gain of the best input if what follows costs x' `following` x."""
    weighted = discount * B.T @ following  # (m, d)
    return np.asarray(np.linalg.solve(symmetrised(R + weighted @ B), weighted @ A), np.float64)


def _problem(A: ArrayLike, B: ArrayLike, Q: ArrayLike, R: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return the checked matrices of a control problem."""
    A = square("A", A)
    B = input_matrix(B, len(A))
    return A, B, covariance("Q", Q, len(A)), covariance("R", R, B.shape[1], positive=True)


def _discount_in(discount: float) -> float:
    """Return a discount in (0, 1]."""
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must be in (0, 1], got {discount}.")
    return float(discount)


def _discount_below_1(discount: float) -> float:
    """Return a discount in (0, 1)."""
    if not 0.0 < discount < 1.0:
        raise ValueError(f"discount must be in (0, 1), got {discount}; use the average cost for 1.")
    return float(discount)
