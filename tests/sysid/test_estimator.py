"""Sample counts of a history."""

from __future__ import annotations

import numpy as np
import pytest

from rlopt.sysid.estimator import log_checkpoints


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1_000_000, 4), [1000, 10_000, 100_000, 1_000_000]),  # from a thousandth
        ((1_000_000, 3, 10_000), [10_000, 100_000, 1_000_000]),  # from the smallest count that is allowed
        ((100, 1), [100]),
        ((5, 4, 50), [5]),  # fewer samples than that
        ((3, 20, 1), [1, 2, 3]),  # counts that coincide are one
    ],
)
def test_counts_are_equally_distant_on_a_logarithmic_scale(arguments: tuple, expected: list[int]) -> None:
    np.testing.assert_array_equal(log_checkpoints(*arguments), expected)
