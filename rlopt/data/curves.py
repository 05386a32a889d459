"""Generated images of curves, a small auto-encoder benchmark that needs no file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlopt.data.dataset import Dataset

_NUM_POINTS = 64  # samples along a curve
_CHUNK = 64  # images at a time: bounds the table of distances to 25 MB at 28 x 28


def curves_like(num: int = 4000, size: int = 14, seed: int = 0, *, num_test: int = 0) -> Dataset:
    """Draw quadratic Bezier curves with a soft pen: images in [0, 1] that have six degrees of freedom.

    Three control points p0, p1, p2 are uniform over the image without its margin of size / 14 pixels. The curve is
    (1 - t)^2 p0 + 2 t (1 - t) p1 + t^2 p2 at 64 equally distant t in [0, 1], and a pixel whose centre has distance d to the
    nearest of these has the intensity exp(-d^2 / (2 pen^2)) with pen = 0.7 size / 14. Another `size` shows the same
    curves at another resolution.

    With a sigmoid output and the cross-entropy summed over pixels, no model gets below the mean entropy of the images, 18.17
    for the defaults.

    Differs from the CURVES data of the literature: those are a file whose rendering is not published. The idea (images that a few
    random points determine) is the same, numbers are not comparable.

    Args:
        num: Images, >= 1.
        size: Height and width in pixels, >= 2.
        seed: Seed of the control points.
        num_test: Further images for the test part, >= 0; they leave the others as they are.

    Returns:
        `inputs` (num, size, size) float32, no targets.

    Raises:
        ValueError: If a count is outside its range.

    References: Hinton, Salakhutdinov, Reducing the dimensionality of data with neural networks, Science 313, 2006 (the idea).

    Example:
        >>> images = curves_like(100).inputs
        >>> images.shape, bool(images.max() <= 1)
        ((100, 14, 14), True)
    """
    for name, value, least in (("num", num, 1), ("size", size, 2), ("num_test", num_test, 0)):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}.")
    scale = size / 14
    # (N, 3, 2): coordinate 0 is x, coordinate 1 is y.
    points = np.random.default_rng(seed).uniform(scale, 13 * scale, (num + num_test, 3, 2))
    images = np.empty((num + num_test, size, size), np.float32)
    for first in range(0, len(images), _CHUNK):
        images[first : first + _CHUNK] = _draw(points[first : first + _CHUNK], size, 0.7 * scale)
    return Dataset(
        "curves",
        images[:num],
        test_inputs=images[num:] if num_test else None,
        license="generated, no restrictions",
        source=f"rlopt.data.curves_like(num={num}, size={size}, seed={seed}, num_test={num_test})",
    )


def _draw(points: NDArray[np.float64], size: int, pen: float) -> NDArray[np.float64]:
    """Images (N, size, size) of the curves with control points (N, 3, 2)."""
    t = np.linspace(0.0, 1.0, _NUM_POINTS)
    weights = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # (3, T)
    curve = np.einsum("kt,nkd->ntd", weights, points)  # (N, T, 2)
    centres = np.arange(size) + 0.5
    # The squared distance is a sum of one part per axis: two small tables instead of one of all pairs and axes.
    dx = (centres - curve[:, :, None, 0]) ** 2  # (N, T, columns)
    dy = (centres - curve[:, :, None, 1]) ** 2  # (N, T, rows)
    nearest = (dy[:, :, :, None] + dx[:, :, None, :]).min(axis=1)  # (N, rows, columns)
    return np.asarray(np.exp(-nearest / (2 * pen**2)))
