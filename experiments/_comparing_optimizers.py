"""What experiments that compare optimizers share: rates on the command line and in a search, and the memory of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from rlopt.study import Range

# How far a search of a learning rate goes from the centre, either way.
RANGE_FACTOR = 30.0


def given_numbers(option: str, words: Sequence[str]) -> dict[str, float]:
    """Read NAME=NUMBER words of an option.

    Raises:
        ValueError: If a word is not of this form, a number is not > 0, or a name comes twice.
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not name or not 0 < value < math.inf:
            raise ValueError(f"{option} must have the form NAME=NUMBER with a number > 0, got {word}")
        if name in found:
            raise ValueError(f"{option} must give {name} once, got it twice")
        found[name] = value
    return found


def searched_rate(centre: float) -> Range:
    """Return the range in which a learning rate is searched, with the centre as first trial."""
    return Range.around(centre, RANGE_FACTOR)


def state_bytes(state: object) -> int:
    """Return the bytes of all tensors in the state of an optimizer."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(state_bytes(value) for value in state.values())
    if isinstance(state, list | tuple):
        return sum(state_bytes(value) for value in state)
    return 0
