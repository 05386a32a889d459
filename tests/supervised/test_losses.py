"""Losses with auxiliary terms: the sum by hand, gradients, what evaluations show, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlopt.data import Dataset
from rlopt.nn import ExpertChoice, LanguageModelOutput, MoEConfig, TokenChoice, TransformerConfig
from rlopt.supervised import SupervisedTask, TrainerConfig, language_model
from rlopt.supervised.losses import AllOutputs, AuxiliaryLoss, OnLogits, WithAuxiliaryLosses, accuracy, token_cross_entropy

FORM = TransformerConfig(width=8, num_layers=2, num_heads=2, moe=MoEConfig(num_experts=3, every=1))


def text() -> Dataset:
    codes = (np.arange(400) ** 2 % 7).astype(np.uint8)
    return Dataset("squares", codes[:-1], codes[1:], codes[:99], codes[1:100], target_names=tuple("abcdefg"))


def make(coefs: dict[str, float] | None, form: TransformerConfig = FORM) -> SupervisedTask:
    return language_model(text(), transformer=form, aux_loss_coefs=coefs, length=8, batch_size=4, num_eval_windows=10)


def outputs() -> tuple[LanguageModelOutput, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator)
    aux = {"balance": torch.tensor(1.5), "router_z": torch.tensor(4.0)}
    return LanguageModelOutput(logits, aux, {}), torch.randint(4, (2, 3), generator=generator)


def test_loss_is_the_task_plus_coefficients_times_auxiliary_losses() -> None:
    out, targets = outputs()
    expected = nn.functional.cross_entropy(out.logits.view(6, 4), targets.view(6)) + 0.1 * 1.5 + 0.01 * 4.0
    torch.testing.assert_close(WithAuxiliaryLosses(token_cross_entropy, {"balance": 0.1, "router_z": 0.01})(out, targets), expected)
    torch.testing.assert_close(WithAuxiliaryLosses(token_cross_entropy, {})(out, targets), token_cross_entropy(out.logits, targets))
    assert AuxiliaryLoss("balance")(out, targets) == 1.5
    assert OnLogits(accuracy)(out, targets) == accuracy(out.logits, targets)


def test_unknown_names_and_wrong_coefficients_are_refused() -> None:
    out, targets = outputs()
    with pytest.raises(ValueError, match=r"must name auxiliary losses of the model \(balance, router_z\), got 'balanced'"):
        WithAuxiliaryLosses(token_cross_entropy, {"balanced": 0.1})(out, targets)
    for coef in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="finite numbers >= 0"):
            WithAuxiliaryLosses(token_cross_entropy, {"balance": coef})
    with pytest.raises(ValueError, match=r"\(none\), got 'balance'"):
        make({"balance": 0.01}, replace(FORM, moe=None)).trainer("adam").train(1)
    expert_choice = MoEConfig(num_experts=3, every=1, router=ExpertChoice())
    with pytest.raises(ValueError, match=r"\(router_z\), got 'balance'"):
        make({"balance": 0.01}, replace(FORM, causal=False, moe=expert_choice)).trainer("adam").train(1)
    with pytest.raises(ValueError, match="aux_loss_coefs must be None unless the model is a CharTransformer, got a Identity"):
        language_model(text(), nn.Identity(), aux_loss_coefs={})


def test_the_gradient_is_that_of_the_sum() -> None:
    task = make({"balance": 0.5, "router_z": 0.25})
    inputs, targets = task.data.draw()
    parameters = list(task.model.parameters())
    grads = torch.autograd.grad(task.loss(task.model(inputs), targets), parameters)
    assert isinstance(task.model, AllOutputs)
    out = task.model.model.outputs(inputs)
    parts = [token_cross_entropy(out.logits, targets), out.aux_losses["balance"], out.aux_losses["router_z"]]
    for grad, *of_parts in zip(
        grads, *(torch.autograd.grad(part, parameters, retain_graph=True, materialize_grads=True) for part in parts), strict=True
    ):
        torch.testing.assert_close(grad, of_parts[0] + 0.5 * of_parts[1] + 0.25 * of_parts[2])


def test_evaluations_show_the_task_alone_and_auxiliary_losses_without_coefficients() -> None:
    found = make({"balance": 0.5, "router_z": 0.25}).trainer("adam").evaluate()
    assert sorted(found) == ["balance", "bits", "loss", "nats", "router_z"]
    assert found["loss"] == pytest.approx(found["nats"] + 0.5 * found["balance"] + 0.25 * found["router_z"], rel=1e-6)
    assert found["bits"] == pytest.approx(found["nats"] / math.log(2), rel=1e-6)
    plain = make(None).trainer("adam").evaluate()
    assert sorted(plain) == ["bits", "loss"]
    assert plain["loss"] == pytest.approx(found["nats"], rel=1e-6)


def test_a_large_coefficient_balances_loads() -> None:
    balances: dict[float, float] = {}
    for coef in (0.0, 1.0):
        form = replace(FORM, moe=MoEConfig(num_experts=3, every=1, router=TokenChoice(top_k=1, balance_loss="importance")))
        task = make({"balance": coef}, form)
        experts: Any = task.model.model.transformer.blocks[0].mlp  # type: ignore[union-attr]
        with torch.no_grad():
            experts.router_weight.mul_(100.0)  # loads that are far from equal
        balances[coef] = task.trainer("adam", TrainerConfig(num_steps=60)).train()["balance"]
    assert balances[1.0] < 0.2 * balances[0.0]
