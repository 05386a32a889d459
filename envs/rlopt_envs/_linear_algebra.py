"""Small pieces of linear algebra."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def spectral_radius(matrix: ArrayLike) -> float:
    """Return the largest modulus of the eigenvalues of a square matrix."""
    return float(np.abs(np.linalg.eigvals(np.asarray(matrix, np.float64))).max())


def symmetrised(array: NDArray[Any]) -> FloatArray:
    """Return the symmetric part of a square matrix."""
    return np.asarray(0.5 * (array + array.T), np.float64)


def check_modes(A: FloatArray, B: FloatArray, rule: str, reason: str) -> None:
    """Refuse a mode on or outside the unit circle that B does not reach (the Popov-Belevitch-Hautus test)."""
    scale = max(1.0, float(np.linalg.norm(np.hstack([A, B]), 2)))
    for mode in np.linalg.eigvals(A):
        if abs(mode) >= 1.0 - 1e-9:
            smallest = np.linalg.svd(np.hstack([A - mode * np.eye(len(A)), B]), compute_uv=False)[-1]
            if smallest < 1e-10 * scale:
                raise ValueError(f"{rule}, but a mode of modulus {abs(mode):.6g} (times sqrt(discount)) {reason}.")
