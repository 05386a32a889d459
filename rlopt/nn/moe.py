"""Mixture of experts: many MLPs, of which each token uses a few.

The layer runs in four steps, each a function of its own: `route` decides, `dispatch` copies tokens into rows that are sorted by
expert, `Experts` computes, and `combine` adds the weighted results up. With expert choice the number of rows of each expert depends
on shapes only.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rlopt.nn.balance import Across, balance_loss, count_values, importance_loss, load_loss, mean_over_tokens, router_z_loss
from rlopt.nn.experts import Activation, Experts
from rlopt.nn.routing import (
    ExpertChoice,
    ExpertsChoices,
    Router,
    TokenChoice,
    TokensChoices,
    choose_experts,
    choose_tokens,
    expert_capacity,
)

Group = Literal["sample", "batch"]
ROUTER_STD = 0.02


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


class MoEOutput(NamedTuple):
    """Output of `MoE` and `SoftMoE`."""

    y: Tensor
    """(B, L, width), dtype of the input; 0 for invalid tokens. Contains no auxiliary loss."""
    aux_losses: dict[str, Tensor]
    """Scalars with gradient, without coefficients: "router_z", and with token choice "balance"; none of `SoftMoE`."""
    stats: RouterStats
    """Statistics for logs."""


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


class MoE(nn.Module):
    """Mixture of experts: y = sum over chosen experts i of gate_i(x) E_i(x), with E_i(x) = act(x W_in[i]) W_out[i].

    The router's logits are x W_router, in float32 or wider, also under autocast; the gates follow from their softmax over experts
    as the router's configuration says. A token that no expert takes gets 0: the residual connection around the layer carries it.

    By default the output of a sample does not depend on the other samples of the batch (`group="sample"`), nor on random numbers,
    so that a policy has the same log-probabilities when it acts and when it learns. What gives this up has to be asked for:
    capacity and expert choice over the batch (`group="batch"`), and the random policies, jitter and noise of `TokenChoice`, which
    act in training mode only. Padding does not matter: capacities are computed from the valid tokens.

    Losses and statistics are those of all valid tokens of the batch, whatever the group: of a sample of one token, say, no load
    can be balanced.

    Args:
        width: Size of a token.
        hidden_width: Hidden units of one expert.
        num_experts: Experts, >= 1.
        router: `TokenChoice` or `ExpertChoice`.
        group: Tokens that compete for experts: those of one sample, or of the batch.
        activation: Of the experts: "gelu" or "relu".
        bias: Whether the experts have biases.
        seed: Of the initial weights (router: normal with deviation 0.02; experts: as `nn.Linear`), and of random policies.

    Attributes:
        router_weight: (width, num_experts).
        experts: `Experts`, with stacked weights.
        mixes_experts: True; marks layers that return a `MoEOutput`.
        across: How balance losses reach over several processes in training mode, see `rlopt.nn.share_balance`; None: not at all.

    Raises:
        ValueError: For sizes < 1, for more choices than experts, and for options without effect.

    Shape: (B, L, width), with L = 1 for acting, and `valid` (B, L) to a `MoEOutput`.

    References: Zhou et al. (`ExpertChoice`); GShard and Switch Transformers (`TokenChoice`).

    Example:
        >>> layer = MoE(16, 32, num_experts=4, router=TokenChoice(top_k=2))
        >>> y, aux_losses, stats = layer(torch.ones(2, 5, 16))
        >>> y.shape, sorted(aux_losses), stats.load.sum().item()
        (torch.Size([2, 5, 16]), ['balance', 'router_z'], 20)
    """

    mixes_experts = True

    def __init__(
        self,
        width: int,
        hidden_width: int,
        num_experts: int,
        router: Router,
        *,
        group: Group = "sample",
        activation: Activation = "gelu",
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check(router, num_experts, group)
        self.router, self.group, self.num_experts = router, group, num_experts
        generator = torch.Generator().manual_seed(seed)
        self.experts = Experts(num_experts, width, hidden_width, activation=activation, bias=bias, generator=generator)
        self.router_weight = nn.Parameter(torch.empty(width, num_experts).normal_(std=ROUTER_STD, generator=generator))
        self.noise = _Noise(generator) if isinstance(router, TokenChoice) and router.is_random else None
        self.across: Across | None = None

    @property
    def causal_safe(self) -> bool:
        """Whether the output of a token never depends on other tokens; see the routers."""
        return self.router.causal_safe

    def forward(self, x: Tensor, valid: Tensor | None = None) -> MoEOutput:
        """Apply the layer.

        Args:
            x: (B, L, width).
            valid: (B, L) bool, real tokens; None: all. What invalid tokens contain has no influence.

        Returns:
            Output, losses and statistics.
        """
        x, logits, valid = self._prepare(x, valid)
        with torch.autocast(x.device.type, enabled=False):
            assignment, aux_losses, stats = route(
                logits,
                self.router,
                valid,
                training=self.training,
                generator=self._generator,
                across=self.across if self.training else None,
            )
        return MoEOutput(self._compute(x, assignment), aux_losses, stats)

    def output(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Compute the output alone, without losses and statistics: for acting, where these would take most of the time.

        Args:
            x: (B, L, width).
            valid: (B, L) bool, or None, as in `forward`.

        Returns:
            (B, L, width), the `y` of `forward`.
        """
        x, logits, valid = self._prepare(x, valid)
        with torch.autocast(x.device.type, enabled=False):
            assignment = assign(logits, self.router, valid, training=self.training, generator=self._generator)
        return self._compute(x, assignment)

    def extra_repr(self) -> str:
        """Router and group."""
        return f"router={self.router}, group={self.group!r}"

    @property
    def _generator(self) -> torch.Generator | None:
        return None if self.noise is None else self.noise.generator

    def _prepare(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens with zeros in place of padding (B, L, d), logits (g, n, e), and valid tokens (g, n)."""
        check_input(x, valid, self.experts.width)
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
        groups = (1, -1) if self.group == "batch" else x.shape[:2]
        logits = self._logits(x).reshape(*groups, self.num_experts)  # (B, L, e) -> (g, n, e)
        return x, logits, None if valid is None else valid.reshape(groups)  # (B, L) -> (g, n)

    def _compute(self, x: Tensor, assignment: Assignment) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # (B, L, d) -> (B * L, d)
        rows = self.experts(dispatch(tokens, assignment), assignment.sizes)
        return combine(rows, assignment, len(tokens)).to(x.dtype).view_as(x)

    def _logits(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.training and isinstance(self.router, TokenChoice) and self.router.jitter > 0.0 and self.noise is not None:
            low, high = 1.0 - self.router.jitter, 1.0 + self.router.jitter
            x = x.to(wide) * torch.empty(x.shape).uniform_(low, high, generator=self.noise.generator).to(x.device, wide)
        with torch.autocast(x.device.type, enabled=False):
            return x.to(wide) @ self.router_weight.to(wide)


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


def check_input(x: Tensor, valid: Tensor | None, width: int) -> None:
    """Refuse inputs of other shapes."""
    if x.ndim != 3 or x.shape[-1] != width:
        raise ValueError(f"x must have shape (batch, length, {width}), got {tuple(x.shape)}.")
    if valid is not None and (valid.shape != x.shape[:2] or valid.dtype != torch.bool):
        raise ValueError(f"valid must be bool of shape {tuple(x.shape[:2])}, got {valid.dtype} of shape {tuple(valid.shape)}.")


class _Noise(nn.Module):
    """A random generator that is part of the state of a model."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


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


def _check(router: Router, num_experts: int, group: str) -> None:
    if group not in get_args(Group):
        raise ValueError(f"group must be 'sample' or 'batch', got {group!r}.")
    if isinstance(router, TokenChoice) and router.top_k > num_experts:
        raise ValueError(f"top_k must be at most num_experts ({num_experts}), got {router.top_k}.")
    if isinstance(router, ExpertChoice) and router.capacity_factor > num_experts:
        raise ValueError(f"capacity_factor must be at most num_experts ({num_experts}), got {router.capacity_factor}.")
    if isinstance(router, TokenChoice) and router.capacity_factor is None and group == "batch":
        raise ValueError("group 'batch' has no effect without a capacity_factor: leave it out.")
