"""The sections of a report, from results to tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from rlopt.study import figures
from rlopt.study.comparison import Comparison, compare, summary
from rlopt.study.document import Block, Code, Figure, Heading, Items, Paragraph, Table
from rlopt.study.figures import Curve, Style
from rlopt.study.grid import folder_name
from rlopt.study.record import TaskRecord
from rlopt.study.results import StudyResults
from rlopt.study.runs import summarise
from rlopt.study.statistics import Interval, bootstrap_interval, iqm, mean, optimality_gap, sample_efficiency

FloatArray = NDArray[np.float64]

# Shares of the normalised scale whose first crossing the table of sample efficiency tells.
_THRESHOLDS = (0.5, 0.9)


def opening(results: StudyResults) -> list[Block]:
    """Title, size of the study, and the answer to its question."""
    record = results.record
    counts = {len(results.finished(task.name, v)) for task in record.tasks for v in results.variants(task.name)}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    blocks: list[Block] = [
        Heading(results.folder.resolve().name, 1),
        Paragraph(
            f"{_count(len(record.variants), 'variant')} ({', '.join(record.variants)}) on "
            f"{_count(len(record.tasks), 'task')} ({', '.join(task.name for task in record.tasks)}), "
            f"{seeds} finished {'seed' if seeds == '1' else 'seeds'} each. "
            f"Runs: {summarise([run.status for run in results.runs])}."
        ),
    ]
    compared = {task.name: comparisons(results, task.name) for task in record.tasks}
    sentences = [f"{name}: {text}" for name, found in compared.items() for text in summary(found)]
    if sentences:
        note = "Numbers in brackets are 95 % intervals."
        number = sum(len(found) for found in compared.values())
        if number > 1:
            note += f" {number} comparisons are made: the more, the sooner one seems to differ by chance."
        blocks += [Heading("In short"), Items(tuple(sentences)), Paragraph(note)]
    return blocks


def comparisons(results: StudyResults, task: str) -> list[Comparison]:
    """Compare every variant that has finished runs on a task with the baseline."""
    baseline, present = results.record.baseline, results.variants(task)
    if baseline not in present:
        return []
    return [
        compare(variant, results.finals(task, variant), baseline, results.finals(task, baseline))
        for variant in present
        if variant != baseline
    ]


def task(results: StudyResults, record: TaskRecord, style: Mapping[str, Style]) -> list[Block]:
    """Learning curves, final scores, comparison with the baseline and sample efficiency of one task."""
    name, variants = record.name, results.variants(record.name)
    if not variants:
        return [Heading(name), Paragraph("No run is finished.")]
    key = folder_name(name)
    curves = {}
    for variant in variants:
        steps, scores = results.curves(name, variant)
        curves[variant] = Curve(steps, bootstrap_interval(scores[:, np.newaxis], iqm), scores)
    finals = {variant: results.finals(name, variant) for variant in variants}
    intervals = {variant: bootstrap_interval(scores, iqm) for variant, scores in finals.items()}
    compared = comparisons(results, name)
    blocks: list[Block] = [
        Heading(name),
        Figure(
            f"{key}-curves",
            figures.learning_curves(curves, style, record.high),
            f"{name}: learning curves. Lines: IQM over seeds; bands: 95 % stratified bootstrap intervals, pointwise.",
        ),
        Heading("Final scores", 3),
        _score_table(finals, intervals),
        Figure(
            f"{key}-seeds",
            figures.seed_points(finals, intervals, style),
            f"{name}: final score of every seed, with the IQM and its 95 % interval.",
        ),
    ]
    if compared:
        blocks += [Heading(f"Against {results.record.baseline}", 3), *_comparison_blocks(name, compared, style)]
    return [*blocks, Heading("Sample efficiency", 3), *_efficiency(results, record, curves)]


def aggregate(results: StudyResults, style: Mapping[str, Style]) -> list[Block]:
    """All tasks together, on normalised scores."""
    record, tasks = results.record, results.reported_tasks()
    if len(tasks) < 2:
        return []
    found = {variant: results.normalised_finals(variant) for variant in record.variants}
    scores = {variant: values for variant, (seeds, values) in found.items() if len(seeds)}
    if not scores:
        return [Heading("All tasks"), Paragraph("No seed is finished on all of them yet.")]
    scales = []
    for entry in tasks:
        low, high = results.scale(entry)
        source = "reference scores" if entry.low is not None else "lowest and highest evaluation in this study"
        scales.append(f"{entry.name}: {_number(low)} becomes 0 and {_number(high)} becomes 1 ({source}).")
    rows = []
    for variant, values in scores.items():
        rows.append(
            (variant, _interval(bootstrap_interval(values, iqm)), _interval(bootstrap_interval(values, mean)),
             _number(optimality_gap(values)), str(len(values)))
        )  # fmt: skip
    blocks: list[Block] = [
        Heading("All tasks"),
        Paragraph("Final scores normalised per task, of the seeds that are finished on every task:"),
        Items(tuple(scales)),
        Table(("variant", "IQM [95 %]", "mean [95 %]", "optimality gap", "seeds"), tuple(rows)),
        Figure(
            "all-profiles",
            figures.profiles(scores, style),
            "Performance profiles: for each normalised score, the share of runs (seeds and tasks pooled) above it.",
        ),
    ]
    if record.baseline in scores and len(scores) > 1:
        compared = [
            compare(variant, values, record.baseline, scores[record.baseline])
            for variant, values in scores.items()
            if variant != record.baseline
        ]
        blocks += [
            Heading(f"Against {record.baseline}", 3),
            *_comparison_blocks("all", compared, style),
            Items(tuple(summary(compared))),
        ]
    return blocks


def cost(results: StudyResults) -> list[Block]:
    """Wall and CPU time per variant and task."""
    rows = []
    for entry in results.record.tasks:
        for variant in results.variants(entry.name):
            runs = results.finished(entry.name, variant)
            wall = [float(run.manifest["wall_seconds"]) for run in runs]
            cpu = [float(run.manifest["cpu_seconds"]) for run in runs]
            rows.append(
                (entry.name, variant, f"{np.median(wall):.1f}", f"{min(wall):.1f} to {max(wall):.1f}",
                 f"{np.median(cpu):.1f}", f"{entry.total_steps / np.median(wall):,.0f}")
            )  # fmt: skip
    header = ("task", "variant", "wall s, median", "range", "CPU s, median", "steps per wall s")
    return [
        Heading("Cost"),
        Paragraph("Of one finished run with one thread, evaluations included; runs at the same time share the machine."),
        Table(header, tuple(rows), text_columns=2),
    ]


def status(results: StudyResults) -> list[Block]:
    """How every run went."""
    rows = [
        (
            run.task, run.variant, str(run.seed), run.status, str(run.manifest.get("error") or ""),
            _number(run.final) if run.status == "finished" and run.scores.size else "",
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
    facts = [
        *(f"Versions: {text}" for text in _distinct(_versions(manifest) for manifest in manifests)),
        *(f"Machine: {text}" for text in _distinct(_machine(manifest) for manifest in manifests)),
        *(f"Git commit: {text}" for text in commits),
        "Final score of a run: the mean of the last 10 % of its evaluations, at least one.",
        "IQM: interquartile mean, the mean without the lowest and the highest quarter of the runs; the number cut is "
        "rounded down, so up to three runs are all kept.",
        "Intervals: 95 % percentile intervals of a stratified bootstrap over seeds, 50 000 repetitions, fixed seed.",
        "Probability of improvement: P(variant > baseline) + P(equal) / 2 over all pairs of seeds.",
    ]
    return [
        Heading("How this was made"),
        Code("\n".join(dict.fromkeys(command for _, command in results.record.commands))),
        Items(tuple(facts)),
    ]


def _score_table(finals: Mapping[str, FloatArray], intervals: Mapping[str, Interval]) -> Table:
    rows = tuple(
        (variant, _interval(intervals[variant]), *(_number(float(f(s))) for f in (np.mean, np.median, np.min, np.max)),
         str(len(s)))
        for variant, s in finals.items()
    )  # fmt: skip
    return Table(("variant", "IQM [95 %]", "mean", "median", "min", "max", "seeds"), rows)


def _comparison_blocks(key: str, compared: list[Comparison], style: Mapping[str, Style]) -> list[Block]:
    baseline = compared[0].baseline
    words = {"unclear": "no difference shown", "too few seeds": "too few seeds to tell"}
    rows = tuple((c.variant, _share(c.improvement), words.get(c.verdict, c.verdict)) for c in compared)
    drawing = figures.improvement({c.variant: c.improvement for c in compared}, baseline, style)
    return [
        Table(("variant", "verdict", "P(improvement) [95 %]"), tuple((a, c, b) for a, b, c in rows), text_columns=2),
        Figure(
            f"{folder_name(key)}-improvement",
            drawing,
            f"Probability that a run of the variant beats a run of {baseline}, with 95 % intervals.",
        ),
    ]


def _efficiency(results: StudyResults, record: TaskRecord, curves: Mapping[str, Curve]) -> list[Block]:
    low, high = results.scale(record)
    targets = [low + share * (high - low) for share in _THRESHOLDS]
    rows = []
    for variant, curve in curves.items():
        cells = [variant]
        for target in targets:
            steps = sample_efficiency(curve.steps, curve.scores, target)
            middle = float(np.median(steps)) if np.isfinite(steps).sum() * 2 > len(steps) else np.inf
            cells += [
                f"{middle:,.0f}" if np.isfinite(middle) else "not reached",
                f"{np.isfinite(steps).sum()}/{len(steps)}",
            ]
        rows.append(tuple(cells))
    header = ["variant"]
    for target in targets:
        header += [f"steps to {_number(target)}", "runs"]
    source = "from the reference score of an untrained agent" if record.low is not None else "from the lowest evaluation"
    goal = "that of a solved task" if record.high is not None else "the highest one in this study"
    return [
        Paragraph(
            f"Median over seeds of the steps until an evaluation first reaches 50 % and 90 % of the way {source} "
            f"({_number(low)}) to {goal} ({_number(high)}); “not reached” if half of the runs or more never did."
        ),
        Table(tuple(header), tuple(rows)),
    ]


def _interval(interval: Interval) -> str:
    estimate, low, high = (_number(float(value)) for value in interval)
    return f"{estimate} [{low}, {high}]"


def _number(value: float) -> str:
    """Format a score: about four significant digits, no exponent for everyday sizes."""
    size = abs(value)
    if size == 0 or 0.1 <= size < 1e7:
        return f"{value:.{0 if size >= 1000 else 1 if size >= 10 else 2}f}"
    return f"{value:.3g}"


def _share(interval: Interval) -> str:
    """Format a probability with its interval."""
    estimate, low, high = (f"{float(value):.2f}" for value in interval)
    return f"{estimate} [{low}, {high}]"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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
