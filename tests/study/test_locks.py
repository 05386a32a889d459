"""Locks of studies and runs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from commands_of_studies import wait_for

from rlopt.study import locks
from rlopt.study.locks import hold_run, lock_run, lock_study, run_is_held

HOLDER = """
import os, sys, time
from pathlib import Path
from rlopt.study.locks import hold_run
assert hold_run(Path(sys.argv[1]))
{}
print("held", flush=True)
time.sleep(60)
"""


def hold_elsewhere(folder, extra=""):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(extra), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    line = process.stdout.readline().strip()
    return process, line


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "task" / "variant" / "seed_0"


def test_a_run_is_held_by_one(folder):
    assert not run_is_held(folder)
    with lock_run(folder) as mine:
        assert mine
        assert run_is_held(folder)
        with lock_run(folder) as again:
            assert not again
        assert run_is_held(folder)  # the vain attempt takes nothing away
        with lock_run(folder.with_name("seed_1")) as other:
            assert other
    assert not run_is_held(folder)


def test_the_system_lets_go_of_a_run_whose_process_is_killed(folder):
    process, _ = hold_elsewhere(folder)
    try:
        assert run_is_held(folder)
        assert not hold_run(folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not run_is_held(folder)


def test_a_child_that_outlives_the_process_does_not_keep_the_lock(folder):
    extra = "child = os.fork()\nif child == 0:\n    time.sleep(60)\n    os._exit(0)\nprint(child, flush=True)"
    process, child = hold_elsewhere(folder, extra)
    try:
        assert process.stdout.readline().strip() == "held"
        assert run_is_held(folder)
        process.kill()
        process.wait()
        os.kill(int(child), 0)  # it lives
        wait_for(lambda: not run_is_held(folder), seconds=10)  # the child lets go in its first moments
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.stdout.close()


def test_who_only_looks_does_not_take_the_lock_away(folder):
    """Threads look all the time; a free run is always got."""
    with lock_run(folder):
        pass
    stop = threading.Event()

    def look():
        while not stop.is_set():
            run_is_held(folder)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            with lock_run(folder) as mine:
                assert mine
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_emptying_the_folder_of_a_run_does_not_free_it(folder):
    folder.mkdir(parents=True)
    with lock_run(folder):
        for path in folder.rglob("*"):
            path.unlink()
        folder.rmdir()
        assert run_is_held(folder)


def test_a_study_can_be_waited_for(tmp_path):
    with lock_study(tmp_path):
        start = time.monotonic()
        with pytest.raises(ValueError, match="is in use by another command; wait for it, or choose another name"):
            lock_study(tmp_path, wait_seconds=0.3).__enter__()
        assert 0.3 <= time.monotonic() - start < 10
    held = lock_study(tmp_path)
    held.__enter__()
    threading.Timer(0.3, held.__exit__, (None, None, None)).start()
    with lock_study(tmp_path, wait_seconds=30):
        pass


def test_a_file_system_without_locks_is_refused(folder, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(ValueError, match="must be on a file system with locks, got Operation not supported"):
        hold_run(folder)
    assert not locks._held
