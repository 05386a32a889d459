"""Which optimizers evaluate the loss themselves."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch.optim import Optimizer

from rlopt.optim.sam import SAM


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether an optimizer evaluates the loss itself, several times per step (L-BFGS, SAM).

    That is so for `rlopt.optim.SAM`, for others if their attribute `needs_closure` says so, or, where they have none, if `step`
    cannot be called without a closure.

    Example:
        >>> import torch
        >>> weights = [torch.nn.Parameter(torch.zeros(1))]
        >>> needs_closure(torch.optim.LBFGS(weights)), needs_closure(torch.optim.SGD(weights, lr=0.1))
        (True, False)
    """
    if isinstance(optimizer, SAM):
        return True
    declared = getattr(optimizer, "needs_closure", None)
    # The stubs have an Optimizer that cannot be hashed.
    return _step_needs_closure(type(optimizer)) if declared is None else bool(declared)  # type: ignore[arg-type]


@functools.cache
def _step_needs_closure(kind: Any) -> bool:
    # Schedulers and hooks wrap `step` of the object; that of the class shows what was written.
    closure = inspect.signature(inspect.unwrap(kind.step)).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
