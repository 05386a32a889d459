"""What tuning has cost and found: `search.json` in the folder of a study, and the section of the report that tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlopt.study import words
from rlopt.study.document import Block, Heading, Items, Paragraph, Table
from rlopt.study.files import read_json, write_json
from rlopt.study.results import StudyResults

Entry = Mapping[str, Any]  # of a variant on a task


def write_search(folder: Path, task: str, entries: Mapping[str, Entry]) -> None:
    """Write what a search on a task found, beside what is there of other tasks and variants."""
    found = read_searches(folder)
    found[task] = {**found.get(task, {}), **entries}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "search.json", {"tasks": found})


def read_searches(folder: Path) -> dict[str, dict[str, Any]]:
    """Return task -> variant -> what its search found; empty for a study without one.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / "search.json"
    if not path.exists():
        return {}
    return dict(read_json(path).get("tasks", {}))


def section(results: StudyResults) -> list[Block]:
    """The budget of tuning, what was found, and what speaks against it; nothing for a study that was not tuned."""
    searches = read_searches(results.folder)
    entries = {
        (task.name, variant): searches[task.name][variant]
        for task in results.record.tasks
        for variant in results.record.variants
        if variant in searches.get(task.name, {})
    }
    if not entries:
        return []
    rows = [
        (
            task, variant, ", ".join(f"{option} = {value:.4g}" for option, value in entry["values"].items()),
            str(entry["num_trials"]), f"{entry['trial_steps'] * len(entry['seeds']):,}", str(entry["failed"]), str(entry["pruned"]),
            f"{entry['saved_steps']:,}", words.number(entry["score"]),
        )
        for (task, variant), entry in entries.items()
    ]  # fmt: skip
    header = ("task", "variant", "found", "trials", "steps of a trial", "failed", "pruned", "steps saved", "best trial")
    return [
        Heading("Tuning"),
        Paragraph(_budget(results, entries)),
        Table(header, tuple(rows), text_columns=3),
        *_edges(entries),
    ]


def _budget(results: StudyResults, entries: Mapping[tuple[str, str], Entry]) -> str:
    """Say whether all variants of each task were tuned alike."""
    text = (
        "The options of each variant were searched on each task by trials with seeds of their own, which count nowhere else here. "
        "Steps saved are those of runs that were stopped early, as clearly worse than earlier ones."
    )
    unlike = []
    for task in results.record.tasks:
        budgets = {
            variant: (entry["num_trials"], entry["trial_steps"], tuple(entry["seeds"]), entry["pruner"])
            for (name, variant), entry in entries.items()
            if name == task.name
        }
        if budgets and (len(set(budgets.values())) > 1 or set(results.variants(task.name)) - set(budgets)):
            unlike.append(task.name)
    if unlike:
        return f"{text} Budgets differ on {', '.join(unlike)}: the comparison favours the variants with more trials."
    return f"{text} Budgets are equal: on each task every variant had as many trials, of as many steps."


def _edges(entries: Mapping[tuple[str, str], Entry]) -> Sequence[Block]:
    found = [
        f"{task} / {variant}: {edge_text(option, entry)}" for (task, variant), entry in entries.items() for option in entry["edges"]
    ]
    return [Items(tuple(found))] if found else []


def edge_text(option: str, entry: Entry) -> str:
    """Say that a value lies at the edge of its range."""
    span = entry["ranges"][option]
    return (
        f"{option} = {entry['values'][option]:.4g} is at the {entry['edges'][option]} edge of its range from {span['low']:.4g} to "
        f"{span['high']:.4g}; a wider one, if the option allows it, may hold a better value."
    )
