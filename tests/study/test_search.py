"""Searches: what they find, equal budgets, and that neither a kill nor the order of runs changes anything."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy import stats
from searching import VARIANTS, FakeStudy, Killed, rates, search

import rlopt.study.search as module
from rlopt.study import Range, SearchStoppedError, Task, Trial, Tuned
from rlopt.study.ranges import filled, ranges_in
from rlopt.study.runs import read_manifest

ROOT = Path(__file__).parents[2]
optuna = pytest.importorskip("optuna")


def test_every_variant_gets_its_trials_and_the_start_is_the_first(fake, tmp_path):
    found = search(tmp_path)
    assert {name: len(of.trials) for name, of in found.items()} == {"a": 7, "b": 7}
    assert fake.runs == 14
    assert (rates(found["a"])[0], rates(found["b"])[0]) == (1e-2, 1.0)
    for name, of in found.items():
        low, high = VARIANTS[name]["rate"].low, VARIANTS[name]["rate"].high
        assert all(low <= rate <= high for rate in rates(of))
        assert len(set(rates(of))) == 7
        for trial in of.trials:
            assert trial.score == pytest.approx(math.log10(trial.values["rate"] / VARIANTS[name]["best"]) ** 2)
            assert not trial.failed


def test_variants_with_equal_ranges_get_equal_first_trials(fake, tmp_path):
    found = search(tmp_path)
    # Relative to the centre; the rates are rounded to three digits.
    assert [rate * 100 for rate in rates(found["a"])[:4]] == pytest.approx(rates(found["b"])[:4], rel=1e-2)


def test_drawn_rates_are_uniform_on_the_logarithmic_scale(fake, tmp_path):
    drawn = []
    for seed in range(40):
        found = search(tmp_path / str(seed), variants={"b": VARIANTS["b"]}, num_trials=4, sampler_seed=seed)
        drawn += [(math.log(rate) / math.log(30) + 1) / 2 for rate in rates(found["b"])[1:]]
    assert stats.kstest(drawn, "uniform").pvalue > 0.01


def test_the_best_trial_and_its_options(fake, tmp_path):
    found = search(tmp_path, num_trials=20)
    for name, of in found.items():
        scores = [trial.score for trial in of.trials]
        assert of.best is of.trials[int(np.argmin(scores))]
        assert of.options == {"rate": of.best.values["rate"], "best": VARIANTS[name]["best"]}
        assert abs(math.log10(of.options["rate"] / of.options["best"])) < 0.15  # of a range of 2.95


def test_the_sampler_follows_the_scores(fake, tmp_path):
    """The last ten of twenty trials are nearer to the best rate than random ones are, in the mean over seeds."""
    distances = []
    for seed in range(8):
        found = search(tmp_path / str(seed), variants={"a": VARIANTS["a"]}, num_trials=20, sampler_seed=seed)["a"]
        distances.append(np.mean([abs(math.log10(rate / 0.05)) for rate in rates(found)[10:]]))
    ends = [math.log10(0.05 * 30 / 0.01), math.log10(0.3 / 0.05)]
    random = sum(end**2 / 2 for end in ends) / sum(ends)
    assert np.mean(distances) < random / 2


def test_several_nested_ranges_and_the_goal_maximize(fake, tmp_path):
    variants = {"v": {"inner": {"x": Range(-1, 1), "y": Range(-1, 1)}, "layers": Range(1, 9, integer=True), "k": "fixed"}}
    found = search(tmp_path, "bowl", variants=variants, task=Task("t", 10), num_trials=40)["v"]
    assert found.trials[0].values == {"inner.x": 0.0, "inner.y": 0.0, "layers": 5}
    assert all(isinstance(trial.values["layers"], int) for trial in found.trials)
    assert found.best.score == max(trial.score for trial in found.trials)
    assert found.best.score > -0.05
    best = found.best.values
    assert found.options == {"inner": {"x": best["inner.x"], "y": best["inner.y"]}, "layers": best["layers"], "k": "fixed"}


def test_the_score_of_a_trial_is_the_mean_over_its_seeds(fake, tmp_path):
    one, two = (search(tmp_path / str(seeds), num_trials=1, seeds=seeds)["a"].trials[0] for seeds in ((10,), (11, 15)))
    assert two.score - one.score == pytest.approx((0.001 + 0.005) / 2)


def test_neither_the_order_of_runs_nor_jobs_nor_other_variants_matter(fake, tmp_path):
    expected = search(tmp_path / "s")
    fake.backwards = True
    assert search(tmp_path / "backwards", jobs=5) == expected
    assert fake.jobs[-1] == 5
    alone = search(tmp_path / "alone", variants={"b": VARIANTS["b"]})
    assert alone["b"] == expected["b"]
    assert search(tmp_path / "alone") == expected  # a variant that is added later


def test_the_seed_of_the_sampler_matters(fake, tmp_path):
    assert search(tmp_path / "s") != search(tmp_path / "other", sampler_seed=1)


def test_more_trials_later_are_those_of_a_longer_search(fake, tmp_path):
    whole = search(tmp_path / "whole", num_trials=10)
    for count in (1, 3, 4, 9):
        search(tmp_path / "s", num_trials=count)
    assert search(tmp_path / "s", num_trials=10) == whole
    before = fake.runs
    short = search(tmp_path / "s", num_trials=3)
    assert short["a"].trials == whole["a"].trials[:3]
    assert fake.runs == before


def test_a_search_killed_at_any_moment_ends_as_an_undisturbed_one(monkeypatch, no_disk, tmp_path):
    """Moments: before each run, after each batch, before and after each note of a score."""

    def at(deadline, folder):
        fake = FakeStudy()
        fake.deadline = deadline
        note = module._Search._note

        def noted(*arguments):
            fake.moment()
            note(*arguments)
            fake.moment()

        with monkeypatch.context() as patch:
            patch.setattr(module, "run_study", fake)
            patch.setattr(module._Search, "_note", noted)
            return search(folder, num_trials=3), fake

    expected, undisturbed = at(math.inf, tmp_path / "s")
    assert undisturbed.moments == 6 + 2 + 2 * 6
    for moment in range(undisturbed.moments):
        folder = tmp_path / f"killed_{moment}"
        with pytest.raises(Killed):
            at(moment, folder)
        found, second = at(math.inf, folder)
        assert found == expected, moment
        assert second.moments <= undisturbed.moments - moment // 3, moment  # what was finished is not repeated


def test_a_lost_journal_costs_no_run(fake, tmp_path):
    expected = search(tmp_path)
    (tmp_path / "optuna" / "journal.log").unlink()
    before = fake.runs
    assert search(tmp_path) == expected
    assert fake.runs == before


def test_what_a_killed_process_leaves_in_the_journal_is_repaired(fake, tmp_path):
    expected = search(tmp_path / "whole")
    search(tmp_path / "s", num_trials=3)
    journal = tmp_path / "s" / "optuna" / "journal.log"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"work')
    Path(f"{journal}.lock").symlink_to(journal)
    start = time.monotonic()
    assert search(tmp_path / "s") == expected
    assert time.monotonic() - start < 20  # Optuna itself waits half a minute for the lock


def test_any_storage_url_is_accepted(fake, tmp_path):
    url = f"sqlite:///{tmp_path / 'search.db'}"
    options = {"variants": {"a": VARIANTS["a"]}, "num_trials": 2}
    found = search(tmp_path / "s", storage=url, **options)
    assert found == search(tmp_path / "journal", **options)
    before = fake.runs
    assert search(tmp_path / "s", storage=url, **options) == found
    assert fake.runs == before
    study = optuna.load_study(study_name=f"{tmp_path.name}/s/t/a", storage=url)
    assert study.best_value == found["a"].best.score
    assert not (tmp_path / "s" / "optuna" / "journal.log").exists()


def test_the_journal_is_one_that_optuna_opens(fake, tmp_path):
    found = search(tmp_path / "s")
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "s" / "optuna" / "journal.log"))
    study = optuna.load_study(study_name=f"{tmp_path.name}/s/t/b", storage=optuna.storages.JournalStorage(backend))
    assert [trial.params["rate"] for trial in study.trials] == rates(found["b"])
    assert study.direction == optuna.study.StudyDirection.MINIMIZE


def test_failed_trials_count_and_get_the_score_that_is_given(fake, tmp_path):
    found = search(tmp_path, "fails_above_best", failed_score=100.0)["a"]
    assert len(found.trials) == 7
    failed = [trial for trial in found.trials if trial.failed]
    assert failed == [trial for trial in found.trials if trial.values["rate"] > 0.05]
    assert failed
    assert {trial.score for trial in failed} == {100.0}
    assert not found.best.failed
    before = fake.runs
    assert search(tmp_path, "fails_above_best", failed_score=100.0)["a"] == found
    assert fake.runs == before


def test_a_failed_run_ends_a_search_without_a_score_for_it(fake, tmp_path):
    with pytest.raises(ValueError, match=r"every run of a search must end, but one has failed: see error.txt in .*trial_\d/seed_1"):
        search(tmp_path, "fails_above_best")


def test_a_run_that_was_interrupted_is_no_failed_one(fake, tmp_path, monkeypatch):
    for place in ("trials", "search"):
        monkeypatch.setattr(f"rlopt.study.{place}.read_status", lambda folder: "interrupted")
    with pytest.raises(ValueError, match=r"trial_0/seed_1000000 is interrupted; start the search again"):
        search(tmp_path, failed_score=1.0)


def test_a_run_without_evaluation_is_told(fake, tmp_path):
    with pytest.raises(ValueError, match=r"every run of a search must record an evaluation, but .*seed_1000000 has none"):
        search(tmp_path, "silent")


def test_a_signal_ends_the_search_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "run_study", lambda *arguments, **options: 130)
    with pytest.raises(SearchStoppedError) as stopped:
        search(tmp_path)
    assert stopped.value.status == 130


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {"rate": Range.around(1e-2, 10), "best": 0.05}}}, "for a with config.rate.low = 0.00033"),
        ({"variants": {"a": {"rate": Range.around(1e-2, 30), "best": 1}}}, "for a with config.best = 0.05, but config.best = 1 is"),
        ({"task": Task("t", total_steps=10)}, 'for a with goal = "minimize", but goal = "maximize" is asked for'),
        ({"task": Task("t", total_steps=11, goal="minimize")}, "for a with total_steps = 10, but total_steps = 11 is asked for"),
        ({"task": Task("t", 10, {"k": 1}, goal="minimize")}, "for a with config.k = absent, but config.k = 1 is asked for"),
        ({"sampler_seed": 1}, "for a with sampler_seed = 0, but sampler_seed = 1 is asked for; choose another study name or"),
        ({"seeds": [3]}, r"for a with seeds = \[1000000\], but seeds = \[3\]"),
        ({"batch": 3}, "for a with batch = 2, but batch = 3 is asked for"),
        ({"failed_score": 3.0}, "for a with failed_score = null, but failed_score = 3.0 is asked for"),
    ],
)
def test_a_folder_with_another_search_is_refused(fake, tmp_path, changes, message):
    search(tmp_path, num_trials=2)
    before = fake.runs
    with pytest.raises(ValueError, match=f"holds a search {message}"):
        search(tmp_path, **changes)
    assert fake.runs == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trials": 0}, "num_trials must be >= 1, got 0"),
        ({"batch": 0}, "batch must be >= 1, got 0"),
        ({"jobs": 0}, "jobs must be >= 1, got 0"),
        ({"sampler_seed": -1}, "sampler_seed must be >= 0, got -1"),
        ({"retries": -1}, "retries must be >= 0, got -1"),
        ({"failed_score": math.inf}, "failed_score must be finite, got inf"),
        ({"seeds": []}, "seeds must hold one or more numbers, got none"),
        ({"variants": {"a": {"rate": 1.0}}}, "variants must each hold a Range to search in, got none in a"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        search(tmp_path / "s", **changes)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 1, "high": 1}, "low and high of a range must be finite and low < high, got 1 and 1"),
        ({"low": 0, "high": math.inf}, "must be finite and low < high, got 0 and inf"),
        ({"low": 0, "high": 1, "log": True}, "low of a range must be > 0 with log, got 0"),
        ({"low": 1.5, "high": 3, "integer": True}, "must be integers with integer, got 1.5 and 3"),
        ({"low": 1, "high": 3, "start": 4}, r"start of a range must be in \[1, 3\], got 4"),
        ({"low": 1, "high": 3, "integer": True, "start": 2.5}, r"start of a range must be an integer in \[1, 3\], got 2.5"),
    ],
)
def test_wrong_ranges_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Range(**fields)


@pytest.mark.parametrize(("centre", "factor"), [(0, 2), (1, 1), (-1, 3), (math.nan, 2)])
def test_wrong_centres_are_refused(centre, factor):
    with pytest.raises(ValueError, match="centre must be > 0 and factor > 1"):
        Range.around(centre, factor)


def test_the_first_value_is_the_middle_unless_one_is_given():
    assert Range(0, 10).start == 5.0
    assert Range(1, 100, log=True).start == pytest.approx(10.0)
    assert Range(1, 100, log=True, start=3.0).start == 3.0
    assert Range(1, 8, integer=True).start == 4


def test_values_in_the_outer_tenth_are_at_the_edge():
    linear, log = Range(0, 100), Range(1e-3, 1e2, log=True)  # 5 decades: the outer tenth is half a decade
    assert [linear.edge(value) for value in (0, 9, 11, 89, 91, 100)] == ["lower", "lower", None, None, "upper", "upper"]
    assert [log.edge(value) for value in (1e-3, 3e-3, 3.3e-3, 30, 33)] == ["lower", "lower", None, None, "upper"]


def test_edges_of_the_best_values_are_told():
    variant = {"rate": Range(0.0, 1.0), "inner": {"x": Range(0.0, 1.0)}}
    trials = (Trial({"rate": 0.5, "inner.x": 0.5}, 3.0, False), Trial({"rate": 0.5, "inner.x": 0.99}, 2.0, False))
    assert Tuned(variant, trials, "minimize", 10).edges == {"inner.x": "upper"}
    assert Tuned(variant, trials, "maximize", 10).edges == {}


def test_a_failed_trial_is_best_only_if_all_failed():
    trials = (Trial({"x": 1}, 0.0, True), Trial({"x": 2}, 5.0, False), Trial({"x": 3}, 5.0, False))
    assert Tuned({}, trials, "minimize", 10).best is trials[1]
    assert Tuned({}, trials[:1], "minimize", 10).best is trials[0]


def test_ranges_are_found_and_replaced_at_any_depth():
    options = {"a": Range(0, 1), "b": {"c": {"d": Range(2, 3)}, "e": 5}, "f": [1]}
    assert ranges_in(options) == {"a": Range(0, 1), "b.c.d": Range(2, 3)}
    assert filled(options, {"a": 0.5, "b.c.d": 2.5}) == {"a": 0.5, "b": {"c": {"d": 2.5}, "e": 5}, "f": [1]}


def test_without_optuna_one_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"optuna must be installed for a search, but is not: pip install 'rlopt\[search\]'\."):
        search(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_the_package_is_imported_without_optuna():
    code = "import sys; sys.modules['optuna'] = None; from rlopt.study import Range, tune; print(Range(0, 1).start)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout == "0.5\n"


def test_how_much_optuna_says_elsewhere_stays_as_it_was(fake, tmp_path):
    before = optuna.logging.get_verbosity()
    try:
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        search(tmp_path, num_trials=1)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)


@pytest.mark.slow
def test_three_commands_share_a_search_and_one_is_killed(fake, tmp_path):
    """In real processes, with pruning and a database: no trial is done twice, and all end as an undisturbed search."""
    folder = tmp_path / "s"
    url = f"sqlite:///{tmp_path / 'search.db'}"
    options = "num_trials=7, variants={'a': VARIANTS['a']}, pruner='median'"
    code = (
        "import json; from searching import VARIANTS, search; "
        f"found = search({str(folder)!r}, 'slow_sixth', storage={url!r}, {options}); "
        "print(json.dumps([[trial.values, trial.score, trial.pruned] for trial in found['a'].trials]))"
    )
    paths = [str(ROOT), str(Path(__file__).parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    commands = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    try:
        slow = folder / "t" / "a_trial_5" / "seed_1000000"
        deadline = time.monotonic() + 200
        while not (slow / "live.json").exists():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
        owner = psutil.Process(read_manifest(slow)["pid"]).ppid()
        victim = next(command for command in commands if command.pid == owner)
        victim.kill()
        victim.communicate()
        (folder / "go").touch()
        outputs = [command.communicate(timeout=300)[0] for command in commands if command is not victim]
        assert [command.returncode for command in commands if command is not victim] == [0, 0]
    finally:
        for command in commands:
            command.kill()
    expected = search(tmp_path / "undisturbed", "descent", num_trials=7, variants={"a": VARIANTS["a"]}, pruner="median")["a"]
    assert any(trial.pruned for trial in expected.trials)
    for output in outputs:
        assert json.loads(output.splitlines()[-1]) == [[trial.values, trial.score, trial.pruned] for trial in expected.trials]
    for number in range(7):
        manifest = read_manifest(folder / "t" / f"a_trial_{number}" / "seed_1000000")
        assert manifest["attempts"] == (2 if number == 5 else 1)
