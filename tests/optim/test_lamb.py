"""LAMB: its first step, its formula in plain numbers, and what is left out of adaptation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rlopt.optim import LAMB


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_first_step_is_as_long_as_lr_times_the_weight() -> None:
    w = nn.Parameter(draws(4, 3))
    before = w.detach().clone()
    w.grad = draws(4, 3, seed=1)
    LAMB([w], lr=0.01).step()
    assert (w - before).norm().item() == pytest.approx(0.01 * before.norm().item(), rel=1e-12)


def test_steps_equal_the_formula_in_plain_numbers() -> None:
    w = nn.Parameter(draws(3))
    optimizer = LAMB([w], lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.05)
    values, m, v = w.tolist(), [0.0] * 3, [0.0] * 3
    for t in range(1, 6):
        w.grad = draws(3, seed=t)
        u = []
        for i, g in enumerate(w.grad.tolist()):
            m[i] = 0.8 * m[i] + 0.2 * g
            v[i] = 0.9 * v[i] + 0.1 * g * g
            u.append(m[i] / (1 - 0.8**t) / (math.sqrt(v[i] / (1 - 0.9**t)) + 1e-3) + 0.05 * values[i])
        ratio = math.dist(values, [0] * 3) / math.dist(u, [0] * 3)
        values = [x - 0.1 * ratio * y for x, y in zip(values, u, strict=True)]
        optimizer.step()
        assert w.tolist() == pytest.approx(values, rel=1e-12)


def test_without_adaptation_it_is_adam() -> None:
    one, other = nn.Parameter(draws(4)), nn.Parameter(draws(4))
    lamb = LAMB([one], lr=0.01, weight_decay=0.0, adapt=False, eps=1e-8)
    adam = torch.optim.Adam([other], lr=0.01)
    for t in range(5):
        one.grad, other.grad = draws(4, seed=t), draws(4, seed=t)
        lamb.step()
        adam.step()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_tensor_of_zeros_begins_with_a_plain_step() -> None:
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    w.grad = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    LAMB([w], lr=0.1, eps=1e-12).step()
    torch.testing.assert_close(w.detach(), torch.tensor([-0.1, 0.1, 0.0], dtype=torch.float64), rtol=1e-9, atol=0)


def test_maximize_ascends() -> None:
    one, other = nn.Parameter(draws(4)), nn.Parameter(draws(4))
    one.grad, other.grad = draws(4, seed=1), -draws(4, seed=1)
    LAMB([one], maximize=True).step()
    LAMB([other]).step()
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a finite number >= 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
        ({"eps": 0.0}, "eps must be > 0, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1.0"),
    ],
)
def test_wrong_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAMB([nn.Parameter(torch.ones(1))], **options)
