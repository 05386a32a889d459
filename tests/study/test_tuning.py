"""Comparisons at equal budgets: tuning, fresh seeds, the report that tells the budget, and going on."""

import math
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
from folders import rows
from parabolas import PLACE
from searching import TASK, VARIANTS, FakeStudy, Killed

from rlopt.study import Range, Task, compare_tuned, tune, tuning
from rlopt.study.budget import read_searches, write_search
from rlopt.study.files import read_json
from rlopt.study.runs import read_evaluations

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fake(fake, monkeypatch):
    """Runs of both kinds take no time."""
    monkeypatch.setattr("rlopt.study.tuning.run_study", fake)
    return fake


@pytest.fixture
def no_report(monkeypatch):
    made = []
    monkeypatch.setattr("rlopt.study.reporting.report", made.append)
    return made


def comparison(folder, function="descent", **changes):
    return compare_tuned(
        PLACE + function, **{"tasks": [TASK], "variants": VARIANTS, "num_trials": 6, "seeds": 3, "folder": folder, **changes}
    )


def test_the_runs_have_the_options_found_and_fresh_seeds(fake, no_report, tmp_path, capsys):
    assert comparison(tmp_path / "s", pruner="median") == 0
    assert no_report == [tmp_path / "s"]
    found = tune(PLACE + "descent", task=TASK, variants=VARIANTS, num_trials=6, folder=tmp_path / "s" / "search", pruner="median")
    said = capsys.readouterr().out
    for name, of in found.items():
        for seed in range(3):
            config = read_json(tmp_path / "s" / "t" / name / f"seed_{seed}" / "config.json")
            assert config == {"task": "t", "variant": name, "seed": seed, **of.options}
            assert len(read_evaluations(tmp_path / "s" / "t" / name / f"seed_{seed}")) == 10  # comparisons prune nothing
        entry = read_searches(tmp_path / "s")["t"][name]
        assert (entry["num_trials"], entry["trial_steps"], entry["total_steps"]) == (6, 10, 60)
        assert entry["values"] == of.best.values
        assert entry["score"] == of.best.score
        assert entry["pruned"] == sum(trial.pruned for trial in of.trials) > 0
        assert entry["saved_steps"] == of.saved_steps
        assert [trial["values"]["rate"] for trial in entry["trials"]] == [trial.values["rate"] for trial in of.trials]
        assert (
            f"t / {name}: rate = {of.best.values['rate']:.4g}; 6 trials, {entry['pruned']} pruned, "
            f"{of.saved_steps} of 60 environment steps saved.\n"
        ) in said
    assert not list((tmp_path / "s" / "t").glob("*/seed_1000000"))


def test_each_task_is_tuned_on_its_own_and_trials_may_be_shorter(fake, no_report, tmp_path):
    tasks = [Task("t", 10, {"best": 0.05}, goal="minimize"), Task("u", 10, {"best": 0.3}, goal="minimize")]
    shorter = [Task(task.name, 7, task.config, goal="minimize") for task in tasks]

    def variants(task):
        return {"v": {"rate": Range.around(task.config["best"] * 2, 30)}}

    assert comparison(tmp_path, tasks=tasks, trial_tasks=shorter, variants=variants, num_trials=3) == 0
    searches = read_searches(tmp_path)
    assert {task: searches[task]["v"]["trial_steps"] for task in searches} == {"t": 7, "u": 7}
    rates = {task: read_json(tmp_path / task / "v" / "seed_0" / "config.json")["rate"] for task in ("t", "u")}
    assert rates == {task: searches[task]["v"]["values"]["rate"] for task in ("t", "u")}
    assert [searches[task]["v"]["ranges"]["rate"]["start"] for task in searches] == [0.1, 0.6]


def test_the_report_tells_the_budget(fake, tmp_path):
    variants = {**VARIANTS, "c": {"rate": Range(1.0, 9.0), "best": 0.05}}
    options = {"variants": variants, "pruner": "median", "failed_score": 1e3, "seeds": 4}
    assert comparison(tmp_path / "s", "descent_or_fails", **options) == 0
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert text.index("## In short") < text.index("## Tuning") < text.index("### Final scores")
    assert "Budgets are equal" in text
    searches = read_searches(tmp_path / "s")["t"]
    assert sum(entry["failed"] for entry in searches.values()) > 0
    table = text.split("## Tuning", 1)[1].split("###")[0]
    for name, entry in searches.items():
        line = next(line for line in table.splitlines() if line.startswith(f"| t | {name} |"))
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        counts = [str(entry[count]) for count in ("failed", "pruned", "saved_steps")]
        assert cells[2:8] == [f"rate = {entry['values']['rate']:.4g}", "6", "10", *counts]
    assert "t / c: rate = " in text
    assert "is at the lower edge of its range from 1 to 9; a wider one, if the option allows it, may hold a better value." in text
    assert "Budgets are equal" in (tmp_path / "s" / "report.html").read_text(encoding="utf-8")
    assert rows(text, "### Final scores")["a"][-2] == "4"

    write_search(tmp_path / "s", "t", {"a": {**searches["a"], "num_trials": 7}})
    from rlopt.study import report

    report(tmp_path / "s")
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "Budgets differ on t: the comparison favours the variants with more trials." in text


def test_a_comparison_killed_at_any_moment_ends_as_an_undisturbed_one(monkeypatch, no_disk, no_report, tmp_path):
    def at(deadline, folder):
        fake = FakeStudy()
        fake.deadline = deadline
        with monkeypatch.context() as patch:
            patch.setattr("rlopt.study.search.run_study", fake)
            patch.setattr("rlopt.study.tuning.run_study", fake)
            assert comparison(folder, num_trials=3, seeds=2) == 0
        places = sorted(path.relative_to(folder) for path in folder.glob("**/evaluations.csv"))
        configs = [read_json(folder / place.parent / "config.json") for place in places]
        return (places, configs, read_searches(folder)), fake

    expected, undisturbed = at(math.inf, tmp_path / "s")
    assert undisturbed.moments == 2 * 3 + 2 + 2 * 2 + 1
    for moment in range(undisturbed.moments):
        folder = tmp_path / f"killed_{moment}"
        with pytest.raises(Killed):
            at(moment, folder)
        assert at(math.inf, folder)[0] == expected, moment


@pytest.mark.parametrize("place", ["search", "tuning"])
def test_a_signal_ends_the_comparison_with_its_status(fake, no_report, tmp_path, monkeypatch, place):
    monkeypatch.setattr(f"rlopt.study.{place}.run_study", lambda *arguments, **options: 143)
    assert comparison(tmp_path) == 143
    assert not no_report


def test_a_failed_run_of_the_comparison_is_told_by_the_status(fake, no_report, tmp_path, monkeypatch):
    monkeypatch.setattr("rlopt.study.tuning.run_study", lambda *arguments, **options: 1)
    assert comparison(tmp_path) == 1
    assert len(no_report) == 1


def test_ranges_without_a_working_value_are_refused_and_kept_on_record(fake, no_report, tmp_path):
    variants = {"a": VARIANTS["a"], "bad": {"rate": Range(1e-4, 1e-3), "best": 1.0}}
    message = r"ranges that hold working values, but none of 3 trials of bad on t ended well; see .*search"
    with pytest.raises(ValueError, match=message):
        comparison(tmp_path, "descent_or_fails", variants=variants, num_trials=3, failed_score=1e3)
    assert read_searches(tmp_path)["t"]["bad"]["failed"] == 3
    with pytest.raises(ValueError, match="none of 3 trials of b on t ended well"):
        comparison(tmp_path / "worse", variants={"b": VARIANTS["a"]}, num_trials=3, failed_score=-1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1_000_000]}, "seeds must be none of trial_seeds, for runs that chose .* got 1000000 in both"),
        ({"seeds": 12, "trial_seeds": (11,)}, "got 11 in both"),
        ({"trial_tasks": [Task("t", 5)]}, "trial_tasks must have the names and goals of tasks, in their order"),
        ({"trial_tasks": []}, "trial_tasks must have the names and goals of tasks, in their order"),
        ({"tasks": []}, "tasks must be one or more with different names, got none"),
        ({"tasks": [TASK, TASK]}, "tasks must be one or more with different names, got t, t"),
        ({"seeds": 0}, "seeds must not be empty, got none"),
        ({"seeds": [1, 1]}, "seeds must differ from each other, got 1 more than once"),
        ({"baseline": "c"}, "baseline must be one of a, b, got c"),
        ({"variants": {"a": {"rate": Range(0, 1), "f": print}}}, "config of t / a must hold JSON values only"),
        (
            {"tasks": [TASK, Task("u", 10)], "variants": lambda task: {task.name: {"rate": Range(0, 1)}}},
            "variants must have the same names for all tasks, got others for t and u",
        ),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        comparison(tmp_path / "s", **changes)
    assert not (tmp_path / "s").exists()


def test_variants_and_tasks_that_are_added_later_stand_beside_earlier_ones(fake, no_report, tmp_path):
    for name, task in (("a", TASK), ("b", TASK), ("b", Task("u", 10, goal="minimize"))):
        assert comparison(tmp_path, tasks=[task], variants={name: VARIANTS[name]}, num_trials=1) == 0
    assert {task: list(found) for task, found in read_searches(tmp_path).items()} == {"t": ["a", "b"], "u": ["b"]}


def test_a_damaged_record_of_a_search_is_one_sentence(tmp_path):
    (tmp_path / "search.json").write_text('{"tasks": ')
    with pytest.raises(ValueError, match=r"search.json is not valid JSON .*; delete it or restore it"):
        read_searches(tmp_path)


@pytest.mark.slow
def test_two_commands_at_once_after_a_kill_in_the_example(fake, tmp_path, monkeypatch):
    """In real processes; both write the report, and the record of the search is that of an undisturbed command."""
    body = tuning.__doc__.split("::\n\n", 1)[1]
    code = "\n".join(line[4:] for line in body.splitlines()).replace("num_trials=12", "num_trials=3").replace("seeds=5", "seeds=1")
    for place in ("shared", "alone"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine.py").write_text(code)
    shared = tmp_path / "shared"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    processes = []

    def start():
        processes.append(subprocess.Popen([sys.executable, "mine.py"], cwd=shared, env=environment, stdout=subprocess.DEVNULL))
        return processes[-1]

    try:
        killed = start()
        deadline = time.monotonic() + 200
        while not list(shared.glob("runs/parabola/search/*/*_trial_1/seed_1000000/evaluations.csv")):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        killed.kill()
        pair = [start(), start()]
        assert [process.wait(timeout=300) for process in pair] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    monkeypatch.chdir(tmp_path / "alone")
    runpy.run_path("mine.py", run_name="__main__")
    found = [read_json(tmp_path / place / "runs" / "parabola" / "search.json") for place in ("shared", "alone")]
    assert found[0] == found[1]
    assert set(found[0]["tasks"]["parabola"]["heavy ball"]["values"]) == {"rate", "momentum"}
    assert "## Tuning" in (shared / "runs" / "parabola" / "report.md").read_text(encoding="utf-8")
