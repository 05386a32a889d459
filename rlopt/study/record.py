"""The record of a study, `study.json`: its tasks, variants, baseline, and the commands that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlopt.study.files import read_json, write_json
from rlopt.study.runs import now
from rlopt.study.task import Costs, Task


@dataclass(frozen=True)
class StudyRecord:
    """Content of `study.json`.

    Args:
        tasks: All tasks that were ever part of the study, in order; without `config`, which is in the folders of the runs.
        variants: All variants, in order.
        baseline: The variant that the others are compared with.
        commands: Time and command of each start.
    """

    tasks: tuple[Task, ...]
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
            tasks=tuple(Task(**{**task, "costs": _costs(task.get("costs"))}) for task in content["tasks"]),
            variants=tuple(content["variants"]),
            baseline=content["baseline"],
            commands=tuple((entry["time"], entry["command"]) for entry in content["commands"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold tasks, variants, baseline and commands, got a problem with {error}") from None


def _costs(content: Mapping[str, Any] | None) -> Costs | None:
    return None if content is None else Costs(**content)


def update_study(folder: Path, tasks: Sequence[Task], variants: Sequence[str], baseline: str | None, command: str) -> None:
    """Add tasks, variants and a command to the record, or begin one; without a baseline the one on record stays."""
    old = read_study(folder) if (folder / "study.json").exists() else None
    known = {task.name: task for task in [*(old.tasks if old else ()), *tasks]}
    names = list(dict.fromkeys([*(old.variants if old else ()), *variants]))
    content: dict[str, Any] = {
        "tasks": [task.record() for task in known.values()],
        "variants": names,
        "baseline": baseline or (old.baseline if old else names[0]),
        "commands": [
            *({"time": time, "command": text} for time, text in (old.commands if old else ())),
            {"time": now(), "command": command},
        ],
    }
    write_json(folder / "study.json", content)


def check_comparable(folder_a: Path, a: StudyRecord, folder_b: Path, b: StudyRecord) -> None:
    """Refuse studies whose final scores mean different things.

    Raises:
        ValueError: If a task of both has another `goal`, `score_name` or `final_evaluations` in one than in the other.
    """
    of_b = {task.name: task for task in b.tasks}
    for task in a.tasks:
        for field in ("goal", "score_name", "final_evaluations"):
            other = getattr(of_b.get(task.name, task), field)
            if getattr(task, field) != other:
                raise ValueError(
                    f"{folder_a} and {folder_b} must agree about {task.name} to be compared, but its {field} is "
                    f"{getattr(task, field)} in the first and {other} in the second"
                )
