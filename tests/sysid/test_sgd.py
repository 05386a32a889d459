"""SGD on a stream: against plain loops, against the closed form of its bias, and in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from sgd_twin import descend, mean, random_bimodal, run, states_of

from rlopt.sysid import SGD, ParallelSGD, SGDDataDrop, Trajectory, step_size_from_rule


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """A mean from running sums is rounded in another way than one of the tail alone."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


def small_system(seed: int = 0, num_steps: int = 301) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return states_of(random_bimodal(3, 0.8, rng), num_steps, rng)


def test_sgd_is_the_mean_of_the_last_half_of_plain_iterates() -> None:
    states = small_system()
    x, y = states[:-1], states[1:]
    iterates = run(x, y, range(len(x)), 0.01, np.zeros((3, 3)))
    fitted = SGD(step_size=0.01).fit(states)
    assert_close(fitted.A_, mean(iterates[len(x) // 2 :]))
    assert fitted.num_samples_ == 301
    np.testing.assert_array_equal(SGD(step_size=0.01, average="last").fit(states).A_, iterates[-1])


def test_data_drop_learns_from_every_tenth_sample_and_averages_over_all() -> None:
    states = small_system()
    x, y = states[:-1], states[1:]
    weights, iterates = np.zeros((3, 3)), []
    for i in range(len(x)):
        if i % 10 == 0:
            weights = descend(weights, x[i], y[i], 0.02)
        iterates.append(weights)
    assert_close(SGDDataDrop(spacing=10, step_size=0.02).fit(states).A_, mean(iterates[150:]))


def test_parallel_chains_take_turns_and_each_averages_its_tail() -> None:
    states = small_system(num_steps=320)
    x, y = states[:-1], states[1:]
    tails = []
    for chain in range(8):
        mine = range(chain, 320, 8)
        iterates = run(x, y, mine, 0.02, np.zeros((3, 3)))
        tails.append(mean([w for i, w in zip(mine, iterates, strict=True) if i >= 160]))
    np.testing.assert_allclose(ParallelSGD(num_chains=8, step_size=0.02).fit(states).A_, mean(tails), rtol=0, atol=1e-14)


def test_one_chain_and_spacing_one_are_sgd() -> None:
    states = small_system()
    plain = SGD(step_size=0.01).fit(states).A_
    np.testing.assert_array_equal(ParallelSGD(num_chains=1, step_size=0.01).fit(states).A_, plain)
    np.testing.assert_array_equal(SGDDataDrop(spacing=1, step_size=0.01).fit(states).A_, plain)


@pytest.mark.parametrize("step_size", [2e-4, 1e-3])
def test_bias_of_forward_sgd_has_its_first_order_form(step_size: float) -> None:
    # Scalar system, closed form of the bias: -4 step_size a G.
    a, num_steps = 0.5, 400_000
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((num_steps, 64))
    states = np.zeros((num_steps + 1, 64))
    states[0] = rng.standard_normal(64) / np.sqrt(1 - a * a)
    for t in range(num_steps):
        states[t + 1] = a * states[t] + noise[t]
    errors = [float(SGD(step_size=step_size).fit(states[:, [i]]).A_[0, 0]) - a for i in range(64)]
    expected = -4 * step_size * a / (1 - a * a)
    standard_error = np.std(errors) / 8
    assert abs(np.mean(errors) - expected) < 4 * standard_error + 0.1 * abs(expected)
    assert abs(expected) > 4 * standard_error or step_size < 1e-3  # the larger step shows it beyond noise


def test_history_is_what_fit_returns_on_the_first_samples() -> None:
    states = small_system(num_steps=2000)
    for make in (lambda: SGD(step_size=0.01), lambda: ParallelSGD(num_chains=3, step_size=0.01)):
        fitted = make().fit(states, num_checkpoints=6)
        assert fitted.history_.samples[-1] == 2000
        assert len(fitted.history_.samples) == 6
        for samples, estimate in zip(*fitted.history_, strict=True):
            np.testing.assert_allclose(estimate, make().fit(states[: samples + 1]).A_, rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [SGD, partial(SGDDataDrop, spacing=7), partial(ParallelSGD, num_chains=7)])
def test_stream_in_pieces_equals_fit(kind: Callable[..., SGD], seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = small_system(seed, 500)
    whole = kind(step_size="1/(2R)").fit(states)
    stream = kind(step_size="1/(2R)", num_samples=500)
    cuts = np.unique(np.r_[0, rng.integers(30, 500, 4), 500])
    for begin, end in itertools.pairwise(cuts):
        stream.partial_fit((states[begin:end], states[begin + 1 : end + 1]))
    np.testing.assert_array_equal(stream.A_, whole.A_)
    assert stream.num_samples_ == 500


def test_stream_of_unknown_length_averages_between_half_and_three_quarters() -> None:
    states = small_system(num_steps=300)
    x, y = states[:-1], states[1:]
    iterates = run(x, y, range(300), 0.01, np.zeros((3, 3)))
    stream = SGD(step_size=0.01)
    for t in range(300):
        stream.partial_fit((x[t : t + 1], y[t : t + 1]))
        power = 1 << (t + 1).bit_length() - 2 if t else 0
        np.testing.assert_allclose(stream.A_, mean(iterates[power : t + 1]), rtol=0, atol=1e-13)


def test_inputs_are_estimated_beside_the_states() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((20_000, 2))
    states = np.zeros((20_001, 2))
    a, b = np.array([[0.5, 0.1], [0.0, 0.4]]), np.array([[1.0, 0.2], [0.5, -1.0]])
    for t in range(20_000):
        states[t + 1] = a @ states[t] + b @ inputs[t]
    fitted = SGD(step_size=0.02).fit(Trajectory.from_states(states, inputs))
    np.testing.assert_allclose(fitted.A_, a, atol=1e-9)
    np.testing.assert_allclose(fitted.B_, b, atol=1e-9)


def test_entries_outside_the_support_stay_zero() -> None:
    states = small_system()
    support = np.array([[True, False, True], [True, True, False], [False, True, True]])
    fitted = SGD(step_size=0.01, support=support).fit(states)
    assert (fitted.A_[~support] == 0).all()
    assert (fitted.A_[support] != 0).all()
    # A full support changes nothing.
    everything = SGD(step_size=0.01, support=np.ones((3, 3), bool)).fit(states)
    np.testing.assert_array_equal(everything.A_, SGD(step_size=0.01).fit(states).A_)


def test_step_rules_by_hand() -> None:
    rows = np.full((40, 1), 2.0)
    num = int(2 * np.log(10**6))  # 27 norms of 2
    assert step_size_from_rule("1/(2R)", rows, 10**6).value == pytest.approx(1 / (2 * 54))
    assert step_size_from_rule("1/(8RB)", rows, 10**6, 100).value == pytest.approx(1 / (8 * 54 * 100))
    assert step_size_from_rule("5ln(T)/T", rows, 1000).value == pytest.approx(5 * np.log(1000) / 1000)
    assert num == 27


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "step_size must be > 0"),
        ({"step_size": "2/R"}, "step_size must be > 0"),
        ({"tail_start": 1.0}, r"tail_start must be in \[0, 1\), got 1.0"),
        ({"average": "buffer_ends"}, "average must be 'all' or 'last'"),
        ({"link": "relu"}, "link must be"),
        ({"link": "leaky_relu", "slope": 0.0}, r"slope must be in \(0, 1\]"),
        ({"num_samples": 0}, "num_samples must be > 0"),
        ({"support": [True]}, r"support must be a boolean array of shape \(3, 3\)"),
        ({"step_size": "1/(8RB)"}, "needs buffers"),
    ],
)
def test_wrong_option_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SGD(**arguments).fit(small_system())


def test_wrong_use_of_a_stream_is_named() -> None:
    with pytest.raises(ValueError, match="num_samples must be given"):
        SGD().partial_fit(small_system())
    with pytest.raises(ValueError, match="tail_start"):
        SGD(step_size=0.1, tail_start=0.2).partial_fit(small_system())
    with pytest.raises(ValueError, match="needs the first 18 regressors, got 5"):
        SGD(num_samples=10_000).partial_fit(small_system()[:6])
    with pytest.raises(ValueError, match="data must have 3 regressors and 3 targets, got 2 and 2"):
        SGD(step_size=0.1).partial_fit(small_system()).partial_fit(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="spacing must be >= 1"):
        SGDDataDrop(spacing=0)
    with pytest.raises(ValueError, match="num_chains must be >= 1"):
        ParallelSGD(num_chains=0)


def test_own_link_gives_the_numbers_of_the_named_one() -> None:
    states = small_system()

    def leaky(z: float) -> float:
        return z if z > 0.0 else 0.5 * z

    own = SGD(step_size=0.01, link=leaky).fit(states).A_
    np.testing.assert_array_equal(own, SGD(step_size=0.01, link="leaky_relu", slope=0.5).fit(states).A_)
    with pytest.raises(ValueError, match="link must map 0 to 0"):
        SGD(link=lambda z: z + 1.0)
    with pytest.raises(ValueError, match="that numba can compile"):
        SGD(link=lambda z: undefined_name(z))  # noqa: F821


def test_stream_after_fit_begins_anew() -> None:
    states = small_system()
    used = SGD(step_size=0.01, num_samples=301).fit(small_system(7))
    used.partial_fit((states[:-1], states[1:]))
    np.testing.assert_array_equal(used.A_, SGD(step_size=0.01).fit(states).A_)
    assert used.num_samples_ == 301
