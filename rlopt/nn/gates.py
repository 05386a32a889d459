"""Gates: how the output of a sub-module joins the residual stream.

Reference: Parisotto et al., Stabilizing transformers for reinforcement learning, ICML 2020, arXiv 1910.06764.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ResidualGate(nn.Module):
    """The ordinary residual connection, x + y.

    Example:
        >>> ResidualGate()(torch.tensor([1.0]), torch.tensor([2.0])).tolist()
        [3.0]
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Join the stream `x` and the output `y` of a sub-module."""
        return x + y


class GRUGate(nn.Module):
    """Gate of the gated transformer-XL, a GRU cell with the stream as its state.

        r = sigmoid(y W_r + x U_r),  u = sigmoid(y W_u + x U_u - bias),  h = tanh(y W_h + (r * x) U_h),
        gate(x, y) = (1 - u) * x + u * h

    with x the stream and y = ReLU of the sub-module's output, which the transformer applies. With the initial bias of 2, u is near
    0.12 and the layer starts near the identity, so that an agent first acts on the present observation.

    Args:
        width: Size of the last dimension.
        bias: Initial value of the bias (paper: 2).
        generator: Draws the six matrices, uniform in +- sqrt(3 / width) (each keeps the variance of its input; ours).

    The matrices are parameters and not of type `nn.Linear`: Stable-Baselines3 would give those other initial weights.

    Shape: x and y (..., width) to (..., width).

    Example:
        >>> gate = GRUGate(4, generator=torch.Generator().manual_seed(0))
        >>> gate(torch.ones(2, 3, 4), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, width: int, *, bias: float = 2.0, generator: torch.Generator | None = None) -> None:
        super().__init__()
        bound = (3.0 / width) ** 0.5
        self.of_output = nn.Parameter(torch.empty(width, 3 * width).uniform_(-bound, bound, generator=generator))  # W_r, W_u, W_h
        self.of_stream = nn.Parameter(torch.empty(width, 2 * width).uniform_(-bound, bound, generator=generator))  # U_r, U_u
        self.of_reset_stream = nn.Parameter(torch.empty(width, width).uniform_(-bound, bound, generator=generator))  # U_h
        self.bias = nn.Parameter(torch.full((width,), bias))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Join the stream `x` and the output `y` of a sub-module."""
        output_r, output_u, output_h = (y @ self.of_output).chunk(3, dim=-1)
        stream_r, stream_u = (x @ self.of_stream).chunk(2, dim=-1)
        reset = torch.sigmoid(output_r + stream_r)
        update = torch.sigmoid(output_u + stream_u - self.bias)
        proposed = torch.tanh(output_h + (reset * x) @ self.of_reset_stream)
        return (1.0 - update) * x + update * proposed
