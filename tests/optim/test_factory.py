"""Optimizers from specs, names and functions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlopt.optim import OPTIMIZERS, Adam, OptimizerSpec, Spec, build_optimizer


def test_spec_name_class_and_function_are_understood() -> None:
    net = nn.Linear(3, 2)
    assert build_optimizer(Adam(lr=0.5), net).param_groups[0]["lr"] == 0.5
    assert type(build_optimizer("nesterov", net)) is torch.optim.SGD
    assert type(build_optimizer(torch.optim.Adagrad, net)) is torch.optim.Adagrad
    built = build_optimizer(lambda params: torch.optim.SGD(params, lr=0.25), net)
    assert built.param_groups[0]["lr"] == 0.25
    assert [id(p) for p in built.param_groups[0]["params"]] == [id(p) for p in net.parameters()]


def test_every_spec_has_a_name() -> None:
    assert {type(spec) for spec in OPTIMIZERS.values()} == set(OptimizerSpec.__args__)
    assert all(isinstance(spec, Spec) for spec in OPTIMIZERS.values())


def test_wrong_optimizers_are_named() -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"optimizer must be among sgd, .*, got 'addam'; did you mean adam\?"):
        build_optimizer("addam", net)
    with pytest.raises(ValueError, match=r"got 'xyz'\.$"):
        build_optimizer("xyz", net)
    with pytest.raises(TypeError, match="optimizer must be a spec, a name or a function of parameters, got int"):
        build_optimizer(3, net)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must return a torch.optim.Optimizer when it is called, got list"):
        build_optimizer(list, net)  # type: ignore[arg-type]
