"""Variances of random features against simulation, the best parameter against published numbers and numeric minima."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlopt.nn.kernel_variances import (
    feature_bound,
    hyperbolic_variance,
    mean_pair_norm,
    optimal_a,
    orthogonal_variance_bound,
    positive_variance,
    trigonometric_variance,
)
from rlopt.nn.random_features import orthogonal_projections

DIM = 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(norm: float = 0.5, seed: int = 1) -> tuple[Tensor, Tensor]:
    x, y = randn(2, DIM, seed=seed)
    return norm * x / x.norm(), norm * y / y.norm()


def feature(w: Tensor, x: Tensor, A: float) -> Tensor:
    return (1 - 4 * A) ** (DIM / 4) * (A * (w * w).sum(-1) + math.sqrt(1 - 4 * A) * (w @ x) - x @ x / 2).exp()


def trigonometric(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    pairs = (w @ x).sin() * (w @ y).sin() + (w @ x).cos() * (w @ y).cos()
    return pairs * ((x @ x + y @ y) / 2).exp()


def hyperbolic(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (feature(w, x, 0.0) * feature(w, y, 0.0) + feature(-w, x, 0.0) * feature(-w, y, 0.0))


ESTIMATORS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "A = 0": (lambda w, x, y: feature(w, x, 0.0) * feature(w, y, 0.0), positive_variance),
    "A = -0.1": (lambda w, x, y: feature(w, x, -0.1) * feature(w, y, -0.1), lambda x, y: positive_variance(x, y, -0.1)),
    "A = -0.5": (lambda w, x, y: feature(w, x, -0.5) * feature(w, y, -0.5), lambda x, y: positive_variance(x, y, -0.5)),
    "trigonometric": (trigonometric, trigonometric_variance),
    "hyperbolic": (hyperbolic, hyperbolic_variance),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("seed", [1, 2])
def test_estimator_is_unbiased_with_the_variance_of_its_formula(name: str, seed: int) -> None:
    estimator, variance = ESTIMATORS[name]
    x, y = pair(seed=seed)
    draws = estimator(randn(1_000_000, DIM), x, y)
    expected = variance(x, y)
    assert (draws.mean() - (x @ y).exp()).abs() <= 5 * (expected / len(draws)).sqrt()
    torch.testing.assert_close(draws.var(), expected, rtol=0.1, atol=0.0)


def test_variance_of_favor_plus_has_its_short_form() -> None:
    x, y = pair()
    z = (x + y).square().sum()
    torch.testing.assert_close(positive_variance(x, y), (2 * x @ y).exp() * z.exp() * (1 - (-z).exp()), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("num_features", [2, 3, 4])
def test_variance_of_orthogonal_features_is_below_bound_and_below_independent(num_features: int) -> None:
    x, y = pair(norm=0.7)
    w = orthogonal_projections(200_000 * DIM, DIM, torch.Generator().manual_seed(3)).view(-1, DIM, DIM)[:, :num_features]
    errors = feature(w, x, 0.0) * feature(w, y, 0.0) - (x @ y).exp()
    # var(mean) = var / m + (m - 1) / m cov: what orthogonality changes is the covariance of two features, which is estimated here.
    covariances = (errors.sum(1).square() - errors.square().sum(1)) / (num_features * (num_features - 1))
    standard_error = covariances.std() / math.sqrt(len(covariances))
    gain = orthogonal_variance_bound(x, y, num_features) - positive_variance(x, y) / num_features
    assert covariances.mean() <= gain * num_features / (num_features - 1) + 3 * standard_error
    assert covariances.mean() < -5 * standard_error


@pytest.mark.parametrize(("dim", "z", "expected"), [(64, 100.0, -0.4723642783), (64, 16.0, -0.0975970508), (8, 4.0, -0.1767766953)])
def test_best_parameter_has_published_values(dim: int, z: float, expected: float) -> None:
    assert float(optimal_a(torch.tensor(z, dtype=torch.float64), dim)) == pytest.approx(expected, abs=1e-10)


def log_second_moment(A: Tensor, z: Tensor, dim: int) -> Tensor:
    """Up to a constant."""
    return dim * torch.log(1 - 4 * A) - dim / 2 * torch.log(1 - 8 * A) + 2 * (1 - 4 * A) / (1 - 8 * A) * z


@pytest.mark.parametrize(("z", "expected"), [(100.0, -61.2212), (16.0, -4.3874)])
def test_best_parameter_lowers_the_variance_by_published_factors(z: float, expected: float) -> None:
    z_ = torch.tensor(z, dtype=torch.float64)
    # Variance itself: the second moment minus exp(2 x . y), here with |x|^2 + |y|^2 = z, x . y = 0.
    A = optimal_a(z_, 64)
    best = (log_second_moment(A, z_, 64) - z_).exp() - 1
    plain = (log_second_moment(torch.zeros_like(A), z_, 64) - z_).exp() - 1
    assert float((best / plain).log()) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("z", [1e-3, 0.1, 1.0, 30.0, 1000.0])
def test_second_moment_is_stationary_at_best_parameter(z: float) -> None:
    z_ = torch.tensor(z, dtype=torch.float64)
    A = optimal_a(z_, 16).requires_grad_()
    (gradient,) = torch.autograd.grad(log_second_moment(A, z_, 16), A)
    assert abs(float(gradient)) < 1e-8 * max(1.0, z)
    assert float(A.detach()) < 0.0


def test_best_parameter_goes_to_zero_with_z_without_cancellation() -> None:
    z = torch.tensor([0.0, 1e-30, 1e-6])
    assert optimal_a(z, 4).tolist() == pytest.approx([0.0, -(8 * 1e-30 / 4) / 16, -(8 * 1e-6 / 4) / 16], rel=1e-5)


def test_best_parameter_has_less_variance_than_zero() -> None:
    x, y = pair(norm=2.0)
    A = optimal_a((x + y).square().sum(), DIM)
    assert positive_variance(x, y, A) < positive_variance(x, y)
    assert positive_variance(x, y, A) < positive_variance(x, y, 1.2 * A)
    assert positive_variance(x, y, A) < positive_variance(x, y, 0.8 * A)


def test_mean_pair_norm_equals_mean_over_all_pairs() -> None:
    x, y = randn(2, 3, 5, DIM), randn(2, 3, 7, DIM, seed=1)
    brute = (x[:, :, :, None] + y[:, :, None]).square().sum(-1)
    torch.testing.assert_close(mean_pair_norm(x, y), brute.mean((-2, -1)))
    x_valid = torch.tensor([[True] * 5, [False, True, True, False, True]])
    y_valid = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    counted = (x_valid[:, None, :, None] & y_valid[:, None, None, :]).double()
    expected = (brute * counted).sum((-2, -1)) / counted.sum((-2, -1))
    torch.testing.assert_close(mean_pair_norm(x, y, x_valid, y_valid), expected)
    x[1, :, 0], y[0, :, -1] = torch.nan, torch.inf  # what does not count has no effect at all
    torch.testing.assert_close(mean_pair_norm(x, y, x_valid, y_valid), expected)


def test_mean_pair_norm_of_nothing_is_zero() -> None:
    x = randn(1, 1, 2, DIM)
    assert mean_pair_norm(x, x, torch.zeros(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize("A", [-0.05, -0.5])
def test_features_are_at_most_their_bound_and_reach_it(A: float) -> None:
    x, _ = pair(norm=1.5)
    bound = feature_bound(x, A)
    assert feature(3 * randn(100_000, DIM), x, A).max() <= bound
    best = math.sqrt(1 - 4 * A) * x / (2 * abs(A))
    torch.testing.assert_close(feature(best[None], x, A)[0], bound)


def test_orthogonal_bound_refuses_more_features_than_dimensions() -> None:
    with pytest.raises(ValueError, match=r"num_features must be in \[1, 4\]"):
        orthogonal_variance_bound(*pair(), 5)
