"""Tree attention by masks over all pairs of query and key: for training, with gradients for the tree."""

from __future__ import annotations

import torch
from torch import Tensor

from rlopt.nn._tree_routing import GradientPairs, without_value


def visible_pairs(num_queries: int, valid: Tensor, *, causal: bool) -> Tensor:
    """Which pairs padding and order allow: (B, S) to (B, 1, L, S)."""
    visible = valid[:, None, None, :].expand(-1, 1, num_queries, -1)
    return visible.tril() if causal else visible


def kept_pairs(leaf_query: Tensor, leaf_key: Tensor, visible: Tensor) -> Tensor:
    """Visible keys in the leaf of a query, or, where there are none, in its deepest ancestor that holds a visible key.

    Two leaves meet as many levels up as the bitwise difference of their numbers has digits, so these are the visible keys that meet
    the query after the fewest levels.

    Args:
        leaf_query: (B, H, L).
        leaf_key: (B, H, S).
        visible: Broadcastable to (B, H, L, S).

    Returns:
        (B, H, L, S) booleans.
    """
    difference = leaf_query.int().unsqueeze(-1) ^ leaf_key.int().unsqueeze(-2)  # (B, H, L, S)
    levels = torch.frexp(difference.float()).exponent  # digits; 0 for equal leaves
    levels = levels.masked_fill(~visible, torch.iinfo(levels.dtype).max)
    return visible & (levels == levels.amin(dim=-1, keepdim=True))


def cap_pairs(kept: Tensor, cap: int, rank: Tensor | None) -> Tensor:
    """Of the kept keys of every query, those with the `cap` lowest ranks, (B, H, S); without ranks the last ones."""
    if rank is None:
        return kept & (kept.flip(-1).cumsum(dim=-1).flip(-1) <= cap)
    by_rank = rank.argsort(dim=-1).unsqueeze(-2).expand_as(kept)
    first = kept.gather(-1, by_rank).cumsum(dim=-1) <= cap
    return kept & torch.zeros_like(kept).scatter(-1, by_rank, first)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where the mask is True, zeros elsewhere, also for rows without any True."""
    weights = torch.where(mask, scores, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return torch.where(mask, weights, torch.zeros_like(weights))


def attend_leaf(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    kept: Tensor,
    visible: Tensor,
    scale: float,
    members: tuple[Tensor, Tensor],
    pairs: GradientPairs,
) -> Tensor:
    """Softmax attention over the kept pairs, as if every numerator had a factor <M(q_i), M(k_j)> of value 1.

    Args:
        query: (B, H, L, D).
        key: (B, H, S, D).
        value: (B, H, S, Dv).
        kept: (B, H, L, S).
        visible: Broadcastable to (B, H, L, S).
        scale: Of the scores.
        members: One-hot leaves M of queries (B, H, L, 2^height) and keys (B, H, S, 2^height), with gradients.
        pairs: Which pairs have the factor. A visible one that is not kept has value 0 there.

    Returns:
        (B, H, L, Dv).
    """
    scores = scale * query @ key.transpose(-2, -1)  # (B, H, L, S)
    weights = masked_softmax(scores, kept)
    out = weights @ value
    with torch.no_grad():
        if pairs == "visible":
            normaliser = torch.where(kept, scores, float("-inf")).logsumexp(dim=-1, keepdim=True)
            # A hidden key can outweigh all that are kept; it counts as one that would take all the weight.
            strength = torch.where(visible & kept.any(dim=-1, keepdim=True), (scores - normaliser).clamp(max=0.0).exp(), 0.0)
        else:
            strength = weights
    factor = without_value(members[0] @ members[1].transpose(-2, -1)) * strength  # zeros with gradients
    # The derivative of a weighted mean with respect to one of its weights is the distance of that value from the mean.
    return out + factor @ value.detach() - factor.sum(dim=-1, keepdim=True) * out.detach()


def attend_path(
    value: Tensor, *, valid: Tensor, causal: bool, logits: Tensor, members: tuple[list[Tensor], list[Tensor]]
) -> Tensor:
    """Weighted sum over levels of the mean of the values that share the query's node.

    Args:
        value: (B, H, S, Dv).
        valid: (B, S).
        causal: Whether query i counts keys j <= i only.
        logits: (H, height + 1), of the weights of levels.
        members: One-hot nodes of queries and of keys, per level, with gradients.

    Returns:
        (B, H, L, Dv).
    """
    of_query = torch.cat(members[0], dim=-1)  # (B, H, L, N), N = 2^(height + 1) - 1 nodes
    of_key = torch.cat(members[1], dim=-1) * valid[:, None, :, None]  # (B, H, S, N)
    num_queries, num_keys = of_query.shape[-2], of_key.shape[-2]
    if causal:
        last = torch.arange(num_queries, device=value.device).clamp(max=num_keys - 1)
        counts = of_key.cumsum(dim=-2)[..., last, :]  # (B, H, L, N)
    else:
        counts = of_key.sum(dim=-2, keepdim=True)  # (B, H, 1, N)
    width = [level.shape[-1] for level in members[0]]
    occupied = torch.stack([c.sum(dim=-1) > 0 for c in torch.split((of_query * counts).detach(), width, dim=-1)], dim=-1)
    alpha = masked_softmax(logits.unsqueeze(1).expand(occupied.shape), occupied)  # (B, H, L, height + 1)
    repeats = torch.tensor(width, device=value.device)
    weights = of_query / counts.clamp(min=1.0) * alpha.repeat_interleave(repeats, dim=-1)
    if causal:
        return (weights @ of_key.transpose(-2, -1)).tril() @ value
    return weights @ (of_key.transpose(-2, -1) @ value)
