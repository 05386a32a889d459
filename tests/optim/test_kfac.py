"""K-FAC: its step against dense linear algebra, what is recorded, and its limits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlopt.optim import KFAC, Kfac, NonFiniteError


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(**options: Any) -> tuple[nn.Linear, KFAC]:
    layer = nn.Linear(3, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(draws(2, 3, seed=7))
        layer.bias.copy_(draws(2, seed=8))
    return layer, KFAC(layer, lr=0.1, damping=0.05, **options)


def loss_of(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (layer(x) - y).square().sum(dim=1).mean()


@pytest.mark.parametrize("kl_clip", [None, 1e-3, 0.012])
def test_steps_equal_dense_algebra_on_the_whole_fisher_block(kl_clip: float | None) -> None:
    # The damped factors as one Kronecker product, inverted as a matrix of 8 x 8; moments averaged, inverted in each step.
    layer, optimizer = make(momentum=0.5, factor_decay=0.9, inverse_every=1, weight_decay=0.1, kl_clip=kl_clip)
    factors = []
    weights = np.hstack([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]])
    velocity, inputs_moment, outputs_moment = np.zeros((2, 4)), None, None
    for step in range(4):
        x, y = draws(16, 3, seed=step), draws(16, 2, seed=100 + step)
        rows = np.hstack([x.numpy(), np.ones((16, 1))])
        errors = rows @ weights.T - y.numpy()  # gradients of each row's own loss
        new_inputs, new_outputs = rows.T @ rows / 16, errors.T @ errors / 16
        inputs_moment = new_inputs if inputs_moment is None else 0.9 * inputs_moment + 0.1 * new_inputs
        outputs_moment = new_outputs if outputs_moment is None else 0.9 * outputs_moment + 0.1 * new_outputs
        pi = np.sqrt((np.trace(inputs_moment) / 4) / (np.trace(outputs_moment) / 2))
        fisher = np.kron(outputs_moment + np.sqrt(0.05) / pi * np.eye(2), inputs_moment + pi * np.sqrt(0.05) * np.eye(4))
        gradient = (errors.T @ rows / 16).ravel()
        update = np.linalg.solve(fisher, gradient)
        squared_length = (0.1 * update) @ fisher @ (0.1 * update)
        factors.append(1.0 if kl_clip is None else min(1.0, np.sqrt(kl_clip / squared_length)))
        velocity = 0.5 * velocity + factors[-1] * update.reshape(2, 4)
        weights = (1 - 0.01) * weights - 0.1 * velocity
        optimizer.zero_grad()
        loss_of(layer, x, y).backward()
        optimizer.step()
        found = np.hstack([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]])
        np.testing.assert_allclose(found, weights, rtol=1e-11)
    # The three cases differ: no limit, one that binds always, and one that binds sometimes.
    assert sum(bool(factor < 1.0) for factor in factors) == {None: 0, 1e-3: 4, 0.012: 2}[kl_clip]


def test_rows_of_sequences_and_of_several_backward_passes_count_alike() -> None:
    x, y = draws(16, 3), draws(16, 2, seed=1)
    results = []
    for way in ("rows", "sequences", "halves"):
        layer, optimizer = make()
        if way == "rows":
            loss_of(layer, x, y).backward()
        elif way == "sequences":
            (0.5 * (layer(x.view(4, 4, 3)) - y.view(4, 4, 2)).square().sum(dim=2).mean()).backward()
        else:
            (loss_of(layer, x[:8], y[:8]) / 2).backward()
            (loss_of(layer, x[8:], y[8:]) / 2).backward()
        optimizer.step()
        results.append(layer.weight.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_drops_what_was_recorded(set_to_none: bool) -> None:
    x, y = draws(16, 3), draws(16, 2, seed=1)
    plain, optimizer = make()
    loss_of(plain, x, y).backward()
    optimizer.step()
    disturbed, other = make()
    loss_of(disturbed, 100 * x, y).backward()
    other.zero_grad(set_to_none)
    with torch.no_grad():
        disturbed(5 * x)
    loss_of(disturbed, x, y).backward()
    other.step()
    assert torch.equal(plain.weight, disturbed.weight)


def test_inverses_are_refreshed_only_now_and_then() -> None:
    layer, optimizer = make(inverse_every=3)
    inverses = []
    for step in range(7):
        optimizer.zero_grad()
        loss_of(layer, draws(16, 3, seed=step), draws(16, 2, seed=50 + step)).backward()
        optimizer.step()
        inverses.append(optimizer.state[layer.weight]["input_inverse"].clone())
    assert [not torch.equal(a, b) for a, b in itertools.pairwise(inverses)] == [False, False, True] * 2


def test_spec_gives_everything_else_to_the_other_optimizer() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    optimizer = Kfac().build(net)
    shapes = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    assert shapes == [[(4, 3), (4,), (2, 4)], [(4,), (4,)]]
    net(torch.ones(5, 3)).square().mean().backward()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step()
    assert not torch.equal(before[3], net[1].bias)


def test_zero_factors_are_no_trouble() -> None:
    layer, optimizer = make()
    x = draws(16, 3)
    loss_of(layer, x, layer(x).detach()).backward()  # gradients and their moments are zero
    before = layer.weight.detach().clone()
    optimizer.step()
    assert torch.equal(before, layer.weight)


def badly_conditioned(rows: int, size: int, seed: int) -> Tensor:
    """Rows in float32 with singular values of 1e6 to 1e-6 times the usual ones."""
    basis, _ = torch.linalg.qr(draws(size, size, seed=seed))
    return (draws(rows, size, seed=seed + 1) @ (basis * torch.logspace(6, -6, size, dtype=torch.float64)) @ basis.T).float()


def test_moments_that_rounding_leaves_indefinite_are_inverted_with_their_smallest_eigenvalues_at_the_precision() -> None:
    x, delta = badly_conditioned(64, 12, 0), badly_conditioned(64, 9, 5)
    layer = nn.Linear(12, 9, bias=False)
    optimizer = KFAC(layer, damping=1e-20)
    layer(x).backward(delta / 64)
    optimizer.step()
    state = optimizer.state[layer.weight]
    moments = [state["input_moment"], state["output_moment"]]
    assert all(torch.linalg.cholesky_ex(moment).info > 0 for moment in moments)
    inputs, outputs = (moment.double().numpy() for moment in moments)
    pi = np.sqrt((np.trace(inputs) / 12) / (np.trace(outputs) / 9))
    for moment, shift, name in ((inputs, pi * 1e-10, "input_inverse"), (outputs, 1e-10 / pi, "output_inverse")):
        lower = np.tril(moment)  # rounding differs between the halves
        left, values, right = np.linalg.svd(lower + np.tril(moment, -1).T)
        values *= np.sum(left * right.T, axis=0)  # the signs of the eigenvalues
        bounded = np.maximum(values, np.finfo(np.float32).eps * values[0]) + shift
        np.testing.assert_allclose(state[name].numpy(), left @ np.diag(1 / bounded) @ left.T, rtol=0, atol=1e-4 / bounded.min())
        assert values.min() < 0.0


def test_training_in_float32_goes_on_with_huge_activations_and_next_to_no_damping() -> None:
    net = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2))
    optimizer = KFAC(net, lr=0.03, momentum=0.0, damping=1e-12, inverse_every=1)
    x, y = badly_conditioned(64, 12, 0), draws(64, 2, seed=9).float()
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = loss_of(net, x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_moment_that_cholesky_can_factorise_is_inverted_as_ever() -> None:
    x, delta = draws(64, 12).float(), draws(64, 9, seed=5).float()
    layer = nn.Linear(12, 9, bias=False)
    optimizer = KFAC(layer)
    layer(x).backward(delta / 64)
    optimizer.step()
    state = optimizer.state[layer.weight]
    shift = (state["input_moment"].diagonal().mean() / state["output_moment"].diagonal().mean()).sqrt() * 0.1
    expected = torch.cholesky_inverse(torch.linalg.cholesky(state["input_moment"] + shift * torch.eye(12)))
    assert torch.equal(state["input_inverse"], expected)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 1e30])
def test_inputs_that_are_not_finite_are_named(value: float) -> None:
    layer = nn.Linear(3, 2)
    optimizer = KFAC(layer)
    layer(torch.full((4, 3), value)).sum().backward()
    with pytest.raises(NonFiniteError, match="inputs and gradients must be finite"):
        optimizer.step()


def test_wrong_use_is_named() -> None:
    for options, message in (
        ({"lr": -1.0}, "lr must be a finite number >= 0, got -1.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"damping": 0.0}, "damping must be > 0, got 0.0"),
        ({"inverse_every": 0}, "inverse_every must be > 0, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            KFAC(nn.Linear(2, 2), **options)
    with pytest.raises(ValueError, match=r"module must have nn.Linear layers, got none"):
        KFAC(nn.LayerNorm(3))
