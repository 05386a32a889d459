"""Specs: their groups, first steps of the optimizers behind them, command lines, missing packages, wrong options."""

from __future__ import annotations

import dataclasses
import importlib
import math
import typing
from typing import Any

import pytest
import torch
import tyro
from torch import Tensor, nn

from rlopt.nn import CharTransformer, CharTransformerConfig, ScaleInvariantConfig, ScaleInvariantMLP
from rlopt.optim import (
    LAMB,
    Adam,
    AdamP,
    AdamW,
    Agc,
    Float32Muon,
    Lamb,
    Lars,
    LocoPropSpec,
    Muon,
    OptimizerSpec,
    RMSprop,
    Sam,
    ScaleInvariantSGD,
    ScaleInvariantSGDSpec,
    Sgd,
    SgdP,
    Shampoo,
    Soap,
    Spec,
)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class One(nn.Module):
    """A module with a single parameter."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(value.clone())


def first_step(spec: Spec, weight: Tensor, grad: Tensor) -> Tensor:
    """Change of the weight in the first step."""
    module = One(weight)
    try:
        optimizer = spec.build(module)
    except ImportError as error:
        pytest.skip(str(error))
    module.w.grad = grad.clone()
    optimizer.step()
    return module.w.detach() - weight


# First steps against formulas.


def test_lars_equals_its_formula() -> None:
    w, g = draws(4, 3), draws(4, 3, seed=1)
    ratio = 0.01 * w.norm() / (g.norm() + 0.1 * w.norm())
    change = first_step(Lars(lr=0.5, trust_coefficient=0.01, weight_decay=0.1), w, g)
    torch.testing.assert_close(change, -0.5 * ratio * (g + 0.1 * w), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("spec", [SgdP(lr=0.1), AdamP(lr=0.1)])
def test_projected_step_is_orthogonal_to_the_weight_where_the_gradient_is(spec: Spec) -> None:
    w = draws(4, 3)
    g = draws(4, 3, seed=1)
    g = g - (g * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True) * w  # row by row
    change = first_step(spec, w, g)
    torch.testing.assert_close(
        (change * w).sum(1) / (change.norm() * w.norm()), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-7
    )
    assert change.norm() > 0.01


def test_first_step_of_shampoo_has_singular_values_lr() -> None:
    change = first_step(Shampoo(lr=0.1, eps=1e-12), draws(4, 4), draws(4, 4, seed=1))
    torch.testing.assert_close(torch.linalg.svdvals(change), torch.full((4,), 0.1, dtype=torch.float64), rtol=1e-5, atol=0)


def test_first_step_of_muon_is_nearly_orthogonal() -> None:
    for shape in ((64, 16), (16, 64)):
        change = first_step(Muon(lr=0.1, weight_decay=0.0), draws(*shape), draws(*shape, seed=1))
        values = torch.linalg.svdvals(change) / (0.1 * math.sqrt(max(1.0, shape[0] / shape[1])))
        assert values.min() > 0.65
        assert values.max() < 1.15


def test_first_step_of_soap_only_collects_and_the_second_is_that_of_adam_in_the_eigenbasis() -> None:
    # For a rank-one gradient the basis turns it into a single entry, whose Adam step is its sign times lr.
    module = One(draws(3, 2))
    try:
        optimizer = Soap(lr=0.1, weight_decay=0.0).build(module)
    except ImportError as error:
        pytest.skip(str(error))
    before = module.w.detach().clone()
    left, right = torch.tensor([[0.6], [0.0], [0.8]], dtype=torch.float64), torch.tensor([[0.8, 0.6]], dtype=torch.float64)
    module.w.grad = 5.0 * left @ right
    optimizer.step()
    assert torch.equal(module.w, before)
    optimizer.step()
    along = (left.T @ (module.w.detach() - before) @ right.T).item()
    assert along == pytest.approx(-0.1, rel=1e-6)


# Groups.


def shapes(optimizer: torch.optim.Optimizer) -> list[list[tuple[int, ...]]]:
    return [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.hidden = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)


def test_vectors_are_left_out_of_the_decay_where_asked() -> None:
    for spec, decay in (
        (AdamW(weight_decay=0.3, decay_matrices_only=True), 0.3),
        (Sgd(weight_decay=0.2, decay_matrices_only=True), 0.2),
    ):
        optimizer = spec.build(Mixed())
        assert [group["weight_decay"] for group in optimizer.param_groups] == [decay, 0.0]
        assert all(p.ndim >= 2 for p in optimizer.param_groups[0]["params"])
        assert all(p.ndim == 1 for p in optimizer.param_groups[1]["params"])
    assert len(AdamW().build(Mixed()).param_groups) == 1
    lamb = Lamb().build(Mixed())
    assert isinstance(lamb, LAMB)
    assert [(group["weight_decay"], group["adapt"]) for group in lamb.param_groups] == [(0.01, True), (0.0, False)]


def test_muon_takes_hidden_matrices_and_adam_the_rest() -> None:
    optimizer = Muon(adam_names=("head.*",), adam_lr=0.5).build(Mixed())
    assert shapes(optimizer)[0] == [(6, 4)]
    assert len(shapes(optimizer)[1]) == 8
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5]
    assert shapes(Muon().build(Mixed()))[0] == [(6, 4), (2, 6)]
    assert len(Muon().build(nn.LayerNorm(3)).param_groups) == 1
    assert len(Muon().build(nn.Linear(3, 2, bias=False)).param_groups) == 1


def test_muon_in_float32_has_the_options_of_the_spec() -> None:
    options = {"lr": 0.1, "momentum": 0.7, "nesterov": False, "weight_decay": 0.2, "ns_steps": 3, "scale": "match_rms_adamw"}
    ours, torchs = (Muon(precision=precision, **options).build(Mixed()) for precision in ("float32", "bfloat16"))
    assert [type(part) for part in ours.optimizers] == [Float32Muon, torch.optim.AdamW]
    assert type(torchs.optimizers[0]) is torch.optim.Muon
    for group, expected in zip(ours.param_groups, torchs.param_groups, strict=True):
        assert {key: value for key, value in group.items() if key != "params"} == {
            key: value for key, value in expected.items() if key != "params"
        }


def test_scale_invariant_parameters_get_their_own_optimizer() -> None:
    model = CharTransformer(CharTransformerConfig(7, ScaleInvariantConfig(context=4, num_layers=1, num_heads=2, width=8)))
    optimizer = ScaleInvariantSGDSpec(lr=0.5, others=Adam(lr=0.1)).build(model)
    assert [type(part) for part in optimizer.optimizers] == [ScaleInvariantSGD, torch.optim.Adam]
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.scale_invariant_parameters()}
    assert [id(p) for p in optimizer.param_groups[1]["params"]] == [id(model.head.weight)]
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_scope_group_makes_a_group_of_each_block() -> None:
    net = nn.Sequential(ScaleInvariantMLP(3, (8, 6)), nn.Linear(6, 2))
    blocks = ScaleInvariantSGDSpec(scope="group").build(net)
    assert shapes(blocks)[:2] == [[(8, 3), (8,)], [(6, 8), (6,)]]
    together = ScaleInvariantSGDSpec().build(net)
    assert shapes(together)[0] == [(8, 3), (8,), (6, 8), (6,)]
    assert len(ScaleInvariantSGDSpec().build(net[0]).param_groups) == 1  # nothing is left over
    with pytest.raises(
        ValueError, match=r"must name scale-invariant parameters by a method scale_invariant_parameters\(\), got none"
    ):
        ScaleInvariantSGDSpec().build(nn.Linear(3, 2))


# Specs as data.


def every_spec() -> tuple[type[Spec], ...]:
    return typing.get_args(OptimizerSpec)


@pytest.mark.parametrize("kind", every_spec())
def test_spec_is_frozen_comparable_and_documented(kind: type[Any]) -> None:
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().lr = 1.0
    assert kind.__doc__


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["adam-w", "--lr", "0.5", "--decay-matrices-only"], AdamW(lr=0.5, decay_matrices_only=True)),
        (["agc", "--clip", "0.2", "base:adam", "--base.lr", "0.1"], Agc(clip=0.2, base=Adam(lr=0.1))),
        (["sam", "--adaptive"], Sam(adaptive=True)),
        (["scale-invariant-sgd-spec", "--clip-factor", "None"], ScaleInvariantSGDSpec(clip_factor=None)),
        (
            ["loco-prop-spec", "--variant", "squared", "--solver", "closed_form"],
            LocoPropSpec(variant="squared", solver="closed_form"),
        ),
        (["muon", "--adam-names", "head.*", "embedding.*"], Muon(adam_names=("head.*", "embedding.*"))),
    ],
)
def test_command_line_makes_specs(arguments: list[str], expected: Spec) -> None:
    assert tyro.cli(OptimizerSpec, args=arguments) == expected  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", [Soap, Shampoo, Lars, SgdP, AdamP])
def test_missing_package_is_named(kind: type[Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pytorch_optimizer must be installed .* pip install 'rlopt\[optim\]'"):
        kind().build(nn.Linear(2, 2))


def test_error_inside_a_package_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'below'", name="below")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="below"):
        Soap().build(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Adam, {"lr": -1.0}, "lr must be a finite number >= 0, got -1.0"),
        (AdamW, {"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        (Sgd, {"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        (Soap, {"weight_decay": -0.1}, "weight_decay must be a finite number >= 0, got -0.1"),
        (RMSprop, {"alpha": 1.5}, r"alpha must be in \[0, 1\), got 1.5"),
        (Muon, {"adam_lr": math.inf}, "adam_lr must be a finite number >= 0, got inf"),
        (Muon, {"precision": "float16"}, "precision must be 'bfloat16' or 'float32', got 'float16'"),
    ],
)
def test_wrong_option_is_named(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)
