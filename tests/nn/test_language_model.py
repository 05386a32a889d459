"""The character transformer: sizes, causality, seeds, generation, dropout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.nn import (
    CharTransformer,
    CharTransformerConfig,
    GeneratorDropout,
    MoEConfig,
    ScaleInvariantConfig,
    TransformerConfig,
)

FORMS = pytest.mark.parametrize("scale_invariant", [False, True])


SMALL = {"context": 8, "num_layers": 2, "num_heads": 2, "width": 12}


def make(vocab_size: int = 65, *, scale_invariant: bool = False, tie_head: bool = False, **options: Any) -> CharTransformer:
    form = ScaleInvariantConfig(**options) if scale_invariant else TransformerConfig(**options)
    return CharTransformer(CharTransformerConfig(vocab_size, form, tie_head))


def small(vocab_size: int = 11, **options: Any) -> CharTransformer:
    return make(vocab_size, **{**SMALL, **options})


def tokens(length: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(11, (3, length), generator=torch.Generator().manual_seed(seed))


def test_number_of_parameters_is_that_of_nanogpt() -> None:
    # Per layer 12 W^2 and two gains; token and position embeddings; the last gain. A tied head adds nothing.
    vocab, context, width, layers = 65, 64, 128, 4
    expected = vocab * width + context * width + layers * (12 * width**2 + 2 * width) + width
    count = sum(p.numel() for p in make(vocab, tie_head=True).parameters())
    assert count == expected == 804_096
    assert sum(p.numel() for p in make(vocab).parameters()) == expected + vocab * width


def test_number_of_parameters_of_the_scale_invariant_form() -> None:
    # Per layer 12 W^2 and the bias of 4 W; the entry has gain, bias and a matrix.
    vocab, context, width, layers = 65, 64, 128, 4
    expected = 2 * vocab * width + context * width + layers * (12 * width**2 + 4 * width) + 2 * width + width**2
    model = make(vocab, scale_invariant=True)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert sum(p.numel() for p in model.scale_invariant_parameters()) == expected - vocab * width


@FORMS
def test_later_tokens_do_not_change_earlier_logits(scale_invariant: bool) -> None:
    model = small(scale_invariant=scale_invariant).double()
    x, y = tokens(), tokens()
    y[:, 5:] = (y[:, 5:] + 1) % 11
    torch.testing.assert_close(model(x)[:, :5], model(y)[:, :5], rtol=1e-12, atol=1e-14)
    assert not torch.allclose(model(x)[:, 5:], model(y)[:, 5:])


@FORMS
def test_every_position_matters(scale_invariant: bool) -> None:
    # The same token at two places gets different logits, through the position embedding.
    model = small(scale_invariant=scale_invariant)
    logits = model(torch.zeros(1, 8, dtype=torch.long))
    assert not torch.allclose(logits[0, 0], logits[0, 1])


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    over_all_targets = -small()(tokens()).log_softmax(-1).mean()
    assert over_all_targets.item() == pytest.approx(torch.tensor(11.0).log().item(), abs=0.01)


@FORMS
def test_seed_decides_the_weights_and_global_randomness_stays(scale_invariant: bool) -> None:
    before = torch.get_rng_state()
    one, same, other = (small(scale_invariant=scale_invariant, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_initial_spread_is_as_configured() -> None:
    model = make(init_std=0.1)
    assert model.transformer.blocks[0].mlp.expand.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert model.transformer.blocks[0].mlp.contract.weight.std().item() == pytest.approx(0.1 / 8**0.5, rel=0.02)
    twin = make(init_std=0.1, scale_invariant=True)
    for weight in (twin.transformer.blocks[0].contract.weight, twin.token_embedding.weight):
        assert weight.abs().max().item() <= 0.2
        assert weight.std().item() == pytest.approx(0.1 * 0.880, rel=0.03)  # of a normal cut at two deviations


def test_attention_of_the_scale_invariant_form_is_as_configured() -> None:
    relu, softmax = (small(scale_invariant=True, attention=weights) for weights in ("relu", "softmax"))
    assert {block.attention.weights for block in softmax.transformer.blocks} == {"softmax"}
    assert not torch.allclose(relu(tokens()), softmax(tokens()))


def test_balanced_weights_have_spreads_of_their_own() -> None:
    plain, balanced = (make(init_std=0.1, scale_invariant=True, balanced=value) for value in (False, True))
    factors = {
        "transformer.entry.linear": 3.3,
        "token_embedding": 2.2,
        "transformer.position_embedding": 2.2,
        "transformer.blocks.3.attention.query": 0.5,
    }
    factors |= {
        "transformer.blocks.0.attention.key": 0.5,
        "transformer.blocks.0.attention.value": 1.0,
        "transformer.blocks.1.contract": 1.0,
        "head": 1.0,
    }
    for name, factor in factors.items():
        expected = factor * plain.get_submodule(name).weight
        torch.testing.assert_close(balanced.get_submodule(name).weight, expected, rtol=1e-6, atol=0)
    assert balanced.transformer.entry.gain.tolist() == pytest.approx([0.3] * 128)
    assert set(plain.transformer.entry.gain.tolist()) == {1.0}


def test_tied_head_is_the_token_embedding() -> None:
    model = small(tie_head=True)
    assert model.head.weight is model.token_embedding.weight


@FORMS
def test_learns_to_count(scale_invariant: bool) -> None:
    model = small(scale_invariant=scale_invariant)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        x = (torch.randint(11, (16, 1), generator=generator) + torch.arange(9)) % 11
        loss = nn.functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    start = torch.tensor([[4]])
    continued = model.generate(start, 12, generator=generator, top_k=1)  # longer than the context
    assert continued.tolist() == [[(4 + i) % 11 for i in range(13)]]


def test_generation_follows_its_generator_and_temperature() -> None:
    model = small()
    with torch.no_grad():
        model.head.weight.mul_(100.0)

    def drawn(seed: int, **options: Any) -> Tensor:
        return model.generate(tokens(2), 20, generator=torch.Generator().manual_seed(seed), **options)

    before = torch.get_rng_state()
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(0, top_k=1), drawn(1, top_k=1))
    assert torch.equal(drawn(0, temperature=1e-6), drawn(1, top_k=1))
    assert torch.equal(drawn(0, top_k=100), drawn(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn(0)[:, :2], tokens(2))


def test_draws_have_the_probabilities_of_the_model() -> None:
    model = small(vocab_size=3)
    with torch.no_grad():
        model.head.weight.mul_(50.0)
    start = torch.zeros(20_000, 1, dtype=torch.long)
    found = model.generate(start, 1, generator=torch.Generator().manual_seed(0))[:, 1].bincount(minlength=3) / 20_000
    torch.testing.assert_close(found, model(start[:1])[0, 0].softmax(-1).detach(), rtol=0, atol=0.015)


def test_dropout_has_own_randomness_keeps_the_mean_and_rests_in_evaluation() -> None:
    before = torch.get_rng_state()
    dropout, again = GeneratorDropout(0.25, seed=1), GeneratorDropout(0.25, seed=1)
    x = torch.ones(200, 200)
    y = dropout(x)
    assert y.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(y, again(x))
    assert not torch.equal(dropout(x), y)
    assert torch.equal(copy.deepcopy(dropout)(x), dropout(x))
    assert dropout.eval()(x) is x
    assert torch.equal(torch.get_rng_state(), before)


@FORMS
def test_dropout_acts_in_training_only(scale_invariant: bool) -> None:
    model = small(scale_invariant=scale_invariant, dropout=0.5)
    assert not torch.equal(model(tokens()), model(tokens()))
    model.eval()
    assert torch.equal(model(tokens()), model(tokens()))
    assert torch.equal(model(tokens()), small(scale_invariant=scale_invariant).eval()(tokens()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be > 0, got 0"),
        ({"num_heads": 5}, "num_heads must be a divisor of width, got 5 heads for width 12"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"init_std": 0.0}, "init_std must be > 0, got 0.0"),
        ({"scale_invariant": True, "attention": "gelu"}, "weights must be 'relu' or 'softmax', got 'gelu'"),
        ({"scale_invariant": True, "tie_head": True}, "tie_head must be False if scale invariant"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match=r"inputs must have at most 8 positions \(context\), got 9"):
        small()(tokens(9))
    generator = torch.Generator()
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        small().generate(tokens(), 1, generator=generator, temperature=0)
    with pytest.raises(ValueError, match="top_k must be >= 1, got 0"):
        small().generate(tokens(), 1, generator=generator, top_k=0)


def test_dropout_goes_on_with_the_same_draws_after_loading() -> None:
    x = torch.ones(1000)
    first, second = GeneratorDropout(0.5, seed=1), GeneratorDropout(0.5, seed=2)
    first(x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(x), first(x))
    # Without dropout a state holds parameters only.
    assert all(isinstance(value, torch.Tensor) for value in small(dropout=0.0).state_dict().values())


@FORMS
def test_token_by_token_equals_at_once(scale_invariant: bool) -> None:
    model, x = small(scale_invariant=scale_invariant, init_std=0.5).double(), tokens()
    state = model.init_state(3)
    for t in range(8):
        logits, state = model.step(x[:, t : t + 1], state)
        torch.testing.assert_close(logits[:, 0], model(x)[:, t], rtol=1e-8, atol=1e-10)


def test_auxiliary_losses_and_router_statistics_are_with_the_outputs() -> None:
    model = small(moe=MoEConfig(num_experts=3))
    out = model.outputs(tokens())
    assert sorted(out.aux_losses) == ["balance", "router_z"]
    assert int(out.router_stats["layer1"].load.sum()) == 3 * 8 * 2
    assert torch.equal(out.logits, model(tokens()))
    assert small().outputs(tokens()).aux_losses == {}
