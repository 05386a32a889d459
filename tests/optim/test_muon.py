"""Muon in float32: against torch's own code in float32 and in bfloat16, and against another package's iterations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.optim import Float32Muon
from rlopt.optim.muon import orthogonalised

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
OPTIONS = [
    {},
    {"nesterov": False, "momentum": 0.5, "ns_steps": 3},
    {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0, "ns_coefficients": (2.0, -1.5, 0.5)},
]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(kind: type[torch.optim.Optimizer], num_steps: int = 4, **options: Any) -> list[Tensor]:
    """Parameters, tall, wide and square, after some steps with fixed gradients, one of them absent."""
    params = [nn.Parameter(draws(*shape, seed=40)) for shape in ((24, 8), (8, 24), (9, 9), (3, 3))]
    optimizer = kind(params, lr=0.1, **options)
    for step in range(num_steps):
        for index, param in enumerate(params[:-1]):
            param.grad = draws(*param.shape, seed=10 * step + index)
        optimizer.step()
    return [param.detach() for param in params]


@pytest.mark.parametrize("options", OPTIONS)
def test_steps_equal_those_of_torchs_code_in_float32(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trained(Float32Muon, **options)
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    for found, expected in zip(ours, trained(torch.optim.Muon, **options), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_steps_differ_from_torchs_by_the_rounding_of_bfloat16(options: dict[str, Any]) -> None:
    before = [draws(*shape, seed=40) for shape in ((24, 8), (8, 24), (9, 9))]
    for start, found, expected in zip(before, trained(Float32Muon, **options), trained(torch.optim.Muon, **options), strict=False):
        assert (found - expected).norm() < 0.03 * (expected - start).norm()
        assert not torch.equal(found, expected)


def test_iterations_equal_those_of_another_package() -> None:
    package = pytest.importorskip("pytorch_optimizer.optimizer.utils")
    for shape in ((24, 8), (8, 24), (9, 9)):
        matrix = draws(*shape)
        expected = package.zero_power_via_newton_schulz_5(matrix, weights=COEFFICIENTS, dtype=torch.float32)
        torch.testing.assert_close(orthogonalised(matrix, COEFFICIENTS, 5, 1e-7), expected, rtol=1e-5, atol=1e-5)


def test_coefficients_that_converge_give_the_polar_factor() -> None:
    matrix = draws(9, 5)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(orthogonalised(matrix, (1.875, -1.25, 0.375), 20, 1e-7), left @ right, rtol=1e-4, atol=1e-5)
    assert torch.equal(orthogonalised(torch.zeros(2, 3), COEFFICIENTS, 5, 1e-7), torch.zeros(2, 3))


def test_gradients_stay_and_other_precisions_keep_theirs() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        param = nn.Parameter(draws(6, 4).to(dtype))
        param.grad = draws(6, 4, seed=1).to(dtype)
        before, grad = param.detach().clone(), param.grad.clone()
        Float32Muon([param], lr=0.1).step()
        assert param.dtype is dtype
        assert torch.equal(param.grad, grad)
        assert not torch.equal(param, before)


def test_state_goes_from_torchs_muon_to_ours_and_the_closure_is_called_once() -> None:
    param = nn.Parameter(draws(6, 4))
    theirs = torch.optim.Muon([param], lr=0.1)
    param.grad = draws(6, 4, seed=1)
    theirs.step()
    ours = Float32Muon([param], lr=0.3)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.param_groups[0]["lr"] == 0.1
    average = ours.state[param]["momentum_buffer"].clone()
    calls: list[bool] = []

    def closure() -> float:
        calls.append(torch.is_grad_enabled())
        return 2.5

    assert ours.step(closure) == 2.5
    assert calls == [True]
    torch.testing.assert_close(ours.state[param]["momentum_buffer"], average.lerp(param.grad, 0.05))
