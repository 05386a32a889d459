"""Buffers of consecutive transitions that never span two trajectories, and the order of updates in them."""

from __future__ import annotations

from typing import Literal

import numpy as np

from rlopt.replay.windows import newest_first
from rlopt.sysid.transitions import IntArray, Transitions

Order = Literal["reverse", "forward", "random"]


def find_buffers(data: Transitions, gap: int, buffer_size: int) -> tuple[IntArray, IntArray, int]:
    """Return where the retained transitions of each buffer start and stop, (E,), and how many transitions are dealt with."""
    size = gap + buffer_size
    segment_stops = np.flatnonzero(data.ends) + 1
    is_open = len(segment_stops) == 0 or segment_stops[-1] < len(data)
    if is_open:
        segment_stops = np.append(segment_stops, len(data))
    segment_starts = np.concatenate([[0], segment_stops[:-1]])
    count, rest = np.divmod(segment_stops - segment_starts, size)
    closed = rest > gap  # an end closes the last buffer of its trajectory
    if is_open:
        closed[-1] = False
    count = count + closed
    num_used = len(data) - int(rest[-1]) if is_open else len(data)
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # of the buffer in its trajectory
    firsts = np.repeat(segment_starts, count) + number * size
    return firsts + gap, np.minimum(firsts + size, np.repeat(segment_stops, count)), num_used


def update_order(starts: IntArray, stops: IntArray, order: Order, rng: np.random.Generator) -> IntArray:
    """Return the transitions of buffers [start, stop) in the order of the updates, buffer after buffer."""
    if len(starts) == 0:
        return np.empty(0, np.int64)
    lengths = stops - starts
    total = int(lengths.sum())
    place = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # 0, 1, ... in each buffer
    if order == "reverse":
        return np.asarray(np.repeat(stops - 1, lengths) + newest_first(int(lengths.max()))[place])
    if order == "random":
        place = (rng.random(total) * np.repeat(lengths, lengths)).astype(np.int64)
    return np.asarray(np.repeat(starts, lengths) + place)
