"""Multiplicative masks for linear attention: the weight of a pair of tokens is M_ij phi(q_i) . phi(k_j).

An additive bias b of softmax scores is M = exp(b). What is needed of M is a fast product with vectors: Toeplitz matrices (relative
positions) by the fast Fourier transform, in one dimension or, for grids, in two; exponential decay by a recurrence.

Reference: Choromanski et al., From block-Toeplitz matrices to differential equations on graphs: towards a general theory for
scalable masked transformers, ICML 2022, arXiv 2107.07999.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def toeplitz_matvec(lags: Tensor, x: Tensor) -> Tensor:
    """Multiply vectors by a Toeplitz matrix, y_i = sum_j t(i - j) x_j, in O(L log L).

    The matrix is a corner of a circulant of size 2L whose first column is t(0), ..., t(L - 1), 0, t(-(L - 1)), ..., t(-1).

    Args:
        lags: (..., 2L - 1), t at i - j = -(L - 1), ..., L - 1.
        x: (..., L, F), F vectors; leading dimensions broadcast.

    Returns:
        (..., L, F).

    Raises:
        ValueError: If the lags do not fit the length.

    Example:
        >>> lags = torch.tensor([0.0, 1.0, 10.0])  # j after i: 0, j = i: 1, j before i: 10
        >>> [round(y, 4) for y in toeplitz_matvec(lags, torch.tensor([[1.0], [2.0]])).flatten().tolist()]
        [1.0, 12.0]
    """
    length = x.shape[-2]
    if lags.shape[-1] != 2 * length - 1:
        raise ValueError(f"lags must have 2 * {length} - 1 entries for vectors of length {length}, got {lags.shape[-1]}.")
    column = torch.cat([lags[..., length - 1 :], torch.zeros_like(lags[..., :1]), lags[..., : length - 1]], dim=-1)
    # Transforms along the last dimension in memory take half the time.
    spectrum = torch.fft.rfft(column)[..., None, :] * torch.fft.rfft(x.mT.contiguous(), n=2 * length)
    product: Tensor = torch.fft.irfft(spectrum, n=2 * length)
    return product[..., :length].mT


def block_toeplitz_matvec(lags: Tensor, x: Tensor) -> Tensor:
    """Multiply images by a block-Toeplitz matrix, y(r, c) = sum_(r', c') t(r - r', c - c') x(r', c'), by a 2-D Fourier transform.

    Args:
        lags: (..., 2h - 1, 2w - 1), t at row lags -(h - 1), ..., h - 1 and column lags -(w - 1), ..., w - 1.
        x: (..., h, w, F), F images; leading dimensions broadcast.

    Returns:
        (..., h, w, F).

    Raises:
        ValueError: If the lags do not fit the grid.

    Example:
        >>> y = block_toeplitz_matvec(torch.ones(3, 5), torch.ones(2, 3, 1))  # everything sees everything: 2 * 3
        >>> bool((y - 6).abs().max() < 1e-5)
        True
    """
    height, width = x.shape[-3:-1]
    if lags.shape[-2:] != (2 * height - 1, 2 * width - 1):
        raise ValueError(
            f"lags must be (2 * {height} - 1, 2 * {width} - 1) for a grid of {height} x {width}, got {tuple(lags.shape[-2:])}."
        )
    # A row and a column of zeros for lags -h and -w, then lag (0, 0) first: the first column of a circulant in both directions.
    kernel = nn.functional.pad(lags, (1, 0, 1, 0)).roll((-height, -width), dims=(-2, -1))  # (..., 2h, 2w)
    size = (2 * height, 2 * width)
    images = x.movedim(-1, -3).contiguous()  # (..., F, h, w)
    product: Tensor = torch.fft.irfft2(torch.fft.rfft2(kernel)[..., None, :, :] * torch.fft.rfft2(images, s=size), s=size)
    return product[..., :height, :width].movedim(-3, -1)


class AttentionMask(nn.Module):
    """Base class of masks that are a fast product with vectors."""

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Multiply by M.

        Args:
            x: (B, H, L, F), F vectors.
            is_causal: Whether entries with j > i count as zero.

        Returns:
            (B, H, L, F).
        """
        raise NotImplementedError(f"{type(self).__name__} has no product with vectors.")

    def dense(self, length: int, is_causal: bool = False) -> Tensor:
        """M itself, (H or 1, length, length)."""
        raise NotImplementedError(f"{type(self).__name__} has no dense form.")


class Toeplitz(AttentionMask):
    """Learned relative positions: M_ij = exp(b(i - j)), for every head.

    Args:
        num_heads: H.
        max_length: Longest sequence. Shorter ones use the lags in the middle.

    Attributes:
        bias: Parameter (H, 2 * max_length - 1), b at lags -(max_length - 1), ..., max_length - 1; zeros at first: M is all ones.

    Example:
        >>> mask = Toeplitz(1, 3)
        >>> with torch.no_grad():
        ...     mask.bias[0] = torch.tensor([3.0, 2.0, 1.0, 0.0, -torch.inf]).log1p().nan_to_num()
        >>> mask.dense(2, is_causal=True)[0].tolist()
        [[2.0, 0.0], [1.0, 2.0]]
    """

    def __init__(self, num_heads: int, max_length: int) -> None:
        super().__init__()
        _check_sizes(num_heads=num_heads, max_length=max_length)
        self.max_length = max_length
        self.bias = nn.Parameter(torch.zeros(num_heads, 2 * max_length - 1))

    def _lags(self, length: int, is_causal: bool) -> Tensor:
        if length > self.max_length:
            raise ValueError(f"max_length must be >= the length of sequences, got {self.max_length} for length {length}.")
        lags = self.bias[:, self.max_length - length : self.max_length + length - 1].exp()
        if is_causal:
            lags = torch.cat([torch.zeros_like(lags[:, : length - 1]), lags[:, length - 1 :]], dim=-1)
        return lags  # (H, 2 * length - 1)

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Multiply by M."""
        return toeplitz_matvec(self._lags(x.shape[-2], is_causal).to(x.dtype), x)

    def dense(self, length: int, is_causal: bool = False) -> Tensor:
        """M itself."""
        position = torch.arange(length, device=self.bias.device)
        return self._lags(length, is_causal)[:, position[:, None] - position + length - 1]


class BlockToeplitz2D(AttentionMask):
    """Learned relative positions on a grid, row by row: M_ij = exp(b(row_i - row_j, column_i - column_j)), for every head.

    Args:
        num_heads: H.
        height: Rows of the grid.
        width: Columns of the grid.
        num_prefix: Tokens before those of the grid, such as a class token. They see everything and are seen by everything (M = 1).

    Attributes:
        bias: Parameter (H, 2 * height - 1, 2 * width - 1), zeros at first.

    Sequences have exactly num_prefix + height * width tokens. With `is_causal`, a token sees those before it in that order.

    Example:
        >>> BlockToeplitz2D(2, 3, 4, num_prefix=1).dense(13).shape
        torch.Size([2, 13, 13])
    """

    def __init__(self, num_heads: int, height: int, width: int, *, num_prefix: int = 0) -> None:
        super().__init__()
        _check_sizes(num_heads=num_heads, height=height, width=width)
        if num_prefix < 0:
            raise ValueError(f"num_prefix must be >= 0, got {num_prefix}.")
        self.height, self.width, self.num_prefix = height, width, num_prefix
        self.bias = nn.Parameter(torch.zeros(num_heads, 2 * height - 1, 2 * width - 1))

    def _lags(self, is_causal: bool) -> Tensor:
        lags = self.bias.exp()
        if not is_causal:
            return lags
        row = torch.arange(1 - self.height, self.height, device=lags.device)[:, None]
        column = torch.arange(1 - self.width, self.width, device=lags.device)
        return torch.where((row > 0) | ((row == 0) & (column >= 0)), lags, torch.zeros_like(lags))

    def _check_length(self, length: int) -> None:
        if length != self.num_prefix + self.height * self.width:
            raise ValueError(f"length must be {self.num_prefix} + {self.height} * {self.width}, got {length}.")

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        """Multiply by M."""
        self._check_length(x.shape[-2])
        prefix, grid = x[..., : self.num_prefix, :], x[..., self.num_prefix :, :]
        image = grid.reshape(*grid.shape[:2], self.height, self.width, -1)  # (B, H, h * w, F) -> (B, H, h, w, F)
        y = block_toeplitz_matvec(self._lags(is_causal).to(x.dtype), image).flatten(-3, -2)  # (B, H, h * w, F)
        if self.num_prefix == 0:
            return y
        y = y + prefix.sum(-2, keepdim=True)
        first = prefix.cumsum(-2) if is_causal else x.sum(-2, keepdim=True).expand_as(prefix)
        return torch.cat([first, y], dim=-2)

    def dense(self, length: int, is_causal: bool = False) -> Tensor:
        """M itself."""
        self._check_length(length)
        index = torch.arange(self.height * self.width, device=self.bias.device)
        row, column = index // self.width, index % self.width
        lags = self._lags(is_causal)
        grid = lags[:, row[:, None] - row + self.height - 1, column[:, None] - column + self.width - 1]
        whole = grid.new_ones(grid.shape[0], length, length)
        whole = whole.tril() if is_causal else whole
        return torch.cat(
            [whole[:, : self.num_prefix], torch.cat([whole[:, self.num_prefix :, : self.num_prefix], grid], dim=-1)], dim=-2
        )


class Decay(nn.Module):
    """Exponential forgetting: M_ij = gamma^(i - j) for j <= i, else 0. Always causal.

    Args:
        gamma: In (0, 1], one number, or one for each head.

    Raises:
        ValueError: For gamma outside (0, 1].

    Example:
        >>> Decay(0.5).dense(3)[0].tolist()
        [[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]
    """

    log_gamma: Tensor
    """(H,) or (1,), buffer."""

    def __init__(self, gamma: float | Sequence[float]) -> None:
        super().__init__()
        values = torch.as_tensor(gamma, dtype=torch.float64).reshape(-1)
        if values.numel() == 0 or not bool(((values > 0.0) & (values <= 1.0)).all()):
            raise ValueError(f"gamma must be in (0, 1], got {gamma}.")
        self.register_buffer("log_gamma", values.log().to(torch.get_default_dtype()))

    def dense(self, length: int) -> Tensor:
        """M itself, (H or 1, length, length)."""
        position = torch.arange(length, device=self.log_gamma.device)
        return ((position[:, None] - position).clamp(min=0) * self.log_gamma[:, None, None]).exp().tril()


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be >= 1, got {value}.")
