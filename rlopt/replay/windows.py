"""Windows: runs of consecutive transitions of one stream, in the order in which they are to be learned from."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rlopt.replay.storage import TransitionStorage

WindowDirection = Literal["back", "forward", "centre", "random"]
DIRECTIONS: tuple[str, ...] = get_args(WindowDirection)


def newest_first(count: int) -> NDArray[np.int64]:
    """Offsets from the newest transition of `count` transitions that are learned from backwards: [0, -1, ..., 1 - count].

    What "backwards" means stands here once: the reverse and introspective replays and the estimators of `rlopt.sysid` use it.

    Example:
        >>> newest_first(3).tolist()
        [0, -1, -2]
    """
    return -np.arange(count)


def window(
    storage: TransitionStorage,
    pivot: int,
    length: int,
    rng: np.random.Generator,
    direction: WindowDirection = "back",
    respect_episodes: bool = False,
    interleave: bool = False,
) -> NDArray[np.int64]:
    """The window of `length` transitions around the slot `pivot`, which is always in it.

    * "back": the pivot and the transitions before it, newest first.
    * "forward": the pivot and the transitions after it, oldest first.
    * "centre": the pivot with `length // 2` transitions before it, newest first.
    * "random": like "centre" with a number before it that is uniform on 0..length-1.

    Args:
        storage: The transitions.
        pivot: A slot.
        length: Transitions wanted, > 0.
        rng: Used by "random" only.
        direction: Where the window lies.
        respect_episodes: With False a window that would leave the stored data is shifted until it fits (fewer than `length`
            transitions are returned only if the stream has no more). With True it is cut at the pivot's episode instead.
        interleave: Treat the whole buffer as one stream in order of insertion, as if the environments took turns.

    Returns:
        Slots in learning order.
    """
    logical = int(storage.to_logical(np.array([pivot]))[0])
    stride = 1 if interleave else storage.n_envs
    # Position of the pivot in its stream, 0 = oldest, and the offset that tells the stream.
    place, stream = divmod(logical, stride)
    stream_length = len(storage) // stride
    if direction == "back":
        low = place - length + 1
    elif direction == "forward":
        low = place
    elif direction == "centre":
        low = place - length // 2
    else:
        low = place - int(rng.integers(length))
    high = low + length - 1
    if respect_episodes:
        slot = np.array([pivot])
        low = max(low, place - int(storage.num_steps(slot, "older", within_episode=True)[0]))
        high = min(high, place + int(storage.num_steps(slot, "newer", within_episode=True)[0]))
    else:
        low = max(min(low, stream_length - length), 0)
        high = min(low + length, stream_length) - 1
    places = np.arange(low, high + 1) if direction == "forward" else high + newest_first(high - low + 1)
    return storage.to_slots(places * stride + stream)
