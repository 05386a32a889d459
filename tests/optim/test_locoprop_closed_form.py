"""The exact solution of the squared problem, and the fixed point of the matching one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlopt.optim import NonFiniteError
from rlopt.optim.locoprop import LocoProp

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def solved(x: Tensor, delta: Tensor, *, bias: bool = True, **options: object) -> tuple[Tensor, Tensor]:
    """Old and new weights, with the bias as last column, of a layer that has seen x and was sent delta."""
    layer = nn.Linear(x.shape[1], delta.shape[1], bias=bias, dtype=DOUBLE)
    with torch.no_grad():
        for index, param in enumerate(layer.parameters()):
            param.copy_(draw(*param.shape, seed=40 + index))

    def weights() -> Tensor:
        return torch.cat([layer.weight, layer.bias[:, None]], 1).detach() if bias else layer.weight.detach().clone()

    before = weights()
    optimizer = LocoProp(layer, variant="squared", solver="closed_form", **options)
    layer(x).backward(delta)
    optimizer.step()
    return before, weights()


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=DOUBLE)], 1)


SHAPES = [(12, 4), (4, 12), (5, 4), (4, 4), (3, 4)]  # more rows than columns, fewer, and around equality with the bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs"), SHAPES)
def test_primal_and_dual_are_the_preconditioned_step(rows: int, inputs: int, bias: bool) -> None:
    x, delta, gamma, eta = draw(rows, inputs), draw(rows, 3, seed=1), 2.5, 0.7
    before, after = solved(x, delta, bias=bias, gamma=gamma, prox_eta=eta)
    full = with_ones(x) if bias else x
    gram, gradient = full.T @ full, delta.T @ full
    identity = torch.eye(len(gram), dtype=DOUBLE)
    expected = before - eta * gamma * gradient @ torch.linalg.inv(identity + eta * gram)
    torch.testing.assert_close(after, expected, rtol=1e-11, atol=1e-13)
    # Stationary point of the local problem.
    target = full @ before.T - gamma * delta
    residual = (full @ after.T - target).T @ full + (after - before) / eta
    assert residual.abs().max() < 1e-10
    # Effect on the layer's own output: A - gamma H Delta.
    projection = full @ torch.linalg.inv(gram + identity / eta) @ full.T
    torch.testing.assert_close(full @ after.T, full @ before.T - gamma * projection @ delta, rtol=1e-10, atol=1e-11)
    # One-sided curvature with learning rate gamma / B and damping 1 / (eta B).
    foof = before - gamma / rows * gradient @ torch.linalg.inv(gram / rows + identity / (eta * rows))
    torch.testing.assert_close(after, foof, rtol=1e-10, atol=1e-12)


def test_small_eta_is_gradient_descent_and_the_hand_example_holds() -> None:
    x, delta = draw(12, 4), draw(12, 3, seed=1)
    before, after = solved(x, delta, gamma=2.5, prox_eta=1e-6)
    torch.testing.assert_close(after - before, -1e-6 * 2.5 * delta.T @ with_ones(x), rtol=1e-3, atol=0)
    unit = nn.Linear(1, 1, bias=False, dtype=DOUBLE)
    nn.init.constant_(unit.weight, 0.5)
    optimizer = LocoProp(unit, variant="squared", solver="closed_form", gamma=2.0, prox_eta=0.5)
    unit(torch.tensor([[1.0], [2.0]], dtype=DOUBLE)).backward(torch.tensor([[0.1], [-0.2]], dtype=DOUBLE))
    optimizer.step()
    assert unit.weight.item() == pytest.approx(0.5 + 0.6 / 7.0, rel=1e-14)


def test_many_iterations_converge_to_the_closed_form() -> None:
    x, delta = draw(12, 4), draw(12, 3, seed=1)
    _, expected = solved(x, delta, gamma=2.5, prox_eta=0.7)
    size = 1.0 / (torch.linalg.eigvalsh(with_ones(x).T @ with_ones(x))[-1].item() + 1 / 0.7)
    layer = nn.Linear(4, 3, dtype=DOUBLE)
    with torch.no_grad():
        for index, param in enumerate(layer.parameters()):
            param.copy_(draw(*param.shape, seed=40 + index))
    optimizer = LocoProp(
        layer, lr=size, variant="squared", inner="sgd", local_iters=800, gamma=2.5, prox_eta=0.7, local_lr_floor=1.0
    )
    layer(x).backward(delta)
    optimizer.step()
    found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_learning_rate_multiplies_gamma_and_schedulers_act() -> None:
    x, delta = draw(12, 4), draw(12, 3, seed=1)
    before, after = solved(x, delta, gamma=2.5, prox_eta=0.7)
    _, halved = solved(x, delta, gamma=2.5, prox_eta=0.7, lr=0.5)
    torch.testing.assert_close(halved - before, 0.5 * (after - before), rtol=1e-12, atol=1e-14)


def test_it_keeps_no_state_and_one_frozen_parameter_leaves_the_other_exact() -> None:
    x, delta, eta = draw(12, 4), draw(12, 3, seed=1), 0.7
    layer = nn.Linear(4, 3, dtype=DOUBLE)
    layer.weight.requires_grad_(False)
    optimizer = LocoProp(layer, variant="squared", solver="closed_form", gamma=2.5, prox_eta=eta)
    before = layer.bias.detach().clone()
    layer(x).backward(delta)
    optimizer.step()
    assert not optimizer.state
    torch.testing.assert_close(layer.bias.detach(), before - 2.5 * delta.sum(0) / (12 + 1 / eta), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_follows_float64(dtype: torch.dtype) -> None:
    x, delta = draw(12, 4), draw(12, 3, seed=1)
    layers = [nn.Linear(4, 3, dtype=DOUBLE) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].to(dtype)
    for layer in layers:
        optimizer = LocoProp(layer, variant="squared", solver="closed_form", gamma=2.5, prox_eta=0.7)
        layer(x.to(layer.weight.dtype)).backward(delta.to(layer.weight.dtype))
        optimizer.step()
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(layers[1].weight.double(), layers[0].weight, rtol=tolerance, atol=tolerance)


def badly_conditioned(rows: int, inputs: int) -> Tensor:
    """Inputs in float32 of a size of up to 1e6 and a condition beyond float32."""
    basis, _ = torch.linalg.qr(draw(inputs, inputs, seed=3))
    return (draw(rows, inputs) @ (basis * torch.logspace(6, -6, inputs, dtype=DOUBLE)) @ basis.T).float()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "inputs"), [(40, 12), (24, 40), (12, 12)])
def test_inputs_of_any_condition_are_solved_like_a_least_squares_problem_in_float64(rows: int, inputs: int, bias: bool) -> None:
    x, delta, eta = badly_conditioned(rows, inputs), draw(rows, 3, seed=1).float(), 1e3
    layer = nn.Linear(inputs, 3, bias=bias)
    full = with_ones(x.double()) if bias else x.double()
    gram = full.float().T @ full.float() if inputs <= rows else full.float() @ full.float().T
    assert torch.linalg.cholesky_ex(gram + torch.eye(len(gram)) / eta).info > 0
    nn.init.zeros_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    optimizer = LocoProp(layer, variant="squared", solver="closed_form", gamma=0.5, prox_eta=eta)
    layer(x).backward(delta)
    optimizer.step()
    augmented = torch.cat([full, torch.eye(full.shape[1], dtype=DOUBLE) / eta**0.5])
    q, r = torch.linalg.qr(augmented)  # |X W' + gamma Delta|^2 + |W|^2 / eta
    expected = -0.5 * torch.linalg.solve_triangular(r, q[:rows].T @ delta.double(), upper=True).T
    found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach() if bias else layer.weight.detach()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-12)


def test_singular_inputs_without_a_proximal_term_to_speak_of_give_the_pseudo_inverse() -> None:
    # Columns a, b, a + b, a - b: a pivot of Cholesky's factorisation is exactly zero, the singular values are only nearly so.
    a, b = torch.tensor([1.0, 2.0, 2.0, 4.0]), torch.tensor([2.0, -1.0, 4.0, -2.0])
    x, delta = torch.stack([a, b, a + b, a - b], 1), draw(4, 2, seed=1).float()
    layer = nn.Linear(4, 2, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = LocoProp(layer, variant="squared", solver="closed_form", gamma=10.0, prox_eta=1e30)
    layer(x).backward(delta)
    optimizer.step()
    expected = -10.0 * delta.double().T @ torch.linalg.pinv(x.double(), rtol=1e-10).T
    torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_layers_that_are_solved_together_keep_their_result_when_another_one_fails() -> None:
    results = []
    for is_bad in (False, True):
        net = nn.ModuleList([nn.Linear(12, 3) for _ in range(2)])
        for index, param in enumerate(net.parameters()):
            nn.init.constant_(param, 0.1 * index)
        optimizer = LocoProp(net, variant="squared", solver="closed_form", prox_eta=1e6, batched=True)
        x = draw(40, 12).float()
        outputs = net[0](x), net[1](badly_conditioned(40, 12) if is_bad else x)
        torch.autograd.backward(outputs, [draw(40, 3, seed=1).float()] * 2)
        optimizer.step()
        results.append([param.detach().clone() for param in net.parameters()])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][2], results[1][2])
    assert all(value.isfinite().all() for value in results[1])


def test_inputs_that_are_not_finite_are_reported_before_anything_moves() -> None:
    net = nn.ModuleDict({"good": nn.Linear(4, 2), "bad": nn.Linear(4, 3)})
    optimizer = LocoProp(net, variant="squared", solver="closed_form", prox_eta=1.0)
    before = [param.detach().clone() for param in net.parameters()]
    (net["good"](torch.ones(8, 4)).sum() + net["bad"](torch.full((8, 4), torch.inf)).sum()).backward()
    with pytest.raises(NonFiniteError, match="inputs and gradients of bad must be finite"):
        optimizer.step()
    for param, start in zip(net.parameters(), before, strict=True):
        assert torch.equal(param, start)


def test_fixed_point_solves_the_proximal_matching_problem() -> None:
    x, delta = draw(8, 4), 0.1 * draw(8, 3, seed=1)
    eta = 0.5 / torch.linalg.eigvalsh(with_ones(x).T @ with_ones(x))[-1].item()
    layer = nn.Linear(4, 3, dtype=DOUBLE)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    target = torch.tanh(layer(x)).detach() - 3.0 * delta
    optimizer = LocoProp(
        layer, solver="fixed_point", local_iters=80, gamma=3.0, prox_eta=eta, transfer={"": "tanh"}
    )  # fmt: skip
    layer(x).backward(delta)
    optimizer.step()
    residual = torch.tanh(layer(x)).detach() - target
    torch.testing.assert_close(layer.weight.detach(), weight - eta * residual.T @ x, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(layer.bias.detach(), bias - eta * residual.sum(0), rtol=1e-11, atol=1e-13)
    assert (layer.weight - weight).abs().max() > 1e-3
