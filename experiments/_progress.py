"""The log of a run, progress.csv and TensorBoard events, which no kill can damage and which goes on after a stop."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat, filter_excluded_keys

from rlopt.study.files import write_text


class ProgressWriter(KVWriter):
    """Writes progress.csv: a row is one write to the end of the file; for a new column the file is replaced in one step.

    Args:
        path: The file; one that is there is replaced.
        rows: What it begins with.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, str]] = ()) -> None:
        self._path = path
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        self._replace(rows)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Add a row."""
        values = filter_excluded_keys(key_values, key_excluded, "csv")
        row = {name: str(value) for name, value in sorted(values.items()) if value is not None}
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._file.close()
            self._replace([*read_progress(self._path), row])
        else:
            self._file.write(self._text([row]))
            self._file.flush()

    def _replace(self, rows: Sequence[Mapping[str, str]]) -> None:
        header = [dict(zip(self._columns, self._columns, strict=True))] if self._columns else []
        write_text(self._path, self._text([*header, *rows]), sync=False)
        self._file = self._path.open("a", encoding="utf-8", newline="")

    def _text(self, rows: Sequence[Mapping[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_progress(path: Path) -> list[dict[str, str]]:
    """Return the rows of a progress.csv without empty cells; a last line that is not complete does not count."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    complete = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    return [{name: value for name, value in row.items() if value} for row in csv.DictReader(complete)]


def continued_logger(folder: Path, num_timesteps: int) -> Logger:
    """Return a logger to progress.csv and TensorBoard that keeps the rows that are there up to a step; later ones come again."""
    path = folder / "progress.csv"
    rows = [row for row in read_progress(path) if int(row.get("time/total_timesteps", 0)) <= num_timesteps] if num_timesteps else []
    folder.mkdir(parents=True, exist_ok=True)
    return Logger(str(folder), [ProgressWriter(path, rows), TensorBoardOutputFormat(str(folder))])
