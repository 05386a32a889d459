"""The sections of a report that tell how it came about: cost, runs, commands, versions, definitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rlopt.study.document import Block, Code, Heading, Items, Paragraph, Table
from rlopt.study.results import StudyResults
from rlopt.study.task import Task
from rlopt.study.words import number


def cost(results: StudyResults) -> list[Block]:
    """Wall and CPU time and memory per variant and task."""
    rows = []
    for entry in results.record.tasks:
        for variant in results.variants(entry.name):
            runs = results.finished(entry.name, variant)
            wall = [float(run.manifest["wall_seconds"]) for run in runs]
            cpu = [float(run.manifest["cpu_seconds"]) for run in runs]
            peaks = [int(run.manifest["peak_rss_bytes"]) / 2**20 for run in runs if "peak_rss_bytes" in run.manifest]
            rows.append(
                (entry.name, variant, f"{np.median(wall):.1f}", f"{min(wall):.1f} to {max(wall):.1f}",
                 f"{np.median(cpu):.1f}", f"{entry.total_steps / np.median(wall):,.0f}", f"{max(peaks):,.0f}" if peaks else "")
            )  # fmt: skip
    shared = sum(run.status == "finished" and run.manifest.get("runs_in_process", 1) > 1 for run in results.runs)
    stacked = (
        f" {shared} of the runs shared a process with others: their CPU seconds are those of the process divided by the number of "
        "its runs, their wall seconds and memory those of the process."
    )
    header = ("task", "variant", "wall s, median", "range", "CPU s, median", "steps per wall s", "peak memory MiB, largest")
    return [
        Heading("Cost"),
        Paragraph(
            "Of one finished run with one thread, evaluations included; runs at the same time share the machine. Memory is that of "
            "the process, with its libraries and without processes that it starts." + (stacked if shared else "")
        ),
        Table(header, tuple(rows), text_columns=2),
    ]


def status(results: StudyResults) -> list[Block]:
    """How every run went."""
    rows = [
        (
            run.task, run.variant, str(run.seed), run.status, str(run.manifest.get("error") or ""),
            number(run.final) if run.status == "finished" and run.scores.size else "",
            f"{run.manifest['wall_seconds']:.0f}" if run.manifest.get("wall_seconds") is not None else "",
        )
        for run in results.runs
    ]  # fmt: skip
    blocks: list[Block] = [Heading("Runs")]
    missing = [run for run in results.runs if run.status != "finished"]
    if missing:
        blocks.append(Paragraph(f"{len(missing)} of {len(rows)} runs are not finished and count nowhere above."))
    header = ("task", "variant", "seed", "status", "error", "final score", "wall s")
    return [*blocks, Table(header, tuple(rows), text_columns=5)]


def method(results: StudyResults) -> list[Block]:
    """Commands, versions, machines, and how the numbers were computed."""
    manifests = [run.manifest for run in results.runs if run.manifest.get("versions")]
    commits = _distinct(str(manifest["git_commit"]) for manifest in manifests if manifest.get("git_commit"))
    relation = " or ".join(_distinct(">" if task.goal == "maximize" else "<" for task in results.record.tasks))
    facts = [
        *(f"Versions: {text}" for text in _distinct(_versions(manifest) for manifest in manifests)),
        *(f"Machine: {text}" for text in _distinct(_machine(manifest) for manifest in manifests)),
        *(f"Git commit: {text}" for text in commits),
        *_final_scores(results.record.tasks),
        "IQM: interquartile mean, the mean without the lowest and the highest quarter of the runs; the number cut is "
        "rounded down, so up to three runs are all kept.",
        "Intervals: 95 % percentile intervals of a stratified bootstrap over seeds, 50 000 repetitions, fixed seed.",
        f"Probability of improvement: P(variant {relation} baseline) + P(equal) / 2 over all pairs of seeds.",
        "Seed by seed: p is the share of all patterns of signs of the differences whose mean is as far from 0 (two-sided; of "
        "50 000 random ones if there are more). It is adjusted by Holm's method for all comparisons on single tasks, and apart "
        "from these for all on all tasks together. The higher the correlation of both over seeds, the more is gained by "
        "comparing seed by seed; below 0 it does harm.",
        "Seeds for half the width: about how many seeds would halve the interval, if these few runs are typical.",
    ]
    return [
        Heading("How this was made"),
        Code("\n".join(dict.fromkeys(command for _, command in results.record.commands))),
        Items(tuple(facts)),
    ]


def _final_scores(tasks: Sequence[Task]) -> list[str]:
    """Return how final scores are defined, once if it is the same for all tasks."""
    meaning = {None: "the mean of the last 10 % of its evaluations, at least one", 1: "its last evaluation"}
    found: dict[str, list[str]] = {}
    for task in tasks:
        count = task.final_evaluations
        found.setdefault(meaning.get(count, f"the mean of its last {count} evaluations"), []).append(task.name)
    return [f"Final score of a run{'' if len(found) == 1 else ' on ' + ', '.join(names)}: {text}." for text, names in found.items()]


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _versions(manifest: Mapping[str, object]) -> str:
    found = manifest["versions"]
    assert isinstance(found, dict)
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _machine(manifest: Mapping[str, object]) -> str:
    found = manifest["machine"]
    assert isinstance(found, dict)
    return f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {found['system']}"
