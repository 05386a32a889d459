"""LocoProp against Adam on a small auto-encoder of generated curves: losses of a known range, and their order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlopt.data.curves import curves_like
from rlopt.optim.locoprop import LocoProp

WIDTHS = (196, 256, 128, 64, 12, 64, 128, 256, 196)


def make_net(generator: torch.Generator) -> nn.Sequential:
    parts: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        layer = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            layer.weight.uniform_(-1.0, 1.0, generator=generator).mul_(math.sqrt(6.0 / (fan_in + fan_out)))
            layer.bias.uniform_(-1.0, 1.0, generator=generator).mul_(math.sqrt(3.0 / fan_out))
        parts += [layer] if index in (3, 7) else [layer, nn.Tanh()]  # a linear code; the sigmoid of the output is in the loss
    return nn.Sequential(*parts)


def loss_of(net: nn.Module, images: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(net(images), images, reduction="none").sum(1).mean()


def train(make: Callable[[nn.Module], torch.optim.Optimizer], num_steps: int = 400) -> float:
    """Final loss on all images; 18.17 is the floor."""
    images = torch.from_numpy(curves_like().inputs).flatten(1)
    generator = torch.Generator().manual_seed(0)
    net = make_net(generator)
    optimizer = make(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 20 if step < 20 else 1.0 - (step - 20) / 380)
    batches = (batch for _ in itertools.count() for batch in torch.randperm(4000, generator=generator).split(500))
    for batch in itertools.islice(batches, num_steps):

        def closure(batch: Tensor = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, images[batch])
            loss.backward()
            return loss

        optimizer.step(closure)
        schedule.step()
    with torch.no_grad():
        return loss_of(net, images).item()


@pytest.mark.slow
def test_matching_beats_squared_beats_adam_and_all_reach_their_range() -> None:
    matching = train(LocoProp)
    squared = train(lambda net: LocoProp(net, variant="squared"))
    adam = train(lambda net: torch.optim.Adam(net.parameters(), lr=2e-3))
    exact = train(lambda net: LocoProp(net, variant="squared", solver="closed_form", gamma=500.0, prox_eta=1.0))
    assert 18.17 < matching < 21.0
    assert 18.17 < exact < 20.5
    assert 27.0 < adam < 34.0
    assert matching < squared < adam
