"""Greedy (optimistic) TD replay (OER): always the transitions with the largest TD errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Draw, Sampler, ScoreFunction, top_k


@dataclass(frozen=True)
class GreedyConfig:
    """Greedy replay has no options."""


class GreedySampler(Sampler):
    """Takes the largest scores of the phase, and lowers what was taken to the smallest."""

    needs_phase: ClassVar[bool] = True

    def __init__(self) -> None:
        self.scores: NDArray[np.float64] = np.empty(0)  # by logical index, empty if unknown
        self.num_added = 0  # the storage's count when the scores were made

    def begin_phase(self, gradient_steps: int, score: ScoreFunction | None, progress: float | None) -> None:
        """Score all stored transitions."""
        self.scores = np.empty(0) if score is None else score(self.storage.all_slots())
        self.num_added = self.storage.num_added

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch: uniform until there are scores."""
        if len(self.scores) == 0 or self.num_added != self.storage.num_added:
            return Draw(self.uniform_slots(batch_size))
        chosen = top_k(self.scores, batch_size)
        self.scores[chosen] = self.scores.min()
        return Draw(self.storage.to_slots(chosen), uniform=False)

    def clear(self) -> None:
        """Forget the scores."""
        self.scores = np.empty(0)

    def state_dict(self) -> dict[str, Any]:
        """Scores of the phase."""
        return {"scores": self.scores.copy(), "num_added": self.num_added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.scores = np.array(state["scores"])
        self.num_added = int(state["num_added"])


class GreedyReplay(Replay):
    """Each batch is the `batch_size` transitions with the largest absolute TD errors, also called optimistic replay (OER).

    All stored transitions are scored when a phase begins. What a batch took is lowered to the smallest score, so the batches of
    a phase are disjoint until all scores are equal. There are no importance weights. Known to learn poorly on its own: it is the
    baseline that shows what looking back adds (see `IntrospectiveReplay`).

    Without `begin_phase` since the last new transition, draws are uniform.

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        **kwargs: As in `rlopt.replay.buffer.Replay`.

    References: the baseline of Kumar and Nagaraj, Introspective experience replay: look back when surprised, arXiv 2206.03171.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = GreedyReplay(100, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", seed=0)
        >>> for t in range(9):
        ...     obs = np.full((1, 1), t / 10, np.float32)
        ...     replay.add(obs, obs + 0.1, np.array([0]), np.array([float(t)]), np.array([False]), [{}])
        >>> replay.begin_phase(2, td_error_fn=lambda batch: batch.rewards)
        >>> replay.sample(2).rewards.flatten().tolist(), replay.sample(2).rewards.flatten().tolist()
        ([8.0, 7.0], [6.0, 5.0])
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, sampler=GreedySampler(), **kwargs)
