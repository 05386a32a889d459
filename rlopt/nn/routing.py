"""Who computes what in a mixture of experts: tokens choose experts, or experts choose tokens.

A routing group is a set of tokens that compete for the room of experts: the tokens of one sample, or of the whole batch. All
functions work on `(groups, tokens, experts)` and treat each group by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor

from rlopt.nn.balance import BalanceLoss
from rlopt.nn.capped_choice import capped_choice

Renorm = Literal["auto", "before", "after", "none"]
SecondPolicy = Literal["all", "sampling", "random"]
Priority = Literal["order", "batch_prioritized"]
# GShard's: the second expert of a token is kept with probability min(1, its gate / this).
RANDOM_THRESHOLD = 0.5


@dataclass(frozen=True)
class ExpertChoice:
    """Each expert takes its k best tokens: loads are equal, a token has any number of experts, none included.

    k = min(n, max(min_capacity, ceil(capacity_factor n / e))) for n valid tokens of a group and e experts. Which tokens an expert
    takes depends on all tokens of the group, later ones included: not for causal models.

    Raises:
        ValueError: For numbers out of range, and for a cap below the capacity factor.

    References: Zhou et al., Mixture-of-experts with expert choice routing, NeurIPS 2022, arXiv 2202.09368.
    """

    capacity_factor: float = 2.0
    """Experts per token on average, > 0, at most the number of experts (paper: 2)."""
    min_capacity: int = 1
    """Tokens that an expert takes at least, if there are so many, >= 1."""
    cap: int | None = None
    """Experts per token at most, >= capacity_factor; None: no limit. Costs a solver, see `capped_choice`."""

    def __post_init__(self) -> None:
        """Check the options."""
        if not self.capacity_factor > 0.0:
            raise ValueError(f"capacity_factor must be > 0, got {self.capacity_factor}.")
        if self.min_capacity < 1:
            raise ValueError(f"min_capacity must be >= 1, got {self.min_capacity}.")
        if self.cap is not None and self.cap < max(1.0, self.capacity_factor):
            raise ValueError(f"cap must be >= 1 and >= capacity_factor ({self.capacity_factor}), or None, got {self.cap}.")

    @property
    def causal_safe(self) -> bool:
        """False: an expert compares a token with later ones."""
        return False


@dataclass(frozen=True)
class TokenChoice:
    """Each token takes its `top_k` best experts; without a capacity, nothing is dropped and tokens do not influence each other.

    With a capacity, an expert takes at most C = min(n, ceil(capacity_factor n / e)) tokens of a group, n of them valid. All first
    choices are served before any second choice, so that a second choice can be dropped for the first choice of a later token, and
    C depends on the length: only without a capacity is the choice safe in causal models, and equal whether tokens come together
    or one by one.

    Raises:
        ValueError: For numbers out of range, and for options that would have no effect.

    References: Lepikhin et al., GShard, ICLR 2021, arXiv 2006.16668. Fedus, Zoph, Shazeer, Switch Transformers, JMLR 2022, arXiv
    2101.03961. Batch-prioritized routing: Riquelme et al., NeurIPS 2021, arXiv 2106.05974.
    """

    top_k: int = 2
    """Experts of each token, >= 1, at most the number of experts (GShard: 2, Switch: 1)."""
    capacity_factor: float | None = None
    """Room of an expert relative to n / e, > 0; None: as much as needed."""
    eval_capacity_factor: float | None = None
    """The same in evaluation mode; None: as in training."""
    renorm: Renorm = "auto"
    """Whether the probabilities of the chosen experts are divided by their sum (plus 1e-9): before tokens are dropped, after it, or
    not at all. auto: before for top_k > 1, none for top_k = 1, where the router would have no gradient."""
    second_policy: SecondPolicy = "all"
    """Second expert, for top_k = 2. all: the second best. In training mode only: sampling: drawn with the probabilities of all but
    the first; random: the second best with probability min(1, 2 gate), else none."""
    priority: Priority = "order"
    """Who is served first where room is short: earlier tokens, or tokens with the larger top probability."""
    jitter: float = 0.0
    """Inputs of the router are multiplied by uniform numbers in [1 - jitter, 1 + jitter], in training mode only; in [0, 1)."""
    noise_std: float = 0.0
    """Standard deviation of normal noise that is added to the logits for the choice, in training mode only, >= 0 (V-MoE: 1 / number
    of experts). Losses and statistics are of the logits without it."""
    balance_loss: BalanceLoss = "first_choice"
    """Loss under the key "balance". first_choice: Switch. all_choices: Flaxformer, top_k times as large. importance, load: V-MoE,
    whose loss is the mean of both; load needs noise, and has the probabilities of that noise in evaluation mode too."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {self.top_k}.")
        for name in ("capacity_factor", "eval_capacity_factor"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ValueError(f"{name} must be > 0 or None, got {value}.")
        for name, kind in (
            ("renorm", Renorm),
            ("second_policy", SecondPolicy),
            ("priority", Priority),
            ("balance_loss", BalanceLoss),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}.")
        if not 0.0 <= self.jitter < 1.0:
            raise ValueError(f"jitter must be in [0, 1), got {self.jitter}.")
        if not 0.0 <= self.noise_std < float("inf"):
            raise ValueError(f"noise_std must be >= 0, got {self.noise_std}.")
        if self.balance_loss == "load" and self.noise_std == 0.0:
            raise ValueError("noise_std must be > 0 with balance_loss 'load', got 0.0; take 1 / num_experts.")
        if self.renorm in ("before", "after") and self.top_k == 1:
            raise ValueError(f"renorm must be 'auto' or 'none' with top_k 1, got {self.renorm!r}: all gates would be 1.")
        if self.second_policy != "all" and self.top_k != 2:
            raise ValueError(f"second_policy must be 'all' unless top_k is 2, got {self.second_policy!r} with top_k {self.top_k}.")
        if self.capacity_factor is None and (self.eval_capacity_factor is not None or self.priority != "order"):
            raise ValueError("eval_capacity_factor and priority need a capacity_factor: without one, no token is dropped.")

    @property
    def causal_safe(self) -> bool:
        """Whether the output of a token is independent of later tokens and of their number: True without a capacity."""
        return self.capacity_factor is None

    def factor(self, training: bool) -> float | None:
        """Capacity factor of the mode; None: without a capacity."""
        return self.capacity_factor if training or self.eval_capacity_factor is None else self.eval_capacity_factor

    @property
    def is_random(self) -> bool:
        """Whether training draws random numbers."""
        return self.second_policy != "all" or self.jitter > 0.0 or self.noise_std > 0.0


Router = ExpertChoice | TokenChoice


class ExpertsChoices(NamedTuple):
    """Tokens that experts chose; `g` groups, `e` experts, `k` slots each."""

    token: Tensor
    """(g, e, k) int64: index of the token within its group."""
    gate: Tensor
    """(g, e, k): its probability for the expert, 0 in unfilled slots; carries the gradient."""
    filled: Tensor
    """(g, e, k) bool. A slot is unfilled if the group has fewer valid tokens than others, or for the cap."""


class TokensChoices(NamedTuple):
    """Experts that tokens chose; `g` groups, `n` tokens, `k` choices each."""

    expert: Tensor
    """(g, n, k) int64: the first choice first."""
    gate: Tensor
    """(g, n, k): weight of the expert's output, 0 where not kept; carries the gradient."""
    wanted: Tensor
    """(g, n, k) bool: False for invalid tokens and for second experts that the random policy left out."""
    kept: Tensor
    """(g, n, k) bool: wanted, and the expert had room."""


@overload
def expert_capacity(num_tokens: int, num_experts: int, capacity_factor: float, min_capacity: int = 1) -> int: ...
@overload
def expert_capacity(num_tokens: Tensor, num_experts: int, capacity_factor: float, min_capacity: int = 1) -> Tensor: ...
def expert_capacity(num_tokens: int | Tensor, num_experts: int, capacity_factor: float, min_capacity: int = 1) -> int | Tensor:
    """Return min(n, max(min_capacity, ceil(capacity_factor n / e))), computed with whole numbers.

    Args:
        num_tokens: n, an int or a tensor of integers.
        num_experts: e.
        capacity_factor: Decimal numbers are taken as such: with 1.1, 10 tokens and 11 experts the capacity is 1, though 1.1 in
            binary is a little more than 1.1.
        min_capacity: Lower bound, where there are so many tokens.

    Returns:
        An int or a tensor, as n is.

    Example:
        >>> expert_capacity(10, 8, 2.0), expert_capacity(torch.tensor([0, 2, 10]), 8, 2.0).tolist()
        (3, [0, 1, 3])
    """
    factor = Fraction(capacity_factor).limit_denominator(10**6)
    if isinstance(num_tokens, Tensor):
        rounded_up = -(-factor.numerator * num_tokens // (factor.denominator * num_experts))
        return torch.minimum(num_tokens, rounded_up.clamp_min(min_capacity))
    return min(num_tokens, max(min_capacity, -(-factor.numerator * num_tokens // (factor.denominator * num_experts))))


def group_lengths(like: Tensor, valid: Tensor | None) -> Tensor:
    """Count the valid tokens of each group: (g, n, ...) to (g,) int64."""
    return like.new_full(like.shape[:1], like.shape[1], dtype=torch.long) if valid is None else valid.sum(dim=1)


def choose_tokens(probs: Tensor, router: ExpertChoice, valid: Tensor | None = None) -> ExpertsChoices:
    """Let each expert take its best tokens.

    The scores of an expert are the probabilities of tokens for it; softmax is over experts. Gates are these probabilities, not
    normalised again. Among equal scores the lower index wins. The number of slots k is that of the padded length; a group with
    fewer valid tokens fills as many slots as it would without padding.

    Args:
        probs: (g, n, e), softmax over e.
        router: The options.
        valid: (g, n) bool, real tokens; None: all.

    Example:
        >>> probs = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]]])
        >>> choose_tokens(probs, ExpertChoice(capacity_factor=1.0)).token.tolist()  # k = ceil(3 / 2)
        [[[0, 1], [2, 1]]]
    """
    num_tokens, num_experts = probs.shape[1:]
    k = expert_capacity(num_tokens, num_experts, router.capacity_factor, router.min_capacity)
    room = expert_capacity(group_lengths(probs, valid), num_experts, router.capacity_factor, router.min_capacity)
    scores = probs.transpose(1, 2)  # (g, n, e) -> (g, e, n)
    keys = scores.detach()
    if router.cap is not None and router.cap < num_experts:
        keys = keys.masked_fill(~capped_choice(keys, room, router.cap, valid), -torch.inf)
    elif valid is not None:
        keys = keys.masked_fill(~valid.unsqueeze(1), -torch.inf)
    # torch.topk leaves the order of equal scores open.
    keys, token = torch.sort(keys, dim=-1, descending=True, stable=True)
    keys, token = keys[..., :k], token[..., :k]
    filled = (keys > -torch.inf) & (torch.arange(k, device=probs.device) < room.view(-1, 1, 1))
    return ExpertsChoices(token, scores.gather(-1, token) * filled, filled)


def choose_experts(
    logits: Tensor,
    probs: Tensor,
    router: TokenChoice,
    valid: Tensor | None = None,
    *,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> TokensChoices:
    """Let each token take its best experts, and drop what exceeds the room of an expert.

    Among equal probabilities the lower index wins. A dropped choice contributes nothing.

    Args:
        logits: (g, n, e), of the router.
        probs: (g, n, e), their softmax over e.
        router: The options.
        valid: (g, n) bool, real tokens; None: all.
        training: Whether random policies act, and which capacity factor counts.
        generator: Draws for the policies of the second expert in training; on the CPU.

    Example:
        >>> logits = torch.tensor([[[3.0, 2.0, 0.0], [3.0, 0.0, 2.0]]])
        >>> choose_experts(logits, logits.softmax(-1), TokenChoice(top_k=2)).expert.tolist()
        [[[0, 1], [0, 2]]]
        >>> choose_experts(logits, logits.softmax(-1), TokenChoice(top_k=1, capacity_factor=1.0)).kept.tolist()  # room for one
        [[[True], [False]]]
    """
    num_experts = logits.shape[-1]
    # torch.topk leaves the order of equal probabilities open.
    expert = torch.sort(probs.detach(), dim=-1, descending=True, stable=True).indices[..., : router.top_k]
    random = router.second_policy if training else "all"
    if random == "sampling":
        # The largest of logits plus Gumbel noise is a draw from the softmax; the first choice is left out.
        noise = -torch.log(torch.empty(logits.shape).exponential_(generator=generator)).to(logits.device)
        others = (logits.detach() + noise).scatter(-1, expert[..., :1], -torch.inf)
        expert = torch.cat([expert[..., :1], others.argmax(dim=-1, keepdim=True)], dim=-1)
    gate = probs.gather(-1, expert)  # (g, n, k)
    before = router.renorm == "before" or (router.renorm == "auto" and router.top_k > 1)
    if before:
        gate = gate / (gate.sum(dim=-1, keepdim=True) + 1e-9)
    wanted = torch.ones_like(expert, dtype=torch.bool) if valid is None else valid.unsqueeze(-1).expand_as(expert).clone()
    if random == "random":
        # GShard compares the gate, normalised where that is done before, with a uniform number.
        draw = torch.rand(gate.shape[:2], generator=generator, dtype=torch.float64).to(gate.device)
        wanted[..., 1] &= draw * RANDOM_THRESHOLD < gate[..., 1].detach()
    kept = wanted
    factor = router.factor(training)
    if factor is not None:
        room = expert_capacity(group_lengths(logits, valid), num_experts, factor)
        first = None
        if router.priority == "batch_prioritized":
            first = torch.sort(probs.detach().amax(dim=-1), dim=-1, descending=True, stable=True).indices  # (g, n)
        kept = wanted & (queue_positions(expert, wanted, num_experts, first) < room.view(-1, 1, 1))
    gate = gate * kept
    if router.renorm == "after":
        gate = gate / (gate.sum(dim=-1, keepdim=True) + 1e-9)
    return TokensChoices(expert, gate, wanted, kept)


def queue_positions(expert: Tensor, wanted: Tensor, num_experts: int, first: Tensor | None = None) -> Tensor:
    """Count, for each choice, those that stand before it in the queue of the same expert.

    All first choices stand before all second choices, and so on; among them, tokens stand in order.

    Args:
        expert: (g, n, k), chosen experts.
        wanted: (g, n, k) bool, choices that queue.
        num_experts: e.
        first: (g, n), indices of tokens in the order in which they queue; None: as they are.

    Returns:
        (g, n, k) int64; without meaning where not wanted.

    Example:
        >>> queue_positions(torch.tensor([[[0, 1], [1, 0]]]), torch.ones(1, 2, 2, dtype=torch.bool), 2).tolist()
        [[[0, 1], [0, 1]]]
    """
    num_groups, num_tokens, k = expert.shape
    queue = expert.masked_fill(~wanted, num_experts)
    if first is not None:
        queue = queue.gather(1, first.unsqueeze(-1).expand_as(queue))
    queue = queue.transpose(1, 2).reshape(num_groups, k * num_tokens)  # (g, n, k) -> (g, k * n)
    by_expert, order = torch.sort(queue, dim=1, stable=True)
    index = torch.arange(k * num_tokens, device=expert.device)
    starts = torch.searchsorted(by_expert, torch.arange(num_experts + 1, device=expert.device).expand(num_groups, -1).contiguous())
    ranks = index - starts.gather(1, by_expert)
    positions = torch.empty_like(ranks).scatter_(1, order, ranks)
    positions = positions.view(num_groups, k, num_tokens).transpose(1, 2)  # (g, k * n) -> (g, n, k)
    if first is None:
        return positions
    return torch.empty_like(positions).scatter_(1, first.unsqueeze(-1).expand_as(positions), positions)
