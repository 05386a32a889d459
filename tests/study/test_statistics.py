"""Statistics against hand-computed values, scipy, a slow twin, and stored results of rliable.

`scripts/store_rliable.py` made `data/rliable.json`: random scores of four shapes, rliable's point estimates, probability of
improvement, performance profiles and sample-efficiency curves, and its bootstrap intervals (of 10 000 repetitions, 2 500 for
curves, so that their ends carry Monte-Carlo noise).
"""

import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlopt.study import (
    bootstrap_interval,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    profile_band,
    sample_efficiency,
)

RLIABLE = json.loads((Path(__file__).parent / "data" / "rliable.json").read_text(encoding="utf-8"))
CASES = list(RLIABLE["cases"])
STATISTICS = {"iqm": iqm, "mean": mean, "median": median, "optimality_gap": optimality_gap}


@pytest.mark.parametrize(
    ("case", "name"),
    # With a single task rlopt's median is the median over seeds.
    [pair for pair in product(CASES, STATISTICS) if pair != ("five_by_one", "median")],
)
def test_point_estimates_equal_rliable(case, name):
    stored = RLIABLE["cases"][case]
    assert STATISTICS[name](stored["x"]) == pytest.approx(stored["point"][name], abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_probability_of_improvement_equals_rliable(case):
    stored = RLIABLE["cases"][case]
    estimate = probability_of_improvement(stored["x"], stored["y"], repetitions=1).estimate
    assert float(estimate) == pytest.approx(stored["probability_of_improvement"], abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_performance_profile_equals_rliable(case):
    stored = RLIABLE["cases"][case]
    assert performance_profile(stored["x"], RLIABLE["thresholds"]) == pytest.approx(stored["profile"], abs=1e-12)


@pytest.mark.parametrize(("case", "name"), [pair for pair in product(CASES, STATISTICS) if pair != ("five_by_one", "median")])
def test_sample_efficiency_curves_equal_rliable(case, name):
    stored = RLIABLE["cases"][case]
    interval = bootstrap_interval(stored["curves"], STATISTICS[name], repetitions=20_000)
    assert interval.estimate == pytest.approx(np.array(stored["efficiency"][name]), abs=1e-12)
    low, high = np.array(stored["efficiency_bands"][name])
    noise = 0.12 * (high - low)
    assert (np.abs(interval.low - low) <= noise).all()
    assert (np.abs(interval.high - high) <= noise).all()


@pytest.mark.parametrize("case", CASES)
def test_band_of_the_performance_profile_agrees_with_rliable(case):
    stored = RLIABLE["cases"][case]
    band = profile_band(stored["x"], RLIABLE["thresholds"])
    assert band.estimate == pytest.approx(stored["profile"], abs=1e-12)
    spacing = 1 / np.size(stored["x"])  # resampled values lie on a grid
    assert np.abs(np.stack([band.low, band.high]) - np.array(stored["profile_band"])).max() <= spacing + 1e-9


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["iqm", "mean", "optimality_gap"])
def test_bootstrap_intervals_agree_with_rliable(case, name):
    stored = RLIABLE["cases"][case]
    interval = bootstrap_interval(stored["x"], STATISTICS[name])
    low, high = stored["intervals"][name]
    tolerance = 0.06 * (high - low)
    assert float(interval.low) == pytest.approx(low, abs=tolerance)
    assert float(interval.high) == pytest.approx(high, abs=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_interval_of_improvement_agrees_with_rliable(case):
    stored = RLIABLE["cases"][case]
    interval = probability_of_improvement(stored["x"], stored["y"])
    low, high = stored["intervals"]["probability_of_improvement"]
    spacing = np.shape(stored["x"])[1] / (np.size(stored["x"]) * len(stored["y"]))  # resampled values lie on a grid
    tolerance = max(0.06 * (high - low), spacing + 1e-9)
    assert float(interval.low) == pytest.approx(low, abs=tolerance)
    assert float(interval.high) == pytest.approx(high, abs=tolerance)


def test_thresholds_in_any_order_keep_their_places_in_the_band():
    scores, thresholds = [1.0, 1.0, 2.0, 3.0], [2.0, 0.0, 1.0, 0.5, 1.5, 3.0, 1.0]
    band = profile_band(scores, thresholds, repetitions=200)
    assert band.estimate.tolist() == [0.25, 1.0, 0.5, 1.0, 0.5, 0.0, 0.5]  # above, not at
    assert band.estimate.tolist() == performance_profile(scores, thresholds).tolist()
    alone = [profile_band(scores, [threshold], repetitions=200) for threshold in thresholds]
    assert band.low.tolist() == [float(one.low[0]) for one in alone]
    assert band.high.tolist() == [float(one.high[0]) for one in alone]


def test_iqm_cuts_a_quarter_on_each_side():
    assert iqm([-100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0]) == 3.5  # mean of 2, 3, 4, 5


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_iqm_equals_scipys_trimmed_mean(values):
    assert iqm(values) == pytest.approx(float(stats.trim_mean(values, 0.25)), rel=1e-12, abs=1e-9)


def test_median_is_over_tasks_of_means_and_over_seeds_for_one_task():
    assert median([[0.0, 1.0, 10.0], [2.0, 5.0, 10.0]]) == 3.0  # task means 1, 3, 10
    assert median([1.0, 2.0, 30.0]) == 2.0


def test_optimality_gap_ignores_what_is_above_the_target():
    assert optimality_gap([0.5, 3.0]) == 0.25


def test_probability_of_improvement_counts_ties_half():
    # Pairs: 1>0 win, 1=1 half, 2>0 win, 2>1 win.
    assert float(probability_of_improvement([1.0, 2.0], [0.0, 1.0]).estimate) == 3.5 / 4


def test_probability_of_improvement_averages_tasks():
    x, y = [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0]]
    assert float(probability_of_improvement(x, y).estimate) == 0.5  # always better on one, never on the other


def test_sample_efficiency_is_the_first_crossing_or_infinity():
    curves = [[0.0, 5.0, 4.0], [0.0, 1.0, 2.0], [9.0, 0.0, 0.0]]
    assert sample_efficiency([10, 20, 30], curves, threshold=4.5).tolist() == [20.0, np.inf, 10.0]


def test_bootstrap_of_the_mean_has_the_closed_form_quantiles():
    """The mean of n resampled values has every combination as an equally likely outcome: enumerate them."""
    scores = np.array([0.0, 1.0, 3.0, 7.0, 20.0])
    means = np.array([np.mean(draw) for draw in product(scores, repeat=len(scores))])
    interval = bootstrap_interval(scores, mean, confidence=0.9, repetitions=100_000)
    for end, content in ((float(interval.low), 0.05), (float(interval.high), 0.95)):
        assert np.mean(means < end - 1e-9) - 0.003 <= content <= np.mean(means <= end + 1e-9) + 0.003


def test_bootstrap_resamples_seeds_within_tasks_only():
    """Two constant tasks: no resampling within a task changes anything; pooling the tasks would."""
    scores = np.tile([0.0, 10.0], (6, 1))
    interval = bootstrap_interval(scores, mean)
    assert (float(interval.low), float(interval.high)) == (5.0, 5.0)


def test_bootstrap_draws_tasks_independently():
    """With equal columns, independent draws make the mean vary half as much (in variance) as common ones."""
    column = np.random.default_rng(0).normal(size=(40, 1))
    one = bootstrap_interval(column, mean)
    two = bootstrap_interval(np.hstack([column, column]), mean)
    ratio = float((two.high - two.low) / (one.high - one.low))
    assert ratio == pytest.approx(np.sqrt(0.5), abs=0.02)


def test_checkpoints_share_the_draws_and_equal_single_ones():
    scores = np.random.default_rng(1).normal(size=(7, 2, 5))
    together = bootstrap_interval(scores, repetitions=500, seed=3)
    for checkpoint in range(5):
        alone = bootstrap_interval(scores[..., checkpoint], repetitions=500, seed=3)
        assert float(alone.low) == pytest.approx(together.low[checkpoint], abs=1e-12)
        assert float(alone.high) == pytest.approx(together.high[checkpoint], abs=1e-12)
        assert iqm(scores[..., checkpoint]) == pytest.approx(together.estimate[checkpoint], abs=1e-12)


def twin(scores, statistic, repetitions, seed, confidence):
    """The bootstrap as its definition reads: index the scores, and take the statistic of every resample."""
    cube = scores.reshape(*scores.shape[:2], -1)
    num_seeds, num_tasks, num_checkpoints = cube.shape
    index = np.random.default_rng(seed).integers(num_seeds, size=(repetitions, num_seeds, num_tasks))
    samples = [cube[rows, np.arange(num_tasks)] for rows in index]
    draws = np.array([[statistic(sample[..., c]) for c in range(num_checkpoints)] for sample in samples])
    return np.percentile(draws, [50 * (1 - confidence), 50 * (1 + confidence)], axis=0)


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (5, 1, 2), (3, 4, 2), (10, 10, 3)])
def test_compiled_bootstrap_equals_its_definition(name, shape):
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=shape), 1) * 10.0 ** rng.integers(-3, 4, size=shape)  # ties, and a wide range
    compiled = bootstrap_interval(scores, STATISTICS[name], repetitions=600, seed=4, confidence=0.9)
    ends = twin(scores, STATISTICS[name], 600, 4, 0.9)
    scale = np.abs(scores).max()
    assert np.abs(compiled.low - ends[0]).max() <= 1e-12 * scale
    assert np.abs(compiled.high - ends[1]).max() <= 1e-12 * scale


def test_outliers_that_the_iqm_cuts_do_not_touch_its_digits():
    scores = np.array([1.0, 1.25, 1.5, 1.75, 1e30, -1e30, 2.0, 2.5])
    interval = bootstrap_interval(scores, iqm, confidence=0.2, repetitions=600)
    low, high = twin(scores[:, np.newaxis], iqm, 600, 0, 0.2)[:, 0]
    assert (float(interval.low), float(interval.high)) == pytest.approx((low, high), abs=1e-12)


def test_own_statistics_give_the_same_interval_as_built_in_ones():
    scores = np.random.default_rng(2).normal(size=(6, 3, 2))
    built_in = bootstrap_interval(scores, iqm, repetitions=300)
    own = bootstrap_interval(scores, lambda sample: float(stats.trim_mean(sample, 0.25, axis=None)), repetitions=300)
    assert own.low == pytest.approx(built_in.low, abs=1e-12)
    assert own.high == pytest.approx(built_in.high, abs=1e-12)


@pytest.mark.parametrize("name", STATISTICS)
def test_blocks_do_not_change_the_result(monkeypatch, name):
    scores = np.random.default_rng(2).normal(size=(6, 3))
    whole = np.array(bootstrap_interval(scores, STATISTICS[name], repetitions=1000))
    monkeypatch.setattr("rlopt.study.bootstrap._BLOCK", 7)
    assert np.array(bootstrap_interval(scores, STATISTICS[name], repetitions=1000)) == pytest.approx(whole, abs=1e-12)


def test_chunks_do_not_change_the_probability_of_improvement(monkeypatch):
    x = np.random.default_rng(2).normal(size=(6, 3))
    whole = probability_of_improvement(x, -x, repetitions=1000)
    monkeypatch.setattr("rlopt.study.bootstrap._CHUNK_ELEMENTS", 12 * 7)
    assert np.array(probability_of_improvement(x, -x, repetitions=1000)) == pytest.approx(np.array(whole), abs=0.05)


def test_seed_decides_the_interval_and_global_state_does_not():
    scores = np.random.default_rng(2).normal(size=(6, 3))
    first = bootstrap_interval(scores, repetitions=200)
    np.random.seed(1)  # noqa: NPY002
    assert bootstrap_interval(scores, repetitions=200) == first
    assert bootstrap_interval(scores, repetitions=200, seed=1) != first


def test_interval_covers_the_true_mean_about_as_often_as_promised():
    """10 normal seeds, 400 studies: a percentile bootstrap covers a little less than the nominal 95 %."""
    data = np.random.default_rng(5).normal(size=(400, 10))
    intervals = [bootstrap_interval(row, mean, repetitions=400, seed=i) for i, row in enumerate(data)]
    coverage = np.mean([float(i.low) <= 0.0 <= float(i.high) for i in intervals])
    assert 0.85 <= coverage <= 0.95


@pytest.mark.parametrize("name", ["iqm", "mean", "median"])
def test_a_large_bootstrap_takes_less_than_five_seconds(name):
    scores = np.random.default_rng(0).normal(size=(10, 10, 100))
    start = time.process_time()
    bootstrap_interval(scores, STATISTICS[name], repetitions=50_000)
    assert time.process_time() - start < 5.0  # half a second on a quiet machine, and compilation


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: iqm([]), "scores must be a non-empty array"),
        (lambda: iqm(np.zeros((2, 2, 2))), r"shape \(seeds,\) or \(seeds, tasks\), got shape \(2, 2, 2\)"),
        (lambda: mean([1.0, np.nan]), "scores must be finite, got 1 values that are not"),
        (lambda: bootstrap_interval([1.0], confidence=1.0), r"confidence must be in \(0, 1\), got 1.0"),
        (lambda: bootstrap_interval([1.0], repetitions=0), "repetitions must be >= 1, got 0"),
        (lambda: probability_of_improvement([[1.0, 2.0]], [1.0]), "same tasks, got 2 and 1 columns"),
        (lambda: sample_efficiency([1, 2], [[1.0]], 0.0), "one step per checkpoint"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
