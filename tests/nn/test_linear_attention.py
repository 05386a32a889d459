"""Linear attention against the quadratic form, causality, masks, decoding, stability, and cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rlopt.nn import _linear_sums as linear_sums
from rlopt.nn.attention_masks import BlockToeplitz2D, Decay, Toeplitz
from rlopt.nn.kernel_variances import mean_pair_norm, optimal_a
from rlopt.nn.linear_attention import FavorAttention, LinearAttention
from rlopt.nn.random_features import EluFeatures, FavorPlus, FavorPlusPlus, FeatureMap, ReluFeatures

BATCH, HEADS, DIM, VALUE_DIM = 2, 3, 4, 5
EXACT = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 1e-5)}  # relative and absolute


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(length: int, key_length: int | None = None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    key_length = length if key_length is None else key_length
    return (
        randn(BATCH, HEADS, length, DIM, seed=1, dtype=dtype),
        randn(BATCH, HEADS, key_length, DIM, seed=2, dtype=dtype),
        randn(BATCH, HEADS, key_length, VALUE_DIM, seed=3, dtype=dtype),
    )


MAPS: dict[str, Callable[[], FeatureMap]] = {
    "favor+": lambda: FavorPlus(DIM, 7),
    "favor++": lambda: FavorPlusPlus(DIM, 7, A=-0.1),
    "favor+ per head": lambda: FavorPlus(DIM, 7, num_heads=HEADS),
    "relu": lambda: ReluFeatures(DIM, 7),
    "elu": lambda: EluFeatures(DIM),
}


def quadratic(
    attention: LinearAttention, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | float = 1.0, scale: float | None = None
) -> Tensor:
    """The definition, with all weights, in float64."""
    features = attention.feature_map
    scale = features.default_scale(DIM) if scale is None else scale
    phi_q, phi_k = (x.double() for x in features(query * scale**0.5, key * scale**0.5))
    if features.logarithmic:
        phi_q, phi_k = phi_q.exp(), phi_k.exp()
    weights = (phi_q @ phi_k.mT) * mask
    return weights / weights.sum(-1, keepdim=True) @ value.double()


def tril(length: int, key_length: int | None = None) -> Tensor:
    return torch.ones(length, length if key_length is None else key_length, dtype=torch.float64).tril()


# The quadratic form.


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("length", "key_length"), [(1, 1), (9, 9), (3, 8), (8, 3)])
def test_full_attention_equals_quadratic_form(name: str, dtype: torch.dtype, length: int, key_length: int) -> None:
    attention, qkv = LinearAttention(MAPS[name]()).to(dtype), inputs(length, key_length, dtype)
    rtol, atol = EXACT[dtype]
    torch.testing.assert_close(attention(*qkv).double(), quadratic(attention, *qkv), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("length", "key_length"), [(1, 1), (3, 3), (4, 4), (11, 11), (13, 5), (5, 13)])
def test_causal_attention_equals_quadratic_form(name: str, dtype: torch.dtype, length: int, key_length: int) -> None:
    attention, qkv = LinearAttention(MAPS[name](), chunk_size=4).to(dtype), inputs(length, key_length, dtype)
    rtol, atol = EXACT[dtype]
    out = attention(*qkv, is_causal=True).double()
    torch.testing.assert_close(out, quadratic(attention, *qkv, tril(length, key_length)), rtol=rtol, atol=atol)
    always = LinearAttention(attention.feature_map, "causal", chunk_size=4)
    assert torch.equal(always(*qkv).double(), out)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("gamma", [0.9, 0.01, [1.0, 0.5, 0.01]])
@pytest.mark.parametrize("length", [1, 3, 11])
def test_decay_equals_quadratic_form(name: str, gamma: float | list[float], length: int) -> None:
    decay = Decay(gamma)
    attention, qkv = LinearAttention(MAPS[name](), decay, chunk_size=4).double(), inputs(length)
    rtol, atol = EXACT[torch.float64]
    out = attention(*qkv)
    torch.testing.assert_close(out, quadratic(attention, *qkv, decay.dense(length)), rtol=rtol, atol=atol)
    assert torch.equal(attention(*qkv, is_causal=True), out)


@pytest.mark.parametrize("name", MAPS)
def test_decay_of_one_is_causal_attention(name: str) -> None:
    features, qkv = MAPS[name]().double(), inputs(11)
    decayed = LinearAttention(features, Decay(1.0), chunk_size=4)(*qkv)
    torch.testing.assert_close(decayed, LinearAttention(features, chunk_size=4)(*qkv, is_causal=True), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("dense_length", [0, 100])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_toeplitz_masks_equal_quadratic_form(name: str, causal: bool, dense_length: int, dtype: torch.dtype) -> None:
    rtol, atol = EXACT[dtype]
    masks = [(Toeplitz(HEADS, 12), 11), (BlockToeplitz2D(HEADS, 2, 4), 8), (BlockToeplitz2D(HEADS, 3, 2, num_prefix=1), 7)]
    for mask, length in masks:
        mask.bias.data.copy_(0.3 * randn(*mask.bias.shape))
        attention = LinearAttention(MAPS[name](), mask, dense_length=dense_length).to(dtype)
        qkv = inputs(length, dtype=dtype)
        expected = quadratic(attention, *qkv, mask.dense(length, causal).double())
        torch.testing.assert_close(attention(*qkv, is_causal=causal).double(), expected, rtol=rtol, atol=10 * atol)


def test_callable_mask_equals_quadratic_form() -> None:
    matrix, qkv = randn(HEADS, 9, 9).abs(), inputs(9)
    attention = LinearAttention(FavorPlus(DIM, 7), lambda x: matrix @ x).double()
    torch.testing.assert_close(attention(*qkv), quadratic(attention, *qkv, matrix), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask", [Toeplitz(HEADS, 9), BlockToeplitz2D(HEADS, 3, 3), BlockToeplitz2D(HEADS, 2, 4, num_prefix=1)])
@pytest.mark.parametrize("dense_length", [0, 100])
def test_mask_of_ones_is_no_mask(mask: Toeplitz | BlockToeplitz2D, dense_length: int) -> None:
    features, qkv = FavorPlus(DIM, 7).double(), inputs(9)
    masked = LinearAttention(features, mask, dense_length=dense_length)
    torch.testing.assert_close(masked(*qkv), LinearAttention(features)(*qkv), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        masked(*qkv, is_causal=True), LinearAttention(features)(*qkv, is_causal=True), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("mask", [None, Decay([0.9, 0.5, 0.1])])
@pytest.mark.parametrize("name", MAPS)
def test_chunks_and_blocks_do_not_change_the_result(name: str, mask: Decay | None, monkeypatch: pytest.MonkeyPatch) -> None:
    features, qkv = MAPS[name]().double(), inputs(29)
    expected = LinearAttention(features, mask, chunk_size=100).double()(*qkv, is_causal=True)
    for chunk_size, block_rows in itertools.product([1, 3, 8, 29], [1, 60, 10_000]):
        monkeypatch.setattr(linear_sums, "BLOCK_ROWS", block_rows)
        out = LinearAttention(features, mask, chunk_size=chunk_size).double()(*qkv, is_causal=True)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)


def test_scale_is_the_factor_of_the_scores() -> None:
    attention, qkv = LinearAttention(FavorPlus(DIM, 7)).double(), inputs(9)
    torch.testing.assert_close(attention(*qkv, scale=0.3), quadratic(attention, *qkv, scale=0.3))
    torch.testing.assert_close(attention(*qkv), attention(*qkv, scale=DIM**-0.5))
    torch.testing.assert_close(attention(*qkv, scale=0.0), qkv[2].mean(-2, keepdim=True).expand(-1, -1, 9, -1))


def test_many_features_come_close_to_softmax_attention() -> None:
    query, key, value = inputs(20)
    for causal in (False, True):
        exact = F.scaled_dot_product_attention(query / 2, key / 2, value, is_causal=causal)
        attention = FavorAttention(DIM, 20_000, A=-0.05).double()
        torch.testing.assert_close(attention(query / 2, key / 2, value, is_causal=causal), exact, rtol=0.0, atol=0.03)


def test_log_normalizer_estimates_logsumexp_of_the_scores() -> None:
    query, key, value = inputs(20)
    out, stats = FavorAttention(DIM, 20_000).double()(query / 2, key / 2, value, return_stats=True)
    expected = (query @ key.mT / 4 * DIM**-0.5).logsumexp(-1)
    torch.testing.assert_close(stats["log_normalizer"], expected, rtol=0.0, atol=0.05)
    assert out.shape == (BATCH, HEADS, 20, VALUE_DIM)


def test_equal_values_come_out_unchanged() -> None:
    # The implied weights of every query sum to 1.
    query, key, _ = inputs(11)
    ones = torch.ones(BATCH, HEADS, 11, 2, dtype=torch.float64)
    for name, causal in itertools.product(MAPS, (False, True)):
        out = LinearAttention(MAPS[name](), chunk_size=4).double()(query, key, ones, is_causal=causal)
        torch.testing.assert_close(out, ones, rtol=1e-13, atol=1e-13)


# Causality and gradients.


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("mask", [None, Decay(0.7)])
def test_no_gradient_from_earlier_outputs_to_later_tokens(name: str, mask: Decay | None) -> None:
    qkv = [x.requires_grad_() for x in inputs(11)]
    attention = LinearAttention(MAPS[name](), mask, chunk_size=4).double()
    out = attention(*qkv, is_causal=True)
    for i in range(11):
        for gradient in torch.autograd.grad(out[:, :, i].sum(), qkv, retain_graph=True):
            assert (gradient[:, :, i + 1 :] == 0.0).all()


def test_fourier_causality_holds_up_to_rounding() -> None:
    query, key, value = inputs(11)
    value.requires_grad_()
    out = LinearAttention(FavorPlus(DIM, 7), Toeplitz(HEADS, 11), dense_length=0).double()(query, key, value, is_causal=True)
    for i in range(11):
        (gradient,) = torch.autograd.grad(out[:, :, i].sum(), value, retain_graph=True)
        assert gradient[:, :, i + 1 :].abs().max() < 1e-6 if i < 10 else True
        assert gradient[:, :, : i + 1].abs().max() > 1e-3


@pytest.mark.parametrize("name", MAPS)
def test_later_chunks_do_not_change_earlier_outputs_in_any_bit(name: str) -> None:
    query, key, value = inputs(12, dtype=torch.float32)
    attention = LinearAttention(MAPS[name](), chunk_size=4)
    before = attention(query, key, value, is_causal=True)
    key[:, :, 8:] *= 100.0
    value[:, :, 8:] += 1.0
    after = attention(query, key, value, is_causal=True)
    assert torch.equal(before[:, :, :8], after[:, :, :8])
    assert not torch.equal(before[:, :, 8:], after[:, :, 8:])


@pytest.mark.parametrize("name", ["favor++", "relu", "elu"])
@pytest.mark.parametrize("mode", ["full", "causal", "decay", "toeplitz", "grid"])
def test_gradients_are_those_of_finite_differences(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_sums, "BLOCK_ROWS", 4)
    masks = {"decay": Decay(0.7), "toeplitz": Toeplitz(1, 6), "grid": BlockToeplitz2D(1, 2, 3)}
    mask = masks.get(mode)
    query, key, value = (x[:1, :1, :6, :4].clone().requires_grad_() for x in inputs(6))
    attention = LinearAttention(MAPS[name](), mask, chunk_size=2, dense_length=0).double()
    valid = torch.tensor([[False, True, True, False, True, True]])

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, is_causal=mode != "full", key_padding_mask=valid)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(run, (query, key, value))
    if isinstance(mask, Toeplitz | BlockToeplitz2D):
        (gradient,) = torch.autograd.grad(run(query, key, value).square().sum(), mask.bias)
        dense = LinearAttention(attention.feature_map, mask, dense_length=100)
        out = dense(query, key, value, is_causal=True, key_padding_mask=valid)
        torch.testing.assert_close(gradient, torch.autograd.grad(out.square().sum(), mask.bias)[0])


def test_gradients_of_auto_leave_the_parameter_out() -> None:
    # A is a choice of the estimator, without gradient: gradients are those with A held fixed.
    query, key, value = (x[:1, :1, :6].clone().requires_grad_() for x in inputs(6))
    auto = LinearAttention(FavorPlusPlus(DIM, 7)).double()
    out = auto(query, key, value)
    A = float(optimal_a(mean_pair_norm(query.detach() / DIM**0.25, key.detach() / DIM**0.25), DIM))
    fixed = LinearAttention(FavorPlusPlus(DIM, 7, A=A)).double()
    fixed.feature_map.A.fill_(A)  # type: ignore[operator, union-attr]
    gradients = torch.autograd.grad(out.square().sum(), (query, key, value))
    expected = torch.autograd.grad(fixed(query, key, value).square().sum(), (query, key, value))
    torch.testing.assert_close(gradients, expected)


# Stability.


@pytest.mark.parametrize("causal", [False, True])
def test_shifts_of_all_keys_or_of_a_query_cancel(causal: bool) -> None:
    logs_q, logs_k = (randn(BATCH, HEADS, 11, 7, seed=seed, dtype=torch.float32) for seed in (1, 2))
    u = torch.cat([randn(BATCH, HEADS, 11, 5, seed=3, dtype=torch.float32), torch.ones(BATCH, HEADS, 11, 1)], dim=-1)

    def run(logs_q: Tensor, logs_k: Tensor) -> tuple[Tensor, Tensor]:
        if causal:
            options: dict[str, Any] = {"logarithmic": True, "log_decay": None, "chunk_size": 4}
            sums, log_scale = linear_sums.causal_sums(logs_q, logs_k, u, None, lambda x: x, **options)
        else:
            sums, log_scale = linear_sums.full_sums(logs_q, logs_k, u, logarithmic=True)
        return sums[..., :-1] / sums[..., -1:], sums[..., -1:].log() + log_scale

    out, log_normalizer = run(logs_q, logs_k)
    shift = torch.linspace(-500.0, 500.0, 11)[:, None]
    shifted, log_shifted = run(logs_q + shift, logs_k + 300.0)
    torch.testing.assert_close(shifted, out, rtol=1e-4, atol=1e-4)
    # Numbers near 800 are 6e-5 apart in float32.
    torch.testing.assert_close(log_shifted, log_normalizer + shift + 300.0, rtol=0.0, atol=2e-4)


@pytest.mark.parametrize("mask", [None, Decay(0.5), Toeplitz(HEADS, 30)])
@pytest.mark.parametrize("name", MAPS)
def test_large_scores_give_finite_outputs_and_gradients(name: str, mask: Any) -> None:
    query, key, value = inputs(30, dtype=torch.float32)
    query, key = (x / x.norm(dim=-1, keepdim=True) * 10.0 for x in (query, key))  # scores up to 50
    for causal in (False, True):
        qkv = [x.detach().requires_grad_() for x in (query, key, value)]
        out = LinearAttention(MAPS[name](), mask, chunk_size=8, dense_length=0)(*qkv, is_causal=causal)
        assert out.isfinite().all()
        out.sum().backward()
        assert all(x.grad.isfinite().all() for x in qkv)  # type: ignore[union-attr]


def test_small_keys_before_large_ones_are_not_lost() -> None:
    # A maximum over all keys would make the features of the first chunk zero, and with them the output.
    query, key, value = inputs(8, dtype=torch.float32)
    features = FavorPlusPlus(DIM, 7, A=0.0)
    key = 0.1 * key
    key[:, :, :4] += 15.0  # A = 0: the logarithms of long keys are about -|k|^2 / 4
    attention = LinearAttention(features, chunk_size=4)
    out = attention(query, key, value, is_causal=True)
    expected = quadratic(attention.double(), query.double(), key.double(), value.double(), tril(8))
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)


def test_scale_of_the_state_decays_with_it() -> None:
    # One huge key at the start: if the scale stayed at its maximum, all later keys would underflow even when it is forgotten.
    query, key, value = inputs(60, dtype=torch.float32)
    key = 0.1 * key
    key[:, :, 1:] += 15.0  # after scaling about -230 in the logarithm
    attention = LinearAttention(FavorPlus(DIM, 7), Decay(1e-4), chunk_size=4)
    out = attention(query, key, value)
    exact = LinearAttention(attention.feature_map, Decay(1e-4), chunk_size=4).double()
    torch.testing.assert_close(out.double(), exact(query.double(), key.double(), value.double()), rtol=1e-3, atol=1e-3)
    state = attention.init_state(BATCH, num_heads=HEADS, head_dim=DIM, value_dim=VALUE_DIM, context=1)
    with torch.no_grad():
        attention.feature_map.float()
        for t in range(60):
            token, state = attention.step(*(x[:, :, t : t + 1] for x in (query, key, value)), state)
    torch.testing.assert_close(token, out[:, :, -1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mask", [None, Decay(0.9)])
def test_first_token_is_not_lost_to_the_scale_of_an_empty_state(mask: Decay | None) -> None:
    # Logarithms near -225: against the zeros of a fresh state as a scale, the features would underflow.
    query, key, value = inputs(1, dtype=torch.float32)
    attention = LinearAttention(FavorPlus(DIM, 7), mask)
    state = attention.init_state(BATCH, num_heads=HEADS, head_dim=DIM, value_dim=VALUE_DIM, context=1)
    out, _ = attention.step(query, key + 15.0, value, state)
    torch.testing.assert_close(out, value)


def test_empty_rows_of_fourier_masks_are_exact_zeros() -> None:
    query, key, value = inputs(40, dtype=torch.float32)
    valid = torch.ones(BATCH, 40, dtype=torch.bool)
    valid[0, :13] = False
    valid[1] = False
    attention = LinearAttention(FavorPlus(DIM, 7), Toeplitz(HEADS, 40), dense_length=0)
    out = attention(query, key, value, is_causal=True, key_padding_mask=valid)
    assert (out[0, :, :13] == 0.0).all()
    assert (out[0, :, 13:].abs().sum(-1) > 0.0).all()
    assert (attention(query, key, value, key_padding_mask=valid)[1] == 0.0).all()


# Cost.


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numel = max(self.numel, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.mark.parametrize("mask", [None, Decay(0.9)])
def test_causal_attention_is_linear_in_the_length(mask: Decay | None) -> None:
    flops, largest = [], []
    attention = LinearAttention(FavorPlus(8, 16), mask, chunk_size=16)
    for length in (512, 1024, 2048):
        x = randn(1, 2, length, 8, dtype=torch.float32)
        with FlopCounterMode(display=False) as counter:
            attention(x, x, x, is_causal=True)
        flops.append(counter.get_total_flops())
        with Largest() as sizes:
            attention(x, x, x, is_causal=True)
        largest.append(sizes.numel)
    assert flops[1] == 2 * flops[0]
    assert flops[2] == 2 * flops[1]
    assert largest[2] <= 2 * largest[1] <= 4 * largest[0]
    assert largest[2] <= 2 * 2048 * 18  # B H L (m + 2): the features, nothing with m times Dv


def test_step_does_not_depend_on_context_and_keeps_constant_memory() -> None:
    attention = LinearAttention(FavorPlus(DIM, 7))
    state = attention.init_state(BATCH, num_heads=HEADS, head_dim=DIM, value_dim=VALUE_DIM, context=1)
    assert {name: tuple(x.shape) for name, x in state.items()} == {"sums": (2, 3, 7, 6), "log_scale": (2, 3, 7)}
    query, key, value = inputs(3, dtype=torch.float32)
    for t in range(3):
        _, after = attention.step(*(x[:, :, t : t + 1] for x in (query, key, value)), state)
        assert {name: x.shape for name, x in after.items()} == {name: x.shape for name, x in state.items()}
        state = after


# Options and refusals.


def test_favor_attention_builds_its_parts() -> None:
    assert type(FavorAttention(DIM, 8, A=None).feature_map) is FavorPlus
    attention = FavorAttention(DIM, 8, A=-0.2, num_heads=3, orthogonal=False, mask="causal", chunk_size=5)
    features = attention.feature_map
    assert isinstance(features, FavorPlusPlus)
    assert (features.num_features, features.num_heads, features.orthogonal, features.mode) == (8, 3, False, "fixed")
    assert (attention.mask, attention.chunk_size) == ("causal", 5)
    assert FavorAttention(DIM).feature_map.num_features == 256
    drawn = [FavorAttention(DIM, 8, generator=torch.Generator().manual_seed(s)).feature_map.projections for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_decoding_does_not_enter_the_running_mean() -> None:
    attention = FavorAttention(DIM, 8)
    x = randn(1, 1, 1, DIM, dtype=torch.float32)
    attention.step(x, x, x, attention.init_state(1, num_heads=1, head_dim=DIM, context=1))
    assert int(attention.feature_map.num_batches) == 0  # type: ignore[arg-type]
    attention(x, x, x)
    assert int(attention.feature_map.num_batches) == 1  # type: ignore[arg-type]


def x_(length: int = 2, heads: int = 1) -> Tensor:
    return torch.zeros(1, heads, length, DIM)


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (ValueError, lambda: LinearAttention(EluFeatures(DIM), "tril"), "mask must be None, 'causal', an AttentionMask"),
        (ValueError, lambda: LinearAttention(EluFeatures(DIM), chunk_size=0), "chunk_size must be >= 1, got 0"),
        (ValueError, lambda: LinearAttention(EluFeatures(DIM), dense_length=-1), "dense_length must be >= 0, got -1"),
        (ValueError, lambda: FavorAttention(DIM, A="auto", mask="causal"), "feature_map must be causal"),
        (ValueError, lambda: FavorAttention(DIM, A="auto", mask=Decay(0.5)), "feature_map must be causal"),
        (ValueError, lambda: FavorAttention(DIM, A="auto")(x_(), x_(), x_(), is_causal=True), "feature_map must be causal"),
        (ValueError, lambda: FavorAttention(DIM)(x_(), x_(), x_(), scale=-1.0), "scale must be >= 0 for linear attention"),
        (
            NotImplementedError,
            lambda: FavorAttention(DIM)(x_(), x_(), x_(), torch.ones(2, 2, dtype=torch.bool)),
            "attn_mask must be None for linear attention",
        ),
        (NotImplementedError, lambda: FavorAttention(DIM)(x_(), x_(), x_(), None, 0.1), "dropout_p must be 0 for linear attention"),
        (
            ValueError,
            lambda: FavorAttention(DIM, mask=lambda x: x)(x_(), x_(), x_(), is_causal=True),
            "is_causal must be False with a callable mask",
        ),
        (
            ValueError,
            lambda: FavorAttention(DIM, mask=Toeplitz(1, 3))(x_(2), x_(3), x_(3)),
            "must have the same length with this mask",
        ),
        (
            NotImplementedError,
            lambda: FavorAttention(DIM, mask=Toeplitz(1, 3)).step(x_(1), x_(1), x_(1), {}),
            "mask must be None, 'causal' or Decay to decode token by token, got Toeplitz",
        ),
        (ValueError, lambda: FavorAttention(DIM, A="auto").step(x_(1), x_(1), x_(1), {}), "feature_map must be causal"),
        (ValueError, lambda: FavorAttention(DIM).step(x_(2), x_(2), x_(2), {}), "step takes one token, got lengths 2, 2 and 2"),
        (
            ValueError,
            lambda: FavorAttention(DIM).init_state(0, num_heads=1, head_dim=4, context=1),
            "batch_size must be >= 1, got 0",
        ),
    ],
)
def test_refuses_with_one_sentence(error: type[Exception], make: Callable[[], object], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
