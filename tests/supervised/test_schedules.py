"""Schedules: values by hand."""

import math

import pytest

from rlopt.supervised import Constant, WarmupDecay


def test_constant_is_one() -> None:
    assert [Constant()(step) for step in (0, 10**9)] == [1.0, 1.0]


def test_linear_schedule_is_that_of_the_autoencoder_benchmark() -> None:
    # (s + 1) / 20 for s < 20, then 1 - (s - 20) / 380.
    schedule = WarmupDecay(400, warmup_steps=20)
    assert [schedule(step) for step in (0, 9, 19, 20, 210, 399, 400, 999)] == pytest.approx([0.05, 0.5, 1, 1, 0.5, 1 / 380, 0, 0])


def test_cosine_schedule_falls_along_half_a_period_to_its_final_factor() -> None:
    schedule = WarmupDecay(14, warmup_steps=2, decay="cosine", final_factor=0.1)
    half = 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2
    assert [schedule(step) for step in (0, 1, 2, 5, 8, 14, 20)] == pytest.approx([0.5, 1, 1, half, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": 10}, r"warmup_steps must be in \[0, num_steps = 10\), got 10"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"decay": "step"}, "decay must be 'linear' or 'cosine', got 'step'"),
        ({"final_factor": 1.5}, r"final_factor must be in \[0, 1\], got 1.5"),
    ],
)
def test_option_outside_its_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupDecay(10, **options)  # type: ignore[arg-type]
