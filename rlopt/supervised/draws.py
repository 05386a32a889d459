"""What layers draw during training, under the control of the trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class DrawState:
    """State of torch's global generators that belongs to a trainer, put in place while it trains.

    Layers such as dropout draw from the global generators. With this they draw what the seed says, whatever ran before, and
    leave no trace.

    Args:
        device: Where the layers are; the CPU's generator always belongs to the state.
        seed: Seed of the generators.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._active = False
        self._cpu: Tensor = torch.Generator().manual_seed(seed).get_state()
        self._cuda: Tensor | None = torch.Generator(device).manual_seed(seed).get_state() if self._is_cuda else None

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Let layers draw from this state; the global state is restored at the end."""
        with torch.random.fork_rng([self._device] if self._is_cuda else []):
            torch.set_rng_state(self._cpu)
            if self._cuda is not None:
                torch.cuda.set_rng_state(self._cuda, self._device)
            self._active = True
            try:
                yield
            finally:
                self._read()
                self._active = False

    def _read(self) -> None:
        self._cpu = torch.get_rng_state()
        if self._is_cuda:
            self._cuda = torch.cuda.get_rng_state(self._device)

    def state_dict(self) -> dict[str, Tensor]:
        """The state as it is now."""
        if self._active:
            self._read()
        return {"cpu": self._cpu} if self._cuda is None else {"cpu": self._cpu, "cuda": self._cuda}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state."""
        self._cpu, self._cuda = state["cpu"], state.get("cuda")
