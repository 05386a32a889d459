"""Feature maps: unbiased in every row, the running mean of A, reproducible draws, states, and refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlopt.nn.kernel_variances import feature_bound, mean_pair_norm, optimal_a, positive_variance
from rlopt.nn.linear_attention import LinearAttention
from rlopt.nn.random_features import EluFeatures, FavorPlus, FavorPlusPlus, ReluFeatures, orthogonal_projections


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def pair(dim: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    x, y = randn(2, dim, seed=seed)
    return x / x.norm(), (y + x) / (y + x).norm()


def products(features: FavorPlus, x: Tensor, y: Tensor) -> Tensor:
    """The m terms of the estimate, each an estimate by itself."""
    logs = features.features(x[None, None, None]) + features.features(y[None, None, None])
    return features.num_features * logs.exp().flatten()


# Projections.


@pytest.mark.parametrize("row", [0, 1, 3])
def test_every_row_of_orthogonal_projections_is_normal_by_itself(row: int) -> None:
    # Without the signs of the diagonal of R this row's mean would be far from exp(x . y), although the mean over rows may be close.
    w = orthogonal_projections(4 * 50_000, 4, generator())[row::4]
    x, y = pair()
    estimates = (w @ (x + y) - 1.0).exp()
    assert (estimates.mean() - (x @ y).exp()).abs() <= 5 * (positive_variance(x, y) / len(w)).sqrt()
    torch.testing.assert_close(w.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0.0, atol=5 / math.sqrt(len(w)))
    torch.testing.assert_close(w.T @ w / len(w), torch.eye(4, dtype=torch.float64), rtol=0.0, atol=0.05)
    # Lengths are those of normal vectors, not fixed: |w|^2 has mean D and variance 2 D.
    assert w.square().sum(1).var() == pytest.approx(8.0, rel=0.05)


def test_projections_are_orthogonal_within_blocks_and_the_last_block_is_cut() -> None:
    w = orthogonal_projections(10, 4, generator())
    assert w.shape == (10, 4)
    for block in (w[:4], w[4:8], w[8:]):
        gram = block @ block.T
        torch.testing.assert_close(gram, gram.diag().diag(), rtol=0.0, atol=1e-12)


def test_same_generator_gives_same_projections_and_redraw_gives_others() -> None:
    first, second = FavorPlus(4, 6, generator=generator(3)), FavorPlus(4, 6, generator=generator(3))
    assert torch.equal(first.projections, second.projections)
    first.redraw_(generator(4))
    assert not torch.equal(first.projections, second.projections)
    second.redraw_(generator(4))
    assert torch.equal(first.projections, second.projections)


def test_heads_have_projections_of_their_own_on_request() -> None:
    features = FavorPlus(4, 6, num_heads=3)
    assert features.projections.shape == (3, 6, 4)
    x = randn(2, 3, 5, 4).float()
    whole = features.features(x)
    for head in range(3):
        alone = FavorPlus(4, 6)
        alone.projections.copy_(features.projections[head])
        torch.testing.assert_close(whole[:, head : head + 1], alone.features(x[:, head : head + 1]))
    with pytest.raises(ValueError, match="must have num_heads = 3 heads, got 2"):
        features.features(x[:, :2])


def test_independent_projections_are_not_orthogonal() -> None:
    gram = FavorPlus(4, 4, orthogonal=False).projections @ FavorPlus(4, 4, orthogonal=False).projections.T
    assert (gram - gram.diag().diag()).abs().max() > 0.1


# Exponential features.


@pytest.mark.parametrize("A", [None, 0.0, -0.3, -0.5, 0.05, "auto"])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_product_of_features_estimates_the_exponential_without_bias(A: float | str | None, orthogonal: bool) -> None:
    x, y = pair()
    size = 200_000
    if A is None:
        features: FavorPlus = FavorPlus(4, size, orthogonal=orthogonal)
    else:
        features = FavorPlusPlus(4, size, A=A, orthogonal=orthogonal)  # type: ignore[arg-type]
    features.double()
    log_x, log_y = features(x[None, None, None], y[None, None, None])
    estimate = (log_x + log_y).exp().sum()
    value = float(optimal_a((x + y).square().sum(), 4)) if A == "auto" else float(A or 0.0)
    assert (estimate - (x @ y).exp()).abs() <= 5 * (positive_variance(x, y, value) / size).sqrt()


@pytest.mark.parametrize("A", [0.0, -0.3])
def test_log_features_are_the_formula(A: float) -> None:
    features = FavorPlusPlus(4, 6, A=A).double()
    w, x = features.projections, randn(2, 3, 5, 4)
    expected = math.log(1 - 4 * A) + A * w.square().sum(-1) + math.sqrt(1 - 4 * A) * x @ w.T - x.square().sum(-1, keepdim=True) / 2
    torch.testing.assert_close(features.features(x), expected - 0.5 * math.log(6))
    torch.testing.assert_close(FavorPlus(4, 6).double().features(x), FavorPlusPlus(4, 6, A=0.0).double().features(x))


def test_features_stay_below_their_bound() -> None:
    x = randn(1, 1, 50, 4, scale=3.0)
    features = FavorPlusPlus(4, 1000, A=-0.2).double()
    assert (features.features(x).exp() * math.sqrt(1000) <= feature_bound(x, -0.2)[..., None] * (1 + 1e-12)).all()


def test_parameter_of_large_vectors_does_not_overflow() -> None:
    x = 100.0 * randn(1, 1, 8, 64).float()
    log_query, log_key = FavorPlusPlus(64, 32)(x, x)
    assert log_query.isfinite().all()
    assert log_key.isfinite().all()


def test_auto_uses_the_best_parameter_of_each_sample_and_head_without_padding() -> None:
    query, key = randn(2, 3, 5, 4), randn(2, 3, 5, 4, seed=1)
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    features = FavorPlusPlus(4, 6).double()
    log_query, log_key = features(query, key, valid)
    for b in range(2):
        n = int(valid[b].sum())
        for h in range(3):
            norms = (query[b, h, :n, None] + key[b, h, None, :n]).square().sum(-1)
            fixed = FavorPlusPlus(4, 6, A=float(optimal_a(norms.mean(), 4))).double()
            torch.testing.assert_close(log_query[b, h], fixed.features(query[b : b + 1, h : h + 1])[0, 0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(log_key[b, h], fixed.features(key[b : b + 1, h : h + 1])[0, 0], rtol=1e-6, atol=1e-6)


def test_auto_takes_all_queries_where_they_are_not_as_many_as_keys() -> None:
    query, key = randn(1, 1, 3, 4), randn(1, 1, 5, 4, seed=1)
    valid = torch.tensor([[True, False, True, True, False]])
    features = FavorPlusPlus(4, 6).double()
    expected = FavorPlusPlus(4, 6, A=float(optimal_a(mean_pair_norm(query, key[:, :, valid[0]]), 4))).double()
    torch.testing.assert_close(features(query, key, valid)[0], expected.features(query), rtol=1e-6, atol=1e-6)


def test_parameter_has_no_gradient() -> None:
    query = randn(1, 1, 3, 4).requires_grad_()
    log_query, log_key = FavorPlusPlus(4, 6).double()(query, query.detach())
    assert not log_key.requires_grad
    assert log_query.requires_grad


def test_running_mean_changes_features_only_when_asked() -> None:
    features = FavorPlusPlus(4, 6, A="ema", ema_decay=0.75, num_heads=2)
    batches = [(randn(3, 2, 5, 4, seed=i).float(), randn(3, 2, 5, 4, seed=10 + i).float()) for i in range(6)]
    before = features(*batches[0])[0]
    norms = [mean_pair_norm(*batch).mean(0) for batch in batches]
    torch.testing.assert_close(features.mean_norm, norms[0])
    for batch in batches[1:]:
        features(*batch)
    expected = norms[0]
    for number, norm in enumerate(norms[1:], start=2):
        share = max(1 / number, 0.25)
        expected = (1 - share) * expected + share * norm
    torch.testing.assert_close(features.mean_norm, expected)
    assert torch.equal(features(*batches[0])[0], before)
    assert features.A.tolist() == [0.0, 0.0]
    features.update_A_()
    assert (features(*batches[0])[0] != before).any()
    features.eval()
    frozen = features.mean_norm.clone()
    features(*batches[1])
    assert torch.equal(features.mean_norm, frozen)


def test_update_sets_the_best_parameter_of_the_running_mean() -> None:
    features = FavorPlusPlus(4, 6, A="ema")
    features.update_A_()
    assert features.A.tolist() == [0.0]
    query, key = randn(2, 3, 5, 4).float(), randn(2, 3, 5, 4, seed=1).float()
    features(query, key)
    features.update_A_()
    torch.testing.assert_close(features.A, optimal_a(mean_pair_norm(query, key).mean(), 4)[None])


@pytest.mark.parametrize("A", [-0.25, "ema"])
def test_state_dict_keeps_projections_and_parameter(A: float | str) -> None:
    features = FavorPlusPlus(4, 6, A=A, generator=generator(5))  # type: ignore[arg-type]
    x = randn(2, 3, 5, 4).float()
    features(x, x)
    if A == "ema":
        features.update_A_()
    other = FavorPlusPlus(4, 6, A="ema" if A == "ema" else 0.0, generator=generator(6))
    other.load_state_dict(features.state_dict())
    assert torch.equal(other.features(x), features.features(x))
    assert torch.equal(copy.deepcopy(features).features(x), features.features(x))


@pytest.mark.parametrize("orthogonal", [True, False])
def test_error_of_attention_falls_with_the_root_of_the_number_of_features(orthogonal: bool) -> None:
    query, key, value = (randn(1, 1, 16, 8, seed=i, scale=0.5).float() for i in range(3))
    exact = F.scaled_dot_product_attention(query, key, value)
    sizes, errors = [32, 128, 512, 2048], []
    for size in sizes:
        draws = []
        for seed in range(20):
            attention = LinearAttention(FavorPlus(8, size, orthogonal=orthogonal, generator=generator(seed)))
            draws.append((attention(query, key, value) - exact).square().mean())
        errors.append(math.log(float(torch.stack(draws).mean().sqrt())))
    logs = [math.log(size) for size in sizes]
    centre = sum(logs) / len(logs)
    slope = sum((a - centre) * e for a, e in zip(logs, errors, strict=True)) / sum((a - centre) ** 2 for a in logs)
    assert slope == pytest.approx(-0.5, abs=0.15)


def test_orthogonal_features_have_less_error_than_independent_ones() -> None:
    query, key, value = (randn(1, 1, 16, 16, seed=i, scale=0.7).float() for i in range(3))
    exact = F.scaled_dot_product_attention(query, key, value)
    errors = {
        orthogonal: sum(
            float(
                (LinearAttention(FavorPlus(16, 16, orthogonal=orthogonal, generator=generator(s)))(query, key, value) - exact)
                .square()
                .mean()
            )
            for s in range(100)
        )
        for orthogonal in (True, False)
    }
    assert errors[True] < 0.95 * errors[False]


def test_feature_eps_is_added_to_every_feature() -> None:
    x = randn(1, 1, 3, 4)
    plain, with_eps = FavorPlus(4, 6).double(), FavorPlus(4, 6, feature_eps=0.01).double()
    torch.testing.assert_close(with_eps.features(x).exp(), plain.features(x).exp() + 0.01 / math.sqrt(6))


# Other features.


def test_relu_features_are_the_formula_and_estimate_the_arc_cosine_kernel() -> None:
    x, y = pair()
    features = ReluFeatures(4, 400_000, feature_eps=0.0).double()
    assert (features.features(-x[None, None, None]) >= 0.0).all()
    estimate = (features.features(x[None, None, None]) * features.features(y[None, None, None])).sum()
    angle = (x @ y).acos()
    exact = (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)  # Cho and Saul, 2009, order 1, unit vectors
    torch.testing.assert_close(estimate, exact, rtol=0.02, atol=0.0)
    small = ReluFeatures(4, 5, feature_eps=0.5).double()
    z = randn(1, 2, 3, 4)
    torch.testing.assert_close(small.features(z), (torch.relu(z @ small.projections.T) + 0.5) / math.sqrt(5))


def test_elu_features_are_elu_plus_one_and_positive_far_below_zero() -> None:
    x = randn(1, 1, 3, 4)
    torch.testing.assert_close(EluFeatures(4).features(x), F.elu(x) + 1.0)
    low = torch.full((1, 1, 1, 4), -50.0, requires_grad=True)
    EluFeatures(4).features(low).sum().backward()
    assert (low.grad > 0.0).all()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FavorPlus(0), "head_dim must be >= 1, got 0"),
        (lambda: FavorPlus(4, 0), "num_features must be >= 1, got 0"),
        (lambda: FavorPlus(4, num_heads=0), "num_heads must be >= 1, got 0"),
        (lambda: FavorPlus(4, feature_eps=-1.0), "feature_eps must be >= 0"),
        (lambda: ReluFeatures(4, feature_eps=-1.0), "feature_eps must be >= 0"),
        (lambda: EluFeatures(0), "head_dim must be >= 1"),
        (lambda: FavorPlusPlus(4, A=0.125), "A must be 'auto', 'ema' or a number < 1/8"),
        (lambda: FavorPlusPlus(4, A=math.nan), "A must be 'auto', 'ema' or a number < 1/8"),
        (lambda: FavorPlusPlus(4, A="best"), "got 'best'"),
        (lambda: FavorPlusPlus(4, A=0.0, ema_decay=0.5), "ema_decay must be None unless A is 'ema'"),
        (lambda: FavorPlusPlus(4, A="ema", ema_decay=1.0), r"ema_decay must be in \[0, 1\), got 1.0"),
        (lambda: FavorPlusPlus(4, A=0.0).update_A_(), "A must be 'ema' for update_A_"),
        (lambda: FavorPlusPlus(4).features(torch.zeros(1, 1, 1, 4)), "'auto' needs the whole sequence"),
        (lambda: FavorPlus(4).features(torch.zeros(1, 1, 1, 5)), "must have head_dim = 4 entries, got 5"),
        (lambda: EluFeatures(4).features(torch.zeros(1, 1, 1, 5)), "must have head_dim = 4 entries, got 5"),
    ],
)
def test_refuses_with_one_sentence(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
