"""Dropout with a generator of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GeneratorDropout(nn.Module):
    """Dropout that draws from a generator of its own, one per device, instead of torch's global one.

    Args:
        probability: Share of entries that become zero in training, in [0, 1); the others are divided by 1 - probability.
        seed: Seed of the generators.
    """

    def __init__(self, probability: float, seed: int) -> None:
        super().__init__()
        self.probability, self.seed = probability, seed
        self.generators: dict[torch.device, torch.Generator] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries in training."""
        if not self.training or self.probability == 0.0:
            return x
        if x.device not in self.generators:
            self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
        keep = 1.0 - self.probability
        return x * torch.bernoulli(torch.full_like(x, keep), generator=self.generators[x.device]) / keep

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the states of the generators by device, so that a model that is loaded goes on with the same draws."""
        return {str(device): generator.get_state() for device, generator in self.generators.items()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take over the states of generators."""
        self.generators = {}
        for name, values in state.items():
            device = torch.device(name)
            self.generators[device] = torch.Generator(device)
            self.generators[device].set_state(values.cpu())
