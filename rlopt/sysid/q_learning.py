"""Q-learning with linear features from one stream of dependent data: plain, with replay, Q-Rex and Q-RexDaRe.

All learn weights w with Q(s,a) ≈ <w, φ(s,a)> by steps

    w ← w + η (r + γ max_a' <θ, φ(s',a')> - <w, φ(s,a)>) φ(s,a),        without the max term where the environment terminated,

and differ in the order in which they meet the data and in the weights θ that they bootstrap from.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import Self

from rlopt.sysid._q_base import LinearQ, OnePass, Plan, QHistory, check_whole
from rlopt.sysid.estimator import log_checkpoints
from rlopt.sysid.q_buffers import Order, find_buffers, update_order
from rlopt.sysid.transitions import FeatureMap, IntArray, Transitions

__all__ = ["QHistory", "QLearning", "QLearningReplay", "QRex", "QRexDaRe"]


class QLearning(OnePass):
    """Semi-gradient Q-learning: one update per transition, in time order, bootstrapped from the newest weights (θ = w).

    With general linear features it may diverge (`rlopt/BairdStar-v0`); the weights are then huge, infinite or not numbers.

    Args:
        features: φ, a table (S, A, d) or a function of observations; see `rlopt.sysid.transitions.FeatureMap`.
        discount: γ in [0, 1].
        step_size: η > 0.
        initial_weights: (d,); zeros by default.

    Attributes:
        weights_: w, (d,).
        history_: `QHistory`.
        num_samples_: Transitions met.
        num_updates_: Updates done.

    Raises:
        ValueError: For an argument outside its range.

    References: Watkins, Dayan, Q-learning, Machine Learning 8, 1992.

    Example: one state, reward 1, γ = 0.5, hence Q = 2.
        >>> from rlopt.sysid.transitions import tabular_features
        >>> stay = np.zeros(1000, np.int64)
        >>> learner = QLearning(tabular_features(1, 1), discount=0.5, step_size=0.1)
        >>> learner.fit(Transitions(stay, stay, np.ones(1000), stay)).q_values([0]).round(6).tolist()
        [[2.0]]
    """

    def __init__(
        self, features: FeatureMap, discount: float, *, step_size: float = 0.1, initial_weights: ArrayLike | None = None
    ) -> None:
        super().__init__(features, discount, step_size, initial_weights)

    def _plan(self, data: Transitions) -> Plan:
        steps = np.arange(len(data))
        return Plan(steps, steps + 1, steps + 1, len(data))


class _Buffered(OnePass):
    """Meets the data in buffers of `gap + buffer_size` consecutive transitions, of which the oldest `gap` are not learned from."""

    _order: Order

    def __init__(
        self,
        features: FeatureMap,
        discount: float,
        step_size: float,
        buffer_size: int,
        gap: int,
        seed: int | None,
        initial_weights: ArrayLike | None,
    ) -> None:
        super().__init__(features, discount, step_size, initial_weights)
        self.buffer_size = check_whole("buffer_size", buffer_size, 1)
        self.gap = check_whole("gap", gap, 0)
        self.seed = seed

    def _start(self) -> None:
        super()._start()
        self._rng = np.random.default_rng(self.seed)

    def _plan(self, data: Transitions) -> Plan:
        starts, stops, num_used = find_buffers(data, self.gap, self.buffer_size)
        order = update_order(starts, stops, self._order, self._rng)
        return Plan(order, stops, np.cumsum(stops - starts), num_used)


class QLearningReplay(_Buffered):
    """Q-learning with experience replay: updates from uniform draws, with replacement, out of the current buffer.

    As many draws as transitions retained are made when a buffer is full, and bootstrap from the newest weights (θ = w). Buffers
    are those of `QRex`.

    Args:
        features: φ, a table (S, A, d) or a function of observations; see `rlopt.sysid.transitions.FeatureMap`.
        discount: γ in [0, 1].
        step_size: η > 0.
        buffer_size: Transitions of a buffer that are drawn from, B >= 1.
        gap: Transitions before them that are skipped, u >= 0.
        seed: Seed of the draws.
        initial_weights: (d,); zeros by default.

    Attributes:
        weights_: w, (d,).
        history_: `QHistory`.
        num_samples_: Transitions met.
        num_updates_: Updates done.

    Raises:
        ValueError: For an argument outside its range.

    Example:
        >>> from rlopt.sysid.transitions import tabular_features
        >>> stay = np.zeros(1000, np.int64)
        >>> learner = QLearningReplay(tabular_features(1, 1), discount=0.5, step_size=0.1, buffer_size=50)
        >>> learner.fit(Transitions(stay, stay, np.ones(1000), stay)).q_values([0]).round(6).tolist()
        [[2.0]]
    """

    _order: Order = "random"

    def __init__(
        self,
        features: FeatureMap,
        discount: float,
        *,
        step_size: float = 0.1,
        buffer_size: int = 100,
        gap: int = 0,
        seed: int = 0,
        initial_weights: ArrayLike | None = None,
    ) -> None:
        super().__init__(features, discount, step_size, buffer_size, gap, seed, initial_weights)


class QRex(_Buffered):
    """Q-Rex: online target learning with reverse experience replay.

    The target weights θ stay as they are while `num_buffers` buffers are worked through, each newest transition first; then
    θ ← w, and w goes on from there. Buffers are consecutive and do not overlap: of each gap + buffer_size transitions the oldest
    `gap` are skipped, so that buffers are nearly independent. A buffer never spans two trajectories: an end closes it, and it is
    dropped if it then has no more than `gap` transitions. Data that do not fill a buffer, or buffers that do not fill a target
    period, wait for more data. The last θ is returned, without averaging.

    Online targets, reverse order and reuse of data (`QRexDaRe`) are the paper's; where the gap lies, what is returned, and what
    happens at the end of a trajectory are rlopt's choices. A summary of the analysis (Jiang et al.) says that it needs
    `step_size * buffer_size` <= 1/3, which the defaults fulfil. Nothing says that Q-Rex beats Q-learning on small tabular problems.

    Args:
        features: φ, a table (S, A, d) or a function of observations; see `rlopt.sysid.transitions.FeatureMap`.
        discount: γ in [0, 1].
        step_size: η > 0.
        buffer_size: Transitions of a buffer that are learned from, B >= 1.
        gap: Transitions before them that are skipped, u >= 0.
        num_buffers: Buffers of a target period, N >= 1.
        order: "reverse" is the method; "forward" (oldest first) and "random" (uniform draws with replacement) are for comparison.
        seed: Seed of order "random" only.
        initial_weights: (d,); zeros by default.

    Attributes:
        weights_: θ, (d,): w at the end of the last complete target period.
        history_: `QHistory`; with `num_checkpoints=None` one entry for each θ.
        num_samples_: Transitions met.
        num_updates_: Updates of w done.
        num_target_updates_: How often θ was renewed.

    Raises:
        ValueError: For an argument outside its range, or a seed for an order that is not random.

    References: Agarwal, Chaudhuri, Jain, Nagaraj, Netrapalli, Online target Q-learning with reverse experience replay, ICLR 2022,
    arXiv 2110.08440; Jiang, Li, Xue, A tighter convergence proof of reverse experience replay, 2024, arXiv 2408.16999.

    Example:
        >>> from rlopt.sysid.transitions import tabular_features
        >>> stay = np.zeros(44_000, np.int64)
        >>> learner = QRex(tabular_features(1, 1), discount=0.5).fit(Transitions(stay, stay, np.ones(44_000), stay))
        >>> learner.q_values([0]).round(4).tolist(), learner.num_target_updates_
        ([[2.0]], 20)
    """

    _frozen = True
    num_target_updates_: int

    def __init__(
        self,
        features: FeatureMap,
        discount: float,
        *,
        step_size: float = 0.005,
        buffer_size: int = 50,
        gap: int = 5,
        num_buffers: int = 40,
        order: Order = "reverse",
        seed: int | None = None,
        initial_weights: ArrayLike | None = None,
    ) -> None:
        super().__init__(features, discount, step_size, buffer_size, gap, seed, initial_weights)
        self.num_buffers = check_whole("num_buffers", num_buffers, 1)
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}.")
        if seed is not None and order != "random":
            raise ValueError(f"seed has no effect with order={order!r}; drop it, or use order='random'.")
        self._order = order

    @property
    def order(self) -> Order:
        """The order of updates inside a buffer."""
        return self._order

    def _start(self) -> None:
        super()._start()
        self.num_target_updates_ = self._num_groups = 0

    def _target_groups(self, num_groups: int) -> IntArray:
        first = self._num_groups
        self._num_groups += num_groups
        groups = np.flatnonzero((np.arange(first, self._num_groups) + 1) % self.num_buffers == 0)
        self.num_target_updates_ += len(groups)
        return groups


class QRexDaRe(LinearQ):
    """Q-RexDaRe: Q-Rex with data reuse. All target periods work through the same buffers, so that the data may be few.

    With N buffers and K = `num_targets` the first N·(gap + buffer_size) transitions (fewer where trajectories end) are read, K
    times over; later ones never. For the method itself see `QRex`. As K grows the weights settle at a fixed point that belongs to
    the data read, and is off Q* by their sampling error.

    Args:
        features: φ, a table (S, A, d) or a function of observations; see `rlopt.sysid.transitions.FeatureMap`.
        discount: γ in [0, 1].
        step_size: η > 0.
        buffer_size: Transitions of a buffer that are learned from, B >= 1.
        gap: Transitions before them that are skipped, u >= 0.
        num_buffers: Buffers that are read, N >= 1; None: all that the data fill.
        num_targets: Target periods, K >= 1.
        initial_weights: (d,); zeros by default.

    Attributes:
        weights_: θ after the last target period, (d,).
        history_: `QHistory`; entries at target periods that are equally distant on a logarithmic scale, or all.
        num_samples_: Transitions read, N·(gap + buffer_size) if no trajectory ends in them.
        num_updates_: Updates of w done.
        num_target_updates_: How often θ was renewed, K.

    Raises:
        ValueError: For an argument outside its range.

    References: As for `QRex`.

    Example:
        >>> from rlopt.sysid.transitions import tabular_features
        >>> stay = np.zeros(550, np.int64)
        >>> learner = QRexDaRe(tabular_features(1, 1), 0.5, step_size=0.1).fit(Transitions(stay, stay, np.ones(550), stay))
        >>> learner.q_values([0]).round(6).tolist(), learner.num_target_updates_
        ([[2.0]], 60)
    """

    _frozen = True
    num_target_updates_: int

    def __init__(
        self,
        features: FeatureMap,
        discount: float,
        *,
        step_size: float = 0.005,
        buffer_size: int = 50,
        gap: int = 5,
        num_buffers: int | None = None,
        num_targets: int = 60,
        initial_weights: ArrayLike | None = None,
    ) -> None:
        super().__init__(features, discount, step_size, initial_weights)
        self.buffer_size = check_whole("buffer_size", buffer_size, 1)
        self.gap = check_whole("gap", gap, 0)
        self.num_buffers = None if num_buffers is None else check_whole("num_buffers", num_buffers, 1)
        self.num_targets = check_whole("num_targets", num_targets, 1)

    def fit(self, transitions: Transitions, num_checkpoints: int | None = 20) -> Self:
        """Learn from the initial weights on, forgetting earlier data.

        Args:
            transitions: The data, in time order.
            num_checkpoints: Entries of `history_`, >= 1, at target periods; None: all of them.

        Raises:
            ValueError: If data and features do not fit together, or the data fill too few buffers.
        """
        starts, stops, _ = find_buffers(transitions, self.gap, self.buffer_size)
        wanted = self.num_buffers or max(len(stops), 1)
        if len(stops) < wanted:
            raise ValueError(
                f"transitions must fill {wanted} buffers of {self.gap} + {self.buffer_size}, got {len(transitions)}, which fill "
                f"{len(stops)}; give more, or use smaller or fewer buffers."
            )
        data = transitions[: stops[wanted - 1]]
        order = update_order(starts[:wanted], stops[:wanted], "reverse", np.random.default_rng(0))
        every = np.arange(1, self.num_targets + 1)
        kept = (
            every
            if num_checkpoints is None
            else log_checkpoints(self.num_targets, check_whole("num_checkpoints", num_checkpoints, 1))
        )
        self._start()
        found, end = self._look_up(data), np.array([len(order)])
        weights = np.concatenate([self._run(data, found, order, end, end) for _ in every])  # (K, d)
        self.num_samples_, self.num_target_updates_ = len(data), self.num_targets
        self.history_ = QHistory(np.full(len(kept), len(data)), kept * len(order), weights[kept - 1])
        return self
