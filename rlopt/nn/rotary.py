"""Rotary position embedding: queries and keys turn with their position, so that scores depend on distances only.

Reference: Su, Lu, Pan, Murtadha, Wen, Liu, RoFormer: enhanced transformer with rotary position embedding, 2021, arXiv 2104.09864.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, *, base: float = 10000.0) -> Tensor:
    """Turn pairs of entries by angles that grow with the position.

    Entries i and i + head_dim / 2 are a pair, turned by positions * base^(-2 i / head_dim). For q and k turned by positions i and
    j, the product q . k depends on i - j only. Lengths stay as they are. Angles are computed in float32.

    Args:
        x: Queries or keys (B, H, L, head_dim), head_dim even.
        positions: (B, L) or (L,), integers.
        base: Ratio of the slowest to the fastest turn, about; > 1 (paper: 10000).

    Returns:
        (B, H, L, head_dim), dtype of `x`.

    Raises:
        ValueError: For an odd head_dim.

    Example:
        >>> x = torch.tensor([[[[1.0, 0.0]]]])
        >>> [round(entry, 4) for entry in rotate(x, torch.tensor([1])).flatten().tolist()]
        [0.5403, 0.8415]
    """
    head_dim = x.shape[-1]
    if head_dim % 2:
        raise ValueError(f"head_dim must be even for rotary positions, got {head_dim}.")
    speeds = base ** (-torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float32) / head_dim)  # (D / 2,)
    angles = positions.to(torch.float32)[..., None] * speeds  # (B, L, D / 2) or (L, D / 2)
    if angles.ndim == 3:
        angles = angles[:, None]  # (B, 1, L, D / 2), the same for all heads
    wide = x.dtype if x.dtype == torch.float64 else torch.float32
    cos, sin = angles.cos().to(wide), angles.sin().to(wide)
    first, second = x.to(wide).chunk(2, dim=-1)  # (B, H, L, D / 2) each
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
