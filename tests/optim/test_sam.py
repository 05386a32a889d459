"""SAM: the point where the gradient is taken, by hand, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rlopt.optim import SAM


def closure_of(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], calls: list[float]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        calls.append(loss.item())
        loss.backward()
        return loss

    return closure


def test_gradient_is_taken_at_the_worst_point_of_the_ball() -> None:
    # L = x^2 + 2 y^2 at (3, 4): g = (6, 16) of norm sqrt(292).
    a, b = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (3.0, 4.0))
    optimizer = SAM(torch.optim.SGD([a, b], lr=0.1), rho=0.5)
    calls: list[float] = []
    loss = optimizer.step(closure_of(optimizer, lambda: (a**2 + 2 * b**2).sum(), calls))
    x, y = 3 + 0.5 * 6 / 292**0.5, 4 + 0.5 * 16 / 292**0.5
    assert loss.item() == 41.0 == calls[0]
    assert calls[1] == pytest.approx(x**2 + 2 * y**2, rel=1e-14)
    assert (a.item(), b.item()) == pytest.approx((3 - 0.1 * 2 * x, 4 - 0.1 * 4 * y), rel=1e-14)


def test_adaptive_ball_is_stretched_by_the_weights() -> None:
    a, b = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (3.0, -4.0))
    optimizer = SAM(torch.optim.SGD([a, b], lr=0.1), rho=0.5, adaptive=True)
    optimizer.step(closure_of(optimizer, lambda: (a**2 + 2 * b**2).sum(), []))
    norm = ((3 * 6) ** 2 + (4 * 16) ** 2) ** 0.5
    x, y = 3 + 0.5 * 9 * 6 / norm, -4 - 0.5 * 16 * 16 / norm
    assert (a.item(), b.item()) == pytest.approx((3 - 0.1 * 2 * x, -4 - 0.1 * 4 * y), rel=1e-14)


def test_weights_are_restored_to_the_bit_also_after_an_error() -> None:
    w = nn.Parameter(torch.rand(50, generator=torch.Generator().manual_seed(0)))
    before = w.detach().clone()
    optimizer = SAM(torch.optim.SGD([w], lr=0.0), rho=10.0)
    optimizer.step(closure_of(optimizer, lambda: w.square().sum(), []))
    assert torch.equal(w, before)
    num_calls = 0

    def failing() -> Tensor:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise KeyboardInterrupt
        loss = w.square().sum()
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert torch.equal(w, before)


def test_zero_gradient_moves_nothing() -> None:
    w = nn.Parameter(torch.zeros(3))
    optimizer = SAM(torch.optim.SGD([w], lr=0.1))
    optimizer.step(closure_of(optimizer, lambda: w.square().sum(), []))
    assert w.tolist() == [0.0, 0.0, 0.0]


def test_wrong_use_is_named() -> None:
    base = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match=r"rho must be > 0, got 0\.0"):
        SAM(base, rho=0.0)
    with pytest.raises(ValueError, match="closure must be given"):
        SAM(base).step()
