"""What one sees of a training run: a progress bar on a terminal, and TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

Row = dict[str, float]


class Logs:
    """Progress bar and events of one call of `train`; a context manager.

    Args:
        folder: Folder of the events; None: none are written.
        first_step: Finished steps at the start. Events of later steps, from a run that was cut off, are dropped.
        num_steps: Steps in all.
        progress: Whether there is a bar; it is silent unless the output is a terminal.
    """

    def __init__(self, folder: Path | None, first_step: int, num_steps: int, *, progress: bool) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only runs with a folder need it

            _wait_for_a_later_name(folder)
            self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        # disable=None: no bar where the output is not a terminal.
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", disable=None if progress else True)
        self._rows, self._since = 0, time.perf_counter()

    def advance(self, num_rows: int) -> None:
        """A step is done."""
        self._rows += num_rows
        self._bar.update()

    def train_row(self, row: Mapping[str, float]) -> None:
        """A line of the training log."""
        now = time.perf_counter()
        speed, self._rows, self._since = self._rows / max(now - self._since, 1e-9), 0, now
        self._bar.set_postfix(loss=f"{row['loss']:.4g}", rows_per_s=f"{speed:,.0f}", refresh=False)
        self._write("train", {**row, "rows_per_second": speed})

    def eval_row(self, row: Mapping[str, float]) -> None:
        """The result of an evaluation."""
        self._write("eval", row)

    def _write(self, section: str, row: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"{section}/{name}", value, int(row["step"]))

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait, a second at most, until events of a new file come after those of all others.

    TensorBoard reads the files of a folder in the order of their names, which begin with the second of their making; what a file
    drops of earlier ones depends on that order, and within a second the names are not in order.
    """
    newest = max((path.name for path in folder.glob("events.out.tfevents.*")), default="")
    limit = time.monotonic() + 1.0
    while f"events.out.tfevents.{int(time.time()):010d}" <= newest and time.monotonic() < limit:
        time.sleep(0.01)
