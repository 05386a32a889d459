"""Where batches come from: rows of arrays in random order, or random windows of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Prepare = Callable[[Tensor, Tensor], Batch]


class TrainingData(Protocol):
    """What a `Trainer` needs of its data. The order must follow from the state alone: then a resumed run is the same run."""

    def draw(self) -> Batch:
        """Inputs and targets of the next training batch, rows first."""
        ...

    def evaluation(self) -> Iterator[Batch]:
        """The batches of an evaluation, the same ones each time."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Position in the order of the data: numbers and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a position."""
        ...


class ArrayData:
    """Rows of arrays: each epoch in a new random order, batch after batch.

    Arrays are used as they are, without a copy; `prepare` turns the rows of a batch into what the network takes.

    Args:
        inputs: Training rows, array or tensor; the first axis counts them.
        targets: Their targets; None: the inputs are the targets (auto-encoders).
        test_inputs: Rows for evaluations; None: the training rows.
        test_targets: Their targets, as above.
        batch_size: Rows of a batch, in [1, number of rows].
        eval_batch_size: Rows of an evaluation batch, >= 1.
        drop_last: Whether an incomplete batch at the end of an epoch is left out.
        prepare: Called with inputs and targets of each batch; None: nothing to do.
        seed: Seed of the order.

    Raises:
        ValueError: For arguments outside these sets, and arrays of different length.

    Example:
        >>> data = ArrayData(np.arange(4.0), np.arange(4), batch_size=2)
        >>> sorted(torch.cat([data.draw()[0], data.draw()[0]]).tolist())
        [0.0, 1.0, 2.0, 3.0]
    """

    def __init__(
        self,
        inputs: NDArray[Any] | Tensor,
        targets: NDArray[Any] | Tensor | None = None,
        test_inputs: NDArray[Any] | Tensor | None = None,
        test_targets: NDArray[Any] | Tensor | None = None,
        *,
        batch_size: int,
        eval_batch_size: int = 1000,
        drop_last: bool = True,
        prepare: Prepare | None = None,
        seed: int = 0,
    ) -> None:
        self._inputs, self._targets = _pair(inputs, targets, "targets")
        if test_inputs is None:
            if test_targets is not None:
                raise ValueError("test_inputs must be given with test_targets, got None.")
            self._test_inputs, self._test_targets = self._inputs, self._targets
        else:
            if (targets is None) != (test_targets is None):
                raise ValueError("test_targets must be given if and only if targets are.")
            self._test_inputs, self._test_targets = _pair(test_inputs, test_targets, "test_targets")
        if not 1 <= batch_size <= len(self._inputs):
            raise ValueError(f"batch_size must be in [1, number of rows = {len(self._inputs)}], got {batch_size}.")
        if eval_batch_size < 1:
            raise ValueError(f"eval_batch_size must be >= 1, got {eval_batch_size}.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self._prepare = prepare
        self._generator = torch.Generator().manual_seed(seed)
        self._stop = len(self._inputs) // batch_size * batch_size if drop_last else len(self._inputs)
        self._start_epoch()

    @property
    def batches_per_epoch(self) -> int:
        """Batches until every row was used once."""
        return -(-self._stop // self.batch_size)

    def _start_epoch(self) -> None:
        # The state before the draw: from it and the position, the whole order can be made again.
        self._epoch_state = self._generator.get_state()
        self._order = torch.randperm(len(self._inputs), generator=self._generator)
        self._position = 0

    def draw(self) -> Batch:
        """The next batch of the epoch."""
        if self._position >= self._stop:
            self._start_epoch()
        rows = self._order[self._position : min(self._position + self.batch_size, self._stop)]
        self._position += self.batch_size
        return self._make(self._inputs[rows], self._targets[rows])

    def evaluation(self) -> Iterator[Batch]:
        """The test rows in order."""
        for start in range(0, len(self._test_inputs), self.eval_batch_size):
            rows = slice(start, start + self.eval_batch_size)
            yield self._make(self._test_inputs[rows], self._test_targets[rows])

    def _make(self, inputs: Tensor, targets: Tensor) -> Batch:
        return (inputs, targets) if self._prepare is None else self._prepare(inputs, targets)

    def state_dict(self) -> dict[str, Any]:
        """The order of this epoch and the position in it."""
        return {"epoch_state": self._epoch_state.clone(), "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over an order and a position."""
        self._generator.set_state(state["epoch_state"])
        self._start_epoch()
        self._position = int(state["position"])


class TextWindows:
    """Windows at random places of a sequence of codes; targets are the codes one place later.

    Evaluations take `num_eval_windows` windows at equal distances in the test part, the same ones each time.

    Args:
        codes: Training sequence (T,), integers; T > length.
        test_codes: Sequence for evaluations, longer than `length`.
        length: Codes in a window, >= 1.
        batch_size: Windows in a batch, >= 1.
        num_eval_windows: Windows of an evaluation, >= 1; at most as many as there are places.
        seed: Seed of the places.

    Raises:
        ValueError: For arguments outside these sets.

    Example:
        >>> data = TextWindows(np.arange(50), np.arange(20), length=4, batch_size=2)
        >>> inputs, targets = data.draw()
        >>> inputs.shape, bool((targets == inputs + 1).all())
        (torch.Size([2, 4]), True)
    """

    def __init__(
        self,
        codes: NDArray[Any] | Tensor,
        test_codes: NDArray[Any] | Tensor,
        *,
        length: int,
        batch_size: int,
        num_eval_windows: int = 256,
        seed: int = 0,
    ) -> None:
        for name, value in (("length", length), ("batch_size", batch_size), ("num_eval_windows", num_eval_windows)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}.")
        self._codes, self._test_codes = torch.as_tensor(codes), torch.as_tensor(test_codes)
        for name, sequence in (("codes", self._codes), ("test_codes", self._test_codes)):
            if sequence.ndim != 1 or len(sequence) <= length:
                raise ValueError(f"{name} must be one sequence longer than length = {length}, got shape {tuple(sequence.shape)}.")
        self.batch_size = batch_size
        self._window = torch.arange(length)
        num_places = len(self._test_codes) - length
        num_eval_windows = min(num_eval_windows, num_places)
        # floor(i * places / windows): equal distances without repetition, in exact integers.
        self._eval_starts = torch.arange(num_eval_windows) * num_places // num_eval_windows
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Batch:
        """Windows (batch_size, length) at random places, and the same one place later; int64."""
        places = len(self._codes) - len(self._window)
        return self._windows(self._codes, torch.randint(places, (self.batch_size,), generator=self._generator))

    def evaluation(self) -> Iterator[Batch]:
        """Windows at equal distances in the test part."""
        for first in range(0, len(self._eval_starts), self.batch_size):
            yield self._windows(self._test_codes, self._eval_starts[first : first + self.batch_size])

    def _windows(self, codes: Tensor, starts: Tensor) -> Batch:
        places = starts[:, None] + self._window  # (B, length)
        return codes[places].long(), codes[places + 1].long()

    def state_dict(self) -> dict[str, Any]:
        """The generator of places."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a generator of places."""
        self._generator.set_state(state["generator"])


def _pair(inputs: NDArray[Any] | Tensor, targets: NDArray[Any] | Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets as tensors that share the memory of the arrays."""
    rows = _as_tensor(inputs)
    if targets is None:
        return rows, rows
    if len(targets) != len(inputs):
        raise ValueError(f"{name} must have one row for each of the {len(inputs)} inputs, got {len(targets)}.")
    return rows, _as_tensor(targets)


def _as_tensor(array: NDArray[Any] | Tensor) -> Tensor:
    return array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
