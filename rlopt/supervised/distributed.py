"""Several processes that train one network together, started by torchrun; one process without it."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlopt.nn import GeneratorDropout
from rlopt.supervised.batches import Batch
from rlopt.supervised.config import TrainerConfig

T = TypeVar("T")


@contextlib.contextmanager
def process_group(device: str = "cpu") -> Iterator[None]:
    """Join the processes that torchrun started, and leave them at the end; without torchrun this does nothing.

    Processes talk by gloo for the CPU and by NCCL for CUDA, where each takes the GPU of its number on the machine, so that "cuda"
    means that one from then on.

    Args:
        device: Of the training: cpu or cuda, without a number if there are several processes.

    Raises:
        ValueError: If there are more processes on a machine than GPUs, or the device has a number.

    Example:
        >>> with process_group():  # a script; `python script.py` and `torchrun --nproc-per-node=2 script.py` both work
        ...     print(Processes().size)
        1
    """
    if not dist.is_torchelastic_launched() or dist.is_initialized():
        yield
        return
    is_cuda = device.startswith("cuda")
    if is_cuda:
        number = int(os.environ["LOCAL_RANK"])
        if device != "cuda":
            raise ValueError(f"device must be 'cuda' without a number under torchrun, got {device!r}.")
        if number >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun must start at most one process per GPU, {torch.cuda.device_count()} here, got {number + 1}."
            )
        torch.cuda.set_device(number)
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class Processes:
    """The processes that share the work; all of them call each method that talks to the others, in the same order.

    Args:
        together: Whether the work is shared; False: this process works for itself, whatever others there are.

    Attributes:
        size: Their number.
        rank: Number of this one, from 0.
    """

    def __init__(self, *, together: bool = True) -> None:
        grouped = together and dist.is_available() and dist.is_initialized()
        self.size = dist.get_world_size() if grouped else 1
        self.rank = dist.get_rank() if grouped else 0

    @classmethod
    def of(cls, config: TrainerConfig) -> Processes:
        """Those of a trainer.

        Raises:
            ValueError: If torchrun has started several processes that have not joined.
        """
        together = config.parallel != "none"
        if together and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(
                f"parallel {config.parallel!r} needs a process group under torchrun: make the trainer inside of "
                "`with rlopt.supervised.process_group(device):`."
            )
        return cls(together=together)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, batch: Batch, parts: int = 1, *, equal: bool = False) -> tuple[Batch, float]:
        """Own rows of a batch, and how much their mean counts.

        Args:
            batch: The same one on all processes.
            parts: Consecutive parts, of each of which own rows are taken, so that parts are the same ones as in one process.
            equal: Whether all must have equally many.

        Returns:
            Rows, and size * own rows / all rows: the mean over processes of weighted means over rows is the mean over all rows.

        Raises:
            ValueError: If there are too few rows, or shares are not equal.
        """
        if self.size == 1:
            return batch, 1.0
        num_rows, num_shares = len(batch[0]), self.size * parts
        if num_rows < num_shares or (equal and num_rows % num_shares):
            rule = "divisible by" if equal else "at least"
            what = f"the number of processes, {self.size}" if parts == 1 else f"processes times micro_batches, {num_shares}"
            reason = ": experts exchange rows of equal shapes" if equal else ""
            raise ValueError(f"rows of a batch must be {rule} {what}, got {num_rows}{reason}.")
        inputs, targets = (
            torch.cat([part.tensor_split(self.size)[self.rank] for part in rows.tensor_split(parts)]) for rows in batch
        )
        return (inputs, targets), self.size * len(inputs) / num_rows

    def turns(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """Deal batches out, so that all processes get equally many.

        Args:
            batches: The same ones on all processes.

        Yields:
            A batch of this process, and whether it counts: at the end there may be one that another process has already.
        """
        iterator = iter(batches)
        while turn := list(itertools.islice(iterator, self.size)):
            yield turn[min(self.rank, len(turn) - 1)], self.rank < len(turn)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        if self.size > 1:
            values = values.detach().clone()
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Mean over processes; with one process the values themselves."""
        return values if self.size == 1 else self.sum(values) / self.size

    def gather(self, value: T) -> list[T]:
        """The values of all processes."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """The value of the first process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                values = tensor.detach().contiguous()
                dist.broadcast(values, src=0)
                tensor.copy_(values)

    def seed(self, seed: int, *more: int) -> int:
        """A seed of this process, which is the given one on the first."""
        return seed if self.is_first else int(np.random.SeedSequence([seed, self.rank, *more]).generate_state(1)[0])

    def fork_generators(self, model: nn.Module, *more: int) -> None:
        """Let layers that draw random numbers draw others than on the first process.

        Args:
            model: The same one on all processes.
            *more: Numbers that a seed depends on, such as that of the step.
        """
        if self.is_first:
            return
        for module in model.modules():
            generator = getattr(module, "generator", None)
            if isinstance(module, GeneratorDropout):
                module.seed = self.seed(module.seed, *more)
                module.generators = {}
            elif isinstance(generator, torch.Generator):
                generator.manual_seed(self.seed(generator.initial_seed(), *more))
