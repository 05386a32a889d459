"""Capped expert choice: against linear programming, plain loops, and the conditions of its optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from rlopt.nn.capped_choice import capped_choice, dual_ascent, greedy_choice


def softmax_scores(groups: int, experts: int, tokens: int, *, seed: int = 0, spread: float = 1.0) -> Tensor:
    logits = torch.randn(groups, experts, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (spread * logits).softmax(dim=1)


def best_total(scores: Tensor, capacity: int, cap: int) -> float:
    experts, tokens = scores.shape
    rows = np.kron(np.eye(experts), np.ones(tokens))
    columns = np.kron(np.ones(experts), np.eye(tokens))
    solution = linprog(-scores.flatten().numpy(), columns, np.full(tokens, cap), rows, np.full(experts, capacity), bounds=(0, 1))
    assert solution.status == 0
    return -float(solution.fun)


def sequential_choice(scores: Tensor, capacity: int, cap: int) -> Tensor:
    experts, tokens = scores.shape
    accepted = torch.zeros(experts, tokens, dtype=torch.bool)
    pairs = sorted((-scores[i, j].item(), i, j) for i in range(experts) for j in range(tokens))
    for score, i, j in pairs:
        if score < float("inf") and accepted[i].sum() < capacity and accepted[:, j].sum() < cap:
            accepted[i, j] = True
    return accepted


@pytest.mark.parametrize("cap", [3, 2])
def test_choice_keeps_the_cap_and_is_nearly_as_good_as_linear_programming(cap: int) -> None:
    scores = softmax_scores(20, 8, 64)
    chosen = capped_choice(scores, torch.full((20,), 16), cap)
    assert (chosen.sum(dim=1) <= cap).all()
    assert (chosen.sum(dim=2) <= 16).all()
    unfilled = 8 * 16 - chosen.sum(dim=(1, 2))
    assert unfilled.max() <= (0 if cap == 3 else 1)
    totals = (scores * chosen).sum(dim=(1, 2)).tolist()
    for group in range(20):
        assert totals[group] >= 0.99 * best_total(scores[group], 16, cap)


def test_choice_beats_greed_where_greed_is_costly() -> None:
    # The best pair is (0, 0), but then expert 1 is left with next to nothing.
    scores = torch.tensor([[[0.60, 0.55, 0.0], [0.40, 0.05, 0.01]]], dtype=torch.float64)
    one = torch.tensor([1])
    assert capped_choice(scores, one, 1)[0].int().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert greedy_choice(scores, one, 1)[0].int().tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_cap_that_does_not_bind_leaves_the_best_tokens_of_each_expert() -> None:
    scores = softmax_scores(5, 4, 12)
    chosen = capped_choice(scores, torch.full((5,), 6), 4)
    best = torch.zeros_like(chosen).scatter_(2, scores.topk(6, dim=2).indices, torch.ones_like(chosen[..., :6]))
    assert torch.equal(chosen, best)


def test_groups_are_solved_by_themselves() -> None:
    scores = torch.cat([softmax_scores(3, 4, 10, spread=0.3), softmax_scores(3, 4, 10, seed=1, spread=3.0)])
    together = capped_choice(scores, torch.full((6,), 5), 2)
    alone = torch.cat([capped_choice(scores[i : i + 1], torch.tensor([5]), 2) for i in range(6)])
    assert torch.equal(together, alone)


def test_padding_changes_nothing() -> None:
    scores = softmax_scores(4, 4, 10)
    padded = torch.cat([scores, torch.full((4, 4, 3), 0.9, dtype=torch.float64)], dim=2)
    valid = (torch.arange(13) < 10).expand(4, 13)
    chosen = capped_choice(padded, torch.full((4,), 5), 2, valid)
    assert torch.equal(chosen[..., :10], capped_choice(scores, torch.full((4,), 5), 2))
    assert not chosen[..., 10:].any()


def test_one_token_gets_its_best_experts_when_rounding_asks_for_more_than_there_is_room() -> None:
    scores = torch.tensor([[[0.1], [0.4], [0.2], [0.3]]], dtype=torch.float64)
    assert capped_choice(scores, torch.tensor([1]), 2).flatten().tolist() == [False, True, False, True]


def test_dual_ascent_reaches_the_constraints_and_the_form_of_the_optimum() -> None:
    scores = softmax_scores(3, 4, 12)
    plan, reduced = dual_ascent(scores, torch.full((3,), 6), 2, temperatures=(0.3, 0.1), num_sweeps=2000)
    torch.testing.assert_close(plan.sum(dim=2), torch.full((3, 4), 6.0, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (plan.sum(dim=1) <= 2 + 1e-6).all()
    assert (plan <= 1 + 1e-9).all()
    # Stationarity: log A = (S + u + v + w) / t, with w only where A = 1; prices of tokens only where the cap binds.
    inside = plan < 1 - 1e-6
    torch.testing.assert_close(plan[inside].log() * 0.1, reduced[inside], atol=1e-6, rtol=0)
    prices = reduced - scores
    token_price = (prices - prices.amax(dim=2, keepdim=True))[:, 0]  # v, up to a constant that is v's maximum
    assert (token_price[plan.sum(dim=1) < 2 - 1e-3].abs() < 1e-6).all()


def test_annealing_gets_closer_than_a_cold_start() -> None:
    scores, k = softmax_scores(5, 8, 64), torch.full((5,), 16)
    cold = dual_ascent(scores, k, 2, temperatures=(0.001,)).plan
    annealed = dual_ascent(scores, k, 2).plan
    assert (annealed.sum(dim=2) - 16).abs().max() < 1.0 < (cold.sum(dim=2) - 16).abs().max()


@pytest.mark.parametrize("seed", range(4))
def test_parallel_greedy_choice_equals_the_sequential_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(12, (3, 5, 17), generator=generator).double()  # many ties
    scores[0, :, 3] = -torch.inf
    capacity = torch.tensor([2, 7, 9])
    chosen = greedy_choice(scores, capacity, 2)
    for group in range(3):
        assert torch.equal(chosen[group], sequential_choice(scores[group], int(capacity[group]), 2))


def test_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="cap must be >= 1, got 0"):
        capped_choice(softmax_scores(1, 2, 3), torch.tensor([1]), 0)
