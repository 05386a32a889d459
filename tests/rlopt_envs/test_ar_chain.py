"""The autoregressive chain against its closed-form moments and a plain twin."""

import numpy as np
import pytest

from rlopt_envs import ar_chain as module
from rlopt_envs.ar_chain import ar_chain


def test_moments_are_those_of_the_stationary_law():
    x = ar_chain(1_000_000, 20, 0.05, np.random.default_rng(0))
    # Mixing in about 1 / epsilon^2 = 400 steps leaves some 2500 independent samples.
    assert (x**2).sum(axis=1).mean() == pytest.approx(1.0, abs=0.03)
    assert x.T @ x / len(x) == pytest.approx(np.eye(20) / 20, abs=0.006)
    assert (x[1:] * x[:-1]).sum() / (x[:-1] ** 2).sum() == pytest.approx(np.sqrt(1 - 0.05**2), abs=1e-4)


def test_autocorrelation_falls_geometrically():
    x = ar_chain(300_000, 5, 0.5, np.random.default_rng(1))
    for lag in (1, 3, 6):
        found = (x[lag:] * x[:-lag]).sum() / (x**2).sum()
        assert found == pytest.approx((1 - 0.5**2) ** (lag / 2), abs=0.01)


def test_equals_the_recursion_in_plain_python(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_ROWS", 7)  # several blocks, the last one short
    x = ar_chain(30, 4, 0.3, np.random.default_rng(2))
    noise = np.random.default_rng(2).standard_normal((30, 4))
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    expected = [noise[0]]
    for step in noise[1:]:
        expected.append(np.sqrt(1 - 0.3**2) * expected[-1] + 0.3 * step)
    assert x == pytest.approx(np.array(expected), abs=1e-15)


def test_full_noise_gives_independent_points_on_the_sphere():
    x = ar_chain(50, 3, 1.0, np.random.default_rng(3))
    assert np.linalg.norm(x, axis=1) == pytest.approx(np.ones(50))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3, 0.1), "num_samples must be >= 1, got 0"),
        ((5, 0, 0.1), "dimension must be >= 1, got 0"),
        ((5, 3, 0.0), r"epsilon must be in \(0, 1\], got 0.0"),
        ((5, 3, 1.5), r"epsilon must be in \(0, 1\], got 1.5"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ar_chain(*arguments, np.random.default_rng(0))
