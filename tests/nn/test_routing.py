"""Routers against one-hot twins and hand-made cases; losses against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rlopt.nn.balance import balance_loss, importance_loss, router_z_loss
from rlopt.nn.routing import (
    ExpertChoice,
    TokenChoice,
    TokensChoices,
    choose_experts,
    choose_tokens,
    expert_capacity,
    queue_positions,
)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randint(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def choose(logits: Tensor, router: TokenChoice, valid: Tensor | None = None, **options: Any) -> TokensChoices:
    return choose_experts(logits, logits.softmax(-1), router, valid, **options)


# Capacities.


@pytest.mark.parametrize(
    ("tokens", "experts", "factor", "least", "expected"),
    [
        (64, 8, 2.0, 1, 16),
        (10, 8, 2.0, 1, 3),
        (1, 8, 2.0, 1, 1),
        (10, 11, 1.1, 1, 1),
        (3, 4, 4.0, 1, 3),
        (20, 8, 1.0, 4, 4),
        (2, 8, 1.0, 4, 2),
    ],
)
def test_capacity_is_rounded_up_and_bounded(tokens: int, experts: int, factor: float, least: int, expected: int) -> None:
    assert expert_capacity(tokens, experts, factor, least) == expected
    assert expert_capacity(torch.tensor([tokens]), experts, factor, least).tolist() == [expected]


def test_group_without_tokens_has_no_capacity() -> None:
    assert expert_capacity(torch.tensor([0]), 8, 2.0).tolist() == [0]


# Experts choose.


def test_experts_choose_as_plain_loops_do() -> None:
    probs = randn(3, 10, 4).softmax(-1)
    token, gate, filled = choose_tokens(probs, ExpertChoice(capacity_factor=1.5))
    assert token.shape == (3, 4, 4)  # ceil(1.5 * 10 / 4)
    assert filled.all()
    for g in range(3):
        for i in range(4):
            best = sorted(range(10), key=lambda t: -probs[g, t, i].item())[:4]
            assert token[g, i].tolist() == best
            assert gate[g, i].tolist() == [probs[g, t, i].item() for t in best]


def test_every_expert_is_full_and_ties_go_to_the_lower_index() -> None:
    token, _, filled = choose_tokens(torch.full((2, 9, 3), 1 / 3), ExpertChoice(capacity_factor=2.0))
    assert filled.all()
    assert (token == torch.arange(6)).all()


def test_padding_is_never_chosen_and_does_not_change_the_choice() -> None:
    probs = randn(1, 12, 4).softmax(-1)
    valid = torch.tensor([[True] * 7 + [False] * 5])
    router = ExpertChoice(capacity_factor=2.0)
    token, gate, filled = choose_tokens(probs, router, valid)
    alone = choose_tokens(probs[:, :7], router)
    assert alone.token.shape[-1] == 4  # ceil(2 * 7 / 4); with padding, 6 slots of which 4 are filled
    assert (filled.sum(-1) == 4).all()
    assert torch.equal(token[..., :4], alone.token)
    assert torch.equal(gate, torch.cat([alone.gate, torch.zeros(1, 4, 2)], dim=-1))


def test_cap_limits_experts_per_token_and_a_cap_of_all_experts_changes_nothing() -> None:
    probs = (3.0 * randn(2, 16, 1) + randn(2, 16, 4, seed=1)).softmax(-1)
    plain = choose_tokens(probs, ExpertChoice(capacity_factor=2.0))
    capped = choose_tokens(probs, ExpertChoice(capacity_factor=2.0, cap=2))
    counts = torch.zeros(2, 16, dtype=torch.long).scatter_add_(1, capped.token.flatten(1), capped.filled.flatten(1).long())
    assert counts.max() == 2
    assert torch.equal(choose_tokens(probs, ExpertChoice(capacity_factor=2.0, cap=4)).token, plain.token)


# Tokens choose.


def test_top_two_gates_are_the_two_largest_probabilities_divided_by_their_sum() -> None:
    logits = randn(2, 6, 5)
    expert, gate, wanted, kept = choose(logits, TokenChoice())
    values, indices = logits.softmax(-1).topk(2)
    assert torch.equal(expert, indices)
    torch.testing.assert_close(gate, values / values.sum(-1, keepdim=True), rtol=1e-8, atol=0)
    torch.testing.assert_close(gate.sum(-1), torch.ones(2, 6, dtype=torch.float64), rtol=1e-8, atol=0)
    assert wanted.all()
    assert kept.all()


def test_switch_gate_is_the_raw_probability() -> None:
    logits = randn(1, 6, 5)
    assert torch.equal(choose(logits, TokenChoice(top_k=1)).gate[..., 0], logits.softmax(-1).amax(-1))


def one_hot_positions(expert: Tensor, wanted: Tensor, num_experts: int) -> Tensor:
    k = expert.shape[2]
    masks = torch.nn.functional.one_hot(expert, num_experts) * wanted.unsqueeze(-1)  # (g, n, k, e)
    queue = torch.cat([masks[:, :, c] for c in range(k)], dim=1)  # (g, k * n, e)
    before = (queue.cumsum(1) - queue).chunk(k, dim=1)
    return torch.stack([(before[c] * masks[:, :, c]).sum(-1) for c in range(k)], dim=2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_queue_positions_equal_one_hot_running_sums(k: int) -> None:
    expert = randn(3, 20, 5, seed=k).topk(k).indices
    wanted = randint(4, 3, 20, k) > 0
    expected = one_hot_positions(expert, wanted, 5)
    assert torch.equal(queue_positions(expert, wanted, 5)[wanted], expected[wanted])
    first = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    index = first.unsqueeze(-1).expand_as(expert)
    reordered = one_hot_positions(expert.gather(1, index), wanted.gather(1, index), 5)
    expected = torch.empty_like(expected).scatter_(1, index, reordered)
    assert torch.equal(queue_positions(expert, wanted, 5, first)[wanted], expected[wanted])


def test_only_the_first_of_three_tokens_fits_or_the_most_confident_with_priority() -> None:
    logits = torch.tensor([[[2.0, 0.0, 0.0], [5.0, 0.0, 0.0], [3.0, 0.0, 0.0]]])
    by_order = choose(logits, TokenChoice(top_k=1, capacity_factor=1.0))
    assert by_order.kept.flatten().tolist() == [True, False, False]
    assert by_order.gate.flatten()[1:].tolist() == [0.0, 0.0]
    by_confidence = choose(logits, TokenChoice(top_k=1, capacity_factor=1.0, priority="batch_prioritized"))
    assert by_confidence.kept.flatten().tolist() == [False, True, False]


def test_a_first_choice_beats_the_second_choice_of_an_earlier_token() -> None:
    # Room for one token each. Token 0 wants 0, then 1; token 5 wants 1 first.
    logits = torch.zeros(1, 6, 6) - 9.0
    for token, (best, second) in enumerate([(0, 1), (2, 3), (3, 4), (4, 5), (5, 2), (1, 0)]):
        logits[0, token, best], logits[0, token, second] = 2.0, 1.0
    kept = choose(logits, TokenChoice(capacity_factor=1.0)).kept
    assert kept[0, 5].tolist() == [True, False]
    assert kept[0, 0].tolist() == [True, False]


def test_renormalisation_before_loses_weight_of_dropped_choices_and_after_does_not() -> None:
    logits = torch.zeros(1, 4, 4, dtype=torch.float64)
    logits[..., 0], logits[..., 1] = 2.0, 1.0  # everybody wants 0, then 1; room for two
    ratio = 1.0 / (1.0 + torch.tensor(-1.0, dtype=torch.float64).exp())
    sums = {}
    for renorm in ("before", "after", "none"):
        router = TokenChoice(capacity_factor=2.0, renorm=renorm)
        logits[0, 3] = torch.tensor([0.0, 1.0, 2.0, 0.0])  # wants 2, then 1, where there is no room left
        sums[renorm] = choose(logits, router).gate.sum(-1)[0, 3].item()
    assert sums["before"] == pytest.approx(ratio.item(), rel=1e-7)
    assert sums["after"] == pytest.approx(1.0, rel=1e-7)
    assert sums["none"] == pytest.approx(logits[0, 3].softmax(-1)[2].item(), rel=1e-12)


def test_invalid_tokens_take_no_room_and_do_not_count_for_it() -> None:
    logits = torch.zeros(1, 6, 2)
    logits[..., 0] = 1.0
    valid = torch.tensor([[False, False, True, True, True, True]])
    choices = choose(logits, TokenChoice(top_k=1, capacity_factor=1.0), valid)
    assert choices.kept.flatten().tolist() == [False, False, True, True, False, False]  # ceil(4 / 2), not 6 / 2
    assert choices.wanted.flatten().tolist() == valid.flatten().tolist()


def test_evaluation_has_its_own_capacity() -> None:
    logits = torch.zeros(1, 8, 2)
    logits[..., 0] = 1.0
    router = TokenChoice(top_k=1, capacity_factor=0.5, eval_capacity_factor=1.5)
    assert choose(logits, router, training=True).kept.sum() == 2
    assert choose(logits, router).kept.sum() == 6


def test_random_policy_keeps_the_second_expert_as_often_as_said() -> None:
    logits = 2.0 * randn(1, 20_000, 4)
    router = TokenChoice(second_policy="random")
    everything = choose(logits, TokenChoice())
    choices = choose(logits, router, training=True, generator=torch.Generator().manual_seed(0))
    probability = (2.0 * everything.gate[..., 1]).clamp_max(1.0)
    deviation = (probability * (1.0 - probability)).sum().sqrt() / 20_000
    assert (choices.kept[..., 1].double().mean() - probability.mean()).abs() < 4 * deviation
    # It is the weak second experts that go.
    assert everything.gate[..., 1][choices.kept[..., 1]].mean() > everything.gate[..., 1].mean() + 0.02
    assert (choices.gate[..., 1] == 0).equal(~choices.kept[..., 1])
    assert torch.equal(choices.gate[..., 0], everything.gate[..., 0])


def test_sampling_policy_draws_the_second_expert_from_the_others() -> None:
    logits = torch.tensor([3.0, 1.0, 0.0, -1.0], dtype=torch.float64).expand(1, 20_000, 4)
    router = TokenChoice(second_policy="sampling")
    expert = choose(logits, router, training=True, generator=torch.Generator().manual_seed(0)).expert
    assert (expert[..., 0] == 0).all()
    share = torch.bincount(expert[..., 1].flatten(), minlength=4) / 20_000
    expected = torch.tensor([0.0, *logits[0, 0, 1:].softmax(-1).tolist()])
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / 20_000).sqrt()).all()


@pytest.mark.parametrize("policy", ["random", "sampling"])
def test_random_policies_rest_outside_training(policy: Any) -> None:
    logits = randn(1, 50, 4)
    for one, other in zip(choose(logits, TokenChoice(second_policy=policy)), choose(logits, TokenChoice()), strict=True):
        assert torch.equal(one, other)


def test_only_choices_that_ignore_other_tokens_are_safe_in_causal_models() -> None:
    assert TokenChoice().causal_safe
    assert not TokenChoice(top_k=1, capacity_factor=2.0).causal_safe
    assert not ExpertChoice().causal_safe


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        (ExpertChoice, {"capacity_factor": 0.0}, "capacity_factor"),
        (ExpertChoice, {"min_capacity": 0}, "min_capacity"),
        (ExpertChoice, {"capacity_factor": 3.0, "cap": 2}, "cap must be"),
        (TokenChoice, {"top_k": 0}, "top_k"),
        (TokenChoice, {"capacity_factor": -1.0}, "capacity_factor"),
        (TokenChoice, {"jitter": 1.0}, "jitter"),
        (TokenChoice, {"noise_std": -0.1}, "noise_std must be >= 0"),
        (TokenChoice, {"balance_loss": "load"}, "noise_std must be > 0 with balance_loss 'load'"),
        (TokenChoice, {"renorm": "sometimes"}, "renorm"),
        (TokenChoice, {"top_k": 1, "renorm": "before"}, "renorm"),
        (TokenChoice, {"top_k": 3, "second_policy": "random"}, "second_policy"),
        (TokenChoice, {"priority": "batch_prioritized"}, "need a capacity_factor"),
        (TokenChoice, {"eval_capacity_factor": 2.0}, "need a capacity_factor"),
    ],
)
def test_wrong_options_are_named(kind: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kind(**options)


# Losses.


def test_balance_loss_of_uniform_probabilities_and_balanced_choices_is_one_or_k() -> None:
    probs = torch.full((12, 4), 0.25, dtype=torch.float64)
    first = torch.arange(12).remainder(4).unsqueeze(-1)
    assert balance_loss(probs, first).item() == pytest.approx(1.0)
    assert balance_loss(probs, torch.cat([first, (first + 1) % 4], dim=-1)).item() == pytest.approx(2.0)


def test_balance_loss_of_a_collapsed_router_is_the_number_of_experts() -> None:
    probs = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]).expand(7, 5)
    assert balance_loss(probs, torch.zeros(7, 1, dtype=torch.long)).item() == pytest.approx(5.0)


def test_balance_loss_can_be_below_one() -> None:
    probs = torch.tensor([[0.51, 0.49]] * 6 + [[0.01, 0.99]] * 4, dtype=torch.float64)
    assert balance_loss(probs, probs.argmax(-1, keepdim=True)).item() == pytest.approx(0.924)


def test_gradient_of_the_balance_loss_treats_the_counts_as_constants() -> None:
    logits = randn(9, 4).requires_grad_()
    probs = logits.softmax(-1)
    choices = probs.argmax(-1, keepdim=True)
    (grad,) = torch.autograd.grad(balance_loss(probs, choices), logits)
    f = torch.bincount(choices.flatten(), minlength=4).double() / 9
    p = logits.detach().softmax(-1)
    expected = 4 / 9 * p * (f - (p * f).sum(-1, keepdim=True))  # softmax Jacobian by hand
    torch.testing.assert_close(grad, expected, rtol=1e-10, atol=1e-14)


def test_importance_loss_is_the_squared_coefficient_of_variation() -> None:
    probs = randn(9, 4).softmax(-1)
    total = probs.sum(0).numpy()
    assert importance_loss(probs).item() == pytest.approx((total.std() / total.mean()) ** 2)


def test_z_loss_equals_the_golden_value_and_its_gradient_the_formula() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    loss = router_z_loss(logits)
    assert loss.item() == pytest.approx(10.8185483, abs=5e-8)
    (grad,) = torch.autograd.grad(loss, logits)
    lse = logits.detach().exp().sum(-1, keepdim=True).log()
    torch.testing.assert_close(grad, 2 / 2 * lse * logits.detach().softmax(-1), rtol=1e-12, atol=0)


def test_losses_ignore_padding_and_are_zero_without_tokens() -> None:
    logits = randn(10, 4)
    valid = randint(2, 10, seed=3).bool()
    probs, nothing = logits.softmax(-1), torch.zeros(10, dtype=torch.bool)
    choices = probs.topk(2).indices
    torch.testing.assert_close(balance_loss(probs, choices, valid), balance_loss(probs[valid], choices[valid]))
    torch.testing.assert_close(importance_loss(probs, valid), importance_loss(probs[valid]))
    torch.testing.assert_close(router_z_loss(logits, valid), router_z_loss(logits[valid]))
    for loss in (balance_loss(probs, choices, nothing), importance_loss(probs, nothing), router_z_loss(logits, nothing)):
        assert loss.item() == 0.0
