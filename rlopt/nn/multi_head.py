"""Multi-head self-attention: projections around any attention without parameters of its own for them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rlopt.nn.attention import Attention, AttentionState
from rlopt.nn.heads import check_heads, merge_heads, split_heads
from rlopt.nn.rotary import rotate


class MultiHeadAttention(nn.Module):
    """Self-attention with several heads: for every head q, k, v = x W_q, x W_k, x W_v; out = concat(attention(q, k, v)) W_o.

    No biases, as in nanoGPT.

    Args:
        width: Size of the last dimension.
        num_heads: Heads; they divide `width`.
        attention: What turns queries, keys and values into outputs, see `rlopt.nn.Attention`. Can be exchanged later: the
            projections stay.
        causal: Whether position i sees only positions <= i.
        rotary: Whether queries and keys are turned by their positions, see `rlopt.nn.rotate`.

    Shape: (B, L, width) to the same.

    Raises:
        ValueError: If the heads do not divide the width, or have odd width with `rotary`.

    Example:
        >>> from rlopt.nn import SoftmaxAttention
        >>> layer = MultiHeadAttention(8, 2, SoftmaxAttention(), causal=True)
        >>> x = torch.ones(1, 3, 8)
        >>> state = layer.init_state(1, context=3)
        >>> token, state = layer.step(x[:, :1], state)
        >>> bool(torch.allclose(token, layer(x)[:, :1]))
        True
    """

    def __init__(self, width: int, num_heads: int, attention: Attention, *, causal: bool, rotary: bool = False) -> None:
        super().__init__()
        check_heads(width, num_heads)
        if rotary and width // num_heads % 2:
            raise ValueError(f"width / num_heads must be even with rotary positions, got {width} / {num_heads}.")
        self.width, self.num_heads, self.causal, self.rotary = width, num_heads, causal, rotary
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.attention = attention

    def forward(self, x: Tensor, valid: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, L, width).
            valid: (B, L) booleans, True for tokens that may be attended to; None: all.
            positions: (B, L) or (L,) integers for rotary positions; None: 0, 1, ..., L - 1.
        """
        query, key, value = (split_heads(layer(x), self.num_heads) for layer in (self.query, self.key, self.value))
        if self.rotary:
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device)
            query, key = rotate(query, positions), rotate(key, positions)
        attended = self.attention(query, key, value, is_causal=self.causal, key_padding_mask=valid)  # (B, H, L, D)
        return cast(Tensor, self.out(merge_heads(attended)))

    def init_state(
        self, batch_size: int, *, context: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AttentionState:
        """State before the first token; see `rlopt.nn.Attention.init_state`."""
        head_dim = self.width // self.num_heads
        return self.attention.init_state(
            batch_size, num_heads=self.num_heads, head_dim=head_dim, context=context, device=device, dtype=dtype
        )

    def step(self, x: Tensor, state: AttentionState, positions: Tensor | None = None) -> tuple[Tensor, AttentionState]:
        """Attend with one more token to all tokens so far.

        Args:
            x: (B, 1, width).
            state: Of the tokens so far.
            positions: (B, 1) integers; needed with rotary positions.

        Returns:
            (B, 1, width), what `forward` would have at the last of all tokens, and the new state.
        """
        query, key, value = (split_heads(layer(x), self.num_heads) for layer in (self.query, self.key, self.value))
        if self.rotary:
            if positions is None:
                raise ValueError("positions must be given to step with rotary positions, got None.")
            query, key = rotate(query, positions), rotate(key, positions)
        attended, state = self.attention.step(query, key, value, state)  # (B, H, 1, D)
        return self.out(merge_heads(attended)), state
