"""Replay inside buffers: order, gap, averages, exact unbiasedness of the reverse order, and a replay buffer as the source."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from gymnasium import spaces
from sgd_twin import mean, random_bimodal, reverse_replay, run, states_of

from rlopt.replay import ReverseReplay, UniformReplay
from rlopt.sysid import SGD, LeastSquares, SGDReplay, SGDReverseReplay, Trajectory, operator_error
from rlopt.sysid._kernels import buffer_sgd
from rlopt.sysid.links import make_link

IDENTITY = make_link("identity")


def small_system(seed: int = 0, num_steps: int = 500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return states_of(random_bimodal(3, 0.8, rng), num_steps, rng)


def reverse(**options: Any) -> SGDReverseReplay:
    return SGDReverseReplay(**{"buffer_size": 7, "gap": 3, "step_size": 0.01, **options})


def test_reverse_replay_equals_plain_loops() -> None:
    states = small_system(num_steps=509)  # 50 buffers of 10, and 9 transitions that are not used
    expected, everything, tail = reverse_replay(states, 7, 3, 0.01)
    np.testing.assert_allclose(reverse().fit(states).A_, expected, rtol=0, atol=1e-14)
    inner = [iterate for buffer in everything[tail:] for iterate in buffer]
    np.testing.assert_allclose(reverse(average="all").fit(states).A_, mean(inner), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(reverse(average="last").fit(states).A_, everything[-1][-1])
    expected, _, _ = reverse_replay(states, 7, 3, 0.01, tail_start=0.2)
    np.testing.assert_allclose(reverse(tail_start=0.2).fit(states).A_, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("link", ["leaky_relu", "tanh"])
def test_reverse_replay_with_a_link_equals_plain_loops(link: Any) -> None:
    phi = (lambda z: z if z > 0 else 0.5 * z) if link == "leaky_relu" else np.tanh
    states = small_system()
    expected, _, _ = reverse_replay(states, 7, 3, 0.01, phi=phi)
    np.testing.assert_allclose(reverse(link=link).fit(states).A_, expected, rtol=0, atol=1e-13)


def test_forward_order_learns_from_the_same_samples_oldest_first() -> None:
    states = small_system()
    x, y = states[:-1], states[1:]
    weights, ends = np.zeros((3, 3)), []
    for buffer in range(50):
        weights = run(x, y, range(buffer * 10 + 3, buffer * 10 + 10), 0.01, weights)[-1]
        ends.append(weights)
    np.testing.assert_allclose(reverse(order="forward").fit(states).A_, mean(ends[25:]), rtol=0, atol=1e-14)


def test_buffers_of_one_sample_without_gap_are_forward_sgd() -> None:
    states = small_system()
    for make in (reverse, lambda **o: SGDReplay(**{"step_size": 0.01, "seed": 1, **o})):
        one = make(buffer_size=1, gap=0, average="last").fit(states, num_checkpoints=50)
        plain = SGD(step_size=0.01, average="last").fit(states, num_checkpoints=50)
        np.testing.assert_array_equal(one.history_.estimates, plain.history_.estimates)
        np.testing.assert_array_equal(make(buffer_size=1, gap=0).fit(states).A_, SGD(step_size=0.01).fit(states).A_)


def test_states_in_the_gap_are_never_read() -> None:
    states = small_system()
    changed = states.copy()
    for buffer in range(50):
        changed[buffer * 10 + 1 : buffer * 10 + 3] = 1e9  # X_1..X_{u-1}; X_0 is still the newest target of the buffer before
    np.testing.assert_array_equal(reverse().fit(changed).A_, reverse().fit(states).A_)
    for used in (0, 3):
        changed = states.copy()
        changed[200 + used] += 1.0
        assert (reverse().fit(changed).A_ != reverse().fit(states).A_).any()


def test_random_replay_draws_from_the_retained_samples_of_the_current_buffer() -> None:
    states = small_system()
    changed = states.copy()
    for buffer in range(50):
        changed[buffer * 10 + 1 : buffer * 10 + 3] = 1e9
    options: dict[str, Any] = {"buffer_size": 7, "gap": 3, "step_size": 0.01, "seed": 4}
    np.testing.assert_array_equal(SGDReplay(**options).fit(changed).A_, SGDReplay(**options).fit(states).A_)
    orders = SGDReplay(**options)
    orders._make_weights((3, 3))
    draws = orders._orders(3000)
    assert draws.shape == (3000, 7)
    counts = np.bincount(draws.ravel(), minlength=10)
    assert (counts[:3] == 0).all()
    assert np.abs(counts[3:] - 3000).max() < 4 * np.sqrt(3000 * 6 / 7)


@numba.njit
def _mean_errors(noise: np.ndarray, start: np.ndarray, matrix: np.ndarray, rate: float, order: np.ndarray, phi: Any) -> tuple:
    """Mean error, and mean of its square, of one buffer that starts at the true matrix; noise is (replicas, B, d)."""
    replicas, length, size = noise.shape
    first, second = np.zeros((size, size)), np.zeros((size, size))
    states = np.zeros((length + 1, size))
    total, support = np.zeros((size, size)), np.zeros((0, 0))
    for replica in range(replicas):
        states[0] = start[replica]
        for t in range(length):
            states[t + 1] = matrix @ states[t] + noise[replica, t]
        weights = matrix.copy()
        buffer_sgd(states[:-1], states[1:], 0, 1, length, order, rate, weights, total, False, support, phi, 1.0)
        first += weights - matrix
        second += (weights - matrix) ** 2
    return first / replicas, second / replicas


def test_two_steps_are_biased_forwards_by_the_exact_amount_and_not_backwards() -> None:
    a, step_size, draws = 0.6, 0.1, 1_000_000
    rng = np.random.default_rng(0)
    variance = 1 / (1 - a * a)
    noise, start = rng.standard_normal((draws, 2, 1)), rng.standard_normal((draws, 1)) * np.sqrt(variance)
    for order, expected in (([0, 1], -8 * step_size**2 * a * variance), ([1, 0], 0.0)):
        first, second = _mean_errors(noise, start, np.array([[a]]), 2 * step_size, np.array([order]), IDENTITY.compiled)
        standard_error = np.sqrt(second[0, 0] / draws)
        assert abs(first[0, 0] - expected) < 4 * standard_error
        assert standard_error < 6e-4
    assert -8 * step_size**2 * a * variance == pytest.approx(-0.075)


def test_reverse_buffer_that_starts_at_the_truth_ends_there_on_average() -> None:
    rng = np.random.default_rng(1)
    matrix = random_bimodal(5, 0.9, rng)
    covariance = np.linalg.inv(np.eye(25) - np.kron(matrix, matrix)) @ np.eye(5).ravel()
    root = np.linalg.cholesky(covariance.reshape(5, 5))
    noise, start = rng.standard_normal((200_000, 20, 5)), rng.standard_normal((200_000, 5)) @ root.T
    backwards, forwards = np.arange(20)[None, ::-1].copy(), np.arange(20)[None]
    first, _ = _mean_errors(noise, start, matrix, 2 * 0.004, backwards, IDENTITY.compiled)
    assert np.linalg.norm(first, 2) <= 1e-3
    first, _ = _mean_errors(noise, start, matrix, 2 * 0.004, forwards, IDENTITY.compiled)
    assert np.linalg.norm(first, 2) == pytest.approx(4.3e-2, rel=0.1)


@pytest.mark.slow
def test_reverse_replay_is_close_to_least_squares_where_forward_sgd_is_not() -> None:
    ratios = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        matrix = random_bimodal(5, 0.9, rng)
        states = states_of(matrix, 100_000, rng)
        least, back, mixed, forward = (
            operator_error(estimator.fit(states).A_, matrix)
            for estimator in (LeastSquares(), SGDReverseReplay(), SGDReplay(gap=10, seed=seed), SGD())
        )
        ratios.append((back / least, mixed / back, forward / mixed, forward / back))
        assert back < mixed < forward
    back, _, _, forward = np.mean(ratios, axis=0)
    assert 1.2 <= back <= 3.5
    assert forward >= 6


def test_stream_in_pieces_equals_fit_for_both_replays() -> None:
    states = small_system(num_steps=1234)
    for make in (
        lambda **o: SGDReverseReplay(buffer_size=20, gap=5, **o),
        lambda **o: SGDReplay(buffer_size=20, gap=5, seed=3, **o),
        lambda **o: SGDReverseReplay(buffer_size=20, gap=5, average="all", **o),
    ):
        whole = make().fit(states)
        stream = make(num_samples=1234)
        for begin, end in ((0, 15), (15, 16), (16, 700), (700, 1234)):
            stream.partial_fit((states[begin:end], states[begin + 1 : end + 1]))
        np.testing.assert_array_equal(stream.A_, whole.A_)


def test_no_buffer_mixes_two_trajectories() -> None:
    parts = [small_system(seed, num_steps) for seed, num_steps in enumerate((47, 23, 9, 60))]
    trajectories = [Trajectory.from_states(part) for part in parts]
    x, y = np.concatenate([p[:-1] for p in parts]), np.concatenate([p[1:] for p in parts])
    starts = [0, 10, 20, 30, 47, 57, 79, 89, 99, 109, 119, 129]  # of whole buffers of 10 inside a trajectory
    weights, ends = np.zeros((3, 3)), []
    for start in starts:
        weights = run(x, y, range(start + 9, start + 2, -1), 0.01, weights)[-1]
        ends.append(weights)
    fitted = reverse().fit(trajectories)
    np.testing.assert_allclose(fitted.A_, mean(ends[6:]), rtol=0, atol=1e-14)
    stream = reverse(num_samples=120)
    for trajectory in trajectories:
        stream.partial_fit(trajectory, new_trajectory=True)
    np.testing.assert_array_equal(stream.A_, fitted.A_)


def test_data_shorter_than_a_buffer_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a trajectory of at least 10 transitions \(one buffer\), the longest has 9"):
        reverse().fit(small_system(num_steps=9))


def test_guard_gives_zero() -> None:
    states = small_system()
    largest = float((states[:-1] ** 2).sum(1).max())
    assert reverse(guard=1.01 * largest).fit(states).A_.any()
    guarded = reverse(guard=0.99 * largest).fit(states)
    assert guarded.guarded_
    assert not guarded.A_.any()


def test_history_is_what_fit_returns_on_the_first_samples() -> None:
    states = small_system(num_steps=3000)
    fitted = reverse().fit(states, num_checkpoints=8)
    for samples, estimate in zip(*fitted.history_, strict=True):
        np.testing.assert_allclose(estimate, reverse().fit(states[: samples + 1]).A_, rtol=0, atol=1e-13)


def fill(replay: Any, states: np.ndarray, inputs: np.ndarray) -> None:
    for t in range(len(inputs)):
        replay.add(states[t][None], states[t + 1][None], inputs[t][None], np.zeros(1), np.zeros(1, bool), [{}])


def with_inputs(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    inputs = rng.uniform(-1, 1, (num_steps, 1)).astype(np.float32)
    states = np.zeros((num_steps + 1, 2))
    for t in range(num_steps):
        states[t + 1] = 0.7 * states[t] + inputs[t] * [1.0, -0.5] + rng.standard_normal(2)
    return states, inputs


@pytest.mark.parametrize("step_size", [0.01, "1/(2R)"])
def test_reverse_replay_of_an_agent_drives_the_estimator_to_the_same_bits(step_size: Any) -> None:
    states, inputs = with_inputs(60 * 25)
    box, actions = spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Box(-1, 1, (1,))
    replay = ReverseReplay(40, box, actions, device="cpu", seed=0)  # wraps many times
    driven = reverse(buffer_size=20, gap=5, num_samples=60 * 25, step_size=step_size)
    for buffer in range(60):
        rows = slice(buffer * 25, buffer * 25 + 26)
        fill(replay, states[rows], inputs[buffer * 25 : buffer * 25 + 25])
        driven.partial_fit_replay(replay)
    fitted = reverse(buffer_size=20, gap=5, step_size=step_size).fit(Trajectory.from_states(states, inputs))
    np.testing.assert_array_equal(driven.weights_, fitted.weights_)
    assert driven.num_samples_ == 1500


def test_fit_from_a_replay_equals_fit_from_its_trajectory() -> None:
    states, inputs = with_inputs(300)
    box, actions = spaces.Box(-np.inf, np.inf, (2,), np.float64), spaces.Box(-1, 1, (1,))
    for kind, layout in ((ReverseReplay, "plain"), (UniformReplay, "shared")):
        replay = kind(200, box, actions, device="cpu", seed=0, layout=layout)
        fill(replay, states, inputs)
        newest = Trajectory.from_states(states[100:], inputs[100:])
        np.testing.assert_array_equal(reverse().fit(replay).weights_, reverse().fit(newest).weights_)


def test_replay_that_cannot_drive_is_refused() -> None:
    box = spaces.Box(-1, 1, (1,))
    for replay in (
        UniformReplay(10, box, box, device="cpu"),
        ReverseReplay(10, box, box, device="cpu", mix=0.5),
        ReverseReplay(10, box, box, device="cpu", sequential=True),
        ReverseReplay(10, box, box, device="cpu", n_envs=2),
    ):
        with pytest.raises(ValueError, match="replay must be a ReverseReplay with mix=0"):
            reverse().partial_fit_replay(replay)
    with pytest.raises(ValueError, match="order must be 'reverse'"):
        reverse(order="forward").partial_fit_replay(ReverseReplay(10, box, box, device="cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"buffer_size": 0}, "buffer_size must be >= 1, got 0"),
        ({"gap": -1}, "gap must be >= 0, got -1"),
        ({"average": "tail"}, "average must be 'buffer_ends', 'all' or 'last'"),
        ({"guard": 0.0}, "guard must be > 0 or None"),
        ({"order": "random"}, "order must be 'reverse' or 'forward'"),
    ],
)
def test_wrong_option_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reverse(**arguments)


def test_small_steps_rule_uses_the_buffer_size() -> None:
    states = small_system()
    large, small = reverse(step_size="1/(2R)").fit(states), reverse(step_size="1/(8RB)").fit(states)
    assert small.step_size_ == pytest.approx(large.step_size_ / (4 * 7))
    assert large.scale_ == pytest.approx(np.linalg.norm(states[: int(2 * np.log(500))], axis=1).sum())
