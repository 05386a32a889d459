"""Heads of attention: splitting the representation of a token, and joining it again."""

from __future__ import annotations

from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Split the last dimension into heads: (B, L, H * D) to (B, H, L, D)."""
    batch, length, width = x.shape
    return x.view(batch, length, num_heads, width // num_heads).transpose(1, 2)  # (B, L, H, D) -> (B, H, L, D)


def merge_heads(x: Tensor) -> Tensor:
    """Undo `split_heads`: (B, H, L, D) to (B, L, H * D)."""
    batch, num_heads, length, head_width = x.shape
    return x.transpose(1, 2).reshape(batch, length, num_heads * head_width)  # (B, L, H, D) -> (B, L, H * D)


def check_heads(width: int, num_heads: int) -> None:
    """Refuse heads that do not divide the width."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must be a divisor of width, got {num_heads} heads for width {width}.")
