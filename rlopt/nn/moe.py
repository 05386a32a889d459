"""Mixture of experts: many MLPs, of which each token uses a few.

The layer runs in four steps, each of its own: `route` decides, `dispatch` copies tokens into rows that are sorted by expert,
`Experts` computes, and `combine` adds the weighted results up.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from rlopt.nn.assignment import Assignment, RouterStats, assign, combine, dispatch, route
from rlopt.nn.balance import Across
from rlopt.nn.experts import Activation, Experts
from rlopt.nn.routing import ExpertChoice, Router, TokenChoice, choose_experts

Group = Literal["sample", "batch"]
ROUTER_STD = 0.02


class MoEOutput(NamedTuple):
    """Output of `MoE` and `SoftMoE`."""

    y: Tensor
    """(B, L, width), dtype of the input; 0 for invalid tokens. Contains no auxiliary loss."""
    aux_losses: dict[str, Tensor]
    """Scalars with gradient, without coefficients: "router_z", and with token choice "balance"; none of `SoftMoE`."""
    stats: RouterStats
    """Statistics for logs."""


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
        is_single = valid is None and x.shape[:2] == (1, 1) and not self.training and type(self.experts) is Experts
        if is_single and isinstance(self.router, TokenChoice):
            return self._compute_single(x, logits, self.router)
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

    def _compute_single(self, x: Tensor, logits: Tensor, router: TokenChoice) -> Tensor:
        """Output of a single token in evaluation mode: nothing to sort by expert, which would take longer than the products."""
        with torch.autocast(x.device.type, enabled=False):
            choices = choose_experts(logits, torch.softmax(logits, dim=-1), router)
        token = x.reshape(1, -1)  # (1, 1, d) -> (1, d)
        rows = torch.cat([self.experts.apply_one(token, i) for i in choices.expert.flatten().tolist()])  # (k, d)
        return (rows * choices.gate.view(-1, 1)).sum(dim=0).to(x.dtype).view_as(x)  # (1, 1, k) -> (k, 1)

    def _logits(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.training and isinstance(self.router, TokenChoice) and self.router.jitter > 0.0 and self.noise is not None:
            low, high = 1.0 - self.router.jitter, 1.0 + self.router.jitter
            x = x.to(wide) * torch.empty(x.shape).uniform_(low, high, generator=self.noise.generator).to(x.device, wide)
        with torch.autocast(x.device.type, enabled=False):
            return x.to(wide) @ self.router_weight.to(wide)


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


def _check(router: Router, num_experts: int, group: str) -> None:
    if group not in get_args(Group):
        raise ValueError(f"group must be 'sample' or 'batch', got {group!r}.")
    if isinstance(router, TokenChoice) and router.top_k > num_experts:
        raise ValueError(f"top_k must be at most num_experts ({num_experts}), got {router.top_k}.")
    if isinstance(router, ExpertChoice) and router.capacity_factor > num_experts:
        raise ValueError(f"capacity_factor must be at most num_experts ({num_experts}), got {router.capacity_factor}.")
    if isinstance(router, TokenChoice) and router.capacity_factor is None and group == "batch":
        raise ValueError("group 'batch' has no effect without a capacity_factor: leave it out.")
