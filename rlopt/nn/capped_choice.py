"""Expert choice with a limit on the experts of one token.

Each expert takes k tokens, each token goes to at most b experts, and the total score of the chosen pairs is as large as possible: a
transportation problem. Its relaxation with an entropy term is solved by coordinate ascent on the dual, with a temperature that
falls step by step; a greedy pass over the reduced scores makes whole choices of the solution.

References: Zhou et al., Mixture-of-experts with expert choice routing, NeurIPS 2022, arXiv 2202.09368.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

TEMPERATURES = (0.1, 0.03, 0.01, 0.003, 0.001)
NUM_SWEEPS = 100


class DualSolution(NamedTuple):
    """Result of `dual_ascent`."""

    plan: Tensor
    """(g, e, n), in [0, 1]: share of each pair."""
    reduced: Tensor
    """(g, e, n): scores minus the prices of expert and token; -inf for tokens that do not count."""


def capped_choice(scores: Tensor, capacity: Tensor, cap: int, valid: Tensor | None = None) -> Tensor:
    """Choose up to `capacity` tokens for each expert, with at most `cap` experts for each token.

    A group whose uncapped choice (the best tokens of each expert, lower index first among equals) keeps the cap already gets just
    that, which is the optimum. The others are solved by `dual_ascent` and `greedy_choice`, which can leave a few slots unfilled.
    Every group is treated by itself.

    Args:
        scores: (g, e, n), finite: score of each token for each expert, in [0, 1] (the temperatures are made for this).
        capacity: (g,) integers, tokens for each expert of the group, at most the number of valid tokens.
        cap: Experts for each token, >= 1.
        valid: (g, n) bool, tokens that may be chosen; None: all.

    Returns:
        (g, e, n) bool: the chosen pairs. Has no gradient.

    Raises:
        ValueError: For a cap < 1.

    Differs from the paper: it solves at one temperature, 0.001, with 100 iterations and takes the largest entries of each row,
    which can exceed the cap; here the temperature falls to 0.001, and the choice keeps the cap exactly.

    Example:
        >>> scores = torch.tensor([[[0.9, 0.5, 0.1], [0.8, 0.2, 0.1]]])
        >>> capped_choice(scores, torch.tensor([1]), cap=1)[0].int().tolist()  # 0.5 + 0.8 is more than 0.9 + 0.2
        [[0, 1, 0], [1, 0, 0]]
    """
    if cap < 1:
        raise ValueError(f"cap must be >= 1, got {cap}.")
    scores = scores.detach()
    if valid is not None:
        scores = scores.masked_fill(~valid.unsqueeze(1), -torch.inf)
    chosen = _ranks(scores, dim=-1) < capacity.view(-1, 1, 1)
    exceeds = (chosen.sum(dim=1) > cap).any(dim=-1)  # (g,)
    if exceeds.any():
        hard, slots = scores[exceeds], capacity[exceeds]
        chosen[exceeds] = greedy_choice(dual_ascent(hard, slots, cap).reduced, slots, cap)
    return chosen


@torch.no_grad()
def dual_ascent(
    scores: Tensor, capacity: Tensor, cap: int, *, temperatures: Sequence[float] = TEMPERATURES, num_sweeps: int = NUM_SWEEPS
) -> DualSolution:
    """Maximise <S, A> + t H(A) with row sums k, column sums at most b, and entries in [0, 1].

    H(A) = -sum A log A. With prices u of experts, v of tokens and w of single pairs, A = exp((S + u_i + v_j + w_ij) / t), and one
    sweep maximises the dual over each of them in turn (in the log domain, exp(S / t) overflows):

        u_i  = t (log k - logsumexp_j((S + v + w) / t))
        v_j  = min(0, t (log b - logsumexp_i((S + u + w) / t)))
        w_ij = min(0, -(S + u + v))

    Prices carry over from one temperature to the next. Where e k > n b, which rounding up of k can cause, no A has these row
    sums; there, u is at most 0, and row sums are at most k.

    Args:
        scores: (g, e, n), -inf in columns of tokens that do not count.
        capacity: (g,) integers, k of each group.
        cap: b.
        temperatures: t, one after the other, falling.
        num_sweeps: Sweeps for each temperature.

    Returns:
        Plan A and reduced scores S + u + v.
    """
    num_experts = scores.shape[1]
    k = capacity.to(scores.dtype).view(-1, 1, 1)
    tokens = (scores[:, :1] > -torch.inf).sum(dim=-1, keepdim=True)  # (g, 1, 1)
    upper = torch.where(num_experts * capacity.view(-1, 1, 1) > cap * tokens, 0.0, torch.inf)
    u = torch.zeros_like(scores[:, :, :1])
    v = torch.zeros_like(scores[:, :1])
    w = torch.zeros_like(scores)
    for t in temperatures:
        for _ in range(num_sweeps):
            u = torch.minimum(t * (k.log() - ((scores + v + w) / t).logsumexp(dim=2, keepdim=True)), upper)
            v = (t * (log(cap) - ((scores + u + w) / t).logsumexp(dim=1, keepdim=True))).clamp_max(0.0)
            w = -(scores + u + v).clamp_min(0.0)
    reduced = scores + u + v
    return DualSolution(((reduced + w) / temperatures[-1]).exp(), reduced)


@torch.no_grad()
def greedy_choice(scores: Tensor, capacity: Tensor, cap: int) -> Tensor:
    """Accept pairs from the best to the worst while expert and token have room.

    Done for many pairs at once: a pair among the best of its expert and among the best of its token, as many as each has room
    for, is accepted by the sequential rule as well, whatever happens to the others. Accepting all of these, and dropping the
    pairs of what is full, until nothing is left gives exactly the sequential result.

    Args:
        scores: (g, e, n); pairs with -inf are not accepted. Among equals the lower expert, then the lower token comes first.
        capacity: (g,) integers, room of each expert of the group.
        cap: Room of each token.

    Returns:
        (g, e, n) bool: the accepted pairs.

    Example:
        >>> scores = torch.tensor([[[0.9, 0.5], [0.8, 0.2]]])
        >>> greedy_choice(scores, torch.tensor([1]), cap=1)[0].int().tolist()
        [[1, 0], [0, 1]]
    """
    num_groups, num_experts, num_tokens = scores.shape
    worst = num_experts * num_tokens
    order = _ranks(scores.flatten(1), dim=-1).view_as(scores)  # 0 for the best pair of the group
    alive = scores > -torch.inf
    accepted = torch.zeros_like(alive)
    expert_room = capacity.view(-1, 1, 1).expand(num_groups, num_experts, 1).clone()
    token_room = torch.full_like(scores[:, :1], cap, dtype=torch.long)
    while True:
        alive = alive & (expert_room > 0) & (token_room > 0)
        if not alive.any():
            return accepted
        rank = order.masked_fill(~alive, worst)
        take = alive & (_ranks(-rank, dim=2) < expert_room) & (_ranks(-rank, dim=1) < token_room)
        accepted |= take
        alive = alive & ~take
        expert_room = expert_room - take.sum(dim=2, keepdim=True)
        token_room = token_room - take.sum(dim=1, keepdim=True)


def _ranks(scores: Tensor, dim: int) -> Tensor:
    """Position of each entry when sorted from the largest to the smallest, the lower index first among equals."""
    order = torch.sort(scores, dim=dim, descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(dim, order, _positions(order, dim))


def _positions(like: Tensor, dim: int) -> Tensor:
    shape = [1] * like.ndim
    shape[dim] = like.shape[dim]
    return torch.arange(like.shape[dim], device=like.device).view(shape).expand_as(like)
