"""Introspective experience replay (IER): look back from the most surprising transitions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numba
import numpy as np
from numpy.typing import NDArray

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Draw, Sampler, ScoreFunction, top_k
from rlopt.replay.scores import ScoreTable
from rlopt.replay.storage import TransitionStorage
from rlopt.replay.windows import DIRECTIONS, WindowDirection, window

CANDIDATES_PER_PIVOT = 4
"""With scores of earlier phases: how many of the largest are made again for each pivot."""


@dataclass(frozen=True)
class IntrospectiveConfig:
    """Options of introspective replay."""

    mix: float = 0.0
    """Share of the batches of a phase that are drawn uniformly, in [0, 1]; they come last."""
    direction: WindowDirection = "back"
    """Where the window lies from its pivot: back, forward, centre, or random."""
    respect_episodes: bool = False
    """Whether a window is cut at the ends of its pivot's episode; it is then shorter."""
    min_separation: int = 0
    """Pivots of one stream are more than this many steps apart, >= 0."""
    refresh_subset: int | None = None
    """Random transitions scored per phase, besides all new ones, > 0; None scores all that are stored."""
    rescore_after: int = 1
    """Phases after which a score is made again, >= 1; 1 scores all that are stored in every phase."""
    sequential: bool = False
    """Whether each batch is a single transition, so that the updates of a window are applied one after another."""
    interleave: bool = False
    """Whether windows run through all environments in order of insertion instead of through one stream."""

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0.0 <= self.mix <= 1.0:
            raise ValueError(f"mix must be in [0, 1], got {self.mix}.")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {self.direction!r}.")
        if self.min_separation < 0:
            raise ValueError(f"min_separation must be at least 0, got {self.min_separation}.")
        if self.refresh_subset is not None and self.refresh_subset < 1:
            raise ValueError(f"refresh_subset must be at least 1, or None to score all transitions, got {self.refresh_subset}.")
        if self.rescore_after < 1:
            raise ValueError(f"rescore_after must be at least 1, got {self.rescore_after}.")
        if self.rescore_after > 1 and self.refresh_subset is not None:
            raise ValueError("refresh_subset has no effect with rescore_after > 1; drop one of them.")
        if self.interleave and self.respect_episodes:
            raise ValueError("respect_episodes=True needs interleave=False: an interleaved window has no single episode.")


class IntrospectiveSampler(Sampler):
    """Scores, pivots and windows of one learning phase after another."""

    needs_phase: ClassVar[bool] = True
    known: ScoreTable | None  # scores of earlier phases, if they are used

    def __init__(self, config: IntrospectiveConfig) -> None:
        self.config = config
        self.pivots = np.empty(0, np.int64)  # slots, most surprising first
        self.num_pivots_used = 0
        self.draws_left = 0  # draws of this phase that come from windows
        self.pending = np.empty(0, np.int64)  # rest of a window in sequential mode
        self.num_added = 0  # the storage's count when transitions were last scored

    def bind(self, storage: TransitionStorage, rng: np.random.Generator) -> None:
        """Attach the storage and make the table of scores."""
        super().bind(storage, rng)
        period = self.config.rescore_after
        self.known = ScoreTable(storage.capacity, period) if period > 1 else None

    @property
    def nbytes(self) -> int:
        """Bytes of the table of scores."""
        return 0 if self.known is None else self.known.nbytes

    def begin_phase(self, gradient_steps: int, score: ScoreFunction | None, progress: float | None) -> None:
        """Score the stored transitions under the current networks and choose the pivots of the phase."""
        self.num_pivots_used = 0
        self.pending = np.empty(0, np.int64)
        # 1e-9: (1 - 0.9) * 10 is a little less than 1 in floating point.
        self.draws_left = math.floor((1.0 - self.config.mix) * gradient_steps + 1e-9)
        if score is None or self.draws_left == 0:
            self.pivots = np.empty(0, np.int64)
        else:
            candidates = self._candidates()
            scores = score(candidates)
            self.pivots = candidates[self._choose(candidates, scores, self.draws_left)]
            if self.known is not None:
                self.known.note(candidates, scores)
            self.num_added = self.storage.num_added

    def _candidates(self) -> NDArray[np.int64]:
        """Slots to score, oldest first."""
        subset, n = self.config.refresh_subset, len(self.storage)
        new = min((self.storage.num_added - self.num_added) * self.storage.n_envs, n)
        if self.known is not None:
            self.known.forget(self.storage.to_slots(np.arange(n - new, n)))
            due = self.known.due(n, CANDIDATES_PER_PIVOT * self._num_ranked(self.draws_left))
            oldest = np.searchsorted(due, self.storage.pos * self.storage.n_envs if self.storage.full else 0)
            return np.concatenate([due[oldest:], due[:oldest]])
        if subset is None or subset + new >= n:
            return self.storage.all_slots()
        old = np.sort(self.rng.choice(n - new, subset, replace=False))
        return self.storage.to_slots(np.concatenate([old, np.arange(n - new, n)]))

    def _choose(self, slots: NDArray[np.int64], scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
        """Positions in `slots` of the pivots, largest score first, equal scores oldest first."""
        separation = self.config.min_separation
        if separation == 0:
            return top_k(scores, count)
        ranked = top_k(scores, self._num_ranked(count))
        logical = self.storage.to_logical(slots[ranked])
        stride = 1 if self.config.interleave else self.storage.n_envs
        kept = _separated(logical // stride, logical % stride, len(self.storage) // stride, stride, separation, count)
        return ranked[kept]

    def _num_ranked(self, count: int) -> int:
        """Transitions among which `count` pivots are found: a pivot keeps at most 2 * separation others away."""
        separation: int = self.config.min_separation
        return count * (2 * separation + 1)

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch: windows first, then uniform."""
        if self.draws_left == 0:
            return Draw(self.uniform_slots(batch_size))
        self.draws_left -= 1
        if len(self.pending) == 0:
            if self.num_pivots_used == len(self.pivots):
                return Draw(self.uniform_slots(batch_size))
            pivot = int(self.pivots[self.num_pivots_used])
            self.num_pivots_used += 1
            config = self.config
            self.pending = window(
                self.storage, pivot, batch_size, self.rng, config.direction, config.respect_episodes, config.interleave
            )
        count = 1 if self.config.sequential else len(self.pending)
        slots, self.pending = self.pending[:count], self.pending[count:]
        return Draw(slots, uniform=False)

    def clear(self) -> None:
        """Forget the phase."""
        self.pivots = self.pending = np.empty(0, np.int64)
        self.num_pivots_used = self.draws_left = self.num_added = 0  # all scores are of what came before

    def state_dict(self) -> dict[str, Any]:
        """The phase, and the scores of earlier ones if they are used."""
        known = {} if self.known is None else {"known": self.known.state_dict(len(self.storage))}
        return {
            **known,
            "pivots": self.pivots.copy(),
            "pending": self.pending.copy(),
            "num_pivots_used": self.num_pivots_used,
            "draws_left": self.draws_left,
            "num_added": self.num_added,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.pivots, self.pending = np.array(state["pivots"], np.int64), np.array(state["pending"], np.int64)
        self.num_pivots_used, self.draws_left = int(state["num_pivots_used"]), int(state["draws_left"])
        self.num_added = int(state["num_added"])
        if self.known is not None:
            self.known.load_state_dict(state["known"])


@numba.njit(cache=True)
def _separated(
    places: NDArray[np.int64], streams: NDArray[np.int64], stream_length: int, num_streams: int, separation: int, count: int
) -> NDArray[np.int64]:
    """Positions of the first `count` entries that keep their distance from all kept before them."""
    blocked = np.zeros((num_streams, stream_length), np.bool_)
    kept = np.empty(count, np.int64)
    num = 0
    for i in range(len(places)):
        if num == count:
            break
        place, stream = places[i], streams[i]
        if blocked[stream, place]:
            continue
        blocked[stream, max(place - separation, 0) : place + separation + 1] = True
        kept[num] = i
        num += 1
    return kept[:num]


class IntrospectiveReplay(Replay):
    """Trains on what led up to the most surprising transitions.

    When a learning phase of G gradient steps begins, every stored transition is scored with its absolute TD error under the current
    networks. The floor((1 - mix) G) largest are the *pivots*; batch g is the window [e, e-1, ..., e-B+1] that ends at pivot g (most
    surprising first). The remaining batches of the phase are uniform. Pivots are not ranked again inside a phase, there are no
    importance weights, and windows may overlap.

    Windows lie in the stream of one environment, never cross the write head, and are shifted inwards at the edge of the data so
    that they keep their length. Without `begin_phase` all draws are uniform: use an agent of `rlopt.agents`, or
    `rlopt.agents.ReplayPhaseCallback` with a stock Stable-Baselines3 agent. Scoring costs one forward pass of the whole buffer
    per phase: choose long phases (`train_freq=512`, `gradient_steps=512`), or `rescore_after`.

    With `rescore_after` = K > 1 scores of earlier phases are kept, and a phase scores only: what is new; what was scored K phases
    ago, about n / K transitions; and the 4 G largest of the known scores. The pivots are the largest of these new scores. So no
    pivot is chosen by an old score, no score is older than K phases, and only a transition whose error grew since can be missed.

    Differs from the authors' released code: order of time instead of ring slots, one stream per environment (their interleaving:
    `interleave=True`), no pivot is lost at the oldest transition, and the choice is O(n) instead of a sort. With
    `sequential=True` a gradient step takes one transition, so a window takes B gradient steps of the phase.

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        mix: See `IntrospectiveConfig`, as the following.
        direction: Where the window lies.
        respect_episodes: Cut windows at episode ends.
        min_separation: Distance of pivots.
        refresh_subset: Number of random transitions to score per phase.
        rescore_after: Phases after which a score is made again.
        sequential: One transition per batch.
        interleave: One stream for all environments.
        **kwargs: As in `rlopt.replay.buffer.Replay`.

    References: Kumar and Nagaraj, Introspective experience replay: look back when surprised, arXiv 2206.03171.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = IntrospectiveReplay(100, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", seed=0, mix=0.5)
        >>> for t in range(9):
        ...     obs = np.full((1, 1), t / 10, np.float32)
        ...     replay.add(obs, obs + 0.1, np.array([0]), np.array([float(t)]), np.array([False]), [{}])
        >>> replay.begin_phase(2, td_error_fn=lambda batch: (batch.rewards == 5).float())
        >>> replay.sample(3).rewards.flatten().tolist()  # the second batch of the phase would be uniform
        [5.0, 4.0, 3.0]
    """

    def __init__(
        self,
        *args: Any,
        mix: float = IntrospectiveConfig.mix,
        direction: WindowDirection = IntrospectiveConfig.direction,
        respect_episodes: bool = IntrospectiveConfig.respect_episodes,
        min_separation: int = IntrospectiveConfig.min_separation,
        refresh_subset: int | None = IntrospectiveConfig.refresh_subset,
        rescore_after: int = IntrospectiveConfig.rescore_after,
        sequential: bool = IntrospectiveConfig.sequential,
        interleave: bool = IntrospectiveConfig.interleave,
        **kwargs: Any,
    ) -> None:
        config = IntrospectiveConfig(
            mix, direction, respect_episodes, min_separation, refresh_subset, rescore_after, sequential, interleave
        )
        super().__init__(*args, sampler=IntrospectiveSampler(config), **kwargs)
