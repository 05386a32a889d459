"""What the Q-learners share: the weights and what they stand for, checks, and one pass over the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from rlopt.sysid._q_kernels import run_updates
from rlopt.sysid.estimator import log_checkpoints
from rlopt.sysid.transitions import FeatureMap, FloatArray, IntArray, Transitions

_Rows = tuple[FloatArray, IntArray, IntArray]


class QHistory(NamedTuple):
    """Weights along the way, each as if the data had ended there.

    Attributes:
        samples: Transitions met, (H,).
        num_updates: Updates of w done, (H,).
        weights: (H, d).
    """

    samples: IntArray
    num_updates: IntArray
    weights: FloatArray


class Plan(NamedTuple):
    """What is to be done with some transitions.

    Attributes:
        order: Transitions in the order of the updates, (U,).
        samples: Transitions that must be there before each group of updates, (E,), increasing.
        updates: Updates done after each group, (E,).
        num_used: Transitions that are not needed any more.
    """

    order: IntArray
    samples: IntArray
    updates: IntArray
    num_used: int


class LinearQ:
    """What all learners have in common: the weights, what they stand for, and one pass over the data."""

    weights_: FloatArray
    history_: QHistory
    num_samples_: int
    num_updates_: int
    _frozen = False  # whether θ is a copy of w that is renewed now and then, or w itself

    def __init__(self, features: FeatureMap, discount: float, step_size: float, initial_weights: ArrayLike | None) -> None:
        if not callable(features):
            features = np.ascontiguousarray(features, np.float64)
            if features.ndim != 3 or not np.isfinite(features).all():
                raise ValueError(f"features must be a function or a finite table of shape (S, A, d), got shape {features.shape}.")
        if not 0.0 <= discount <= 1.0:
            raise ValueError(f"discount must be in [0, 1], got {discount}.")
        if not 0.0 < step_size < np.inf:
            raise ValueError(f"step_size must be > 0 and finite, got {step_size}.")
        if initial_weights is not None:
            initial_weights = np.array(initial_weights, np.float64)
            if initial_weights.ndim != 1 or not np.isfinite(initial_weights).all():
                raise ValueError(f"initial_weights must be finite and have shape (d,), got shape {initial_weights.shape}.")
            if not callable(features):
                _check_weights(initial_weights, features.shape[-1])
        self.features = features
        self.discount = float(discount)
        self.step_size = float(step_size)
        self.initial_weights = initial_weights

    def q_values(self, observations: ArrayLike) -> FloatArray:
        """Return <w, φ(s,a)> for observations (N, ...) and all actions, (N, A).

        Raises:
            ValueError: Before the first fit, or for observations that the features do not have.
        """
        if not hasattr(self, "weights_"):
            raise ValueError("q_values must come after fit or partial_fit; call fit(transitions) first.")
        return np.asarray(_features_of(self.features, np.asarray(observations)) @ self.weights_)

    def _start(self) -> None:
        self.num_samples_ = self.num_updates_ = 0
        self._weights: FloatArray = np.empty(0)  # w
        self._target: FloatArray = np.empty(0)  # θ
        self.history_ = QHistory(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 0)))

    def _look_up(self, data: Transitions) -> _Rows:
        """Return a table of features (M, A, d), and its row for each observation and each next observation, (T,)."""
        if callable(self.features):
            observed = _features_of(self.features, data.observations)
            table = np.concatenate([observed, _features_of(self.features, data.next_observations)])
            rows = np.arange(len(data))
            next_rows = rows + len(data)
        else:
            table = self.features
            rows = _check_states(data.observations, len(table))
            next_rows = _check_states(data.next_observations, len(table))
        if data.actions.max() >= table.shape[1]:
            raise ValueError(f"actions must be in [0, {table.shape[1]}) for these features, got {data.actions.max()}.")
        return np.ascontiguousarray(table), rows, next_rows

    def _make_weights(self, num_features: int) -> None:
        if len(self._weights) == 0:
            given = np.zeros(num_features) if self.initial_weights is None else self.initial_weights
            _check_weights(given, num_features)
            self._weights, self._target = given.copy(), given.copy()
        elif len(self._weights) != num_features:
            raise ValueError(f"features must have the same d as before, {len(self._weights)}, got {num_features}.")

    def _run(self, data: Transitions, found: _Rows, order: IntArray, target_updates: IntArray, records: IntArray) -> FloatArray:
        """Do the updates and return what the weights were after the numbers of updates in `records`, (H, d)."""
        table, rows, next_rows = found
        self._make_weights(table.shape[-1])
        history = np.empty((len(records), table.shape[-1]))
        run_updates(
            table,
            rows,
            next_rows,
            data.actions,
            data.rewards,
            data.terminated,
            order,
            self._weights,
            self._target,
            self._frozen,
            target_updates,
            records,
            self.discount,
            self.step_size,
            history,
        )
        self.num_updates_ += len(order)
        self.weights_ = (self._target if self._frozen else self._weights).copy()
        return history


class OnePass(LinearQ, ABC):
    """A learner that meets each transition once, in groups of consecutive ones."""

    _pending: Transitions | None

    def fit(self, transitions: Transitions, num_checkpoints: int | None = 20) -> Self:
        """Learn from the initial weights on, forgetting earlier data.

        Args:
            transitions: The data, in time order.
            num_checkpoints: Entries of `history_`, >= 1, at numbers of transitions that are equally distant on a logarithmic scale
                and end with all of them. None: one wherever the weights change, (H, d) in all.

        Raises:
            ValueError: If data and features do not fit together, or `num_checkpoints` is below 1.
        """
        points = (
            None
            if num_checkpoints is None
            else log_checkpoints(len(transitions), check_whole("num_checkpoints", num_checkpoints, 1))
        )
        self._start()
        self._advance(transitions, points)
        return self

    def partial_fit(self, transitions: Transitions, *, new_trajectory: bool = False) -> Self:
        """Go on with further data; in pieces they give the same weights as at once, bit for bit. `history_` gets one entry more.

        Args:
            transitions: The data, in time order. They continue the last trajectory unless that has ended, or the first observation
                is another one than it led to.
            new_trajectory: Whether they begin a new trajectory in any case, for instance after `collect`, which resets.

        Raises:
            ValueError: If data and features do not fit together.
        """
        if not hasattr(self, "num_samples_"):
            self._start()
        if self._pending is not None:
            continues = np.array_equal(self._pending.next_observations[-1], transitions.observations[0])
            if new_trajectory or not continues:
                self._pending = self._pending.ended()
        self._advance(transitions, np.array([len(transitions)]))
        return self

    def _start(self) -> None:
        super()._start()
        self._pending = None

    @abstractmethod
    def _plan(self, data: Transitions) -> Plan:
        """Say what is to be done with the transitions that are there."""

    def _target_groups(self, num_groups: int) -> IntArray:
        """Groups (0, 1, ...) of the plan after which θ is renewed."""
        return np.empty(0, np.int64)

    def _advance(self, transitions: Transitions, points: IntArray | None) -> None:
        data = transitions if self._pending is None else Transitions.concatenate([self._pending, transitions])
        num_old = len(data) - len(transitions)
        plan = self._plan(data)
        renewals = self._target_groups(len(plan.samples))
        if points is None:
            points = plan.samples[renewals] - num_old if self._frozen else plan.samples - num_old
        done = np.searchsorted(plan.samples, points + num_old, side="right")  # groups done at each point
        records = np.concatenate([[0], plan.updates])[done]
        num_updates = self.num_updates_ + records
        weights = self._run(data, self._look_up(data), plan.order, plan.updates[renewals], records)
        new = QHistory(self.num_samples_ + points, num_updates, weights)
        old = self.history_
        self.history_ = new if len(old.samples) == 0 else QHistory(*(np.concatenate(pair) for pair in zip(old, new, strict=True)))
        self.num_samples_ += len(transitions)
        self._pending = data[plan.num_used :] if plan.num_used < len(data) else None


def _features_of(features: FeatureMap, observations: NDArray[Any]) -> FloatArray:
    """φ of observations (N, ...) for all actions, (N, A, d)."""
    if callable(features):
        values = np.asarray(features(observations), np.float64)
        if values.ndim != 3 or len(values) != len(observations):
            raise ValueError(f"features must return shape ({len(observations)}, A, d), got {values.shape}.")
        if not np.isfinite(values).all():
            raise ValueError(f"features must be finite, got {np.count_nonzero(~np.isfinite(values))} numbers that are not.")
        return values
    return features[_check_states(observations, len(features))]


def _check_states(observations: NDArray[Any], num_states: int) -> IntArray:
    if observations.ndim != 1 or observations.dtype.kind not in "iu":
        raise ValueError(
            f"observations must be whole numbers of shape (T,) for a table of features, got {observations.dtype} of shape "
            f"{observations.shape}; use a function as features."
        )
    states = observations.astype(np.int64, copy=False)
    if states.min() < 0 or states.max() >= num_states:
        raise ValueError(
            f"observations must be in [0, {num_states}) for this table of features, got {states.min()}..{states.max()}."
        )
    return states


def _check_weights(weights: FloatArray, num_features: int) -> None:
    if len(weights) != num_features:
        raise ValueError(f"initial_weights must have shape ({num_features},), one for each feature, got ({len(weights)},).")


def check_whole(name: str, value: int, at_least: int) -> int:
    if isinstance(value, bool) or value != int(value) or value < at_least:
        raise ValueError(f"{name} must be a whole number >= {at_least}, got {value!r}.")
    return int(value)
