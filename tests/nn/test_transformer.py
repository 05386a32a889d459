"""The transformer: every part by itself, causality, padding, acting token by token, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlopt.nn.moe import MoE
from rlopt.nn.routing import ExpertChoice, TokenChoice
from rlopt.nn.soft_moe import SoftMoE
from rlopt.nn.topk_mlp import TopKMLP
from rlopt.nn.transformer import Transformer
from rlopt.nn.transformer_config import (
    DenseMLPConfig,
    FavorAttentionConfig,
    LinearAttentionConfig,
    MoEConfig,
    ReluAttentionConfig,
    ScaleInvariantConfig,
    SoftmaxAttentionConfig,
    SoftMoEConfig,
    TopKMLPConfig,
    TransformerConfig,
    TreeAttentionConfig,
)

SMALL = TransformerConfig(width=8, num_layers=2, num_heads=2, context=6, init_std=0.5)
ATTENTIONS = {
    "softmax": SoftmaxAttentionConfig(),
    "relu": ReluAttentionConfig(),
    "favor+": FavorAttentionConfig(num_features=16, kind="favor+", chunk_size=4),
    "favor++": FavorAttentionConfig(num_features=16, chunk_size=4),
    "linear": LinearAttentionConfig(chunk_size=4),
    "decay": LinearAttentionConfig(decay=0.9, chunk_size=4),
    "tree_tf": TreeAttentionConfig(height=1),
    "tree_tc": TreeAttentionConfig(height=1, mode="tc"),
}
# Name -> configuration of a causal transformer: each attention, and each other part once.
CAUSAL: dict[str, TransformerConfig | ScaleInvariantConfig] = {
    **{name: replace(SMALL, attention=kind) for name, kind in ATTENTIONS.items()},
    "rotary": replace(SMALL, positions="rotary"),
    "no_positions": replace(SMALL, positions="none"),
    "post_norm": replace(SMALL, norm="post"),
    "gru": replace(SMALL, gating="gru"),
    "topk": replace(SMALL, mlp=TopKMLPConfig(k=3)),
    "top2_experts": replace(SMALL, moe=MoEConfig(num_experts=3, every=1)),
    "top1_experts": replace(SMALL, moe=MoEConfig(num_experts=3, router=TokenChoice(top_k=1))),
    "scale_invariant_relu": ScaleInvariantConfig(width=8, num_layers=2, num_heads=2, context=6),
    "scale_invariant_softmax": ScaleInvariantConfig(width=8, num_layers=2, num_heads=2, context=6, attention="softmax"),
}
EVERY_CAUSAL = pytest.mark.parametrize("name", CAUSAL)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(config: TransformerConfig | ScaleInvariantConfig) -> Transformer:
    return Transformer(config).double().eval()


@EVERY_CAUSAL
def test_later_tokens_do_not_change_earlier_outputs(name: str) -> None:
    model, x, y = make(CAUSAL[name]), draw(3, 6, 8), draw(3, 6, 8)
    y[:, 4:] = draw(3, 2, 8, seed=1)
    torch.testing.assert_close(model(x).output[:, :4], model(y).output[:, :4], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(model(x).output[:, 4:], model(y).output[:, 4:])


@EVERY_CAUSAL
def test_token_by_token_equals_at_once(name: str) -> None:
    model, x = make(CAUSAL[name]), draw(3, 6, 8)
    state = model.init_state(3)
    outputs = []
    for t in range(6):
        kept = {key: tensor.clone() for key, tensor in state.items()}
        output, new = model.step(x[:, t : t + 1], state)
        assert all(torch.equal(state[key], kept[key]) for key in kept), "the given state was modified"
        outputs.append(output)
        state = new
    torch.testing.assert_close(torch.cat(outputs, dim=1), model(x).output, rtol=1e-8, atol=1e-10)


@EVERY_CAUSAL
def test_rows_of_zeros_in_a_state_start_anew(name: str) -> None:
    model, x = make(CAUSAL[name]), draw(2, 6, 8)
    state = model.init_state(2)
    for t in range(3):
        _, state = model.step(x[:, t : t + 1], state)
    keep = torch.tensor([1, 0])
    state = {key: tensor * keep.view(2, *[1] * (tensor.ndim - 1)).to(tensor.dtype) for key, tensor in state.items()}
    for t in range(3, 6):
        output, state = model.step(x[:, t : t + 1], state)
    torch.testing.assert_close(output[0], model(x).output[0, -1:], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(output[1], model(x[:, 3:]).output[1, -1:], rtol=1e-8, atol=1e-10)


@EVERY_CAUSAL
def test_padding_on_the_left_changes_nothing(name: str) -> None:
    model, x = make(CAUSAL[name]), draw(2, 6, 8)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[1, :2] = False
    x[1, :2] = 1e3  # whatever stands there
    out = model(x, valid).output
    torch.testing.assert_close(out[0], model(x[:1]).output[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(out[1, 2:], model(x[1:, 2:]).output[0], rtol=1e-8, atol=1e-10)


@EVERY_CAUSAL
def test_output_does_not_depend_on_the_other_samples(name: str) -> None:
    model, x = make(CAUSAL[name]), draw(4, 6, 8)
    together = model(x).output
    alone = torch.cat([model(x[i : i + 1]).output for i in range(4)])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(together[order], model(x[order]).output, rtol=1e-8, atol=1e-10)


@EVERY_CAUSAL
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = Transformer(CAUSAL[name]).double().train()
    out = model(draw(5, 6, 8))
    (out.output.square() * draw(5, 6, 8, seed=3)).sum().backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


@EVERY_CAUSAL
def test_seed_decides_the_weights_and_global_randomness_stays(name: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (Transformer(replace(CAUSAL[name], seed=seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[key], same[key]) for key in one)
    differ = {key for key in one if not torch.equal(one[key], other[key])}
    constant = {key for key in one if key.endswith(("norm.weight", "gate.bias", ".gain", "entry.bias", "expand.bias"))}
    exempt = {key for key in one if "attention.attention." in key and one[key].numel() <= 2}  # A, counts, levels, thresholds
    assert differ >= set(one) - constant - exempt


@EVERY_CAUSAL
def test_state_dict_makes_an_equal_model(name: str) -> None:
    model, other = make(CAUSAL[name]), make(replace(CAUSAL[name], seed=9))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(draw(2, 6, 8)).output, other(draw(2, 6, 8)).output)


def test_standard_form_is_the_plain_formula() -> None:
    model, x = make(replace(SMALL, num_layers=1)), draw(2, 6, 8)
    p = dict(model.named_parameters())

    def heads(y: Tensor) -> Tensor:
        return y.view(2, 6, 2, 4).transpose(1, 2)

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (8,), p[name])

    z = x + p["position_embedding.weight"]
    y = norm(z, "blocks.0.attention_norm.weight")
    q, k, v = (heads(y @ p[f"blocks.0.attention.{part}.weight"].T) for part in ("query", "key", "value"))
    scores = (q @ k.transpose(-2, -1) / 2.0).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 6, 8)
    z = z + attended @ p["blocks.0.attention.out.weight"].T
    y = norm(z, "blocks.0.mlp_norm.weight")
    z = z + F.gelu(y @ p["blocks.0.mlp.expand.weight"].T) @ p["blocks.0.mlp.contract.weight"].T
    torch.testing.assert_close(model(x).output, norm(z, "final_norm.weight"), rtol=1e-12, atol=1e-12)


def test_post_norm_normalises_the_stream() -> None:
    model, x = make(replace(SMALL, num_layers=1, norm="post", positions="none")), draw(2, 6, 8)
    block = model.blocks[0]
    z = block.attention_norm(x + block.attention(x))
    torch.testing.assert_close(model(x).output, block.mlp_norm(z + block.mlp(z)))


def test_gru_gates_take_relus_and_start_near_the_identity() -> None:
    model, x = make(replace(SMALL, num_layers=1, gating="gru", positions="none")), draw(2, 6, 8)
    block = model.blocks[0]
    z = block.attention_gate(x, block.attention(block.attention_norm(x)).relu())
    z = block.mlp_gate(z, block.mlp(block.mlp_norm(z)).relu())
    torch.testing.assert_close(model(x).output, model.final_norm(z))
    assert not torch.equal(block.attention_gate.of_output, block.mlp_gate.of_output)
    with torch.no_grad():
        for gate in (block.attention_gate, block.mlp_gate):
            for matrix in (gate.of_output, gate.of_stream, gate.of_reset_stream):
                matrix.zero_()
            gate.bias.fill_(30.0)
    torch.testing.assert_close(model(x).output, model.final_norm(x))


def test_experts_stand_in_every_nth_layer() -> None:
    experts = MoEConfig(num_experts=3)
    model = Transformer(replace(SMALL, num_layers=4, moe=experts))
    assert [isinstance(block.mlp, MoE) for block in model.blocks] == [False, True, False, True]
    assert not torch.equal(model.blocks[1].mlp.router_weight, model.blocks[3].mlp.router_weight)
    soft = Transformer(replace(SMALL, causal=False, moe=SoftMoEConfig(num_experts=3, every=1), mlp=TopKMLPConfig()))
    assert all(isinstance(block.mlp, SoftMoE) for block in soft.blocks)
    assert all(isinstance(block.mlp, TopKMLP) for block in Transformer(replace(SMALL, mlp=TopKMLPConfig())).blocks)


def test_auxiliary_losses_are_sums_over_layers_and_not_in_the_output() -> None:
    model, x = make(replace(SMALL, num_layers=4, moe=MoEConfig(num_experts=3))), draw(2, 6, 8)
    out = model(x)
    assert sorted(out.aux_losses) == ["balance", "router_z"]
    assert sorted(out.router_stats) == ["layer1", "layer3"]
    found: dict[str, list[Tensor]] = {"balance": [], "router_z": []}
    hooks = [
        block.mlp.register_forward_hook(
            lambda _module, _args, result: [found[k].append(v) for k, v in result.aux_losses.items()] and None
        )
        for block in model.blocks
        if isinstance(block.mlp, MoE)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    for name, losses in found.items():
        assert len(losses) == 2
        torch.testing.assert_close(out.aux_losses[name], losses[0] + losses[1])
    assert make(SMALL)(x).aux_losses == {}


def test_a_step_computes_no_losses_and_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("computed")

    model, x = make(replace(SMALL, moe=MoEConfig(num_experts=3))), draw(2, 1, 8)
    monkeypatch.setattr("rlopt.nn.assignment.router_stats", refuse)
    assert model.step(x, model.init_state(2))[0].shape == (2, 1, 8)
    with pytest.raises(AssertionError, match="computed"):
        model(x)


def test_padding_is_not_routed() -> None:
    model, x = make(replace(SMALL, moe=MoEConfig(num_experts=3))), draw(2, 6, 8)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[:, :2] = False
    assert int(model(x, valid).router_stats["layer1"].load.sum()) == 2 * 4 * 2  # samples x tokens x choices


@pytest.mark.parametrize("moe", [MoEConfig(4, ExpertChoice()), MoEConfig(4, TokenChoice(capacity_factor=1.0)), SoftMoEConfig(4)])
def test_experts_that_see_the_future_are_refused_in_causal_models_and_do_leak(moe: Any) -> None:
    with pytest.raises(ValueError, match="moe of a causal transformer must be token choice without a capacity"):
        replace(SMALL, moe=moe)
    leaks = []
    for seed in range(5):
        model, x = make(replace(SMALL, moe=moe, allow_future_leak=True, seed=seed)), draw(1, 6, 8)
        y = x.clone()
        y[:, 5] = draw(1, 8, seed=seed + 10)
        leaks.append(not torch.allclose(model(x).output[:, :5], model(y).output[:, :5]))
    assert any(leaks)


def test_without_causality_all_tokens_see_each_other() -> None:
    model, x = make(replace(SMALL, causal=False)), draw(1, 6, 8)
    y = x.clone()
    y[:, 5] = 0.0
    assert not torch.allclose(model(x).output[:, 0], model(y).output[:, 0])
    with pytest.raises(ValueError, match="only a causal transformer acts token by token"):
        model.init_state(1)


def test_rotary_positions_depend_on_distance_only() -> None:
    # The same window later in a sequence, the beginning being padding: equal to the bit up to the rounding of angles.
    model, x = make(replace(SMALL, positions="rotary", num_layers=1)), draw(1, 6, 8)
    attention = model.blocks[0].attention
    one, later = attention(x, None, torch.arange(6)), attention(x, None, torch.arange(6) + 40)
    torch.testing.assert_close(one, later, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, make(replace(SMALL, positions="none", num_layers=1)).blocks[0].attention(x))


def test_acting_goes_on_beyond_the_context_only_without_learned_positions() -> None:
    x = draw(1, 9, 8)
    learned, rotary = make(SMALL), make(replace(SMALL, positions="rotary", num_layers=1))
    state = learned.init_state(1)
    for t in range(6):
        _, state = learned.step(x[:, t : t + 1], state)
    with pytest.raises(ValueError, match="cannot go on beyond its context of 6 tokens"):
        learned.step(x[:, 6:7], state)
    state = rotary.init_state(1)
    for t in range(9):
        out, state = rotary.step(x[:, t : t + 1], state)
    # One layer sees just the last `context` tokens.
    torch.testing.assert_close(out, rotary(x[:, 3:]).output[:, -1:], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"inputs must have at most 6 positions \(context\), got 9"):
        rotary(x)


def test_features_change_only_when_asked() -> None:
    model, x = Transformer(CAUSAL["favor++"]).double(), 2.0 * draw(3, 6, 8)
    model.train()
    first = model(x).output
    assert torch.equal(model(x).output, first)
    model.update_features()
    assert not torch.allclose(model(x).output, first, rtol=1e-6)
    make(SMALL).update_features()  # nothing to do


def test_dropout_acts_in_training_only() -> None:
    model, x = Transformer(replace(SMALL, dropout=0.5)).double(), draw(2, 6, 8)
    assert not torch.equal(model(x).output, model(x).output)
    assert torch.equal(model.eval()(x).output, make(SMALL)(x).output)


def test_initial_spread_is_as_configured() -> None:
    config = TransformerConfig(width=128, num_layers=8, init_std=0.1)
    block = Transformer(config).blocks[0]
    assert block.mlp.expand.weight.std().item() == pytest.approx(0.1, rel=0.02)
    for layer in (block.mlp.contract, block.attention.out):
        assert layer.weight.std().item() == pytest.approx(0.1 / 4, rel=0.02)
    assert Transformer(config).position_embedding.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_autocast_keeps_state_and_output_finite() -> None:
    model, x = Transformer(replace(SMALL, positions="rotary")), draw(1, 6, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x).output
    torch.testing.assert_close(out.float(), model(x).output, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be > 0, got 0"),
        ({"num_layers": 0}, "num_layers must be > 0, got 0"),
        ({"num_heads": 3}, "num_heads must be a divisor of width, got 3 heads for width 8"),
        ({"hidden_width": 0}, "hidden_width must be > 0, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"moe": MoEConfig(every=3)}, r"moe.every must be in \[1, num_layers = 2\], got 3"),
        ({"num_heads": 8, "positions": "rotary"}, "width / num_heads must be even with rotary positions, got 8 / 8"),
        ({"gating": "gru", "norm": "post"}, "norm must be 'pre' with gating 'gru'"),
        ({"causal": False, "attention": LinearAttentionConfig(decay=0.5)}, "attention.decay must be None unless causal, got 0.5"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options)


def test_relu_and_gelu_differ() -> None:
    x = draw(1, 6, 8)
    relu = make(replace(SMALL, mlp=DenseMLPConfig("relu")))
    assert not torch.allclose(relu(x).output, make(SMALL)(x).output)
    hidden = relu.blocks[0].mlp.expand(x)
    assert torch.equal(relu.blocks[0].mlp(x), relu.blocks[0].mlp.contract(nn.functional.relu(hidden)))
