"""Studies through submitit; its local executor stands for Slurm."""

import signal
import sys
import types

import psutil
import pytest
from commands_of_studies import PLACE, executed, kill_all, run, start, wait_for

from rlopt.study import Task, run_study
from rlopt.study.launchers import Slurm
from rlopt.study.launchers.slurm import SlurmTrial
from rlopt.study.runs import read_evaluations, read_manifest

pytest.importorskip("submitit")

LOCAL = Slurm(cluster="local", time=5)
STUDY = {"tasks": [Task("t", total_steps=10)], "variants": {"v": {"level": 1.0}}}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    kill_all()


def test_a_study_finishes_and_cleans_up(tmp_path):
    variants = {"other": {"level": 5.0}}
    assert run(tmp_path, "fail_on_seed_one", variants=variants, launcher=LOCAL) == 1
    folder = tmp_path / "toy-A-v0" / "other"
    assert [(row.step, row.score) for row in read_evaluations(folder / "seed_0")][-1] == (10, 5.0)
    assert read_manifest(folder / "seed_1")["error"] == "RuntimeError: the cat sat on the keyboard"
    assert not (tmp_path / ".slurm").exists()
    assert run(tmp_path, variants=variants) == 0  # goes on with the local launcher


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
def test_a_trial_that_is_killed_or_told_that_its_time_is_up_is_submitted_again(tmp_path, number):
    process = start(tmp_path, "walks", seeds=1, launcher=LOCAL)
    wait_for(lambda: (0, 4) in executed(tmp_path))
    (tmp_path / "fast").touch()
    psutil.Process(read_manifest(tmp_path / "t" / "v" / "seed_0")["pid"]).send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    cause = "killed by SIGKILL" if number == signal.SIGKILL else "stopped from outside"
    assert f"seed 0: {cause}; it is started again (1 of 3 times)" in output
    assert all(executed(tmp_path)[0, step] == 1 for step in range(1, 4))
    assert read_manifest(tmp_path / "t" / "v" / "seed_0")["attempts"] == 2
    assert not (tmp_path / ".slurm").exists()


def test_a_job_that_is_told_to_make_room_stops_its_run_in_order(tmp_path):
    process = start(tmp_path, "walks", seeds=1, launcher=LOCAL)
    wait_for(lambda: (0, 3) in executed(tmp_path))
    worker = psutil.Process(read_manifest(tmp_path / "t" / "v" / "seed_0")["pid"])
    worker.parent().send_signal(signal.SIGUSR2)
    wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    (tmp_path / "fast").touch()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "seed 0: stopped from outside; it is started again (1 of 3 times)" in output


def test_a_signal_cancels_the_jobs(tmp_path):
    process = start(tmp_path, "walks", seeds=2, launcher=LOCAL)
    wait_for(lambda: (0, 3) in executed(tmp_path))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "The same command goes on from here:" in output
    assert read_manifest(tmp_path / "t" / "v" / "seed_0")["status"] == "interrupted"


def test_a_job_that_vanishes_is_a_loss(tmp_path):
    job = types.SimpleNamespace(job_id="7", state="NODE_FAIL", paths=types.SimpleNamespace(stderr="7.err"), done=lambda: True)
    ended = SlurmTrial(job, tmp_path / "nothing.json").poll()
    assert ended.is_loss
    assert ended == (None, "job 7, NODE_FAIL, see 7.err")


def test_jobs_are_submitted_with_the_options(tmp_path, monkeypatch):
    given = {}

    class Executor:
        def __init__(self, folder, cluster):
            given["cluster"] = cluster

        def update_parameters(self, **parameters):
            given.update(parameters)

    monkeypatch.setattr("submitit.AutoExecutor", Executor)
    with Slurm(partition="long", account="us", qos="low", time=90, memory=2.5, cpus=3, gpus=1).connect(tmp_path / "name"):
        pass
    assert given == {
        "cluster": "slurm",
        "name": "name",
        "timeout_min": 90,
        "mem_gb": 2.5,
        "cpus_per_task": 3,
        "gpus_per_node": 1,
        "slurm_partition": "long",
        "slurm_account": "us",
        "slurm_qos": "low",
    }


def test_a_machine_without_slurm_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="the launcher slurm must be used where sbatch and srun are"):
        run_study(PLACE + "walks", **STUDY, seeds=1, folder=tmp_path, launcher="slurm")
    assert not (tmp_path / ".slurm").exists()
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(("module", "launcher"), [("submitit", "slurm"), ("ray", "ray")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, module, launcher):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} must be installed for the launcher {launcher}, but is not: pip install"):
        run_study(PLACE + "walks", **STUDY, seeds=1, folder=tmp_path, launcher=launcher)


def test_an_unknown_launcher_is_refused(tmp_path):
    with pytest.raises(ValueError, match="launcher must be one of local, ray, slurm, got cloud"):
        run_study(PLACE + "walks", **STUDY, seeds=1, folder=tmp_path, launcher="cloud")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": 0}, "time must be > 0, got 0"),
        ({"memory": 0}, "memory must be > 0, got 0"),
        ({"cpus": 0}, "cpus must be > 0, got 0"),
        ({"gpus": -1}, "gpus must be >= 0, got -1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Slurm(**options)
