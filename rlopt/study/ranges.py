"""Options with ranges in the places of values, for a search to fill."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_EDGE = 0.1  # share of a range, at each end, that counts as its edge


@dataclass(frozen=True)
class Range:
    """Values among which one is searched.

    Args:
        low: Smallest value, > 0 with `log`.
        high: Largest value, > `low`.
        log: Whether values are drawn uniformly on a logarithmic scale; they are rounded to three digits then.
        integer: Whether only integers are allowed.
        start: Value of the first trial. None: the middle of the range, on the logarithmic scale with `log`.

    Raises:
        ValueError: If a field is out of its range.

    Example:
        >>> rate = Range.around(2e-3, 10)
        >>> (rate.low, rate.high, rate.start)
        (0.0002, 0.02, 0.002)
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False
    start: float | None = None

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"low and high of a range must be finite and low < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low of a range must be > 0 with log, got {self.low}")
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            raise ValueError(f"low and high of a range must be integers with integer, got {self.low} and {self.high}")
        if self.start is None:
            middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
            object.__setattr__(self, "start", round(middle) if self.integer else middle)
        elif not self.low <= self.start <= self.high or (self.integer and self.start != int(self.start)):
            kind = "an integer in" if self.integer else "in"
            raise ValueError(f"start of a range must be {kind} [{self.low}, {self.high}], got {self.start}")

    @classmethod
    def around(cls, centre: float, factor: float) -> Range:
        """Return the logarithmic range [centre / factor, centre * factor], with the centre as first trial.

        Args:
            centre: A value that is thought good, > 0.
            factor: How far the range goes either way, > 1.
        """
        if not (centre > 0 and factor > 1):
            raise ValueError(f"centre must be > 0 and factor > 1, got {centre} and {factor}")
        return cls(centre / factor, centre * factor, log=True, start=centre)

    def edge(self, value: float) -> Literal["lower", "upper"] | None:
        """Return the end of the range that a value lies at, within a tenth of the range; None if it lies inside."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        share = (at - low) / (high - low)
        return "lower" if share <= _EDGE else "upper" if share >= 1 - _EDGE else None

    def tidy(self, value: float) -> float:
        """Return a drawn value as it is used."""
        if self.integer:
            return int(value)
        return min(max(float(f"{value:.3g}"), self.low), self.high) if self.log else float(value)


def ranges_in(options: Mapping[str, Any], prefix: str = "") -> dict[str, Range]:
    """Return the ranges in options, by dotted name."""
    found = {}
    for name, value in options.items():
        if isinstance(value, Range):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, Mapping):
            found.update(ranges_in(value, f"{prefix}{name}."))
    return found


def filled(options: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options with values in the places of the ranges."""
    found = {}
    for name, value in options.items():
        if isinstance(value, Range):
            found[name] = values[f"{prefix}{name}"]
        elif isinstance(value, Mapping):
            found[name] = filled(value, values, f"{prefix}{name}.")
        else:
            found[name] = value
    return found
