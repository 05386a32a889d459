"""Several commands on one study."""

import contextlib
import re
import signal
import threading
from collections import Counter

import psutil
import pytest
from commands_of_studies import kill_all, run, start, wait_for
from rich.console import Console

from rlopt.study import Task
from rlopt.study.display import make_display
from rlopt.study.files import write_json
from rlopt.study.grid import expand
from rlopt.study.launchers import Ended, Local
from rlopt.study.locks import lock_run, lock_study
from rlopt.study.runs import announce, read_evaluations, read_manifest, read_status
from rlopt.study.schedule import Schedule
from rlopt.study.worker import TAKEN


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    kill_all()


def began_and_ended(folder):
    """(begin or end, seed) -> how often."""
    path = folder / "executed.txt"
    return Counter(tuple(line.split()) for line in path.read_text().splitlines()) if path.exists() else Counter()


def test_three_commands_share_the_runs_and_do_none_twice(tmp_path):
    processes = [start(tmp_path, "counts_itself", seeds=12, jobs=2) for _ in range(3)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert began_and_ended(tmp_path) == {(what, str(seed)): 1 for what in ("begin", "end") for seed in range(12)}
    for output in outputs:  # none returned before all runs were finished
        assert "12 runs: 12 finished." in output
    assert all(read_manifest(tmp_path / "t" / "v" / f"seed_{seed}")["attempts"] == 1 for seed in range(12))


def test_what_a_killed_command_leaves_is_done_by_the_others(tmp_path):
    processes = [start(tmp_path, "counts_itself", seeds=9, jobs=2) for _ in range(3)]
    victim = processes[1]

    def busy():
        found = []
        for child in psutil.Process(victim.pid).children():
            with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                found += [child] if "rlopt.study.worker" in " ".join(child.cmdline()) else []
        return found

    wait_for(lambda: began_and_ended(tmp_path)["begin", "3"] and busy())
    children = busy()
    victim.kill()
    for child in children:
        child.send_signal(signal.SIGKILL)
    outputs = [process.communicate(timeout=300)[0] for process in (processes[0], processes[2])]
    assert (processes[0].returncode, processes[2].returncode) == (0, 0)
    counts = began_and_ended(tmp_path)
    for seed in range(9):
        folder = tmp_path / "t" / "v" / f"seed_{seed}"
        assert counts["end", str(seed)] == 1
        assert 1 <= counts["begin", str(seed)] <= read_manifest(folder)["attempts"] <= 3
        assert [(row.step, row.score) for row in read_evaluations(folder)][-1] == (10, 1.0 + seed)
    assert all("9 runs: 9 finished." in output for output in outputs)


def test_a_command_leaves_a_run_to_its_holder_and_waits_for_it(tmp_path):
    first = start(tmp_path, "slow_after_first", seeds=2)
    slow = tmp_path / "t" / "v" / "seed_1"
    wait_for(lambda: (slow / "live.json").exists())
    second = start(tmp_path, "score_is_level", seeds=3)
    wait_for(lambda: read_status(tmp_path / "t" / "v" / "seed_2") == "finished")
    assert read_status(slow) == "running"
    assert second.poll() is None  # it waits for seed 1
    (tmp_path / "go").touch()
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=120) == 130
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    assert output.count("Waiting for 1 runs that other commands work on.") == 1
    assert "3 runs: 3 finished." in output
    assert read_manifest(slow)["attempts"] == 2


def test_a_run_that_failed_for_another_command_is_not_done_again(tmp_path):
    processes = [start(tmp_path, "fails_slowly", seeds=2) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert began_and_ended(tmp_path) == {("begin", str(seed)): 1 for seed in range(2)}
    for output in outputs:
        assert re.search(r"2 runs: 2 failed\.", output)
        assert "seed 0 failed: RuntimeError: no luck" in output


def test_a_run_that_is_held_when_its_process_comes_is_left_alone(tmp_path):
    """The runner saw nobody, its worker meets a holder: it does nothing, and the runner looks again."""
    assert run(tmp_path, "fail_on_seed_one", variants={"v": {"level": 1.0}}) == 1
    folder = tmp_path / "toy-A-v0" / "v" / "seed_1"
    (folder / "mark").touch()
    attempts = read_manifest(folder)["attempts"]
    held = [lock_run(folder)]

    class Late(Local):
        @contextlib.contextmanager
        def connect(self, folder):
            with super().connect(folder) as start:
                yield lambda arguments: self.start(start, arguments)

        def start(self, start, arguments):
            if not held:
                return start(arguments)
            with held.pop():
                trial = start(arguments)
                wait_for(lambda: trial._process.poll() is not None)
                assert trial._process.returncode == TAKEN
                assert (folder / "mark").exists()
                assert read_manifest(folder)["attempts"] == attempts
            return trial

    assert run(tmp_path, variants={"v": {"level": 1.0}}, launcher=Late()) == 0
    assert not (folder / "mark").exists()
    assert read_manifest(folder)["attempts"] == attempts + 1


def test_the_order_is_left_only_where_commands_get_in_each_others_way(tmp_path):
    """Three commands start the same run first; the two that come too late look a little further down the list."""
    names = expand(tmp_path, [Task("t", 10)], {"v": {}}, range(40))
    for run_ in names:
        announce(run_)
    started = []

    class Taken:
        def poll(self):
            return Ended(TAKEN)

    def begin(arguments):
        started.append(int(arguments[2].rpartition("_")[2]))
        return Taken()

    schedule = Schedule(names, begin, "f", "c", jobs=1, retries=0, display=make_display(Console(quiet=True)))
    schedule.work(lambda: len(started) >= 15)
    assert started[0] == 0
    assert started != sorted(started)
    assert all(seed <= index + 2 * index for index, seed in enumerate(started))


class Lost:
    """A process that was killed."""

    def poll(self):
        return Ended(-9)


def test_a_run_that_another_command_has_taken_over_is_not_called_failed(tmp_path):
    """The own process is lost; before the runner can note that, another command holds the run, and finishes it."""
    folder = tmp_path / "toy-A-v0" / "v" / "seed_0"
    outcome = {"status": "finished", "attempts": 2, "wall_seconds": 1.0}

    class Slow(Local):
        @contextlib.contextmanager
        def connect(self, folder):
            yield self.start

        def start(self, arguments):
            held = lock_run(folder)
            held.__enter__()
            write_json(folder / "manifest.json", {**outcome, "status": "running"})

            def finish():
                assert read_manifest(folder)["status"] == "running"
                write_json(folder / "manifest.json", outcome)
                held.__exit__(None, None, None)

            threading.Timer(1.0, finish).start()
            return Lost()

    assert run(tmp_path, variants={"v": {"level": 1.0}}, seeds=1, launcher=Slow(), retries=0) == 0
    assert read_manifest(folder) == outcome


def test_the_record_of_the_study_is_written_by_one_command_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("rlopt.study.runner._WAIT_SECONDS", 0.2)
    with lock_study(tmp_path), pytest.raises(ValueError, match="is in use by another command"):
        run(tmp_path)
    assert not list(tmp_path.rglob("config.json"))
