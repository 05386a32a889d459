"""Tokenizers: how an observation becomes the tokens that a transformer or a mixture of experts works on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PerDimensionTokenizer(nn.Module):
    """Each number of a vector is a token: token_i = x_i w_i + b_i.

    Args:
        size: Numbers in a vector.
        width: Size of a token.
        generator: Draws the weights: w normal with deviation 1, b uniform in +- 1.

    Shape: (B, size) to (B, size, width).

    Example:
        >>> PerDimensionTokenizer(4, 8, generator=torch.Generator().manual_seed(0))(torch.ones(2, 4)).shape
        torch.Size([2, 4, 8])
    """

    def __init__(self, size: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.num_tokens = size
        # Parameters and not layers, here and below: Stable-Baselines3 would give layers other initial weights.
        self.weight = nn.Parameter(torch.empty(size, width).normal_(generator=generator))
        self.bias = nn.Parameter(torch.empty(size, width).uniform_(-1.0, 1.0, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Make the tokens."""
        return x[..., None] * self.weight + self.bias  # (B, N, 1) * (N, W)


class VectorPatchTokenizer(nn.Module):
    """Every `patch_size` numbers of a vector are a token, each with a linear map of its own; the last patch is filled with zeros.

    Args:
        size: Numbers in a vector.
        patch_size: Numbers in a patch, > 0.
        width: Size of a token.
        generator: Draws the weights, normal with variance 1 / patch_size, and biases, uniform in +- 1.

    Shape: (B, size) to (B, ceil(size / patch_size), width).

    Raises:
        ValueError: For a patch size out of range.

    Example:
        >>> VectorPatchTokenizer(5, 2, 8, generator=torch.Generator().manual_seed(0))(torch.ones(2, 5)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, size: int, patch_size: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size must be > 0, got {patch_size}.")
        self.num_tokens, self.patch_size = math.ceil(size / patch_size), patch_size
        self.padding = self.num_tokens * patch_size - size
        std = patch_size**-0.5
        self.weight = nn.Parameter(torch.empty(self.num_tokens, patch_size, width).normal_(std=std, generator=generator))
        self.bias = nn.Parameter(torch.empty(self.num_tokens, width).uniform_(-1.0, 1.0, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Make the tokens."""
        padded = nn.functional.pad(x, (0, self.padding))
        patches = padded.reshape(len(x), self.num_tokens, self.patch_size)  # (B, N * P) -> (B, N, P)
        return torch.einsum("bnp,npw->bnw", patches, self.weight) + self.bias


class ImagePatchTokenizer(nn.Module):
    """Square patches of an image are tokens, all with the same linear map, row by row.

    Args:
        shape: (channels, height, width) of the image; both sides are multiples of `patch_size`.
        patch_size: Pixels along a side of a patch, > 0.
        width: Size of a token.
        generator: Draws the weights, normal with variance 1 / (channels patch_size^2).

    Shape: (B, C, height, width) to (B, number of patches, width).

    Raises:
        ValueError: For a patch size that does not divide the image.

    References: Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021, arXiv 2010.11929.

    Example:
        >>> ImagePatchTokenizer((3, 8, 12), 4, 16, generator=torch.Generator().manual_seed(0))(torch.ones(2, 3, 8, 12)).shape
        torch.Size([2, 6, 16])
    """

    def __init__(self, shape: tuple[int, int, int], patch_size: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        channels, image_height, image_width = shape
        if patch_size < 1 or image_height % patch_size or image_width % patch_size:
            raise ValueError(f"patch_size must divide both sides of the image, {image_height} x {image_width}, got {patch_size}.")
        self.num_tokens, self.patch_size = image_height * image_width // patch_size**2, patch_size
        size = channels * patch_size**2
        self.weight = nn.Parameter(torch.empty(size, width).normal_(std=size**-0.5, generator=generator))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Make the tokens."""
        (batch, channels, height, width), size = x.shape, self.patch_size
        patches = x.reshape(batch, channels, height // size, size, width // size, size)  # (B, C, rows, P, columns, P)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, self.num_tokens, -1)  # (B, rows * columns, C * P * P)
        return patches @ self.weight + self.bias


class StepTokenizer(nn.Module):
    """Each step of a sequence of vectors is a token: token_t = x_t W + b.

    Args:
        size: Numbers of a step.
        width: Size of a token.
        generator: Draws the weights, normal with variance 1 / size, and the bias, uniform in +- 1: beside it the size of x_t still
            counts when a transformer normalises its tokens.

    Shape: (B, L, size) to (B, L, width).

    Example:
        >>> StepTokenizer(3, 8, generator=torch.Generator().manual_seed(0))(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, size: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, width).normal_(std=size**-0.5, generator=generator))
        self.bias = nn.Parameter(torch.empty(width).uniform_(-1.0, 1.0, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Make the tokens."""
        return x @ self.weight + self.bias
