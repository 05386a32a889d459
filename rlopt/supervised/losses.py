"""Losses and metrics of the tasks: `(outputs, targets)` -> mean over rows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(logits), summed over pixels, mean over rows.

    Args:
        logits: (B, D).
        targets: (B, D) in [0, 1].

    Example:
        >>> round(pixel_cross_entropy(torch.zeros(5, 2), torch.ones(5, 2)).item(), 4)  # 2 log 2
        1.3863
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)


def pixel_squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error of sigmoid(logits), summed over pixels, mean over rows."""
    return (torch.sigmoid(logits) - targets).square().sum() / len(logits)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of predictions that are right; classes are on the last axis of `logits`."""
    return (logits.argmax(dim=-1) == targets).double().mean()


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per token in nats, for logits (B, L, V) and targets (B, L)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B, L, V) -> (B * L, V)


def bits_per_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per token in bits."""
    return token_cross_entropy(logits, targets) / math.log(2.0)
