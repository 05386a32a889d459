"""Discrete-time dynamical systems x' = φ(A x) + B u + w with Gaussian noise w."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike

from rlopt_envs import riccati
from rlopt_envs._validation import FloatArray, count, covariance, input_matrix, matrix, square

LinkFunction = Callable[[FloatArray], FloatArray]
"""Maps an array to an array of the same shape, entry by entry."""

_LINKS = ("identity", "leaky_relu", "tanh")  # their places are the codes that `_run` knows


@dataclass(frozen=True, init=False, eq=False)
class NonlinearSystem:
    """A generalised linear system x' = φ(A x) + B u + w, w ~ N(0, noise_cov), with a link φ for each coordinate.

    Args:
        A: Transition matrix, shape (d, d).
        B: Input matrix, shape (d, m). None: no inputs, shape (d, 0).
        noise_cov: Covariance of w, shape (d, d), symmetric, no negative eigenvalue. None: the identity.
        link: φ: "identity", "leaky_relu" (x for x >= 0, else slope * x), "tanh", or a function of float64 arrays.
        slope: Of "leaky_relu", in [0, 1]; the others do not use it.

    Arrays are stored as read-only float64.

    Raises:
        ValueError: For matrices of other shapes or kinds, an unknown link, or a slope outside [0, 1].

    References: Kowshik et al., Near-optimal offline and streaming algorithms for learning non-linear dynamical systems,
    NeurIPS 2021, arXiv 2105.11558.

    Example:
        >>> system = NonlinearSystem([[1.0, 0.0], [0.0, 1.0]], noise_cov=np.zeros((2, 2)), link="leaky_relu", slope=0.5)
        >>> system.simulate(2, np.random.default_rng(0), initial_state=[1.0, -4.0]).tolist()
        [[1.0, -4.0], [1.0, -2.0], [1.0, -1.0]]
    """

    A: FloatArray
    B: FloatArray
    noise_cov: FloatArray
    link: str | LinkFunction
    slope: float
    noise_factor: FloatArray = field(repr=False)
    """The symmetric square root L of `noise_cov`, (d, d): the noise is L z with z standard normal."""

    def __init__(
        self,
        A: ArrayLike,
        B: ArrayLike | None = None,
        noise_cov: ArrayLike | None = None,
        link: str | LinkFunction = "leaky_relu",
        slope: float = 0.5,
    ) -> None:
        A = square("A", A)
        d = len(A)
        if not callable(link) and link not in _LINKS:
            raise ValueError(f"link must be one of {', '.join(map(repr, _LINKS))} or a function, got {link!r}.")
        if not 0.0 <= slope <= 1.0:
            raise ValueError(f"slope must be in [0, 1], got {slope}.")
        noise_cov = np.eye(d) if noise_cov is None else covariance("noise_cov", noise_cov, d)
        values = {
            "A": A,
            "B": np.zeros((d, 0)) if B is None else input_matrix(B, d, least=0),
            "noise_cov": noise_cov,
            "noise_factor": symmetric_root(noise_cov),
            "link": link,
            "slope": float(slope),
        }
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    @property
    def num_states(self) -> int:
        """Number of states d."""
        return len(self.A)

    @property
    def num_inputs(self) -> int:
        """Number of inputs m, possibly 0."""
        return int(self.B.shape[1])

    @property
    def spectral_radius(self) -> float:
        """Largest modulus of the eigenvalues of A."""
        return riccati.spectral_radius(self.A)

    @property
    def link_function(self) -> LinkFunction:
        """The link φ as a function of arrays."""
        if callable(self.link):
            return self.link
        if self.link == "identity":
            return _identity
        if self.link == "tanh":
            return np.tanh
        slope = self.slope
        return lambda values: np.where(values >= 0.0, values, slope * values)

    def next_states(self, states: FloatArray, inputs: FloatArray, noise: FloatArray) -> FloatArray:
        """Return φ(A x) + B u + w for many states at once.

        Args:
            states: (N, d).
            inputs: (N, m).
            noise: The noise w itself, (N, d).

        Returns:
            (N, d) float64.
        """
        result = states @ self.A.T
        if self.link != "identity":
            result = self.link_function(result)
        return result + inputs @ self.B.T + noise

    def simulate(
        self,
        num_steps: int,
        rng: np.random.Generator,
        initial_state: ArrayLike | None = None,
        inputs: ArrayLike | None = None,
    ) -> FloatArray:
        """Return a trajectory.

        Noise is L z_t, where row t of z is the t-th draw of d numbers from `rng.standard_normal` and L = `noise_factor`; a longer
        trajectory with the same seed continues a shorter one.

        Args:
            num_steps: Steps T >= 1.
            rng: Source of the noise.
            initial_state: x_0, shape (d,). None: zero.
            inputs: u_0 ... u_{T-1}, shape (T, m). None: zero.

        Returns:
            States x_0 ... x_T, shape (num_steps + 1, d), float64.

        Raises:
            ValueError: For arguments of other shapes.
        """
        num_steps = count("num_steps", num_steps)
        d, m = self.num_states, self.num_inputs
        states = np.empty((num_steps + 1, d))
        states[0] = 0.0 if initial_state is None else matrix("initial_state", initial_state, (d,))
        if inputs is None:
            controls = np.zeros((0, m))
        else:
            controls = matrix("inputs", inputs, (num_steps, m), "a row for each step, a column for each column of B")
        rng.standard_normal(out=states[1:])  # `states` holds the draws until they are replaced, so they take no memory
        if callable(self.link):
            self._run_callable(states, controls)
        else:
            _run(self.A, self.B, self.noise_factor, _LINKS.index(self.link), self.slope, controls, states)
        return states

    def _run_callable(self, states: FloatArray, controls: FloatArray) -> None:
        link, factor = self.link_function, self.noise_factor
        for t in range(len(states) - 1):
            state = link(self.A @ states[t]) + factor @ states[t + 1]
            states[t + 1] = state + self.B @ controls[t] if len(controls) else state


class LinearSystem(NonlinearSystem):
    """A linear system x' = A x + B u + w, w ~ N(0, noise_cov).

    Args:
        A: Transition matrix, shape (d, d).
        B: Input matrix, shape (d, m). None: no inputs, shape (d, 0).
        noise_cov: Covariance of w, shape (d, d), symmetric, no negative eigenvalue. None: the identity.

    Arrays are stored as read-only float64.

    Raises:
        ValueError: For matrices of other shapes or kinds.

    Example:
        >>> system = LinearSystem([[0.5]], B=[[1.0]], noise_cov=[[0.0]])
        >>> system.simulate(3, np.random.default_rng(0), initial_state=[8.0], inputs=[[0.0], [0.0], [1.0]])[:, 0].tolist()
        [8.0, 4.0, 2.0, 2.0]
    """

    def __init__(self, A: ArrayLike, B: ArrayLike | None = None, noise_cov: ArrayLike | None = None) -> None:
        super().__init__(A, B, noise_cov, link="identity", slope=1.0)

    def __repr__(self) -> str:
        return f"LinearSystem(A={self.A!r}, B={self.B!r}, noise_cov={self.noise_cov!r})"

    def stationary_covariance(self) -> FloatArray:
        """Return the covariance G = A G A' + noise_cov of the stationary law without inputs, shape (d, d).

        Raises:
            ValueError: If the spectral radius of A is >= 1.

        Example:
            >>> LinearSystem([[0.6]]).stationary_covariance().round(4).tolist()
            [[1.5625]]
        """
        return riccati.stationary_covariance(self.A, self.noise_cov)


def random_bimodal(num_states: int, spectral_radius: float, rng: np.random.Generator) -> FloatArray:
    """Return a random symmetric transition matrix U diag(L) U' with a slow and a fast group of modes.

    U is uniform among the orthogonal matrices (Haar); the first ceil(d / 2) of the eigenvalues L are `spectral_radius`, the others
    a third of it.

    Args:
        num_states: d >= 1.
        spectral_radius: In (0, 1) for a stable system; larger values are allowed.
        rng: Source of U.

    Returns:
        (d, d) float64.

    Raises:
        ValueError: For d < 1, or a spectral radius that is not positive and finite.

    References: Kowshik et al., Streaming linear system identification with reverse experience replay, NeurIPS 2021, arXiv
    2103.05896; Mezzadri, How to generate random matrices from the classical compact groups, Notices of the AMS 54 (2007).

    Example:
        >>> A = random_bimodal(3, 0.9, np.random.default_rng(0))
        >>> np.linalg.eigvalsh(A).round(12).tolist()
        [0.3, 0.9, 0.9]
    """
    num_states = count("num_states", num_states)
    if not (spectral_radius > 0.0 and math.isfinite(spectral_radius)):
        raise ValueError(f"spectral_radius must be a finite number > 0, got {spectral_radius}.")
    # Up to the signs of its columns, which have no effect on U diag(L) U', this factor is uniform.
    orthogonal, _ = np.linalg.qr(rng.standard_normal((num_states, num_states)))
    eigenvalues = np.full(num_states, spectral_radius)
    eigenvalues[(num_states + 1) // 2 :] /= 3.0
    A = (orthogonal * eigenvalues) @ orthogonal.T
    return np.asarray(0.5 * (A + A.T), np.float64)


def symmetric_root(cov: FloatArray) -> FloatArray:
    """Return the symmetric L with L L = `cov` for a covariance, which may be singular, shape (d, d)."""
    eigenvalues, vectors = np.linalg.eigh(cov)
    return np.asarray((vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T, np.float64)


def _identity(values: FloatArray) -> FloatArray:
    return values


@numba.njit(cache=True)
def _run(A: Any, B: Any, factor: Any, link: int, slope: float, controls: Any, states: Any) -> None:  # pragma: no cover
    """Replace the draws in rows 1 ... T of `states` by the states, one step after another."""
    d, m = B.shape
    draws = np.empty(d)
    for t in range(len(states) - 1):
        draws[:] = states[t + 1]
        for i in range(d):
            value = 0.0
            for j in range(d):
                value += A[i, j] * states[t, j]
            if link == 1 and value < 0.0:
                value *= slope
            elif link == 2:
                value = math.tanh(value)
            for j in range(d):
                value += factor[i, j] * draws[j]
            if len(controls) > 0:
                for j in range(m):
                    value += B[i, j] * controls[t, j]
            states[t + 1, i] = value
