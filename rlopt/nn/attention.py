"""Attention modules without projections: drop-ins for `torch.nn.functional.scaled_dot_product_attention`.

All take queries (B, H, L, D), keys (B, H, S, D) and values (B, H, S, Dv) and return (B, H, L, Dv), with the meaning of torch's
arguments, a mask of valid keys, and a `step` that decodes one token at a time from a state.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AttentionState = dict[str, Tensor]
"""What `step` remembers: every tensor has the batch as its first dimension, and zeros are the state before the first token."""


class Attention(nn.Module):
    """Base class: attention that replaces `torch.nn.functional.scaled_dot_product_attention`.

    The rules that hold for all subclasses:

    * `scale` is 1 / sqrt(D) unless given. With `is_causal`, query i sees keys j <= i, also where L != S. A boolean `attn_mask` is
      True where a query may see a key, a float one is added to the scores. A mask together with `is_causal` is an error.
    * `key_padding_mask` (B, S) is True for real keys; it may be combined with everything.
    * A query that sees no key gives zeros, with zero gradients.
    * `dropout_p` acts whenever it is > 0; whoever calls passes 0 for evaluation.
    * Computed in float32 at least, also under autocast; the output has the dtype of the query.
    * What a class cannot honour, it refuses.
    * The output for one sample does not depend on the others of its batch.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        key_padding_mask: Tensor | None = None,
        return_stats: bool = False,
    ) -> Any:  # Tensor, or (Tensor, dict[str, Tensor]) with return_stats
        """Attend.

        Args:
            query: (B, H, L, D).
            key: (B, H, S, D).
            value: (B, H, S, Dv).
            attn_mask: Broadcastable to (B, H, L, S), boolean (True: may attend) or float (added to the scores).
            dropout_p: Probability of dropping a weight, in [0, 1).
            is_causal: Whether query i sees only keys j <= i.
            scale: Factor of the scores; None: 1 / sqrt(D).
            enable_gqa: Whether keys and values may have fewer heads, a divisor of H: each serves H / heads queries in a row.
            key_padding_mask: (B, S), True for real keys; None: all are.
            return_stats: Whether to return (output, stats), with detached tensors in a dictionary.

        Returns:
            (B, H, L, Dv), dtype of the query; with `return_stats` a pair.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward.")

    def init_state(
        self,
        batch_size: int,
        *,
        num_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        context: int,
        device: Any = None,
        dtype: Any = None,
    ) -> AttentionState:
        """Make the state before the first token: zeros.

        Args:
            batch_size: B.
            num_heads: Heads of keys and values.
            head_dim: D.
            value_dim: Dv; None: D.
            context: Tokens that are remembered; the oldest are forgotten. Attention that keeps sums ignores it.
            device: Of the tensors.
            dtype: Of the tensors; None: torch's default.

        Returns:
            Tensors with leading dimension B. To reset some rows, multiply those rows of every tensor by 0.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot decode token by token.")

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, state: AttentionState, *, scale: float | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Attend with one new token: the last row of causal attention over all tokens so far.

        Args:
            query: (B, H, 1, D).
            key: (B, H, 1, D), is added to the state before the query looks at it.
            value: (B, H, 1, Dv).
            state: From `init_state` or the last step; it is not modified.
            scale: As in `forward`.

        Returns:
            Output (B, H, 1, Dv), and the new state.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot decode token by token.")


class _DenseAttention(Attention):
    """Attention with a weight for every pair of tokens, and a state of the last `context` keys and values.

    Args:
        generator: Draws dropout, on the device of the inputs; whoever owns it saves its state. None: `dropout_p` must be 0.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.generator = generator

    def _weights(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        """Scores (B, H, L, S) to weights, zeros where not visible and in rows where nothing is."""
        raise NotImplementedError

    def _fast(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float
    ) -> Tensor | None:
        """The output without forming the weights, if there is a way; rows that see nothing may be anything."""
        return None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
        key_padding_mask: Tensor | None = None,
        return_stats: bool = False,
    ) -> Any:
        """Attend, see `Attention`.

        With `return_stats`, "entropy" (B, H, L) is the entropy of the weights of each query, in nats, and "num_keys" (B, H, L) the
        number of weights > 0; both before dropout.
        """
        check_inputs(query, key, value, attn_mask, is_causal, key_padding_mask)
        if not 0.0 <= dropout_p < 1.0:
            raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}.")
        if dropout_p > 0.0 and self.generator is None:
            raise ValueError(f"dropout_p must be 0 for attention that was made without a generator, got {dropout_p}.")
        key, value = repeat_heads(query, key, value, enable_gqa=enable_gqa)
        key, value = key.to(query.dtype), value.to(query.dtype)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        with torch.autocast(query.device.type, enabled=False):
            mask, causal = merge_masks(query, key, attn_mask, is_causal, key_padding_mask)
            if dropout_p == 0.0 and not return_stats:
                out = self._fast(query, key, value, mask, causal, scale)
                if out is not None:
                    return out
            scores = scale * widen(query) @ widen(key).mT  # (B, H, L, S)
            visible = causal_mask(query, key) if causal else mask
            if visible is not None and visible.dtype != torch.bool:
                scores = scores + visible.to(scores.dtype)
                visible = visible > -torch.inf
            weights = self._weights(scores, visible)
            dropped = weights
            if dropout_p > 0.0:
                keep = torch.full_like(weights, 1.0 - dropout_p)
                dropped = weights * torch.bernoulli(keep, generator=self.generator) / (1.0 - dropout_p)
            out = (dropped @ widen(value)).to(query.dtype)
        if return_stats:
            weights = weights.detach()
            return out, {"entropy": torch.special.entr(weights).sum(-1), "num_keys": (weights > 0.0).sum(-1)}
        return out

    def init_state(
        self,
        batch_size: int,
        *,
        num_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        context: int,
        device: Any = None,
        dtype: Any = None,
    ) -> AttentionState:
        """Make an empty cache: "key" (B, H, context, D), "value" (B, H, context, Dv), "valid" (B, context).

        The newest token is last. Every step makes a new cache, one copy of it: that costs about as much as attending to it does.
        """
        for name, size in (("batch_size", batch_size), ("num_heads", num_heads), ("head_dim", head_dim), ("context", context)):
            if size < 1:
                raise ValueError(f"{name} must be >= 1, got {size}.")
        value_dim = head_dim if value_dim is None else value_dim
        return {
            "key": torch.zeros(batch_size, num_heads, context, head_dim, device=device, dtype=dtype),
            "value": torch.zeros(batch_size, num_heads, context, value_dim, device=device, dtype=dtype),
            "valid": torch.zeros(batch_size, context, device=device, dtype=dtype),
        }

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, state: AttentionState, *, scale: float | None = None
    ) -> tuple[Tensor, AttentionState]:
        """Attend with one new token to the last `context` tokens, itself included, see `Attention`.

        Keys and values may have fewer heads than queries, as with `enable_gqa`.
        """
        check_step(query, key, value)
        state = append_to_cache(key, value, state)
        out = self(
            query,
            state["key"],
            state["value"],
            scale=scale,
            enable_gqa=True,
            key_padding_mask=state["valid"] != 0,
        )
        return out, state


class SoftmaxAttention(_DenseAttention):
    """Ordinary attention, softmax(scale q k' + mask) v, by torch's kernels.

    Weights are formed only for dropout and for `return_stats`. Dropout draws from the given generator, not from torch's global one.

    Args:
        generator: Draws dropout, on the device of the inputs; whoever owns it saves its state. None: `dropout_p` must be 0.

    Shape: see `Attention`.

    Raises:
        ValueError: In `forward`, for a mask together with `is_causal`, shapes that do not fit, and dropout without a generator.

    Example:
        >>> x = torch.arange(6.0).view(1, 1, 3, 2)
        >>> attention = SoftmaxAttention()
        >>> bool(torch.equal(attention(x, x, x), F.scaled_dot_product_attention(x, x, x)))
        True
        >>> attention(x, x, x, key_padding_mask=torch.tensor([[True, False, False]]))[0, 0, 2].tolist()
        [0.0, 1.0]
    """

    def _weights(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        if visible is None:
            return scores.softmax(-1)
        # A row of -inf would be NaN; `where` on both sides keeps its gradient out as well.
        seen = visible.any(-1, keepdim=True)
        weights = scores.masked_fill(~visible & seen, -torch.inf).masked_fill(~seen, 0.0).softmax(-1)
        return weights.masked_fill(~seen, 0.0)

    def _fast(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float
    ) -> Tensor | None:
        if attn_mask is None:
            return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
        visible = attn_mask if attn_mask.dtype == torch.bool else attn_mask > -torch.inf
        seen = visible.any(-1, keepdim=True)
        if attn_mask.dtype == torch.bool:
            attn_mask = attn_mask | ~seen
        else:
            attn_mask = attn_mask.masked_fill(~seen, 0.0).to(query.dtype)
        attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.shape[-2], key.shape[-2])
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale)
        return out.masked_fill(~seen, 0.0)


class ReluAttention(_DenseAttention):
    """Attention whose weights are ReLUs of scores divided by their row sums: N(relu(scale q k' + mask)) v.

    Without a float mask the output does not depend on the lengths of queries and of keys, nor on `scale` (> 0): the attention of
    `ScaleInvariantAttention`, see there. A query without a positive score gives zeros.

    Args:
        generator: Draws dropout, on the device of the inputs; whoever owns it saves its state. None: `dropout_p` must be 0.

    Shape: see `Attention`.

    Raises:
        ValueError: In `forward`, as `SoftmaxAttention`.

    Example:
        >>> query, key = torch.tensor([[[[1.0]]]]), torch.tensor([[[[1.0], [3.0], [-5.0]]]])
        >>> ReluAttention()(query, key, torch.eye(3)[None, None]).tolist()
        [[[[0.25, 0.75, 0.0]]]]
    """

    def _weights(self, scores: Tensor, visible: Tensor | None) -> Tensor:
        return relu_weights(scores, visible)


def relu_weights(scores: Tensor, visible: Tensor | None = None) -> Tensor:
    """Attention weights N(ReLU(scores)): positive scores divided by the sums of their rows.

    Args:
        scores: (..., L, S).
        visible: Booleans, broadcastable to the scores, True where a query may see a key; None: everywhere.

    Returns:
        (..., L, S), rows that sum to 1 or are zero, where no visible score is positive.

    Example:
        >>> relu_weights(torch.tensor([[1.0, 3.0, -2.0], [-1.0, 0.0, -2.0]])).tolist()
        [[0.25, 0.75, 0.0], [0.0, 0.0, 0.0]]
    """
    positive = torch.relu(scores)
    return normalize_rows(positive if visible is None else positive.masked_fill(~visible, 0.0))


def normalize_rows(scores: Tensor) -> Tensor:
    """Divide rows of numbers >= 0 by their sums; rows of zeros stay zero, with zero gradients.

    Args:
        scores: (..., n), entries >= 0.

    Returns:
        (..., n), rows that sum to 1 or are zero.

    Example:
        >>> normalize_rows(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
        [[0.25, 0.75], [0.0, 0.0]]
    """
    total = scores.sum(dim=-1, keepdim=True)
    return scores / torch.where(total > 0.0, total, torch.ones_like(total))


def check_inputs(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, key_padding_mask: Tensor | None
) -> None:
    """Refuse arguments of attention that do not fit together."""
    if not query.ndim == key.ndim == value.ndim == 4:
        raise ValueError(f"query, key and value must be (B, H, L, D), got {query.ndim}, {key.ndim} and {value.ndim} dimensions.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must have the same last dimension, got {query.shape[-1]} and {key.shape[-1]}.")
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"key and value must agree in batch, heads and length, got {tuple(key.shape)} and {tuple(value.shape)}.")
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask must be None with is_causal=True: put the causal rule into the mask.")
    if key_padding_mask is not None and (
        key_padding_mask.dtype != torch.bool or key_padding_mask.shape != (key.shape[0], key.shape[2])
    ):
        raise ValueError(
            f"key_padding_mask must be booleans of shape {(key.shape[0], key.shape[2])}, got {key_padding_mask.dtype} of shape "
            f"{tuple(key_padding_mask.shape)}."
        )


def check_step(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuse more than one token."""
    if not query.shape[-2] == key.shape[-2] == value.shape[-2] == 1:
        raise ValueError(f"step takes one token, got lengths {query.shape[-2]}, {key.shape[-2]} and {value.shape[-2]}.")


def repeat_heads(query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool) -> tuple[Tensor, Tensor]:
    """Give keys and values as many heads as queries, (B, H / g, S, .) to (B, H, S, .): each serves g queries in a row."""
    heads, key_heads = query.shape[1], key.shape[1]
    if heads == key_heads:
        return key, value
    if not enable_gqa:
        raise ValueError(f"key must have as many heads as query unless enable_gqa=True, got {key_heads} and {heads}.")
    if heads % key_heads:
        raise ValueError(f"heads of key must divide heads of query, got {key_heads} and {heads}.")
    return key.repeat_interleave(heads // key_heads, dim=1), value.repeat_interleave(heads // key_heads, dim=1)


def causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """(L, S) booleans, True for j <= i."""
    return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()


def merge_masks(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool, key_padding_mask: Tensor | None
) -> tuple[Tensor | None, bool]:
    """Put the mask of keys into the others.

    Returns:
        A mask broadcastable to (B, H, L, S), boolean or float, or None, and whether the causal rule is still to be applied (only
        without a mask).
    """
    if key_padding_mask is None:
        return attn_mask, is_causal
    padding = key_padding_mask[:, None, None, :]  # (B, 1, 1, S)
    if is_causal:
        return causal_mask(query, key) & padding, False
    if attn_mask is None:
        return padding, False
    if attn_mask.dtype == torch.bool:
        return attn_mask & padding, False
    return attn_mask.masked_fill(~padding, -torch.inf), False


def append_to_cache(key: Tensor, value: Tensor, state: AttentionState) -> AttentionState:
    """Add a token to the last tokens, newest at the end; the oldest is forgotten. The given state stays as it is.

    Args:
        key: (B, H, 1, D).
        value: (B, H, 1, Dv).
        state: "key" (B, H, context, D), "value" (B, H, context, Dv), "valid" (B, context).
    """
    valid = state["valid"]
    return {
        "key": torch.cat([state["key"][:, :, 1:], key.to(state["key"].dtype)], dim=2),
        "value": torch.cat([state["value"][:, :, 1:], value.to(state["value"].dtype)], dim=2),
        "valid": torch.cat([valid[:, 1:], torch.ones_like(valid[:, :1])], dim=1),
    }


def widen(x: Tensor) -> Tensor:
    """Float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
