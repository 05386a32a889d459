"""Studies as a user meets them: they run, stop, go on, and survive failing runs."""

import json
import os
import signal
import sys
from itertools import pairwise

import pytest
from commands_of_studies import kill_all, run, start, wait_for

from rlopt.study import Task, run_study
from rlopt.study.runs import read_evaluations, read_manifest, read_status, update_manifest


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind():
    yield
    kill_all()


def test_folder_layout_and_contents(tmp_path):
    assert run(tmp_path / "s") == 0
    folder = tmp_path / "s" / "toy-A-v0" / "other" / "seed_1"
    assert json.loads((folder / "config.json").read_text()) == {
        "task": "toy/A-v0",
        "variant": "other",
        "seed": 1,
        "level": 5.0,
    }
    assert [(row.step, row.score) for row in read_evaluations(folder)][-1] == (10, 6.0)
    manifest = read_manifest(folder)
    assert manifest["status"] == "finished"
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["versions"].keys() >= {"rlopt", "torch", "stable-baselines3", "gymnasium", "numpy"}
    assert manifest["machine"]["cores"] == os.cpu_count()
    assert manifest["start"] <= manifest["end"]
    assert 0 <= manifest["cpu_seconds"] <= manifest["wall_seconds"] + 1
    study = json.loads((tmp_path / "s" / "study.json").read_text())
    assert (study["variants"], study["baseline"]) == (["base", "other"], "base")


def test_files_never_lie_around_half_written(tmp_path):
    run(tmp_path / "s")
    hidden = [path for path in (tmp_path / "s").rglob("*") if path.name.startswith(".")]
    assert sorted(path.name for path in hidden) == [".lock", ".locks"]


def test_finished_runs_are_not_repeated_and_more_can_be_added(tmp_path, capsys):
    run(tmp_path / "s")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("manifest.json")}
    assert len(before) == 4
    variants = {"base": {"level": 1.0}, "third": {"level": 2.0}}
    assert run(tmp_path / "s", seeds=3, variants=variants) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list((tmp_path / "s").rglob("manifest.json"))) == 8
    assert "2 of 6 runs are finished already." in capsys.readouterr().out
    study = json.loads((tmp_path / "s" / "study.json").read_text())
    assert study["variants"] == ["base", "other", "third"]
    assert len(study["commands"]) == 2


def test_a_folder_of_another_configuration_is_refused_before_anything_starts(tmp_path):
    run(tmp_path / "s", seeds=1)
    (tmp_path / "s" / "toy-A-v0" / "base" / "seed_0" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"other/seed_0 holds a run with level = 5.0, but level = 6.0 is asked for"):
        run(tmp_path / "s", variants={"base": {"level": 1.0}, "other": {"level": 6.0}})
    assert not (tmp_path / "s" / "toy-A-v0" / "base" / "seed_0" / "manifest.json").exists()


def test_a_failing_run_does_not_stop_the_others_and_is_tried_again(tmp_path, capsys):
    assert run(tmp_path / "s", "fail_on_seed_one", seeds=3) == 1
    statuses = [read_status(tmp_path / "s" / "toy-A-v0" / "base" / f"seed_{seed}") for seed in range(3)]
    assert statuses == ["finished", "failed", "finished"]
    failed = tmp_path / "s" / "toy-A-v0" / "base" / "seed_1"
    assert "RuntimeError: the cat\nsat on the keyboard" in (failed / "error.txt").read_text()
    output = capsys.readouterr().out
    assert "toy/A-v0 / base / seed 1 failed: RuntimeError: the cat sat on the keyboard" in output
    assert "6 runs: 4 finished, 2 failed." in output
    assert run(tmp_path / "s", seeds=3) == 0
    assert not (failed / "error.txt").exists()
    assert read_manifest(failed)["error"] is None


def test_a_run_whose_process_is_killed_each_time_fails_in_the_end(tmp_path, capsys):
    assert run(tmp_path / "s", "killed_on_seed_one", variants={"base": {"level": 1.0}}, retries=2) == 1
    output = " ".join(capsys.readouterr().out.split())
    assert "seed 1: killed by SIGKILL; it is started again (1 of 2 times)" in output
    assert "seed 1: killed by SIGKILL; it is started again (2 of 2 times)" in output
    assert "seed 1 failed: killed by SIGKILL, 3 times; the usual cause is that memory ran out" in output
    failed = tmp_path / "s" / "toy-A-v0" / "base" / "seed_1"
    assert (read_status(failed), read_manifest(failed)["attempts"]) == ("failed", 3)
    assert (failed / "output.txt").read_text() == "last words\n"
    assert run(tmp_path / "s", variants={"base": {"level": 1.0}}) == 0  # the next command tries again


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, capsys):
    assert run(tmp_path / "s", "killed_after_its_checkpoint", variants={"v": {}}, seeds=1) == 0
    folder = tmp_path / "s" / "toy-A-v0" / "v" / "seed_0"
    assert [row.score for row in read_evaluations(folder)] == [1.0] * 5 + [2.0] * 5
    assert read_manifest(folder)["attempts"] == 2


def test_a_run_that_is_stopped_from_outside_is_started_again(tmp_path, capsys):
    assert run(tmp_path / "s", "stopped_once", variants={"v": {"level": 1.0}}, seeds=1) == 0
    assert "seed 0: stopped from outside; it is started again (1 of 3 times)" in capsys.readouterr().out
    assert run(tmp_path / "other", "stopped_once", variants={"v": {"level": 1.0}}, seeds=1, retries=0) == 1
    assert "seed 0: stopped from outside" in capsys.readouterr().out
    assert read_status(tmp_path / "other" / "toy-A-v0" / "v" / "seed_0") == "interrupted"


def test_a_process_that_cannot_begin_says_why(tmp_path, capsys, monkeypatch):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "rlopt.py").write_text("raise RuntimeError('wrong place')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlopt.study.launchers.local.worker_environment", lambda: {"PYTHONPATH": str(broken)})
    assert run(tmp_path / "s", variants={"v": {"level": 1.0}}, seeds=1) == 1
    assert "the process ended with exit status 1 before it could say why" in capsys.readouterr().out
    assert "RuntimeError: wrong place" in (tmp_path / "s" / "toy-A-v0" / "v" / "seed_0" / "output.txt").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_order_and_the_same_command_goes_on(tmp_path, number, code):
    folder = tmp_path / "s"
    process = start(folder, "slow_after_first")
    slow = folder / "t" / "v" / "seed_1"
    wait_for(lambda: (slow / "live.json").exists())
    worker = read_manifest(slow)["pid"]
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert "3 runs: 1 finished, 1 interrupted, 1 waiting." in output
    assert "The same command goes on from here:" in output
    assert read_status(slow) == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    finished = (folder / "t" / "v" / "seed_0" / "evaluations.csv").stat().st_mtime_ns
    (folder / "go").touch()
    process = start(folder, "slow_after_first")
    assert process.wait(timeout=300) == 0
    assert (folder / "t" / "v" / "seed_0" / "evaluations.csv").stat().st_mtime_ns == finished
    assert read_status(slow) == "finished"


def test_a_killed_runner_leaves_no_run_running_for_ever(tmp_path):
    folder = tmp_path / "s"
    process = start(folder, "slow_after_first")
    slow = folder / "t" / "v" / "seed_1"
    wait_for(lambda: (slow / "live.json").exists())
    assert read_status(slow) == "running"
    process.kill()
    process.communicate()
    wait_for(lambda: read_status(slow) == "interrupted")  # the worker notices and stops


def test_a_vanished_process_counts_as_interrupted(tmp_path):
    update_manifest(tmp_path, status="running", pid=os.getpid())  # and nobody holds the run
    assert read_status(tmp_path) == "interrupted"


def test_a_run_with_a_checkpoint_goes_on_from_it(tmp_path):
    options = {"variants": {"v": {}}, "seeds": 1}
    assert run(tmp_path / "s", "resumes_from_checkpoint", **options) == 1
    assert run(tmp_path / "s", "resumes_from_checkpoint", **options) == 0
    rows = read_evaluations(tmp_path / "s" / "toy-A-v0" / "v" / "seed_0")
    assert [row.step for row in rows] == list(range(1, 11))
    assert [row.score for row in rows] == [1.0] * 5 + [2.0] * 5
    assert all(a.seconds <= b.seconds for a, b in pairwise(rows))


def test_a_run_without_checkpoint_starts_in_an_empty_folder(tmp_path):
    run(tmp_path / "s", "fail_on_seed_one")
    leftover = tmp_path / "s" / "toy-A-v0" / "base" / "seed_1" / "progress.csv"
    leftover.write_text("old")
    run(tmp_path / "s")
    assert not leftover.exists()


def test_workers_use_one_thread(tmp_path):
    assert run(tmp_path / "s", "writes_its_threads", variants={"v": {}}, seeds=1) == 0
    assert (tmp_path / "s" / "toy-A-v0" / "v" / "seed_0" / "threads.txt").read_text() == "1 1 1"


def test_variants_progress_evenly(tmp_path):
    run(tmp_path / "s", jobs=1)
    starts = sorted((tmp_path / "s").rglob("manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.parent.name for path in starts] == ["seed_0", "seed_0", "seed_1", "seed_1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": 0}, "jobs must be >= 1, got 0"),
        ({"retries": -1}, "retries must be >= 0, got -1"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"seeds": [1, 1]}, "seeds must differ from each other, got 1 more than once"),
        ({"seeds": [-1]}, "seeds must be >= 0, got -1"),
        ({"tasks": []}, "tasks must not be empty"),
        ({"baseline": "none"}, "baseline must be one of base, other, got none"),
        ({"variants": {"v": {"f": print}}}, "config of toy/A-v0 / v must hold JSON values only"),
        ({"variants": {"v": {"seed": 3}}}, "config of toy/A-v0 / v must have no key 'seed', which belongs to the study"),
        ({"variants": {"a/b": {}, "a-b": {}}}, "must differ in more than"),
        ({"variants": {"..": {}}}, "must have a name that can be a folder, got '..'"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "s", **changes)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps of task t must be >= 1, got 0"),
        ({"total_steps": 1, "low": 1.0}, "must be given together"),
        ({"total_steps": 1, "low": 1.0, "high": 1.0}, "low of task t must be below high"),
    ],
)
def test_wrong_tasks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Task("t", **options)


def test_local_functions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="function must be defined at the top level of a module"):
        run_study(lambda config, seed, folder: None, tasks=[Task("t", 1)], variants={"v": {}}, seeds=1, folder=tmp_path)


def test_a_missing_function_is_named(tmp_path, capsys):
    assert run(tmp_path / "s", "nothing_here", seeds=1) == 1
    assert "function must name a function of" in capsys.readouterr().out
