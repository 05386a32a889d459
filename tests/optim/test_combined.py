"""Several optimizers as one: shared groups and state, saving, schedulers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from rlopt.optim import CombinedOptimizer


def make(net: nn.Linear) -> CombinedOptimizer:
    parts = [torch.optim.SGD([net.weight], lr=0.1, momentum=0.9), torch.optim.Adam([net.bias], lr=0.01)]
    return CombinedOptimizer(parts)


def make_net() -> nn.Linear:
    net = nn.Linear(3, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return net


def step(net: nn.Linear, *optimizers: torch.optim.Optimizer) -> None:
    net.zero_grad()
    net(torch.tensor([[1.0, 2.0, 3.0]])).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def test_it_steps_like_its_parts() -> None:
    one, other = make_net(), make_net()
    combined = make(one)
    parts = [torch.optim.SGD([other.weight], lr=0.1, momentum=0.9), torch.optim.Adam([other.bias], lr=0.01)]
    for _ in range(5):
        step(one, combined)
        step(other, *parts)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_groups_and_state_are_shared_also_after_loading() -> None:
    net = make_net()
    combined = make(net)
    step(net, combined)
    for _ in range(2):
        assert [group is part.param_groups[0] for group, part in zip(combined.param_groups, combined.optimizers, strict=True)]
        for part in combined.optimizers:
            assert part.state is combined.state
            assert all(group is mine for group, mine in zip(part.param_groups, part.param_groups, strict=True))
        assert combined.optimizers[1].param_groups[0] is combined.param_groups[1]
        assert set(combined.state) == {net.weight, net.bias}
        combined.load_state_dict(combined.state_dict())
    combined.param_groups[0]["lr"] = 0.0
    before = net.weight.detach().clone()
    combined.optimizers[0].step()
    assert torch.equal(net.weight, before)


def test_state_of_parts_that_have_stepped_is_taken_over() -> None:
    net = make_net()
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    step(net, sgd)
    combined = CombinedOptimizer([sgd])
    assert "momentum_buffer" in combined.state[net.weight]


def test_pickled_and_copied_it_stays_one_object() -> None:
    net = make_net()
    combined = make(net)
    step(net, combined)
    for again in (copy.deepcopy(combined), pickle.loads(pickle.dumps(combined))):
        assert again.optimizers[0].state is again.state
        assert again.optimizers[1].param_groups[0] is again.param_groups[1]
        assert again.param_groups[1] is not combined.param_groups[1]
        assert again.param_groups[0]["momentum"] == 0.9


def test_group_added_to_the_only_part_is_stepped() -> None:
    net, extra = make_net(), nn.Parameter(torch.ones(2))
    combined = CombinedOptimizer([torch.optim.SGD(net.parameters(), lr=0.1)])
    combined.add_param_group({"params": [extra], "lr": 1.0})
    extra.grad = torch.ones(2)
    combined.step()
    assert extra.tolist() == [0.0, 0.0]
    assert combined.optimizers[0].param_groups[1] is combined.param_groups[1]


def test_zero_grad_clears_all() -> None:
    net = make_net()
    combined = make(net)
    step(net, combined)
    combined.zero_grad(set_to_none=False)
    assert (net.weight.grad == 0).all()
    combined.zero_grad()
    assert net.weight.grad is net.bias.grad is None


def test_wrong_use_is_named() -> None:
    net = make_net()
    with pytest.raises(ValueError, match="optimizers must hold at least one optimizer"):
        CombinedOptimizer([])
    with pytest.raises(ValueError, match="more than one parameter group"):
        CombinedOptimizer([torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.Adam([net.bias])])
    with pytest.raises(ValueError, match="add_param_group must be called on one of the parts"):
        make(net).add_param_group({"params": [nn.Parameter(torch.ones(1))]})
