"""Checks of arguments that are arrays, numbers or choices, with messages of one form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def matrix(name: str, value: ArrayLike, shape: tuple[int, ...], reason: str = "") -> FloatArray:
    """Return a float64 copy of an array of a given shape.

    Args:
        name: Of the parameter.
        value: What the user gave.
        shape: What is expected.
        reason: Why, for the message.

    Raises:
        ValueError: For another shape, or numbers that are not finite.

    Example:
        >>> matrix("A", [[1.0, 2.0]], (2, 2))
        Traceback (most recent call last):
        ...
        ValueError: A must have shape (2, 2), got (1, 2).
    """
    array = _as_float(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}{f'; {reason}' if reason else ''}.")
    return _finite(name, array)


def square(name: str, value: ArrayLike) -> FloatArray:
    """Return a float64 copy of a square matrix with at least one row.

    Raises:
        ValueError: For another shape, or numbers that are not finite.
    """
    array = _as_float(name, value)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.size == 0:
        raise ValueError(f"{name} must have shape (d, d) with d >= 1, got {array.shape}.")
    return _finite(name, array)


def input_matrix(value: ArrayLike, num_states: int, least: int = 1) -> FloatArray:
    """Return a float64 copy of B, which has a row for each state and at least `least` columns.

    Raises:
        ValueError: For another shape, or numbers that are not finite.
    """
    array = _as_float("B", value)
    if array.ndim != 2 or array.shape[0] != num_states or array.shape[1] < least:
        raise ValueError(
            f"B must have shape ({num_states}, m) with m >= {least}, got {array.shape}; its rows belong to the states of A."
        )
    return _finite("B", array)


def output_matrix(value: ArrayLike, num_states: int) -> FloatArray:
    """Return a float64 copy of C, which has a column for each state and at least one row.

    Raises:
        ValueError: For another shape, or numbers that are not finite.
    """
    array = _as_float("C", value)
    if array.ndim != 2 or array.shape[1] != num_states or len(array) == 0:
        raise ValueError(
            f"C must have shape (p, {num_states}) with p >= 1, got {array.shape}; its columns belong to the states of A."
        )
    return _finite("C", array)


def covariance(name: str, value: ArrayLike, size: int, positive: bool = False) -> FloatArray:
    """Return a float64 copy of a symmetric matrix without negative eigenvalues.

    Args:
        name: Of the parameter.
        value: What the user gave.
        size: Rows and columns.
        positive: Whether all eigenvalues must be > 0.

    Raises:
        ValueError: For another shape, another matrix, or numbers that are not finite.

    Example:
        >>> covariance("noise_cov", [[1.0, 2.0], [2.0, 1.0]], 2)
        Traceback (most recent call last):
        ...
        ValueError: noise_cov must be positive semi-definite (eigenvalues >= 0), got a matrix with eigenvalue -1.
    """
    array = matrix(name, value, (size, size))
    scale = float(np.abs(array).max(initial=0.0))
    difference = float(np.abs(array - array.T).max(initial=0.0))
    if difference > 1e-10 * scale:
        raise ValueError(f"{name} must be symmetric, got a matrix that differs from its transpose by {difference:.3g}.")
    array = 0.5 * (array + array.T)
    least = float(np.linalg.eigvalsh(array).min())
    if least < -1e-10 * scale or (positive and least <= 0.0):
        kind = "positive definite (eigenvalues > 0)" if positive else "positive semi-definite (eigenvalues >= 0)"
        raise ValueError(f"{name} must be {kind}, got a matrix with eigenvalue {least:.6g}.")
    return array


def positive_vector(name: str, value: ArrayLike, size: int) -> FloatArray:
    """Return numbers > 0, one for each of `size` coordinates; a single number stands for all.

    Raises:
        ValueError: For another shape or other numbers.
    """
    array = _as_float(name, value)
    if array.shape not in ((), (size,)) or not (np.isfinite(array) & (array > 0.0)).all():
        raise ValueError(f"{name} must be one number > 0 or {size} of them, shape ({size},), got {value!r}.")
    return np.broadcast_to(array, (size,)).copy()


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """Return a value that must be one of a few words.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def count(name: str, value: Any, at_least: int = 1) -> int:
    """Return a whole number.

    Raises:
        ValueError: If it is none, or too small.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be a whole number >= {at_least}, got {value!r}.")
    return int(value)


def quadratic(vectors: FloatArray, weights: FloatArray) -> FloatArray:
    """Return v'Wv for each row v, (N, k) -> (N,)."""
    return np.asarray(np.vecdot(vectors @ weights, vectors), np.float64)


def _as_float(name: str, value: ArrayLike) -> FloatArray:
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be an array of numbers, got {value!r}.") from None


def _finite(name: str, array: FloatArray) -> FloatArray:
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must hold finite numbers, got nan or infinity.")
    return array
