"""Networks of many experts computed together: one two-layer MLP per expert, weights stacked in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "relu"]


class Experts(nn.Module):
    """`num_experts` MLPs with one hidden layer, each applied to rows of its own.

    Expert i maps x to act(x W_in[i] + b_in[i]) W_out[i] + b_out[i]; without `bias` there are no b. Rows come sorted by expert, so
    no row is padded and no one-hot matrix is formed: one batched product where all experts have equally many rows, else one
    product per expert that has any. An expert without rows has a gradient of zeros, not None, so that
    `DistributedDataParallel` needs no special setting.

    All parameters are plain `nn.Parameter`: frameworks that re-initialise every `nn.Linear` (Stable-Baselines3 with
    `ortho_init=True`) leave them alone. The initial weights are those of `nn.Linear`, uniform within 1 / sqrt(inputs).

    Args:
        num_experts: Experts, >= 1.
        width: Size of a row, >= 1.
        hidden_width: Hidden units of one expert, >= 1.
        activation: "gelu" (exact) or "relu".
        bias: Whether both layers have biases.
        generator: Draws the initial weights; on the CPU.

    Attributes:
        w_in: (num_experts, width, hidden_width).
        w_out: (num_experts, hidden_width, width).
        b_in: (num_experts, hidden_width), or None.
        b_out: (num_experts, width), or None.

    Raises:
        ValueError: For a size < 1 and for another activation.

    Example:
        >>> experts = Experts(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> experts(torch.ones(3, 4), sizes=[1, 2]).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden_width: int,
        *,
        activation: Activation = "gelu",
        bias: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        for name, value in (("num_experts", num_experts), ("width", width), ("hidden_width", hidden_width)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}.")
        if activation not in get_args(Activation):
            raise ValueError(f"activation must be 'gelu' or 'relu', got {activation!r}.")
        self.num_experts, self.width, self.hidden_width, self.activation = num_experts, width, hidden_width, activation

        def uniform(fan_in: int, *shape: int) -> nn.Parameter:
            bound = fan_in**-0.5
            return nn.Parameter(torch.empty(num_experts, *shape).uniform_(-bound, bound, generator=generator))

        self.w_in = uniform(width, width, hidden_width)
        self.w_out = uniform(hidden_width, hidden_width, width)
        self.b_in = uniform(width, hidden_width) if bias else None
        self.b_out = uniform(hidden_width, width) if bias else None

    def forward(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Apply each expert to its rows.

        Args:
            rows: (sum of sizes, width); first the rows of expert 0, then those of expert 1, and so on.
            sizes: Rows of each expert, >= 0.

        Returns:
            (sum of sizes, width), in the same order.
        """
        if len(set(sizes)) == 1:
            hidden = rows.view(self.num_experts, sizes[0], self.width)  # (rows, d) -> (e, rows / e, d)
            hidden = self._activate(_affine(hidden, self.w_in, self.b_in))
            return _affine(hidden, self.w_out, self.b_out).view(-1, self.width)  # (e, rows / e, d) -> (rows, d)
        # `unbind` has one gradient for the whole stack; indexing would make a stack of zeros for each expert.
        w_in, w_out = self.w_in.unbind(), self.w_out.unbind()
        b_in = [None] * self.num_experts if self.b_in is None else self.b_in.unbind()
        b_out = [None] * self.num_experts if self.b_out is None else self.b_out.unbind()
        outs = [
            _affine(self._activate(_affine(part, w_in[i], b_in[i])), w_out[i], b_out[i])
            for i, part in enumerate(torch.split(rows, list(sizes)))
            if len(part) > 0
        ]
        return torch.cat(outs)

    def apply_one(self, rows: Tensor, expert: int) -> Tensor:
        """Apply one expert to rows (n, width)."""
        b_in, b_out = (None if bias is None else bias[expert] for bias in (self.b_in, self.b_out))
        return _affine(self._activate(_affine(rows, self.w_in[expert], b_in)), self.w_out[expert], b_out)

    def extra_repr(self) -> str:
        """Sizes."""
        return (
            f"{self.num_experts}, {self.width}, {self.hidden_width}, activation={self.activation!r}, bias={self.b_in is not None}"
        )

    def _activate(self, hidden: Tensor) -> Tensor:
        return F.gelu(hidden) if self.activation == "gelu" else torch.relu(hidden)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., rows, n) times (..., n, m), plus a bias (..., m) for every row."""
    if bias is None:
        return x @ weight
    return torch.addmm(bias, x, weight) if x.ndim == 2 else torch.baddbmm(bias.unsqueeze(1), x, weight)
