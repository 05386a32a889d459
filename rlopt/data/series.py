"""Generated series of ten classes, in the manner of MNIST-1D: where one-dimensional convolutions beat dense networks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from rlopt.data.dataset import Dataset

_LENGTH = 40
_TEMPLATE_LENGTH = 12
_NUM_CLASSES = 10
# The templates are part of the definition of the data: the same for every seed.
_TEMPLATE_SEED = 2011


def series_like(num: int = 4000, seed: int = 0, *, num_test: int = 1000, noise: float = 0.25) -> Dataset:
    """Generate series of length 40: one of ten short templates at a random place, stretched, tilted and in noise.

    Each series takes the template of its class (12 values), stretches it to 12 to 20 steps, multiplies it by a factor in
    [0.6, 1.4], puts it at a random place among zeros, adds a line of random slope in [-0.75, 0.75] over the length, noise
    that is smoothed over about two steps (standard deviation `noise`) and white noise (0.02). Since the place is
    random, a model that shares weights over places needs far fewer examples.

    Differs from MNIST-1D: the same kinds of disturbance, but templates (smooth random lines) and constants of our own, no
    circular shift. Results are not comparable with published ones.

    Args:
        num: Series for training, >= 1.
        seed: Seed of classes and disturbances.
        num_test: Series of the test part, >= 1.
        noise: Standard deviation of the smoothed noise, >= 0.

    Returns:
        `inputs` (num, 40) float32, `targets` (num,) int64 in 0..9, and the same for the test part.

    Raises:
        ValueError: If a number is outside its range.

    References: Greydanus, Kobak, Scaling down deep learning with MNIST-1D, ICML 2024, arXiv 2011.14439.

    Example:
        >>> data = series_like(100, num_test=20)
        >>> data.inputs.shape, data.test_targets.shape
        ((100, 40), (20,))
    """
    for name, count in (("num", num), ("num_test", num_test)):
        if count < 1:
            raise ValueError(f"{name} must be >= 1, got {count}.")
    if not noise >= 0.0:
        raise ValueError(f"noise must be >= 0, got {noise}.")
    rng = np.random.default_rng(seed)
    total = num + num_test
    targets = rng.integers(_NUM_CLASSES, size=total)
    length = rng.uniform(_TEMPLATE_LENGTH, 20, total)
    start = rng.uniform(0, _LENGTH - length)
    # Position of each step inside the template, 0 at its first value and 11 at its last one; outside is zero.
    place = (np.arange(_LENGTH) - start[:, None]) / (length[:, None] - 1) * (_TEMPLATE_LENGTH - 1)  # (N, 40)
    templates = _templates()
    series = np.empty((total, _LENGTH))
    for label in range(_NUM_CLASSES):
        chosen = targets == label
        series[chosen] = np.interp(place[chosen], np.arange(_TEMPLATE_LENGTH), templates[label], left=0.0, right=0.0)
    series *= rng.uniform(0.6, 1.4, (total, 1))
    series += rng.uniform(-0.75, 0.75, (total, 1)) * np.linspace(-0.5, 0.5, _LENGTH)
    smooth = gaussian_filter1d(rng.standard_normal((total, _LENGTH)), 2.0, axis=1)
    series += noise * smooth / smooth.std() + 0.02 * rng.standard_normal((total, _LENGTH))
    inputs = series.astype(np.float32)
    return Dataset(
        "series",
        inputs[:num],
        targets[:num],
        inputs[num:],
        targets[num:],
        target_names=tuple(str(label) for label in range(_NUM_CLASSES)),
        license="generated, no restrictions",
        source=f"rlopt.data.series_like(num={num}, seed={seed}, num_test={num_test}, noise={noise})",
    )


def _templates() -> NDArray[np.float64]:
    """Ten smooth random lines (10, 12) of unit variance."""
    lines = gaussian_filter1d(np.random.default_rng(_TEMPLATE_SEED).standard_normal((_NUM_CLASSES, _TEMPLATE_LENGTH)), 1.0, axis=1)
    lines -= lines.mean(axis=1, keepdims=True)
    return np.asarray(lines / lines.std(axis=1, keepdims=True))
