"""Step sizes of stochastic gradient descent that follow from the data and their number."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

StepRule = Literal["1/(2R)", "1/(8RB)", "5ln(T)/T"]


class StepSize(NamedTuple):
    """A step size and the data-dependent scale R that it was made from (NaN if from none)."""

    value: float
    scale: float


def step_size_from_rule(rule: StepRule, regressors: ArrayLike, num_samples: int, buffer_size: int | None = None) -> StepSize:
    """Return the step size that a rule gives.

    R is the sum of the norms (not of their squares) of the first m = floor(2 ln T) regressors, and T the number of samples:

    * "1/(2R)": large steps; this is where the order of replay matters.
    * "1/(8RB)": small steps, with the buffer size B; close to what the theory of reverse replay asks for.
    * "5ln(T)/T": for expansive links, without a look at the data.

    Args:
        rule: One of these.
        regressors: The first samples, shape (at least m, p).
        num_samples: T.
        buffer_size: B, for "1/(8RB)".

    Raises:
        ValueError: For an unknown rule, a missing buffer size, too few rows, or rows that are all zero.

    Example:
        >>> step_size_from_rule("1/(2R)", np.ones((100, 1)), 1000)  # floor(2 ln 1000) = 13 norms of 1
        StepSize(value=0.03846..., scale=13.0)
    """
    if rule == "5ln(T)/T":
        return StepSize(5.0 * np.log(num_samples) / num_samples, float("nan"))
    if rule not in ("1/(2R)", "1/(8RB)"):
        raise ValueError(f"step_size must be > 0, '1/(2R)', '1/(8RB)' or '5ln(T)/T', got {rule!r}.")
    rows = np.asarray(regressors, np.float64)
    needed = rule_samples(num_samples)
    if len(rows) < needed:
        raise ValueError(f"step_size {rule!r} needs the first {needed} regressors, got {len(rows)}; give a number instead.")
    scale = float(np.linalg.norm(rows[:needed], axis=1).sum())
    if scale == 0.0:
        raise ValueError(f"step_size {rule!r} needs regressors that are not all zero at the start; give a number instead.")
    if rule == "1/(2R)":
        return StepSize(1.0 / (2.0 * scale), scale)
    if buffer_size is None:
        raise ValueError("step_size '1/(8RB)' needs buffers, and this estimator has none; give a number instead.")
    return StepSize(1.0 / (8.0 * scale * buffer_size), scale)


def rule_samples(num_samples: int) -> int:
    """Return floor(2 ln T), the samples that the scale R of a step rule is made from."""
    return max(1, int(2.0 * np.log(num_samples)))
