"""Mixture of experts: against one-hot einsums and plain loops, invariances, padding, precision, gradients and state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.nn.assignment import assign, combine, dispatch, route
from rlopt.nn.balance import load_loss
from rlopt.nn.experts import Experts
from rlopt.nn.moe import MoE
from rlopt.nn.routing import ExpertChoice, Router, TokenChoice, choose_experts, choose_tokens

ROUTERS: dict[str, Router] = {
    "top1": TokenChoice(top_k=1),
    "top2": TokenChoice(),
    "top3": TokenChoice(top_k=3),
    "top2 with capacity": TokenChoice(capacity_factor=1.0),
    "batch-prioritized": TokenChoice(top_k=2, capacity_factor=0.7, priority="batch_prioritized", renorm="after"),
    "expert choice": ExpertChoice(),
    "capped expert choice": ExpertChoice(cap=2),
}
# Coefficient of variation of V-MoE's load, sampled below with this many draws of noise.
NUM_DRAWS = 200_000
every_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS.keys())


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def decided(layer: MoE) -> MoE:
    """Give the router logits of usual size: with its initial weights, all experts are nearly equal."""
    with torch.no_grad():
        layer.router_weight.mul_(30.0)
    return layer


def make(router: Router, width: int = 6, experts: int = 4, **options: Any) -> MoE:
    return decided(MoE(width, 8, experts, router, **options)).double()


def expert_of(layer: MoE, i: int, x: Tensor) -> Tensor:
    experts = layer.experts
    hidden = x @ experts.w_in[i] + (0.0 if experts.b_in is None else experts.b_in[i])
    hidden = nn.functional.gelu(hidden) if experts.activation == "gelu" else hidden.relu()
    return hidden @ experts.w_out[i] + (0.0 if experts.b_out is None else experts.b_out[i])


def expert_choice_einsum(layer: MoE, x: Tensor) -> Tensor:
    """The formula of the paper, with one-hot matrices, for one group."""
    probs = (x @ layer.router_weight).softmax(-1)  # (n, e)
    choices = choose_tokens(probs[None], layer.router)  # type: ignore[arg-type]
    one_hot = nn.functional.one_hot(choices.token[0], len(x)).to(x.dtype) * choices.filled[0].unsqueeze(-1)  # P, (e, k, n)
    rows = torch.einsum("ekn,nd->ekd", one_hot, x)
    outs = torch.stack([expert_of(layer, i, rows[i]) for i in range(len(rows))])
    gates = torch.einsum("ekn,ne->ek", one_hot, probs)
    return torch.einsum("ekn,ek,ekd->nd", one_hot, gates, outs)


def token_choice_loop(layer: MoE, x: Tensor) -> Tensor:
    """All experts for all tokens, weighted by a dense matrix of gates, for one group."""
    logits = (x @ layer.router_weight)[None]
    choices = choose_experts(logits, logits.softmax(-1), layer.router)  # type: ignore[arg-type]
    gates = (nn.functional.one_hot(choices.expert[0], layer.num_experts) * choices.gate[0].unsqueeze(-1)).sum(1)  # (n, e)
    return sum(gates[:, i : i + 1] * expert_of(layer, i, x) for i in range(layer.num_experts))  # type: ignore[return-value]


def twin(layer: MoE, x: Tensor) -> Tensor:
    reference = expert_choice_einsum if isinstance(layer.router, ExpertChoice) else token_choice_loop
    return torch.stack([reference(layer, sample) for sample in x])


@every_router
@pytest.mark.parametrize("options", [{}, {"activation": "relu", "bias": True}], ids=["gelu", "relu with bias"])
def test_output_and_gradients_equal_one_hot_references(router: Router, options: dict[str, Any]) -> None:
    layer, x, weights = make(router, **options), randn(3, 10, 6).requires_grad_(), randn(3, 10, 6, seed=1)
    inputs = [x, *layer.parameters()]
    y, expected = layer(x).y, twin(layer, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    grads, expected_grads = (torch.autograd.grad((out * weights).sum(), inputs) for out in (y, expected))
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-12)


@every_router
def test_gradients_pass_a_numerical_check(router: Router) -> None:
    layer = make(router, width=4, experts=3)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        out = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return out.y, *out.aux_losses.values()

    inputs = (randn(2, 5, 4, seed=2).requires_grad_(), *(p.detach().clone().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@every_router
def test_output_does_not_depend_on_the_batch(router: Router) -> None:
    layer, x = decided(MoE(16, 32, 4, router)), randn(6, 9, 16, dtype=torch.float32)
    together = layer(x).y
    alone = torch.cat([layer(x[i : i + 1]).y for i in range(6)])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(x[order]).y, together[order], rtol=0, atol=1e-5)


@every_router
def test_output_does_not_depend_on_padding_or_its_contents(router: Router) -> None:
    layer, x = make(router), randn(2, 9, 6)
    valid = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    filled = x.clone()
    filled[1, 5:] = torch.nan
    out = layer(filled, valid)
    torch.testing.assert_close(out.y[:1], layer(x[:1]).y, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(out.y[1:, :5], layer(x[1:, :5]).y, rtol=1e-12, atol=1e-14)
    assert (out.y[1, 5:] == 0).all()
    out.y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@every_router
def test_a_batch_of_padding_gives_zeros(router: Router) -> None:
    layer = make(router)
    y, aux_losses, stats = layer(randn(2, 3, 6), torch.zeros(2, 3, dtype=torch.bool))
    (y.sum() + sum(aux_losses.values())).backward()
    assert (y == 0).all()
    assert stats.load.tolist() == [0] * 4
    assert stats.experts_per_token.sum() == 0
    assert all(torch.as_tensor(value).isfinite().all() for value in stats)
    assert all((p.grad == 0).all() for p in layer.parameters())


def test_choice_of_a_causal_router_is_the_same_token_by_token() -> None:
    layer, x = make(TokenChoice()), randn(2, 7, 6)
    steps = torch.cat([layer(x[:, t : t + 1]).y for t in range(7)], dim=1)
    torch.testing.assert_close(layer(x).y, steps, rtol=1e-12, atol=1e-14)
    assert layer.causal_safe


@pytest.mark.parametrize("router", [ExpertChoice(capacity_factor=1.0), TokenChoice(capacity_factor=0.5)], ids=["experts", "tokens"])
def test_routers_that_are_not_causal_let_later_tokens_change_earlier_outputs(router: Router) -> None:
    layer, x = make(router), randn(1, 8, 6)
    leaks = []
    for seed in range(10):
        changed = x.clone()
        changed[:, -1] = randn(6, seed=seed)
        leaks.append(not torch.allclose(layer(changed).y[:, :-1], layer(x).y[:, :-1]))
    assert not layer.causal_safe
    assert any(leaks)


@every_router
def test_output_alone_is_that_of_the_whole_layer(router: Router) -> None:
    has_groups = isinstance(router, ExpertChoice) or router.capacity_factor is not None
    layer, x = make(router, group="batch" if has_groups else "sample"), randn(3, 9, 6)
    valid = torch.arange(9) < torch.tensor([[9], [5], [0]])
    for mask in (None, valid):
        assert torch.equal(layer.output(x, mask), layer(x, mask).y)
    logits = randn(2, 9, 4)
    one, other = assign(logits, router), route(logits, router).assignment
    assert torch.equal(one.token, other.token)
    assert one.sizes == other.sizes


def test_output_alone_computes_no_losses_and_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("computed")

    for name in ("balance_loss", "router_z_loss", "router_stats"):
        monkeypatch.setattr(f"rlopt.nn.assignment.{name}", refuse)
    layer, x = make(TokenChoice()), randn(2, 1, 6)
    assert layer.output(x).shape == x.shape
    with pytest.raises(AssertionError, match="computed"):
        layer(x)


@pytest.mark.parametrize("name", [name for name, router in ROUTERS.items() if isinstance(router, TokenChoice)])
@pytest.mark.parametrize("options", [{}, {"bias": True, "activation": "relu"}])
def test_output_of_one_token_is_that_of_the_whole_layer_without_sorting(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = randn(1, 1, 6)
    results = []
    for how in ("forward", "output"):
        layer = make(ROUTERS[name], **options).eval()
        if how == "output":
            monkeypatch.setattr("rlopt.nn.moe.assign", None)  # would fail
        y = layer.output(x) if how == "output" else layer(x).y
        y.sum().backward()
        results.append([y, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_output_of_one_token_keeps_its_dtype_under_autocast() -> None:
    layer, x = make(TokenChoice()).float().eval(), randn(1, 1, 6, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.output(x), layer(x).y)
        assert layer.output(x).dtype == torch.float32


def test_one_token_draws_in_training_mode_as_the_whole_layer_does() -> None:
    one, other = (make(TokenChoice(second_policy="random", jitter=0.2, noise_std=0.5)) for _ in range(2))
    for seed in range(5):
        x = randn(1, 1, 6, seed=seed)
        assert torch.equal(one.output(x), other(x).y)


def test_random_output_alone_draws_as_the_whole_layer_does() -> None:
    one, other = (make(TokenChoice(second_policy="random", jitter=0.2, noise_std=0.5)) for _ in range(2))
    x = randn(1, 30, 6)
    assert torch.equal(one.output(x), other(x).y)
    assert torch.equal(one.output(x), other(x).y)


def test_batch_groups_share_the_room_and_equal_one_long_sample() -> None:
    for router in (ExpertChoice(), TokenChoice(capacity_factor=0.8)):
        layer, x = make(router, group="batch"), randn(3, 5, 6)
        torch.testing.assert_close(layer(x).y.view(1, 15, 6), layer(x.view(1, 15, 6)).y)
        assert not torch.allclose(layer(x).y[:1], layer(x[:1]).y)


# Expert choice.


@pytest.mark.parametrize("constant", [False, True])
def test_loads_are_equal_for_all_inputs(constant: bool) -> None:
    x = torch.ones(2, 10, 6, dtype=torch.float64) if constant else randn(2, 10, 6)
    stats = make(ExpertChoice(capacity_factor=1.5))(x).stats
    assert stats.capacity == 4  # ceil(1.5 * 10 / 4)
    assert stats.load.tolist() == [8] * 4
    counts = stats.experts_per_token
    assert counts.sum() == 20
    assert (counts * torch.arange(5)).sum() == 32
    assert stats.actual_factor.item() == pytest.approx(4 * 4 / 10)
    assert stats.dropped_fraction.item() == pytest.approx(counts[0].item() / 20)


def identical(layer: MoE) -> MoE:
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    return layer


@pytest.mark.parametrize("factor", [4.0, 1.0])
def test_identical_experts_give_the_dense_mlp_times_the_chosen_probability(factor: float) -> None:
    layer, x = identical(make(ExpertChoice(capacity_factor=factor))), randn(1, 8, 6)
    probs = (x @ layer.router_weight).softmax(-1)
    token = choose_tokens(probs, ExpertChoice(capacity_factor=factor)).token[0]
    total = sum((token[i] == torch.arange(8).unsqueeze(-1)).any(-1) * probs[0, :, i] for i in range(4))
    assert isinstance(total, Tensor)
    if factor == 4.0:
        torch.testing.assert_close(total, torch.ones(8, dtype=torch.float64))
    torch.testing.assert_close(layer(x).y[0], total.unsqueeze(-1) * expert_of(layer, 0, x[0]))


def test_permuted_tokens_give_permuted_outputs() -> None:
    layer, x = make(ExpertChoice()), randn(1, 9, 6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x[:, order]).y, layer(x).y[:, order], rtol=1e-12, atol=1e-14)


def test_a_token_that_no_expert_takes_gets_zero_and_no_gradient_through_experts() -> None:
    layer, x = make(ExpertChoice(capacity_factor=0.5)), randn(1, 12, 6).requires_grad_()
    with torch.no_grad():
        layer.router_weight[:, 1:] = layer.router_weight[:, :1]  # all experts want the same tokens
        layer.router_weight += 0.01 * randn(6, 4, seed=5)
    out = layer(x)
    left_out = out.y[0].detach().abs().sum(-1) == 0
    assert left_out.sum() == out.stats.experts_per_token[0] > 0
    (grad,) = torch.autograd.grad(out.y.square().sum(), x)
    assert (grad[0, left_out] == 0).all()
    assert (grad[0, ~left_out] != 0).any(-1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_routes_as_float32_does_with_the_same_values(dtype: torch.dtype) -> None:
    x = randn(1, 64, 16, dtype=dtype)
    half = decided(MoE(16, 8, 4, ExpertChoice())).to(dtype)
    wide = copy.deepcopy(half).float()
    one, other = (route(layer._logits(values), layer.router) for layer, values in ((half, x), (wide, x.float())))
    assert torch.equal(one.assignment.token, other.assignment.token)
    assert torch.equal(one.assignment.gate, other.assignment.gate)
    out = half(x)
    assert out.y.dtype == dtype
    assert out.aux_losses["router_z"].dtype == torch.float32


# Precision, dispatch, randomness, state.


@every_router
def test_autocast_routes_in_float32_and_returns_the_dtype_of_the_input(router: Router) -> None:
    layer, x = decided(MoE(16, 32, 4, router)), randn(2, 12, 16, dtype=torch.float32).requires_grad_()
    plain = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    assert out.y.dtype == torch.float32
    assert torch.equal(out.stats.load, plain.stats.load)
    for name, loss in out.aux_losses.items():
        assert torch.equal(loss, plain.aux_losses[name])
    torch.testing.assert_close(out.y, plain.y, rtol=0.05, atol=0.02)
    assert not torch.equal(out.y, plain.y)
    out.y.sum().backward()
    assert all(p.grad.isfinite().all() for p in (x, *layer.parameters()) if p.grad is not None)


def test_row_counts_of_expert_choice_depend_on_shapes_only() -> None:
    sizes = {tuple(route(randn(3, 10, 4, seed=seed), ExpertChoice(cap=3)).assignment.sizes) for seed in range(5)}
    assert sizes == {(15, 15, 15, 15)}


def test_rows_are_sorted_by_expert_and_can_leave_the_process_between_dispatch_and_combine() -> None:
    layer, x = make(TokenChoice()), randn(1, 10, 6)
    logits = layer._logits(x)
    assignment = route(logits, layer.router).assignment
    rows = dispatch(x[0], assignment).split(assignment.sizes)
    outs = torch.cat([expert_of(layer, i, rows[i]) for i in range(4)])
    torch.testing.assert_close(combine(outs, assignment, 10), layer(x).y[0])


def test_experts_without_rows_have_gradients_of_zeros() -> None:
    experts = Experts(3, 4, 5, bias=True, generator=torch.Generator().manual_seed(0))
    experts(torch.ones(4, 4), [3, 0, 1]).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[1] == 0).all()
        assert (parameter.grad[0] != 0).any()


def test_equal_sizes_in_one_product_equal_one_product_per_expert() -> None:
    experts = Experts(3, 4, 5, bias=True, generator=torch.Generator().manual_seed(0)).double()
    rows = randn(6, 4)
    one_by_one = [experts(rows[2 * i : 2 * i + 2], [2 * (i == j) for j in range(3)]) for i in range(3)]
    torch.testing.assert_close(experts(rows, [2, 2, 2]), torch.cat(one_by_one))


def test_losses_have_gradients_for_the_router_and_are_not_in_the_output() -> None:
    layer, x = make(TokenChoice()), randn(2, 8, 6)
    y, aux_losses, _ = layer(x)
    assert sorted(aux_losses) == ["balance", "router_z"]
    for loss in aux_losses.values():
        (grad,) = torch.autograd.grad(loss, layer.router_weight, retain_graph=True)
        assert grad.abs().sum() > 0
    torch.testing.assert_close(y, twin(layer, x))
    assert list(make(ExpertChoice())(x).aux_losses) == ["router_z"]


def test_balance_losses_differ_by_what_they_count() -> None:
    x = torch.zeros(1, 12, 6, dtype=torch.float64)  # uniform probabilities; ties go to experts 0 and 1
    values = {}
    for kind in ("first_choice", "all_choices", "importance"):
        router = TokenChoice(balance_loss=kind)  # type: ignore[arg-type]
        values[kind] = make(router)(x).aux_losses["balance"].item()
    assert values == pytest.approx({"first_choice": 1.0, "all_choices": 2.0, "importance": 0.0})


def test_load_loss_is_the_variation_of_sampled_probabilities() -> None:
    logits, noise, generator = randn(3, 4), 0.3 * randn(3, 4, seed=1), torch.Generator().manual_seed(2)
    threshold = (logits + noise).sort(descending=True).values[:, 1:2]
    again = logits + 0.3 * torch.randn(NUM_DRAWS, 3, 4, generator=generator, dtype=torch.float64)
    load = (again >= threshold).double().mean(0).mean(0)
    sampled = load.std(correction=0) ** 2 / load.mean() ** 2
    assert load_loss(logits, logits + noise, 2, 0.3).item() == pytest.approx(sampled.item(), rel=0.02)
    valid = torch.tensor([True, False, True])
    assert load_loss(logits, logits + noise, 2, 0.3, valid) == load_loss(logits[[0, 2]], (logits + noise)[[0, 2]], 2, 0.3)
    nothing = load_loss(logits.requires_grad_(), logits, 2, 0.3, torch.zeros(3, dtype=torch.bool))
    assert nothing == 0
    (grad,) = torch.autograd.grad(nothing, logits)
    assert (grad == 0).all()


def test_load_loss_of_equal_and_of_collapsed_loads() -> None:
    equal = torch.zeros(5, 4, dtype=torch.float64)
    assert load_loss(equal, equal, 1, 0.25).item() == pytest.approx(0.0)
    collapsed = equal.clone()
    collapsed[:, 2] = 10.0
    assert load_loss(collapsed, collapsed, 1, 0.25).item() == pytest.approx(3.0)  # e - 1
    assert torch.autograd.gradcheck(lambda x: load_loss(x, x + 0.1, 2, 0.25), randn(5, 4).requires_grad_())


def test_noise_decides_in_training_only_and_the_load_loss_knows_it() -> None:
    router = TokenChoice(noise_std=0.5, balance_loss="load")
    layer, x = make(router), randn(2, 20, 6)
    logits = (x @ layer.router_weight).flatten(0, 1)
    state = layer.noise.generator.get_state()  # type: ignore[union-attr]
    y, aux_losses, stats = layer(x)
    noise = 0.5 * torch.randn(2, 20, 4, generator=torch.Generator().set_state(state)).double().flatten(0, 1)
    torch.testing.assert_close(aux_losses["balance"], load_loss(logits, logits + noise, 2, 0.5))
    first_two = (logits + noise).sort(descending=True).indices[:, :2]
    assert stats.load.tolist() == torch.bincount(first_two.flatten(), minlength=4).tolist()
    torch.testing.assert_close(stats.importance, logits.softmax(-1).mean(0))  # without noise
    out = layer.eval()(x)
    torch.testing.assert_close(out.aux_losses["balance"], load_loss(logits, logits, 2, 0.5))
    torch.testing.assert_close(out.y, twin(layer, x))
    assert not torch.allclose(out.y, y)


@every_router
def test_layers_run_where_algorithms_must_be_deterministic(router: Router) -> None:
    layer, x = make(router), randn(2, 9, 6).requires_grad_()
    expected = layer(x).y
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        y, aux_losses, _ = layer(x)
        (y.sum() + sum(aux_losses.values())).backward()
    finally:
        torch.use_deterministic_algorithms(before)
    torch.testing.assert_close(y, expected)


def test_statistics_of_dropped_choices() -> None:
    layer = make(TokenChoice(top_k=1, capacity_factor=1.0), experts=3)
    x = torch.ones(1, 3, 6, dtype=torch.float64)
    stats = layer(x).stats  # three tokens for one expert that has room for one
    assert stats.capacity == 1
    assert stats.dropped_fraction.item() == pytest.approx(2 / 3)
    assert stats.load.sum() == 1
    assert stats.experts_per_token.tolist() == [2, 1]
    probs = (x[0] @ layer.router_weight).softmax(-1)
    torch.testing.assert_close(stats.importance, probs.mean(0))
    torch.testing.assert_close(stats.router_entropy, torch.distributions.Categorical(probs).entropy().mean())
    torch.testing.assert_close(stats.max_prob_mean, probs.amax(-1).mean())
    assert not any(value.requires_grad for value in stats if isinstance(value, Tensor))


@pytest.mark.parametrize(
    "options", [{"jitter": 0.3}, {"noise_std": 0.3}, {"second_policy": "random"}, {"second_policy": "sampling"}]
)
def test_randomness_acts_in_training_only_and_belongs_to_the_state(options: dict[str, Any]) -> None:
    layer, x = make(TokenChoice(**options)), randn(1, 30, 6)
    before = torch.random.get_rng_state()
    restored = make(TokenChoice(**options), seed=9)
    restored.load_state_dict(layer.state_dict())
    first, second = layer(x).y, layer(x).y
    assert not torch.equal(first, second)
    assert torch.equal(restored(x).y, first)
    assert torch.equal(copy.deepcopy(restored)(x).y, second)
    plain = make(TokenChoice())
    plain.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(layer.eval()(x).y, plain(x).y, rtol=0, atol=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_deterministic_layers_are_the_same_in_both_modes_and_have_only_tensors_in_their_state() -> None:
    layer, x = make(TokenChoice()), randn(2, 5, 6)
    assert torch.equal(layer.train()(x).y, layer.eval()(x).y)
    assert sorted(layer.state_dict()) == ["experts.w_in", "experts.w_out", "router_weight"]


def test_weights_come_from_the_seed_and_are_no_linear_modules() -> None:
    one, same, other = (MoE(6, 8, 4, TokenChoice(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.experts.w_in, same.experts.w_in)
    assert torch.equal(one.router_weight, same.router_weight)
    assert not torch.equal(one.experts.w_in, other.experts.w_in)
    assert not any(isinstance(module, nn.Linear) for module in one.modules())
    assert one.experts.w_in.shape == (4, 6, 8)
    assert one.experts.w_in.abs().max() <= 6**-0.5
    assert MoE(400, 1, 50, TokenChoice()).router_weight.std().item() == pytest.approx(0.02, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        ((6, 8, 4, TokenChoice(top_k=5)), {}, "top_k must be at most num_experts"),
        ((6, 8, 4, ExpertChoice(capacity_factor=5.0)), {}, "capacity_factor must be at most num_experts"),
        ((6, 8, 4, TokenChoice()), {"group": "batch"}, "group 'batch' has no effect"),
        ((6, 8, 4, ExpertChoice()), {"group": "world"}, "group must be"),
        ((6, 0, 4, TokenChoice()), {}, "hidden_width must be >= 1"),
        ((6, 8, 4, TokenChoice()), {"activation": "tanh"}, "activation must be"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MoE(*arguments, **options)


def test_wrong_shapes_are_named() -> None:
    layer = make(TokenChoice())
    with pytest.raises(ValueError, match="x must have shape"):
        layer(randn(5, 6))
    with pytest.raises(ValueError, match="valid must be bool"):
        layer(randn(2, 5, 6), torch.ones(2, 5))
