"""What LocoProp records: which passes, which transfers, and what everything else does."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rlopt.optim.kfac import KFAC
from rlopt.optim.locoprop import LocoProp

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def fill(module: nn.Module, seed: int = 0) -> Any:
    """Give all parameters fixed values."""
    module.to(DOUBLE)
    with torch.no_grad():
        for index, param in enumerate(module.parameters()):
            param.copy_(0.4 * draw(*param.shape, seed=seed + index))
    return module


def mlp(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    return fill(nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3)))


def loss_of(net: nn.Module, seed: int = 100) -> Tensor:
    return (net(draw(7, 4, seed=seed)) - draw(7, 3, seed=seed + 1)).square().mean()


def values(module: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in module.parameters()]


def assert_same(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-14)


def num_rows(optimizer: LocoProp | KFAC) -> list[int]:
    return [sum(use.delta[..., 0].numel() for use in layer.uses) for layer in optimizer.recorder.layers.values()]


@pytest.mark.parametrize("variant", ["matching", "squared"])
@pytest.mark.parametrize("make", [nn.ReLU, nn.ELU, nn.LeakyReLU], ids=lambda make: make.__name__)
def test_inplace_activation_gives_the_result_of_the_other_one(make: Callable[..., nn.Module], variant: str) -> None:
    results = []
    for inplace in (False, True):
        net = mlp(lambda inplace=inplace: make(inplace=inplace))
        optimizer = LocoProp(net, lr=1e-3, variant=variant, gamma=3.0)
        for seed in (100, 200):
            optimizer.zero_grad()
            loss_of(net, seed).backward()
            optimizer.step()
        results.append(values(net))
    assert_same(*results)


def test_any_inplace_change_of_the_output_is_noticed() -> None:
    class Shifted(nn.Module):
        def __init__(self, inplace: bool) -> None:
            super().__init__()
            self.body, self.inplace = nn.Linear(4, 3), inplace

        def forward(self, x: Tensor) -> Tensor:
            a = self.body(x)
            return torch.relu(a.add_(1.0) if self.inplace else a + 1.0)  # not the activation of the layer's own output

    results = []
    for inplace in (False, True):
        net = fill(Shifted(inplace))
        optimizer = LocoProp(net, lr=1e-3)
        net(draw(2, 4)).square().mean().backward()  # so few rows that the target, and with it the output, is needed
        optimizer.step()
        assert optimizer.transfers == {"body": "identity"}
        results.append(values(net))
    assert_same(*results)


def test_evaluation_leaves_nothing() -> None:
    net = mlp()
    optimizer = LocoProp(net)
    with torch.no_grad():
        net(draw(3, 4))
    with torch.inference_mode():
        net(draw(3, 4))
    with optimizer.suspended():
        (net(draw(3, 4)).sum() * 0.0).backward()
    assert num_rows(optimizer) == [0, 0]


def test_a_pass_that_is_never_differentiated_frees_itself() -> None:
    net = mlp()
    optimizer = LocoProp(net)
    seen: list[weakref.ref[Tensor]] = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(weakref.ref(args[0])))
    gc.disable()  # by reference counting alone
    try:
        out = net(draw(3, 4))
        del out
        assert seen[0]() is None
        assert num_rows(optimizer) == [0, 0]
    finally:
        gc.enable()


def test_zero_grad_may_come_before_or_after_the_forward_pass() -> None:
    results = []
    for zero_first in (True, False):
        net = mlp()
        optimizer = LocoProp(net, lr=1e-3)
        for seed in (100, 200, 300):
            if zero_first:
                optimizer.zero_grad()
                loss = loss_of(net, seed)
            else:
                loss = loss_of(net, seed)
                optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
        results.append(values(net))
    assert_same(*results)


def test_an_actor_loss_through_the_critic_leaves_no_rows_for_it() -> None:
    critic, actor = mlp(), fill(nn.Linear(4, 4), seed=7)
    optimizer = LocoProp(critic, lr=1e-3)
    reference = mlp()
    expected = LocoProp(reference, lr=1e-3)
    for seed in (100, 200):
        critic(actor(draw(5, 4, seed=seed))).mean().backward()
        assert num_rows(optimizer) == [5, 5]
        optimizer.zero_grad()
        assert num_rows(optimizer) == [0, 0]
        loss_of(critic, seed).backward()
        optimizer.step()
        expected.zero_grad()
        loss_of(reference, seed).backward()
        expected.step()
    assert_same(values(critic), values(reference))


def test_module_zero_grad_drops_the_rows_as_well() -> None:
    net, reference = mlp(), mlp()
    optimizer, expected = LocoProp(net, lr=1e-3), LocoProp(reference, lr=1e-3)
    loss_of(net, 300).backward()
    net.zero_grad()
    loss_of(net, 100).backward()
    loss_of(reference, 100).backward()
    optimizer.step()
    expected.step()
    assert_same(values(net), values(reference))
    before = values(net)
    loss_of(net, 300).backward()
    net.zero_grad()
    optimizer.step()
    assert_same(values(net), before)


def test_gradients_with_respect_to_inputs_only_leave_no_rows() -> None:
    net = mlp()
    optimizer = LocoProp(net)
    actions = draw(5, 4).requires_grad_()
    torch.autograd.grad(net(actions).sum(), actions)
    assert num_rows(optimizer) == [0, 0]
    loss_of(net).backward()
    assert num_rows(optimizer) == [7, 7]


def test_accumulated_passes_are_rows_of_one_problem() -> None:
    x, y = draw(8, 4), draw(8, 3, seed=1)
    results = []
    for pieces in (1, 2):
        net = mlp()
        optimizer = LocoProp(net, lr=1e-3)
        for part_x, part_y in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
            (net(part_x) - part_y).square().sum().div(8).backward()
        assert num_rows(optimizer) == [8, 8]
        optimizer.step()
        results.append(values(net))
    assert_same(*results, rtol=1e-10)


def test_a_graph_that_is_differentiated_twice_adds_its_gradients() -> None:
    net, reference = mlp(), mlp()
    optimizer, expected = LocoProp(net, lr=1e-3), LocoProp(reference, lr=1e-3)
    out = net(draw(7, 4))
    out.square().mean().backward(retain_graph=True)
    out.sum().backward()
    assert num_rows(optimizer) == [7, 7]
    out = reference(draw(7, 4))
    (out.square().mean() + out.sum()).backward()
    optimizer.step()
    expected.step()
    assert_same(values(net), values(reference), rtol=1e-10)
    # After zero_grad a second pass through the same graph starts anew.
    out = net(draw(7, 4))
    out.square().mean().backward(retain_graph=True)
    optimizer.zero_grad()
    out.sum().backward()
    first = list(optimizer.recorder.layers.values())[1].uses[0]
    assert torch.equal(first.delta, torch.ones(7, 3, dtype=DOUBLE))


class Shared(nn.Module):
    """The same layer three times."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.body(x))
        return self.head(x)


def test_rows_of_a_shared_layer_sum_to_the_gradient() -> None:
    net = fill(Shared())
    optimizer = LocoProp(net)
    loss_of(net).backward()
    layer = next(iter(optimizer.recorder.layers.values()))
    total = sum(use.delta.T @ use.inputs for use in layer.uses)
    assert num_rows(optimizer) == [21, 7]
    torch.testing.assert_close(total, net.body.weight.grad, rtol=1e-12, atol=1e-14)
    optimizer.step()
    assert optimizer.transfers == {"body": "tanh", "head": "identity"}


@pytest.mark.parametrize("change", ["clip", "scale", "replace", "stale", "mixed"])
def test_changed_parameter_gradients_do_not_act_on_the_local_problems(change: str) -> None:
    net, reference = mlp(), mlp()
    optimizer, expected = LocoProp(net, lr=1e-3), LocoProp(reference, lr=1e-3)
    if change == "stale":  # gradients from before, without rows
        optimizer.step()
        for param in net.parameters():
            param.grad = torch.ones_like(param)
    if change == "mixed":
        with optimizer.suspended():
            extra = net(draw(3, 4)).sum()
        (loss_of(net) + extra).backward()
    else:
        loss_of(net).backward()
    if change == "clip":
        nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    elif change == "scale":
        net[0].weight.grad.mul_(3.0)
    elif change == "replace":
        net[0].bias.grad = 2.0 * net[0].bias.grad
    loss_of(reference).backward()
    optimizer.step()
    expected.step()
    assert_same(values(net), values(reference), rtol=1e-10)


def test_step_without_zero_grad_does_not_count_old_gradients() -> None:
    net, reference = mlp(), mlp()
    optimizer, expected = LocoProp(net, lr=1e-3), LocoProp(reference, lr=1e-3)
    for seed in (100, 200):
        loss_of(net, seed).backward()
        optimizer.step()
        expected.zero_grad()
        loss_of(reference, seed).backward()
        expected.step()
    assert_same(values(net), values(reference), rtol=1e-10)


class Everything(nn.Module):
    """Parts with and without local problems."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.inp(x))[None]
        h = self.norm(h + self.attention(h, h, h)[0])
        return self.out(h)[0] * self.scale


def test_everything_else_moves_exactly_as_the_fallback_moves_it() -> None:
    net, reference = fill(Everything()), fill(Everything())
    optimizer = LocoProp(net, lr=1e-3, fallback=lambda params: torch.optim.Adam(params, lr=0.01))
    adam = torch.optim.Adam(reference.parameters(), lr=0.01)
    for model, stepper in ((net, optimizer), (reference, adam)):
        loss_of(model).backward()
        stepper.step()
    handled = {"inp.weight", "inp.bias", "out.weight", "out.bias"}
    for (name, param), other in zip(net.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(param, other) == (name not in handled)
    assert optimizer.transfers == {"inp": "relu", "attention.out_proj": "fallback", "out": "identity", "unused": "fallback"}
    assert net.inp.weight.grad is not None


class Functional(nn.Module):
    """A residual network with functional activations of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in "abcdefghij"})
        self.head = nn.Linear(4, 3)
        self.norm, self.drop = nn.LayerNorm(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.layers
        x = x + layers["b"](torch.tanh(layers["a"](x)))
        x = F.leaky_relu(layers["c"](x), 0.2) + F.gelu(layers["d"](x))
        x = torch.relu(self.norm(layers["e"](x))) + layers["f"](x).sigmoid()
        gate = layers["g"](x)
        x = x + gate * torch.sigmoid(gate)  # used otherwise as well: not a sigmoid layer
        x = torch.tanh(self.drop(layers["h"](x)))
        x = x * torch.softmax(layers["i"](x), dim=-1) + torch.softmax(layers["j"](x), dim=0)
        return self.head(x)


def test_functional_activations_are_found() -> None:
    net = fill(Functional())
    optimizer = LocoProp(net, lr=1e-6)
    loss_of(net).backward()
    optimizer.step()
    found = {name.removeprefix("layers."): transfer for name, transfer in optimizer.transfers.items()}
    assert found == {
        "a": "tanh", "b": "identity", "c": "leaky_relu", "d": "identity", "e": "identity", "f": "sigmoid", "g": "identity",
        "h": "identity", "i": "softmax", "j": "identity", "head": "identity",
    }  # fmt: skip


class Parts(nn.Module):
    """A policy whose parts are called one by one, never the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.actor, self.critic = nn.Sequential(nn.Linear(4, 5), nn.Tanh()), nn.Linear(5, 2), nn.Linear(5, 1)


def test_parts_that_are_called_one_by_one_are_recorded() -> None:
    net = fill(Parts())
    optimizer = LocoProp(net, lr=1e-6)
    h = net.features(draw(6, 4))
    (net.actor(h).square().mean() + net.critic(h).mean()).backward()
    optimizer.step()
    assert optimizer.transfers == {"features.0": "tanh", "actor": "identity", "critic": "identity"}


def test_closure_sees_the_link_of_the_loss_and_an_explicit_transfer_comes_first() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    for explicit, expected in (("auto", "softmax"), ({"2": "identity"}, "identity")):
        net = mlp()
        optimizer = LocoProp(net, lr=1e-6, transfer=explicit)

        def closure(net: nn.Module = net, optimizer: LocoProp = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(draw(7, 4)), labels)
            loss.backward()
            return loss

        assert isinstance(optimizer.step(closure), Tensor)
        assert optimizer.transfers == {"0": "tanh", "2": expected}


def test_next_module_of_a_sequential_is_taken_where_no_call_was_seen() -> None:
    net = fill(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
    optimizer = LocoProp(net, lr=1e-6)
    net[1](net[0](draw(5, 4))).sum().backward()  # the container is never called
    optimizer.step()
    assert optimizer.transfers == {"0": "tanh"}


def test_an_error_in_the_forward_pass_ends_the_watch() -> None:
    net = mlp()
    optimizer = LocoProp(net)
    with pytest.raises(RuntimeError):
        net(draw(3, 5))
    assert torch.overrides._get_current_function_mode() is None
    loss_of(net).backward()
    optimizer.step()
    assert optimizer.transfers == {"0": "tanh", "2": "identity"}


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias"])
@pytest.mark.parametrize("solver", ["iterative", "closed_form"])
def test_frozen_parameters_stay(frozen: str, solver: str) -> None:
    net = mlp()
    net.get_parameter(frozen).requires_grad_(False)
    before = dict(copy.deepcopy(net).named_parameters())
    options: dict[str, Any] = {"variant": "squared", "solver": solver, "prox_eta": 1.0} if solver == "closed_form" else {}
    optimizer = LocoProp(net, **options)
    loss_of(net).backward()
    optimizer.step()
    for name, param in net.named_parameters():
        assert torch.equal(param, before[name]) == (name == frozen)


def test_parameters_that_are_thawed_later_are_trained() -> None:
    net = mlp()
    net[0].requires_grad_(False)
    optimizer = LocoProp(net)
    net[0].requires_grad_(True)
    loss_of(net).backward()
    optimizer.step()
    assert optimizer.transfers["0"] == "tanh"


def test_checkpointing_gives_one_capture() -> None:
    results = []
    for reentrant in (None, False, True):
        net = mlp()
        optimizer = LocoProp(net, lr=1e-3)
        x = draw(7, 4).requires_grad_()
        out = net(x) if reentrant is None else checkpoint(net, x, use_reentrant=reentrant)
        out.square().mean().backward()
        assert num_rows(optimizer) == [7, 7]
        optimizer.step()
        results.append(values(net))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_layers_that_compute_with_other_tensors_take_the_fallback() -> None:
    net = mlp()
    optimizer = LocoProp(net, fallback=lambda params: torch.optim.SGD(params, lr=0.5))
    before = values(net)
    doubled = {name: 2.0 * param for name, param in net.named_parameters()}
    torch.func.functional_call(net, doubled, (draw(7, 4),)).square().mean().backward()
    assert num_rows(optimizer) == [0, 0]
    grads = [param.grad.clone() for param in net.parameters()]
    optimizer.step()
    assert_same(values(net), [value - 0.5 * grad for value, grad in zip(before, grads, strict=True)])
    stacked = {name: torch.stack([param.detach()] * 2) for name, param in net.named_parameters()}
    out = torch.vmap(lambda params, x: torch.func.functional_call(net, params, (x,)), in_dims=(0, None))(stacked, draw(7, 4))
    assert out.shape == (2, 7, 3)
    assert torch.vmap(net)(draw(2, 7, 4)).shape == (2, 7, 3)


def test_sequences_and_single_rows_are_rows() -> None:
    results = []
    for shape in ((6, 4), (2, 3, 4)):
        net = mlp()
        optimizer = LocoProp(net, lr=1e-3)
        net(draw(6, 4).reshape(shape)).square().mean().backward()
        optimizer.step()
        results.append(values(net))
    assert_same(*results)
    net = mlp()
    optimizer = LocoProp(net, lr=1e-3)
    net(draw(4)).square().mean().backward()
    assert num_rows(optimizer) == [1, 1]
    optimizer.step()


def test_which_layers_have_local_problems() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2.0 * super().forward(x)

    tied = nn.Linear(4, 4, bias=False)
    embedding = nn.Embedding(4, 4)
    tied.weight = embedding.weight
    net = nn.ModuleDict({
        "plain": nn.Linear(4, 4), "conv": nn.Conv2d(2, 4, 3), "grouped": nn.Conv2d(2, 4, 3, groups=2), "own": Own(4, 4),
        "tied": tied, "embedding": embedding, "transposed": nn.ConvTranspose2d(2, 2, 2), "cell": nn.LSTMCell(4, 4),
        "spectral": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
    })  # fmt: skip
    assert list(LocoProp(net)._layers) == ["plain", "conv"]
    assert list(LocoProp(net, layers=lambda name, module: isinstance(module, nn.Conv2d))._layers) == ["conv"]


def test_close_removes_all_hooks() -> None:
    net = mlp()
    optimizer = LocoProp(net)
    loss_of(net).backward()
    optimizer.close()
    for part in net.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    loss_of(net).backward()
    with pytest.raises(RuntimeError, match="closed"):
        optimizer.step()


def test_a_dropped_optimizer_leaves_dead_hooks_that_the_next_one_removes() -> None:
    net = mlp()
    for _ in range(3):
        optimizer = LocoProp(net)
        loss_of(net).backward()
        optimizer.step()
        number = sum(len(part._forward_hooks) for part in net.modules())
        del optimizer
        gc.collect()
    assert number == 3


COPIERS = pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"]
)


@COPIERS
def test_copies_of_the_module_record_nothing_and_copies_of_both_go_on(copier: Callable[[Any], Any]) -> None:
    net = mlp()
    optimizer = LocoProp(net, lr=1e-3)
    loss_of(net).backward()
    optimizer.step()
    target = copier(net)
    loss_of(target).backward()
    assert num_rows(optimizer) == [0, 0]
    net2, optimizer2 = copier((net, optimizer))
    assert optimizer2._module is net2
    for seed in (200, 300):
        for model, stepper in ((net, optimizer), (net2, optimizer2)):
            stepper.zero_grad()
            loss_of(model, seed).backward()
            stepper.step()
    assert_same(values(net2), values(net), rtol=0)
    alone = copier(optimizer)
    before = values(net)
    loss_of(alone._module).backward()
    alone.step()
    assert_same(values(net), before, rtol=0)


@pytest.mark.parametrize("make", [LocoProp, lambda net: KFAC(net, lr=1e-3)], ids=["locoprop", "kfac"])
@pytest.mark.parametrize("when", ["built", "differentiated", "stepped"])
@COPIERS
def test_a_copied_module_that_holds_its_optimizer_goes_on_alike(
    make: Callable[[nn.Module], Any], when: str, copier: Callable[[Any], Any]
) -> None:
    """Agents keep the optimizer of a critic in the critic; its copy is then older than the module that it belongs to."""
    net = mlp()
    net.optimizer = make(net)
    if when != "built":
        loss_of(net).backward()
    if when == "stepped":
        net.optimizer.step()
    twin = copier(net)
    assert twin.optimizer is not net.optimizer
    for seed in (200, 300):
        for model in (net, twin):
            model.optimizer.zero_grad()
            loss_of(model, seed).backward()
            assert num_rows(model.optimizer) == [7, 7]
            model.optimizer.step()
    assert_same(values(twin), values(net), rtol=0)


@COPIERS
def test_a_copy_may_be_called_first_with_other_parameters(copier: Callable[[Any], Any]) -> None:
    net, optimizer = copier((lambda net: (net, LocoProp(net)))(mlp()))
    doubled = {name: 2.0 * param for name, param in net.named_parameters()}
    torch.func.functional_call(net, doubled, (draw(7, 4),)).square().mean().backward()
    assert num_rows(optimizer) == [0, 0]
    optimizer.zero_grad()
    loss_of(net).backward()
    assert num_rows(optimizer) == [7, 7]


def test_copies_of_a_closed_optimizer_are_closed() -> None:
    net = mlp()
    optimizer = LocoProp(net)
    optimizer.close()
    net, optimizer = copy.deepcopy((net, optimizer))
    assert not any(part._forward_hooks for part in net.modules())
    with pytest.raises(RuntimeError, match="closed"):
        optimizer.step()


def test_hooks_that_a_copied_module_inherits_are_replaced_by_those_of_its_own_optimizer() -> None:
    net = mlp()
    optimizer = LocoProp(net)
    target = copy.deepcopy(net)
    number = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())
    own = LocoProp(target)
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in target.modules()) == number
    loss_of(target).backward()
    assert (num_rows(own), num_rows(optimizer)) == ([7, 7], [0, 0])
    own.close()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in target.modules())
