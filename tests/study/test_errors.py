"""Studies of errors: lower is better, logarithmic axes, reference lines. All numbers by hand."""

import re

import numpy as np
import pytest
from folders import rows, write_curve

from rlopt.__main__ import main
from rlopt.study import Task, figures, probability_of_improvement, report, sample_efficiency
from rlopt.study.comparison import compare
from rlopt.study.record import update_study
from rlopt.study.results import final_score, read_results

STEPS = [100, 1_000, 10_000]
ERRORS = {
    "goal": "minimize",
    "score_name": "operator error",
    "step_name": "samples",
    "log_scale": True,
    "final_evaluations": 1,
}
REFERENCES = {"statistical limit": [(1, 1.0), (10_000, 0.01)], "ends early": [(1, 1.0), (1_000, 0.5)]}


def write_study(folder, *, shift=1.0, **options):
    """Five seeds; finals: near 0.02 for `good`, near 0.2 for `base` and `same`; two tasks, the second ten times as large."""
    tasks = [
        Task("Alpha", 10_000, **{**ERRORS, "references": REFERENCES, **options}),
        Task("Beta", 10_000, **{**ERRORS, "low": 10.0, "high": 0.1, **options}),
    ]
    folder.mkdir()
    update_study(folder, tasks, ["base", "good", "same"], "base", "python study.py")
    for task, size in (("Alpha", shift), ("Beta", 10.0)):
        for seed in range(5):
            factor = size * (1 + 0.1 * seed)
            write_curve(folder, task, "base", seed, STEPS, [factor, 0.5 * factor, 0.2 * factor])
            write_curve(folder, task, "good", seed, STEPS, [factor, 0.1 * factor, 0.02 * factor])
            write_curve(folder, task, "same", seed, STEPS, [factor, 0.5 * factor, 0.2 * factor])
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("studies") / "errors")
    report(folder)
    return folder


@pytest.fixture(scope="module")
def text(study):
    return (study / "report.md").read_text(encoding="utf-8")


def test_lower_errors_are_better(text):
    assert "- Alpha: good against base: better (lower); probability of improvement 1.00 [1.00, 1.00]" in text
    table = rows(text, "### Against base")
    assert table["good"] == ["better", "1.00 [1.00, 1.00]"]
    assert table["same"][0] == "no difference shown"
    assert "Lower is better." in text
    assert r"P(variant \< baseline)" in text


def test_final_score_is_the_last_evaluation(text):
    # The middle three of 0.02 * (1.0, 1.1, 1.2, 1.3, 1.4).
    assert rows(text, "### Final scores")["good"][0].startswith("0.0240 [")
    assert "Final score of a run: its last evaluation." in text


def test_ratios_to_the_reference_at_the_last_step(text):
    table = rows(text, "### Ratio to the reference")
    low, high = 0.02 * 1.0 / 0.01, 0.02 * 1.4 / 0.01
    estimate, *ends = (float(number) for number in re.findall(r"[\d.]+", table["good"][0]))
    assert estimate == pytest.approx(2.4)
    assert low <= ends[0] < 2.4 < ends[1] <= high
    assert len(table["good"]) == 1  # the line that ends early has no ratio
    assert "divided by the statistical limit (0.0100) at the last of the 10,000 samples" in text
    assert text.count("### Ratio") == 1  # Beta has no reference


def test_sample_efficiency_counts_samples_until_the_error_is_low_enough(text):
    # From 1.4, the highest, to 0.02, the lowest: half of the way is sqrt(1.4 * 0.02), 0.167, on a logarithmic scale.
    assert "samples to 0.167" in text
    table = rows(text, "### Sample efficiency")
    assert table["good"][:2] == ["1,000", "5/5"]
    assert table["base"][:2] == ["not reached", "0/5"]
    assert "from the highest evaluation (1.40) to the lowest one in this study (0.0200) on a logarithmic scale" in text


def test_normalisation_is_logarithmic_and_puts_the_worst_at_zero(study, text):
    assert (
        "- Alpha: 1.40 becomes 0 and 0.0200 becomes 1, on a logarithmic scale (highest and lowest evaluation in this study)" in text
    )
    assert "- Beta: 10.0 becomes 0 and 0.100 becomes 1, on a logarithmic scale (reference scores)." in text
    seeds, values = read_results(study).normalised_finals("good")
    assert seeds == [0, 1, 2, 3, 4]
    factors = 1 + 0.1 * np.arange(5)
    alpha = np.log(0.02 * factors / 1.4) / np.log(0.02 / 1.4)
    beta = np.log(0.2 * factors / 10) / np.log(0.1 / 10)
    assert values == pytest.approx(np.stack([alpha, beta], axis=1))
    all_tasks = text.split("## All tasks", 1)[1]
    assert "- good against base: better; probability of improvement 1.00" in all_tasks  # normalised: higher is better


def test_axes_are_logarithmic_and_say_that_lower_is_better(study, monkeypatch):
    monkeypatch.setitem(figures._SETTINGS, "svg.fonttype", "none")  # text stays text
    results = read_results(study)
    task = results.record.tasks[0]
    steps, scores = results.curves("Alpha", "good")
    band = figures.Interval(scores.mean(axis=0), scores.min(axis=0), scores.max(axis=0))
    style = figures.styles(["good"])
    drawing = figures.learning_curves({"good": figures.Curve(steps, band, scores)}, style, task)
    for word in ("samples", "operator error (lower is better)", "statistical limit", "ends early", ">1k<", ">10k<", ">0.1<"):
        assert word in drawing
    points = figures.seed_points({"good": scores[:, -1]}, {"good": figures.Interval(*(part[-1] for part in band))}, style, task)
    assert "final operator error (lower is better)" in points
    assert "statistical limit" in points
    assert "ends early" not in points


@pytest.mark.parametrize("values", [[1.0, 1.01], [1.0, 4.0], [1e-7, 1.0], [0.5, 0.5]])
def test_logarithmic_axes_have_labelled_ticks(values, monkeypatch):
    monkeypatch.setitem(figures._SETTINGS, "svg.fonttype", "none")
    task = Task("a", 20, **{**ERRORS, "references": {}})
    scores = np.array([values])
    curve = figures.Curve(np.array([10.0, 20.0]), figures.Interval(scores[0], scores[0], scores[0]), scores)
    drawing = figures.learning_curves({"v": curve}, figures.styles(["v"]), task)
    ticks = re.findall(r">([\d.e-]+)</text>", drawing)
    assert len(ticks) >= 4  # of both axes
    assert len(ticks) <= 24


@pytest.mark.parametrize(("step", "score"), [(100, 0.0), (100, -1.0), (0, 1.0)])
def test_what_a_logarithmic_axis_cannot_show_is_refused(tmp_path, capsys, step, score):
    update_study(tmp_path, [Task("A", 1000, **ERRORS)], ["v"], None, "x")
    write_curve(tmp_path, "A", "v", 0, [step, 1000], [score, 0.5])
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"evaluations.csv must hold steps and scores > 0, as A has log_scale, got score {score:g} at step {step}" in error
    assert error.count("\n") == 1
    assert main(["status", str(tmp_path)]) == 0


def test_errors_without_logarithms_may_be_zero(tmp_path):
    update_study(tmp_path, [Task("A", 1000, **{**ERRORS, "log_scale": False})], ["v"], None, "x")
    write_curve(tmp_path, "A", "v", 0, [0, 1000], [1.0, 0.0])
    assert "from the highest evaluation (1.00) to the lowest" in report(tmp_path).with_suffix(".md").read_text(encoding="utf-8")


def test_compare_command_knows_that_lower_is_better(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    worse = write_study(tmp_path / "worse", shift=3.0)
    assert main(["compare", str(study), str(worse)]) == 0
    output = capsys.readouterr().out
    line = next(line for line in output.splitlines() if "Alpha" in line and "base" in line)
    assert re.search(r"base +0\.24 \[.*\] +0\.72 \[.*\] +0 \[0, 0\] +worse", line)
    assert "Lower is better on Alpha, Beta." in output


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("goal", "maximize", "its goal is minimize in the first and maximize in the second"),
        ("score_name", "regret", "its score_name is operator error in the first and regret in the second"),
        ("final_evaluations", 2, "its final_evaluations is 1 in the first and 2 in the second"),
    ],
)
def test_studies_with_other_scores_are_not_compared(study, tmp_path, capsys, field, value, message):
    options = {**ERRORS, field: value}
    update_study(tmp_path, [Task("Alpha", 10_000, **options)], ["base"], None, "x")
    assert main(["compare", str(study), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {study} and {tmp_path} must agree about Alpha to be compared, but {message}\n"


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
@pytest.mark.parametrize(
    ("scores", "baseline"),
    [
        ([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0]),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.5]),
        ([3.0, 4.0, 5.0, 6.0, 7.0, 30.0], [0.0, 0.5, 1.0, 2.0, 3.5, 6.5]),
    ],
)
def test_minimising_scores_is_maximising_their_negatives(scores, baseline, goal):
    other = "minimize" if goal == "maximize" else "maximize"
    first = compare("a", np.array(scores), "b", np.array(baseline), goal)
    second = compare("a", -np.array(scores), "b", -np.array(baseline), other)
    assert first.verdict == second.verdict
    assert first.improvement == pytest.approx(tuple(second.improvement))
    assert re.sub(r" \((lower|higher)\)", "", first.sentence()) == re.sub(r" \((lower|higher)\)", "", second.sentence())


def test_worse_means_higher():
    sentence = compare("a", np.arange(5.0, 9.0), "b", np.arange(4.0), "minimize").sentence()
    assert sentence.startswith("a against b: worse (higher); probability of improvement 0.00")


def test_probability_of_improvement_counts_lower_scores():
    assert float(probability_of_improvement([1.0, 2.0], [1.0, 0.0], goal="minimize").estimate) == 0.125  # one tie of four


def test_sample_efficiency_is_the_first_step_at_most_the_threshold():
    curves = [[5.0, 2.0, 1.0], [9.0, 8.0, 7.0]]
    assert sample_efficiency([10, 20, 30], curves, threshold=2.0, goal="minimize").tolist() == [20.0, np.inf]


def test_final_score_of_a_number_of_evaluations():
    assert final_score(np.arange(40.0), 1) == 39.0
    assert final_score(np.arange(40.0), 3) == 38.0
    assert final_score(np.arange(2.0), 5) == 0.5
