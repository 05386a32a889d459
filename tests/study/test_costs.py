"""Scores at equal time and what runs cost: a study whose numbers are known by hand."""

import csv
import re

import numpy as np
import pytest
from folders import rows, write_curve
from matplotlib.axes import Axes

from rlopt.study import Costs, Task, report
from rlopt.study.costs import CostRow, cost_rows
from rlopt.study.figures import TimedCurve, styles, time_curves
from rlopt.study.files import read_json
from rlopt.study.record import read_study, update_study
from rlopt.study.results import read_results
from rlopt.study.tables import to_csv

COSTS = Costs("epoch", "seconds", memory="bytes")
TASK = Task("T", 4, goal="minimize", score_name="loss", step_name="epochs", log_scale=True, final_evaluations=1, costs=COSTS)


def write_progress(study, variant, seed, scores, seconds, memory=2**20, steps=(1, 2, 3, 4)):
    """A finished run whose progress.csv has rows without seconds between the evaluations, as loggers write them."""
    write_curve(study, "T", variant, seed, steps, scores)
    with (study / "T" / variant / f"seed_{seed}" / "progress.csv").open("w") as file:
        file.write("noise,epoch,seconds,bytes\n")
        for step, time in zip(steps, seconds, strict=True):
            file.write(f"0.5,,,\n0.1,{step},{time},{memory}\n")


@pytest.fixture
def study(tmp_path):
    """The baseline takes 10 s an epoch, `slow` 30 s, `quick` 5 s."""
    folder = tmp_path / "s"
    folder.mkdir()
    update_study(folder, [TASK], ["slow", "base", "quick"], "base", "x")
    for seed in range(3):
        write_progress(folder, "base", seed, [80, 70, 60, 50 + seed], [10, 20, 30, 40 + seed])
        write_progress(folder, "slow", seed, [60, 40, 30, 20], [30, 60, 90, 120], memory=3 * 2**20)
        write_progress(folder, "quick", seed, [90, 85, 82, 81], [5, 10, 15, 20], memory=0)
    return folder


def table(study):
    return {row.variant: row for row in cost_rows(read_results(study), TASK)}


def test_scores_at_equal_time_by_hand(study):
    found = table(study)
    # The baseline ends after 40, 41, 42 s: slow has done one epoch then.
    assert (found["slow"].equal_seconds, found["slow"].equal_score, found["slow"].equal_baseline_score) == (41, 60, 51)
    # quick ends after 20 s, at which the baseline has done two epochs.
    assert (found["quick"].equal_seconds, found["quick"].equal_score, found["quick"].equal_baseline_score) == (20, 81, 70)
    assert (found["base"].equal_seconds, found["base"].equal_score, found["base"].equal_baseline_score) == (41, 51, 51)


def test_costs_by_hand(study):
    found = table(study)
    assert [found[name].score for name in ("slow", "base", "quick")] == [20, 51, 81]
    assert [found[name].seconds for name in ("slow", "base", "quick")] == [120, 41, 20]
    assert found["slow"].relative_seconds == pytest.approx(120 / 41)
    assert [found[name].memory_mib for name in ("slow", "base", "quick")] == [3, 1, 0]
    assert {row.seeds for row in found.values()} == {3}


def test_the_report_has_figure_table_and_csv(study):
    page = report(study)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    found = rows(text, "### Equal time")
    assert found["slow"] == ["20.0", "120.0", "2.93", "41.0", "60.0", "51.0", "3.00", "3"]
    assert found["quick"] == ["81.0", "20.0", "0.488", "20.0", "81.0", "70.0", "0.00", "3"]
    header = (
        "| variant | loss after 4 epochs | CPU seconds for them | relative to base | equal CPU seconds | loss then | base then |"
    )
    assert f"{header} optimizer state (MiB) | seeds |" in text
    assert (study / "figures" / "T-time.svg").read_text(encoding="utf-8") in page.read_text(encoding="utf-8").replace(
        re.search(r' role="img" aria-label="T: loss against[^"]*"', page.read_text(encoding="utf-8"))[0], ""
    )
    with (study / "T-costs.csv").open() as file:
        lines = {row["variant"]: row for row in csv.DictReader(file)}
    assert float(lines["slow"]["relative_seconds"]) == 120 / 41
    assert lines["quick"]["equal_baseline_score"] == "70.0"


def test_a_study_from_before_gets_it_when_its_command_is_repeated(study):
    plain = Task("T", 4, goal="minimize", log_scale=True, final_evaluations=1)
    update_study(study, [plain], ["base"], None, "x")
    assert "costs" not in read_json(study / "study.json")["tasks"][0]  # earlier versions read it
    report(study)
    assert "Equal time" not in (study / "report.md").read_text(encoding="utf-8")
    assert not (study / "T-costs.csv").exists()
    update_study(study, [TASK], ["base"], None, "x")
    assert read_study(study).tasks == (TASK,)
    report(study)
    assert "### Equal time" in (study / "report.md").read_text(encoding="utf-8")


def test_seeds_are_compared_with_the_same_seed(tmp_path):
    update_study(tmp_path, [TASK], ["base", "v"], "base", "x")
    write_progress(tmp_path, "base", 0, [9, 8, 7, 6], [1, 2, 3, 4])
    write_progress(tmp_path, "base", 1, [9, 8, 7, 5], [10, 20, 30, 40])
    write_progress(tmp_path, "v", 1, [4, 3, 2, 1], [20, 40, 60, 80])
    write_progress(tmp_path, "v", 2, [0.4, 0.3, 0.2, 0.1], [20, 40, 60, 80])
    row = table(tmp_path)["v"]
    assert (row.equal_seconds, row.equal_score, row.equal_baseline_score) == (40, 3, 5)
    assert row.seeds == 2


def test_nothing_is_said_about_a_time_before_the_first_evaluation(study):
    write_progress(study, "base", 3, [80, 70, 60, 50], [1, 2, 3, 4])
    write_progress(study, "slow", 3, [60, 40, 30, 20], [30, 60, 90, 120])
    row = table(study)["slow"]
    assert row.equal_score is None
    assert row.equal_baseline_score == 50.5  # of 50, 50, 51, 52
    report(study)
    assert rows((study / "report.md").read_text(encoding="utf-8"), "### Equal time")["slow"][4] == "–"


def test_a_run_that_diverged_costs_what_its_epochs_did(tmp_path):
    update_study(tmp_path, [TASK], ["base", "v"], "base", "x")
    write_progress(tmp_path, "base", 0, [9, 8, 7, 6], [10, 20, 30, 40])
    write_progress(tmp_path, "v", 0, [9, 1e4, 1e4, 1e4], [15, 30, 30, 30])
    row = table(tmp_path)["v"]
    assert row.seconds == 60
    assert row.relative_seconds == 1.5
    assert (row.equal_seconds, row.equal_score, row.equal_baseline_score) == (30, 1e4, 7)


def test_runs_that_do_not_tell_their_time_are_left_out(study):
    quick = study / "T" / "quick"
    (quick / "seed_0" / "progress.csv").unlink()
    (quick / "seed_1" / "progress.csv").write_text("epoch,other\n1,5\n2,5\n")
    assert table(study)["quick"].seeds == 1
    (quick / "seed_2" / "progress.csv").write_text("epoch,seconds\n1,5\n2,10\n3,2\n4,4\n")  # a clock that began anew
    assert list(table(study)) == ["slow", "base"]
    report(study)
    assert "quick" not in rows((study / "report.md").read_text(encoding="utf-8"), "### Equal time")


def test_without_a_finished_baseline_only_costs_are_told(study):
    for seed in range(3):
        (study / "T" / "base" / f"seed_{seed}" / "progress.csv").unlink()
    row = table(study)["slow"]
    assert (row.seconds, row.relative_seconds, row.equal_seconds, row.equal_score) == (120, None, None, None)
    assert to_csv(CostRow._fields, [row]).splitlines()[1] == "slow,3,20.0,120.0,,,,,3.0"


def test_a_study_without_memory_has_no_column_for_it(study):
    task = Task("T", 4, goal="minimize", final_evaluations=1, costs=Costs("epoch", "seconds", "wall seconds"))
    update_study(study, [task], ["base"], None, "x")
    report(study)
    text = (study / "report.md").read_text(encoding="utf-8")
    assert "| equal wall seconds |" in text
    assert "MiB" not in text.split("### Equal time")[1].split("##")[0]
    assert len(rows(text, "### Equal time")["slow"]) == 7


def test_a_damaged_file_is_named(study):
    path = study / "T" / "quick" / "seed_1" / "progress.csv"
    path.write_text("epoch,seconds\n1,abc\n")
    with pytest.raises(ValueError, match=f"{path} must hold numbers in its columns of steps, seconds and memory"):
        report(study)


def test_score_at_a_time_is_that_of_the_last_evaluation():
    curve = TimedCurve(np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([5.0, 4.0]))
    assert [curve.at(time) for time in (9.9, 10.0, 19.9, 20.0, 99.0)] == [None, 5.0, 5.0, 4.0, 4.0]


def test_axes_are_named_and_the_figure_is_the_same_each_time():
    steps = np.arange(1.0, 6)
    curves = {
        name: [TimedCurve(steps, steps * pace, 100 / steps + seed) for seed in range(3)]
        for name, pace in (("adam", 1.0), ("twin", 1.0), ("muon", 2.0))
    }
    svg = time_curves(curves, styles(list(curves)), TASK, "CPU seconds")
    assert {"CPU seconds", "loss (lower is better)"} <= set(re.findall(r"<!-- (.*?) -->", svg))  # texts are drawn as paths
    assert svg == time_curves(curves, styles(list(curves)), TASK, "CPU seconds")


def test_names_of_lines_that_end_together_do_not_cover_each_other(monkeypatch):
    placed = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.annotate", lambda axes, name, xy, xytext, **options: placed.append((name, xy, xytext))
    )
    curve = [TimedCurve(np.array([1.0, 2.0]), np.array([1.0, 2.0]), np.array([5.0, 4.0]))]
    names = [f"variant {index}" for index in range(5)]
    time_curves(dict.fromkeys(names, curve), styles(names), TASK, "s")
    assert [name for name, _, _ in placed] == names
    assert {xy for _, xy, _ in placed} == {(2.0, 4.0)}
    heights = [height for _, _, (_, height) in placed]
    assert heights[0] == 0
    assert np.diff(heights).min() >= 11


def test_the_thick_line_is_the_median_at_the_common_steps(monkeypatch):
    drawn, plot = [], Axes.plot

    def noted(axes, x, y, **options):
        drawn.append((list(x), list(y)))
        return plot(axes, x, y, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    runs = [
        TimedCurve(np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([5.0, 4.0])),
        TimedCurve(np.array([1.0, 2.0, 3.0]), np.array([11.0, 25.0, 40.0]), np.array([8.0, 2.0, 1.0])),
        TimedCurve(np.array([1.0, 2.0]), np.array([30.0, 60.0]), np.array([6.0, 3.0])),
    ]
    time_curves({"v": runs}, styles(["v"]), Task("T", 3), "s")
    assert drawn[-1] == ([11.0, 25.0], [6.0, 3.0])
    assert [x for x, _ in drawn[:-1]] == [run.seconds.tolist() for run in runs]
