"""Tasks: what is refused, normalisation and reference lines by hand."""

import json

import numpy as np
import pytest

from rlopt.study import Task
from rlopt.study.files import read_json, write_json
from rlopt.study.record import read_study, update_study

LIMIT = {"limit": [(1, 10.0), (10_000, 0.1)]}


def test_normalisation_is_linear_between_the_given_scores():
    task = Task("a", 1)
    assert task.normalise([10.0, 15.0, 40.0], 10.0, 20.0).tolist() == [0.0, 0.5, 3.0]
    assert task.part_way(10.0, 20.0, 0.9) == pytest.approx(19.0)


def test_normalised_errors_grow_as_errors_fall():
    task = Task("a", 1, goal="minimize")
    assert task.normalise([20.0, 12.5, 10.0], 20.0, 10.0).tolist() == [0.0, 0.75, 1.0]
    assert task.part_way(20.0, 10.0, 0.9) == pytest.approx(11.0)


def test_logarithmic_normalisation_counts_in_factors():
    task = Task("a", 1, goal="minimize", log_scale=True)
    assert task.normalise([1.0, 0.1, 0.0001], 1.0, 0.01) == pytest.approx([0.0, 0.5, 2.0])
    assert task.part_way(1.0, 0.01, 0.5) == pytest.approx(0.1)


def test_reference_lines_are_straight_in_the_scale_of_the_axes():
    assert Task("a", 1, log_scale=True, references=LIMIT).reference("limit", 100) == pytest.approx(1.0)
    assert Task("a", 1, references={"r": [(0, 0.0), (10, 5.0), (20, 5.0)]}).reference("r", 6) == pytest.approx(3.0)


def test_reference_lines_end_at_their_last_point():
    task = Task("a", 1, log_scale=True, references=LIMIT)
    assert task.reference("limit", 1) == pytest.approx(10.0)
    assert task.reference("limit", 10_000) == pytest.approx(0.1)
    assert task.reference("limit", 10_001) is None
    assert task.reference("limit", 0.5) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "minimise"}, "goal of task a must be one of maximize, minimize, got 'minimise'"),
        ({"low": 1.0, "high": 1.0}, "low of task a must be below high, got 1.0 and 1.0"),
        ({"low": 1.0, "high": 2.0, "goal": "minimize"}, "low of task a must be above high with goal minimize, got 1.0 and 2.0"),
        ({"low": 1.0}, "low and high of task a must be given together, got 1.0 and None"),
        ({"low": 0.0, "high": 2.0, "log_scale": True}, "low and high of task a must be > 0 with log_scale, got 0.0 and 2.0"),
        ({"final_evaluations": 0}, "final_evaluations of task a must be >= 1, got 0"),
        ({"score_name": ""}, "score_name of task a must not be empty"),
        ({"references": {"r": [(1, 1.0)]}}, r"reference 'r' of task a must have at least two points \(step, score\)"),
        ({"references": {"r": [(1, 1.0, 2.0), (2, 2.0, 3.0)]}}, "reference 'r' of task a must have at least two points"),
        ({"references": {"r": [(2, 1.0), (2, 2.0)]}}, r"reference 'r' of task a must have increasing steps, got \[2.0, 2.0\]"),
        ({"references": {"r": [(0, 1.0), (2, 2.0)]}, "log_scale": True}, "must have finite points, > 0 with log_scale"),
        ({"references": {"r": [(0, 1.0), (2, np.inf)]}}, "must have finite points, got"),
    ],
)
def test_fields_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Task("a", 10, **options)


def test_the_record_gives_the_task_back_without_its_config(tmp_path):
    options = {"goal": "minimize", "score_name": "error", "step_name": "samples", "log_scale": True, "final_evaluations": 1}
    task = Task("a", 10, {"x": 1}, references=LIMIT, **options)
    update_study(tmp_path, [task], ["v"], None, "command")
    assert read_study(tmp_path).tasks == (Task("a", 10, references=LIMIT, **options),)


def test_a_study_from_before_the_fields_existed_reads_with_defaults(tmp_path):
    old = {"name": "a", "total_steps": 10, "low": 0.0, "high": 5.0}
    commands = [{"time": "2026-01-01T00:00:00+00:00", "command": "x"}]
    write_json(tmp_path / "study.json", {"tasks": [old], "variants": ["v"], "baseline": "v", "commands": commands})
    assert read_study(tmp_path).tasks == (Task("a", 10, low=0.0, high=5.0),)
    update_study(tmp_path, [], ["v"], None, "y")  # goes on: the record is written with all fields
    assert read_json(tmp_path / "study.json")["tasks"][0]["goal"] == "maximize"


def test_a_damaged_record_is_named(tmp_path):
    task = {"name": "a", "total_steps": 10, "low": 2.0, "high": 1.0}
    (tmp_path / "study.json").write_text(json.dumps({"tasks": [task], "variants": ["v"], "baseline": "v", "commands": []}))
    with pytest.raises(ValueError, match=r"study.json must hold tasks.*low of task a must be below high"):
        read_study(tmp_path)
