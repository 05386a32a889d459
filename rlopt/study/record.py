"""The record of a study, `study.json`: its tasks, variants, baseline, and the commands that made it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlopt.study.files import read_json, write_json
from rlopt.study.grid import Task
from rlopt.study.runs import now

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True)
class TaskRecord:
    """What the report needs to know about a task; see `Task`."""

    name: str
    total_steps: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class StudyRecord:
    """Content of `study.json`.

    Args:
        tasks: All tasks that were ever part of the study, in order.
        variants: All variants, in order.
        baseline: The variant that the others are compared with.
        commands: Time and command of each start.
    """

    tasks: tuple[TaskRecord, ...]
    variants: tuple[str, ...]
    baseline: str
    commands: tuple[tuple[str, str], ...]


def read_study(folder: Path) -> StudyRecord:
    """Read the record of the study in `folder`.

    Raises:
        ValueError: If there is no study; the message names the folder.
    """
    path = folder / "study.json"
    if not path.exists():
        inside = sorted(str(found.parent) for found in folder.glob("*/study.json"))
        hint = f"; there are studies in {', '.join(inside[:5])}" if inside else ""
        raise ValueError(f"{folder} must be the folder of a study, but it has no study.json{hint}")
    content = read_json(path)
    try:
        return StudyRecord(
            tasks=tuple(TaskRecord(**task) for task in content["tasks"]),
            variants=tuple(content["variants"]),
            baseline=content["baseline"],
            commands=tuple((entry["time"], entry["command"]) for entry in content["commands"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold tasks, variants, baseline and commands, got a problem with {error}") from None


def update_study(folder: Path, tasks: Sequence[Task], variants: Sequence[str], baseline: str | None, command: str) -> None:
    """Add tasks, variants and a command to the record, or begin one; without a baseline the one on record stays."""
    old = read_study(folder) if (folder / "study.json").exists() else None
    records: dict[str, TaskRecord] = {task.name: task for task in old.tasks} if old else {}
    records.update({task.name: TaskRecord(task.name, task.total_steps, task.low, task.high) for task in tasks})
    names = list(dict.fromkeys([*(old.variants if old else ()), *variants]))
    content: dict[str, Any] = {
        "tasks": [vars(record) for record in records.values()],
        "variants": names,
        "baseline": baseline or (old.baseline if old else names[0]),
        "commands": [
            *({"time": time, "command": text} for time, text in (old.commands if old else ())),
            {"time": now(), "command": command},
        ],
    }
    write_json(folder / "study.json", content)


@contextlib.contextmanager
def lock_study(folder: Path) -> Iterator[None]:
    """Hold the study for this process; the system lets go of it however the process ends.

    Raises:
        ValueError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a", encoding="utf-8") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"{folder} is in use by another command; wait for it, or choose another name") from None
        yield
