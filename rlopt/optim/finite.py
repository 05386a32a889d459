"""Numbers that are not finite: the error that ends a run, what they are called in it, and steps that are left out."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlopt.optim.closures import needs_closure
from rlopt.optim.combined import CombinedOptimizer

NonFinite = Literal["raise", "skip"]
"""What happens to a step whose loss or gradient is not finite: the run ends, or the step is left out."""


class NonFiniteError(FloatingPointError):
    """Raised for a number that is nan or infinite where training cannot go on with it; the message says when and which."""


def check_non_finite(choice: str) -> None:
    """Refuse another choice than `NonFinite` has.

    Raises:
        ValueError: With what is allowed.
    """
    if choice not in get_args(NonFinite):
        raise ValueError(f"non_finite must be 'raise' or 'skip', got {choice!r}.")


def cause(named: Iterable[tuple[str, Tensor, Tensor | None]], loss: Tensor, of: str = "the loss") -> tuple[int, str]:
    """Words for what is not finite, the cause before its consequences, and how early it is among causes (smaller is earlier).

    Args:
        named: Name, parameter and gradient of what is trained.
        loss: Scalar.
        of: What the loss is called.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> cause([("w", w, torch.tensor([torch.inf]))], torch.tensor(0.5))
        (2, "the gradient of 'w' is not finite (the loss is 0.5)")
    """
    parts = list(named)
    for name, param, _ in parts:
        if not torch.isfinite(param).all():
            return 0, f"the parameter {name!r} is not finite"
    if not torch.isfinite(loss):
        return 1, f"{of} is {loss.item()}"
    for name, _, grad in parts:
        if grad is not None and not torch.isfinite(grad).all():
            return 2, f"the gradient of {name!r} is not finite ({of} is {loss.item():.6g})"
    return 3, f"the norm of the gradient overflows ({of} is {loss.item():.6g})"


def changes_early(optimizer: Optimizer) -> bool:
    """Whether an optimizer may have changed parameters or its state when it meets what is not finite."""
    parts = optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else ()
    # These three move before they have seen all gradients, or look at inputs of layers while they step.
    return needs_closure(optimizer) or hasattr(optimizer, "recorder") or any(map(changes_early, parts))


class Undo:
    """What a step changes, as it was before, so that the step can be left out to the bit.

    Args:
        buffers: Of the networks, such as running means.
        optimizer: Its parameters and its state are kept if it `changes_early`; otherwise there is no need to. None: neither is.
    """

    def __init__(self, buffers: Iterable[Tensor], optimizer: Optimizer | None = None) -> None:
        self._optimizer = optimizer if optimizer is not None and changes_early(optimizer) else None
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        tensors = [*(param for group in groups for param in group["params"]), *buffers]
        self._before = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._state: dict[str, Any] | None = None if self._optimizer is None else copy.deepcopy(self._optimizer.state_dict())

    @torch.no_grad()
    def __call__(self) -> None:
        """Bring everything back."""
        for tensor, value in self._before:
            tensor.copy_(value)
        if self._optimizer is not None and self._state is not None:
            self._optimizer.load_state_dict(self._state)
