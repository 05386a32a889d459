"""Paired differences, sign-flip tests and Holm's adjustment against hand-computed values and brute force."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from rlopt.study import bootstrap_interval, holm, iqm, mean, median, paired_difference


def brute_force(differences, statistic):
    """Share of all sign patterns that are as far from 0, one at a time."""
    seen = abs(statistic(differences))
    found = [abs(statistic(np.reshape(s, differences.shape) * differences)) for s in product([1, -1], repeat=differences.size)]
    return np.mean([value >= seen - 1e-9 for value in found])


def test_all_of_one_sign_give_two_patterns_of_all():
    found = paired_difference([2.0, 4.0, 8.0, 16.0, 32.0], [1.0, 2.0, 4.0, 8.0, 16.0], repetitions=1000)
    assert found.p_value == 2 / 2**5 == found.smallest_p
    assert found.exact
    assert found.num_pairs == 5
    assert float(found.difference.estimate) == 31 / 5


def test_hand_computed_p_value():
    # Differences 1, 2, -4: sums of the eight patterns are +-7, +-5, +-3, +-1; the sum seen is -1, so all are as far.
    assert paired_difference([1.0, 2.0, 0.0], [0.0, 0.0, 4.0], repetitions=100).p_value == 1.0
    # Differences 4, 2, -1: the sums are +-7, +-5, +-3, +-1 and 5 is seen: four of eight.
    assert paired_difference([4.0, 2.0, 0.0], [0.0, 0.0, 1.0], repetitions=100).p_value == 0.5


@pytest.mark.parametrize("statistic", [mean, iqm, median, lambda sample: float(np.max(sample))])
@pytest.mark.parametrize("shape", [(6, 1), (4, 2), (3, 3)])
def test_exact_p_values_equal_brute_force(statistic, shape):
    differences = np.round(np.random.default_rng(3).normal(0.5, 1.0, size=shape), 1)
    found = paired_difference(differences, np.zeros(shape), statistic, repetitions=1024)
    assert found.exact
    assert found.p_value == pytest.approx(brute_force(differences, statistic), abs=1e-12)


def test_exact_up_to_as_many_patterns_as_repetitions():
    x = np.arange(6.0)
    assert paired_difference(x, 0 * x, repetitions=64).exact
    assert not paired_difference(x, 0 * x, repetitions=63).exact


def test_sampled_patterns_agree_with_all_of_them_and_with_scipy():
    x = np.random.default_rng(0).normal(0.4, 1.0, size=12)
    exact = paired_difference(x, np.zeros(12), repetitions=4096)
    sampled = paired_difference(x, np.zeros(12), repetitions=4000)
    assert exact.exact
    assert not sampled.exact
    assert sampled.p_value == pytest.approx(exact.p_value, abs=4 * (exact.p_value / 4000) ** 0.5)
    scipy = stats.permutation_test((x, np.zeros(12)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf)
    assert exact.p_value == pytest.approx(scipy.pvalue, abs=1e-12)


def test_a_sampled_p_value_is_never_zero():
    x = np.arange(1.0, 41.0)
    assert paired_difference(x, 0 * x, repetitions=99).p_value == 1 / 100


def test_chunks_of_patterns_cover_each_once(monkeypatch):
    x = np.random.default_rng(1).normal(size=(7, 1))
    whole = paired_difference(x, 0 * x, repetitions=128).p_value
    monkeypatch.setattr("rlopt.study.bootstrap._CHUNK_ELEMENTS", 7 * 9)
    assert paired_difference(x, 0 * x, repetitions=128).p_value == whole


def test_p_values_of_equal_variants_are_uniform_enough():
    rng = np.random.default_rng(7)
    p_values = [paired_difference(rng.normal(size=8), rng.normal(size=8), repetitions=256).p_value for _ in range(400)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert np.mean(np.array(p_values) <= 0.5) == pytest.approx(0.5, abs=0.08)


def test_no_difference_at_all():
    found = paired_difference([1.0, 2.0], [1.0, 2.0], repetitions=10)
    assert found.p_value == 1.0
    assert found.variance_ratio == 0.0
    assert found.correlation == pytest.approx(1.0)


def test_interval_is_the_bootstrap_of_the_differences():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 8, 3))
    found = paired_difference(x, y, iqm, confidence=0.8, repetitions=300, seed=5)
    assert found.difference == bootstrap_interval(x - y, iqm, confidence=0.8, repetitions=300, seed=5)


def test_a_shared_part_of_the_seed_makes_the_paired_interval_narrower():
    rng = np.random.default_rng(2)
    shared, x, y = rng.normal(size=(3, 200))
    found = paired_difference(3 * shared + x, 3 * shared + y, repetitions=2000)
    # Var of the parts: shared 9, own 1, so the correlation is 0.9 and the ratio of variances 2 / 20.
    assert found.correlation == pytest.approx(0.9, abs=0.03)
    assert found.variance_ratio == pytest.approx(0.1, abs=0.03)
    apart = bootstrap_interval(3 * shared + x, mean, repetitions=2000)
    assert found.difference.high - found.difference.low < 0.7 * (apart.high - apart.low)


def test_correlation_is_within_tasks():
    """Tasks of different levels are no correlation of seeds; in each of these, x and y go against each other."""
    x = np.array([[0.0, 100.0], [1.0, 101.0], [2.0, 102.0]])
    y = np.array([[2.0, 102.0], [1.0, 101.0], [0.0, 100.0]])
    found = paired_difference(x, y, repetitions=10)
    assert found.correlation == pytest.approx(-1.0)
    assert found.variance_ratio == pytest.approx(2.0)


def test_without_variance_there_is_no_correlation():
    found = paired_difference([1.0, 1.0], [0.0, 0.0], repetitions=10)
    assert np.isnan(found.correlation)
    assert np.isnan(found.variance_ratio)


def test_equal_calls_give_equal_results():
    x = np.random.default_rng(0).normal(size=30)
    assert paired_difference(x, -x, repetitions=200) == paired_difference(x, -x, repetitions=200)
    assert paired_difference(x, -x, repetitions=200).p_value != paired_difference(x, -x, repetitions=200, seed=1).p_value


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03, then not below 0.06
        ([0.02, 0.02, 0.02], [0.06, 0.06, 0.06]),
        ([0.5, 0.9], [1.0, 1.0]),
        ([1.0, 0.0], [1.0, 0.0]),
    ],
)
def test_holm(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted, abs=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1.0, 2.0], [1.0]), r"same seeds and tasks, got shapes \(2,\) and \(1,\)"),
        (lambda: paired_difference([np.inf], [1.0]), "scores must be finite"),
        (lambda: paired_difference([1.0], [1.0], repetitions=0), "repetitions must be >= 1, got 0"),
        (lambda: holm([0.5, 1.5]), r"p_values must be in \[0, 1\], got 1.5"),
        (lambda: holm([float("nan")]), r"p_values must be in \[0, 1\], got nan"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
