"""Make an optimizer from a spec, a name, or a function."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import Optimizer

from rlopt.optim.specs import (
    LBFGS,
    Adagrad,
    Adam,
    AdamP,
    AdamW,
    Agc,
    Kfac,
    Lamb,
    Lars,
    LocoPropSpec,
    Muon,
    RMSprop,
    RMSpropTFSpec,
    Sam,
    ScaleInvariantSGDSpec,
    Sgd,
    SgdP,
    Shampoo,
    Soap,
    Spec,
)

OPTIMIZERS: dict[str, Spec] = {
    "sgd": Sgd(),
    "momentum": Sgd(momentum=0.9),
    "nesterov": Sgd(momentum=0.9, nesterov=True),
    "adam": Adam(),
    "adamw": AdamW(),
    "rmsprop": RMSprop(),
    "rmsprop_tf": RMSpropTFSpec(),
    "adagrad": Adagrad(),
    "lbfgs": LBFGS(),
    "muon": Muon(),
    "lamb": Lamb(),
    "lars": Lars(),
    "soap": Soap(),
    "shampoo": Shampoo(),
    "sgdp": SgdP(),
    "adamp": AdamP(),
    "kfac": Kfac(),
    "agc": Agc(),
    "sam": Sam(),
    "scale_invariant_sgd": ScaleInvariantSGDSpec(),
    "locoprop": LocoPropSpec(),
}
"""Names that `build_optimizer` knows, with the specs that they stand for."""

OptimizerLike = Spec | str | Callable[[Iterable[nn.Parameter]], Optimizer]


def build_optimizer(optimizer: OptimizerLike, module: nn.Module) -> Optimizer:
    """Make an optimizer for all parameters of a network.

    Args:
        optimizer: A spec; a name of `OPTIMIZERS`, which stands for a spec with its defaults; or a function that makes an optimizer
            of parameters, such as an optimizer class.
        module: The network.

    Returns:
        The optimizer.

    Raises:
        ValueError: For an unknown name, or a module without parameters.
        TypeError: For anything else, and if the function returns no optimizer.
        ImportError: If an optional package is missing.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> type(build_optimizer("adam", net)).__name__, type(build_optimizer(Lamb(lr=0.01), net)).__name__
        ('Adam', 'LAMB')
        >>> build_optimizer(lambda params: Optimizer(params, {"lr": 0.1}), net).param_groups[0]["lr"]
        0.1
    """
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            near = difflib.get_close_matches(optimizer, OPTIMIZERS, 1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(f"optimizer must be among {', '.join(OPTIMIZERS)}, got {optimizer!r}{hint}")
        optimizer = OPTIMIZERS[optimizer]
    if next(module.parameters(), None) is None:
        raise ValueError(f"module must have parameters, got a {type(module).__name__} without.")
    if isinstance(optimizer, Spec):
        return optimizer.build(module)
    if not callable(optimizer):
        raise TypeError(f"optimizer must be a spec, a name or a function of parameters, got {type(optimizer).__name__}.")
    built = optimizer(module.parameters())
    if not isinstance(built, Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer when it is called, got {type(built).__name__}.")
    return built
