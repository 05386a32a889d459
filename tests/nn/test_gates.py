from __future__ import annotations

import math

import torch
from torch import nn

from rlopt.nn.gates import GRUGate, ResidualGate


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(width: int, **options: float) -> GRUGate:
    return GRUGate(width, generator=torch.Generator().manual_seed(0), **options)


def zero(gate: GRUGate) -> GRUGate:
    with torch.no_grad():
        for matrix in (gate.of_output, gate.of_stream, gate.of_reset_stream):
            matrix.zero_()
    return gate


def test_a_large_bias_makes_the_identity() -> None:
    x, y = draw(5, 4), draw(5, 4, seed=1)
    torch.testing.assert_close(zero(make(4, bias=20.0))(x, y), x, rtol=0.0, atol=1e-6)


def test_the_initial_bias_keeps_0_8808_of_the_stream() -> None:
    x = draw(5, 4)
    torch.testing.assert_close(zero(make(4))(x, draw(5, 4, seed=1)), x / (1.0 + math.exp(-2.0)))


def test_it_is_the_gru_cell_with_the_bias_taken_from_the_update() -> None:
    # torch's cell: h' = (1 - z) n + z h with z = sigmoid(...), so its z is our 1 - u: the signs of its update row are opposite.
    gate, cell = make(4, bias=0.7), nn.GRUCell(4, 4)
    with torch.no_grad():
        w_r, w_u, w_h = gate.of_output.chunk(3, dim=1)
        u_r, u_u = gate.of_stream.chunk(2, dim=1)
        cell.weight_ih.copy_(torch.cat([w_r.T, -w_u.T, w_h.T]))
        cell.weight_hh.copy_(torch.cat([u_r.T, -u_u.T, torch.zeros(4, 4)]))
        cell.bias_ih.copy_(torch.cat([torch.zeros(4), torch.full((4,), 0.7), torch.zeros(4)]))
        cell.bias_hh.zero_()
        gate.of_reset_stream.zero_()  # torch resets after the product, the paper before it
    x, y = draw(5, 4), draw(5, 4, seed=1)
    torch.testing.assert_close(gate(x, y), cell(y, x))


def test_the_reset_gate_acts_before_the_product() -> None:
    gate = zero(make(2, bias=0.0))
    with torch.no_grad():
        gate.of_reset_stream.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        gate.of_stream[0, 0] = 100.0  # reset of the first entry: sigmoid(100 x)
    out = gate(torch.tensor([[-1.0, 3.0]]), torch.zeros(1, 2))  # reset 0: nothing of x reaches h
    torch.testing.assert_close(out, torch.tensor([[-0.5, 1.5]]))
    out = gate(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2))  # reset 1: h = (0, tanh 1)
    torch.testing.assert_close(out, torch.tensor([[0.5, 1.5 + 0.5 * math.tanh(1.0)]]))


def test_initial_matrices_keep_the_variance() -> None:
    gate = make(256)
    assert abs(float((draw(512, 256) @ gate.of_reset_stream.detach()).var()) - 1.0) < 0.05


def test_residual_gate_adds() -> None:
    assert ResidualGate()(torch.tensor([1.0]), torch.tensor([2.0])).item() == 3.0
