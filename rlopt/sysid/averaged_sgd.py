"""Base of the estimators that make one pass over a stream and average the last part of their iterates."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from rlopt.sysid.estimator import Estimator, prefix
from rlopt.sysid.links import LinkName, ScalarFunction, make_link
from rlopt.sysid.step_size import StepRule, StepSize, rule_samples, step_size_from_rule
from rlopt.sysid.trajectory import Data, Trajectory, as_trajectories

FloatArray = NDArray[np.float64]


class Mark(NamedTuple):
    """Running sum of iterates after some units of the stream."""

    units: int
    total: FloatArray
    num_iterates: int


class AveragedSGD(Estimator):
    """Base of the estimators that make one pass over the data and average the last part of their iterates.

    The stream is cut into units (samples or buffers); a subclass learns from one unit after the other. Iterates of the units
    after the first `tail_start` share of them are averaged.

    With `partial_fit` the data come in pieces. If `num_samples` is given, the result is that of `fit` on all of them; until the
    tail begins, the last iterate is the estimate. Without it the average reaches back to the last but one power of two of the
    number of units, which is the last 1/2 to 3/4 of the stream. Memory does not grow with the stream.
    """

    def __init__(
        self,
        *,
        step_size: float | StepRule,
        tail_start: float,
        link: LinkName | ScalarFunction,
        slope: float,
        support: ArrayLike | None,
        num_samples: int | None,
    ) -> None:
        if not isinstance(step_size, str) and not step_size > 0.0:
            raise ValueError(f"step_size must be > 0, '1/(2R)', '1/(8RB)' or '5ln(T)/T', got {step_size}.")
        if not 0.0 <= tail_start < 1.0:
            raise ValueError(f"tail_start must be in [0, 1), got {tail_start}.")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples must be > 0, got {num_samples}.")
        self.step_size = step_size
        self.tail_start = tail_start
        self.num_samples = num_samples
        self._link = make_link(link, slope)
        self._support_given = support
        self._started = False

    # What a subclass says about itself.

    @property
    @abstractmethod
    def _unit_length(self) -> int:
        """Samples of a unit."""

    _buffer_size: int | None = None  # B of the step rule
    _average_last = False  # whether the last iterate is the estimate, without an average

    @abstractmethod
    def _make_weights(self, shape: tuple[int, int]) -> FloatArray:
        """Return the first iterate(s)."""

    @abstractmethod
    def _learn(self, x: FloatArray, y: FloatArray, first: int, stop: int) -> int:
        """Learn from the units `first` to `stop - 1` of the rows, add to `_total`, and return how many iterates were added."""

    # The stream.

    def _begin(self, part: Trajectory, num_samples: int | None) -> None:
        x = part.regressors
        shape = (part.next_states.shape[1], x.shape[1])
        self._num_states = part.num_states
        self._support = self._check_support(self._support_given, shape)
        if isinstance(self.step_size, str):
            if num_samples is None:
                raise ValueError(f"num_samples must be given for a stream with step_size {self.step_size!r}.")
            step = step_size_from_rule(self.step_size, x, num_samples, self._buffer_size)
        else:
            step = StepSize(float(self.step_size), float("nan"))
        self.step_size_, self.scale_ = step
        self._weights = self._make_weights(shape)
        self._total = np.zeros(shape)
        self._num_iterates = self._units = self.num_samples_ = 0
        whole_stream_in_tail = self.num_samples is None or int(self.num_samples // self._unit_length * self.tail_start) == 0
        self._marks = [self._mark()] if whole_stream_in_tail else []
        self._pending_x = np.empty((0, shape[1]))
        self._pending_y = np.empty((0, shape[0]))
        self.weights_ = self._last()
        self._started = True

    def _mark(self) -> Mark:
        return Mark(self._units, self._total.copy(), self._num_iterates)

    def _advance(self, x: FloatArray, y: FloatArray, first: int, stop: int) -> None:
        if stop > first:
            self._num_iterates += self._learn(x, y, first, stop)
            self._units += stop - first

    def _last(self) -> FloatArray:
        return self._weights.copy() if self._weights.ndim == 2 else self._weights.mean(axis=0)

    def _mean_since(self, mark: Mark) -> FloatArray:
        if self._average_last or self._num_iterates == mark.num_iterates:
            return self._last()
        return (self._total - mark.total) / (self._num_iterates - mark.num_iterates)

    def _fit(self, parts: list[Trajectory], points: NDArray[np.int64]) -> FloatArray:
        num_samples = int(points[-1])
        self._begin(_head(parts, rule_samples(num_samples)), num_samples)
        length = self._unit_length
        ends = np.cumsum([len(part) for part in parts])
        starts = ends - [len(part) for part in parts]
        whole = np.array([len(part) // length for part in parts])
        if whole.sum() == 0:
            longest = max(len(part) for part in parts)
            raise ValueError(
                f"data must hold a trajectory of at least {length} transitions (one buffer), the longest has {longest}."
            )
        before = np.cumsum(whole) - whole
        # Units done after so many samples; what a trajectory leaves after its last whole unit is not used.
        place = np.searchsorted(ends, points, side="left")
        done = before[place] + (points - starts[place]) // length
        tails = np.floor(done * self.tail_start).astype(np.int64)
        tail_of = dict(zip(done.tolist(), tails.tolist(), strict=True))
        stops = sorted({*tail_of.keys(), *tail_of.values()})
        marks: dict[int, Mark] = {}
        estimates: dict[int, FloatArray] = {}
        for part, first, count in zip(parts, before.tolist(), whole.tolist(), strict=True):
            for stop in [*(stop for stop in stops if first <= stop < first + count), first + count]:
                self._advance(part.regressors, part.next_states, self._units - first, stop - first)
                if stop in tail_of.values():
                    marks.setdefault(stop, self._mark())
                if stop in tail_of:
                    estimates[stop] = self._mean_since(marks[tail_of[stop]])
        self._started = False  # the marks of a stream were not kept: `partial_fit` begins anew
        return np.stack([estimates[unit] for unit in done.tolist()])

    def partial_fit(self, data: Data, *, new_trajectory: bool = False) -> Self:
        """Learn from the next piece of a stream; the first call, and the first one after `fit`, begins a new stream.

        Args:
            data: Pairs of regressors (T, p) and targets (T, k), or a `Trajectory`, which go on from the piece before. An array
                of states (T + 1, d) goes on if its first row is the last one of the array before: T transitions are taken.
                Several trajectories, or a replay, are trajectories of their own.
            new_trajectory: Whether a new trajectory begins, for instance because the system was reset. The open buffer is then
                dropped: no buffer mixes two trajectories.

        Raises:
            ValueError: If a step rule is used without `num_samples`, for other dimensions than before, or if the first piece is too
                short for the step rule.
        """
        parts = as_trajectories(data)
        self._begin_stream(lambda: parts[0])
        for index, part in enumerate(parts):
            if new_trajectory or index > 0:
                self._pending_x, self._pending_y = self._pending_x[:0], self._pending_y[:0]
            self._feed(part.regressors, part.next_states)
        return self

    def _begin_stream(self, first: Callable[[], Trajectory]) -> None:
        if not self._started:
            if self.num_samples is None and self.tail_start != 0.5:
                raise ValueError(
                    f"num_samples must be given for a stream with tail_start {self.tail_start}; only 0.5 works without."
                )
            self._begin(first(), self.num_samples)

    def _finish_units(self, due: int) -> Self:
        """Keep the sum if it is due, and bring the estimate up to date."""
        if self._units == due:
            self._marks = [*self._marks[-1:], self._mark()]
        self.weights_ = self._mean_since(self._marks[0]) if self._marks else self._last()
        return self

    def _next_mark(self) -> int:
        """Units at which a sum has to be kept for the average of `partial_fit`."""
        if self.num_samples is None:
            return 1 << self._units.bit_length()  # the next power of two
        tail = int(self.num_samples // self._unit_length * self.tail_start)
        return tail if tail > self._units else sys.maxsize

    def _feed(self, x: FloatArray, y: FloatArray) -> None:
        if x.shape[1] != self._pending_x.shape[1] or y.shape[1] != self._pending_y.shape[1]:
            expected = (self._pending_x.shape[1], self._pending_y.shape[1])
            raise ValueError(
                f"data must have {expected[0]} regressors and {expected[1]} targets, got {x.shape[1]} and {y.shape[1]}."
            )
        self.num_samples_ += len(x)
        if len(self._pending_x):
            x, y = np.concatenate([self._pending_x, x]), np.concatenate([self._pending_y, y])
        length = self._unit_length
        first, whole = 0, len(x) // length
        while first < whole:
            due = self._next_mark()
            stop = min(whole, first + due - self._units)
            self._advance(x, y, first, stop)
            first = stop
            self._finish_units(due)
        self._pending_x, self._pending_y = x[whole * length :].copy(), y[whole * length :].copy()


def _head(parts: list[Trajectory], num_samples: int) -> Trajectory:
    """The first samples, for a step rule, over the ends of trajectories if need be."""
    kept = prefix(parts, num_samples)
    if len(kept) == 1:
        return kept[0]
    x, y = (np.concatenate([getattr(part, name) for part in kept]) for name in ("regressors", "next_states"))
    return Trajectory(x[:, : kept[0].num_states], y, x[:, kept[0].num_states :])
