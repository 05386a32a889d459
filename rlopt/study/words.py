"""How a report writes numbers."""

from __future__ import annotations

import re

from rlopt.study.bootstrap import Interval


def interval(found: Interval) -> str:
    """Format a score with its interval."""
    estimate, low, high = (number(float(value)) for value in found)
    return f"{estimate} [{low}, {high}]"


def number(value: float) -> str:
    """Format a score: three or four significant digits, no exponent for everyday sizes."""
    size = abs(value)
    if size == 0 or 1 <= size < 1e7:
        return f"{value:.{0 if size >= 1000 else 1 if size >= 10 else 2}f}"
    return f"{value:#.3g}"


def share(found: Interval) -> str:
    """Format a probability with its interval."""
    estimate, low, high = (f"{float(value):.2f}" for value in found)
    return f"{estimate} [{low}, {high}]"


def count(size: int, noun: str) -> str:
    """Return for instance `1 task`, `2 tasks`."""
    return f"{size} {noun}{'' if size == 1 else 's'}"


def figure_name(name: str) -> str:
    """Return a name without characters that would end or split a link in Markdown.

    Example:
        >>> figure_name("double integrator (LQR)/state")
        'double-integrator-LQR-state'
    """
    return re.sub(r"[^\w.+=]+", "-", name).strip("-")
