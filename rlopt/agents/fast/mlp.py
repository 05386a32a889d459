"""Multi-layer perceptrons with a backward pass written out: several of them at once, their parameters in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch as th
from torch import nn

Activation = Literal["relu", "tanh"]
_ACTIVATIONS: dict[type[nn.Module], Activation] = {nn.ReLU: "relu", nn.Tanh: "tanh"}


class StackedMLP:
    """S perceptrons of one shape, computed together by batched products, without autograd.

    Layer l of network s: h_l = f(h_{l-1} W_ls^T + b_ls), the last one without f. Their parameters are the rows of one matrix, so
    that an optimizer or an average touches one tensor. Results are written into memory that is used again: what `forward` returns
    is valid until the next call with the same `slot` and number of rows.

    Args:
        widths: Of the input, the hidden layers and the output.
        num: S, number of networks, > 0.
        activation: f, "relu" or "tanh".
        params: Their parameters (S, n), each row in the order W_1, b_1, W_2, ...; None: zeros.
        device: Where they live, if there are no `params`.

    Example:
        >>> mlp = StackedMLP([2, 1], params=th.tensor([[1.0, 2.0, 3.0]]))
        >>> mlp.forward(th.tensor([[[10.0, 20.0]]]))
        tensor([[[53.]]])
        >>> grads = th.zeros(1, 3)
        >>> mlp.backward(th.ones(1, 1, 1), grads)
        >>> grads
        tensor([[10., 20.,  1.]])
    """

    def __init__(
        self,
        widths: Sequence[int],
        num: int = 1,
        activation: Activation = "relu",
        params: th.Tensor | None = None,
        device: th.device | str = "cpu",
    ) -> None:
        self.widths, self.num, self.activation = tuple(widths), num, activation
        size = sum(after * (before + 1) for before, after in zip(self.widths, self.widths[1:], strict=False))
        self.params = th.zeros(num, size, device=device) if params is None else params
        if self.params.shape != (num, size):
            raise ValueError(f"params must have the shape {(num, size)}, got {tuple(self.params.shape)}.")
        self._weights, self._biases = self.layers_of(self.params)
        self._transposed = [weight.transpose(1, 2) for weight in self._weights]
        self._kept: dict[tuple[str, int], list[th.Tensor]] = {}  # inputs of layers and output, by slot and rows
        self._scratch: dict[int, list[th.Tensor]] = {}
        self._of_grads: tuple[th.Tensor, list[th.Tensor], list[th.Tensor]] | None = None
        self._ones: dict[int, th.Tensor] = {}

    def layers_of(self, flat: th.Tensor) -> tuple[list[th.Tensor], list[th.Tensor]]:
        """Weights (S, out, in) and biases (S, 1, out) of the layers, as views of a matrix like the parameters'."""
        weights, biases, begin = [], [], 0
        for before, after in zip(self.widths, self.widths[1:], strict=False):
            weights.append(flat[:, begin : begin + after * before].view(len(flat), after, before))
            begin += after * before
            biases.append(flat[:, begin : begin + after].view(len(flat), 1, after))
            begin += after
        return weights, biases

    def forward(self, x: th.Tensor, slot: str = "") -> th.Tensor:
        """Outputs (S, B, out) of inputs (S, B, in); `backward` goes through the last call of the same slot."""
        kept = self._memory(slot, x.shape[1])
        kept[0] = x
        last = len(self._weights) - 1
        for layer, (weight, bias) in enumerate(zip(self._transposed, self._biases, strict=True)):
            out = kept[layer + 1]
            th.baddbmm(bias, kept[layer], weight, out=out)
            if layer < last:
                out.relu_() if self.activation == "relu" else out.tanh_()
        return kept[-1]

    def backward(self, grad: th.Tensor, grads: th.Tensor | None, slot: str = "", input_grad: bool = False) -> th.Tensor | None:
        """Derivatives of the sum of outputs times `grad`.

        Args:
            grad: (S, B, out).
            grads: Where the derivatives with respect to the parameters are written, (S, n); None: nowhere.
            slot: Which call of `forward`.
            input_grad: Whether to return the derivative with respect to the inputs.

        Returns:
            (S, B, in), valid until the next call, or None.
        """
        rows = grad.shape[1]
        kept = self._kept[slot, rows]
        scratch = self._scratch_memory(rows)
        if grads is not None and (self._of_grads is None or self._of_grads[0] is not grads):
            self._of_grads = (grads, *self.layers_of(grads))
        ones = self._ones.setdefault(rows, grad.new_ones(self.num, 1, rows))
        for layer in reversed(range(len(self._weights))):
            if grads is not None:
                assert self._of_grads is not None
                th.bmm(grad.transpose(1, 2), kept[layer], out=self._of_grads[1][layer])
                th.bmm(ones, grad, out=self._of_grads[2][layer])
            if layer == 0 and not input_grad:
                return None
            before = th.bmm(grad, self._weights[layer], out=scratch[layer])
            if layer > 0:
                if self.activation == "relu":
                    th.ops.aten.threshold_backward.grad_input(before, kept[layer], 0, grad_input=before)
                else:
                    th.ops.aten.tanh_backward.grad_input(before, kept[layer], grad_input=before)
            grad = before
        return grad

    def _memory(self, slot: str, rows: int) -> list[th.Tensor]:
        found = self._kept.get((slot, rows))
        if found is None:
            found = [self.params.new_empty(self.num, rows, width) for width in self.widths]
            self._kept[slot, rows] = found
        return found

    def _scratch_memory(self, rows: int) -> list[th.Tensor]:
        found = self._scratch.get(rows)
        if found is None:
            found = self._scratch[rows] = [self.params.new_empty(self.num, rows, width) for width in self.widths]
        return found


def widths_and_activation(network: nn.Module) -> tuple[list[int], Activation] | None:
    """Widths and activation of an `nn.Sequential` of linear layers with one kind of activation between them; None for another."""
    if not isinstance(network, nn.Sequential):
        return None
    layers = list(network)
    linear: list[Any] = layers[0::2]
    between = layers[1::2]
    kinds = {type(layer) for layer in between}
    if len(linear) != len(between) + 1 or len(kinds) > 1 or not kinds <= _ACTIVATIONS.keys():
        return None
    if not all(type(layer) is nn.Linear and layer.bias is not None for layer in linear):
        return None
    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    return widths, _ACTIVATIONS[kinds.pop()] if kinds else "relu"
