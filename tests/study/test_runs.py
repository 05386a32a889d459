"""Files of a run."""

import json
import sys

import pytest

from rlopt.study import Recorder
from rlopt.study.files import read_json, write_json, write_text
from rlopt.study.grid import Run, first_difference
from rlopt.study.machine import command_line
from rlopt.study.runs import announce, check_config, prepare, read_evaluations, read_live, read_status, summarise


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def full_disk(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("rlopt.study.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_files_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        read_json(tmp_path / "a.json")


def test_evaluations_file_has_the_documented_columns(tmp_path):
    Recorder(tmp_path).evaluation(step=100, score=0.1)
    header, row = (tmp_path / "evaluations.csv").read_text().splitlines()
    assert header == "step,score,seconds"
    assert row.startswith("100,0.1,0.")


def test_a_score_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="score must be finite, got nan at step 5"):
        Recorder(tmp_path).evaluation(5, float("nan"))


def test_scores_survive_the_file_exactly(tmp_path):
    Recorder(tmp_path).evaluation(step=1, score=0.1 + 0.2)
    assert read_evaluations(tmp_path)[0].score == 0.1 + 0.2


def test_progress_is_written_at_once_then_seldom(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("rlopt.study.runs.time.monotonic", lambda: clock[0])
    recorder = Recorder(tmp_path)
    recorder.progress(1)
    assert read_live(tmp_path)[:2] == (1, None)
    clock[0] += 0.4
    recorder.evaluation(2, 5.0)
    recorder.progress(2)
    assert read_live(tmp_path)[:2] == (1, None)
    clock[0] += 0.2
    recorder.progress(3)
    assert read_live(tmp_path)[:2] == (3, 5.0)


def test_first_difference_goes_into_nested_options():
    old = {"a": 1, "options": {"gamma": 0.9, "tau": 1}}
    assert first_difference(old, {"a": 1, "options": {"gamma": 0.9, "tau": 1}}) is None
    assert first_difference(old, {"a": 1, "options": {"gamma": 0.5, "tau": 1}}) == ("options.gamma", "0.9", "0.5")
    assert first_difference(old, {"a": 1, "options": {"gamma": 0.9}}) == ("options.tau", "1", "absent")
    assert first_difference(old, {**old, "b": None}) == ("b", "absent", "null")
    assert first_difference({"a": {}}, {"a": {}}) is None


def test_another_configuration_is_refused(tmp_path):
    run = Run(tmp_path / "r", {"task": "t", "variant": "v", "seed": 0, "lr": 0.1}, 10)
    announce(run)
    check_config(run)
    other = Run(tmp_path / "r", {**run.config, "lr": 0.2}, 10)
    with pytest.raises(ValueError, match=r"r holds a run with lr = 0.1, but lr = 0.2 is asked for; choose another"):
        check_config(other)


def test_a_new_attempt_empties_the_folder_unless_there_is_a_checkpoint(tmp_path):
    names = ("config.json", "manifest.json", "error.txt", "live.json", "progress.csv")
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "step").touch()
    prepare(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"config.json", "manifest.json", "progress.csv", "checkpoint"}
    (tmp_path / "checkpoint" / "step").unlink()
    prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_status_of_a_folder_without_manifest_is_waiting(tmp_path):
    assert read_status(tmp_path) == "waiting"


def test_summary_counts_what_there_is():
    assert summarise(["failed", "finished", "finished"]) == "2 finished, 1 failed"
    assert summarise([]) == "no runs"


def test_command_line_is_what_one_would_type(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "mine.py"), "--name", "two words"])
    assert command_line() == "python mine.py --name 'two words'"
