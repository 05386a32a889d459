"""Which transfer function a call or a module applies to its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlopt.optim.transfers import SOFTMAX, TRANSFERS, Transfer, elu, hardtanh, leaky_relu, softplus

Arguments = tuple[Any, ...]
Options = Mapping[str, Any]

# Functions whose transfer has no parameters. The losses apply theirs to the last layer implicitly.
_PLAIN: dict[Callable[..., Any], Transfer] = {
    function: TRANSFERS[name]
    for name, functions in {
        "tanh": (torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh),
        "sigmoid": (torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid, torch.special.expit,
                    F.binary_cross_entropy_with_logits),
        "relu": (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu_),
        "selu": (torch.selu, torch.selu_, F.selu, F.selu_),
        "softsign": (F.softsign,),
        "relu6": (F.relu6,),
        "hardsigmoid": (F.hardsigmoid,),
    }.items()
    for function in functions
}  # fmt: skip
# Functions with parameters: how they are made, and names and defaults of the arguments after the input.
_WITH_PARAMETERS: dict[Callable[..., Any], tuple[Callable[..., Transfer], tuple[tuple[str, float], ...]]] = {
    F.leaky_relu: (leaky_relu, (("negative_slope", 0.01),)),
    F.leaky_relu_: (leaky_relu, (("negative_slope", 0.01),)),
    F.elu: (elu, (("alpha", 1.0),)),
    F.elu_: (elu, (("alpha", 1.0),)),
    F.hardtanh: (hardtanh, (("min_val", -1.0), ("max_val", 1.0))),
    F.hardtanh_: (hardtanh, (("min_val", -1.0), ("max_val", 1.0))),
    F.softplus: (softplus, (("beta", 1.0), ("threshold", 20.0))),
}
LOSSES = (F.binary_cross_entropy_with_logits, F.cross_entropy)  # they return no outputs of their transfer
_SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)
_MODULES: dict[type[nn.Module], str] = {
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ReLU: "relu",
    nn.SELU: "selu",
    nn.Softsign: "softsign",
    nn.ReLU6: "relu6",
    nn.Hardsigmoid: "hardsigmoid",
}


def _argument(arguments: Arguments, options: Options, index: int, name: str, default: Any) -> Any:
    return arguments[index] if len(arguments) > index else options.get(name, default)


def transfer_of_call(
    function: Callable[..., Any], arguments: Arguments, options: Options, num_dims: int, unit_dim: int
) -> Transfer | None:
    """Return the transfer that a call applies to its first argument; None if it is not known as one.

    Args:
        function: What was called.
        arguments: Its positional arguments.
        options: Its keyword arguments.
        num_dims: Dimensions of the first argument.
        unit_dim: The dimension along which the units of the layer lie.
    """
    if function in _PLAIN:
        return _PLAIN[function]
    if function in _WITH_PARAMETERS:
        make, parameters = _WITH_PARAMETERS[function]
        values = [_argument(arguments, options, index, *pair) for index, pair in enumerate(parameters, start=1)]
        return make(*values) if all(isinstance(value, int | float) for value in values) else None
    units = unit_dim % num_dims
    if function in _SOFTMAX:
        dim = _argument(arguments, options, 1, "dim", None)
        return SOFTMAX if isinstance(dim, int) and dim % num_dims == units else None
    if function is F.cross_entropy:  # its classes lie along dimension 1, or 0 without a batch
        return SOFTMAX if units == min(1, num_dims - 1) else None
    return None


def transfer_of_module(module: nn.Module | None, unit_dim: int) -> Transfer | None:
    """Return the transfer of an activation module; None if it is not known as one.

    Args:
        module: The module after a layer.
        unit_dim: The dimension along which the units of the layer lie; a softmax along another one is no transfer of the layer.
    """
    if isinstance(module, nn.LeakyReLU):
        return leaky_relu(module.negative_slope)
    if isinstance(module, nn.ELU):
        return elu(module.alpha)
    if isinstance(module, nn.Softplus):
        return softplus(module.beta, module.threshold)
    if isinstance(module, nn.Softmax):
        return SOFTMAX if module.dim == unit_dim else None
    if type(module) is nn.Hardtanh:
        return hardtanh(module.min_val, module.max_val)
    name = _MODULES.get(type(module)) if module is not None else None
    return None if name is None else TRANSFERS[name]
