"""Studies on a real Ray cluster: two nodes of one core each, both of this machine."""

import contextlib
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import psutil
import pytest
import stacked as stacked_functions
from commands_of_studies import PLACE, executed, kill_all, start, wait_for

from rlopt.study import Task, run_study
from rlopt.study.launchers import Ray
from rlopt.study.runs import read_evaluations, read_manifest, read_status

ray = pytest.importorskip("ray")

STUDY = {"tasks": [Task("t", total_steps=10)], "variants": {"v": {"level": 1.0}}}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # names of sockets must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        found = None
        try:
            Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes the cluster there and does not make the folder itself
            found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder})
            found.add_node(num_cpus=1)
            yield found
        finally:
            kill_all()
            ray.shutdown()
            with contextlib.suppress(Exception):
                found.shutdown()
            for process in psutil.Process().children(recursive=True):
                if folder in command_of(process):
                    process.kill()
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                Path("/tmp/ray").rmdir()  # if there is nothing of other clusters


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Scores of the runs of this machine."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "fast").touch()
    assert run_study(PLACE + "walks", **STUDY, seeds=8, folder=folder, jobs=2) == 0
    return [scores(folder, seed) for seed in range(8)]


def place(folder, seed):
    return folder / "t" / "v" / f"seed_{seed}"


def scores(folder, seed):
    return [(row.step, row.score) for row in read_evaluations(place(folder, seed))]


def test_a_study_survives_the_loss_of_a_node(cluster, expected, tmp_path, capsys):
    killed = []

    def kill_a_node():
        """Kill the second node with all its processes at once, in the middle of a run."""
        [node] = cluster.worker_nodes

        def lost_seeds():
            commands = [command_of(process) for process in processes_of(node)]
            return [
                seed
                for seed in range(8)
                if 4 <= len([step for other, step in executed(tmp_path) if other == seed]) <= 6
                and any(str(place(tmp_path, seed)) in command for command in commands)
            ]

        wait_for(lambda: killed.extend(lost_seeds()) or killed)
        for process in processes_of(node):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        (tmp_path / "fast").touch()

    thread = threading.Thread(target=kill_a_node)
    thread.start()
    status = run_study(PLACE + "walks", **STUDY, seeds=8, folder=tmp_path, launcher=Ray(address=cluster.address))
    thread.join()
    [lost] = killed
    assert status == 0
    assert [scores(tmp_path, seed) for seed in range(8)] == expected
    assert [read_manifest(place(tmp_path, seed))["attempts"] for seed in range(8)] == [1 + (seed == lost) for seed in range(8)]
    assert all(executed(tmp_path)[lost, step] == 1 for step in range(1, 4))  # it went on from its checkpoint
    output = capsys.readouterr().out
    assert f"seed {lost}: lost with its machine" in output
    assert "it is started again (1 of 3 times)" in output


def processes_of(node):
    """The raylet of a node and all processes that it has started."""
    [raylet] = [entry.process for entry in node.all_processes["raylet"]]
    parent = psutil.Process(raylet.pid)
    return [parent, *parent.children(recursive=True)]


def command_of(process):
    with contextlib.suppress(psutil.Error):  # it may have ended
        return " ".join(process.cmdline())
    return ""


def test_a_study_on_ray_is_stopped_in_order_and_goes_on_with_another_launcher(cluster, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    process = start(tmp_path, "walks", seeds=3, launcher="ray")
    wait_for(lambda: (0, 3) in executed(tmp_path))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "The same command goes on from here:" in output
    assert read_manifest(place(tmp_path, 0))["status"] == "interrupted"  # it had the time to say so itself
    assert read_status(place(tmp_path, 2)) == "waiting"
    (tmp_path / "fast").touch()
    assert run_study(PLACE + "walks", **STUDY, seeds=3, folder=tmp_path) == 0
    assert [scores(tmp_path, seed) for seed in range(3)] == expected[:3]
    assert max(executed(tmp_path).values()) <= 2
    assert executed(tmp_path)[0, 1] == executed(tmp_path)[0, 2] == 1


def test_groups_of_runs_on_ray(cluster, tmp_path):
    (tmp_path / "fast").touch()
    stacked = {"stacked_function": stacked_functions.PLACE + "odd_ones_fail", "stack_seeds": 3}
    launcher = Ray(address=cluster.address)
    assert run_study(PLACE + "walks", **STUDY, **stacked, seeds=3, folder=tmp_path, launcher=launcher) == 1
    assert [read_status(place(tmp_path, seed)) for seed in range(3)] == ["finished", "failed", "finished"]
    assert {read_manifest(place(tmp_path, seed))["runs_in_process"] for seed in range(3)} == {3}


def test_a_cluster_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="address must be that of a running Ray cluster, got localhost:1:"):
        run_study(PLACE + "walks", **STUDY, seeds=1, folder=tmp_path, launcher=Ray(address="localhost:1"))
    monkeypatch.setenv("RAY_ADDRESS", "localhost:2")
    with pytest.raises(ValueError, match="address must be that of a running Ray cluster, got localhost:2:"):
        run_study(PLACE + "walks", **STUDY, seeds=1, folder=tmp_path, launcher="ray")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr("ray.init", lambda address, **options: (_ for _ in ()).throw(ConnectionError("no cluster")))
    with pytest.raises(ValueError, match="address must be that of a running Ray cluster, got auto: no cluster"):
        run_study(PLACE + "walks", **STUDY, seeds=1, folder=tmp_path, launcher=Ray(address="auto"))
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, "cpus must be > 0, got 0"),
        ({"gpus": -1}, "gpus must be >= 0, got -1"),
        ({"memory": 0}, "memory must be > 0, got 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Ray(**options)
