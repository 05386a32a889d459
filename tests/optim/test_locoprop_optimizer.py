"""LocoProp as a torch optimizer: state, schedulers, closures, hooks, precision, and what it refuses."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.optim.inner_rules import AdamRule, InnerRule, RMSpropTFRule, SGDRule
from rlopt.optim.locoprop import LocoProp


def make_net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in net.parameters():
            param.copy_(0.4 * torch.randn(param.shape, generator=generator))
    return net


def loss_of(net: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return (net(x).float() - x[:, :2].float().sin()).square().sum(1).mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> float:
    for seed in seeds:
        optimizer.zero_grad()
        loss = loss_of(net, seed)
        loss.backward()
        optimizer.step()
    return loss.item()


KINDS: dict[str, dict[str, Any]] = {
    "matching": {"lr": 1e-4},
    "squared": {"lr": 1e-4, "variant": "squared"},
    "adam": {"lr": 1e-3, "inner": "adam"},
    "sgd": {"lr": 1e-3, "inner": SGDRule(momentum=0.9)},
    "rmsprop": {"lr": 1e-5, "inner": "rmsprop"},
    "closed_form": {"variant": "squared", "solver": "closed_form", "gamma": 4.0, "prox_eta": 1.0},
    "fixed_point": {"solver": "fixed_point", "gamma": 4.0, "prox_eta": 0.01},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_every_kind_learns(options: dict[str, Any]) -> None:
    net = make_net()
    optimizer = LocoProp(net, **options)
    assert isinstance(optimizer, torch.optim.Optimizer)
    before = loss_of(net, 99).item()
    train(net, optimizer, range(60))
    assert loss_of(net, 99).item() < 0.6 * before


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_a_saved_state_goes_on_bit_identically(options: dict[str, Any]) -> None:
    net = make_net()
    optimizer = LocoProp(net, **options)
    train(net, optimizer, range(4))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(net, optimizer, range(4, 8))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = make_net(seed=5)
    resumed = LocoProp(other, **options)
    train(other, resumed, range(2))
    other.load_state_dict(saved["net"])
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, range(4, 8))
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_inner_state_persists_and_is_that_of_two_floats_per_parameter() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = LocoProp(net)
    train(net, optimizer, range(1))
    once = {param: state["square_avg"].clone() for param, state in optimizer.state.items()}
    train(net, optimizer, range(1, 2))
    num_params = sum(param.numel() for param in net.parameters())
    kept = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    assert sum(value.numel() for value in kept) == 2 * num_params
    assert all(not torch.equal(once[param], optimizer.state[param]["square_avg"]) for param in net.parameters())
    assert optimizer.state_dict()["fallback"]["state"] == {}


def test_schedulers_act_on_local_and_fallback_rates() -> None:
    results = []
    for scheduled in (True, False):
        net = make_net()
        optimizer = LocoProp(net, lr=1e-4 if scheduled else 5e-5, fallback=lambda p: torch.optim.SGD(p, lr=0.1))
        if scheduled:
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
        else:
            optimizer.fallback.param_groups[0]["lr"] = 0.05
        for seed in range(3):
            train(net, optimizer, range(seed, seed + 1))
            if scheduled:
                scheduler.step()
        assert optimizer.fallback.param_groups[0]["lr"] == (0.1 if scheduled else 0.05)
        results.append([param.detach() for param in net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_rate_zero_moves_nothing_but_warms_the_mean_square() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = LocoProp(net)
    optimizer.param_groups[0]["lr"] = 0.0
    before = copy.deepcopy(net.state_dict())
    train(net, optimizer, range(3))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all((state["square_avg"] != 1.0).all() for state in optimizer.state.values())


def test_closure_and_step_hooks() -> None:
    results = []
    for use_closure in (True, False):
        net = make_net()
        optimizer = LocoProp(net, lr=1e-4)
        calls: list[str] = []
        optimizer.register_step_pre_hook(lambda *args, calls=calls: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *args, calls=calls: calls.append("post"))
        if use_closure:

            def closure(net: nn.Module = net, optimizer: LocoProp = optimizer) -> float:
                assert torch.is_grad_enabled()
                optimizer.zero_grad()
                loss = loss_of(net, 0)
                loss.backward()
                return loss.item()

            with torch.no_grad():
                assert optimizer.step(closure) == pytest.approx(loss_of(make_net(), 0).item())
        else:
            train(net, optimizer, range(1))
        assert calls == ["pre", "post"]
        results.append([param.detach() for param in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_autocast_is_solved_in_the_precision_of_the_parameters() -> None:
    nets = [make_net(), make_net()]
    optimizers = [LocoProp(net, lr=1e-4) for net in nets]
    for seed in range(3):
        for net, optimizer, enabled in zip(nets, optimizers, (True, False), strict=True):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = loss_of(net, seed)
                if seed == 1:  # inside as well
                    loss.backward()
                    optimizer.step()
            if seed != 1:
                loss.backward()
                optimizer.step()
    assert all(param.dtype == torch.float32 for param in nets[0].parameters())
    start = make_net()
    for a, b, old in zip(nets[0].parameters(), nets[1].parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a - old, b - old, rtol=0.2, atol=0.1 * (b - old).abs().max().item())


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_bfloat16_parameters_are_trained_in_their_precision(options: dict[str, Any]) -> None:
    net = make_net(dtype=torch.bfloat16)
    optimizer = LocoProp(net, **options)
    for seed in range(3):
        optimizer.zero_grad()
        loss_of(net, seed, torch.bfloat16).backward()
        optimizer.step()
    assert all(param.dtype == torch.bfloat16 and param.isfinite().all() for param in net.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(net.parameters(), make_net(dtype=torch.bfloat16).parameters(), strict=True))


def test_the_loss_scale_is_taken_out() -> None:
    results = []
    for enabled in (True, False):
        net = make_net()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
        optimizer = LocoProp(net, lr=1e-4, grad_scaler=scaler)
        for seed in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, seed)).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append([param.detach() for param in net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_step_without_any_pass_does_nothing() -> None:
    net = make_net()
    LocoProp(net).step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), make_net().parameters(), strict=True))


def test_own_rules_can_be_given() -> None:
    class Signs:
        def init_state(self, param: Tensor) -> dict[str, Tensor]:
            return {}

        def update(self, params: Any, grads: Any, states: Any, lr: float) -> None:
            for param, grad in zip(params, grads, strict=True):
                param.sub_(grad.sign(), alpha=lr)

    net = make_net()
    optimizer = LocoProp(net, lr=0.25, inner=Signs(), local_iters=1)
    assert isinstance(optimizer.inner, InnerRule)
    train(net, optimizer, range(1))
    moved = (net[0].weight - make_net()[0].weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "M"}, r"variant must be one of \('squared', 'matching'\), got 'M'"),
        ({"solver": "exact"}, "solver must be one of"),
        ({"gamma_mode": "mean"}, "gamma_mode must be one of"),
        ({"solver": "closed_form", "prox_eta": 1.0}, "set variant='squared'"),
        ({"solver": "closed_form", "variant": "squared"}, "prox_eta must be a number > 0 for solver='closed_form', got None"),
        ({"solver": "fixed_point"}, "prox_eta must be a number > 0 for solver='fixed_point'"),
        ({"solver": "fixed_point", "variant": "squared", "prox_eta": 1.0}, "is for variant='matching'"),
        ({"inner": "lion"}, "inner must be one of .*, got 'lion'"),
        ({"inner": "sgd"}, "lr must be given for inner='sgd'"),
        ({"inner": AdamRule()}, "lr must be given for inner=AdamRule"),
        ({"lr": -1.0}, "lr must be finite and >= 0, got -1.0"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"gamma": 0.0}, "gamma must be finite and > 0, got 0.0"),
        ({"prox_eta": 0.0}, "prox_eta must be finite and > 0, got 0.0"),
        ({"max_delta_norm": -1.0}, "max_delta_norm must be finite and > 0, got -1.0"),
        ({"local_iters": 0}, "local_iters must be >= 1, got 0"),
        ({"local_lr_floor": 1.5}, r"local_lr_floor must be in \[0, 1\], got 1.5"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and >= 0, got -0.1"),
        ({"transfer": {"9": "tanh"}}, "transfer must name layers with a local problem, .* got '9'"),
        ({"transfer": {"0": "gelu"}}, "transfer must be one of"),
        ({"transfer": {"0": "tanh"}, "variant": "squared"}, "transfer has no effect with variant='squared'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocoProp(make_net(), **options)


def test_further_refusals() -> None:
    optimizer = LocoProp(make_net())
    with pytest.raises(ValueError, match="LocoProp has one group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(ValueError, match="state_dict must be that of a LocoProp"):
        optimizer.load_state_dict(torch.optim.SGD(make_net().parameters(), lr=0.1).state_dict())
    with pytest.raises(ValueError, match="run one forward pass"):
        LocoProp(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(TypeError, match="inner must be a name or an InnerRule, got int"):
        LocoProp(make_net(), inner=3)  # type: ignore[arg-type]
    for rule in (RMSpropTFRule, SGDRule):
        with pytest.raises(ValueError, match=r"momentum must be in \[0.0, 1.0\), got 1.0"):
            rule(momentum=1.0)
