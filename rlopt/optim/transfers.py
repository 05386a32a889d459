"""Transfer functions of layers and their matching losses: a registry.

A transfer f maps the pre-activations of a layer to its outputs. If f is the gradient of a convex potential F, then the matching
loss D_F(a, a*) = F(a) - F(a*) - <f(a*), a - a*> is convex in a, and its gradient is f(a) - f(a*). Monotone functions of single
entries have such a potential, and so has the softmax. GELU, SiLU and Mish are not monotone and are therefore absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Transfer:
    """A transfer function f with its potential F. Two of them are equal if name and parameters are.

    Args:
        name: Its name.
        function: `(a, *parameters) -> f(a)`, entry by entry, of the shape and dtype of a. Row-wise functions get a keyword `dim`,
            the dimension of the units.
        potential: `(a, *parameters) -> F(a)` up to a constant, with grad F = f; row-wise ones reduce `dim`. None: only the
            gradient of the matching loss is known, which is all that training needs.
        parameters: Further arguments of both.
        inplace: `function` that writes into a; saves one pass over memory.
        is_rowwise: Whether f mixes the units of a row, as the softmax does.
    """

    name: str
    function: Function = field(compare=False, repr=False)
    potential: Function | None = field(default=None, compare=False, repr=False)
    parameters: tuple[float, ...] = ()
    inplace: Function | None = field(default=None, compare=False, repr=False)
    is_rowwise: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether f(a) = a."""
        return self.name == "identity"

    def __call__(self, a: Tensor, dim: int = -1) -> Tensor:
        """Return f(a); the units lie along `dim`."""
        return self.function(a, *self.parameters, **({"dim": dim} if self.is_rowwise else {}))

    def apply_(self, a: Tensor, dim: int = -1) -> Tensor:
        """Replace a by f(a)."""
        if self.is_identity:
            return a
        if self.inplace is not None:
            return self.inplace(a, *self.parameters)
        return a.copy_(self(a, dim))

    def potential_sum(self, a: Tensor, dim: int = -1) -> Tensor:
        """Return F(a) summed over the units, with `dim` removed."""
        if self.potential is None:
            raise ValueError(f"transfer {self.name!r} has no potential; its matching loss is known by its gradient only.")
        if self.is_rowwise:
            return self.potential(a, *self.parameters, dim=dim)
        return self.potential(a, *self.parameters).sum(dim)


def _identity(a: Tensor) -> Tensor:
    return a


def _half_square(a: Tensor) -> Tensor:
    return 0.5 * a * a


def _log_cosh(a: Tensor) -> Tensor:
    size = a.abs()
    return size + torch.log1p(torch.exp(-2.0 * size)) - math.log(2.0)


def _tanh_(a: Tensor) -> Tensor:
    # On a CPU torch's tanh takes three times as long as its sigmoid. The rounding of this form, 1e-7, is below that of the
    # products that a comes from.
    if a.dtype is torch.float32 and a.device.type == "cpu":
        return a.mul_(2.0).sigmoid_().mul_(2.0).sub_(1.0)
    return a.tanh_()


def _softmax(a: Tensor, dim: int) -> Tensor:
    return torch.softmax(a, dim)


def _log_sum_exp(a: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(a, dim)


def _relu_potential(a: Tensor) -> Tensor:
    return 0.5 * a.clamp(min=0.0).square()


def _leaky_relu_potential(a: Tensor, slope: float) -> Tensor:
    return 0.5 * a.clamp(min=0.0).square() + 0.5 * slope * a.clamp(max=0.0).square()


def _elu_potential(a: Tensor, alpha: float) -> Tensor:
    below = a.clamp(max=0.0)
    return 0.5 * a.clamp(min=0.0).square() + alpha * (torch.expm1(below) - below)


def _softsign_potential(a: Tensor) -> Tensor:
    size = a.abs()
    return size - torch.log1p(size)


def _hardtanh_potential(a: Tensor, low: float, high: float) -> Tensor:
    inside = a.clamp(low, high)
    return 0.5 * inside.square() + inside * (a - inside)


def leaky_relu(slope: float = 0.01) -> Transfer:
    """Return the leaky ReLU with a slope >= 0 below zero."""
    return Transfer("leaky_relu", F.leaky_relu, _leaky_relu_potential, (slope,), F.leaky_relu_)


def elu(alpha: float = 1.0) -> Transfer:
    """Return the ELU with a saturation -alpha, alpha >= 0."""
    return Transfer("elu", F.elu, _elu_potential, (alpha,), F.elu_)


def hardtanh(low: float = -1.0, high: float = 1.0) -> Transfer:
    """Return the function that clips to [low, high]."""
    return Transfer("hardtanh", F.hardtanh, _hardtanh_potential, (low, high), F.hardtanh_)


def softplus(beta: float = 1.0, threshold: float = 20.0) -> Transfer:
    """Return log(1 + exp(beta a)) / beta, linear above a threshold, as in torch."""
    return Transfer("softplus", F.softplus, None, (beta, threshold))


IDENTITY = Transfer("identity", _identity, _half_square)
SOFTMAX = Transfer("softmax", _softmax, _log_sum_exp, is_rowwise=True)
_BUILTIN = (
    IDENTITY,
    SOFTMAX,
    Transfer("tanh", torch.tanh, _log_cosh, inplace=_tanh_),
    Transfer("sigmoid", torch.sigmoid, F.softplus, inplace=torch.sigmoid_),
    Transfer("relu", torch.relu, _relu_potential, inplace=torch.relu_),
    Transfer("softsign", F.softsign, _softsign_potential),
    Transfer("selu", torch.selu, inplace=torch.selu_),
    Transfer("relu6", F.hardtanh, _hardtanh_potential, (0.0, 6.0), F.hardtanh_),
    Transfer("hardsigmoid", F.hardsigmoid),
    leaky_relu(),
    elu(),
    hardtanh(),
    softplus(),
)
TRANSFERS: dict[str, Transfer] = {transfer.name: transfer for transfer in _BUILTIN}


def check_transfer(transfer: Transfer) -> None:
    """Check in float64 that a transfer is monotone and that its potential, if there is one, has it as gradient.

    Entry-wise functions are checked on a grid in [-6, 6], row-wise ones on fixed rows of three units, by <f(a) - f(b), a - b> >= 0.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_transfer(TRANSFERS["tanh"])
    """
    grid = torch.linspace(-6.0, 6.0, 961, dtype=torch.float64)
    # Rows that differ in one unit and in all of them; entry-wise functions see neighbouring points of the grid.
    rows = torch.stack([grid, grid.flip(0) * 0.5, torch.sin(3.0 * grid)], dim=1) if transfer.is_rowwise else grid[:, None]
    values = transfer(rows)
    if ((values[1:] - values[:-1]) * (rows[1:] - rows[:-1])).sum(1).min() < -1e-12:
        raise ValueError(
            f"transfer {transfer.name!r} must be monotone, or its local problem is not convex; use 'identity' instead."
        )
    if transfer.potential is None:
        return
    with torch.enable_grad():
        points = rows.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(transfer.potential_sum(points).sum(), points)
    if not torch.allclose(gradient, values, rtol=1e-9, atol=1e-9):
        raise ValueError(f"the gradient of the potential of transfer {transfer.name!r} must be its function.")


def register_transfer(transfer: Transfer) -> None:
    """Check a transfer and make it known by its name, for `LocoProp(transfer={"module": name})`.

    Raises:
        ValueError: If the name is taken by another transfer, or `check_transfer` refuses it.

    Example:
        >>> def arcsinh_potential(a):
        ...     return a * torch.asinh(a) - torch.sqrt(1 + a * a)
        >>> register_transfer(Transfer("arcsinh", torch.asinh, arcsinh_potential))
        >>> TRANSFERS.pop("arcsinh").name
        'arcsinh'
    """
    if transfer.name in TRANSFERS:
        raise ValueError(f"transfer {transfer.name!r} is registered already; choose another name.")
    check_transfer(transfer)
    TRANSFERS[transfer.name] = transfer


def find_transfer(transfer: str | Transfer) -> Transfer:
    """Return the transfer of a name; a transfer is returned as it is.

    Raises:
        ValueError: For an unknown name.

    Example:
        >>> find_transfer("tanh")(torch.zeros(1)).item()
        0.0
    """
    if isinstance(transfer, Transfer):
        return transfer
    if transfer not in TRANSFERS:
        raise ValueError(f"transfer must be one of {sorted(TRANSFERS)} or a Transfer, got {transfer!r}.")
    return TRANSFERS[transfer]
