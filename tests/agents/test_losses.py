"""The update formulas against values by hand."""

import pytest
import torch as th

from rlopt.agents import losses


def column(*values: float) -> th.Tensor:
    return th.tensor(values).reshape(-1, 1)


def test_target_bootstraps_unless_terminated() -> None:
    target = losses.td_target(column(1, 1), column(0, 1), 0.5, column(4, 4))
    assert target.flatten().tolist() == [3.0, 1.0]


def test_target_takes_discounts_per_transition() -> None:
    target = losses.td_target(column(1, 1), column(0, 0), column(0.5, 0.25), column(4, 4))
    assert target.flatten().tolist() == [3.0, 2.0]


def test_greedy_value_is_the_maximum_of_the_target_network() -> None:
    assert losses.greedy_value(th.tensor([[1.0, 5.0], [3.0, 2.0]])).flatten().tolist() == [5.0, 3.0]


def test_double_q_value_is_the_target_networks_value_of_the_online_networks_choice() -> None:
    target_q, online_q = th.tensor([[1.0, 5.0], [3.0, 2.0]]), th.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert losses.greedy_value(target_q, online_q).flatten().tolist() == [1.0, 2.0]


def test_huber_loss_weighs_each_transition_before_the_mean() -> None:
    # huber(0.5) = 0.125, huber(3) = 2.5
    q, target = column(0.5, 3.0), column(0.0, 0.0)
    assert losses.huber_loss(q, target, column(2.0, 0.1)).item() == pytest.approx((2.0 * 0.125 + 0.1 * 2.5) / 2)


def test_huber_loss_with_unit_weights_is_the_plain_one() -> None:
    q, target = column(0.3, -2.0, 5.0), column(0.1, 0.0, 0.0)
    assert losses.huber_loss(q, target, column(1, 1, 1)).item() == losses.huber_loss(q, target).item()


def test_squared_loss_sums_over_critics_and_weighs_transitions() -> None:
    critics = [column(1.0, 2.0), column(3.0, 0.0)]
    # critic 1: (2 * 1 + 1 * 4) / 2 = 3; critic 2: (2 * 9 + 0) / 2 = 9
    assert losses.squared_loss(critics, column(0.0, 0.0), column(2.0, 1.0)).item() == pytest.approx(12.0)
    assert losses.squared_loss(critics, column(0.0, 0.0)).item() == pytest.approx(2.5 + 4.5)


def test_smoothed_action_clips_noise_and_action() -> None:
    action, noise = th.tensor([[0.0, 0.9, -0.9]]), th.tensor([[0.7, 0.3, -0.05]])
    assert losses.smoothed_action(action, noise, 0.5).tolist() == [[0.5, 1.0, pytest.approx(-0.95)]]


def test_smallest_value_is_over_critics() -> None:
    assert losses.smallest_value([column(1, 4), column(2, 3)]).flatten().tolist() == [1.0, 3.0]


def test_entropy_terms() -> None:
    assert losses.entropy_regularised_value(column(2.0), column(-3.0), th.tensor(0.5)).item() == 3.5
    log_alpha = th.tensor([0.2], requires_grad=True)
    losses.entropy_coefficient_loss(log_alpha, column(-1.0, -3.0), target_entropy=-1.0).backward()
    assert log_alpha.grad is not None
    assert log_alpha.grad.item() == pytest.approx(3.0)  # -(mean(log pi) + target) = -(-2 - 1)


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 1.0])
def test_soft_update_is_the_convex_combination(tau: float) -> None:
    generator = th.Generator().manual_seed(0)
    parameters = [th.randn(5, 3, generator=generator), th.randn(7, generator=generator)]
    targets = [th.randn(5, 3, generator=generator), th.randn(7, generator=generator)]
    expected = [(1 - tau) * target + tau * parameter for parameter, target in zip(parameters, targets, strict=True)]
    losses.soft_update(parameters, targets, tau)
    for target, value in zip(targets, expected, strict=True):
        th.testing.assert_close(target, value, rtol=1e-6, atol=1e-7)
    if tau == 1.0:
        assert all(th.equal(target, parameter) for target, parameter in zip(targets, parameters, strict=True))


def test_soft_update_of_nothing_does_nothing() -> None:
    losses.soft_update([], [], 1.0)
