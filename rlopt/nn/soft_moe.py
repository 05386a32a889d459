"""Soft mixture of experts: experts compute slots that are mixtures of all tokens of a sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlopt.nn.assignment import router_stats
from rlopt.nn.balance import mean_over_tokens
from rlopt.nn.experts import Activation, Experts
from rlopt.nn.moe import MoEOutput, check_input

# Added to norms before division.
NORM_EPS = 1e-6


class MixingWeights(NamedTuple):
    """Weights of `soft_mixing`; `e` experts with `p` slots each."""

    dispatch: Tensor
    """(B, L, e, p), sums to 1 over the valid tokens: what a slot is made of."""
    combine: Tensor
    """(B, L, e, p), sums to 1 over slots: what a token gets."""


class SoftMoE(nn.Module):
    """Soft mixture of experts: no choice, nothing dropped, differentiable everywhere.

    With tokens X (L, d) of one sample and slot parameters Phi (d, e, p), for p slots of each of e experts:

        logits = X Phi,  D = softmax over tokens,  C = softmax over all slots,
        slot_ip = sum_l D_lip X_l,  Y_l = sum_ip C_lip E_i(slot_ip)

    With `normalize`, the logits are those of X / |X| and scale Phi / |Phi| (norms over d, plus 1e-6), so that they stay within
    +-scale; scale is a parameter that starts at 1. What is mixed is X itself. The code of the authors normalises always.

    The output of a sample depends on nothing but its own tokens, and on all of them: not for causal models. It costs
    O(L e p d) for mixing and e p rows of experts, for instance with `slots_per_expert = ceil(L / e)` as many rows as tokens.

    One expert (`num_experts=1`) with tokens as input is a baseline worth running in reinforcement learning: much of the gain comes
    from the tokens (Sokar et al.).

    Args:
        width: Size of a token.
        hidden_width: Hidden units of one expert.
        num_experts: Experts, >= 1.
        slots_per_expert: Slots of each expert, >= 1.
        normalize: Whether logits are normalised.
        activation: Of the experts: "gelu" or "relu".
        bias: Whether the experts have biases.
        seed: Of the initial weights (Phi: normal with deviation 1 / sqrt(width); experts: as `nn.Linear`).

    Attributes:
        phi: (width, num_experts, slots_per_expert).
        scale: Scalar, or None without `normalize`.
        experts: `Experts`, with stacked weights.
        causal_safe: False: every token sees all others.
        mixes_experts: True; marks layers that return a `MoEOutput`.

    Raises:
        ValueError: For a size < 1.

    Shape: (B, L, width) and `valid` (B, L) to a `MoEOutput`, without auxiliary losses. Of the statistics, `load` counts slots that
        have tokens, `importance` and the following use a token's weight of each expert, and all experts compute each token.

    References: Puigcerver et al., From sparse to soft mixtures of experts, ICLR 2024, arXiv 2308.00951. In reinforcement learning:
    Obando-Ceron et al., Mixtures of experts unlock parameter scaling for deep RL, ICML 2024, arXiv 2402.08609; Sokar et al.,
    Don't flatten, tokenize!, ICLR 2025, arXiv 2410.01930.

    Example:
        >>> SoftMoE(16, 32, num_experts=4, slots_per_expert=2)(torch.ones(2, 5, 16)).y.shape
        torch.Size([2, 5, 16])
    """

    mixes_experts = True
    causal_safe = False

    def __init__(
        self,
        width: int,
        hidden_width: int,
        num_experts: int,
        slots_per_expert: int = 1,
        *,
        normalize: bool = True,
        activation: Activation = "gelu",
        bias: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if slots_per_expert < 1:
            raise ValueError(f"slots_per_expert must be >= 1, got {slots_per_expert}.")
        generator = torch.Generator().manual_seed(seed)
        self.experts = Experts(num_experts, width, hidden_width, activation=activation, bias=bias, generator=generator)
        self.num_experts, self.slots_per_expert = num_experts, slots_per_expert
        slots = torch.empty(width, num_experts, slots_per_expert).normal_(std=width**-0.5, generator=generator)
        self.phi = nn.Parameter(slots)
        self.scale = nn.Parameter(torch.ones(())) if normalize else None

    def forward(self, x: Tensor, valid: Tensor | None = None) -> MoEOutput:
        """Apply the layer.

        Args:
            x: (B, L, width).
            valid: (B, L) bool, real tokens; None: all. What invalid tokens contain has no influence.

        Returns:
            Output, no losses, statistics.
        """
        check_input(x, valid, self.experts.width)
        if valid is not None:
            x = x.masked_fill(~valid.unsqueeze(-1), 0.0)
        batch, length, width = x.shape
        num_slots = self.num_experts * self.slots_per_expert
        with torch.autocast(x.device.type, enabled=False):
            weights = soft_mixing(x, self.phi, self.scale, valid)
        dispatch = weights.dispatch.to(x.dtype).view(batch, length, num_slots)  # (B, L, e, p) -> (B, L, e * p)
        combine = weights.combine.to(x.dtype).view(batch, length, num_slots)  # (B, L, e, p) -> (B, L, e * p)
        slots = (dispatch.transpose(1, 2) @ x).view(batch, self.num_experts, self.slots_per_expert, width)
        rows = slots.transpose(0, 1).reshape(-1, width)  # (B, e, p, d) -> (e * B * p, d)
        rows = self.experts(rows, [batch * self.slots_per_expert] * self.num_experts)
        slots = rows.view(self.num_experts, batch, self.slots_per_expert, width).transpose(0, 1)  # -> (B, e, p, d)
        y = (combine @ slots.reshape(batch, num_slots, width).to(combine.dtype)).to(x.dtype)
        if valid is not None:
            y = y.masked_fill(~valid.unsqueeze(-1), 0.0)
        samples = torch.tensor(batch, device=x.device) if valid is None else valid.any(dim=1).sum()
        flat_valid = None if valid is None else valid.flatten()
        probs = weights.combine.detach().sum(dim=-1).flatten(0, 1)  # (B, L, e, p) -> (B * L, e)
        zero = mean_over_tokens(torch.zeros_like(probs[:, 0]), flat_valid)
        everywhere = torch.full((batch * length,), self.num_experts, device=x.device)
        load = (samples * self.slots_per_expert).expand(self.num_experts)
        stats = router_stats(probs, flat_valid, load, everywhere, self.num_experts, zero, self.slots_per_expert)
        return MoEOutput(y, {}, stats)


def soft_mixing(x: Tensor, phi: Tensor, scale: Tensor | None = None, valid: Tensor | None = None) -> MixingWeights:
    """Compute how slots are mixed of tokens, and tokens of results, in float32 or wider.

    Args:
        x: (B, L, d).
        phi: (d, e, p).
        scale: Scalar that bounds the logits of normalised x and phi; None: as they are.
        valid: (B, L) bool, tokens that enter slots; None: all. In a sample without any, the weights of slots are 0.

    Returns:
        Both weights.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, phi = x.to(wide), phi.to(wide)
    if scale is not None:
        x = x / (x.norm(dim=-1, keepdim=True) + NORM_EPS)
        phi = scale.to(wide) * phi / (phi.norm(dim=0, keepdim=True) + NORM_EPS)
    logits = (x @ phi.flatten(1)).view(*x.shape[:2], *phi.shape[1:])  # (B, L, e * p) -> (B, L, e, p)
    combine = logits.flatten(2).softmax(dim=-1).view_as(logits)
    if valid is None:
        return MixingWeights(logits.softmax(dim=1), combine)
    # A finite number, so that a sample without valid tokens has no NaN.
    hidden = ~valid[:, :, None, None]
    dispatch = logits.masked_fill(hidden, torch.finfo(wide).min).softmax(dim=1).masked_fill(hidden, 0.0)
    return MixingWeights(dispatch, combine)
