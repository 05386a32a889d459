"""The process of a run by itself."""

import os
import signal
import subprocess

import pytest
from commands_of_studies import PLACE, run, wait_for

from rlopt.study.files import write_json
from rlopt.study.launchers.environment import worker_command, worker_environment
from rlopt.study.locks import lock_run, run_is_held
from rlopt.study.runs import read_manifest, read_status
from rlopt.study.worker import TAKEN


@pytest.fixture
def folder(tmp_path):
    found = tmp_path / "toy-A-v0" / "v" / "seed_0"
    found.mkdir(parents=True)
    write_json(found / "config.json", {"task": "toy/A-v0", "variant": "v", "seed": 0, "level": 1.0})
    return found


def work(folder, function="score_is_level", attempts=0):
    command = worker_command([PLACE + function, "the command", str(folder), str(attempts)])
    return subprocess.Popen(command, env={**os.environ, **worker_environment()})


def test_the_process_holds_its_run_and_numbers_its_attempts(folder):
    process = work(folder, "saves_slowly", attempts=0)
    wait_for(lambda: (folder / "live.json").exists())
    assert run_is_held(folder)
    assert read_status(folder) == "running"
    process.terminate()
    assert process.wait() == 143
    assert read_status(folder) == "interrupted"
    assert not run_is_held(folder)
    assert work(folder, attempts=1).wait() == 0
    assert read_manifest(folder)["attempts"] == 2
    assert not (folder / "saved").exists()  # without a checkpoint nothing is left of the first


@pytest.mark.parametrize("attempts", [0, 1, 2])
def test_a_finished_run_is_left_alone(folder, attempts):
    assert run(folder.parents[2], variants={"v": {"level": 1.0}}, seeds=1) == 0
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert work(folder, attempts=attempts).wait() == TAKEN
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("attempts", [0, 2])
def test_a_run_that_was_started_since_is_left_alone(folder, attempts):
    write_json(folder / "manifest.json", {"status": "interrupted", "attempts": 1})
    assert work(folder, attempts=attempts).wait() == TAKEN
    assert read_manifest(folder) == {"status": "interrupted", "attempts": 1}


def test_a_run_that_is_held_is_left_alone(folder):
    with lock_run(folder):
        assert work(folder).wait() == TAKEN
    assert read_manifest(folder) == {}


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGUSR2])
def test_a_second_signal_does_not_disturb_a_run_that_saves_its_state(folder, second):
    process = work(folder, "saves_slowly")
    wait_for(lambda: (folder / "live.json").exists())
    process.send_signal(signal.SIGUSR2)
    wait_for(lambda: (folder / "saving").exists())
    process.send_signal(second)
    assert process.wait() == 143
    assert (folder / "saved").exists()
    assert read_status(folder) == "interrupted"
