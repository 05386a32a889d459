"""From the logits of a router to the rows of its experts, with losses and statistics: the steps of a mixture of experts.

`route` decides, `dispatch` copies tokens into rows that are sorted by expert, and `combine` adds the weighted results up. With
expert choice the number of rows of each expert depends on shapes only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlopt.nn.balance import Across, balance_loss, count_values, importance_loss, load_loss, mean_over_tokens, router_z_loss
from rlopt.nn.routing import (
    ExpertsChoices,
    Router,
    TokenChoice,
    TokensChoices,
    choose_experts,
    choose_tokens,
    expert_capacity,
)


class RouterStats(NamedTuple):
    """What a router did with the valid tokens of a batch; detached."""

    load: Tensor
    """(e,) int64: tokens that each expert computed."""
    importance: Tensor
    """(e,): mean probability of each expert."""
    experts_per_token: Tensor
    """Histogram, int64: entry i counts tokens that i experts computed."""
    dropped_fraction: Tensor
    """Token choice: share of choices for which there was no room. Expert choice: share of tokens that no expert took."""
    router_entropy: Tensor
    """Mean entropy of a token's probabilities, in nats; at most log e."""
    max_prob_mean: Tensor
    """Mean of a token's largest probability."""
    capacity: int
    """Room of an expert in a group (of full length)."""

    @property
    def actual_factor(self) -> Tensor:
        """Experts per token on average; with expert choice, what rounding made of the capacity factor."""
        counts = torch.arange(len(self.experts_per_token), device=self.experts_per_token.device)
        return (counts * self.experts_per_token).sum() / self.experts_per_token.sum().clamp_min(1)


class Assignment(NamedTuple):
    """Rows of all experts, those of expert 0 first."""

    token: Tensor
    """(rows,) int64: index of the row's token among all B * L."""
    gate: Tensor
    """(rows,): weight of the row's result; carries the gradient to the router."""
    sizes: list[int]
    """Rows of each expert."""


class Routing(NamedTuple):
    """Result of `route`."""

    assignment: Assignment
    aux_losses: dict[str, Tensor]
    stats: RouterStats


def route(
    logits: Tensor,
    router: Router,
    valid: Tensor | None = None,
    *,
    training: bool = False,
    generator: torch.Generator | None = None,
    across: Across | None = None,
) -> Routing:
    """Turn logits into rows for the experts, losses and statistics.

    Args:
        logits: (g, n, e): `g` routing groups of `n` tokens, `e` experts.
        router: Who chooses, and how.
        valid: (g, n) bool, real tokens; None: all.
        training: Whether random policies act, and which capacity factor counts.
        generator: For random policies and noise.
        across: For balance losses, see `balance_loss`.

    Returns:
        Assignment of tokens, numbered group by group, to experts; losses; statistics.
    """
    num_groups, num_tokens, num_experts = logits.shape
    probs = torch.softmax(logits, dim=-1)
    assignment, choices, load, noisy = _decide(logits, probs, router, valid, training=training, generator=generator)
    flat_logits, flat_probs = logits.flatten(0, 1), probs.flatten(0, 1)  # (g, n, e) -> (g * n, e)
    flat_valid = None if valid is None else valid.flatten()
    aux_losses: dict[str, Tensor] = {}
    if isinstance(choices, ExpertsChoices):
        filled = choices.filled.transpose(0, 1).flatten()  # (g, e, k) -> (e * g * k,)
        experts_of = torch.zeros(num_groups * num_tokens, dtype=torch.long, device=logits.device).scatter_add_(
            0, assignment.token, filled.long()
        )
        dropped = mean_over_tokens((experts_of == 0).to(probs.dtype), flat_valid)
        capacity, most = choices.token.shape[-1], num_experts
    else:
        assert isinstance(router, TokenChoice)
        factor = router.factor(training)
        capacity = num_tokens if factor is None else expert_capacity(num_tokens, num_experts, factor)
        experts_of = choices.kept.sum(dim=-1).flatten()
        dropped = 1.0 - choices.kept.sum() / choices.wanted.sum().clamp_min(1)
        most = router.top_k
        if router.balance_loss == "importance":
            aux_losses["balance"] = importance_loss(flat_probs, flat_valid, across)
        elif router.balance_loss == "load":
            aux_losses["balance"] = load_loss(flat_logits, noisy.flatten(0, 1), router.top_k, router.noise_std, flat_valid, across)
        else:
            counted = choices.expert[..., :1] if router.balance_loss == "first_choice" else choices.expert
            aux_losses["balance"] = balance_loss(flat_probs, counted.flatten(0, 1), flat_valid, across)
    aux_losses["router_z"] = router_z_loss(flat_logits, flat_valid)
    return Routing(assignment, aux_losses, router_stats(flat_probs, flat_valid, load, experts_of, most, dropped, capacity))


def assign(
    logits: Tensor,
    router: Router,
    valid: Tensor | None = None,
    *,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> Assignment:
    """Return the assignment of `route`, without losses and statistics; the arguments are those of `route`."""
    return _decide(logits, torch.softmax(logits, dim=-1), router, valid, training=training, generator=generator).assignment


def dispatch(tokens: Tensor, assignment: Assignment) -> Tensor:
    """Copy tokens (B * L, d) into the rows of their experts: (rows, d)."""
    return tokens.index_select(0, assignment.token)


def combine(rows: Tensor, assignment: Assignment, num_tokens: int) -> Tensor:
    """Add the weighted results of a token's experts: (rows, d) to (num_tokens, d), 0 for a token without any.

    On CUDA the order of the sums is not fixed; `torch.use_deterministic_algorithms(True)` fixes it.
    """
    weighted = rows * assignment.gate.unsqueeze(-1)
    return weighted.new_zeros(num_tokens, rows.shape[-1]).index_add_(0, assignment.token, weighted)


@torch.no_grad()
def router_stats(
    probs: Tensor, valid: Tensor | None, load: Tensor, experts_of: Tensor, most: int, dropped: Tensor, capacity: int
) -> RouterStats:
    """Gather the statistics of a router.

    Args:
        probs: (tokens, e).
        valid: (tokens,) bool, or None.
        load: (e,).
        experts_of: (tokens,) int64, experts of each token.
        most: Largest possible number of experts of a token.
        dropped: Scalar.
        capacity: Room of an expert.
    """
    if valid is not None:
        experts_of = experts_of.masked_fill(~valid, most + 1)
    return RouterStats(
        load=load,
        importance=mean_over_tokens(probs, valid),
        experts_per_token=count_values(experts_of, most + 2)[: most + 1],
        dropped_fraction=dropped.detach(),
        router_entropy=mean_over_tokens(-torch.special.xlogy(probs, probs).sum(dim=-1), valid),
        max_prob_mean=mean_over_tokens(probs.amax(dim=-1), valid),
        capacity=capacity,
    )


class _Decision(NamedTuple):
    """Result of `_decide`."""

    assignment: Assignment
    choices: ExpertsChoices | TokensChoices
    load: Tensor
    """(e,) int64: rows of each expert that hold a token."""
    logits: Tensor
    """(g, n, e): those that decided, with noise if there was any."""


def _decide(
    logits: Tensor, probs: Tensor, router: Router, valid: Tensor | None, *, training: bool, generator: torch.Generator | None
) -> _Decision:
    """Choose, and sort by expert."""
    num_groups, num_tokens, num_experts = logits.shape
    if isinstance(router, TokenChoice):
        if training and router.noise_std > 0.0:
            logits = logits + router.noise_std * torch.randn(logits.shape, generator=generator).to(logits)
            probs = torch.softmax(logits, dim=-1)
        choices = choose_experts(logits, probs, router, valid, training=training, generator=generator)
        assignment, load = _sort_by_expert(choices, num_experts)
        return _Decision(assignment, choices, load, logits)
    chosen = choose_tokens(probs, router, valid)
    offsets = torch.arange(num_groups, device=logits.device).view(-1, 1, 1) * num_tokens
    token, gate = (t.transpose(0, 1).flatten() for t in (chosen.token + offsets, chosen.gate))  # (g, e, k) -> (e * g * k,)
    sizes = [num_groups * chosen.token.shape[-1]] * num_experts
    return _Decision(Assignment(token, gate, sizes), chosen, chosen.filled.sum(dim=(0, 2)), logits)


def _sort_by_expert(choices: TokensChoices, num_experts: int) -> tuple[Assignment, Tensor]:
    """Sort the kept choices by expert; returns them and the number of each expert's rows (e,)."""
    expert, gate, _, kept = choices
    k = expert.shape[-1]
    key = expert.masked_fill(~kept, num_experts).flatten()  # (g, n, k) -> (g * n * k,)
    load = count_values(key, num_experts + 1)[:num_experts]
    sizes = load.tolist()
    order = torch.sort(key, stable=True).indices[: sum(sizes)]  # choices that are not kept stand last
    return Assignment(order // k, gate.flatten().index_select(0, order), sizes), load
