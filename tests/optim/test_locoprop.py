"""LocoProp: the iterative solver against hand numbers, closed forms and a plain twin, and its promises about order and batching."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlopt.optim.inner_rules import AdamRule, InnerRule, RMSpropRule, RMSpropTFRule, SGDRule
from rlopt.optim.locoprop import LocoProp
from rlopt.optim.transfers import TRANSFERS

DOUBLE = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def make_net(*widths: int, activation: Callable[[], nn.Module] = nn.Tanh, seed: int = 0, bias: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(fan_in, fan_out, bias=bias, dtype=DOUBLE)
        with torch.no_grad():
            layer.weight.copy_(draw(fan_out, fan_in, seed=seed + 2 * index) / fan_in**0.5)
            if bias:
                layer.bias.copy_(0.1 * draw(fan_out, seed=seed + 2 * index + 1))
        parts += [layer, activation()]
    return nn.Sequential(*parts[:-1])


def squared_loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (net(x) - y).square().sum(1).mean()


def one_unit(delta: Tensor, weight: float = 0.5) -> nn.Linear:
    """A unit that has seen X = (1, 2) and was sent a given gradient."""
    unit = nn.Linear(1, 1, bias=False, dtype=DOUBLE)
    nn.init.constant_(unit.weight, weight)
    return unit


@pytest.mark.parametrize("variant", ["squared", "matching"])
@pytest.mark.parametrize("transfer", list(TRANSFERS))
def test_first_step_is_gamma_times_backprop(variant: str, transfer: str) -> None:
    net, x, y = make_net(5, 4, 3), draw(8, 5, seed=50), draw(8, 3, seed=51)
    kinds = {"transfer": {"0": transfer, "2": transfer}} if variant == "matching" else {}
    optimizer = LocoProp(net, lr=0.03, variant=variant, inner="sgd", local_iters=1, gamma=7.0, **kinds)
    squared_loss(net, x, y).backward()
    expected = [param.detach() - 0.03 * 7.0 * param.grad for param in net.parameters()]
    optimizer.step()
    for param, value in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(param.detach(), value, rtol=1e-12, atol=0)


def test_hand_example_of_the_squared_problem() -> None:
    unit, x, delta = one_unit(draw(1)), torch.tensor([[1.0], [2.0]], dtype=DOUBLE), torch.tensor([[0.1], [-0.2]], dtype=DOUBLE)
    optimizer = LocoProp(unit, lr=0.1, variant="squared", inner="sgd", local_iters=2, gamma=2.0, local_lr_floor=1.0)
    unit(x).backward(delta)
    assert unit.weight.grad.item() == pytest.approx(-0.3, rel=1e-15)
    optimizer.step()
    assert unit.weight.item() == pytest.approx(0.59, rel=1e-14)


@pytest.mark.parametrize(("num_iters", "expected"), [(1, 0.56), (2, 0.606219020)])
def test_hand_example_of_the_matching_problem(num_iters: int, expected: float) -> None:
    unit, x, delta = one_unit(draw(1)), torch.tensor([[1.0], [2.0]], dtype=DOUBLE), torch.tensor([[0.1], [-0.2]], dtype=DOUBLE)
    optimizer = LocoProp(unit, lr=0.1, inner="sgd", local_iters=num_iters, gamma=2.0, local_lr_floor=1.0, transfer={"": "tanh"})
    unit(x).backward(delta)
    optimizer.step()
    assert unit.weight.item() == pytest.approx(expected, abs=5e-10)


@pytest.mark.parametrize(("inner", "expected"), [("rmsprop_tf", 6.201704e-6), ("rmsprop", 3.162111e-5)])
def test_first_inner_step_has_the_semantics_of_its_rule(inner: str, expected: float) -> None:
    unit, x, delta = one_unit(draw(1)), torch.tensor([[1.0], [2.0]], dtype=DOUBLE), torch.tensor([[0.1], [-0.2]], dtype=DOUBLE)
    optimizer = LocoProp(unit, lr=1e-5, inner=inner, local_iters=1, gamma=2.0)  # gamma G = -0.6
    unit(x).backward(delta)
    optimizer.step()
    assert unit.weight.item() - 0.5 == pytest.approx(expected, rel=1e-6)


def twin_update(rule: InnerRule, w: Tensor, g: Tensor, state: dict, lr: float) -> Tensor:
    """One step of a rule, as its formula reads."""
    state["t"] = state.get("t", 0) + 1
    if isinstance(rule, SGDRule):
        state["v"] = rule.momentum * state.get("v", 0.0) + g
        return w - lr * state["v"]
    if isinstance(rule, RMSpropTFRule):
        state["v"] = rule.alpha * state.get("v", torch.ones_like(w)) + (1 - rule.alpha) * g**2
        state["m"] = rule.momentum * state.get("m", 0.0) + lr * g / (state["v"] + rule.eps).sqrt()
        return w - state["m"]
    if isinstance(rule, RMSpropRule):
        state["v"] = rule.alpha * state.get("v", 0.0) + (1 - rule.alpha) * g**2
        state["m"] = rule.momentum * state.get("m", 0.0) + g / (state["v"].sqrt() + rule.eps)
        return w - lr * state["m"]
    assert isinstance(rule, AdamRule)
    state["m"] = rule.beta1 * state.get("m", 0.0) + (1 - rule.beta1) * g
    state["v"] = rule.beta2 * state.get("v", 0.0) + (1 - rule.beta2) * g**2
    mean, square = state["m"] / (1 - rule.beta1 ** state["t"]), state["v"] / (1 - rule.beta2 ** state["t"])
    return w - lr * mean / (square.sqrt() + rule.eps)


class Twin:
    """LocoProp for a plain tanh network, layer by layer with a bias as a further column, straight from the formulas."""

    def __init__(self, net: nn.Sequential, rule: InnerRule, lr: float, **options: float | None) -> None:
        self.params = [torch.cat([m.weight, m.bias[:, None]], 1).detach() for m in net if isinstance(m, nn.Linear)]
        self.rule, self.lr, self.options = rule, lr, options
        self.states: list[dict] = [{} for _ in self.params]

    def step(self, x: Tensor, y: Tensor, squared: bool) -> None:
        inputs, outputs, h = [], [], x
        for index, w in enumerate(self.params):
            inputs.append(torch.cat([h.detach(), torch.ones(len(h), 1, dtype=DOUBLE)], 1))
            a = (torch.cat([h, torch.ones(len(h), 1, dtype=DOUBLE)], 1) @ w.T).requires_grad_()
            outputs.append(a)
            h = torch.tanh(a) if index < len(self.params) - 1 else a
        deltas = torch.autograd.grad(0.5 * (h - y).square().sum(1).mean(), outputs)
        num_iters, eta, gamma = self.options["local_iters"], self.options["prox_eta"], self.options["gamma"]
        for index, start in enumerate(self.params):
            w, state = start.clone(), self.states[index]
            f = torch.tanh if not squared and index < len(self.params) - 1 else lambda a: a
            target = f(outputs[index].detach()) - gamma * deltas[index]
            for k in range(num_iters):
                g = (f(inputs[index] @ w.T) - target).T @ inputs[index] + ((w - start) / eta if eta else 0.0)
                w = twin_update(self.rule, w, g, state, self.lr * max(1 - k / num_iters, 0.25))
            self.params[index] = w


@pytest.mark.parametrize("prox_eta", [None, 0.3])
@pytest.mark.parametrize("rule", [RMSpropTFRule(), SGDRule(), SGDRule(0.5), RMSpropRule(momentum=0.5), AdamRule()], ids=str)
@pytest.mark.parametrize("variant", ["squared", "matching"])
def test_training_equals_the_twin(variant: str, rule: InnerRule, prox_eta: float | None) -> None:
    net, x, y = make_net(6, 5, 4, 3), draw(4, 9, 6, seed=60), draw(4, 9, 3, seed=61)
    options = {"local_iters": 5, "gamma": 4.0, "prox_eta": prox_eta}
    twin = Twin(net, rule, 1e-3, **options)
    optimizer = LocoProp(net, lr=1e-3, variant=variant, inner=rule, **options)
    for t in range(4):
        optimizer.zero_grad()
        squared_loss(net, x[t], y[t]).backward()
        optimizer.step()
        twin.step(x[t], y[t], variant == "squared")
    layers = [module for module in net if isinstance(module, nn.Linear)]
    for layer, expected in zip(layers, twin.params, strict=True):
        found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_gradient_descent_steps_are_a_spectral_filter() -> None:
    layer, x, delta = nn.Linear(4, 3, bias=False, dtype=DOUBLE), draw(9, 4), draw(9, 3, seed=1)
    gram, start = x.T @ x, layer.weight.detach().clone()
    size, num_iters, gamma = 1.5 / torch.linalg.eigvalsh(gram)[-1].item(), 7, 3.0
    optimizer = LocoProp(layer, lr=size, variant="squared", inner="sgd", local_iters=num_iters, gamma=gamma, local_lr_floor=1.0)
    layer(x).backward(delta)
    gradient = layer.weight.grad.clone()
    optimizer.step()
    contraction = torch.eye(4, dtype=DOUBLE) - size * gram
    powers = sum(torch.linalg.matrix_power(contraction, j) for j in range(num_iters))
    torch.testing.assert_close(layer.weight.detach(), start - size * gamma * gradient @ powers, rtol=1e-12, atol=1e-14)


def test_gram_form_equals_rows() -> None:
    # Few outputs and rows against many inputs use rows, the other way round X'X; the spectral filter above holds in both.
    for rows, inputs in ((3, 12), (30, 4)):
        layer, x, delta = nn.Linear(inputs, 5, dtype=DOUBLE), draw(rows, inputs), draw(rows, 5, seed=1)
        w, b = layer.weight.detach().clone(), layer.bias.detach().clone()
        target = layer(x).detach() - 2.0 * delta
        optimizer = LocoProp(layer, lr=0.01, variant="squared", inner="sgd", local_iters=6, gamma=2.0, prox_eta=0.5)
        layer(x).backward(delta)
        optimizer.step()
        start_w, start_b = w.clone(), b.clone()
        for k in range(6):
            residual = x @ w.T + b - target
            factor = 0.01 * max(1 - k / 6, 0.25)
            w, b = w - factor * (residual.T @ x + (w - start_w) / 0.5), b - factor * (residual.sum(0) + (b - start_b) / 0.5)
        torch.testing.assert_close(layer.weight.detach(), w, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(layer.bias.detach(), b, rtol=1e-12, atol=1e-14)


def last_layer_losses() -> list[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    labels = torch.tensor([0, 2, 1, 2, 0, 1])
    units = (draw(6, 3, seed=9) > 0).double()
    numbers = draw(6, 3, seed=8)
    return [
        ("sigmoid", lambda a: F.binary_cross_entropy_with_logits(a, units, reduction="none").sum(1).mean(), units),
        ("softmax", lambda a: F.cross_entropy(a, labels), F.one_hot(labels, 3).double()),
        ("identity", lambda a: 0.5 * (a - numbers).square().sum(1).mean(), numbers),
    ]


@pytest.mark.parametrize(("transfer", "loss", "target"), last_layer_losses(), ids=["bce", "cross_entropy", "squared"])
@pytest.mark.parametrize("mode", ["loss", "per_row"])
def test_with_gamma_the_number_of_rows_the_last_layers_target_is_the_label(
    transfer: str, loss: Callable[[Tensor], Tensor], target: Tensor, mode: str
) -> None:
    net, x = make_net(4, 3), draw(6, 4)
    gamma = 6.0 if mode == "loss" else 1.0
    optimizer = LocoProp(net, lr=0.05, inner="sgd", local_iters=3, gamma=gamma, gamma_mode=mode, local_lr_floor=1.0)
    twin = make_net(4, 3)
    twin.load_state_dict(net.state_dict())
    f = TRANSFERS[transfer]
    with optimizer.watching():
        loss(net(x)).backward()
    optimizer.step()
    assert optimizer.transfers == {"0": transfer}
    # Then the local problem is the global loss times the number of rows, as a function of the last layer.
    for _ in range(3):
        residual = f(twin(x).detach()) - target
        with torch.no_grad():
            twin[0].weight.sub_(0.05 * residual.T @ x)
            twin[0].bias.sub_(0.05 * residual.sum(0))
    torch.testing.assert_close(net[0].weight, twin[0].weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net[0].bias, twin[0].bias, rtol=1e-12, atol=1e-14)


def test_matching_problem_solved_to_convergence_interpolates() -> None:
    layer, x = nn.Linear(6, 2, bias=False, dtype=DOUBLE), draw(3, 6)  # fewer rows than inputs: any target can be met
    with torch.no_grad():
        layer.weight.mul_(0.5)
    delta = 0.1 * draw(3, 2, seed=1)
    target = torch.tanh(layer(x)).detach() - delta
    assert target.abs().max() < 0.9
    size = 1.0 / torch.linalg.eigvalsh(x @ x.T)[-1].item()
    optimizer = LocoProp(layer, lr=size, inner="sgd", local_iters=4000, gamma=1.0, local_lr_floor=1.0, transfer={"": "tanh"})
    layer(x).backward(delta)
    optimizer.step()
    torch.testing.assert_close(torch.tanh(layer(x)).detach(), target, rtol=0, atol=1e-12)


class Twins(nn.Module):
    """Four branches; the layers "a" and "b" of each branch have equal shapes in all of them."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict()
        for index in order:
            self.branches[str(index)] = make_net(5, 6, 2, seed=10 * index)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branches[str(index)](x) for index in range(4)], 1)


@pytest.mark.parametrize(
    ("solver", "inner"),
    [("iterative", "rmsprop_tf"), ("iterative", "adam"), ("closed_form", "rmsprop_tf"), ("fixed_point", "rmsprop_tf")],
)
def test_batching_and_order_change_nothing(solver: str, inner: str) -> None:
    results = []
    for batched, order in ((False, [0, 1, 2, 3]), (True, [0, 1, 2, 3]), (True, [2, 0, 3, 1]), (False, [3, 2, 1, 0])):
        model = Twins(order)
        options = {"gamma": 3.0, "prox_eta": 0.02, "batched": batched, "solver": solver, "lr": 1e-3}
        if solver == "closed_form":
            options["variant"] = "squared"
        optimizer = LocoProp(model, inner=inner, **options)
        for t in range(3):
            optimizer.zero_grad()
            squared_loss(model, draw(7, 5, seed=t), draw(7, 8, seed=70 + t)).backward()
            optimizer.step()
        results.append({name: param.detach() for name, param in model.named_parameters()})
    for other in results[1:]:
        for name, value in results[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-11, atol=1e-13)


def test_no_layer_sees_the_new_weights_of_another() -> None:
    """Training all layers equals training each alone from the same start, with the others kept."""
    x, y = draw(9, 6), draw(9, 3, seed=1)
    together = make_net(6, 5, 4, 3)
    optimizer = LocoProp(together, lr=1e-3)
    squared_loss(together, x, y).backward()
    optimizer.step()
    for name in ("0", "2", "4"):
        alone = make_net(6, 5, 4, 3)
        single = LocoProp(
            alone, lr=1e-3, layers=lambda key, _, name=name: key == name,
            fallback=lambda params: torch.optim.SGD(params, lr=0.0),
        )  # fmt: skip
        squared_loss(alone, x, y).backward()
        single.step()
        assert torch.equal(alone.get_submodule(name).weight, together.get_submodule(name).weight)
        assert not torch.equal(alone.get_submodule(name).weight, make_net(6, 5, 4, 3).get_submodule(name).weight)


def test_repeating_a_batch_changes_the_gradient_only_per_row() -> None:
    x, y = draw(5, 4), draw(5, 3, seed=1)
    steps = {}
    for mode in ("loss", "per_row"):
        for repeat in (1, 2):
            net = make_net(4, 3)
            optimizer = LocoProp(net, lr=0.1, inner="sgd", local_iters=1, gamma=2.0, gamma_mode=mode)
            before = net[0].weight.detach().clone()
            squared_loss(net, x.repeat(repeat, 1), y.repeat(repeat, 1)).backward()
            optimizer.step()
            steps[mode, repeat] = net[0].weight.detach() - before
    torch.testing.assert_close(steps["loss", 2], steps["loss", 1], rtol=1e-12, atol=0)
    torch.testing.assert_close(steps["per_row", 1], 5 * steps["loss", 1], rtol=1e-12, atol=0)
    torch.testing.assert_close(steps["per_row", 2], 10 * steps["loss", 1], rtol=1e-12, atol=0)


def test_clipping_scales_all_deltas_to_the_norm() -> None:
    x, y = draw(5, 4), draw(5, 3, seed=1)
    results = []
    for bound, gamma in ((None, 2.0), (1e9, 2.0), (0.05, 2.0)):
        net = make_net(4, 6, 3)
        optimizer = LocoProp(net, lr=1e-3, gamma=gamma, max_delta_norm=bound)
        squared_loss(net, x, y).backward()
        optimizer.step()
        results.append(net[0].weight.detach())
    torch.testing.assert_close(results[1], results[0], rtol=1e-13, atol=0)
    net = make_net(4, 6, 3)
    a1 = net[0](x).detach().requires_grad_()
    a2 = net[2](torch.tanh(a1))
    deltas = torch.autograd.grad(0.5 * (a2 - y).square().sum(1).mean(), [a1, a2])
    norm = sum(delta.square().sum() for delta in deltas).sqrt().item()
    assert norm > 0.05
    scaled = LocoProp(net, lr=1e-3, gamma=2.0 * 0.05 / norm)
    squared_loss(net, x, y).backward()
    scaled.step()
    torch.testing.assert_close(results[2], net[0].weight.detach(), rtol=1e-6, atol=1e-9)


def test_weight_decay_shrinks_once_per_step_with_the_outer_rate() -> None:
    nets = [make_net(4, 3), make_net(4, 3)]
    for net, decay in zip(nets, (0.0, 0.5), strict=True):
        optimizer = LocoProp(net, lr=0.1, inner="sgd", weight_decay=decay)
        squared_loss(net, draw(5, 4), draw(5, 3, seed=1)).backward()
        optimizer.step()
    torch.testing.assert_close(nets[1][0].weight, nets[0][0].weight * 0.95, rtol=1e-14, atol=0)


@pytest.mark.parametrize("batched", [False, True])
def test_tracked_local_losses_are_those_of_the_definition_and_fall(batched: bool) -> None:
    model, x, y = Twins([0, 1, 2, 3]), draw(7, 5), draw(7, 8, seed=1)
    start = {name: param.detach().clone() for name, param in model.named_parameters()}
    options = {"lr": 1e-4, "prox_eta": 0.5, "gamma": 3.0}
    optimizer = LocoProp(model, batched=batched, track_local_losses=True, **options)
    squared_loss(model, x, y).backward()
    optimizer.step()
    assert len(optimizer.local_losses) == 8
    for before, after in optimizer.local_losses.values():
        assert after < before
    plain = Twins([0, 1, 2, 3])
    reference = LocoProp(plain, batched=batched, **options)
    squared_loss(plain, x, y).backward()
    reference.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))
    assert reference.local_losses == {}
    # The last layer of a branch: the identity, so |A - A*|^2 / 2 up to the constant |A*|^2 / 2.
    name = "branches.1.2"
    h = torch.tanh(x @ start["branches.1.0.weight"].T + start["branches.1.0.bias"])
    a = h @ start[f"{name}.weight"].T + start[f"{name}.bias"]
    delta = (a - y[:, 2:4]) / 7
    target = a - 3.0 * delta
    new = model.get_submodule(name)
    changed = h @ new.weight.T + new.bias
    moved = (new.weight - start[f"{name}.weight"]).square().sum() + (new.bias - start[f"{name}.bias"]).square().sum()
    constant = 0.5 * target.square().sum()
    before, after = optimizer.local_losses[name]
    torch.testing.assert_close(before + constant, 0.5 * (a - target).square().sum(), rtol=1e-10, atol=1e-12)
    expected = 0.5 * (changed - target).square().sum() + moved / (2 * 0.5)
    torch.testing.assert_close(after + constant, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", ["iterative", "fixed_point"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_float32_follows_float64(activation: Callable[[], nn.Module], batched: bool, bias: bool, solver: str) -> None:
    """Where a tanh on a CPU is computed in another way."""
    options = {"iterative": {"lr": 0.02, "inner": "sgd"}, "fixed_point": {"solver": "fixed_point", "prox_eta": 0.02}}[solver]
    results = []
    for dtype in (torch.float32, DOUBLE):
        net = make_net(5, 5, 5, 3, activation=activation, bias=bias).to(dtype)
        before = [param.detach().clone() for param in net.parameters()]
        optimizer = LocoProp(net, local_iters=6, gamma=3.0, batched=batched, **options)
        squared_loss(net, draw(8, 5, seed=50).to(dtype), draw(8, 3, seed=51).to(dtype)).backward()
        optimizer.step()
        results.append([param.detach().double() - start.double() for param, start in zip(net.parameters(), before, strict=True)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert expected.norm() > 1e-3
