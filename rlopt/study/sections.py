"""The sections of a report, from results to tables, figures and sentences."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rlopt.study import costs, figures, words
from rlopt.study.bootstrap import Interval, bootstrap_interval
from rlopt.study.comparison import VERDICTS, Comparison, adjust, compare, note, summary
from rlopt.study.document import Block, Figure, Heading, Items, Paragraph, Table
from rlopt.study.figures import Curve, Style
from rlopt.study.power import TooManySeedsError, seeds_needed
from rlopt.study.results import StudyResults
from rlopt.study.runs import summarise
from rlopt.study.statistics import iqm, mean, optimality_gap, sample_efficiency
from rlopt.study.task import Task

FloatArray = NDArray[np.float64]

# Shares of the normalised scale whose first crossing the table of sample efficiency tells.
_THRESHOLDS = (0.5, 0.9)


def opening(results: StudyResults, compared: Mapping[str, list[Comparison]]) -> list[Block]:
    """Title, size of the study, and the answer to its question: the comparisons of each task."""
    record = results.record
    counts = {len(results.finished(task.name, v)) for task in record.tasks for v in results.variants(task.name)}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    blocks: list[Block] = [
        Heading(results.folder.resolve().name, 1),
        Paragraph(
            f"{words.count(len(record.variants), 'variant')} ({', '.join(record.variants)}) on "
            f"{words.count(len(record.tasks), 'task')} ({', '.join(task.name for task in record.tasks)}), "
            f"{seeds} finished {'seed' if seeds == '1' else 'seeds'} each. "
            f"Runs: {summarise([run.status for run in results.runs])}."
        ),
    ]
    sentences = [f"{name}: {text}" for name, found in compared.items() for text in summary(found)]
    if sentences:
        several = len(compared) > 1
        labelled = {f"{c.variant} on {name}" if several else c.variant: c for name, found in compared.items() for c in found}
        blocks += [
            Heading("In short"),
            Items(tuple(sentences)),
            Paragraph(f"Numbers in brackets are 95 % intervals. {note(labelled)}"),
        ]
    return blocks


def comparisons(results: StudyResults) -> dict[str, list[Comparison]]:
    """Compare, on each task, every variant that has finished runs with the baseline; p-values are adjusted for all of them."""
    baseline, found = results.record.baseline, []
    for task in results.record.tasks:
        present = results.variants(task.name)
        if baseline not in present:
            continue
        scores, seeds = results.finals(task.name, baseline), results.seeds(task.name, baseline)
        for variant in present:
            if variant != baseline:
                pairs = (results.seeds(task.name, variant), seeds)
                result = compare(variant, results.finals(task.name, variant), baseline, scores, task.goal, seeds=pairs)
                found.append((task.name, result))
    adjusted = adjust([result for _, result in found])
    return {
        task.name: [result for (name, _), result in zip(found, adjusted, strict=True) if name == task.name]
        for task in results.record.tasks
    }


def task(results: StudyResults, record: Task, compared: list[Comparison], style: Mapping[str, Style]) -> list[Block]:
    """Learning curves, final scores, comparison with the baseline and sample efficiency of one task."""
    name, variants = record.name, results.variants(record.name)
    if not variants:
        return [Heading(name), Paragraph("No run is finished.")]
    key = words.figure_name(name)
    curves = {}
    for variant in variants:
        steps, scores = results.curves(name, variant)
        curves[variant] = Curve(steps, bootstrap_interval(scores[:, np.newaxis], iqm), scores)
    finals = {variant: results.finals(name, variant) for variant in variants}
    intervals = {variant: bootstrap_interval(scores, iqm) for variant, scores in finals.items()}
    lower = "" if record.goal == "maximize" else " Lower is better."
    blocks: list[Block] = [
        Heading(name),
        Figure(
            f"{key}-curves",
            figures.learning_curves(curves, style, record),
            f"{name}: learning curves. Lines: IQM over seeds; bands: 95 % stratified bootstrap intervals, pointwise.{lower}",
        ),
        Heading("Final scores", 3),
        _score_table(finals, intervals),
        Figure(
            f"{key}-seeds",
            figures.seed_points(finals, intervals, style, record),
            f"{name}: final score of every seed, and below the points the IQM with its 95 % interval.{lower}",
        ),
        *_ratios(record, intervals),
    ]
    if compared:
        blocks += [Heading(f"Against {results.record.baseline}", 3), *_comparison_blocks(name, compared, style)]
    blocks += [Heading("Sample efficiency", 3), *_efficiency(results, record, curves)]
    return [*blocks, *costs.section(results, record, style)]


def aggregate(results: StudyResults, style: Mapping[str, Style]) -> list[Block]:
    """All tasks together, on normalised scores."""
    record, tasks = results.record, results.reported_tasks()
    if len(tasks) < 2:
        return []
    found = {variant: results.normalised_finals(variant) for variant in record.variants}
    found = {variant: (seeds, values) for variant, (seeds, values) in found.items() if seeds}
    scores = {variant: values for variant, (_, values) in found.items()}
    if not scores:
        return [Heading("All tasks"), Paragraph("No seed is finished on all of them yet.")]
    scales = []
    for entry in tasks:
        zero, one = results.scale(entry)
        source = "reference scores" if entry.low is not None else " and ".join(_extremes(entry)) + " evaluation in this study"
        how = ", on a logarithmic scale" if entry.log_scale else ""
        scales.append(f"{entry.name}: {words.number(zero)} becomes 0 and {words.number(one)} becomes 1{how} ({source}).")
    rows = []
    for variant, values in scores.items():
        rows.append(
            (variant, words.interval(bootstrap_interval(values, iqm)), words.interval(bootstrap_interval(values, mean)),
             words.number(optimality_gap(values)), str(len(values)))
        )  # fmt: skip
    blocks: list[Block] = [
        Heading("All tasks"),
        Paragraph("Final scores normalised per task, of the seeds that are finished on every task:"),
        Items(tuple(scales)),
        Table(("variant", "IQM [95 %]", "mean [95 %]", "optimality gap", "seeds"), tuple(rows)),
        Figure(
            "all-profiles",
            figures.profiles(scores, style),
            "Performance profiles: for each normalised score, the share of runs (seeds and tasks pooled) above it. "
            "Bands: 95 % stratified bootstrap intervals, pointwise.",
        ),
    ]
    if record.baseline in scores and len(scores) > 1:
        of_baseline, base = found[record.baseline]
        compared = adjust(
            [
                compare(variant, values, record.baseline, base, seeds=(seeds, of_baseline))
                for variant, (seeds, values) in found.items()
                if variant != record.baseline
            ]
        )
        blocks += [
            Heading(f"Against {record.baseline}", 3),
            *_comparison_blocks("all", compared, style),
            Items(tuple(summary(compared))),
            Paragraph(note({result.variant: result for result in compared})),
        ]
    return blocks


def _score_table(finals: Mapping[str, FloatArray], intervals: Mapping[str, Interval]) -> Table:
    rows = tuple(
        (variant, words.interval(intervals[variant]), *(words.number(float(f(s))) for f in (np.mean, np.median, np.min, np.max)),
         str(len(s)), _seeds_for_half(s, intervals[variant]))
        for variant, s in finals.items()
    )  # fmt: skip
    return Table(("variant", "IQM [95 %]", "mean", "median", "min", "max", "seeds", "seeds for half the width"), rows)


def _seeds_for_half(scores: FloatArray, interval: Interval) -> str:
    """Return about how many seeds would make an interval half as wide."""
    half = float(interval.high - interval.low) / 4
    if len(scores) < 3 or half <= 0.0:
        return ""
    try:
        return f"about {seeds_needed(scores, half_width=half, repetitions=5_000)}"
    except TooManySeedsError:
        return "over 1000"


def _comparison_blocks(key: str, compared: list[Comparison], style: Mapping[str, Style]) -> list[Block]:
    baseline = compared[0].baseline
    rows = tuple((c.variant, VERDICTS.get(c.verdict, c.verdict), words.share(c.improvement)) for c in compared)
    drawing = figures.improvement({c.variant: c.improvement for c in compared}, baseline, style)
    pairs = tuple((c.variant, *_paired_cells(c)) for c in compared)
    return [
        Table(("variant", "verdict", "P(improvement) [95 %]"), rows, text_columns=2),
        Figure(
            f"{words.figure_name(key)}-improvement",
            drawing,
            f"Probability that a run of the variant beats a run of {baseline}, with 95 % intervals.",
        ),
        Paragraph(f"Seed by seed, score minus that of {baseline} with the same seed:"),
        Table(("variant", "mean difference [95 %]", "pairs", "correlation", "p", "p, adjusted"), pairs),
    ]


def _paired_cells(comparison: Comparison) -> tuple[str, ...]:
    paired, adjusted = comparison.paired, comparison.adjusted_p
    if paired is None or adjusted is None:
        return ("no shared seeds", "", "", "", "")
    correlation = "" if np.isnan(paired.correlation) else f"{paired.correlation:.2f}"
    return (words.interval(paired.difference), str(paired.num_pairs), correlation, f"{paired.p_value:.2g}", f"{adjusted:.2g}")


def _ratios(task: Task, intervals: Mapping[str, Interval]) -> list[Block]:
    """Final scores divided by the reference lines where these reach the last step."""
    ends = {name: task.reference(name, task.total_steps) for name in task.references}
    positive = {name: value for name, value in ends.items() if value is not None and value > 0}
    if not positive:
        return []
    rows = tuple(
        (variant, *(words.interval(Interval(*(part / value for part in found))) for value in positive.values()))
        for variant, found in intervals.items()
    )
    heights = " and ".join(f"{name} ({words.number(value)})" for name, value in positive.items())
    return [
        Heading("Ratio to the references" if len(positive) > 1 else "Ratio to the reference", 3),
        Paragraph(
            f"IQM of the final scores divided by the {heights} at the last of the {task.total_steps:,} {task.step_name}, with "
            f"95 % intervals; {task.better} is better and 1 means equal."
        ),
        Table(("variant", *(f"ratio to {name} [95 %]" for name in positive)), rows),
    ]


def _efficiency(results: StudyResults, task: Task, curves: Mapping[str, Curve]) -> list[Block]:
    zero, one = results.scale(task)
    targets = [task.part_way(zero, one, share) for share in _THRESHOLDS]
    rows = []
    for variant, curve in curves.items():
        cells = [variant]
        for target in targets:
            steps = sample_efficiency(curve.steps, curve.scores, target, task.goal)
            middle = float(np.median(steps)) if np.isfinite(steps).sum() * 2 > len(steps) else np.inf
            cells += [
                f"{middle:,.0f}" if np.isfinite(middle) else "not reached",
                f"{np.isfinite(steps).sum()}/{len(steps)}",
            ]
        rows.append(tuple(cells))
    header = ["variant"]
    for target in targets:
        header += [f"{task.step_name} to {words.number(target)}", "runs"]
    worst, best = _extremes(task)
    source = "from the reference score of an untrained agent" if task.low is not None else f"from the {worst} evaluation"
    end = "that of a solved task" if task.high is not None else f"the {best} one in this study"
    how = " on a logarithmic scale" if task.log_scale else ""
    return [
        Paragraph(
            f"Median over seeds of the {task.step_name} until an evaluation first reaches 50 % and 90 % of the way {source} "
            f"({words.number(zero)}) to {end} ({words.number(one)}){how}; “not reached” if half of the runs or more never did."
        ),
        Table(tuple(header), tuple(rows)),
    ]


def _extremes(task: Task) -> tuple[str, str]:
    return ("lowest", "highest") if task.goal == "maximize" else ("highest", "lowest")
