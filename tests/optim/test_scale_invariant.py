"""Clipping and scale-invariant SGD: examples by hand, recursion of the norm, rescalings to the bit, both implementations."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlopt.optim import ScaleInvariantSGD, relative_global_clip


def parameter(values: list[float] | Tensor) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())


def set_grads(params: list[nn.Parameter], grads: list[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()


class Cosine:
    """L(x) = 1 - cos(x, target) + noise . x / |x|, a scale-invariant loss over several tensors with gradients of many sizes."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...] = ((3, 4), (5,), (2, 2)), seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.shapes = shapes
        self.start = [self.draw(shape) for shape in shapes]
        self.noises = [[self.draw(shape) for shape in shapes] for _ in range(30)]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def loss(self, params: list[nn.Parameter], step: int) -> Tensor:
        x = torch.cat([p.flatten() for p in params])
        noise = torch.cat([n.flatten() for n in self.noises[step]])
        return (x / x.norm()) @ (noise * (0.1 + step % 7) + torch.linspace(-1, 1, len(x), dtype=torch.float64))


def trajectory(*, loss_scale: float = 1.0, start_scale: float = 1.0, num_steps: int = 20, **options: Any) -> list[Tensor]:
    problem = Cosine()
    params = [nn.Parameter(start * start_scale) for start in problem.start]
    optimizer = ScaleInvariantSGD(params, **options)
    iterates = []
    for step in range(num_steps):
        optimizer.zero_grad()
        (loss_scale * problem.loss(params, step)).backward()
        optimizer.step()
        iterates.append(torch.cat([p.detach().flatten() for p in params]))
    return iterates


def concatenated(tensors: list[Any]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


# Examples by hand: lr 8e-4, decay 0.01, factor 2 give a threshold of 10 |x|.


def test_clipping_by_hand() -> None:
    x = parameter([3.0, 4.0])
    x.grad = torch.tensor([0.0, 100.0], dtype=torch.float64)
    coefficient = relative_global_clip([x], lr=8e-4, weight_decay=0.01)
    torch.testing.assert_close(coefficient, torch.tensor(0.5, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 50.0], dtype=torch.float64), rtol=1e-14, atol=0)
    x.grad = torch.tensor([0.0, 40.0], dtype=torch.float64)
    assert relative_global_clip([x], lr=8e-4, weight_decay=0.01) == 1.0
    assert x.grad.tolist() == [0.0, 40.0]


@pytest.mark.parametrize(("grad", "expected"), [(100.0, 3.959968), (40.0, 3.967968)])
@pytest.mark.parametrize("foreach", [False, True])
def test_step_by_hand(grad: float, expected: float, foreach: bool) -> None:
    x = parameter([3.0, 4.0])
    optimizer = ScaleInvariantSGD([x], lr=8e-4, weight_decay=0.01, foreach=foreach)
    x.grad = torch.tensor([0.0, grad], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([2.999976, expected], dtype=torch.float64), rtol=1e-14, atol=0)
    assert x.grad.tolist() == [0.0, grad]  # a step does not touch the gradients
    assert not optimizer.state


def test_threshold_follows_the_current_lr() -> None:
    x = parameter([3.0, 4.0])
    optimizer = ScaleInvariantSGD([x], lr=8e-4, weight_decay=0.01)
    optimizer.param_groups[0]["lr"] = 8e-5
    x.grad = torch.tensor([0.0, 1000.0], dtype=torch.float64)
    optimizer.step()
    decay = 1 - 8e-7
    expected = [3.0 * decay, 4.0 * decay - 8e-5 * 50.0 * math.sqrt(10.0)]
    torch.testing.assert_close(x.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


def test_one_norm_spans_all_tensors_and_scopes_split_it() -> None:
    # Tensors of norms 3 and 4 with gradients of norms 600 and 0: together 10 * 5 / 600, alone 10 * 3 / 600 and no clipping.
    def step(**options: Any) -> tuple[float, float]:
        a, b = parameter([3.0]), parameter([4.0])
        optimizer = ScaleInvariantSGD([{"params": [a]}, {"params": [b]}], lr=8e-4, weight_decay=0.01, **options)
        set_grads([a, b], [torch.full((1,), 600.0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
        optimizer.step()
        return a.item(), b.item()

    decay = 1 - 8e-6
    assert step() == pytest.approx((3 * decay - 8e-4 * 50, 4 * decay), rel=1e-14)
    assert step(scope="group") == pytest.approx((3 * decay - 8e-4 * 30, 4 * decay), rel=1e-14)
    assert step(scope="tensor") == step(scope="group")
    a, b = parameter([3.0]), parameter([4.0])
    set_grads([a, b], [torch.full((1,), 600.0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    found = relative_global_clip([a, b], lr=8e-4, weight_decay=0.01, scope="tensor")
    assert found.tolist() == pytest.approx([0.05, 1.0], rel=1e-14)


def test_group_without_clipping_stays_out_of_the_norms() -> None:
    x, head = parameter([3.0, 4.0]), parameter([1.0])
    groups = [{"params": [x]}, {"params": [head], "clip_factor": None, "weight_decay": 0.0, "lr": 0.1}]
    optimizer = ScaleInvariantSGD(groups, lr=8e-4, weight_decay=0.01)
    set_grads([x, head], [torch.tensor([0.0, 100.0], dtype=torch.float64), torch.tensor([1e6], dtype=torch.float64)])
    optimizer.step()
    assert x.tolist() == pytest.approx([2.999976, 3.959968], rel=1e-14)
    assert head.item() == pytest.approx(1.0 - 1e5, rel=1e-14)


def test_momentum_takes_in_clipped_gradients_and_decay_stays_outside() -> None:
    x = parameter([3.0, 4.0])
    optimizer = ScaleInvariantSGD([x], lr=8e-4, weight_decay=0.01, momentum=0.5)
    value, velocity = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for grad in ([0.0, 100.0], [30.0, 0.0], [-500.0, 70.0]):
        x.grad = torch.tensor(grad, dtype=torch.float64)
        velocity = 0.5 * velocity + x.grad * min(1.0, 0.5 * 10 * float(value.norm()) / float(x.grad.norm()))
        value = (1 - 8e-6) * value - 8e-4 * velocity
        optimizer.step()
        torch.testing.assert_close(x.detach(), value, rtol=1e-14, atol=0)


# Against torch, between implementations, and theory.


def test_without_clipping_it_is_sgd_of_torch() -> None:
    mine = trajectory(lr=0.05, weight_decay=0.1, clip_factor=None)
    problem = Cosine()
    params = [nn.Parameter(start.clone()) for start in problem.start]
    optimizer = torch.optim.SGD(params, lr=0.05, weight_decay=0.1)
    for step, iterate in enumerate(mine):
        optimizer.zero_grad()
        problem.loss(params, step).backward()
        optimizer.step()
        torch.testing.assert_close(iterate, concatenated([p.detach() for p in params]), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("clip_factor", [1.0, 2.0, None])
@pytest.mark.parametrize("maximize", [False, True])
def test_foreach_equals_single_tensors(scope: str, momentum: float, clip_factor: float | None, maximize: bool) -> None:
    options = {
        "lr": 0.5,
        "weight_decay": 0.01,
        "scope": scope,
        "momentum": momentum,
        "clip_factor": clip_factor,
        "maximize": maximize,
    }
    for one, other in zip(trajectory(foreach=False, **options), trajectory(foreach=True, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_foreach_takes_mixed_dtypes() -> None:
    results = []
    for foreach in (False, True):
        params = [nn.Parameter(torch.full((4,), 2.0, dtype=d)) for d in (torch.float32, torch.float64, torch.bfloat16)]
        set_grads(params, [torch.full((4,), 50.0 + i, dtype=p.dtype) for i, p in enumerate(params)])
        ScaleInvariantSGD(params, lr=8e-4, weight_decay=0.01, foreach=foreach).step()
        assert [p.dtype for p in params] == [torch.float32, torch.float64, torch.bfloat16]
        results.append([p.detach().double() for p in params])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_maximize_ascends() -> None:
    x = parameter([3.0, 4.0])
    optimizer = ScaleInvariantSGD([x], lr=8e-4, weight_decay=0.01, maximize=True)
    x.grad = torch.tensor([0.0, -100.0], dtype=torch.float64)
    optimizer.step()
    assert x.tolist() == pytest.approx([2.999976, 3.959968], rel=1e-14)


def test_half_precision_norms_do_not_overflow() -> None:
    x = nn.Parameter(torch.full((1000,), 100.0, dtype=torch.float16))
    x.grad = torch.full((1000,), 5000.0, dtype=torch.float16)  # norm 158114, beyond float16
    assert relative_global_clip([x], lr=8e-4, weight_decay=0.01).item() == pytest.approx(0.2, rel=1e-6)
    assert x.grad[0] == 1000.0


def test_squared_norm_follows_its_recursion() -> None:
    # |x'|^2 = (1 - lr decay)^2 |x|^2 + lr^2 |coefficient g|^2, since the gradient is orthogonal to x.
    problem = Cosine()
    params = [nn.Parameter(start.clone()) for start in problem.start]
    lr, decay = 0.5, 0.01
    optimizer = ScaleInvariantSGD(params, lr=lr, weight_decay=decay, clip_factor=1.0)
    coefficients = []
    for step in range(20):
        optimizer.zero_grad()
        problem.loss(params, step).backward()
        before, grad = concatenated(params).norm().item(), concatenated([p.grad for p in params]).norm().item()
        coefficients.append(min(1.0, math.sqrt(2 * decay / lr) * before / grad))
        optimizer.step()
        expected = (1 - lr * decay) ** 2 * before**2 + (lr * coefficients[-1] * grad) ** 2
        assert concatenated(params).norm().item() ** 2 == pytest.approx(expected, rel=1e-13)
    assert min(coefficients) < 1.0 == max(coefficients)


def test_without_decay_the_norm_grows_unless_the_gradient_is_zero() -> None:
    norms = [x.norm().item() for x in trajectory(lr=0.1, weight_decay=0.0, clip_factor=None)]
    assert all(b > a for a, b in itertools.pairwise(norms))
    x = parameter([1.0, 2.0])
    x.grad = torch.zeros_like(x)
    ScaleInvariantSGD([x], lr=0.1, weight_decay=0.0, clip_factor=None).step()
    assert x.tolist() == [1.0, 2.0]


# Powers of two make these rescalings exact, so the runs must agree to the last bit.


@pytest.mark.parametrize("clip_factor", [1.0, 2.0, None])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_scale_of_the_loss_is_undone_by_lr_and_decay(clip_factor: float | None, momentum: float, scope: str) -> None:
    options = {"clip_factor": clip_factor, "momentum": momentum, "scope": scope}
    plain = trajectory(lr=0.5, weight_decay=1 / 128, **options)
    scaled = trajectory(lr=0.5 / 8, weight_decay=8 / 128, loss_scale=8.0, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))
    assert (clip_factor is None) == all(
        torch.equal(a, b)
        for a, b in zip(plain, trajectory(lr=0.5, weight_decay=1 / 128, clip_factor=None, momentum=momentum), strict=True)
    )  # clipping acted, where there is any


@pytest.mark.parametrize("clip_factor", [1.0, None])
def test_scale_of_the_weights_is_undone_by_lr_and_decay(clip_factor: float | None) -> None:
    plain = trajectory(lr=0.5, weight_decay=1 / 128, clip_factor=clip_factor)
    scaled = trajectory(lr=0.5 * 16, weight_decay=1 / 128 / 16, start_scale=4.0, clip_factor=clip_factor)
    assert all(torch.equal(4.0 * a, b) for a, b in zip(plain, scaled, strict=True))


# The start in equilibrium.


def test_start_in_equilibrium_by_hand() -> None:
    # lr 0.02, decay 0.01, momentum 0.5: ratio 0.5 sqrt(2 * 0.01 / 0.02) = 0.5. |x| = 5, |g| = 40: c^2 = 40 / (0.5 * 5) = 16.
    x, left_out = parameter([3.0, 4.0]), parameter([7.0])
    optimizer = ScaleInvariantSGD([x, left_out], lr=0.02, weight_decay=0.01, momentum=0.5, start_in_equilibrium=True)
    x.grad = torch.tensor([32.0, -24.0], dtype=torch.float64)
    optimizer.step()
    # x = (12, 16) with g = (8, -6), which is at the ratio and not clipped.
    assert x.tolist() == pytest.approx([12 * (1 - 2e-4) - 0.02 * 8, 16 * (1 - 2e-4) + 0.02 * 6], rel=1e-14)
    assert x.grad.tolist() == [32.0, -24.0]
    assert left_out.item() == 7.0
    assert optimizer.param_groups[0]["start_in_equilibrium"] is False
    first, second = x.tolist()
    x.grad = torch.zeros_like(x)
    optimizer.step()  # only momentum and decay: no second rescaling
    assert x.tolist() == pytest.approx([first * (1 - 2e-4) - 0.02 * 4, second * (1 - 2e-4) + 0.02 * 3], rel=1e-14)


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("foreach", [False, True])
def test_scales_of_weights_and_loss_and_lr_do_not_matter_from_equilibrium(scope: str, momentum: float, foreach: bool) -> None:
    options = {"scope": scope, "momentum": momentum, "foreach": foreach, "start_in_equilibrium": True}
    plain = trajectory(lr=0.25, weight_decay=1 / 16, **options)
    for change in ({"start_scale": 100.0}, {"loss_scale": 1e-3}, {"lr": 4.0, "weight_decay": 1 / 256}):
        other = trajectory(**{"lr": 0.25, "weight_decay": 1 / 16, **options, **change})
        for a, b in zip(plain, other, strict=True):
            torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=1e-10, atol=1e-12)


def test_start_in_equilibrium_waits_for_a_learning_rate_and_leaves_zeros() -> None:
    x, zero = parameter([3.0, 4.0]), parameter([0.0])
    groups = [{"params": [x]}, {"params": [zero]}]
    optimizer = ScaleInvariantSGD(groups, lr=0.0, weight_decay=0.5, scope="group", start_in_equilibrium=True)
    set_grads([x, zero], [torch.tensor([4.0, -3.0], dtype=torch.float64), torch.tensor([0.0], dtype=torch.float64)])
    optimizer.step()
    assert x.tolist() == [3.0, 4.0]
    for group in optimizer.param_groups:
        assert group["start_in_equilibrium"] is True
        group["lr"] = 1.0  # ratio 1: x and g have it already
    optimizer.step()
    assert x.tolist() == [0.5 * 3.0 - 4.0, 0.5 * 4.0 + 3.0]
    assert zero.item() == 0.0


def test_a_run_resumed_after_its_start_does_not_start_again() -> None:
    x = parameter([3.0, 4.0])
    optimizer = ScaleInvariantSGD([x], lr=0.02, weight_decay=0.01, start_in_equilibrium=True)
    x.grad = torch.tensor([32.0, -24.0], dtype=torch.float64)
    optimizer.step()
    y = parameter(x.tolist())
    resumed = ScaleInvariantSGD([y], lr=0.02, weight_decay=0.01, start_in_equilibrium=True)
    resumed.load_state_dict(optimizer.state_dict())
    for parameter_, optimizer_ in ((x, optimizer), (y, resumed)):
        parameter_.grad = torch.tensor([1.0, 2.0], dtype=torch.float64)
        optimizer_.step()
    assert x.tolist() == y.tolist()


def test_norm_settles_at_its_equilibrium() -> None:
    # A gradient of norm 3 / |x|, orthogonal to x: the norm goes to 3 sqrt(lr / (decay (2 - lr decay))) = 0.6000012.
    lr, decay, sigma = 8e-4, 0.01, 3.0
    x = parameter([math.sqrt(0.606), 0.0])
    optimizer = ScaleInvariantSGD([x], lr=lr, weight_decay=decay)
    limit = math.sqrt(sigma * math.sqrt(lr / (decay * (2 - lr * decay))))
    assert limit**2 == pytest.approx(0.6000012, rel=1e-7)
    excess = []
    for _ in range(3000):
        value = x.detach()
        x.grad = sigma / value.norm() ** 2 * torch.stack([-value[1], value[0]])
        excess.append(x.norm().item() ** 2 / limit**2 - 1)
        optimizer.step()
    assert sigma / limit**2 == pytest.approx(4.99999, rel=1e-6)  # ratio of the norms of gradient and weights
    # Near the limit the squared norm relaxes by 1 - 4 lr decay per step; 1 % away, a second-order term remains.
    rate = (excess[-1] / excess[0]) ** (1 / 2999)
    assert (1 - rate) / (4 * lr * decay) == pytest.approx(1.0, abs=0.01)


# Edges and wrong use.


def test_zero_lr_clips_and_moves_nothing() -> None:
    x = parameter([3.0, 4.0])
    optimizer = ScaleInvariantSGD([x], lr=0.0, weight_decay=0.01)
    x.grad = torch.tensor([0.0, 1e9], dtype=torch.float64)
    optimizer.step()
    assert x.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_zero_gradient_only_decays(value: float) -> None:
    x = parameter([value])
    optimizer = ScaleInvariantSGD([x], lr=8e-4, weight_decay=0.01)
    x.grad = torch.zeros_like(x)
    optimizer.step()
    assert x.item() == value * (1 - 8e-6)
    assert relative_global_clip([x], lr=8e-4, weight_decay=0.01) == 1.0


def test_parameters_without_gradient_are_left_alone() -> None:
    x, unused = parameter([3.0, 4.0]), parameter([100.0])
    optimizer = ScaleInvariantSGD([x, unused], lr=8e-4, weight_decay=0.01)
    x.grad = torch.tensor([0.0, 100.0], dtype=torch.float64)
    optimizer.step()
    assert x.tolist() == pytest.approx([2.999976, 3.959968], rel=1e-14)
    assert unused.item() == 100.0
    assert relative_global_clip([unused], lr=8e-4, weight_decay=0.01) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a finite number >= 0, got -1.0"),
        ({"lr": math.nan}, "lr must be a finite number >= 0, got nan"),
        ({"weight_decay": 0.0}, "weight_decay must be > 0 when gradients are clipped, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number >= 0, got -0.1"),
        ({"lr": 10.0, "weight_decay": 0.1}, r"lr \* weight_decay must be < 1, got 10.0 \* 0.1"),
        ({"clip_factor": 0.5}, r"factor \(clip_factor\) must be >= 1 or None, got 0.5"),
        ({"weight_decay": 0.0, "clip_factor": None, "start_in_equilibrium": True}, "weight_decay must be > 0 with start_in"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"scope": "layer"}, "scope must be 'global', 'group' or 'tensor', got 'layer'"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScaleInvariantSGD([parameter([1.0])], **options)
    with pytest.raises(ValueError, match=message):  # also in a group
        ScaleInvariantSGD([{"params": [parameter([1.0])], **options}])


def test_wrong_use_is_named() -> None:
    x, y = parameter([1.0]), parameter([1.0])
    set_grads([x, y], [torch.ones(1, dtype=torch.float64)] * 2)
    for options in ({"weight_decay": 0.0}, {"factor": 0.0}, {"scope": "group"}):
        with pytest.raises(ValueError, match="must be"):
            relative_global_clip([x], **{"lr": 0.1, "weight_decay": 0.1, **options})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups of scope 'global' must have equal lr"):
        ScaleInvariantSGD([{"params": [x]}, {"params": [y], "lr": 0.5}], lr=0.1).step()
    optimizer = ScaleInvariantSGD([x])
    optimizer.param_groups[0]["weight_decay"] = 0.0
    with pytest.raises(ValueError, match="weight_decay must be > 0"):
        optimizer.step()
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradients must be dense"):
        ScaleInvariantSGD(embedding.parameters()).step()
