"""Convolutions: linear layers on their unfolded rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlopt.optim.locoprop import LocoProp

DOUBLE = torch.float64
KINDS: list[dict[str, Any]] = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": (0, 2)},
    {"dilation": 2, "padding": 2, "bias": False},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "valid"},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": (1, 2), "padding_mode": "reflect", "stride": (2, 1)},
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def unfolded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Rows (N H' W', I kh kw), built one output position at a time."""
    if isinstance(conv.padding, str):
        pad = conv._reversed_padding_repeated_twice
    else:
        pad = [number for number in conv.padding[::-1] for _ in range(2)]
    x = F.pad(x, pad, mode="constant" if conv.padding_mode == "zeros" else conv.padding_mode)
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    height, width = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    rows = [
        x[n, :, i * sh : i * sh + dh * kh : dh, j * sw : j * sw + dw * kw : dw].flatten()
        for n in range(len(x))
        for i in range(height)
        for j in range(width)
    ]
    return torch.stack(rows)


def run(module: nn.Module, x: Tensor, optimizer: LocoProp, seed: int, transpose: bool) -> None:
    optimizer.zero_grad()
    with optimizer.watching():
        out = module(x)
        y = torch.tanh(out)
    y = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]) if transpose else y
    (y * draw(*y.shape, seed=seed)).sum().backward()
    optimizer.step()


OPTIONS: dict[str, dict[str, Any]] = {
    "matching": {"lr": 1e-3, "gamma": 0.5, "prox_eta": 0.4, "local_iters": 4},
    "squared": {"lr": 1e-3, "gamma": 0.5, "variant": "squared", "local_iters": 4},
    "closed_form": {"gamma": 0.5, "prox_eta": 0.3, "variant": "squared", "solver": "closed_form"},
    "fixed_point": {"gamma": 0.5, "prox_eta": 1e-3, "solver": "fixed_point", "gamma_mode": "per_row"},
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_convolution_is_a_linear_layer_on_unfolded_rows(kind: dict[str, Any], options: dict[str, Any]) -> None:
    conv = nn.Conv2d(2, 3, (3, 2), dtype=DOUBLE, **kind)
    x = draw(2, 2, 6, 7)
    rows = unfolded(x, conv)
    linear = nn.Linear(rows.shape[1], 3, bias=conv.bias is not None, dtype=DOUBLE)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    torch.testing.assert_close(linear(rows), conv(x).permute(0, 2, 3, 1).reshape(-1, 3), rtol=1e-12, atol=1e-13)
    optimizers = LocoProp(conv, **options), LocoProp(linear, **options)
    for seed in (1, 2):
        run(conv, x, optimizers[0], seed, transpose=True)
        run(linear, rows, optimizers[1], seed, transpose=False)
        torch.testing.assert_close(conv.weight.grad.flatten(1), linear.weight.grad, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(conv.weight.detach().flatten(1), linear.weight.detach(), rtol=1e-10, atol=1e-12)
        if conv.bias is not None:
            torch.testing.assert_close(conv.bias, linear.bias, rtol=1e-10, atol=1e-12)
    assert optimizers[0].transfers[""] == optimizers[1].transfers[""]


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_of_several_sizes_are_unfolded_and_joined(channels_last: bool) -> None:
    """One call with both parts equals two calls; sizes that differ make rows of the same problem."""
    results = []
    for sizes in ([(6, 6), (4, 5)], [(4, 5), (6, 6)]):
        conv = nn.Conv2d(2, 3, 3, dtype=DOUBLE)
        with torch.no_grad():
            conv.weight.copy_(draw(3, 2, 3, 3, seed=5))
            conv.bias.copy_(draw(3, seed=6))
        if channels_last:
            conv.to(memory_format=torch.channels_last)
        optimizer = LocoProp(conv, lr=1e-3, gamma=0.5)
        for _ in range(2):
            optimizer.zero_grad()
            sum(torch.tanh(conv(draw(2, 2, *size, seed=size[0]))).square().sum() for size in sizes).backward()
            optimizer.step()
        results.append(torch.cat([conv.weight.detach().flatten(), conv.bias.detach()]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)
    linear = nn.Linear(18, 3, dtype=DOUBLE)
    with torch.no_grad():
        linear.weight.copy_(draw(3, 2, 3, 3, seed=5).flatten(1))
        linear.bias.copy_(draw(3, seed=6))
    template = nn.Conv2d(2, 3, 3)
    rows = torch.cat([unfolded(draw(2, 2, *size, seed=size[0]), template) for size in ((6, 6), (4, 5))])
    optimizer = LocoProp(linear, lr=1e-3, gamma=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        torch.tanh(linear(rows)).square().sum().backward()
        optimizer.step()
    expected = torch.cat([linear.weight.detach().flatten(), linear.bias.detach()])
    torch.testing.assert_close(results[0], expected, rtol=1e-9, atol=1e-12)


def test_single_maps_and_classes_along_channels() -> None:
    conv = nn.Conv2d(2, 3, 3, dtype=DOUBLE)
    optimizer = LocoProp(conv, lr=1e-4)
    conv(draw(2, 5, 5)).square().mean().backward()
    optimizer.step()
    labels = torch.zeros(2, 3, 3, dtype=torch.long)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(conv(draw(2, 2, 5, 5)), labels)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.transfers == {"": "softmax"}
    for _ in range(20):
        last = optimizer.step(closure)
    assert last < first
