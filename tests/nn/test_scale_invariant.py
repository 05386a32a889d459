"""Scale-invariant modules: degrees, invariance, orthogonal gradients, guarded divisions, and values against plain loops."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.nn import (
    CharTransformer,
    CharTransformerConfig,
    LayerNormNoAffine,
    ScaleInvariantAttention,
    ScaleInvariantBlock,
    ScaleInvariantConfig,
    ScaleInvariantLinear,
    ScaleInvariantMLP,
)
from rlopt.nn.attention import normalize_rows
from rlopt.nn.scale_invariant import AttentionWeights, squared_relu
from rlopt.optim import is_scale_invariant

FACTORS = (0.1, 3.0, 50.0)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scaled(module: nn.Module, factor: float) -> nn.Module:
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(factor)
    return copied


def transformer(**options: Any) -> tuple[CharTransformer, Tensor]:
    config = CharTransformerConfig(11, ScaleInvariantConfig(context=8, num_layers=2, num_heads=2, width=12, **options))
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    return CharTransformer(config).double(), tokens


def encoder_gradient(model: CharTransformer, tokens: Tensor) -> tuple[Tensor, Tensor]:
    group = list(model.scale_invariant_parameters())
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    grads = torch.autograd.grad(loss, group, allow_unused=True, materialize_grads=True)
    return torch.cat([p.detach().flatten() for p in group]), torch.cat([g.flatten() for g in grads])


# Normalisation.


def test_normalisation_equals_that_of_torch() -> None:
    x = randn(5, 7)
    torch.testing.assert_close(LayerNormNoAffine()(x), nn.functional.layer_norm(x, (7,), eps=0.0), rtol=1e-13, atol=1e-14)
    assert torch.autograd.gradcheck(LayerNormNoAffine(), x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e4])
def test_equal_entries_give_zeros_and_zero_gradients(dtype: torch.dtype, value: float) -> None:
    x = torch.full((2, 100), value, dtype=dtype, requires_grad=True)
    y = LayerNormNoAffine()(x)
    assert y.dtype == dtype
    assert (y == 0).all()
    y.sum().backward()
    assert (x.grad == 0).all()


def test_normalisation_has_no_smallest_scale() -> None:
    # With the usual epsilon of 1e-5 the second row would come out 3e-8 times too small.
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(LayerNormNoAffine()(x * 1e-10), LayerNormNoAffine()(x), rtol=1e-6, atol=0)


# Attention.


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_attention_equals_plain_loops(causal: bool) -> None:
    attention = ScaleInvariantAttention(6, 2, causal=causal).double()
    x = randn(2, 5, 6)
    expected = torch.zeros_like(x)
    for batch in range(2):
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            q, k, v = (x[batch] @ layer.weight[part].T for layer in (attention.query, attention.key, attention.value))
            for i in range(5):
                seen = range(i + 1) if causal else range(5)
                scores = [max(float(q[i] @ k[j]), 0.0) for j in seen]
                if sum(scores) > 0:
                    mix = sum(s / sum(scores) * v[j] for s, j in zip(scores, seen, strict=True))
                    expected[batch, i] += mix @ attention.out.weight[:, part].T
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-14)


@torch.no_grad()
@pytest.mark.parametrize("causal", [False, True])
def test_softmax_attention_of_normalised_queries_and_keys_equals_plain_loops(causal: bool) -> None:
    attention = ScaleInvariantAttention(6, 2, causal=causal, weights="softmax").double()
    x = randn(2, 5, 6)
    expected = torch.zeros_like(x)
    for batch in range(2):
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            q, k, v = (x[batch] @ layer.weight[part].T for layer in (attention.query, attention.key, attention.value))
            q, k = ((t - t.mean(1, keepdim=True)) / t.std(1, correction=0, keepdim=True) for t in (q, k))
            for i in range(5):
                seen = range(i + 1) if causal else range(5)
                scores = [math.exp(2 * float(q[i] @ k[j]) / math.sqrt(3)) for j in seen]
                mix = sum(s / sum(scores) * v[j] for s, j in zip(scores, seen, strict=True))
                expected[batch, i] += mix @ attention.out.weight[:, part].T
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("weights", ["relu", "softmax"])
def test_causal_attention_does_not_see_the_future(weights: AttentionWeights) -> None:
    attention = ScaleInvariantAttention(6, 2, causal=True, weights=weights).double()
    x = randn(1, 5, 6)
    changed = x.clone()
    changed[:, 3:] = randn(1, 2, 6, seed=1)
    torch.testing.assert_close(attention(x)[:, :3], attention(changed)[:, :3], rtol=0, atol=0)
    assert not torch.allclose(attention(x)[:, 3:], attention(changed)[:, 3:])


def test_query_without_positive_score_gets_zeros_and_finite_gradients() -> None:
    attention = ScaleInvariantAttention(4, 1, causal=False).double()
    with torch.no_grad():
        attention.key.weight.copy_(-attention.query.weight)  # q . k = -|q|^2 for equal inputs
    x = torch.ones(1, 3, 4, dtype=torch.float64)
    y = attention(x)
    assert (y == 0).all()
    y.sum().backward()
    assert all((p.grad == 0).all() for p in attention.parameters())
    scores = torch.tensor([[0.0, 0.0], [1.0, 3.0]], requires_grad=True)
    assert normalize_rows(scores).tolist() == [[0.0, 0.0], [0.25, 0.75]]


# Degrees and invariance.


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("weights", ["relu", "softmax"])
def test_attention_and_block_have_degree_two(factor: float, weights: AttentionWeights) -> None:
    x = randn(2, 5, 6)
    attention = ScaleInvariantAttention(6, 2, causal=True, weights=weights).double()
    torch.testing.assert_close(scaled(attention, factor)(x), factor**2 * attention(x), rtol=1e-11, atol=0)
    block = ScaleInvariantBlock(6, 2, causal=True, weights=weights).double()
    torch.testing.assert_close(scaled(block, factor)(factor**2 * x), factor**2 * block(x), rtol=1e-11, atol=1e-13 * factor**2)


def test_residual_stream_of_the_transformer_scales_with_the_square() -> None:
    model, tokens = transformer()
    streams: list[Tensor] = []
    for factor in (1.0, *FACTORS):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for p in changed.scale_invariant_parameters():
                p.mul_(factor)
        changed.transformer.blocks[-1].register_forward_hook(lambda _, args, output: streams.append(output.detach()))
        changed(tokens)
        torch.testing.assert_close(streams[-1], factor**2 * streams[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("options", [{}, {"attention": "softmax"}, {"balanced": True}])
def test_encoder_of_the_transformer_is_scale_invariant_and_the_head_is_not(options: dict[str, Any]) -> None:
    model, tokens = transformer(**options)
    assert is_scale_invariant(model, tokens, model.scale_invariant_parameters(), factors=FACTORS, rtol=1e-9)
    assert not is_scale_invariant(model, tokens)
    assert len(list(model.scale_invariant_parameters())) == len(list(model.parameters())) - 1


def test_gradient_is_orthogonal_to_the_group_and_shrinks_with_its_scale() -> None:
    model, tokens = transformer()
    x, grad = encoder_gradient(model, tokens)
    assert abs(float(x @ grad / (x.norm() * grad.norm()))) < 1e-12
    with torch.no_grad():
        for p in model.scale_invariant_parameters():
            p.mul_(2.0)
    _, halved = encoder_gradient(model, tokens)
    torch.testing.assert_close(halved, grad / 2, rtol=1e-9, atol=1e-13 * float(grad.norm()))


def test_tensors_of_the_transformer_are_not_orthogonal_one_by_one() -> None:
    # Only the group is: the invariance is that of all tensors together.
    model, tokens = transformer()
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    cosines = []
    for p in model.scale_invariant_parameters():
        (grad,) = torch.autograd.grad(loss, p, retain_graph=True, allow_unused=True, materialize_grads=True)
        cosines.append(abs(float((p * grad).detach().sum() / (p.detach().norm() * grad.norm() + 1e-300))))
    assert max(cosines) > 0.01


def test_mlp_is_invariant_to_a_factor_of_its_own_for_each_block() -> None:
    mlp = ScaleInvariantMLP(3, (16, 8, 8)).double()
    x = randn(10, 3)
    changed = copy.deepcopy(mlp)
    with torch.no_grad():
        for block, factor in zip(changed, (0.01, 7.0, 300.0), strict=True):
            for p in block.parameters():
                p.mul_(factor)
    torch.testing.assert_close(changed(x), mlp(x), rtol=1e-9, atol=1e-12)
    loss = mlp(x).square().sum() + mlp(x)[:, 0].sum()
    for block in mlp:
        group = list(block.scale_invariant_parameters())
        grads = torch.autograd.grad(loss, group, retain_graph=True)
        inner = sum(float((p.detach() * g).sum()) for p, g in zip(group, grads, strict=True))
        size = sum(float(p.detach().norm() * g.norm()) for p, g in zip(group, grads, strict=True))
        assert abs(inner) < 1e-12 * max(size, 1.0)


def test_epsilon_of_ordinary_normalisation_breaks_the_invariance() -> None:
    blocks = [nn.Linear(3, 16), nn.LayerNorm(16, elementwise_affine=False), nn.ReLU()]
    assert not is_scale_invariant(nn.Sequential(*blocks), randn(10, 3), factors=(0.01,), rtol=1e-3)
    assert is_scale_invariant(ScaleInvariantLinear(3, 16), randn(10, 3), factors=(0.01,), rtol=1e-9)


def test_modules_keep_float32() -> None:
    model, tokens = transformer()
    assert model.float()(tokens).dtype == torch.float32
    assert ScaleInvariantMLP(3, (4, 4))(randn(5, 3, dtype=torch.float32)).dtype == torch.float32


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="num_heads must be a divisor of width, got 4 heads for width 6"):
        ScaleInvariantAttention(6, 4, causal=True)
    with pytest.raises(ValueError, match="weights must be 'relu' or 'softmax', got 'gelu'"):
        ScaleInvariantAttention(6, 2, causal=True, weights="gelu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights 'softmax' need heads of width >= 2, got 1"):
        ScaleInvariantAttention(6, 6, causal=True, weights="softmax")
    with pytest.raises(ValueError, match="out_features must be >= 2, got 1"):
        ScaleInvariantLinear(3, 1)
    with pytest.raises(ValueError, match="hidden_features must hold at least one width"):
        ScaleInvariantMLP(3, ())


# Squared ReLU.


def test_squared_relu_is_of_degree_one_and_equals_its_formula() -> None:
    x = randn(5, 7)
    x[2] = -x[2].abs()
    r = x.clamp(min=0.0)
    found = squared_relu(x)
    for row in (0, 1, 3, 4):
        torch.testing.assert_close(found[row], r[row] ** 2 / (r[row] ** 2).mean().sqrt())
    assert found[2].tolist() == [0.0] * 7
    for factor in FACTORS:
        torch.testing.assert_close(squared_relu(factor * x), factor * found)


def test_squared_relu_has_finite_gradients_without_positive_entries() -> None:
    x = torch.tensor([[-1.0, -2.0], [1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    squared_relu(x).sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == [0.0, 0.0]
    assert torch.autograd.gradcheck(squared_relu, randn(4, 5).requires_grad_())


def test_transformer_with_squared_relus_is_scale_invariant_and_another_one() -> None:
    model, tokens = transformer(activation="squared_relu")
    plain, _ = transformer()
    assert is_scale_invariant(model, tokens, model.scale_invariant_parameters())
    assert not torch.allclose(model(tokens), plain(tokens))
    weights, gradient = encoder_gradient(model, tokens)
    assert abs(float(weights @ gradient)) < 1e-12 * float(weights.norm() * gradient.norm())
    with pytest.raises(ValueError, match="activation must be 'relu' or 'squared_relu', got 'gelu'"):
        transformer(activation="gelu")
