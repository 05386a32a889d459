"""What every optimizer must do, over one table of all specs. A new optimizer is one line in the table."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlopt.optim import (
    LBFGS,
    Adagrad,
    Adam,
    AdamP,
    AdamW,
    Agc,
    Kfac,
    Lamb,
    Lars,
    LocoPropSpec,
    Muon,
    RMSprop,
    RMSpropTFSpec,
    Sam,
    ScaleInvariantSGDSpec,
    Sgd,
    SgdP,
    Shampoo,
    Soap,
    Spec,
)
from rlopt.optim.factory import OPTIMIZERS


@dataclass(frozen=True)
class Case:
    """An optimizer with settings that suit the small problems below, and what it cannot do, with the reason."""

    spec: Spec
    needs_closure: bool = False
    one_group: str = ""
    no_copy: str = ""
    no_lr_zero: str = ""
    rosenbrock: float = 0.2  # factor of the learning rate on a function of a thousand times the curvature


PACKAGE = "optimizers of pytorch-optimizer do not carry all their options into copies"

CASES = {
    "sgd": Case(Sgd(lr=0.05), rosenbrock=0.02),
    "momentum": Case(Sgd(lr=0.02, momentum=0.9), rosenbrock=0.02),
    "nesterov": Case(Sgd(lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4, decay_matrices_only=True), rosenbrock=0.02),
    "adam": Case(Adam(lr=0.03)),
    "adamw": Case(AdamW(lr=0.03, decay_matrices_only=True)),
    "rmsprop": Case(RMSprop(lr=0.01, momentum=0.5)),
    "rmsprop_tf": Case(RMSpropTFSpec(lr=0.01, momentum=0.5)),
    "adagrad": Case(Adagrad(lr=0.2)),
    "lbfgs": Case(
        LBFGS(max_iter=4, line_search="strong_wolfe"),
        needs_closure=True,
        one_group="torch.optim.LBFGS has one group",
        no_copy="torch.optim.LBFGS does not carry its list of parameters into copies",
        no_lr_zero="torch.optim.LBFGS with a line search starts it at lr, which must not be 0",
    ),
    "muon": Case(Muon(lr=0.03, weight_decay=0.0, adam_lr=0.03, adam_names=("head.*",))),
    "muon_all": Case(Muon(lr=0.03, weight_decay=0.0, adam_lr=0.03)),
    "muon_float32": Case(Muon(lr=0.03, weight_decay=0.0, adam_lr=0.03, precision="float32")),
    "lamb": Case(Lamb(lr=0.03)),
    "lars": Case(Lars(lr=0.02, trust_coefficient=0.2, weight_decay=1e-4), no_copy=PACKAGE),
    "soap": Case(Soap(lr=0.03, weight_decay=0.0), no_copy=PACKAGE),
    "shampoo": Case(Shampoo(lr=0.1), no_copy=PACKAGE),
    "sgdp": Case(SgdP(lr=0.02), rosenbrock=0.02, no_copy=PACKAGE),
    "adamp": Case(AdamP(lr=0.03), no_copy=PACKAGE),
    "kfac": Case(Kfac(lr=0.03, inverse_every=3, kl_clip=1.0), rosenbrock=5.0),
    "agc": Case(Agc(clip=0.1, base=Sgd(lr=0.1, momentum=0.9))),
    "sam": Case(Sam(base=Sgd(lr=0.02, momentum=0.9)), needs_closure=True, rosenbrock=0.02),
    "scale_invariant_sgd": Case(ScaleInvariantSGDSpec(lr=0.3, weight_decay=0.01, momentum=0.5, others=Adam(lr=0.03))),
    "locoprop": Case(
        LocoPropSpec(lr=1e-4),
        one_group="LocoProp has the parameters of its module",
    ),
    "locoprop_squared": Case(
        LocoPropSpec(variant="squared", solver="closed_form", gamma=0.2, gamma_mode="per_row", prox_eta=100.0),
        rosenbrock=0.002,
        one_group="LocoProp has the parameters of its module",
    ),
}
ALL = pytest.mark.parametrize("name", CASES)


class Net(nn.Module):
    """tanh network; it calls its first layer scale invariant, which it is not: what is tested here does not depend on it."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Linear(3, 6, dtype=dtype)
        self.head = nn.Linear(6, 2, dtype=dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(0.0, 0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))

    def scale_invariant_parameters(self) -> Iterator[nn.Parameter]:
        return self.body.parameters()


def make_data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((16, 3), generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], dim=1).to(dtype)


def closure_of(optimizer: Optimizer, net: nn.Module, loss_of: Callable[[], Tensor] | None = None) -> Callable[[], Tensor]:
    if loss_of is None:
        x, y = make_data(next(net.parameters()).dtype)

        def loss_of() -> Tensor:
            return (net(x) - y).square().sum(dim=1).mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    return closure


def run(optimizer: Optimizer, net: nn.Module, num_steps: int, loss_of: Callable[[], Tensor] | None = None) -> list[float]:
    """Step with a closure and return the losses before each step."""
    closure = closure_of(optimizer, net, loss_of)
    return [float(torch.as_tensor(optimizer.step(closure)).detach()) for _ in range(num_steps)]


def build(name: str, net: nn.Module) -> Optimizer:
    try:
        return CASES[name].spec.build(net)
    except ImportError as error:
        pytest.skip(str(error))


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A state that went through a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def values(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def all_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_table_holds_every_name() -> None:
    assert set(OPTIMIZERS) <= set(CASES)
    assert all(type(CASES[name].spec) is type(spec) for name, spec in OPTIMIZERS.items())


@ALL
def test_regression_loss_falls(name: str) -> None:
    net = Net()
    losses = run(build(name, net), net, 60)
    assert losses[-1] < 0.5 * losses[0]


class Linear(nn.Module):
    """A linear layer on which a quadratic and Rosenbrock's function are posed, through its outputs at the unit vectors."""

    def __init__(self, start: list[list[float]]) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor(start))

    def forward(self) -> Tensor:
        return self.layer(torch.eye(2, dtype=torch.float64))

    def scale_invariant_parameters(self) -> Iterator[nn.Parameter]:
        return self.layer.parameters()


def quadratic(w: Tensor) -> Tensor:
    return (torch.tensor([[1.0, 4.0], [2.0, 8.0]]) * (w - torch.tensor([[1.0, -1.0], [2.0, 0.5]])).square()).mean()


def rosenbrock(w: Tensor) -> Tensor:
    return ((1 - w[:, 0]).square() + 100 * (w[:, 1] - w[:, 0].square()).square()).mean()


@ALL
@pytest.mark.parametrize(("function", "start", "share"), [(quadratic, 3.0, 0.2), (rosenbrock, -1.0, 0.6)])
def test_standard_functions_fall(name: str, function: Callable[[Tensor], Tensor], start: float, share: float) -> None:
    if name == "muon":
        pytest.skip("the network has no head; see muon_all")
    net = Linear([[start, 1.2], [0.5, start / 2]])
    optimizer = build(name, net)
    if function is rosenbrock:
        for group in optimizer.param_groups:
            group["lr"] *= CASES[name].rosenbrock
    losses = run(optimizer, net, 100, lambda: function(net()))
    assert losses[-1] < share * losses[0]
    assert max(losses) < 2 * losses[0]


@ALL
def test_closure_gives_its_loss_back(name: str) -> None:
    net = Net()
    optimizer = build(name, net)
    x, y = make_data()
    expected = (net(x) - y).square().sum(dim=1).mean()
    with torch.no_grad():  # a closure computes gradients nevertheless
        assert torch.equal(torch.as_tensor(optimizer.step(closure_of(optimizer, net))), expected.detach())


@ALL
def test_step_after_backward_is_the_step_with_a_closure(name: str) -> None:
    if CASES[name].needs_closure:
        pytest.skip("steps only with a closure")
    one, other = Net(), Net()
    with_closure, without = build(name, one), build(name, other)
    run(with_closure, one, 5)
    closure = closure_of(without, other)
    for _ in range(5):
        closure()
        assert without.step() is None
    assert all_equal(values(one), values(other))


@ALL
def test_saved_state_continues_to_the_bit(name: str) -> None:
    net = Net()
    optimizer = build(name, net)
    run(optimizer, net, 7)
    restored = Net()
    restored.load_state_dict(net.state_dict())
    other = build(name, restored)
    other.load_state_dict(copied(optimizer.state_dict()))
    run(optimizer, net, 7)
    run(other, restored, 7)
    assert all_equal(values(net), values(restored))
    # The same again, into an optimizer that has already stepped.
    later = copied(optimizer.state_dict())
    weights = copy.deepcopy(net.state_dict())
    run(other, restored, 2)
    other.load_state_dict(later)
    restored.load_state_dict(weights)
    run(optimizer, net, 4)
    run(other, restored, 4)
    assert all_equal(values(net), values(restored))


@ALL
def test_every_parameter_is_in_one_group_and_moves(name: str) -> None:
    net = Net()
    optimizer = build(name, net)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())
    before = values(net)
    run(optimizer, net, 2)  # the first step of SOAP only collects statistics
    assert not any(torch.equal(a, b) for a, b in zip(before, values(net), strict=True))


@ALL
def test_scheduler_acts_on_every_group(name: str) -> None:
    if CASES[name].no_lr_zero:
        pytest.skip(CASES[name].no_lr_zero)
    net = Net()
    optimizer = build(name, net)
    base = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch == 0 else 0.5 if epoch == 1 else 0.0)
    run(optimizer, net, 3)
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * lr for lr in base]
    schedule.step()
    run(optimizer, net, 1)
    if name in {"rmsprop_tf", "locoprop"}:  # momentum in TensorFlow's convention holds steps, and they go on
        return
    before = values(net)
    run(optimizer, net, 2)
    assert all_equal(values(net), before)


@ALL
def test_step_hooks_are_called_once(name: str) -> None:
    net = Net()
    optimizer = build(name, net)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    run(optimizer, net, 2)
    assert calls == ["before", "after"] * 2


@ALL
def test_frozen_parameters_stay(name: str) -> None:
    net = Net()
    net.head.weight.requires_grad_(False)
    net.head.bias.requires_grad_(False)
    optimizer = build(name, net)
    before = values(net.head)
    losses = run(optimizer, net, 10)
    assert all_equal(values(net.head), before)
    assert losses[-1] < losses[0]


@ALL
def test_step_without_any_gradient_changes_nothing(name: str) -> None:
    net = Net()
    optimizer = build(name, net)
    before = values(net)
    optimizer.zero_grad()
    optimizer.step(lambda: torch.tensor(1.0, dtype=torch.float64))  # a closure that computes no gradients
    assert all_equal(values(net), before)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_are_kept(name: str, dtype: torch.dtype) -> None:
    net = Net(dtype)
    optimizer = build(name, net)
    run(optimizer, net, 3)
    assert {p.dtype for p in net.parameters()} == {dtype}
    for param, state in optimizer.state.items():
        tensors = [v for v in state.values() if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 0]
        assert {v.dtype for v in tensors} <= {param.dtype}


@ALL
def test_copy_of_net_and_optimizer_goes_on_alike(name: str) -> None:
    if CASES[name].no_copy:
        pytest.skip(CASES[name].no_copy)
    net = Net()
    optimizer = build(name, net)
    run(optimizer, net, 3)
    net_copy, optimizer_copy = copy.deepcopy((net, optimizer))
    run(optimizer, net, 3)
    before = values(net)
    run(optimizer_copy, net_copy, 3)
    assert all_equal(values(net), values(net_copy))
    assert all_equal(values(net), before)  # the copy steps its own net
    for group in optimizer_copy.param_groups:
        group["lr"] = 0.0
    assert all(group["lr"] > 0 for group in optimizer.param_groups)


@ALL
def test_groups_can_be_added_where_that_is_clear(name: str) -> None:
    net = Net()
    optimizer = build(name, net)
    extra = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    if CASES[name].one_group or name in {"muon", "muon_all", "muon_float32", "kfac", "scale_invariant_sgd"}:
        if name != "lbfgs":  # refuses at the next step
            with pytest.raises(ValueError, match=r"add_param_group|one group"):
                optimizer.add_param_group({"params": [extra]})
        return
    optimizer.add_param_group({"params": [extra], "lr": 0.01})
    closure = closure_of(optimizer, net, lambda: extra.square().sum())
    for _ in range(3):
        optimizer.step(closure)
    assert not torch.equal(extra.detach(), torch.ones_like(extra))
    assert optimizer.param_groups[-1]["lr"] == 0.01


@ALL
def test_group_without_parameters_is_harmless(name: str) -> None:
    net = Net()
    optimizer = build(name, net)
    if CASES[name].one_group or len(getattr(optimizer, "optimizers", [0])) > 1 or name == "kfac":
        pytest.skip("groups cannot be added")
    optimizer.add_param_group({"params": []})
    losses = run(optimizer, net, 5)
    assert losses[-1] < losses[0]
