"""The local problem of a layer: its rows, how it predicts from them, and the gradient of its loss.

Letters in the comments: B rows, I inputs and O outputs of a layer, K equally shaped layers that are solved together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight as _untyped_conv2d_weight

from rlopt.optim._capture import LayerRecord, Use
from rlopt.optim.transfers import Transfer

Tensors = dict[str, Tensor]  # "weight" and "bias", as far as they are there


_conv2d_weight: Callable[..., Tensor] = _untyped_conv2d_weight


class LinearRows:
    """Rows of a linear layer (B, I), or of K of them (K, B, I); biases of K layers are (K, 1, O)."""

    unit_dim = -1

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs

    @property
    def num_rows(self) -> int:
        """B."""
        return self.inputs.shape[-2]

    def predict(self, params: Tensors, out: Tensor | None = None, factor: float = 1.0) -> Tensor:
        """Return the pre-activations (B, O), times a factor."""
        weight, bias = params["weight"].mT, params.get("bias")
        if bias is None:
            outputs = torch.matmul(self.inputs, weight, out=out)
            return outputs if factor == 1.0 else outputs.mul_(factor)
        add_product = torch.addmm if self.inputs.dim() == 2 else torch.baddbmm
        return add_product(bias, self.inputs, weight, beta=factor, alpha=factor, out=out)

    def gradients(self, residual: Tensor, trained: Tensors, out: Tensors | None = None) -> Tensors:
        """Return the gradients of the trained parameters from f(A) - target (B, O)."""
        out, found = out or {}, {}
        if "weight" in trained:
            found["weight"] = torch.matmul(residual.mT, self.inputs, out=out.get("weight"))
        if "bias" in trained:
            found["bias"] = torch.sum(residual, -2, keepdim=trained["bias"].dim() == 3, out=out.get("bias"))
        return found


class ConvMaps:
    """Feature maps (N, I, H, W) of a convolution; a row is an output position, the rows are never formed."""

    unit_dim = 1

    def __init__(self, inputs: Tensor, module: nn.Conv2d, num_rows: int) -> None:
        self.inputs, self.padding = _padded(inputs, module)
        self.module = module
        self.num_rows = num_rows

    def predict(self, params: Tensors, out: Tensor | None = None) -> Tensor:
        """Return the pre-activations (N, O, H', W')."""
        module, bias = self.module, params.get("bias")
        return F.conv2d(self.inputs, params["weight"], bias, module.stride, self.padding, module.dilation)

    def gradients(self, residual: Tensor, trained: Tensors, out: Tensors | None = None) -> Tensors:
        """Return the gradients of the trained parameters from f(A) - target (N, O, H', W')."""
        found = {}
        if "weight" in trained:
            found["weight"] = _conv2d_weight(
                self.inputs, trained["weight"].shape, residual, self.module.stride, self.padding, self.module.dilation
            )
        if "bias" in trained:
            found["bias"] = residual.sum((0, 2, 3))
        return found


@dataclass
class LocalProblem:
    """What is known about the layer(s) when the backward pass is over."""

    layers: list[LayerRecord]
    rows: LinearRows | ConvMaps
    outputs: Tensor | None  # A; None: an in-place operation has overwritten it
    activated: Tensor | None  # f(A), where the network has computed it and kept it
    delta: Tensor  # gradient of the global loss with respect to A
    params: Tensors  # in the shape that `rows` works with
    trained: Tensors  # those of `params` that are trained
    first: Tensors | None  # gradients at the start, as accumulated by autograd; None: not to be trusted
    transfer: Transfer

    @property
    def key(self) -> tuple[object, ...]:
        """Problems with equal keys can be solved together."""
        return (
            type(self.rows), self.rows.inputs.shape, self.delta.shape, tuple(self.trained), tuple(self.params),
            self.delta.dtype, self.delta.device, self.transfer, self.first is None,
        )  # fmt: skip

    def start_gradients(self) -> Tensors:
        """Return the gradients of the global loss at the start."""
        return self.rows.gradients(self.delta, self.trained) if self.first is None else self.first

    def start_outputs(self) -> Tensor:
        """Return A."""
        return self.rows.predict(self.params) if self.outputs is None else self.outputs


def make_problem(layer: LayerRecord, transfer: Transfer, *, unfold: bool) -> LocalProblem:
    """Put the recorded uses of a layer together.

    Args:
        layer: A layer with at least one use.
        transfer: Its transfer.
        unfold: Form the rows of a convolution and treat it as a linear layer.
    """
    module, weight, bias = layer.module, layer.weight.detach(), layer.bias
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias.detach()}
    first = layer.exact_gradients()
    rows: LinearRows | ConvMaps
    if isinstance(module, nn.Conv2d):
        unfold = unfold or len({(use.inputs.shape[1:], use.outputs.shape[1:]) for use in layer.uses}) > 1
    if isinstance(module, nn.Conv2d) and not unfold:
        inputs, outputs, activated, delta = _joined(layer.uses, transfer, weight.dtype, lambda t, _: t if t.dim() == 4 else t[None])
        rows = ConvMaps(inputs, module, delta[:, 0].numel())
    elif isinstance(module, nn.Conv2d):
        inputs, outputs, activated, delta = _joined(
            layer.uses, transfer, weight.dtype, lambda t, is_input: _unfold(t, module, is_input)
        )
        rows = LinearRows(inputs)
        params["weight"] = weight.reshape(module.out_channels, -1)  # (O, I kh kw); a copy unless contiguous
        if first is not None and "weight" in first:
            first["weight"] = first["weight"].reshape(module.out_channels, -1)
    else:
        inputs, outputs, activated, delta = _joined(layer.uses, transfer, weight.dtype, lambda t, _: t.reshape(-1, t.shape[-1]))
        rows = LinearRows(inputs)
    trained = {name: params[name] for name in layer.parameters}
    return LocalProblem([layer], rows, outputs, activated, delta, params, trained, first, transfer)


def stack_problems(problems: list[LocalProblem]) -> LocalProblem:
    """Make one problem of equally shaped linear ones, with a leading dimension K."""
    if len(problems) == 1:
        return problems[0]

    def stack(tensors: list[Tensor]) -> Tensor:
        stacked = torch.stack(tensors)
        return stacked.unsqueeze(1) if stacked.dim() == 2 else stacked  # biases (K, O) -> (K, 1, O)

    head = problems[0]
    params = {name: stack([problem.params[name] for problem in problems]) for name in head.params}
    first = None
    if head.first is not None:
        first = {name: stack([problem.first[name] for problem in problems if problem.first]) for name in head.first}
    return LocalProblem(
        layers=[problem.layers[0] for problem in problems],
        rows=LinearRows(torch.stack([problem.rows.inputs for problem in problems])),
        outputs=torch.stack([problem.start_outputs() for problem in problems]),
        activated=None,
        delta=torch.stack([problem.delta for problem in problems]),
        params=params,
        trained={name: params[name] for name in head.trained},
        first=first,
        transfer=head.transfer,
    )


def _joined(
    uses: list[Use], transfer: Transfer, dtype: torch.dtype, as_rows: Callable[[Tensor, bool], Tensor]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Return inputs, outputs, activations and gradients of all uses as rows of one dtype."""

    def join(tensors: list[Tensor | None], is_input: bool = False) -> Tensor | None:
        parts = [as_rows(tensor, is_input).to(dtype) for tensor in tensors if tensor is not None]
        if len(parts) < len(uses):
            return None
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    inputs, delta = join([use.inputs for use in uses], is_input=True), join([use.delta for use in uses])
    assert inputs is not None
    assert delta is not None
    outputs = join([None if use.is_overwritten else use.outputs for use in uses])
    return inputs, outputs, join([use.activated_by(transfer) for use in uses]), delta


def _padded(inputs: Tensor, module: nn.Conv2d) -> tuple[Tensor, tuple[int, int]]:
    """Pad explicitly where the padding is not a number of zeros."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return inputs, (module.padding[0], module.padding[1])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode), (0, 0)


def _unfold(tensor: Tensor, module: nn.Conv2d, is_input: bool) -> Tensor:
    """Return the rows of feature maps (N, C, H, W)."""
    maps = tensor if tensor.dim() == 4 else tensor[None]
    if is_input:
        maps, padding = _padded(maps, module)
        patches = F.unfold(maps, module.kernel_size, module.dilation, padding, module.stride)  # (N, I kh kw, H' W')
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])  # (N H' W', O)
