"""The report of a study whose numbers are known, and what the command line says about it."""

import csv
import re
import shutil
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from folders import rows, write_run

from rlopt.__main__ import main
from rlopt.study import Task, bootstrap_interval, paired_difference, report, seeds_needed
from rlopt.study.comparison import adjust, compare, note
from rlopt.study.figures import styles
from rlopt.study.record import update_study
from rlopt.study.results import align, final_score, read_results
from rlopt.study.runs import update_manifest


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Two tasks, three variants, five seeds; `good` is better by far, `same` equals the baseline, one run failed.

    The report is written; tests that change the folder use `study`.
    """
    folder = tmp_path_factory.mktemp("studies") / "known"
    folder.mkdir()
    tasks = [Task("Alpha", total_steps=200, low=0.0, high=100.0), Task("Beta", total_steps=200)]
    update_study(folder, tasks, ["base", "good", "same"], "base", "python study.py --seeds 5")
    for task in ("Alpha", "Beta"):
        for seed in range(5):
            write_run(folder, task, "base", seed, [10.0 + seed, 12.0 + seed])
            write_run(folder, task, "good", seed, [90.0 + seed, 92.0 + seed])
            write_run(folder, task, "same", seed, [10.0 + seed, 12.0 + seed])
    write_run(folder, "Alpha", "good", 5, [1e6], status="failed")
    update_manifest(folder / "Alpha" / "good" / "seed_5", error="RuntimeError: too | warm")
    report(folder)
    return folder


@pytest.fixture(scope="module")
def text(reported):
    return (reported / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def study(reported, tmp_path):
    return Path(shutil.copytree(reported, tmp_path / "known"))


def test_final_scores_are_the_mean_of_the_last_tenth(text):
    table = rows(text, "### Final scores")
    # Finals of base: 11..15, interquartile mean of five is the mean of the middle three.
    assert table["base"][0].startswith("13.0 [")
    assert table["base"][1:6] == ["13.0", "13.0", "11.0", "15.0", "5"]
    assert table["good"][1:6] == ["93.0", "93.0", "91.0", "95.0", "5"]  # the failed run counts nowhere


def test_seeds_for_half_the_width_are_told(text):
    scores = np.arange(11.0, 16.0)
    low, high = bootstrap_interval(scores)[1:]
    number = rows(text, "### Final scores")["base"][6]
    assert number == f"about {seeds_needed(scores, half_width=float(high - low) / 4, repetitions=5_000)}"
    assert 20 <= int(number.removeprefix("about ")) <= 32  # four times as many, and the correction for small samples


def test_runs_with_equal_seeds_are_compared_in_pairs(text):
    table = rows(text, "Seed by seed, score minus that of base")
    # Each seed of `good` is 80 above that of base: two of 2^5 patterns of signs; four comparisons are made.
    assert table["good"] == ["80.0 [80.0, 80.0]", "5", "1.00", "0.062", "0.25"]
    assert table["same"] == ["0.00 [0.00, 0.00]", "5", "1.00", "1", "1"]
    assert "4 comparisons are made: the more, the sooner one seems to differ by chance." in text
    assert "adjusted for that by Holm's method, are at most 0.05 for none. With so few shared seeds none can be below 0.25" in text
    aggregate = rows(text.split("## All tasks", 1)[1], "Seed by seed, score minus that of base")
    assert aggregate["good"][1:] == ["10", "1.00", "0.002", "0.0039"]  # 2 / 2^10, twice that
    assert "are at most 0.05 for good." in text


def test_tables_as_csv(reported):
    with (reported / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 31
    assert [runs[0][name] for name in ("task", "variant", "seed", "status", "final_score", "wall_seconds")] == [
        "Alpha", "base", "0", "finished", "11.0", "10.0",
    ]  # fmt: skip
    (failed,) = [run for run in runs if run["status"] == "failed"]
    assert (failed["seed"], failed["final_score"]) == ("5", "")
    with (reported / "comparisons.csv").open(newline="") as file:
        found = {(row["task"], row["variant"]): row for row in csv.DictReader(file)}
    assert set(found) == {(task, variant) for task in ("Alpha", "Beta") for variant in ("good", "same")}
    row = found["Alpha", "good"]
    assert (row["baseline"], row["verdict"], row["iqm"], row["baseline_iqm"], row["pairs"]) == (
        "base",
        "better",
        "93.0",
        "13.0",
        "5",
    )
    low, high = bootstrap_interval(np.arange(91.0, 96.0))[1:]
    assert (float(row["iqm_low"]), float(row["iqm_high"])) == (low, high)
    assert (row["mean_difference"], row["p"], row["p_adjusted"]) == ("80.0", "0.0625", "0.25")
    assert (row["probability_of_improvement"], row["variance_ratio"]) == ("1.0", "0.0")


def test_seeds_of_one_variant_only_are_left_out_of_the_pairs():
    scores, baseline = np.array([5.0, 7.0, 1.0]), np.array([4.0, 5.0, 100.0])
    result = compare("a", scores, "b", baseline, seeds=([1, 0, 7], [0, 1, 8]))
    assert result.paired == paired_difference([5.0, 7.0], [5.0, 4.0])  # seeds 1 and 0
    assert float(result.paired.difference.estimate) == 1.5
    assert compare("a", scores, "b", baseline, seeds=([1, 2, 3], [3, 4, 5])).paired is None
    assert compare("a", scores, "b", baseline).paired is None


def test_p_values_are_adjusted_for_all_comparisons_that_have_one():
    rng = np.random.default_rng(0)
    base, seeds = rng.normal(size=8), range(8)
    found = [compare(str(level), base + rng.normal(level, 1.0, size=8), "b", base, seeds=(seeds, seeds)) for level in (0.3, 2.0)]
    found.append(compare("apart", base, "b", base, seeds=(range(10, 18), seeds)))
    first, second, apart = adjust(found)
    small, large = sorted([first, second], key=lambda result: result.paired.p_value)
    assert small.adjusted_p == 2 * small.paired.p_value
    assert large.adjusted_p == max(2 * small.paired.p_value, large.paired.p_value)
    assert apart.adjusted_p is None
    text = note({"first": first, "second": second, "apart": apart})
    assert text.startswith("3 comparisons are made")
    assert "are at most 0.05 for second." in text
    assert note({"apart": apart}) == "No p-values: no two runs of a variant and the baseline share a seed."


def test_verdicts(text):
    table = rows(text, "### Against base")
    assert table["good"] == ["better", "1.00 [1.00, 1.00]"]
    assert table["same"][0] == "no difference shown"
    assert table["same"][1].startswith("0.50 [")
    assert "- Alpha: good against base: better; probability of improvement 1.00 [1.00, 1.00]" in text
    assert "- Alpha: same against base: no difference was shown, the intervals overlap" in text


def test_sample_efficiency_uses_the_reference_scores(text):
    table = rows(text, "### Sample efficiency")
    assert table["good"] == ["190", "5/5", "190", "5/5"]  # thresholds 50 and 90; 90+seed comes at step 190
    assert table["base"] == ["not reached", "0/5", "not reached", "0/5"]


def test_normalisation_is_stated_and_applied(reported, text):
    assert "- Alpha: 0.00 becomes 0 and 100.0 becomes 1 (reference scores)." in text
    assert "- Beta: 0.00 becomes 0 and 96.0 becomes 1 (lowest and highest evaluation in this study)." in text
    results = read_results(reported)
    seeds, values = results.normalised_finals("base")
    assert seeds == [0, 1, 2, 3, 4]
    assert values == pytest.approx(np.stack([np.arange(11, 16) / 100, np.arange(11, 16) / 96], axis=1))


def test_failed_runs_cost_commands_and_versions_are_told(text):
    assert "1 of 31 runs are not finished and count nowhere above." in text
    assert "| Alpha | good | 5 | failed | RuntimeError: too \\| warm |" in text
    assert "python study.py --seeds 5" in text
    assert "Versions: python 3.11.7, torch 2.13.0" in text
    assert "Machine: Test CPU, 2 cores, 8.0 GiB, Linux x86_64" in text
    assert "Git commit: 0123abc" in text
    assert "| Alpha | base | 12.0 | 10.0 to 14.0 | 9.0 | 17 |" in text  # median of 10, ..., 14 s; 200 steps


def test_html_is_one_file_that_needs_nothing_else(reported):
    text = (reported / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg ") == 8  # three per task, two for all tasks
    urls = re.findall(r'(?:src|href)="([^"#][^"]*)"', text) + re.findall(r"url\((?!#)([^)]*)\)", text)
    assert urls == []
    assert "<script" not in text


def test_markdown_figures_exist_and_are_svg(reported, text):
    names = re.findall(r"!\[[^\]]*\]\((figures/[^)]+)\)", text)
    assert len(names) == 8
    for name in names:
        assert ET.parse(reported / name).getroot().tag.endswith("svg")
    assert sorted(path.name for path in (reported / "figures").iterdir()) == sorted(name.split("/")[1] for name in names)


def test_report_is_deterministic(study):
    first = (study / "report.html").read_bytes()
    assert report(study) == study / "report.html"
    assert (study / "report.html").read_bytes() == first


def test_tasks_without_finished_runs_are_left_out_of_the_aggregate(study):
    shutil.rmtree(study / "Beta")
    report(study)
    text = (study / "report.md").read_text(encoding="utf-8")
    assert "## Beta\n\nNo run is finished." in text
    assert "## All tasks" not in text
    assert read_results(study).normalised_finals("base")[1].shape == (5, 1)


def test_names_are_escaped_in_html(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    update_study(folder, [Task("A<b>", total_steps=200)], ["x&y"], None, "python <x>")
    write_run(folder, "A<b>", "x&y", 0, [1.0])
    text = report(folder).read_text(encoding="utf-8")
    assert "A&lt;b&gt;" in text
    assert "<b>" not in text
    assert "x&amp;y" in text


def test_a_study_with_two_seeds_says_that_they_are_too_few(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    update_study(folder, [Task("A", total_steps=200)], ["base", "other", "third"], None, "python x.py")
    for variant, level in (("base", 0.0), ("other", 50.0), ("third", 90.0)):
        for seed in range(2):
            write_run(folder, "A", variant, seed, [level + seed])
    text = report(folder).with_suffix(".md").read_text(encoding="utf-8")
    assert "- A: no difference was shown: 2 seeds of each variant are too few" in text
    assert "in 33 % of such small samples" in text  # 2 / C(4, 2)
    assert "## All tasks" not in text


@pytest.mark.parametrize(
    ("scores", "baseline", "verdict", "words"),
    [
        ([5.0, 6.0, 7.0, 8.0], [1.0, 2.0, 3.0, 4.0], "better", "better; probability of improvement 1.00"),
        ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], "worse", "worse; probability of improvement 0.00"),
        ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], "unclear", "no difference was shown, the intervals overlap"),
        ([5.0, 6.0, 7.0], [1.0, 2.0, 3.0], "too few seeds", "completely in 10 % of such small samples"),
    ],
)
def test_verdict_and_sentence(scores, baseline, verdict, words):
    comparison = compare("a", np.array(scores), "b", np.array(baseline))
    assert comparison.verdict == verdict
    assert words in comparison.sentence()


def test_several_tasks_need_fewer_seeds():
    scores = np.array([[5.0, 6.0], [7.0, 8.0]])
    comparison = compare("a", scores, "b", scores - 5.0)
    assert comparison.chance_of_separation == pytest.approx(2 / 6**2)  # both tasks separate the same way
    assert comparison.verdict == "too few seeds"
    assert compare("a", np.tile(scores, (1, 2)), "b", np.tile(scores - 5.0, (1, 2))).verdict == "better"


def test_points_to_better_when_only_the_order_says_so():
    scores = np.array([3.0, 4.0, 5.0, 6.0, 7.0, 30.0])
    baseline = np.array([0.0, 0.5, 1.0, 2.0, 3.5, 6.5])
    comparison = compare("a", scores, "b", baseline)
    assert comparison.improvement.low > 0.5
    assert comparison.score.low < comparison.baseline_score.high
    assert comparison.verdict == "unclear"
    assert "points to better" in comparison.sentence()


def test_final_score_takes_at_least_one_evaluation():
    assert final_score(np.array([1.0, 5.0])) == 5.0
    assert final_score(np.arange(40.0)) == 37.5  # the last four of forty


def test_align_keeps_the_last_score_until_the_next_evaluation():
    steps, scores = align([(np.array([10.0, 20.0]), np.array([1.0, 2.0])), (np.array([15.0, 20.0]), np.array([5.0, 6.0]))])
    assert steps.tolist() == [15.0, 20.0]  # nothing is known of the second before 15
    assert scores.tolist() == [[1.0, 2.0], [5.0, 6.0]]


def test_variants_differ_in_colour_line_and_marker():
    found = list(styles([f"v{index}" for index in range(8)]).values())
    for column in zip(*found, strict=True):
        assert len(set(column)) == 8


def test_sixty_four_variants_differ_in_each_pair_of_colour_line_and_marker():
    """In print there is no colour; on a curve without markers there is no marker."""
    found = list(styles([f"v{index}" for index in range(64)]).values())
    for first, second in (("color", "line"), ("color", "marker"), ("line", "marker")):
        assert len({(getattr(style, first), getattr(style, second)) for style in found}) == 64


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_stand_out_from_white():
    for style in styles([f"v{index}" for index in range(8)]).values():
        assert 1.05 / (luminance(style.color) + 0.05) > 2.0  # contrast ratio


def test_status_command_counts_runs(study, capsys):
    assert main(["status", str(study)]) == 1  # one failed
    lines = capsys.readouterr().out.splitlines()
    good = next(line for line in lines if line.startswith("Alpha") and "good" in line)
    assert good.split() == ["Alpha", "good", "5", "1"]
    assert "Alpha / good / seed 5 failed: RuntimeError: too | warm" in lines


def test_report_command_prints_the_path(study, capsys):
    assert main(["report", str(study)]) == 0
    assert capsys.readouterr().out == f"{study / 'report.html'}\n"


def test_compare_command(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    other = tmp_path / "other"
    other.mkdir()
    update_study(other, [Task("Alpha", total_steps=200)], ["base"], None, "x")
    for seed in range(5):
        write_run(other, "Alpha", "base", seed, [50.0 + seed])
    assert main(["compare", str(study), str(other)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "Alpha" in line)
    # Of `other` the last two evaluations are 0 and 50 + seed; the differences of the finals are 14, 13.5, ..., 12.
    assert re.search(r"base +13 \[.*\] +26 \[.*\] +1 \[1, 1\] +better +13 \[.*\] +0.062 +0.062 *$", line)


def test_power_command(study, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["power", str(study), "--half-width", "0.5"]) == 0
    output = capsys.readouterr().out
    line = next(line for line in output.splitlines() if "Alpha" in line and "base" in line)
    needed = seeds_needed(np.arange(11.0, 16.0), half_width=0.5)
    assert re.fullmatch(rf" *Alpha +base +5 +13 \[.*\] +{needed} *", line)
    assert "Seeds for an interval of the IQM of ± 0.5, if these runs are typical" in output
    assert main(["power", str(study), "--difference", "2"]) == 0
    assert "a difference of 2 shown in 80 % of all studies" in capsys.readouterr().out
    assert main(["power", str(study), "--half-width", "0.001", "--max-seeds", "50"]) == 0
    assert capsys.readouterr().out.count("over 50") == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --half-width or --difference must be given, and not both"),
        (["--half-width", "0"], "half_width must be > 0, got 0.0"),
    ],
)
def test_power_command_refuses_in_one_line(study, capsys, options, message):
    assert main(["power", str(study), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["status"], ["report"]])
def test_a_folder_that_is_no_study_gives_one_line(tmp_path, capsys, command):
    assert main([*command, str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path} must be the folder of a study, but it has no study.json\n"


def test_the_parent_folder_of_studies_gives_a_hint(study, capsys):
    assert main(["status", str(study.parent)]) == 2
    assert f"there are studies in {study}" in capsys.readouterr().err


def test_a_study_without_finished_runs_gives_one_line(tmp_path, capsys):
    update_study(tmp_path, [Task("A", total_steps=1)], ["v"], None, "x")
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} must hold a finished run to report on, got none of 0\n"


def test_damaged_files_are_named(study, capsys):
    (study / "Alpha" / "base" / "seed_0" / "evaluations.csv").write_text("step,score\n1,2\n")
    assert main(["report", str(study)]) == 2
    error = capsys.readouterr().err
    assert "seed_0/evaluations.csv must have the columns step, score, seconds" in error
    assert error.count("\n") == 1


def test_headings_descend_by_one_level(text):
    levels = [len(mark) for mark in re.findall(r"^(#+) ", text, re.MULTILINE)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
