"""Several optimizers as one: groups, state and schedulers of all parts behind a single object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch.optim import Optimizer


class CombinedOptimizer(Optimizer):
    """Steps several optimizers, each on parameters of its own, as one `torch.optim.Optimizer`.

    `param_groups` are the groups of the parts, in order, and the very same dictionaries, so a scheduler or a hand that writes to
    `group["lr"]` acts on all parts. `state` is shared as well: one `state_dict` holds everything.

    Args:
        optimizers: One or more optimizers without common parameters. They must be able to step without a closure, which leaves out
            `torch.optim.LBFGS`.

    Attributes:
        optimizers: The parts. Do not load states into them; load into the whole.

    Raises:
        ValueError: If no optimizer is given, or if a parameter belongs to two.

    Example:
        >>> layer = torch.nn.Linear(3, 2)
        >>> parts = [torch.optim.SGD([layer.weight], lr=0.1), torch.optim.Adam([layer.bias], lr=0.01)]
        >>> optimizer = CombinedOptimizer(parts)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 0.01]
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = tuple(optimizers)
        if not self.optimizers:
            raise ValueError("optimizers must hold at least one optimizer, got none.")
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        defaults = dict(self.optimizers[0].defaults) if len(self.optimizers) == 1 else {}
        super().__init__(groups, defaults)  # keeps the dictionaries themselves
        for optimizer in self.optimizers:
            self.state.update(optimizer.state)
        self._share()

    def _share(self) -> None:
        """Let the parts work on this object's groups and state."""
        start = 0
        for optimizer in self.optimizers:
            stop = start + len(optimizer.param_groups)
            optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups[start:stop]})
            start = stop

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the only part; with several parts it would be unclear to which."""
        if any(param_group is group for optimizer in self.optimizers for group in optimizer.param_groups):
            super().add_param_group(param_group)  # called by the constructor of the base class
            return
        if len(self.optimizers) > 1:
            raise ValueError("add_param_group must be called on one of the parts before they are combined; here it is ambiguous.")
        self.optimizers[0].add_param_group(param_group)
        self.param_groups = list(self.optimizers[0].param_groups)
        self._share()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; each part does it, since it may keep more than gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def _before_step(self) -> None:
        """What a subclass does to the gradients."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Step all parts; a closure is evaluated once, before.

        Args:
            closure: Clears the gradients, computes the loss and its gradients, and returns it.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._before_step()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss
