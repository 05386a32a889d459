"""What specs of optimizers share: checks, parameter groups, optional packages."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import Optimizer

# Field -> (smallest, largest exclusive, what the message says).
_ALLOWED: dict[str, tuple[float, float, str]] = {
    "lr": (0.0, math.inf, "a finite number >= 0"),
    "adam_lr": (0.0, math.inf, "a finite number >= 0"),
    "weight_decay": (0.0, math.inf, "a finite number >= 0"),
    "adam_weight_decay": (0.0, math.inf, "a finite number >= 0"),
    "momentum": (0.0, 1.0, "in [0, 1)"),
    "alpha": (0.0, 1.0, "in [0, 1)"),
    "betas": (0.0, 1.0, "in [0, 1)"),
    "adam_betas": (0.0, 1.0, "in [0, 1)"),
    "eps": (0.0, math.inf, "a finite number >= 0"),
}


class Spec(abc.ABC):
    """Description of an optimizer: a frozen dataclass that can be written down, compared, and built for a network."""

    def __post_init__(self) -> None:
        """Check the options that many optimizers have."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.name in _ALLOWED:
                low, high, allowed = _ALLOWED[field.name]
                value = getattr(self, field.name)
                if not all(low <= number < high for number in (value if isinstance(value, tuple) else (value,))):
                    raise ValueError(f"{field.name} must be {allowed}, got {value}.")

    @abc.abstractmethod
    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer for all parameters of a network."""


def decay_groups(module: nn.Module, weight_decay: float, matrices_only: bool, **others: Any) -> list[dict[str, Any]]:
    """Group the parameters: one group, or one with decay and one of vectors (biases, gains) without.

    Args:
        module: The network.
        weight_decay: Decay of the first group.
        matrices_only: Whether vectors get a group without decay.
        **others: Options of the group of vectors.

    Returns:
        Groups that are not empty.
    """
    params = list(module.parameters())
    if not matrices_only:
        return [{"params": params, "weight_decay": weight_decay}]
    matrices, vectors = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0, **others}]
    return [group for group in groups if group["params"]]


def parameters_named(module: nn.Module, patterns: Sequence[str]) -> list[nn.Parameter]:
    """Find parameters by patterns of their names such as "head.*".

    Raises:
        ValueError: If a pattern fits no name.
    """
    found: dict[str, nn.Parameter] = {}
    named = dict(module.named_parameters())
    for pattern in patterns:
        fitting = {name: p for name, p in named.items() if fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(f"patterns must fit names of parameters, got {pattern!r}; there are {', '.join(named)}.")
        found |= fitting
    return list(found.values())


def optional_package(name: str) -> Any:
    """Import a package of the extra `optim`.

    Raises:
        ImportError: If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # the package is there, and something below it is missing
        raise ImportError(f"{name} must be installed for this optimizer, but is not: pip install 'rlopt[optim]'.") from error
