"""Curves: against a plain loop over pixels, and against the known mean and entropy of the benchmark."""

import numpy as np
import pytest

from rlopt.data import curves_like


def pixel(points: np.ndarray, row: int, column: int, pen: float) -> float:
    """Intensity of one pixel, straight from the definition."""
    nearest = np.inf
    for t in np.linspace(0, 1, 64):
        x, y = (1 - t) ** 2 * points[0] + 2 * t * (1 - t) * points[1] + t**2 * points[2]
        nearest = min(nearest, (row + 0.5 - y) ** 2 + (column + 0.5 - x) ** 2)
    return float(np.exp(-nearest / (2 * pen**2)))


@pytest.mark.parametrize(("size", "pen", "low", "high"), [(14, 0.7, 1, 13), (28, 1.4, 2, 26)])
def test_pixels_are_those_of_the_definition(size: int, pen: float, low: float, high: float) -> None:
    images = curves_like(3, size, seed=5).inputs
    points = np.random.default_rng(5).uniform(low, high, (3, 3, 2))
    for row, column in [(0, 0), (3, 9), (9, 3), (size - 1, 7), (7, size - 1)]:
        for image, control in zip(images, points, strict=True):
            assert image[row, column] == pytest.approx(pixel(control, row, column, pen), rel=1e-5, abs=1e-12)


def test_default_images_have_the_mean_and_the_entropy_of_the_benchmark() -> None:
    images = curves_like().inputs
    assert images.shape == (4000, 14, 14)
    assert images.dtype == np.float32
    p = images.astype(np.float64).reshape(4000, -1)
    entropy = -np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0) - np.where(
        p < 1, (1 - p) * np.log1p(-np.minimum(p, 1 - 1e-16)), 0
    )
    assert p.mean() == pytest.approx(0.0893, abs=5e-5)
    assert entropy.sum(axis=1).mean() == pytest.approx(18.17, abs=5e-3)


def test_test_part_leaves_the_training_part_as_it_is() -> None:
    alone, both = curves_like(70, num_test=0), curves_like(70, num_test=5)
    np.testing.assert_array_equal(alone.inputs, both.inputs)
    assert alone.test_inputs is None
    assert both.test_inputs is not None
    np.testing.assert_array_equal(both.test_inputs, curves_like(75).inputs[70:])


@pytest.mark.parametrize("options", [{"num": 0}, {"size": 1}, {"num_test": -1}])
def test_option_outside_its_range_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be >="):
        curves_like(**options)
