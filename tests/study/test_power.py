"""The number of seeds that a question needs, against closed forms for the mean of normal scores."""

import numpy as np
import pytest

from rlopt.study import bootstrap_interval, iqm, mean, seeds_needed

NORMAL = np.random.default_rng(0).normal(size=400)
SPREAD = NORMAL.std(ddof=1)


@pytest.mark.parametrize("half_width", [0.5, 0.2])
@pytest.mark.parametrize(("confidence", "z"), [(0.95, 1.96), (0.8, 1.2816)])
def test_half_width_of_the_mean_has_a_closed_form(half_width, confidence, z):
    expected = next(n for n in range(2, 1000) if z * SPREAD * (n - 1) ** 0.5 / n <= half_width)
    found = seeds_needed(NORMAL, half_width=half_width, statistic=mean, confidence=confidence)
    assert found == pytest.approx(expected, rel=0.06, abs=1)


@pytest.mark.parametrize("difference", [1.0, 0.4])
@pytest.mark.parametrize(("power", "z_power"), [(0.8, 0.8416), (0.95, 1.6449)])
def test_detectable_difference_of_means_has_a_closed_form(difference, power, z_power):
    expected = 2 * ((1.96 + z_power) * SPREAD / difference) ** 2
    found = seeds_needed(NORMAL, difference=difference, power=power, statistic=mean)
    assert found == pytest.approx(expected, rel=0.06, abs=1)


def test_the_mean_over_tasks_needs_fewer_seeds_in_proportion():
    found = seeds_needed(np.tile(NORMAL[:, np.newaxis], (1, 4)), half_width=0.2, statistic=mean)
    expected = next(n for n in range(2, 1000) if 1.96 * SPREAD * (n - 1) ** 0.5 / n / 2 <= 0.2)
    assert found == pytest.approx(expected, rel=0.08, abs=1)


def test_as_many_seeds_as_the_pilot_give_the_interval_of_the_pilot():
    pilot = np.random.default_rng(1).normal(size=24)
    low, high = bootstrap_interval(pilot, iqm, repetitions=20_000)[1:]
    half = float(high - low) / 2
    assert seeds_needed(pilot, half_width=half + 1e-9) <= 24
    assert seeds_needed(pilot, half_width=half * 0.97) > 24


@pytest.mark.parametrize(("options", "expected"), [({"half_width": 0.3}, 42.0), ({"difference": 0.7}, 2 * (2.8016 / 0.7) ** 2)])
def test_the_correction_for_small_pilots_is_right_on_average(options, expected):
    """N is nearly proportional to the variance; without the correction, four seeds would ask for three quarters of N."""
    rng = np.random.default_rng(6)
    found = [seeds_needed(rng.normal(size=4), **options, statistic=mean, repetitions=500) for _ in range(150)]
    assert np.mean(found) == pytest.approx(expected, abs=2 * np.std(found) / 150**0.5)


def test_equal_scores_need_the_fewest_seeds_there_can_be():
    assert seeds_needed([3.0, 3.0, 3.0], half_width=0.1) == 2


def test_answers_are_seeded():
    pilot = NORMAL[:8]
    assert seeds_needed(pilot, half_width=0.1, repetitions=100) == seeds_needed(pilot, half_width=0.1, repetitions=100)
    answers = {seeds_needed(pilot, half_width=0.1, repetitions=100, seed=seed) for seed in range(4)}
    assert len(answers) > 1


def test_the_largest_number_is_looked_at_and_no_larger_one():
    needed = seeds_needed(NORMAL, half_width=0.2, statistic=mean)
    assert seeds_needed(NORMAL, half_width=0.2, statistic=mean, max_seeds=needed) == needed
    message = f"half_width = 0.2 needs more than max_seeds = {needed - 1} seeds"
    with pytest.raises(ValueError, match=message):
        seeds_needed(NORMAL, half_width=0.2, statistic=mean, max_seeds=needed - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either half_width or difference must be given, got neither"),
        ({"half_width": 1.0, "difference": 1.0}, "either half_width or difference must be given, got both"),
        ({"half_width": 0.0}, "half_width must be > 0, got 0.0"),
        ({"difference": -1.0}, "difference must be > 0, got -1.0"),
        ({"difference": 1.0, "power": 1.0}, r"power must be in \(0, 1\), got 1.0"),
        ({"half_width": 1.0, "max_seeds": 1}, "max_seeds must be >= 2, got 1"),
        ({"half_width": 1.0, "confidence": 0.0}, r"confidence must be in \(0, 1\), got 0.0"),
        ({"difference": 1e-3, "max_seeds": 8, "repetitions": 200}, "difference = 0.001 needs more than max_seeds = 8 seeds"),
    ],
)
def test_wrong_input_is_refused_with_a_reason(options, message):
    with pytest.raises(ValueError, match=message):
        seeds_needed(NORMAL[:5], **options)


def test_one_score_is_no_pilot():
    with pytest.raises(ValueError, match="pilot must have at least 2 seeds, got 1"):
        seeds_needed([1.0], half_width=1.0)
