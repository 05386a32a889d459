"""Soft mixture of experts: weights, closed forms, equivariance, padding, precision and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.nn.soft_moe import SoftMoE, soft_mixing

both = pytest.mark.parametrize("normalize", [True, False])


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make(experts: int = 3, slots: int = 2, **options: Any) -> SoftMoE:
    return SoftMoE(6, 8, experts, slots, **options).double()


def expert_of(layer: SoftMoE, i: int, x: Tensor) -> Tensor:
    return nn.functional.gelu(x @ layer.experts.w_in[i]) @ layer.experts.w_out[i]


def reference(layer: SoftMoE, x: Tensor) -> Tensor:
    """The formula for one sample (L, d)."""
    phi, source = layer.phi, x
    if layer.scale is not None:
        source = x / (x.square().sum(-1, keepdim=True).sqrt() + 1e-6)
        phi = layer.scale * phi / (phi.square().sum(0, keepdim=True).sqrt() + 1e-6)
    logits = torch.einsum("td,dep->tep", source, phi)
    dispatch = logits.exp() / logits.exp().sum(0)
    combine = logits.exp() / logits.exp().sum((1, 2), keepdim=True)
    slots = torch.einsum("td,tep->epd", x, dispatch)
    outs = torch.stack([expert_of(layer, i, slots[i]) for i in range(layer.num_experts)])
    return torch.einsum("epd,tep->td", outs, combine)


@both
def test_output_and_gradients_equal_the_einsum_formula(normalize: bool) -> None:
    layer, x, weights = make(normalize=normalize), randn(2, 7, 6).requires_grad_(), randn(2, 7, 6, seed=1)
    y, expected = layer(x).y, torch.stack([reference(layer, sample) for sample in x])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    inputs = [x, *layer.parameters()]
    grads, expected_grads = (torch.autograd.grad((out * weights).sum(), inputs) for out in (y, expected))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-12)


@both
def test_gradients_pass_a_numerical_check(normalize: bool) -> None:
    layer = make(2, 2, normalize=normalize)
    assert torch.autograd.gradcheck(lambda x: layer(x).y, randn(2, 4, 6).requires_grad_())


def test_weights_sum_to_one_over_tokens_and_over_slots() -> None:
    x, phi, valid = randn(2, 7, 6), randn(6, 3, 2, seed=1), torch.arange(7).expand(2, 7) < torch.tensor([[7], [4]])
    dispatch, combine = soft_mixing(x, phi, valid=valid)
    torch.testing.assert_close(dispatch.sum(1), torch.ones(2, 3, 2, dtype=torch.float64))
    torch.testing.assert_close(combine.sum((2, 3)), torch.ones(2, 7, dtype=torch.float64))
    assert (dispatch[1, 4:] == 0).all()


def test_one_expert_with_one_slot_gives_every_token_the_same() -> None:
    layer, x = make(1, 1), randn(1, 7, 6)
    dispatch = soft_mixing(x, layer.phi, layer.scale).dispatch[0, :, 0, 0]
    expected = expert_of(layer, 0, dispatch @ x[0])
    torch.testing.assert_close(layer(x).y[0], expected.expand(7, 6))


def test_identity_experts_leave_the_two_mixtures() -> None:
    layer, x = make(activation="relu"), randn(1, 7, 6)
    with torch.no_grad():  # relu(x) - relu(-x) = x needs 12 hidden units
        eye = torch.eye(6, dtype=torch.float64)
        layer.experts.w_in = nn.Parameter(torch.cat([eye, -eye], dim=1).expand(3, 6, 12).clone())
        layer.experts.w_out = nn.Parameter(torch.cat([eye, -eye], dim=0).expand(3, 12, 6).clone())
    dispatch, combine = (w[0].flatten(1) for w in soft_mixing(x, layer.phi, layer.scale))
    torch.testing.assert_close(layer(x).y[0], combine @ dispatch.T @ x[0])


def test_permuted_tokens_give_permuted_outputs() -> None:
    layer, x = make(), randn(2, 7, 6)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(layer(x[:, order]).y, layer(x).y[:, order])


@both
def test_output_does_not_depend_on_the_batch(normalize: bool) -> None:
    layer, x = SoftMoE(16, 32, 4, 2, normalize=normalize), randn(5, 9, 16, dtype=torch.float32)
    together = layer(x).y
    torch.testing.assert_close(torch.cat([layer(x[i : i + 1]).y for i in range(5)]), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x.flip(0)).y.flip(0), together, rtol=0, atol=1e-5)


def test_output_does_not_depend_on_padding_or_its_contents() -> None:
    layer, x = make(), randn(3, 9, 6)
    valid = torch.arange(9).expand(3, 9) < torch.tensor([[9], [5], [0]])
    filled = x.masked_fill(~valid.unsqueeze(-1), torch.nan)
    out = layer(filled, valid)
    torch.testing.assert_close(out.y[:1], layer(x[:1]).y)
    torch.testing.assert_close(out.y[1:2, :5], layer(x[1:2, :5]).y)
    assert (out.y[~valid] == 0).all()
    assert out.stats.load.tolist() == [4, 4, 4]
    assert out.stats.experts_per_token.tolist() == [0, 0, 0, 14]
    out.y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_normalised_logits_are_bounded_by_the_scale(scale: float) -> None:
    # With logits within +-s, no weight of two tokens differs by more than exp(2 s).
    x, phi = 1e3 * randn(1, 50, 6), 1e3 * randn(6, 4, 3, seed=1)
    for weights, dims in zip(soft_mixing(x, phi, torch.tensor(scale)), (1, (2, 3)), strict=True):
        ratio = weights.amax(dims) / weights.amin(dims)
        assert ratio.log().max() <= 2 * abs(scale) + 1e-9
        assert ratio.log().max() > abs(scale)


def test_normalised_weights_ignore_the_length_of_tokens_but_the_output_does_not() -> None:
    layer, x = make(), randn(1, 7, 6)
    for one, other in zip(soft_mixing(x, layer.phi, layer.scale), soft_mixing(5 * x, layer.phi, layer.scale), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)
    assert not torch.allclose(layer(x).y, layer(5 * x).y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_mixes_with_float32_weights(dtype: torch.dtype) -> None:
    layer, x = SoftMoE(16, 8, 4, 2).to(dtype), randn(2, 9, 16, dtype=dtype)
    assert layer(x).y.dtype == dtype
    assert soft_mixing(x, layer.phi, layer.scale).dispatch.dtype == torch.float32


def test_autocast_returns_the_dtype_of_the_input() -> None:
    layer, x = SoftMoE(16, 32, 4, 2), randn(2, 9, 16, dtype=torch.float32).requires_grad_()
    plain = layer(x).y
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x).y
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, plain, rtol=0.05, atol=0.02)
    assert not torch.equal(y, plain)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_layer_sees_all_tokens_has_no_losses_and_is_the_same_in_both_modes() -> None:
    layer, x = make(), randn(2, 5, 6)
    assert not layer.causal_safe
    assert layer(x).aux_losses == {}
    assert torch.equal(layer.train()(x).y, layer.eval()(x).y)
    changed = x.clone()
    changed[:, -1] += 1.0
    assert not torch.allclose(layer(changed).y[:, 0], layer(x).y[:, 0])
    assert layer(x[:, :1]).y.shape == (2, 1, 6)


def test_statistics_use_the_weight_of_each_expert() -> None:
    layer, x = make(), randn(2, 5, 6)
    stats = layer(x).stats
    shares = soft_mixing(x, layer.phi, layer.scale).combine.sum(-1).flatten(0, 1)
    torch.testing.assert_close(stats.importance, shares.mean(0))
    torch.testing.assert_close(stats.router_entropy, torch.distributions.Categorical(shares).entropy().mean())
    assert (stats.capacity, stats.load.tolist(), stats.dropped_fraction.item()) == (2, [4, 4, 4], 0.0)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="slots_per_expert must be >= 1, got 0"):
        SoftMoE(6, 8, 3, 0)
    with pytest.raises(ValueError, match="num_experts must be >= 1, got 0"):
        SoftMoE(6, 8, 0)
    with pytest.raises(ValueError, match="x must have shape"):
        make()(randn(2, 5, 7))
