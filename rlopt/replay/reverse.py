"""Reverse experience replay (RER): sweeps from the newest transition backwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Draw, Sampler
from rlopt.replay.windows import newest_first

Restart = Literal["on_new_data", "on_exhausted"]


@dataclass(frozen=True)
class ReverseConfig:
    """Options of reverse replay."""

    mix: float = 0.0
    """Share of the batches that are drawn uniformly, in [0, 1], spread evenly."""
    restart: Restart = "on_new_data"
    """When a sweep begins again at the newest transition: whenever data came in, or only when it reached the oldest."""
    respect_episodes: bool = False
    """Whether a batch stops at the start of an episode; it is then shorter."""
    sequential: bool = False
    """Whether each batch is a single transition, so that updates are applied one after another, newest first."""

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix must be in [0, 1], got {self.mix}.")
        if self.restart not in ("on_new_data", "on_exhausted"):
            raise ValueError(f"restart must be 'on_new_data' or 'on_exhausted', got {self.restart!r}.")
        if self.sequential and self.respect_episodes:
            raise ValueError("respect_episodes has no effect with sequential=True (a batch is one transition); drop one of them.")


class ReverseSampler(Sampler):
    """One cursor per environment stream; the streams take turns."""

    def __init__(self, config: ReverseConfig) -> None:
        self.config = config
        # Row (counted since the beginning of time) that each stream continues with; below the oldest stored: start anew.
        self.cursor = np.empty(0, np.int64)
        self.next_stream = 0
        self.mixed = 0.0  # uniform batches owed

    def on_add(self, slots: NDArray[np.int64]) -> None:
        """New data arrived."""
        if len(self.cursor) == 0:
            self.cursor = np.full(self.storage.n_envs, -1, np.int64)
        if self.config.restart == "on_new_data":
            self.cursor[:] = -1

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch."""
        self.mixed += self.config.mix
        if self.mixed >= 1.0 - 1e-9:
            self.mixed -= 1.0
            return Draw(self.uniform_slots(batch_size))
        stream, storage = self.next_stream, self.storage
        self.next_stream = (stream + 1) % storage.n_envs
        oldest = storage.num_added - storage.num_filled_rows
        cursor = int(self.cursor[stream])
        if cursor < oldest:
            cursor = storage.num_added - 1
        count = min(1 if self.config.sequential else batch_size, cursor - oldest + 1)
        newest = np.array([cursor % storage.num_rows * storage.n_envs + stream])
        if self.config.respect_episodes:
            count = min(count, int(storage.num_steps(newest, "older", within_episode=True)[0]) + 1)
        self.cursor[stream] = cursor - count
        return Draw(storage.step(newest, newest_first(count)), uniform=False)

    def clear(self) -> None:
        """Forget the sweeps."""
        self.cursor = np.empty(0, np.int64)
        self.next_stream, self.mixed = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sweeps."""
        return {"cursor": self.cursor.copy(), "next_stream": self.next_stream, "mixed": self.mixed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.cursor = np.array(state["cursor"], np.int64)
        self.next_stream, self.mixed = int(state["next_stream"]), float(state["mixed"])


class ReverseReplay(Replay):
    """Replays the newest data backwards: batch after batch [c, c-1, ..., c-B+1] from the newest transition to the oldest.

    Values then travel against time: with one update per transition, a reward reaches the start of its trajectory in one sweep.
    A mini-batch gradient does not depend on the order inside the batch, so with batches the reversal acts across successive
    batches and through which transitions are together; `sequential=True` applies single transitions one after another.

    A batch lies in the stream of one environment; the streams take turns. The last batch of a sweep may be shorter. A sweep begins
    again at the newest transition when data came in (`restart="on_new_data"`) or when it is finished.

    Differs from the authors' released sampler: sweeps are in order of time also after the ring wrapped, start at the newest stored
    transition, and begin again when they are exhausted.

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        mix: See `ReverseConfig`.
        restart: See `ReverseConfig`.
        respect_episodes: See `ReverseConfig`.
        sequential: See `ReverseConfig`.
        **kwargs: As in `rlopt.replay.buffer.Replay`.

    References: Agarwal et al., Online target Q-learning with reverse experience replay, ICLR 2022, arXiv 2110.08440; Rotinov,
    Reverse experience replay, 2019, arXiv 1910.08780.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = ReverseReplay(100, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", seed=0)
        >>> for t in range(5):
        ...     obs = np.full((1, 1), t / 10, np.float32)
        ...     replay.add(obs, obs + 0.1, np.array([0]), np.array([float(t)]), np.array([False]), [{}])
        >>> replay.sample(3).rewards.flatten().tolist(), replay.sample(3).rewards.flatten().tolist()
        ([4.0, 3.0, 2.0], [1.0, 0.0])
    """

    def __init__(
        self,
        *args: Any,
        mix: float = ReverseConfig.mix,
        restart: Restart = ReverseConfig.restart,
        respect_episodes: bool = ReverseConfig.respect_episodes,
        sequential: bool = ReverseConfig.sequential,
        **kwargs: Any,
    ) -> None:
        config = ReverseConfig(mix, restart, respect_episodes, sequential)
        super().__init__(*args, sampler=ReverseSampler(config), **kwargs)
