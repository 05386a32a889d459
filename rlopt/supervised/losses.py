"""Losses and metrics of the tasks: `(outputs, targets)` -> mean over rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlopt.nn import CharTransformer, LanguageModelOutput

OfLogits = Callable[[Tensor, Tensor], Tensor]
IGNORED = -100  # targets of this value do not count; the number that torch's cross-entropy leaves out by itself


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
    """Cross-entropy per token in nats, for logits (B, L, V) and targets (B, L); targets of -100 do not count."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (B, L, V) -> (B * L, V)


def bits_per_token(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy per token in bits."""
    return token_cross_entropy(logits, targets) / math.log(2.0)


class AllOutputs(nn.Module):
    """A model of text called for all that it computes: `forward` returns `model.outputs(tokens)`, auxiliary losses included.

    Args:
        model: Called; its parameters have the prefix "model.".
    """

    def __init__(self, model: CharTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> LanguageModelOutput:
        """Logits, auxiliary losses and statistics of routers for tokens (B, L)."""
        return self.model.outputs(tokens)


@dataclass(frozen=True)
class WithAuxiliaryLosses:
    """A loss of logits plus the sum of coefs[name] * aux_losses[name], for outputs that have both.

    Args:
        loss: `(logits, targets)` -> mean over rows.
        coefs: Coefficients of auxiliary losses by name, >= 0; losses without one are not added.

    Raises:
        ValueError: For coefficients out of range; when called, for names that the outputs do not have.

    Example:
        >>> outputs = LanguageModelOutput(torch.zeros(1, 2, 4), {"balance": torch.tensor(1.5)}, {})
        >>> loss = WithAuxiliaryLosses(token_cross_entropy, {"balance": 0.01})
        >>> round(loss(outputs, torch.zeros(1, 2, dtype=torch.long)).item(), 4)  # log 4 + 0.01 * 1.5
        1.4013
    """

    loss: OfLogits
    coefs: Mapping[str, float]

    def __post_init__(self) -> None:
        """Check the coefficients."""
        for name, coef in self.coefs.items():
            if not 0.0 <= coef < math.inf:
                raise ValueError(f"aux_loss_coefs must be finite numbers >= 0, got {coef} for {name!r}.")

    def __call__(self, outputs: LanguageModelOutput, targets: Tensor) -> Tensor:
        """The sum."""
        total = self.loss(outputs.logits, targets)
        for name, coef in self.coefs.items():
            total = total + coef * _auxiliary(outputs, name)
        return total


@dataclass(frozen=True)
class OnLogits:
    """A metric of logits, for outputs that hold more."""

    metric: OfLogits

    def __call__(self, outputs: LanguageModelOutput, targets: Tensor) -> Tensor:
        """The metric of the logits."""
        return self.metric(outputs.logits, targets)


@dataclass(frozen=True)
class AuxiliaryLoss:
    """An auxiliary loss as a metric, without its coefficient."""

    name: str

    def __call__(self, outputs: LanguageModelOutput, targets: Tensor) -> Tensor:
        """The value for the batch; targets have no influence."""
        return _auxiliary(outputs, self.name)


def _auxiliary(outputs: LanguageModelOutput, name: str) -> Tensor:
    if name not in outputs.aux_losses:
        has = ", ".join(outputs.aux_losses) or "none"
        raise ValueError(f"aux_loss_coefs must name auxiliary losses of the model ({has}), got {name!r}.")
    return outputs.aux_losses[name]
