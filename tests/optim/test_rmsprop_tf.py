"""RMSProp with TensorFlow's semantics: by hand, against a plain loop, and its two forms against each other."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from rlopt.optim.rmsprop_tf import RMSpropTF


def gradients(num: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, dtype=torch.float64, generator=generator) for _ in range(num)]


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
def test_first_step_is_the_hand_number_for_any_momentum(momentum: float) -> None:
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    w.grad = torch.full_like(w, -0.6)
    RMSpropTF([w], lr=1e-5, alpha=0.9, momentum=momentum, eps=1e-5).step()
    # v = 0.9 + 0.1 * 0.36 = 0.936;  0.6e-5 / sqrt(0.93601)
    assert w.item() == pytest.approx(6.201704e-6, rel=1e-6)
    assert w.item() == pytest.approx(0.6e-5 / math.sqrt(0.936 + 1e-5), rel=1e-14)


def test_torch_differs_in_the_first_step() -> None:
    w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    w.grad = torch.full_like(w, -0.6)
    torch.optim.RMSprop([w], lr=1e-5, alpha=0.9, eps=1e-5).step()
    assert w.item() == pytest.approx(3.162111e-5, rel=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("foreach", [False, True])
def test_many_steps_equal_a_loop_over_entries(momentum: float, foreach: bool) -> None:
    w = nn.Parameter(gradients(1, seed=9)[0].clone())
    expected, v, m = w.detach().flatten().tolist(), [1.0] * 6, [0.0] * 6
    optimizer = RMSpropTF([w], lr=0.05, alpha=0.8, momentum=momentum, eps=1e-3, foreach=foreach)
    for t, grad in enumerate(gradients(20)):
        lr = 0.05 / (1 + t)
        for i, g in enumerate(grad.flatten().tolist()):
            v[i] = 0.8 * v[i] + 0.2 * g * g
            m[i] = momentum * m[i] + lr * g / math.sqrt(v[i] + 1e-3)
            expected[i] -= m[i]
        optimizer.param_groups[0]["lr"] = lr
        w.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(w.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_foreach_equals_single_to_the_bit(momentum: float) -> None:
    results = []
    for foreach in (False, True):
        params = [nn.Parameter(grad.float()) for grad in gradients(3, seed=5)]
        optimizer = RMSpropTF(params, lr=0.1, momentum=momentum, foreach=foreach)
        for step in range(5):
            for param, grad in zip(params, gradients(3, seed=10 + step), strict=True):
                param.grad = grad.float()
            params[1].grad = None if step == 2 else params[1].grad
            optimizer.step()
        results.append(torch.stack([param.detach() for param in params]))
    assert torch.equal(*results)


def test_state_goes_on_bit_identically_after_a_round_trip() -> None:
    w = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    optimizer = RMSpropTF([w], lr=0.1, momentum=0.9)
    for grad in gradients(4):
        w.grad = grad
        optimizer.step()
    other = nn.Parameter(w.detach().clone())
    resumed = RMSpropTF([other], lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for grad in gradients(4, seed=1):
        for param, stepper in ((w, optimizer), (other, resumed)):
            param.grad = grad.clone()
            stepper.step()
    assert torch.equal(w, other)


def test_maximize_mirrors_the_gradient_and_closure_returns_its_loss() -> None:
    up, down = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    ascent, descent = RMSpropTF([up], lr=0.1, maximize=True), RMSpropTF([down], lr=0.1)

    def loss(param: nn.Parameter, optimizer: torch.optim.Optimizer) -> float:
        optimizer.zero_grad()
        value = (param * 3.0 + 1.0).sum()
        value.backward()
        return value.item()

    assert ascent.step(lambda: loss(up, ascent)) == 1.0
    descent.step(lambda: loss(down, descent))
    assert up.item() == -down.item() > 0.0


def test_schedulers_act_and_new_groups_have_their_own_rate() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = RMSpropTF([first], lr=0.2, alpha=0.0, eps=0.0)
    optimizer.add_param_group({"params": [second], "lr": 0.4})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for _ in range(2):
        first.grad = second.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
    assert (first.item(), second.item()) == (pytest.approx(-0.3), pytest.approx(-0.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be >= 0, got -1.0"),
        ({"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"eps": -1e-9}, "eps must be >= 0, got -1e-09"),
    ],
)
def test_arguments_outside_their_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RMSpropTF([nn.Parameter(torch.zeros(1))], **options)


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradients must be dense"):
        RMSpropTF(embedding.parameters()).step()
