from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rlopt_envs import _validation as check


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check.matrix("C", [[1.0]], (2, 3)), "C must have shape (2, 3), got (1, 1)."),
        (lambda: check.matrix("C", [1.0], (2,), "one per state"), "C must have shape (2,), got (1,); one per state."),
        (lambda: check.matrix("C", [[np.nan]], (1, 1)), "C must hold finite numbers, got nan or infinity."),
        (lambda: check.matrix("C", "words", (1, 1)), "C must be an array of numbers, got 'words'."),
        (lambda: check.matrix("C", [[1.0], [1.0, 2.0]], (2, 2)), "C must be an array of numbers, got [[1.0], [1.0, 2.0]]."),
        (lambda: check.square("A", np.zeros((3, 2))), "A must have shape (d, d) with d >= 1, got (3, 2)."),
        (lambda: check.square("A", np.zeros((0, 0))), "A must have shape (d, d) with d >= 1, got (0, 0)."),
        (
            lambda: check.input_matrix(np.zeros((2, 1)), 3),
            "B must have shape (3, m) with m >= 1, got (2, 1); its rows belong to the states of A.",
        ),
        (
            lambda: check.output_matrix(np.zeros((1, 2)), 3),
            "C must have shape (p, 3) with p >= 1, got (1, 2); its columns belong to the states of A.",
        ),
        (
            lambda: check.covariance("Q", [[1.0, 0.5], [0.0, 1.0]], 2),
            "Q must be symmetric, got a matrix that differs from its transpose by 0.5.",
        ),
        (
            lambda: check.covariance("Q", np.diag([1.0, -2.0]), 2),
            "Q must be positive semi-definite (eigenvalues >= 0), got a matrix with eigenvalue -2.",
        ),
        (
            lambda: check.covariance("R", np.zeros((1, 1)), 1, positive=True),
            "R must be positive definite (eigenvalues > 0), got a matrix with eigenvalue 0.",
        ),
        (
            lambda: check.positive_vector("action_limit", [1.0, 2.0], 3),
            "action_limit must be one number > 0 or 3 of them, shape (3,), got [1.0, 2.0].",
        ),
        (lambda: check.positive_vector("limit", -1.0, 1), "limit must be one number > 0 or 1 of them, shape (1,), got -1.0."),
        (lambda: check.choice("cost", "mean", ("a", "b")), "cost must be one of 'a', 'b', got 'mean'."),
        (lambda: check.choice("cost", None, ("a", "b")), "cost must be one of 'a', 'b', got None."),
        (lambda: check.count("num_envs", 1.5), "num_envs must be a whole number >= 1, got 1.5."),
        (lambda: check.count("num_envs", True), "num_envs must be a whole number >= 1, got True."),
    ],
)
def test_messages_name_parameter_rule_and_value(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared as a whole)
        call()
    assert str(caught.value) == message


def test_results_are_copies_in_double_precision() -> None:
    given = np.eye(2, dtype=np.float32)
    result = check.covariance("Q", given, 2)
    given[0, 0] = 5.0
    np.testing.assert_array_equal(result, np.eye(2))
    assert result.dtype == np.float64


def test_rounding_does_not_make_a_covariance_asymmetric() -> None:
    result = check.covariance("Q", [[1.0, 0.1 + 1e-14], [0.1, 0.01]], 2)
    np.testing.assert_array_equal(result, result.T)


def test_one_number_stands_for_all() -> None:
    assert check.positive_vector("limit", 2, 3).tolist() == [2.0, 2.0, 2.0]
