"""The report of a study: `report.html`, `report.md`, `runs.csv`, `comparisons.csv` and `figures/` in its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from rlopt.study import budget, costs, document, figures, provenance, sections, tables
from rlopt.study.files import write_text
from rlopt.study.locks import lock_study
from rlopt.study.results import read_results


def report(study: Path | str) -> Path:
    """Write the report of a study from what is finished so far.

    `report.html` needs no other file; `report.md` refers to the drawings in `figures/`; `runs.csv` and `comparisons.csv` hold its
    numbers with all digits. A task with `costs` gets its table of costs as `<task>-costs.csv` too.

    Args:
        study: Folder of the study, `runs/<study>`.

    Returns:
        Path of `report.html`.

    Raises:
        ValueError: If the folder is not one of a study, or no run of it is finished, or a
            score cannot be shown on the logarithmic scale of its task.
    """
    results = read_results(Path(study))
    if not any(results.variants(task.name) for task in results.record.tasks):
        raise ValueError(f"{study} must hold a finished run to report on, got none of {len(results.runs)}")
    results.check_scores()
    style = figures.styles(results.record.variants)
    compared = sections.comparisons(results)
    blocks = [
        *sections.opening(results, compared),
        *budget.section(results),
        *(block for task in results.record.tasks for block in sections.task(results, task, compared[task.name], style)),
        *sections.aggregate(results, style),
        *provenance.cost(results),
        *provenance.status(results),
        *provenance.method(results),
    ]
    page = results.folder / "report.html"
    with lock_study(results.folder, wait_seconds=60.0):  # commands that shared a study end at the same time
        folder = results.folder / "figures"
        shutil.rmtree(folder, ignore_errors=True)  # drawings of a larger, earlier report
        folder.mkdir()
        for block in blocks:
            if isinstance(block, document.Figure):
                write_text(folder / f"{block.name}.svg", block.svg)
        for task in results.record.tasks:
            rows = costs.cost_rows(results, task)
            if rows:
                write_text(costs.csv_path(results.folder, task), tables.to_csv(costs.CostRow._fields, rows))
        write_text(results.folder / "runs.csv", tables.runs_csv(results))
        write_text(results.folder / "comparisons.csv", tables.comparisons_csv(compared))
        write_text(results.folder / "report.md", document.to_markdown(blocks))
        write_text(page, document.to_html(f"{results.folder.resolve().name}: report", blocks))
    return page
