"""Prioritized experience replay (PER), proportional and rank-based."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Draw, Sampler, ScoreFunction
from rlopt.replay.storage import TransitionStorage
from rlopt.replay.sum_tree import SumTree

Priority = Literal["proportional", "rank"]
Normalize = Literal["memory", "batch"]

_DEFAULTS = {"proportional": (0.6, 0.4), "rank": (0.7, 0.5)}  # alpha, beta

RANK_STALENESS = 1 / 32
"""Share of the stored transitions whose priority may have changed before the ranking is sorted anew."""


@dataclass(frozen=True)
class PrioritizedConfig:
    """Options of prioritized replay."""

    priority: Priority = "proportional"
    """Priority of a transition: |TD error| + epsilon, or 1 / rank of it."""
    alpha: float | None = None
    """Exponent of the priority, >= 0; 0 is uniform. None: 0.6 for proportional, 0.7 for rank."""
    beta: float | None = None
    """Exponent of the importance weights at the beginning, in [0, 1]. None: 0.4 for proportional, 0.5 for rank."""
    beta_final: float = 1.0
    """Exponent at the end of training, in [0, 1]; in between it changes linearly with training progress."""
    epsilon: float = 1e-6
    """Added to |TD error| in the proportional variant, > 0, so that no transition is lost."""
    normalize: Normalize = "memory"
    """Weights are divided by the largest one of the memory, or of the batch."""
    clip_td_error: float | None = None
    """Largest |TD error| that counts, > 0 (1 goes with a Huber loss); None does not clip."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.priority not in ("proportional", "rank"):
            raise ValueError(f"priority must be 'proportional' or 'rank', got {self.priority!r}.")
        if self.normalize not in ("memory", "batch"):
            raise ValueError(f"normalize must be 'memory' or 'batch', got {self.normalize!r}.")
        if self.alpha is not None and not 0.0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be at least 0, got {self.alpha}.")
        for name in ("beta", "beta_final"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}.")
        if not 0.0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be > 0, got {self.epsilon}.")
        if self.clip_td_error is not None and not self.clip_td_error > 0.0:
            raise ValueError(f"clip_td_error must be > 0, or None not to clip, got {self.clip_td_error}.")
        if self.priority == "rank" and self.epsilon != PrioritizedConfig.epsilon:
            raise ValueError("epsilon has no effect with priority='rank'; drop it.")


class _PrioritySampler(Sampler):
    """What both variants share: exponents, annealing, weights."""

    needs_update: ClassVar[bool] = True

    def __init__(self, config: PrioritizedConfig) -> None:
        alpha, beta = _DEFAULTS[config.priority]
        self.config = config
        self.alpha = alpha if config.alpha is None else config.alpha
        self.first_beta = beta if config.beta is None else config.beta
        self.beta = self.first_beta

    def begin_phase(self, gradient_steps: int, score: ScoreFunction | None, progress: float | None) -> None:
        """Anneal beta."""
        if progress is not None:
            self.beta = self.first_beta + (self.config.beta_final - self.first_beta) * progress

    def weights(self, probabilities: NDArray[np.float64], smallest: float) -> NDArray[np.float32]:
        """(n P)^-beta over its maximum; n cancels. `smallest` is the smallest probability in the memory."""
        if self.config.normalize == "batch":
            smallest = float(probabilities.min())
        return ((smallest / probabilities) ** self.beta).astype(np.float32)

    def clipped(self, td_errors: NDArray[np.float64]) -> NDArray[np.float64]:
        """TD errors as far as they count."""
        return td_errors if self.config.clip_td_error is None else np.minimum(td_errors, self.config.clip_td_error)


class ProportionalSampler(_PrioritySampler):
    """P(i) proportional to (|TD error_i| + epsilon)^alpha, by a sum tree."""

    def bind(self, storage: TransitionStorage, rng: np.random.Generator) -> None:
        """Attach the storage and make the tree."""
        super().bind(storage, rng)
        self.tree = SumTree(storage.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of the tree."""
        return self.tree.nbytes

    def on_add(self, slots: NDArray[np.int64]) -> None:
        """Enter new transitions at the largest priority that is stored, 1 at first."""
        self.tree.set(slots, np.zeros(len(slots)))  # what is overwritten is not stored any more
        largest = self.tree.maximum
        self.tree.set(slots, np.full(len(slots), largest if largest > 0.0 else 1.0))

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch, one transition from each of `batch_size` equal strata of the priority mass."""
        total = self.tree.total
        mass = (np.arange(batch_size) + self.rng.random(batch_size)) * (total / batch_size)
        slots = self.tree.find(mass)
        return Draw(slots, self.weights(self.tree.get(slots), self.tree.minimum), uniform=False)

    def update(self, slots: NDArray[np.int64], td_errors: NDArray[np.float64]) -> None:
        """Set the priorities of the sampled transitions."""
        self.tree.set(slots, (self.clipped(td_errors) + self.config.epsilon) ** self.alpha)

    def clear(self) -> None:
        """Forget the priorities."""
        self.tree.clear()

    def state_dict(self) -> dict[str, Any]:
        """Priorities and annealing."""
        return {"beta": self.beta, "priorities": self.tree.get(np.arange(len(self.storage)))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.beta = float(state["beta"])
        priorities = np.asarray(state["priorities"])
        self.tree.set(np.arange(len(priorities)), priorities)


class RankSampler(_PrioritySampler):
    """P(i) proportional to rank(i)^-alpha, rank 1 = largest |TD error|.

    The ranking is sorted anew once a share `RANK_STALENESS` of the stored transitions changed. In between, new transitions stand in
    front of it, newest first, and changed ones keep their place; the weights use the probability of the place that was drawn.
    """

    def bind(self, storage: TransitionStorage, rng: np.random.Generator) -> None:
        """Attach the storage and make the tables."""
        super().bind(storage, rng)
        self.errors = np.empty(storage.capacity)  # inf: new, ranked first
        # With new transitions in front, the ranking can be longer than the memory until it is sorted again.
        places = int(storage.capacity * (1.0 + RANK_STALENESS)) + 2 * storage.n_envs
        self.mass = np.cumsum(np.arange(1, places + 1, dtype=np.float64) ** -self.alpha)
        self.clear()

    def clear(self) -> None:
        """Forget the ranking."""
        self.ranking = np.empty(0, np.int64)  # slots, largest error first
        self.num_new = 0  # newest transitions that the ranking does not hold yet
        self.num_changed = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the errors, the cumulative mass and a ranking of the full memory."""
        return self.errors.nbytes * 2 + self.mass.nbytes

    def on_add(self, slots: NDArray[np.int64]) -> None:
        """Enter new transitions in front."""
        self.errors[slots] = np.inf
        self.num_new += len(slots)
        self.num_changed += len(slots)

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch, one rank from each of `batch_size` equal strata of the mass."""
        n = len(self.storage)
        if len(self.ranking) == 0 or self.num_changed > RANK_STALENESS * n:
            newest_first = self.storage.all_slots()[::-1]
            self.ranking = newest_first[np.argsort(-self.errors[newest_first], kind="stable")]
            self.num_new = self.num_changed = 0
        num_places = self.num_new + len(self.ranking)
        total = self.mass[num_places - 1]
        mass = (np.arange(batch_size) + self.rng.random(batch_size)) * (total / batch_size)
        places = np.minimum(np.searchsorted(self.mass[:num_places], mass, side="right"), num_places - 1)  # rank - 1
        old = places >= self.num_new
        slots = np.empty(batch_size, np.int64)
        slots[old] = self.ranking[places[old] - self.num_new]
        slots[~old] = self.storage.to_slots(n - 1 - places[~old])
        probabilities = (places + 1.0) ** -self.alpha / total
        return Draw(slots, self.weights(probabilities, float(num_places) ** -self.alpha / total), uniform=False)

    def update(self, slots: NDArray[np.int64], td_errors: NDArray[np.float64]) -> None:
        """Set the errors of the sampled transitions."""
        self.errors[slots] = self.clipped(td_errors)
        self.num_changed += len(slots)

    def state_dict(self) -> dict[str, Any]:
        """Errors, ranking and annealing."""
        return {
            "beta": self.beta,
            "errors": self.errors[: len(self.storage)].copy(),
            "ranking": self.ranking.copy(),
            "num_new": self.num_new,
            "num_changed": self.num_changed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.beta = float(state["beta"])
        self.errors[: len(state["errors"])] = state["errors"]
        self.ranking = np.array(state["ranking"], np.int64)
        self.num_new, self.num_changed = int(state["num_new"]), int(state["num_changed"])


class PrioritizedReplay(Replay):
    """Transitions are drawn in proportion to priority^alpha; importance weights undo the bias as beta goes to 1.

    P(i) = p_i^alpha / sum_k p_k^alpha with p_i = |TD error_i| + epsilon (proportional) or 1 / rank(i) (rank). Weights are
    w_i = (n P(i))^-beta, divided by their maximum over the memory (`normalize="memory"`, so that a weight does not depend on the
    other draws) or over the batch. A batch takes one transition from each of B equal strata of the mass. New transitions enter
    at the largest priority that is stored now; sampled ones get their new TD error by `update`. beta goes linearly from `beta`
    to `beta_final` with the training progress that the agent reports to `begin_phase`, and stays where it is if nobody reports.

    A stock Stable-Baselines3 agent neither applies weights nor reports TD errors, so there this replay stays near uniform and
    says so.

    The authors used a quarter of the learning rate that uniform replay had.

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        priority: See `PrioritizedConfig`, as the following.
        alpha: Exponent of the priority.
        beta: First exponent of the weights.
        beta_final: Last exponent of the weights.
        epsilon: Smallest priority.
        normalize: "memory" or "batch".
        clip_td_error: Largest TD error that counts.
        **kwargs: As in `rlopt.replay.buffer.Replay`.

    References: Schaul et al., Prioritized experience replay, ICLR 2016, arXiv 1511.05952.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = PrioritizedReplay(100, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", seed=0, alpha=1.0, beta=1.0)
        >>> for t in range(2):
        ...     obs = np.full((1, 1), float(t), np.float32)
        ...     replay.add(obs, obs + 1, np.array([0]), np.array([float(t)]), np.array([False]), [{}])
        >>> replay.update(np.array([0, 1]), np.array([1.0, 3.0]))
        >>> batch = replay.sample(4)
        >>> batch.rewards.flatten().tolist()
        [0.0, 1.0, 1.0, 1.0]
        >>> [round(weight, 4) for weight in batch.weights.flatten().tolist()]
        [1.0, 0.3333, 0.3333, 0.3333]
    """

    def __init__(
        self,
        *args: Any,
        priority: Priority = PrioritizedConfig.priority,
        alpha: float | None = PrioritizedConfig.alpha,
        beta: float | None = PrioritizedConfig.beta,
        beta_final: float = PrioritizedConfig.beta_final,
        epsilon: float = PrioritizedConfig.epsilon,
        normalize: Normalize = PrioritizedConfig.normalize,
        clip_td_error: float | None = PrioritizedConfig.clip_td_error,
        **kwargs: Any,
    ) -> None:
        config = PrioritizedConfig(priority, alpha, beta, beta_final, epsilon, normalize, clip_td_error)
        sampler = RankSampler(config) if priority == "rank" else ProportionalSampler(config)
        super().__init__(*args, sampler=sampler, **kwargs)
