"""Link functions: the component-wise non-linearity phi in x' = phi(A x) + noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
LinkName = Literal["identity", "leaky_relu", "tanh"]
ScalarFunction = Callable[[float], float]


@dataclass(frozen=True)
class Link:
    """A link function in the two forms that the estimators need.

    Args:
        compiled: `(z, slope) -> phi(z)` on numbers, compiled by numba, for loops over samples.
        vectorised: phi on arrays.
        derivative: phi' on arrays; at a kink one of the two slopes.
        slope: Slope of the leaky ReLU below zero; other links ignore it.
    """

    compiled: Any
    vectorised: Callable[[FloatArray], FloatArray]
    derivative: Callable[[FloatArray], FloatArray]
    slope: float = 1.0


@numba.njit(cache=True)
def _identity(z: float, slope: float) -> float:
    return z


@numba.njit(cache=True)
def _leaky_relu(z: float, slope: float) -> float:
    return z if z > 0.0 else slope * z


@numba.njit(cache=True)
def _tanh(z: float, slope: float) -> float:
    return math.tanh(z)


def make_link(link: LinkName | ScalarFunction, slope: float = 0.5) -> Link:
    """Return the link function of a name, or of an own function.

    Args:
        link: "identity", "leaky_relu" (z for z > 0, else `slope * z`), "tanh", or a function of one number that numba can compile
            (arithmetic and the module `math`); it must increase and map 0 to 0 for the theory to hold.
        slope: Slope of the leaky ReLU below zero, in (0, 1]. A ReLU (slope 0) is refused: it loses what is below zero, and the
            number of samples needed then grows exponentially with the dimension.

    Raises:
        ValueError: For an unknown name, a slope outside its range, or a function that cannot be compiled.

    Example:
        >>> make_link("leaky_relu", 0.5).vectorised(np.array([-2.0, 2.0])).tolist()
        [-1.0, 2.0]
    """
    if link == "identity":
        return Link(_identity, lambda z: z, np.ones_like)
    if link == "leaky_relu":
        if not 0.0 < slope <= 1.0:
            raise ValueError(f"slope must be in (0, 1], got {slope}.")
        return Link(_leaky_relu, lambda z: np.where(z > 0.0, z, slope * z), lambda z: np.where(z > 0.0, 1.0, slope), slope)
    if link == "tanh":
        return Link(_tanh, np.tanh, lambda z: 1.0 - np.tanh(z) ** 2)
    if isinstance(link, str):
        raise ValueError(f"link must be 'identity', 'leaky_relu', 'tanh' or a function of one number, got {link!r}.")
    return _own_link(link)


def _own_link(function: ScalarFunction) -> Link:
    inner: Any = function if hasattr(function, "py_func") else numba.njit(function)  # py_func: compiled by numba already
    try:
        at_zero = float(inner(0.0))
    except Exception as error:  # numba raises many kinds
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"link must be a function of one number that numba can compile, got {function!r}: {reason}") from None
    if at_zero != 0.0:
        raise ValueError(f"link must map 0 to 0, got {at_zero} there.")

    @numba.njit
    def compiled(z: float, slope: float) -> float:
        found: float = inner(z)
        return found

    vectorised: Any = numba.vectorize(inner.py_func)  # type: ignore[no-untyped-call]

    def derivative(z: FloatArray) -> FloatArray:
        step = 1e-6 * np.maximum(1.0, np.abs(z))
        return np.asarray((vectorised(z + step) - vectorised(z - step)) / (2.0 * step))

    return Link(compiled, vectorised, derivative)
