"""Adaptive gradient clipping: an example by hand, convolutions and vectors, exclusions, and the wrapped optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlopt.optim import AGC, Agc, Sgd, adaptive_gradient_clip


def test_rows_are_clipped_by_hand() -> None:
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]], dtype=torch.float64))
    w.grad = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.03, 0.04]], dtype=torch.float64)
    adaptive_gradient_clip([w], clip=0.01)
    expected = torch.tensor([[0.0, 0.05], [1e-5, 0.0], [0.03, 0.04]], dtype=torch.float64)
    torch.testing.assert_close(w.grad, expected, rtol=1e-12, atol=0)


def test_units_are_output_channels_and_vectors_are_one_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = nn.Parameter(torch.randn((4, 3, 2, 2), generator=generator))
    kernel.grad = torch.randn((4, 3, 2, 2), generator=generator)
    matrix = nn.Parameter(kernel.detach().reshape(4, 12).clone())
    matrix.grad = kernel.grad.reshape(4, 12).clone()
    vector, number = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor(2.0))
    vector.grad, number.grad = torch.tensor([0.0, 1.0]), torch.tensor(-1.0)
    adaptive_gradient_clip([kernel, matrix, vector, number, nn.Parameter(torch.ones(1))])
    torch.testing.assert_close(kernel.grad.reshape(4, 12), matrix.grad)
    torch.testing.assert_close(vector.grad, torch.tensor([0.0, 0.05]))
    torch.testing.assert_close(number.grad, torch.tensor(-0.02))


def test_zero_gradient_stays_zero() -> None:
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.zeros(2, 2)
    adaptive_gradient_clip([w])
    assert (w.grad == 0).all()


def test_excluded_parameters_are_not_clipped() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = Agc(exclude=("1.*",), base=Sgd(lr=0.1)).build(net)
    for p in net.parameters():
        p.grad = torch.full_like(p, 100.0)
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    moved = [(a - b).abs().max().item() for a, b in zip(before, net.parameters(), strict=True)]
    assert max(moved[:2]) < 0.01
    assert moved[2:] == pytest.approx([10.0, 10.0], rel=1e-5)


def test_wrong_option_is_named() -> None:
    w = nn.Parameter(torch.ones(1))
    for options, message in (({"clip": 0.0}, "clip must be > 0, got 0.0"), ({"eps": -1.0}, "eps must be > 0, got -1.0")):
        with pytest.raises(ValueError, match=message):
            AGC(torch.optim.SGD([w], lr=0.1), **options)
        with pytest.raises(ValueError, match=message):
            adaptive_gradient_clip([w], **options)
    with pytest.raises(ValueError, match="exclude must hold parameters of the optimizer"):
        AGC(torch.optim.SGD([w], lr=0.1), exclude=[nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match=r"patterns must fit names of parameters, got 'head'; there are weight, bias"):
        Agc(exclude=("head",)).build(nn.Linear(2, 2))
