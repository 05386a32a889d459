"""Stochastic gradient descent with experience replay inside buffers: random (SGD-ER) and reverse (SGD-RER)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from rlopt.replay import Replay, ReverseReplay
from rlopt.replay.windows import newest_first
from rlopt.sysid._kernels import buffer_sgd
from rlopt.sysid.averaged_sgd import AveragedSGD, Mark
from rlopt.sysid.links import LinkName, ScalarFunction
from rlopt.sysid.step_size import StepRule
from rlopt.sysid.trajectory import as_trajectories

FloatArray = NDArray[np.float64]
Average = Literal["buffer_ends", "all", "last"]

_BLOCK_SAMPLES = 1 << 18  # samples per call of the inner loop; bounds the memory of random orders


class _BufferSGD(AveragedSGD):
    """SGD over consecutive disjoint buffers of `gap + buffer_size` samples."""

    def __init__(
        self,
        *,
        buffer_size: int,
        gap: int,
        step_size: float | StepRule,
        tail_start: float,
        average: Average,
        guard: float | None,
        link: LinkName | ScalarFunction,
        slope: float,
        support: ArrayLike | None,
        num_samples: int | None,
    ) -> None:
        super().__init__(
            step_size=step_size, tail_start=tail_start, link=link, slope=slope, support=support, num_samples=num_samples
        )
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be >= 1, got {buffer_size}.")
        if gap < 0:
            raise ValueError(f"gap must be >= 0, got {gap}.")
        if average not in ("buffer_ends", "all", "last"):
            raise ValueError(f"average must be 'buffer_ends', 'all' or 'last', got {average!r}.")
        if guard is not None and not guard > 0.0:
            raise ValueError(f"guard must be > 0 or None, got {guard}.")
        self._buffer_size = self.buffer_size = buffer_size
        self.gap = gap
        self.average = average
        self.guard = guard
        self._average_last = average == "last"

    @property
    def _unit_length(self) -> int:
        return self.gap + self.buffer_size

    def _make_weights(self, shape: tuple[int, int]) -> FloatArray:
        self.guarded_ = False
        return np.zeros(shape)

    @abstractmethod
    def _orders(self, num_buffers: int) -> NDArray[np.int64]:
        """Positions inside each buffer, (num_buffers, B) or (1, B), in the order in which they are learned from."""

    def _learn(self, x: FloatArray, y: FloatArray, first: int, stop: int) -> int:
        length = self._unit_length
        block = max(1, _BLOCK_SAMPLES // length)
        for begin in range(first, stop, block):
            end = min(stop, begin + block)
            self._look_out(x[begin * length : end * length])
            self._replay(x, y, begin, end, length, self._orders(end - begin))
        return (stop - first) * (self.buffer_size if self.average == "all" else 1)

    def _replay(self, x: FloatArray, y: FloatArray, first: int, stop: int, length: int, orders: NDArray[np.int64]) -> None:
        buffer_sgd(
            x, y, first, stop, length, orders, 2.0 * self.step_size_, self._weights, self._total, self.average == "all",
            self._support, self._link.compiled, self._link.slope,
        )  # fmt: skip

    def _look_out(self, x: FloatArray) -> None:
        if self.guard is not None and np.einsum("ij,ij->i", x, x).max(initial=0.0) > self.guard:
            self.guarded_ = True

    def _last(self) -> FloatArray:
        return np.zeros_like(self._weights) if self.guarded_ else super()._last()

    def _mean_since(self, mark: Mark) -> FloatArray:
        return np.zeros_like(self._weights) if self.guarded_ else super()._mean_since(mark)


class SGDReplay(_BufferSGD):
    """SGD with experience replay (SGD-ER): in each buffer, `buffer_size` uniform draws with replacement from that buffer.

    Much better than `SGD` when the noise is independent of the samples x (regression on a Markov chain), and there also better than
    reverse replay. On a trajectory, where the noise drives the next state, it keeps a bias.

    Differs from the paper's code: what a trajectory leaves after its last whole buffer is not used.

    Args:
        buffer_size: B, samples that are drawn from, and draws, per buffer, >= 1; 100 as in `SGDReverseReplay`. For regression on a
            Markov chain the authors take as many as the chain takes to mix.
        gap: Samples left out before each buffer, >= 0.
        step_size: A number > 0, or a rule of `rlopt.sysid.step_size_from_rule`. Note the factor 2 in `SGD`.
        tail_start: Share of the buffers before the average begins, in [0, 1).
        average: Iterates of the tail that are averaged: at "buffer_ends", "all", or the "last" iterate only.
        guard: Largest squared norm of x that is believed; a larger one makes the estimate 0 and sets `guarded_`. None: no guard.
        link: phi, see `rlopt.sysid.links.make_link`.
        slope: Slope of the leaky ReLU.
        support: Boolean (k, p): entries of [A B] that may differ from zero. None: all.
        num_samples: Length of the stream, for `partial_fit` with a step rule or an exact tail.
        seed: Seed of the draws.

    Raises:
        ValueError: For arguments outside these sets.

    References: Nagaraj, Wu, Bresler, Jain, Netrapalli, Least squares regression with Markovian data, NeurIPS 2020, arXiv
    2006.08916.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((20_000, 1))
        >>> SGDReplay(buffer_size=50, step_size=0.01, seed=0).fit((x, 0.5 * x)).A_.round(6).tolist()
        [[0.5]]
    """

    def __init__(
        self,
        *,
        buffer_size: int = 100,
        gap: int = 0,
        step_size: float | StepRule = "1/(2R)",
        tail_start: float = 0.5,
        average: Average = "buffer_ends",
        guard: float | None = None,
        link: LinkName | ScalarFunction = "identity",
        slope: float = 0.5,
        support: ArrayLike | None = None,
        num_samples: int | None = None,
        seed: int | np.random.SeedSequence | None = None,
    ) -> None:
        super().__init__(
            buffer_size=buffer_size, gap=gap, step_size=step_size, tail_start=tail_start, average=average, guard=guard,
            link=link, slope=slope, support=support, num_samples=num_samples,
        )  # fmt: skip
        self.seed = seed

    def _make_weights(self, shape: tuple[int, int]) -> FloatArray:
        self._rng = np.random.default_rng(self.seed)
        return super()._make_weights(shape)

    def _orders(self, num_buffers: int) -> NDArray[np.int64]:
        # Scaled doubles: the draws do not depend on how the stream is cut into calls.
        draws = self._rng.random((num_buffers, self.buffer_size))
        return self.gap + (draws * self.buffer_size).astype(np.int64)


class SGDReverseReplay(_BufferSGD):
    """SGD with reverse experience replay (SGD-RER): each buffer is learned from newest sample first.

    The trajectory is cut into buffers of `gap + buffer_size` transitions. In each, the `buffer_size` newest are applied one after
    another, newest first, the `gap` oldest not at all, which makes successive buffers nearly independent:

        A <- A - 2 step_size (phi(A x_t) - x_(t+1)) x_t',    t from the newest down.

    The estimate is the mean of the iterates at the ends of the buffers of the tail. A carries over from buffer to buffer.

    Why backwards: the noise of step t is independent of x_t and of everything before it. Going backwards, every factor that
    multiplies this noise later on comes from *earlier* states, so a buffer that starts at the true A ends at it on average, for any
    step size; going forwards the factors depend on the noise, and the iterates are biased. With noise that does not drive the
    states (regression on a Markov chain) this advantage vanishes, and `SGDReplay` is better.

    Args:
        buffer_size: B, samples learned from per buffer, >= 1. 100 as in the published experiment.
        gap: u, samples left out before each, >= 0. 10 as in the published experiment.
        step_size: A number > 0, or a rule of `rlopt.sysid.step_size_from_rule`.
        tail_start: Share of the buffers before the average begins, in [0, 1).
        average: Iterates of the tail that are averaged: at "buffer_ends", "all", or the "last" iterate only.
        guard: Largest squared norm of x that is believed; a larger one makes the estimate 0 and sets `guarded_`, as the theory
            does it. None: no guard.
        order: "reverse", or "forward": the same samples oldest first, to see what the order does.
        link: phi, see `rlopt.sysid.links.make_link`; the derivative of phi is left out on purpose, which makes the loss convex.
        slope: Slope of the leaky ReLU.
        support: Boolean (k, p): entries of [A B] that may differ from zero. None: all.
        num_samples: Length of the stream, for `partial_fit` with a step rule or an exact tail.

    Raises:
        ValueError: For arguments outside these sets.

    Differs from the paper: the remainder of a trajectory after its last whole buffer is dropped at every reset. How the
    iterates are averaged and how the guard acts could not be checked against its text.
    References: Kowshik, Nagaraj, Jain, Netrapalli, Streaming linear system identification with reverse experience replay, NeurIPS
    2021, arXiv 2103.05896; the same, Near-optimal offline and streaming algorithms for learning non-linear dynamical systems,
    NeurIPS 2021, arXiv 2105.11558.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> states = np.zeros((100_001, 1))
        >>> for t in range(100_000):
        ...     states[t + 1] = 0.9 * states[t] + rng.standard_normal(1)
        >>> forward = SGDReverseReplay(order="forward")
        >>> SGDReverseReplay().fit(states).A_.round(2).tolist(), forward.fit(states).A_.round(2).tolist()
        ([[0.89]], [[0.78]])
    """

    def __init__(
        self,
        *,
        buffer_size: int = 100,
        gap: int = 10,
        step_size: float | StepRule = "1/(2R)",
        tail_start: float = 0.5,
        average: Average = "buffer_ends",
        guard: float | None = None,
        order: Literal["reverse", "forward"] = "reverse",
        link: LinkName | ScalarFunction = "identity",
        slope: float = 0.5,
        support: ArrayLike | None = None,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(
            buffer_size=buffer_size, gap=gap, step_size=step_size, tail_start=tail_start, average=average, guard=guard,
            link=link, slope=slope, support=support, num_samples=num_samples,
        )  # fmt: skip
        if order not in ("reverse", "forward"):
            raise ValueError(f"order must be 'reverse' or 'forward', got {order!r}.")
        self.order = order

    def _orders(self, num_buffers: int) -> NDArray[np.int64]:
        order = self._unit_length - 1 + newest_first(self.buffer_size)
        return (order if self.order == "reverse" else order[::-1].copy())[None]

    def partial_fit_replay(self, replay: Replay) -> Self:
        """Learn from one buffer: one batch that a reverse replay hands out.

        Call it whenever `gap + buffer_size` new transitions came into the replay, and the result is that of the same stream
        given to `partial_fit`, bit for bit if the space of the observations is float64. The replay decides what is learned from
        in which order: a batch begins at its newest transition and goes backwards.

        Args:
            replay: A reverse replay with Box observations and actions, `mix=0`, `sequential=False`, `n_steps=1`, and one
                environment.

        Raises:
            ValueError: For a replay with other options, or for `order="forward"`.

        Example:
            >>> from gymnasium import spaces
            >>> box = spaces.Box(-np.inf, np.inf, (1,), np.float64)
            >>> replay = ReverseReplay(110, box, spaces.Box(-1.0, 1.0, (1,)), device="cpu", seed=0)
            >>> estimator = SGDReverseReplay(step_size=0.005)
            >>> rng, x = np.random.default_rng(0), np.zeros((1, 1))
            >>> for t in range(1, 110 * 50 + 1):
            ...     u = rng.uniform(-1.0, 1.0, (1, 1)).astype(np.float32)
            ...     new = 0.5 * x + u + rng.standard_normal((1, 1))
            ...     replay.add(x, new, u, np.zeros(1), np.zeros(1, bool), [{}])
            ...     x = new
            ...     if t % 110 == 0:
            ...         estimator = estimator.partial_fit_replay(replay)
            >>> estimator.A_.round(1).tolist(), estimator.B_.round(1).tolist()
            ([[0.5]], [[1.0]])
        """
        config = replay.sampler.config if isinstance(replay, ReverseReplay) else None
        if config is None or config.mix or config.sequential or replay.n_steps != 1 or replay.storage.n_envs != 1:
            raise ValueError(
                "replay must be a ReverseReplay with mix=0, sequential=False, n_steps=1 and one environment, "
                f"got {type(replay).__name__} with {config}; pass other replays to fit."
            )
        if self.order != "reverse":
            raise ValueError("order must be 'reverse' to learn from a ReverseReplay, got 'forward'.")
        self._begin_stream(lambda: as_trajectories(replay)[0])
        batch = replay.sample(self.buffer_size)
        assert isinstance(batch.observations, torch.Tensor)
        assert isinstance(batch.next_observations, torch.Tensor)
        x = torch.cat([batch.observations.double(), batch.actions.double()], dim=1).cpu().numpy()
        y = batch.next_observations.double().cpu().numpy()
        due = self._next_mark()
        self._look_out(x)
        self._replay(x, y, 0, 1, len(x), np.arange(len(x))[None])
        self._num_iterates += len(x) if self.average == "all" else 1
        self._units += 1
        self.num_samples_ += self._unit_length
        return self._finish_units(due)
