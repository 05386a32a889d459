"""The dense MLP of a transformer layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "relu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}


class DenseMLP(nn.Module):
    """W_2 f(W_1 x), without biases.

    Args:
        width: Size of the last dimension.
        hidden_width: Of the hidden layer.
        activation: f.

    Example:
        >>> import torch
        >>> DenseMLP(4, 8, "gelu")(torch.ones(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, width: int, hidden_width: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        self.expand = nn.Linear(width, hidden_width, bias=False)
        self.contract = nn.Linear(hidden_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers."""
        return cast(Tensor, self.contract(ACTIVATIONS[self.activation](self.expand(x))))
