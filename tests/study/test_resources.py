"""What a run used, TensorBoard's files of it, and the table of all runs."""

import csv
import json
import os
import re
import subprocess
import sys
import time

import pytest
from synthetic import PLACE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from rlopt.__main__ import main
from rlopt.study import Recorder, Task, run_study
from rlopt.study.events import OUTCOME, append_scalars, flatten, write_outcome
from rlopt.study.files import read_json
from rlopt.study.live import Place, Row, Watch, find_runs
from rlopt.study.locks import lock_run
from rlopt.study.record import update_study
from rlopt.study.resources import Meter, Usage, log
from rlopt.study.runs import read_live, read_manifest, update_manifest


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two finished runs of ten steps; the final score averages the last two evaluations."""
    folder = tmp_path_factory.mktemp("studies") / "levels"
    variants = {"low": {"level": 1.0, "replay": {"name": "per", "alpha": 0.6}}, "high": {"level": 3.0, "flag": True}}
    task = Task("toy", total_steps=10, final_evaluations=2)
    assert run_study(f"{PLACE}score_is_level", tasks=[task], variants=variants, seeds=1, folder=folder) == 0
    return folder


def hparams(folder):
    """Options that TensorBoard finds, its scalars by tag, and the status it reads."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = events.SummaryMetadata
    start = metadata.parse_session_start_info_plugin_data(found(metadata.SESSION_START_INFO_TAG).plugin_data.content)
    end = metadata.parse_session_end_info_plugin_data(found(metadata.SESSION_END_INFO_TAG).plugin_data.content)
    options = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return options, scalars, end.status


def test_tensorboard_has_options_and_scores_of_each_finished_run(study):
    options, scalars, status = hparams(study / "toy" / "low" / "seed_0")
    assert options == {
        "task": "toy", "variant": "low", "seed": 0.0, "level": 1.0, "replay.name": "per", "replay.alpha": 0.6,
    }  # fmt: skip
    assert scalars["final_score"] == [(10, pytest.approx(0.95))]  # mean of 0.9 and 1.0
    assert scalars["evaluation/score"] == [(step, pytest.approx(step / 10)) for step in range(1, 11)]
    assert status == api_pb2.STATUS_SUCCESS
    assert hparams(study / "toy" / "high" / "seed_0")[0]["flag"] is True


def test_nested_options_get_dotted_names():
    options = {"a": {"b": {"c": 1}, "d": None}, "e": [1, "x"], "f": {}, "g": False}
    assert flatten(options) == {"a.b.c": 1, "a.d": "null", "e": '[1, "x"]', "f": "{}", "g": False}


def test_the_outcome_is_read_after_the_logs_of_the_run_and_written_once(tmp_path):
    for _ in range(2):
        write_outcome(tmp_path, {"lr": 0.5}, 2.0, [(5, 2.0)])
    assert [path.name for path in tmp_path.iterdir()] == [OUTCOME]
    assert f"events.out.tfevents.{time.time():.0f}.host.1.0" < OUTCOME
    options, scalars, _ = hparams(tmp_path)
    assert options == {"lr": 0.5}
    assert scalars["final_score"] == [(5, 2.0)]


def test_scalars_are_added_to_a_file(tmp_path):
    path = tmp_path / "events.out.tfevents.x"
    append_scalars(path, 1, {"a": 1.0})
    append_scalars(path, 7, {"a": 2.0, "b": 3.0})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("a")] == [(1, 1.0), (7, 2.0)]
    assert [(event.step, event.value) for event in events.Scalars("b")] == [(7, 3.0)]


def test_each_process_tells_what_it_used(study):
    folder = study / "toy" / "low" / "seed_0"
    with (folder / "resources.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    manifest = read_json(folder / "manifest.json")
    assert int(row["step"]) == 10
    assert float(row["steps_per_second"]) == manifest["steps_per_second"]
    assert 10 / manifest["steps_per_second"] == pytest.approx(manifest["wall_seconds"], abs=0.0006)  # rounded to milliseconds
    assert 10 * 2**20 < int(row["rss_bytes"]) <= int(row["peak_rss_bytes"]) < 2**40
    assert abs(int(row["peak_rss_bytes"]) - manifest["peak_rss_bytes"]) < 50 * 2**20
    assert 0 < float(row["cpu_seconds"]) < 100
    events = EventAccumulator(str(folder / "resources")).Reload()
    assert [event.step for event in events.Scalars("resources/rss_mib")] == [10]
    assert events.Scalars("resources/peak_rss_mib")[0].value == pytest.approx(int(row["peak_rss_bytes"]) / 2**20)


def test_workers_do_without_slow_packages(tmp_path):
    """A run that does not use them must not pay for their import."""
    code = """
import sys
from pathlib import Path
import rlopt.study.worker
from rlopt.study.events import write_outcome
write_outcome(Path(sys.argv[1]), {}, 1.0, [(1, 1.0)])
print("torch" in sys.modules, "numba" in sys.modules, "matplotlib" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "False False False\n"


def test_a_recorder_tells_speed_and_memory_and_logs_now_and_then(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("rlopt.study.runs.time.monotonic", lambda: clock[0])  # the same module object everywhere
    (tmp_path / "checkpoint").mkdir()
    recorder = Recorder(tmp_path)
    for second in range(26):
        clock[0] = 100.0 + second
        recorder.progress(1000 + 20 * second)
    live = read_live(tmp_path)
    assert (live.step, live.start_step, live.score) == (1500, 1000, None)
    assert live.steps_per_second == pytest.approx(20.0)
    assert 10 * 2**20 < live.rss_bytes <= live.peak_rss_bytes
    assert live.cpu_seconds == pytest.approx(time.process_time(), abs=5.0)
    with (tmp_path / "resources.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1200", "1400"]  # after 10 and 20 seconds
    assert [float(row["steps_per_second"]) for row in rows] == [pytest.approx(20.0)] * 2


def test_a_run_that_tells_its_first_steps_late_began_at_zero(tmp_path):
    Recorder(tmp_path).progress(500)
    assert read_live(tmp_path).start_step == 0


def test_speed_is_that_of_the_last_half_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("rlopt.study.resources.time.monotonic", lambda: clock[0])
    meter = Meter()
    assert meter.measure(0).steps_per_second is None
    for second in range(1, 101):
        clock[0] = float(second)
        usage = meter.measure(10 * second if second <= 60 else 600 + 2 * (second - 60))
    assert usage.steps_per_second == pytest.approx(2.0)


def test_peak_memory_is_at_least_what_was_held():
    block = bytearray(os.urandom(2**20) * 64)
    before = Meter().measure(0)
    assert before.rss_bytes > len(block)
    del block
    after = Meter().measure(0)
    assert after.peak_rss_bytes >= before.rss_bytes * 0.98  # the system counts pages in batches


def test_a_continued_run_adds_rows(tmp_path):
    for step in (1, 2):
        log(tmp_path, Usage("2030-01-01T00:00:00+00:00", step, None, 1.5, 10, 20))
    assert (tmp_path / "resources.csv").read_text().splitlines() == [
        "time,step,steps_per_second,cpu_seconds,rss_bytes,peak_rss_bytes",
        "2030-01-01T00:00:00+00:00,1,,1.5,10,20",
        "2030-01-01T00:00:00+00:00,2,,1.5,10,20",
    ]


def make_run(study, seed, **manifest):
    folder = study / "toy" / "base" / f"seed_{seed}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"task": "toy", "variant": "base", "seed": seed}))
    if manifest:
        update_manifest(folder, **manifest)
    return folder


def test_rows_of_all_states(tmp_path):
    update_study(tmp_path, [Task("toy", total_steps=100)], ["base"], None, "x")
    make_run(tmp_path, 0)
    running = make_run(tmp_path, 1, status="running")
    make_run(tmp_path, 2, status="running")  # and nobody holds it: its process was killed
    failed = make_run(tmp_path, 3, status="failed")
    finished = make_run(tmp_path, 10, status="finished", steps_per_second=4.0, peak_rss_bytes=5)
    Recorder(failed).evaluation(30, 1.0)
    Recorder(finished).evaluation(90, 2.0)
    Recorder(running).progress(40)
    watch = Watch()
    with lock_run(running):
        rows = watch.rows(find_runs(tmp_path))
    assert [row.label.rpartition(" ")[2] for row in rows] == ["0", "1", "2", "3", "10"]
    assert rows[0] == Row("toy / base / seed 0", "waiting", 0, 100)
    assert rows[1][:4] == ("toy / base / seed 1", "running", 40, 100)
    assert rows[2] == Row("toy / base / seed 2", "interrupted", 0, 100)
    assert rows[3] == Row("toy / base / seed 3", "failed", 30, 100, None, 1.0)
    assert rows[4] == Row("toy / base / seed 10", "finished", 100, 100, 4.0, 2.0, 5)


def test_runs_that_have_ended_are_read_once_until_they_change(tmp_path, monkeypatch):
    update_study(tmp_path, [Task("toy", total_steps=100)], ["base"], None, "x")
    folder = make_run(tmp_path, 0, status="failed")
    reads = []
    monkeypatch.setattr("rlopt.study.live.read_manifest", lambda path: reads.append(path) or read_manifest(path))
    watch, places = Watch(), [Place("a", folder, 100)]
    assert [watch.rows(places)[0].status for _ in range(3)] == ["failed"] * 3
    assert len(reads) == 1
    update_manifest(folder, status="finished")
    os.utime(folder / "manifest.json", ns=(1, 1))  # clocks of file systems are coarse
    assert watch.rows(places)[0].status == "finished"


def test_time_left_of_a_running_run():
    assert Row("a", "running", 25, 100, 5.0).seconds_left == 15.0
    assert Row("a", "running", 120, 100, 5.0).seconds_left == 0.0
    assert Row("a", "running", 25, 100).seconds_left is None
    assert Row("a", "finished", 100, 100, 5.0).seconds_left is None


def test_status_shows_all_runs(study, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["status", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("toy / high / seed 0"))
    assert re.fullmatch(r"toy / high / seed 0 +finished +10 +10 +[\d.,]+ +3 +[\d,]+ MiB *", line)


def test_watching_a_finished_study_ends_at_once(study, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["status", str(study), "--watch"]) == 0
    assert "toy / low / seed 0" in capsys.readouterr().out


def test_watching_goes_on_while_a_run_waits_and_ctrl_c_ends_it(tmp_path, capsys, monkeypatch):
    update_study(tmp_path, [Task("toy", total_steps=100)], ["base"], None, "x")
    folder = make_run(tmp_path, 0)
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 2:
            update_manifest(folder, status="finished")
        assert len(sleeps) < 5

    monkeypatch.setattr("rlopt.__main__.time.sleep", sleep)
    assert main(["status", str(tmp_path), "--watch"]) == 0
    assert sleeps == [1.0, 1.0]

    def interrupt(seconds):
        raise KeyboardInterrupt

    update_manifest(folder, status="running")
    monkeypatch.setattr("rlopt.__main__.time.sleep", interrupt)
    with lock_run(folder):
        assert main(["status", str(tmp_path), "--watch"]) == 0
