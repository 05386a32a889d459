"""Folders of studies as runs leave them, and reading a report back."""

from rlopt.study import Recorder
from rlopt.study.files import write_json
from rlopt.study.runs import update_manifest

MADE = {
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "machine": {"system": "Linux x86_64", "cpu": "Test CPU", "cores": 2, "memory_gib": 8.0},
    "git_commit": "0123abc",
}


def write_run(study, task, variant, seed, finals, status="finished", **manifest):
    """A run with evaluations 10, 20, ... whose scores are 0, ..., 0, then the finals."""
    scores = [0.0] * (20 - len(finals)) + list(finals)
    write_curve(study, task, variant, seed, range(10, 201, 10), scores, status, **manifest)


def write_curve(study, task, variant, seed, steps, scores, status="finished", **manifest):
    """A run with the given evaluations."""
    folder = study / task / variant / f"seed_{seed}"
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"task": task, "variant": variant, "seed": seed})
    recorder = Recorder(folder)
    for step, score in zip(steps, scores, strict=True):
        recorder.evaluation(step, score)
    update_manifest(folder, status=status, wall_seconds=10.0 + seed, cpu_seconds=9.0, error=None, **MADE, **manifest)


def rows(markdown, heading):
    """Cells of the first table after a heading, by first column."""
    lines = markdown.split(heading, 1)[1].splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("|"))
    table = lines[first : next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table]
    return {row[0]: row[1:] for row in cells[2:]}
