"""Transfers: potentials against autograd, matching losses against their duals, and what is recognised."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlopt.optim._activations import transfer_of_call, transfer_of_module
from rlopt.optim.transfers import (
    TRANSFERS,
    Transfer,
    check_transfer,
    elu,
    find_transfer,
    hardtanh,
    leaky_relu,
    register_transfer,
    softplus,
)

WITH_POTENTIAL = [transfer for transfer in TRANSFERS.values() if transfer.potential is not None]
OTHERS = [leaky_relu(0.3), elu(0.7), hardtanh(-0.5, 2.0)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("transfer", [*WITH_POTENTIAL, *OTHERS], ids=lambda t: f"{t.name}{t.parameters}")
def test_transfer_is_the_gradient_of_its_potential(transfer: Transfer) -> None:
    a = (3.0 * draw(7, 5)).requires_grad_()
    (gradient,) = torch.autograd.grad(transfer.potential_sum(a).sum(), a)
    torch.testing.assert_close(gradient, transfer(a.detach()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("transfer", [*TRANSFERS.values(), *OTHERS], ids=lambda t: f"{t.name}{t.parameters}")
def test_all_transfers_are_monotone_and_the_inplace_form_agrees(transfer: Transfer) -> None:
    check_transfer(transfer)
    a = 3.0 * draw(50, 4)
    expected, copy = transfer(a), a.clone()
    assert transfer.apply_(copy) is copy
    torch.testing.assert_close(copy, expected, rtol=1e-13, atol=1e-15)


def test_fast_tanh_is_that_of_torch_up_to_rounding() -> None:
    a = torch.linspace(-12.0, 12.0, 100_001)
    assert (TRANSFERS["tanh"].apply_(a.clone()) - a.double().tanh()).abs().max() < 2.5e-7


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softmax"])
def test_potentials_stay_finite_far_out(name: str) -> None:
    a = torch.tensor([[-800.0, 0.0, 800.0]], dtype=torch.float64)
    assert TRANSFERS[name].potential_sum(a).isfinite().all()


@pytest.mark.parametrize("transfer", [*WITH_POTENTIAL, *OTHERS], ids=lambda t: f"{t.name}{t.parameters}")
def test_gradient_of_the_matching_loss_is_residual_times_inputs(transfer: Transfer) -> None:
    x, weight, target = draw(9, 4, seed=1), draw(3, 4, seed=2).requires_grad_(), draw(9, 3, seed=3)
    a = x @ weight.T
    loss = transfer.potential_sum(a).sum() - (target * a).sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, (transfer(a.detach()) - target).T @ x, rtol=1e-12, atol=1e-12)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


# Conjugate potentials F*(y) of the three: binary entropies and the entropy, with the sign changed.
CONJUGATES: dict[str, Callable[[Tensor], Tensor]] = {
    # F = log cosh has F*(y) = sum over the two signs of p log p, plus log 2, p = (1 +- y) / 2.
    "tanh": lambda y: -entropy(torch.stack([(1 + y) / 2, (1 - y) / 2], -1)).sum(-1) + y.shape[-1] * math.log(2.0),
    "sigmoid": lambda y: -entropy(torch.stack([y, 1 - y], -1)).sum(-1),
    "softmax": lambda y: -entropy(y),
}


@pytest.mark.parametrize("name", list(CONJUGATES))
def test_matching_loss_equals_its_dual(name: str) -> None:
    transfer, conjugate = TRANSFERS[name], CONJUGATES[name]
    new, old = draw(6, 4, seed=1), draw(6, 4, seed=2)
    y_new, y_old = transfer(new), transfer(old)
    primal = transfer.potential_sum(new) - transfer.potential_sum(old) - (y_old * (new - old)).sum(-1)
    # D_F*(y, y^) = F*(y) - F*(y^) - <a^, y - y^>; a^ is the gradient of F* at y^ up to a constant, which y - y^ is orthogonal to.
    dual = conjugate(y_old) - conjugate(y_new) - (new * (y_old - y_new)).sum(-1)
    torch.testing.assert_close(primal, dual, rtol=1e-12, atol=1e-13)


def test_registry_refuses_what_is_not_monotone_or_inconsistent() -> None:
    with pytest.raises(ValueError, match="'gelu' must be monotone"):
        register_transfer(Transfer("gelu", F.gelu))
    with pytest.raises(ValueError, match="gradient of the potential of transfer 'wrong'"):
        register_transfer(Transfer("wrong", torch.tanh, F.softplus))
    with pytest.raises(ValueError, match="'tanh' is registered already"):
        register_transfer(Transfer("tanh", torch.tanh))
    with pytest.raises(ValueError, match=r"transfer must be one of .*, got 'gelu'"):
        find_transfer("gelu")
    assert "wrong" not in TRANSFERS


def test_potential_of_a_gradient_form_is_refused() -> None:
    with pytest.raises(ValueError, match="'selu' has no potential"):
        TRANSFERS["selu"].potential_sum(torch.zeros(1, 1))


MODULES: list[tuple[nn.Module, Transfer | None]] = [
    (nn.Tanh(), TRANSFERS["tanh"]),
    (nn.Sigmoid(), TRANSFERS["sigmoid"]),
    (nn.ReLU(), TRANSFERS["relu"]),
    (nn.ReLU(inplace=True), TRANSFERS["relu"]),
    (nn.ReLU6(), TRANSFERS["relu6"]),
    (nn.SELU(), TRANSFERS["selu"]),
    (nn.Softsign(), TRANSFERS["softsign"]),
    (nn.Hardsigmoid(), TRANSFERS["hardsigmoid"]),
    (nn.LeakyReLU(0.2), leaky_relu(0.2)),
    (nn.ELU(0.5), elu(0.5)),
    (nn.Hardtanh(-2.0, 3.0), hardtanh(-2.0, 3.0)),
    (nn.Softplus(2.0, 10.0), softplus(2.0, 10.0)),
    (nn.Softmax(-1), TRANSFERS["softmax"]),
    (nn.Softmax(0), None),
    (nn.GELU(), None),
    (nn.SiLU(), None),
    (nn.Mish(), None),
    (nn.LayerNorm(4), None),
]


@pytest.mark.parametrize(("module", "expected"), MODULES, ids=lambda value: repr(value)[:24])
def test_modules_are_recognised_and_their_transfer_computes_the_same(module: nn.Module, expected: Transfer | None) -> None:
    found = transfer_of_module(module, unit_dim=-1)
    assert found == expected
    if found is not None:
        a = draw(6, 4)
        torch.testing.assert_close(found(a), module(a.clone()), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"),
    [
        (torch.tanh, (), {}, TRANSFERS["tanh"]),
        (Tensor.sigmoid, (), {}, TRANSFERS["sigmoid"]),
        (F.relu, (), {"inplace": True}, TRANSFERS["relu"]),
        (F.leaky_relu, (0.3,), {}, leaky_relu(0.3)),
        (F.leaky_relu, (), {"negative_slope": 0.4}, leaky_relu(0.4)),
        (F.hardtanh, (), {"max_val": 2.0}, hardtanh(-1.0, 2.0)),
        (F.softmax, (), {"dim": 1}, TRANSFERS["softmax"]),
        (torch.softmax, (0,), {}, None),
        (F.cross_entropy, (None,), {}, TRANSFERS["softmax"]),
        (F.binary_cross_entropy_with_logits, (None,), {}, TRANSFERS["sigmoid"]),
        (F.mse_loss, (None,), {}, None),
        (F.gelu, (), {}, None),
    ],
)
def test_calls_are_recognised(function: Callable[..., Tensor], args: tuple, kwargs: dict, expected: Transfer | None) -> None:
    assert transfer_of_call(function, (draw(6, 4), *args), kwargs, num_dims=2, unit_dim=-1) == expected


def test_classes_of_a_sequence_are_not_its_last_dimension() -> None:
    # cross_entropy takes classes along dimension 1, a linear layer puts its units last.
    assert transfer_of_call(F.cross_entropy, (draw(2, 3, 4),), {}, num_dims=3, unit_dim=-1) is None
    assert transfer_of_call(F.cross_entropy, (draw(2, 3, 4, 4),), {}, num_dims=4, unit_dim=1) == TRANSFERS["softmax"]
