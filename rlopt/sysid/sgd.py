"""Stochastic gradient descent on a stream of samples: forward, with dropped data, and in parallel chains."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.sysid._kernels import stream_sgd
from rlopt.sysid.averaged_sgd import AveragedSGD
from rlopt.sysid.links import LinkName, ScalarFunction
from rlopt.sysid.step_size import StepRule

FloatArray = NDArray[np.float64]


class _StreamSGD(AveragedSGD):
    """One update per sample, or per some samples, in order of time."""

    _num_chains = 1
    _spacing = 1

    @property
    def _unit_length(self) -> int:
        return 1

    def _make_weights(self, shape: tuple[int, int]) -> FloatArray:
        return np.zeros((self._num_chains, *shape))

    def _learn(self, x: FloatArray, y: FloatArray, first: int, stop: int) -> int:
        stream_sgd(
            x, y, first, stop, self._units - first, self._spacing, 2.0 * self.step_size_, self._weights, self._total,
            self._support, self._link.compiled, self._link.slope,
        )  # fmt: skip
        return stop - first


class SGD(_StreamSGD):
    """Constant-step SGD with tail averaging, one update per sample in order of time.

    For t = 1..T:  A <- A - 2 step_size (phi(A x_t) - y_t) x_t'.  The estimate is the mean of the iterates after the first
    `tail_start` share of the samples.

    On one trajectory of a linear system this is *biased*: the noise that moves A also moves the next state, and averaging does not
    remove it. To first order in the step size, with stationary covariance G of the states and covariance S of the noise, the
    bias is  -2 step_size sum_k [tr(A^(k+1) G) S (A^k)' + S (A^k)' G (A^(k+1))'] G^-1.  With noise that does not drive the
    states it is unbiased, but slow.

    Args:
        step_size: A number > 0, or a rule of `rlopt.sysid.step_size_from_rule`. Note the factor 2 above: a recipe that is
            written as w - eta (x'w - y) x has step_size = eta / 2.
        tail_start: Share of the stream before the average begins, in [0, 1).
        average: "all" iterates of the tail, or the "last" iterate only.
        link: phi, see `rlopt.sysid.links.make_link`.
        slope: Slope of the leaky ReLU.
        support: Boolean (k, p): entries of [A B] that may differ from zero. None: all.
        num_samples: Length T of the stream, for `partial_fit` with a step rule or an exact tail.

    Raises:
        ValueError: For arguments outside these sets.

    References: Nagaraj, Wu, Bresler, Jain, Netrapalli, Least squares regression with Markovian data, NeurIPS 2020, arXiv
    2006.08916; Kowshik, Nagaraj, Jain, Netrapalli, Streaming linear system identification with reverse experience replay, NeurIPS
    2021, arXiv 2103.05896.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((20_000, 1))
        >>> SGD(step_size=0.01).fit((x, 0.5 * x)).A_.round(6).tolist()
        [[0.5]]
    """

    def __init__(
        self,
        *,
        step_size: float | StepRule = "1/(2R)",
        tail_start: float = 0.5,
        average: Literal["all", "last"] = "all",
        link: LinkName | ScalarFunction = "identity",
        slope: float = 0.5,
        support: ArrayLike | None = None,
        num_samples: int | None = None,
    ) -> None:
        super().__init__(
            step_size=step_size, tail_start=tail_start, link=link, slope=slope, support=support, num_samples=num_samples
        )
        if average not in ("all", "last"):
            raise ValueError(f"average must be 'all' or 'last', got {average!r}.")
        self._average_last = average == "last"


class SGDDataDrop(SGD):
    """SGD that learns from one of every `spacing` samples, so that those used are nearly independent (SGD-DD).

    Minimax optimal in the worst case over Markov chains if `spacing` is a multiple of the mixing time. Iterates are averaged over
    all samples of the tail, those without an update included.

    Args:
        spacing: Samples from one update to the next, >= 1; the first sample is used.
        **options: As in `SGD`.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((20_000, 1))
        >>> SGDDataDrop(spacing=10, step_size=0.01).fit((x, 0.5 * x)).A_.round(4).tolist()
        [[0.5]]
    """

    def __init__(self, *, spacing: int, **options: Any) -> None:
        super().__init__(**options)
        if spacing < 1:
            raise ValueError(f"spacing must be >= 1, got {spacing}.")
        self._spacing = self.spacing = spacing


class ParallelSGD(SGD):
    """SGD in several chains of iterates that take turns: chain j learns from the samples j, j + K, j + 2K, ...

    Inside a chain the samples are nearly independent if `num_chains` is a multiple of the mixing time, and no sample is dropped.
    The estimate is the mean over all iterates of the tail, which is the mean over chains of their own tail averages; with
    `average="last"` it is the mean of the chains' last iterates.

    Differs from the paper: how its chains are combined could not be checked; this is the natural form.

    Args:
        num_chains: K >= 1; memory is K times that of `SGD`.
        **options: As in `SGD`.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((20_000, 1))
        >>> ParallelSGD(num_chains=10, step_size=0.01).fit((x, 0.5 * x)).A_.round(4).tolist()
        [[0.5]]
    """

    def __init__(self, *, num_chains: int, **options: Any) -> None:
        super().__init__(**options)
        if num_chains < 1:
            raise ValueError(f"num_chains must be >= 1, got {num_chains}.")
        self._num_chains = self.num_chains = num_chains
