"""Attention modules: the rules that hold for all of them, and softmax and ReLU attention against torch and plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlopt.nn import ScaleInvariantAttention
from rlopt.nn.attention import Attention, ReluAttention, SoftmaxAttention
from rlopt.nn.attention_masks import BlockToeplitz2D, Decay, Toeplitz
from rlopt.nn.heads import split_heads
from rlopt.nn.linear_attention import FavorAttention, LinearAttention
from rlopt.nn.random_features import EluFeatures, ReluFeatures

BATCH, HEADS, LENGTH, DIM, VALUE_DIM = 3, 2, 8, 4, 5


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(length: int = LENGTH, key_length: int | None = None, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    key_length = length if key_length is None else key_length
    return [
        randn(BATCH, HEADS, length, DIM, seed=1, dtype=dtype),
        randn(BATCH, HEADS, key_length, DIM, seed=2, dtype=dtype),
        randn(BATCH, HEADS, key_length, VALUE_DIM, seed=3, dtype=dtype),
    ]


# Each of them, made anew.
DECODING: dict[str, Callable[[], Attention]] = {
    "softmax": SoftmaxAttention,
    "relu": ReluAttention,
    "favor+": lambda: FavorAttention(DIM, 7, A=None, chunk_size=3),
    "favor++": lambda: FavorAttention(DIM, 7, A=-0.1, chunk_size=3, num_heads=HEADS),
    "favor++ with running mean": lambda: FavorAttention(DIM, 7, A="ema", chunk_size=3),
    "relu features": lambda: LinearAttention(ReluFeatures(DIM, 7), "causal", chunk_size=3),
    "elu": lambda: LinearAttention(EluFeatures(DIM), chunk_size=3),
    "decay": lambda: FavorAttention(DIM, 7, A=None, mask=Decay([0.9, 0.2]), chunk_size=3),
    "elu with decay": lambda: LinearAttention(EluFeatures(DIM), Decay(0.5), chunk_size=3),
}
CAUSAL: dict[str, Callable[[], Attention]] = {
    **DECODING,
    "toeplitz": lambda: LinearAttention(EluFeatures(DIM), Toeplitz(HEADS, LENGTH), dense_length=0),
    "toeplitz as matrix": lambda: FavorAttention(DIM, 7, mask=Toeplitz(HEADS, LENGTH)),
    "grid": lambda: LinearAttention(EluFeatures(DIM), BlockToeplitz2D(HEADS, 2, 4), dense_length=0),
}
ALL: dict[str, Callable[[], Attention]] = {**CAUSAL, "favor++ auto": lambda: FavorAttention(DIM, 7, A="auto")}


def decode(attention: Attention, qkv: list[Tensor], state: Any, **options: Any) -> tuple[Tensor, Any]:
    rows = []
    for t in range(qkv[0].shape[2]):
        out, state = attention.step(*(x[:, :, t : t + 1] for x in qkv), state, **options)
        rows.append(out)
    return torch.cat(rows, dim=2), state


def fresh(attention: Attention, context: int = LENGTH, **options: Any) -> Any:
    return attention.init_state(BATCH, num_heads=HEADS, head_dim=DIM, value_dim=VALUE_DIM, context=context, **options)


# Decoding.


@pytest.mark.parametrize("name", DECODING)
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}])
def test_steps_equal_causal_attention(name: str, options: dict[str, float]) -> None:
    attention, qkv = DECODING[name]().double().eval(), inputs(dtype=torch.float64)
    out, _ = decode(attention, qkv, fresh(attention, dtype=torch.float64), **options)
    torch.testing.assert_close(out, attention(*qkv, is_causal=True, **options), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DECODING)
@pytest.mark.parametrize("keep_dtype", [torch.float32, torch.long])
def test_rows_of_a_state_are_reset_by_multiplication_with_zero(name: str, keep_dtype: torch.dtype) -> None:
    attention, qkv = DECODING[name]().eval(), inputs()
    _, state = decode(attention, [100.0 * x[:, :, :5] for x in qkv], fresh(attention))
    keep = torch.tensor([1, 0, 1], dtype=keep_dtype)
    kept = {key: x * keep.view(-1, *[1] * (x.ndim - 1)) for key, x in state.items()}
    rest = [x[:, :, 5:] for x in qkv]
    after, _ = decode(attention, rest, kept)
    torch.testing.assert_close(after[1], decode(attention, rest, fresh(attention))[0][1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after[[0, 2]], decode(attention, rest, state)[0][[0, 2]])
    assert all((x == 0).all() for x in fresh(attention).values())
    assert all(x.shape[0] == BATCH for x in state.values())


@pytest.mark.parametrize("name", DECODING)
def test_a_step_does_not_modify_the_state_it_is_given(name: str) -> None:
    attention, qkv = DECODING[name]().eval(), inputs()
    _, state = decode(attention, [x[:, :, :3] for x in qkv], fresh(attention))
    copied = {key: x.clone() for key, x in state.items()}
    token = [x[:, :, 3:4] for x in qkv]
    first, _ = attention.step(*token, state)
    assert all(torch.equal(state[key], copied[key]) for key in copied)
    assert torch.equal(first, attention.step(*token, state)[0])


@pytest.mark.parametrize("name", DECODING)
def test_gradients_go_through_steps(name: str) -> None:
    attention = DECODING[name]().double().eval()
    by_step = [x.requires_grad_() for x in inputs(4, dtype=torch.float64)]
    out, _ = decode(attention, by_step, fresh(attention, dtype=torch.float64))
    at_once = [x.requires_grad_() for x in inputs(4, dtype=torch.float64)]
    gradients = torch.autograd.grad(out.square().sum(), by_step)
    expected = torch.autograd.grad(attention(*at_once, is_causal=True).square().sum(), at_once)
    torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [SoftmaxAttention, ReluAttention])
@pytest.mark.parametrize("context", [1, 3])
def test_exact_attention_forgets_tokens_older_than_the_context(make: Callable[[], Attention], context: int) -> None:
    attention, qkv = make().double(), inputs(dtype=torch.float64)
    out, _ = decode(attention, qkv, fresh(attention, context, dtype=torch.float64))
    band = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().triu(1 - context)
    torch.testing.assert_close(out, attention(*qkv, attn_mask=band))


@pytest.mark.parametrize("name", DECODING)
def test_steps_take_grouped_heads(name: str) -> None:
    attention = DECODING[name]().double().eval()
    query, key, value = inputs(dtype=torch.float64)
    key, value = key[:, :1], value[:, :1]
    heads = 1 if name in ("softmax", "relu") else HEADS
    state = attention.init_state(BATCH, num_heads=heads, head_dim=DIM, value_dim=VALUE_DIM, context=LENGTH, dtype=torch.float64)
    out, _ = decode(attention, [query, key, value], state)
    torch.testing.assert_close(out, attention(query, key, value, is_causal=True, enable_gqa=True))


@pytest.mark.parametrize("name", DECODING)
def test_value_dimension_of_a_state_is_the_head_dimension_by_default(name: str) -> None:
    attention = DECODING[name]().eval()
    state = attention.init_state(BATCH, num_heads=HEADS, head_dim=DIM, context=2)
    query, key, value = inputs(1)
    assert attention.step(query, key, value[..., :DIM], state)[0].shape == (BATCH, HEADS, 1, DIM)


# Rules for all.


@pytest.mark.parametrize("name", ALL)
def test_no_sample_depends_on_the_others_of_its_batch(name: str) -> None:
    attention, qkv = ALL[name]().eval(), inputs()
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[1, 5:] = False
    causal = name != "favor++ auto"
    whole = attention(*qkv, is_causal=causal, key_padding_mask=valid)
    for b in range(BATCH):
        alone = attention(*(x[b : b + 1] for x in qkv), is_causal=causal, key_padding_mask=valid[b : b + 1])
        torch.testing.assert_close(whole[b : b + 1], alone, rtol=1e-5, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    permuted = attention(*(x[order] for x in qkv), is_causal=causal, key_padding_mask=valid[order])
    torch.testing.assert_close(permuted, whole[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_padded_keys_are_as_if_they_were_not_there(name: str) -> None:
    attention, (query, key, value) = ALL[name]().eval(), inputs()
    valid = torch.tensor([[True] * 5 + [False] * 3] * BATCH)
    causal = name != "favor++ auto"
    out = attention(query, key, value, is_causal=causal, key_padding_mask=valid)
    key[:, :, 5:], value[:, :, 5:] = 30.0, -7.0
    torch.testing.assert_close(attention(query, key, value, is_causal=causal, key_padding_mask=valid), out, rtol=1e-5, atol=1e-5)
    if name not in ("toeplitz", "toeplitz as matrix", "grid"):
        short = attention(query[:, :, :5], key[:, :, :5], value[:, :, :5], is_causal=causal)
        torch.testing.assert_close(out[:, :, :5], short, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("causal", [False, True])
def test_queries_without_a_key_give_zeros_and_zero_gradients(name: str, causal: bool) -> None:
    if causal and name == "favor++ auto":
        pytest.skip("not causal")
    attention, qkv = ALL[name](), [x.requires_grad_() for x in inputs()]
    valid = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    valid[0] = False
    valid[1, :3] = False
    out = attention(*qkv, is_causal=causal, key_padding_mask=valid)
    assert (out[0] == 0.0).all()
    assert out.isfinite().all()
    causal = causal or "decay" in name or name == "relu features"
    if causal:
        assert (out[1, :, :3] == 0.0).all()
    gradients = torch.autograd.grad((out * randn(*out.shape, seed=9)).sum(), qkv)
    for gradient in gradients:
        assert (gradient[0] == 0.0).all()
        assert gradient.isfinite().all()
    if causal:
        assert (gradients[0][1, :, :3] == 0.0).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_its_own_dtype_close_to_single(name: str, dtype: torch.dtype) -> None:
    attention, qkv = ALL[name]().eval(), [x.to(dtype) for x in inputs()]
    causal = name != "favor++ auto"
    out = attention(*qkv, is_causal=causal)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), attention(*(x.float() for x in qkv), is_causal=causal), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ALL)
def test_autocast_does_not_change_the_result(name: str) -> None:
    attention, qkv = ALL[name]().eval(), inputs()
    causal = name != "favor++ auto"
    expected = attention(*qkv, is_causal=causal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention(*qkv, is_causal=causal), expected)
        if name in DECODING:
            assert torch.equal(decode(attention, qkv, fresh(attention))[0], decode(attention, qkv, fresh(attention))[0].float())
            torch.testing.assert_close(decode(attention, qkv, fresh(attention))[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_grouped_heads_are_repeated_heads(name: str) -> None:
    attention, (query, key, value) = ALL[name]().eval(), inputs()
    causal = name != "favor++ auto"
    out = attention(query, key[:, :1], value[:, :1], is_causal=causal, enable_gqa=True)
    repeated = attention(query, key[:, :1].repeat(1, HEADS, 1, 1), value[:, :1].repeat(1, HEADS, 1, 1), is_causal=causal)
    torch.testing.assert_close(out, repeated)
    with pytest.raises(ValueError, match="as many heads as query unless enable_gqa=True, got 1 and 2"):
        attention(query, key[:, :1], value[:, :1])


@pytest.mark.parametrize("name", ALL)
def test_stats_are_detached_and_leave_the_output_alone(name: str) -> None:
    attention, qkv = ALL[name]().eval(), [x.requires_grad_() for x in inputs()]
    causal = name != "favor++ auto"
    out, stats = attention(*qkv, is_causal=causal, return_stats=True)
    torch.testing.assert_close(out, attention(*qkv, is_causal=causal))
    assert out.requires_grad
    assert all(not x.requires_grad and x.shape == (BATCH, HEADS, LENGTH) for x in stats.values())


@pytest.mark.parametrize("name", ALL)
def test_arguments_that_do_not_fit_are_refused(name: str) -> None:
    attention, (query, key, value) = ALL[name](), inputs()
    bool_mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    with pytest.raises(ValueError, match="attn_mask must be None with is_causal=True"):
        attention(query, key, value, bool_mask, is_causal=True)
    with pytest.raises(ValueError, match=r"query, key and value must be \(B, H, L, D\), got 3, 4 and 4"):
        attention(query[0], key, value)
    with pytest.raises(ValueError, match="query and key must have the same last dimension, got 3 and 4"):
        attention(query[..., :3], key, value)
    with pytest.raises(ValueError, match="key and value must agree in batch, heads and length"):
        attention(query, key, value[:, :, :3])
    with pytest.raises(ValueError, match=r"key_padding_mask must be booleans of shape \(3, 8\)"):
        attention(query, key, value, key_padding_mask=bool_mask[:2])
    with pytest.raises(ValueError, match="key_padding_mask must be booleans"):
        attention(query, key, value, key_padding_mask=torch.ones(BATCH, LENGTH))


def test_base_class_refuses_what_it_does_not_have() -> None:
    x = torch.zeros(1, 1, 1, 1)
    for call in (
        lambda: Attention()(x, x, x),
        lambda: Attention().init_state(1, num_heads=1, head_dim=1, context=1),
        lambda: Attention().step(x, x, x, {}),
    ):
        with pytest.raises(NotImplementedError, match="Attention"):
            call()


# Softmax and ReLU attention.

MASKS: dict[str, Tensor | None] = {
    "none": None,
    "boolean": torch.rand(BATCH, 1, 6, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.6,
    "shared boolean": torch.ones(6, LENGTH, dtype=torch.bool).tril(1),
    "float": randn(BATCH, HEADS, 6, LENGTH, seed=4),
    "float with -inf": randn(6, LENGTH, seed=5).masked_fill(randn(6, LENGTH, seed=6) > 0.5, -torch.inf),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_softmax_attention_is_that_of_torch(name: str, scale: float | None) -> None:
    qkv = inputs(6, LENGTH)
    expected = F.scaled_dot_product_attention(*qkv, attn_mask=MASKS[name], scale=scale)
    torch.testing.assert_close(SoftmaxAttention()(*qkv, MASKS[name], scale=scale), expected)
    torch.testing.assert_close(SoftmaxAttention()(*qkv, MASKS[name], scale=scale, return_stats=True)[0], expected)


def plain_scores(query: Tensor, key: Tensor, mask: Tensor | None, valid: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    """Scores and what is visible, pair by pair."""
    scores = query @ key.mT / DIM**0.5
    visible = torch.ones_like(scores, dtype=torch.bool)
    if mask is not None:
        if mask.dtype == torch.bool:
            visible = visible & mask
        else:
            visible, scores = visible & (mask > -torch.inf), scores + mask
    for i in range(query.shape[2]):
        for j in range(key.shape[2]):
            if causal and j > i:
                visible[:, :, i, j] = False
    if valid is not None:
        visible = visible & valid[:, None, None]
    return scores, visible


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("return_stats", [False, True])
@pytest.mark.parametrize("make", [SoftmaxAttention, ReluAttention])
def test_exact_attention_equals_its_formula_under_all_masks(
    make: type[Attention], name: str, padded: bool, return_stats: bool
) -> None:
    query, key, value = inputs(6, LENGTH)
    valid = torch.tensor([[True] * LENGTH, [False] * 3 + [True] * 5, [False] * LENGTH]) if padded else None
    for causal in [False, True] if MASKS[name] is None else [False]:
        scores, visible = plain_scores(query, key, MASKS[name], valid, causal)
        weights = (scores.exp() if make is SoftmaxAttention else scores.relu()) * visible
        weights = (weights / weights.sum(-1, keepdim=True)).nan_to_num()
        out = make()(query, key, value, MASKS[name], is_causal=causal, key_padding_mask=valid, return_stats=return_stats)
        if return_stats:
            out, stats = out
            torch.testing.assert_close(stats["entropy"], -(weights * weights.clamp(min=1e-30).log()).sum(-1))
            assert torch.equal(stats["num_keys"], (weights > 0).sum(-1))
        torch.testing.assert_close(out, weights @ value)


@pytest.mark.parametrize("make", [SoftmaxAttention, ReluAttention])
@pytest.mark.parametrize("return_stats", [False, True])
def test_gradients_of_exact_attention_are_those_of_finite_differences(make: type[Attention], return_stats: bool) -> None:
    qkv = [x[:2, :1].clone().requires_grad_() for x in inputs(4, dtype=torch.float64)]
    valid = torch.tensor([[False, True, True, True], [True, False, True, False]])

    def run(*qkv: Tensor) -> Tensor:
        out = make()(*qkv, is_causal=True, key_padding_mask=valid, return_stats=return_stats)
        return out[0] if return_stats else out  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, qkv)


def test_relu_attention_is_that_of_the_scale_invariant_module() -> None:
    module = ScaleInvariantAttention(8, 2, causal=True)
    x = randn(2, 6, 8)
    query, key, value = (split_heads(layer(x), 2) for layer in (module.query, module.key, module.value))
    expected = ReluAttention()(query, key, value, is_causal=True)
    torch.testing.assert_close(module(x), module.out(expected.transpose(1, 2).reshape(2, 6, 8)))


def test_relu_attention_ignores_the_lengths_of_queries_and_keys() -> None:
    query, key, value = inputs()
    out = ReluAttention()(query, key, value)
    torch.testing.assert_close(ReluAttention()(100.0 * query, 0.001 * key, value, scale=3.0), out)


@pytest.mark.parametrize("make", [SoftmaxAttention, ReluAttention])
def test_dropout_draws_from_its_generator_and_keeps_the_mean(make: Callable[..., Attention]) -> None:
    qkv = inputs()
    state = torch.random.get_rng_state()
    attention = make(torch.Generator().manual_seed(1))
    first = attention(*qkv, dropout_p=0.3, is_causal=True)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, make(torch.Generator().manual_seed(1))(*qkv, dropout_p=0.3, is_causal=True))
    assert not torch.equal(first, attention(*qkv, dropout_p=0.3, is_causal=True))
    mean = torch.stack([attention(*qkv, dropout_p=0.3, is_causal=True) for _ in range(3000)]).mean(0)
    torch.testing.assert_close(mean, make()(*qkv, is_causal=True), rtol=0.0, atol=0.12)


def test_dropout_removes_the_share_of_weights() -> None:
    x = torch.zeros(1, 1, 400, 4)
    attention = SoftmaxAttention(torch.Generator().manual_seed(0))
    weights = attention(x, x, torch.eye(400)[None, None], dropout_p=0.25)
    assert (weights == 0.0).float().mean() == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(weights[weights > 0.0], torch.full_like(weights[weights > 0.0], 1 / 300))


@pytest.mark.parametrize("make", [SoftmaxAttention, ReluAttention])
def test_exact_attention_refuses_with_one_sentence(make: type[Attention]) -> None:
    query, key, value = inputs()
    with pytest.raises(ValueError, match=r"dropout_p must be in \[0, 1\), got 1.0"):
        make()(query, key, value, dropout_p=1.0)
    with pytest.raises(ValueError, match=r"dropout_p must be 0 for attention that was made without a generator, got 0\.1"):
        make()(query, key, value, dropout_p=0.1)
    with pytest.raises(ValueError, match="context must be >= 1, got 0"):
        fresh(make(), 0)
    with pytest.raises(ValueError, match="step takes one token, got lengths 8, 8 and 8"):
        make().step(query, key, value, fresh(make()))
    with pytest.raises(ValueError, match="heads of key must divide heads of query, got 2 and 3"):
        make()(randn(BATCH, 3, 2, DIM), key, value, enable_gqa=True)
