"""Pruning: what is judged how, what becomes of a pruned run and trial, and that the outcome is a function of the data."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from parabolas import PLACE
from searching import TASK, VARIANTS, FakeStudy, Killed, rates, search

from rlopt.study import Recorder, Task, Trial, Tuned, run_study
from rlopt.study import search as module
from rlopt.study.files import read_json, write_json
from rlopt.study.pruning import RULE_KEY, Pruned, Rule
from rlopt.study.runs import read_evaluations, read_manifest, read_status
from rlopt.study.thresholds import Curve, make_rule
from rlopt.study.worker import TAKEN

LOW = Task("t", 100, goal="minimize")


def recorder_with(folder, points, *, goal="minimize", judged="best", seed=3):
    folder.mkdir(parents=True, exist_ok=True)
    rule = {"goal": goal, "judged": judged, "total_steps": 100, "thresholds": {"3": points}}
    write_json(folder / "config.json", {"seed": seed, RULE_KEY: rule})
    return Recorder(folder)


def stop_of(rule, seed, steps, scores):
    """Step at which a run with these evaluations stops, None if it does not."""
    content = rule["thresholds"][str(seed)]
    found = Rule(rule["goal"], rule["judged"], content, rule["total_steps"])
    for count in range(1, len(steps) + 1):
        try:
            found.check(steps[:count], scores[:count])
        except Pruned:
            return steps[count - 1]
    return None


def curves_of(rows, *, whole=None):
    """Curves with evaluations at 10, 20, ..., 100."""
    steps = np.arange(10.0, 101.0, 10.0)
    return [
        Curve(steps[: len(row)], np.array(row, dtype=float), len(row) == 10 if whole is None else whole[index])
        for index, row in enumerate(rows)
    ]


def test_the_best_score_so_far_is_compared_with_the_threshold(tmp_path):
    recorder = recorder_with(tmp_path, [(30, 2.0), (60, 1.0)])
    recorder.evaluation(10, 9.0)  # before the first threshold
    recorder.evaluation(20, 1.5)
    recorder.evaluation(30, 8.0)  # 1.5 is the best so far
    recorder.evaluation(50, 7.0)  # no threshold since the last evaluation
    with pytest.raises(Pruned, match=r"pruned at step 60: the score 1.5 is worse than 1"):
        recorder.evaluation(60, 3.0)
    assert [row.step for row in read_evaluations(tmp_path)] == [10, 20, 30, 50, 60]


def test_the_last_score_is_compared_with_the_threshold(tmp_path):
    recorder = recorder_with(tmp_path, [(25, -2.0), (50, -1.0)], goal="maximize", judged="last")
    recorder.evaluation(10, -9.0)
    recorder.evaluation(30, -2.0)  # the first at or after 25; equal is not worse
    recorder.evaluation(40, -9.0)
    with pytest.raises(Pruned):
        recorder.evaluation(60, -1.1)


def test_of_several_thresholds_between_two_evaluations_the_last_one_counts(tmp_path):
    recorder = recorder_with(tmp_path, [(20, 1.0), (40, 3.0), (50, 4.0)])
    recorder.evaluation(10, 2.0)
    recorder.evaluation(49, 3.5)  # 2.0 is not worse than 3.0
    with pytest.raises(Pruned, match=r"2 is worse than 1"):
        recorder_with(tmp_path / "other", [(20, 3.0), (40, 1.0), (50, 4.0)]).evaluation(49, 2.0)


def test_the_end_of_a_run_is_not_judged_nor_a_run_with_another_seed(tmp_path):
    recorder_with(tmp_path / "end", [(90, 0.0)]).evaluation(100, 9.0)
    recorder_with(tmp_path / "other", [(10, 0.0)], seed=4).evaluation(50, 9.0)
    Recorder(tmp_path).evaluation(50, 9.0)  # no config


def test_a_run_that_died_while_it_was_judged_is_judged_when_it_goes_on(tmp_path):
    recorder = recorder_with(tmp_path, [(30, 2.0)])
    recorder.evaluation(10, 5.0)
    with pytest.raises(Pruned):
        recorder.evaluation(30, 5.0)
    with pytest.raises(Pruned):
        Recorder(tmp_path)


def test_median_thresholds_by_hand():
    """Medians of 4 whole curves at a quarter of the steps and later, not at the end; the pruned curve does not count."""
    rows = [[score] * 10 for score in (1, 2, 3, 10)]
    rule = make_rule("median", LOW, {7: curves_of([*rows, [0, 0, 0]])})
    assert rule["thresholds"] == {"7": [(step, 2.5) for step in range(30, 100, 10)]}
    assert make_rule("median", LOW, {7: curves_of(rows[:3])})["thresholds"] == {"7": []}


def test_halving_thresholds_by_hand():
    """At 12.5, 25 and 50 steps, of those that got there: with 4 or 5 earlier ones at most one or two may be better."""
    rows = [[1, 11, 1, 1, 21, 9, 9, 9, 9, 9], [2, 12, 1, 1, 22, 9], [3, 13, 1, 1, 23], [4, 14, 1], [5, 15, 1], [6, 16]]
    rule = make_rule("halving", LOW, {7: curves_of(rows)})
    assert rule["thresholds"] == {"7": [(13, 13.0), (25, 1.0)]}  # of 6, 5 and only 3 earlier ones
    rule = make_rule("halving", LOW, {7: curves_of(rows[:5])})
    assert rule["thresholds"]["7"][0] == (13, 13.0)  # among the better 3 of 6
    assert make_rule("halving", LOW, {7: curves_of(rows[:4])})["thresholds"]["7"][0] == (13, 12.0)  # among the better 2 of 5


def test_curves_with_other_steps_keep_their_last_score():
    odd = [Curve(np.array([15.0, 45.0, 100.0]), np.array([8.0, 4.0, 1.0]), True)] * 3
    even = [Curve(np.array([20.0, 40.0, 100.0]), np.array([6.0, 2.0, 1.0]), True)] * 2
    rule = make_rule("median", LOW, {7: [*odd, *even]})
    assert rule["thresholds"]["7"] == [(40, 8.0), (45, 4.0)]


@pytest.mark.parametrize("pruner", ["median", "halving"])
@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_the_rules_are_those_of_optuna(pruner, goal):
    """Against Optuna's own pruners on random curves."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task, steps = Task("t", 80, goal=goal), list(range(10, 81, 10))
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(60):
        rows = rng.normal(size=(int(rng.integers(4, 12)), 8)).round(1) + np.linspace(0, 2, 8)
        lengths = [8 if index < 4 else int(rng.choice([2, 4, 8])) for index in range(len(rows))]
        earlier, new = [row[:length] for row, length in zip(rows, lengths, strict=True)][:-1], rows[-1]
        if len(earlier) < 4:
            continue
        theirs = (
            optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=20, n_min_trials=4)
            if pruner == "median"
            else optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=2)
        )
        study = optuna.create_study(direction=goal, pruner=theirs)
        for row in earlier:
            trial = study.ask()
            for step, score in zip(steps, row, strict=False):
                trial.report(float(score), step)
                trial.should_prune()  # halving notes that the trial has got there
            state = optuna.trial.TrialState.COMPLETE if len(row) == 8 else optuna.trial.TrialState.PRUNED
            study.tell(trial, float(row[-1]) if len(row) == 8 else None, state=state)
        expected = None
        trial = study.ask()
        for step, score in zip(steps[:-1], new, strict=False):
            trial.report(float(score), step)
            # Optuna's halving judges with fewer than four competitors too.
            judges = sum(len(row) * 10 >= step for row in earlier)
            if trial.should_prune() and judges >= 4:
                expected = step
                break
        curves = [Curve(np.array(steps[: len(row)], float), np.array(row), len(row) == 8) for row in earlier]
        found = stop_of(make_rule(pruner, task, {0: curves}), 0, steps, new.tolist())
        assert found == expected
        stopped += found is not None
    assert 15 < stopped < 50


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_pruning_saves_steps_and_loses_nothing_where_curves_do_not_cross(fake, tmp_path, pruner):
    pytest.importorskip("optuna")
    whole = search(tmp_path / "whole", "descent", num_trials=12)
    found = search(tmp_path / "s", "descent", num_trials=12, pruner=pruner)
    for name, of in found.items():
        pruned = [trial for trial in of.trials if trial.pruned]
        assert 3 <= len(pruned) <= 7
        assert not any(trial.pruned for trial in of.trials[:4])
        assert rates(of)[:4] == rates(whole[name])[:4]
        assert not of.best.pruned
        assert of.best.score == min(trial.score for trial in of.trials if not trial.pruned)
        assert of.best.score < min(trial.score for trial in pruned)
        assert of.total_steps == 120
        done = 0
        for number in range(12):
            folder = tmp_path / "s" / "t" / f"{name}_trial_{number}" / "seed_1000000"
            rows = read_evaluations(folder)
            done += rows[-1].step
            assert of.trials[number].score == rows[-1].score
            assert (read_status(folder) == "pruned") == of.trials[number].pruned
        assert of.saved_steps == 120 - done > 0
        assert whole[name].saved_steps == 0


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_with_pruning_too_only_the_data_matter(fake, tmp_path, pruner):
    pytest.importorskip("optuna")
    options = {"pruner": pruner, "num_trials": 9, "seeds": (10, 11)}
    expected = search(tmp_path / "s", "descent", **options)
    assert any(trial.pruned for trial in expected["a"].trials)
    fake.backwards = True
    assert search(tmp_path / "backwards", "descent", jobs=5, **options) == expected
    before = fake.runs
    (tmp_path / "s" / "optuna" / "journal.log").unlink()
    assert search(tmp_path / "s", "descent", **options) == expected
    assert fake.runs == before
    for count in (3, 6):
        search(tmp_path / "longer", "descent", **{**options, "num_trials": count})
    assert search(tmp_path / "longer", "descent", **options) == expected


def test_a_pruned_search_killed_at_any_moment_ends_as_an_undisturbed_one(monkeypatch, no_disk, tmp_path):
    pytest.importorskip("optuna")

    def at(deadline, folder):
        fake = FakeStudy()
        fake.deadline = deadline
        note = module._Search._note

        def noted(*arguments):
            note(*arguments)
            fake.moment()

        with monkeypatch.context() as patch:
            patch.setattr(module, "run_study", fake)
            patch.setattr(module._Search, "_note", noted)
            return search(folder, "descent", num_trials=8, pruner="median", variants={"a": VARIANTS["a"]}), fake

    expected, undisturbed = at(math.inf, tmp_path / "s")
    assert undisturbed.moments == 8 + 4 + 8
    for moment in range(undisturbed.moments):
        with pytest.raises(Killed):
            at(moment, tmp_path / f"killed_{moment}")
        assert at(math.inf, tmp_path / f"killed_{moment}")[0] == expected, moment


def test_runs_are_judged_by_earlier_runs_with_their_seed(fake, tmp_path):
    pytest.importorskip("optuna")
    search(tmp_path, "descent", num_trials=6, pruner="median", seeds=(10, 19), variants={"a": VARIANTS["a"]})
    rule = read_json(tmp_path / "t" / "a_trial_4" / "seed_10" / "config.json")[RULE_KEY]
    earlier = {
        seed: [read_evaluations(tmp_path / "t" / f"a_trial_{number}" / f"seed_{seed}") for number in range(4)] for seed in (10, 19)
    }
    for seed, runs in earlier.items():
        for step, threshold in rule["thresholds"][str(seed)]:
            assert threshold == np.median([run[step - 1].score for run in runs])
    assert [step for step, _ in rule["thresholds"]["10"]] == list(range(3, 10))
    before = read_json(tmp_path / "t" / "a_trial_3" / "seed_10" / "config.json")[RULE_KEY]
    assert before["thresholds"] == {"10": [], "19": []}


def test_pruned_runs_are_no_judges_of_the_median(fake, tmp_path):
    pytest.importorskip("optuna")
    found = search(tmp_path, "descent", num_trials=14, pruner="median", variants={"a": VARIANTS["a"]})["a"]
    assert sum(trial.pruned for trial in found.trials[:12]) >= 2
    rule = read_json(tmp_path / "t" / "a_trial_12" / "seed_1000000" / "config.json")[RULE_KEY]
    folders = [tmp_path / "t" / f"a_trial_{number}" / "seed_1000000" for number in range(12) if not found.trials[number].pruned]
    medians = [[step, np.median([read_evaluations(folder)[step - 1].score for folder in folders])] for step in range(3, 10)]
    assert rule["thresholds"]["1000000"] == medians


def test_optuna_sees_pruned_trials_as_pruned_with_their_curves(fake, tmp_path):
    optuna = pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path / 'search.db'}"
    options = {"num_trials": 9, "pruner": "median", "variants": {"a": VARIANTS["a"]}}
    found = search(tmp_path / "s", "descent", storage=url, **options)["a"]
    assert found == search(tmp_path / "journal", "descent", **options)["a"]
    study = optuna.load_study(study_name=f"{tmp_path.name}/s/t/a", storage=url)
    assert [trial.state == optuna.trial.TrialState.PRUNED for trial in study.trials] == [trial.pruned for trial in found.trials]
    assert study.best_value == found.best.score
    for number, trial in enumerate(study.trials):
        rows = read_evaluations(tmp_path / "s" / "t" / f"a_trial_{number}" / "seed_1000000")
        assert trial.intermediate_values == {row.step: row.score for row in rows}


def test_failed_trials_do_not_judge(fake, tmp_path):
    pytest.importorskip("optuna")
    found = search(tmp_path, "descent_or_fails", num_trials=16, pruner="median", failed_score=100.0)["a"]
    failed = [trial.failed for trial in found.trials]
    assert any(failed[:4])
    first = next(number for number in range(16) if found.trials[number].pruned)
    assert sum(not trial.failed for trial in found.trials[:first]) >= 4
    assert not any(trial.failed and trial.pruned for trial in found.trials)


def test_a_pruned_trial_is_best_only_if_none_went_to_its_end():
    trials = (Trial({"x": 1}, 0.0, False, True), Trial({"x": 2}, 5.0, False), Trial({"x": 3}, -1.0, True))
    assert Tuned({}, trials, "minimize", 10).best is trials[1]
    assert Tuned({}, trials[::2], "minimize", 10).best is trials[0]


def test_a_pruner_that_could_stop_nothing_is_refused(fake, tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(ValueError, match=r"pruner has no effect: runs on t record no evaluation before their last step 10"):
        search(tmp_path, "distance", pruner="median")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner": "mean"}, "pruner must be one of median, halving or None, got 'mean'"),
        ({"variants": {"a": {**VARIANTS["a"], RULE_KEY: 1}}}, f"config of a must have no key '{RULE_KEY}'"),
        ({"task": Task("t", 10, {RULE_KEY: 1})}, f"config of a must have no key '{RULE_KEY}'"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, changes, message):
    pytest.importorskip("optuna")
    with pytest.raises(ValueError, match=message):
        search(tmp_path / "s", "descent", **changes)
    assert not (tmp_path / "s").exists()


def test_a_folder_with_another_pruner_is_refused(fake, tmp_path):
    pytest.importorskip("optuna")
    search(tmp_path, "descent", num_trials=2)
    with pytest.raises(ValueError, match='for a with pruner = absent, but pruner = "median" is asked for'):
        search(tmp_path, "descent", num_trials=2, pruner="median")


def test_a_pruned_run_ends_in_order_and_is_not_started_again(tmp_path, capsys):
    """In a real process."""
    rule = {"goal": "minimize", "judged": "best", "total_steps": 10, "thresholds": {"0": [(5, 0.1)]}}
    variants = {"bad": {"rate": 1.0, "best": 0.05, RULE_KEY: rule}, "good": {"rate": 0.05, "best": 0.05, RULE_KEY: rule}}
    options = {"tasks": [TASK], "variants": variants, "seeds": 1, "folder": tmp_path}
    assert run_study(PLACE + "descent_with_checkpoint", **options) == 0
    folder = tmp_path / "t" / "bad" / "seed_0"
    manifest = read_manifest(folder)
    assert manifest["status"] == "pruned"
    assert manifest["reason"].startswith("pruned at step 5: the score 77.86 is worse than 0.1")
    assert manifest["error"] is None
    assert manifest["num_evaluations"] == 5
    assert not (folder / "checkpoint").exists()
    assert not (folder / "error.txt").exists()
    said = capsys.readouterr().out
    assert "t / bad / seed 0 pruned at step 5" in said
    assert "2 runs: 1 finished, 1 pruned." in said
    assert json.loads((folder / "seen.json").read_text()) == ["best", "rate", "seed", "task", "variant"]
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert run_study(PLACE + "descent_with_checkpoint", **options) == 0
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert "2 of 2 runs are finished already" in capsys.readouterr().out
    # A process that another command started just before the run ended leaves it alone.
    command = [sys.executable, "-m", "rlopt.study.worker", str(folder), PLACE + "descent_with_checkpoint", "x"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([*command, str(manifest["attempts"])], env=environment, check=False).returncode == TAKEN
    assert (folder / "manifest.json").stat().st_mtime_ns == before
