"""The best controller without memory of a system that is observed in part: u = F y."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_discrete_lyapunov
from scipy.optimize import minimize

from rlopt_envs._linear_algebra import spectral_radius
from rlopt_envs._validation import covariance, input_matrix, output_matrix, square

FloatArray = NDArray[np.float64]


class OutputFeedback(NamedTuple):
    """A linear controller u = F y without memory.

    Args:
        gain: F, shape (m, p).
        cost: Expected discounted sum of costs.
    """

    gain: FloatArray
    cost: float


def memoryless_cost(
    gain: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    noise_cov: ArrayLike,
    observation_noise_cov: ArrayLike,
    Q: ArrayLike,
    R: ArrayLike,
    discount: float,
    initial_covariance: ArrayLike,
) -> float:
    """Return the expected discounted cost of u = F y; infinite if it has none.

    With M = A + B F C, the value matrix of the controller is P = Q + C'F'RFC + discount M'PM, and with first states of covariance
    S0, noise W of the state and V of the measurement

        cost = tr(P S0) + [tr(R F V F') + discount tr(P (W + B F V F' B'))] / (1 - discount).

    Args:
        gain: F, shape (m, p).
        A: Shape (d, d).
        B: Shape (d, m).
        C: Shape (p, d).
        noise_cov: W, shape (d, d).
        observation_noise_cov: V, shape (p, p).
        Q: Shape (d, d).
        R: Shape (m, m).
        discount: In (0, 1).
        initial_covariance: S0, shape (d, d).

    Example:
        >>> memoryless_cost([[0.0]], [[0.5]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], [[1.0]], 0.5, [[0.0]]).__round__(4)
        1.1429
    """
    F, A, B, C, W, V, Q, R, S0 = (
        np.asarray(part, np.float64) for part in (gain, A, B, C, noise_cov, observation_noise_cov, Q, R, initial_covariance)
    )
    closed = A + B @ F @ C
    if discount**0.5 * spectral_radius(closed) >= 1.0:
        return np.inf
    state_cost = Q + C.T @ F.T @ R @ F @ C
    P = solve_discrete_lyapunov(discount**0.5 * closed.T, state_cost)
    spread = F @ V @ F.T
    per_step = np.trace(R @ spread) + discount * np.trace(P @ (W + B @ spread @ B.T))
    return float(np.trace(P @ S0) + per_step / (1.0 - discount))


def best_memoryless_gain(
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    noise_cov: ArrayLike,
    observation_noise_cov: ArrayLike,
    Q: ArrayLike,
    R: ArrayLike,
    discount: float,
    initial_covariance: ArrayLike,
    *,
    num_starts: int = 20,
    seed: int = 0,
) -> OutputFeedback:
    """Search the gain F with the smallest `memoryless_cost`: what a linear policy without memory can reach at best.

    The cost is not convex in F, so the search starts from 0 and from random gains of all sizes; the best end is returned. That it
    is the global optimum is not proven.

    Args:
        A: Shape (d, d).
        B: Shape (d, m).
        C: Shape (p, d).
        noise_cov: Shape (d, d), symmetric, no negative eigenvalue.
        observation_noise_cov: Shape (p, p), likewise.
        Q: Shape (d, d), likewise.
        R: Shape (m, m), likewise.
        discount: In (0, 1).
        initial_covariance: Shape (d, d), likewise.
        num_starts: Random first gains, > 0.
        seed: Of the first gains.

    Raises:
        ValueError: For other shapes or values, and if no gain with a finite cost is found.

    References: Levine and Athans, On the determination of the optimal constant output feedback gains for linear multivariable
    systems, IEEE Transactions on Automatic Control, 1970.

    Example:
        >>> import gymnasium
        >>> env = gymnasium.make("rlopt_envs:rlopt/LQG-v0").unwrapped
        >>> found = best_memoryless_gain(
        ...     env.system.A, env.system.B, env.C, env.system.noise_cov, env.observation_noise_cov, env.Q, env.R, env.discount,
        ...     env.initial_covariance,
        ... )
        >>> found.cost > env.optimal_cost
        True
    """
    A = square("A", A)
    B, C = input_matrix(B, len(A)), output_matrix(C, len(A))
    W, S0, Q = (
        covariance(name, part, len(A))
        for name, part in (("noise_cov", noise_cov), ("initial_covariance", initial_covariance), ("Q", Q))
    )
    V, R = covariance("observation_noise_cov", observation_noise_cov, len(C)), covariance("R", R, B.shape[1])
    if not 0.0 < discount < 1.0:
        raise ValueError(f"discount must be in (0, 1), got {discount}.")
    if num_starts < 1:
        raise ValueError(f"num_starts must be > 0, got {num_starts}.")
    shape = (B.shape[1], len(C))

    def cost(flat: FloatArray) -> float:
        return memoryless_cost(flat.reshape(shape), A, B, C, W, V, Q, R, discount, S0)

    rng = np.random.default_rng(seed)
    sizes = np.logspace(-2, 2, num_starts)
    starts = [np.zeros(shape).ravel(), *(size * rng.standard_normal(shape).ravel() for size in sizes)]
    ends = [
        minimize(cost, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000})
        for start in starts
        if np.isfinite(cost(start))
    ]
    if not ends:
        raise ValueError(f"no gain without memory has a finite cost among the {num_starts + 1} that were tried; raise num_starts.")
    best = min(ends, key=lambda end: float(end.fun))
    return OutputFeedback(np.asarray(best.x, np.float64).reshape(shape), float(best.fun))
