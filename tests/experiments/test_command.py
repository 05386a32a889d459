"""What all commands share: where the runs of a study are."""

import json
import sys

import _command
import linear_q_learning
import pytest
from _command import Machines
from commands import refusal

from rlopt.study.launchers import Local, Ray, Slurm

TINY = ["--preset", "quick", "--seeds", "2", "--methods", "qlearning", "qrex"]


@pytest.fixture
def called(monkeypatch):
    """The arguments of `run_study`, which is not run."""
    found = {}
    monkeypatch.setattr(_command, "run_study", lambda **options: found.update(options) or 130)
    return found


@pytest.mark.parametrize(
    ("arguments", "launcher"),
    [
        ([], Local()),
        (["--launcher", "ray", "--ray.address", "head:6379", "--ray.cpus", "2"], Ray(address="head:6379", cpus=2.0)),
        (["--launcher", "slurm", "--slurm.partition", "long", "--slurm.time", "90"], Slurm(partition="long", time=90)),
    ],
)
def test_the_command_line_reaches_the_runner(called, arguments, launcher):
    options = ["--jobs", "3", "--shard", "2/3", "--retries", "1", *arguments]
    assert linear_q_learning.main([*TINY, *options]) == 130
    assert (called["launcher"], called["shard"], called["retries"], called["jobs"]) == (launcher, (2, 3), 1, 3)


@pytest.mark.parametrize(("launcher", "jobs"), [("local", 7), ("ray", None), ("slurm", None)])
def test_jobs_are_the_cores_of_this_machine_or_all_places_of_a_cluster(called, monkeypatch, launcher, jobs):
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert linear_q_learning.main([*TINY, "--launcher", launcher]) == 130
    assert called["jobs"] == jobs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "3/2"], "shard must be I/N with 1 <= I <= N, got 3/2"),
        (["--shard", "0/2"], "shard must be I/N with 1 <= I <= N, got 0/2"),
        (["--shard", "half"], "shard must be I/N with 1 <= I <= N, got half"),
        (["--retries", "-1"], "retries must be >= 0, got -1"),
        (["--ray.cpus", "2"], "ray.cpus has no effect: the launcher is local; add --launcher ray or drop the option"),
        (["--launcher", "ray", "--slurm.time", "5"], "slurm.time has no effect: the launcher is ray; add --launcher slurm"),
        (["--launcher", "slurm", "--slurm.time", "0"], "time must be > 0, got 0"),
        (["--launcher", "cloud"], "launcher must be one of local, ray, slurm, got cloud"),
    ],
)
def test_wrong_options_are_refused_in_one_line(capsys, tmp_path, arguments, message):
    assert message in refusal(linear_q_learning.main, [*TINY, "--output", str(tmp_path / "runs"), *arguments], capsys)
    assert not (tmp_path / "runs").exists()


def test_a_missing_package_is_told_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = [*TINY, "--output", str(tmp_path), "--launcher", "ray"]
    assert "ray must be installed for the launcher ray" in refusal(linear_q_learning.main, arguments, capsys)


def test_where_runs_are_does_not_change_what_they_are(called, capsys):
    linear_q_learning.main(TINY)
    here = dict(called)
    linear_q_learning.main([*TINY, "--launcher", "ray", "--shard", "1/2", "--retries", "0"])
    for name in ("folder", "variants", "baseline"):
        assert called[name] == here[name]
    assert json.dumps([task.config for task in called["tasks"]]) == json.dumps([task.config for task in here["tasks"]])
    assert Machines() == Machines(launcher="local")
