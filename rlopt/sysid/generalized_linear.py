"""Offline estimators for known link functions: quasi-Newton and GLMtron."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.sysid._kernels import surrogate_gradient
from rlopt.sysid.estimator import Estimator, prefix
from rlopt.sysid.links import LinkName, ScalarFunction, make_link
from rlopt.sysid.trajectory import Trajectory

FloatArray = NDArray[np.float64]


class _FullGradient(Estimator):
    """Iterations over all samples with the gradient of the convex surrogate, (1/T) sum (phi(A x) - y) x'."""

    iterates_: FloatArray

    def __init__(self, *, num_iterations: int, link: LinkName | ScalarFunction, slope: float, support: ArrayLike | None) -> None:
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be >= 1, got {num_iterations}.")
        self.num_iterations = num_iterations
        self._link = make_link(link, slope)
        self._support_given = support

    @abstractmethod
    def _preconditioner(self, covariance: FloatArray) -> FloatArray | None:
        """The matrix P of the step A <- A - gradient P, from (1/T) sum x x'; None if there is none."""

    def _fit(self, parts: list[Trajectory], points: NDArray[np.int64]) -> FloatArray:
        return np.stack([self._minimise(prefix(parts, int(point))) for point in points])

    def _minimise(self, parts: list[Trajectory]) -> FloatArray:
        num_samples = sum(len(part) for part in parts)
        shape = (parts[0].next_states.shape[1], parts[0].regressors.shape[1])
        support = self._check_support(self._support_given, shape)
        weights = np.zeros(shape)
        covariance = sum((part.regressors.T @ part.regressors for part in parts), np.zeros((shape[1],) * 2)) / num_samples
        matrix = self._preconditioner(covariance)
        iterates = [weights]
        for _ in range(self.num_iterations if matrix is not None else 0):
            gradient = np.zeros(shape)
            for part in parts:
                gradient += surrogate_gradient(part.regressors, part.next_states, weights, self._link.compiled, self._link.slope)
            assert matrix is not None
            step = (gradient / num_samples) @ matrix
            weights = weights - (step * support if len(support) else step)
            iterates.append(weights)
        self.iterates_ = np.stack(iterates)
        return weights


class QuasiNewton(_FullGradient):
    """Quasi-Newton iterations for y = phi(A x) + noise with a known link.

        A <- A - 2 step_size (1/T) sum (phi(A x) - y) x' C^-1,    C = (1/T) sum x x',  from A = 0.

    Every iteration multiplies each mode of the error by a factor between 1 - 2 step_size and 1 - 2 step_size zeta, if phi has
    slopes between zeta and 1. With the identity and step_size 0.5 one iteration is least squares. No mixing is needed. If C is
    singular the estimate is 0.

    Args:
        num_iterations: Passes over the data, >= 1; 30 suffice for the default step size and slopes above 0.5.
        step_size: In (0, 1).
        link: phi, see `rlopt.sysid.links.make_link`.
        slope: Slope of the leaky ReLU.
        support: Boolean (k, p): entries of [A B] that may differ from zero. None: all.

    Attributes:
        iterates_: [A B] after each iteration of the last fit, shape (num_iterations + 1, k, p).

    Raises:
        ValueError: For arguments outside these sets.

    Differs from the paper: its exact formula and constants could not be checked; this one follows from its description.
    References: Kowshik, Nagaraj, Jain, Netrapalli, Near-optimal offline and streaming algorithms for learning non-linear dynamical
    systems, NeurIPS 2021, arXiv 2105.11558.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((1000, 2))
        >>> y = np.tanh(x @ np.array([[0.5, 0.0], [0.2, 0.3]]).T)
        >>> QuasiNewton(link="tanh", num_iterations=60).fit((x, y)).A_.round(6).tolist()
        [[0.5, 0.0], [0.2, 0.3]]
    """

    def __init__(
        self,
        *,
        num_iterations: int = 30,
        step_size: float = 0.2,
        link: LinkName | ScalarFunction = "leaky_relu",
        slope: float = 0.5,
        support: ArrayLike | None = None,
    ) -> None:
        super().__init__(num_iterations=num_iterations, link=link, slope=slope, support=support)
        if not 0.0 < step_size < 1.0:
            raise ValueError(f"step_size must be in (0, 1), got {step_size}.")
        self.step_size = step_size

    def _preconditioner(self, covariance: FloatArray) -> FloatArray | None:
        if np.linalg.matrix_rank(covariance, hermitian=True) < len(covariance):
            return None
        return np.asarray(2.0 * self.step_size * np.linalg.inv(covariance), np.float64)


class GLMtron(_FullGradient):
    """GLMtron: plain gradient iterations for y = phi(A x) + noise with a known link, without the derivative of phi.

        A <- A - 2 step_size (1/T) sum (phi(A x) - y) x',    from A = 0.

    The simple baseline for `QuasiNewton`: it needs many more iterations where the states have very different variances.

    Args:
        num_iterations: Passes over the data, >= 1.
        step_size: In (0, 1 / largest eigenvalue of (1/T) sum x x'). None: half of that limit.
        link: phi, see `rlopt.sysid.links.make_link`.
        slope: Slope of the leaky ReLU.
        support: Boolean (k, p): entries of [A B] that may differ from zero. None: all.

    Attributes:
        iterates_: [A B] after each iteration of the last fit, shape (num_iterations + 1, k, p).

    Raises:
        ValueError: For arguments outside these sets; in `fit` for a step size at which the iterations would diverge.

    References: Kakade, Kalai, Kanade, Shamir, Efficient learning of generalized linear and single index models with isotonic
    regression, NeurIPS 2011, arXiv 1104.2018.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((1000, 1))
        >>> GLMtron(link="tanh").fit((x, np.tanh(0.5 * x))).A_.round(6).tolist()
        [[0.5]]
    """

    def __init__(
        self,
        *,
        num_iterations: int = 60,
        step_size: float | None = None,
        link: LinkName | ScalarFunction = "leaky_relu",
        slope: float = 0.5,
        support: ArrayLike | None = None,
    ) -> None:
        super().__init__(num_iterations=num_iterations, link=link, slope=slope, support=support)
        if step_size is not None and not step_size > 0.0:
            raise ValueError(f"step_size must be > 0 or None, got {step_size}.")
        self.step_size = step_size

    def _preconditioner(self, covariance: FloatArray) -> FloatArray:
        limit = 1.0 / float(np.linalg.eigvalsh(covariance)[-1])
        step_size = 0.5 * limit if self.step_size is None else self.step_size
        if step_size >= limit:
            raise ValueError(
                f"step_size must be below {limit:.3g} for these data, or the iterations diverge, got {step_size}; give None."
            )
        return 2.0 * step_size * np.eye(len(covariance))
