"""Several seeds of one task and variant in one process."""

import contextlib
import csv
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from commands_of_studies import kill_all, run, start, wait_for
from folders import write_run
from rich.console import Console
from stacked import PLACE

from rlopt.study import Recorder, StackedRunsError, Task, provenance
from rlopt.study.display import make_display
from rlopt.study.events import OUTCOME
from rlopt.study.files import read_json, write_json
from rlopt.study.grid import expand, groups_of, name_of, part_of
from rlopt.study.launchers import Ended, Slurm
from rlopt.study.launchers.environment import worker_command, worker_environment
from rlopt.study.locks import lock_run
from rlopt.study.record import update_study
from rlopt.study.results import read_results
from rlopt.study.runs import announce, read_evaluations, read_live, read_manifest, read_status, update_manifest
from rlopt.study.schedule import Schedule
from rlopt.study.worker import TAKEN

ONE = {"variants": {"v": {"level": 1.0}}}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    kill_all()


def stacked(folder, function="together", **options):
    return run(folder, **{"stacked_function": PLACE + function, "stack_seeds": 3, **options})


def place(folder, seed, variant="v"):
    return folder / "toy-A-v0" / variant / f"seed_{seed}"


def groups(folder):
    return (folder / "groups.txt").read_text().splitlines()


def scores(folder):
    return [(row.step, row.score) for row in read_evaluations(folder)]


def test_each_process_does_a_group_and_each_run_has_its_folder(tmp_path, capsys):
    assert stacked(tmp_path, seeds=5, jobs=1) == 0
    assert groups(tmp_path) == ["base 0 1 2", "other 0 1 2", "base 3 4", "other 3 4"]  # variants progress evenly
    pids = set()
    for variant, level in (("base", 1.0), ("other", 5.0)):
        for seed in range(5):
            folder = place(tmp_path, seed, variant)
            assert scores(folder)[-1] == (10, level + seed)
            assert read_json(folder / "config.json") == {"task": "toy/A-v0", "variant": variant, "seed": seed, "level": level}
            manifest = read_manifest(folder)
            pids.add(manifest["pid"])
            assert (manifest["status"], manifest["attempts"]) == ("finished", 1)
            assert manifest["runs_in_process"] == (3 if seed < 3 else 2)
            assert manifest["function"].endswith("stacked.py:together")
            assert (folder / "resources.csv").exists()
            assert not (folder / "live.json").exists()
            assert (folder / OUTCOME).exists()
    assert len(pids) == 4
    output = capsys.readouterr().out
    assert "toy/A-v0 / other / seed 4 finished in" in output
    assert "10 runs: 10 finished." in output


def test_what_the_process_prints_is_in_the_first_folder(tmp_path):
    assert stacked(tmp_path, seeds=2, **ONE) == 0
    assert (place(tmp_path, 0) / "output.txt").read_text() == "hello\n"
    text = (place(tmp_path, 1) / "output.txt").read_text()
    assert text == "This run shared its process with 1 others; what that printed is in ../seed_0/output.txt\n"


def test_a_study_goes_on_with_another_number_of_stacked_seeds(tmp_path):
    assert run(tmp_path, seeds=2, **ONE) == 0
    before = (place(tmp_path, 1) / "manifest.json").read_bytes()
    assert stacked(tmp_path, seeds=5, **ONE) == 0
    assert groups(tmp_path) == ["v 2 3 4"]
    assert (place(tmp_path, 1) / "manifest.json").read_bytes() == before
    assert run(tmp_path, seeds=6, **ONE) == 0
    assert groups(tmp_path) == ["v 2 3 4"]
    assert [scores(place(tmp_path, seed))[-1] for seed in range(6)] == [(10, 1.0 + seed) for seed in range(6)]


def test_a_single_run_is_done_by_the_function_for_one(tmp_path):
    assert stacked(tmp_path, seeds=4, **ONE) == 0
    assert groups(tmp_path) == ["v 0 1 2"]
    manifest = read_manifest(place(tmp_path, 3))
    assert manifest["function"].endswith("synthetic.py:score_is_level")
    assert manifest["runs_in_process"] == 1


def test_runs_that_fail_do_not_take_the_others_with_them(tmp_path, capsys):
    assert stacked(tmp_path, "odd_ones_fail", seeds=3, **ONE) == 1
    assert [read_status(place(tmp_path, seed)) for seed in range(3)] == ["finished", "failed", "finished"]
    failed = place(tmp_path, 1)
    assert read_manifest(failed)["error"] == "RuntimeError: 1 is odd"
    text = (failed / "error.txt").read_text()
    assert text.startswith("Traceback")
    assert 'raise RuntimeError(f"{seed} is odd")' in text
    assert not (place(tmp_path, 0) / "error.txt").exists()
    assert "seed 1 failed: RuntimeError: 1 is odd (see " in capsys.readouterr().out
    assert stacked(tmp_path, seeds=3, **ONE) == 0  # the next command tries it again


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("breaks", "RuntimeError: all of them"),
        ("names_a_stranger", "ValueError: StackedRunsError must name seeds of [0, 1], got 99"),
    ],
)
def test_an_error_of_the_function_itself_fails_the_group(tmp_path, function, error):
    assert stacked(tmp_path, function, seeds=2, **ONE) == 1
    for seed in range(2):
        assert read_status(place(tmp_path, seed)) == "failed"
        assert read_manifest(place(tmp_path, seed))["error"] == error
        assert (place(tmp_path, seed) / "error.txt").exists()
        (place(tmp_path, seed) / "progress.csv").write_text("old")
    assert stacked(tmp_path, seeds=2, **ONE) == 0  # each folder is emptied
    for seed in range(2):
        assert not (place(tmp_path, seed) / "error.txt").exists()
        assert not (place(tmp_path, seed) / "progress.csv").exists()


def test_an_outcome_that_cannot_be_written_does_not_harm_the_other_runs(tmp_path):
    assert stacked(tmp_path, "blocks_the_first", seeds=2, **ONE) == 0
    assert "FileExistsError" in (place(tmp_path, 0) / "output.txt").read_text()
    assert (place(tmp_path, 1) / "resources.csv").exists()


def test_a_killed_group_goes_on_from_its_checkpoints(tmp_path, capsys):
    assert stacked(tmp_path, "killed_once", seeds=3, **ONE) == 0
    assert groups(tmp_path) == ["v 0 1 2"] * 2
    for seed in range(3):
        assert scores(place(tmp_path, seed)) == [(step, seed if step <= 5 else 10.0 + seed) for step in range(1, 11)]
        assert read_manifest(place(tmp_path, seed))["attempts"] == 2
    assert "toy/A-v0 / v / seeds 0, 1, 2: killed by SIGKILL; they are started again (1 of 3 times)" in capsys.readouterr().out


def test_a_group_that_is_killed_each_time_fails_in_the_end(tmp_path, capsys):
    assert stacked(tmp_path, "always_killed", seeds=2, retries=1, **ONE) == 1
    assert groups(tmp_path) == ["v 0 1"] * 2
    assert [read_manifest(place(tmp_path, seed))["status"] for seed in range(2)] == ["failed"] * 2
    output = capsys.readouterr().out
    for seed in range(2):
        assert f"seed {seed} failed: killed by SIGKILL, 2 times; the usual cause is that memory ran out" in output
    assert "or fewer stacked seeds" in output


def test_a_signal_stops_the_group_and_the_same_command_goes_on(tmp_path):
    options = {"stacked_function": PLACE + "waits", "stack_seeds": 3, "seeds": 3}
    process = start(tmp_path, "score_is_level", **options)
    folders = [tmp_path / "t" / "v" / f"seed_{seed}" for seed in range(3)]
    wait_for(lambda: (folders[2] / "live.json").exists())
    assert [read_status(folder) for folder in folders] == ["running"] * 3
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "3 runs: 3 interrupted." in output
    (tmp_path / "go").touch()
    assert start(tmp_path, "score_is_level", **options).wait(timeout=300) == 0
    assert [read_status(folder) for folder in folders] == ["finished"] * 3


def test_commands_that_share_a_study_do_no_run_twice(tmp_path):
    options = {"stacked_function": PLACE + "together", "stack_seeds": 3, "seeds": 8}
    processes = [start(tmp_path, "score_is_level", **options, jobs=jobs) for jobs in (1, 2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    done = [int(seed) for line in groups(tmp_path) for seed in line.split()[1:]]
    assert len(done) == len(set(done))
    assert [read_manifest(tmp_path / "t" / "v" / f"seed_{seed}")["attempts"] for seed in range(8)] == [1] * 8


def test_a_group_of_which_another_process_holds_a_run_is_left_alone(tmp_path):
    folders = [tmp_path / "t" / "v" / f"seed_{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {"task": "t", "variant": "v", "seed": seed, "level": 1.0})
    arguments = [text for folder in folders for text in (str(folder), "0")]
    command = worker_command([PLACE + "together", "the command", *arguments])
    environment = worker_environment()
    with lock_run(folders[1]):
        assert subprocess.run(command, env=environment).returncode == TAKEN
    write_json(folders[2] / "manifest.json", {"status": "interrupted", "attempts": 1})
    assert subprocess.run(command, env=environment).returncode == TAKEN
    assert not (tmp_path / "groups.txt").exists()
    assert [read_manifest(folder).get("attempts") for folder in folders] == [None, None, 1]
    command[-1] = "1"
    assert subprocess.run(command, env=environment).returncode == 0
    assert [read_manifest(folder).get("attempts") for folder in folders] == [1, 1, 2]


def test_a_run_that_somebody_else_works_on_is_left_out_and_done_later(tmp_path):
    held = lock_run(place(tmp_path, 1))
    held.__enter__()
    threading.Timer(2.0, held.__exit__, (None, None, None)).start()
    assert stacked(tmp_path, seeds=3, **ONE) == 0
    assert groups(tmp_path) == ["v 0 2"]
    assert scores(place(tmp_path, 1))[-1] == (10, 2.0)


class Fake:
    """A process that has ended in some way, or goes on."""

    def __init__(self, ended):
        self.ended = ended

    def poll(self):
        return self.ended


def schedule(runs, begin, display):
    for run_ in runs:
        announce(run_)
    return Schedule(runs, begin, "f", "c", stacked_function="g", stack_seeds=20, jobs=1, retries=0, display=display)


def test_a_group_that_came_too_late_is_asked_for_again(tmp_path):
    started = []

    def begin(arguments):
        started.append(arguments)
        return Fake(Ended(TAKEN))

    runs = expand(tmp_path, [Task("t", 10)], {"a": {}, "b": {}, "c": {}}, range(20))
    schedule(runs, begin, make_display(Console(quiet=True))).work(lambda: len(started) >= 5)
    assert len(started) == 5  # more than there are groups
    for function, command, *rest in started:
        assert (function, command) == ("g", "c")
        assert len({Path(folder).parent for folder in rest[::2]}) == 1
        assert sorted(int(folder.rpartition("_")[2]) for folder in rest[::2]) == list(range(20))
        assert rest[1::2] == ["0"] * 20


def test_steps_of_all_runs_of_a_process_are_shown(tmp_path):
    locks, done = contextlib.ExitStack(), []

    class Display:
        def update(self, snapshot):
            done.append(snapshot.done_steps)

    def begin(arguments):
        for folder in map(Path, arguments[2::2]):
            locks.enter_context(lock_run(folder))
            write_json(folder / "live.json", {"step": 4})
            write_json(folder / "manifest.json", {"status": "running"})
        return Fake(None)

    runs = expand(tmp_path, [Task("t", 10)], {"a": {}}, range(3))
    with locks:
        schedule(runs, begin, Display()).work(lambda: len(done) >= 8)
    assert done[-1] == 12


def test_cpu_seconds_are_shared_equally(tmp_path):
    assert stacked(tmp_path, "spends_cpu", seeds=2, **ONE) == 0
    process = float((tmp_path / "cpu.txt").read_text())
    for seed in range(2):
        folder = place(tmp_path, seed)
        assert 0.5 <= read_manifest(folder)["cpu_seconds"] < 0.95  # half of more than a second
        with (folder / "resources.csv").open(newline="") as file:
            assert float(list(csv.DictReader(file))[-1]["cpu_seconds"]) == pytest.approx(process / 2, abs=0.2)


def test_a_recorder_tells_the_share_of_its_run(tmp_path):
    update_manifest(tmp_path, runs_in_process=50)
    Recorder(tmp_path).progress(1)
    assert read_live(tmp_path).cpu_seconds == pytest.approx(time.process_time() / 50, abs=0.1)


def test_the_report_says_that_runs_shared_a_process(tmp_path):
    update_study(tmp_path, [Task("t", total_steps=200)], ["a"], None, "x")
    for seed in range(3):
        write_run(tmp_path, "t", "a", seed, [1.0], runs_in_process=1 if seed == 0 else 2)
    assert " 2 of the runs shared a process with others: their CPU seconds" in provenance.cost(read_results(tmp_path))[1].text
    update_manifest(tmp_path / "t" / "a" / "seed_1", runs_in_process=1)
    update_manifest(tmp_path / "t" / "a" / "seed_2", status="failed")
    assert "shared a process" not in provenance.cost(read_results(tmp_path))[1].text


def test_groups_by_hand(tmp_path):
    runs = expand(tmp_path, [Task("t", 1), Task("u", 1)], {"a": {}, "b": {}}, [4, 0, 7])

    def names(size):
        return [(group[0].task + group[0].variant, [run.seed for run in group]) for group in groups_of(runs, size)]

    assert names(2) == [
        ("ta", [4, 0]), ("tb", [4, 0]), ("ua", [4, 0]), ("ub", [4, 0]), ("ta", [7]), ("tb", [7]), ("ua", [7]), ("ub", [7]),
    ]  # fmt: skip
    assert names(3) == names(9) == [("ta", [4, 0, 7]), ("tb", [4, 0, 7]), ("ua", [4, 0, 7]), ("ub", [4, 0, 7])]
    assert groups_of(runs, 1) == [[run] for run in runs]
    assert name_of(groups_of(runs, 2)[1]) == "t / b / seeds 4, 0"
    assert name_of(runs[:1]) == "t / a / seed 4"


def test_shards_keep_groups_together(tmp_path):
    runs = expand(tmp_path, [Task("t", 1)], {"a": {}, "b": {}, "c": {}}, range(20))
    parts = [part_of(runs, number, 3, 10) for number in (1, 2, 3)]
    assert sorted(str(run) for part in parts for run in part) == sorted(map(str, runs))
    for part in parts:
        assert len(part) == 20
        assert {len(group) for group in groups_of(part, 10)} == {10}
        assert part == [run for run in runs if run in part]


def test_shards_count_the_runs_of_their_groups(tmp_path):
    runs = expand(tmp_path, [Task("t", 1)], {"a": {}, "b": {}, "c": {}}, range(5))
    assert [len(part_of(runs, number, 2, 4)) for number in (1, 2)] == [8, 7]


def test_a_shard_does_whole_groups(tmp_path):
    assert stacked(tmp_path, seeds=6, shard=(1, 2), **ONE) == 0
    assert groups(tmp_path) == ["v 0 1 2"]
    assert stacked(tmp_path, seeds=6, shard=(2, 2), **ONE) == 0
    assert groups(tmp_path) == ["v 0 1 2", "v 3 4 5"]


def test_groups_on_slurm(tmp_path):
    pytest.importorskip("submitit")
    assert stacked(tmp_path, "odd_ones_fail", seeds=3, launcher=Slurm(cluster="local", time=5), **ONE) == 1
    assert [read_status(place(tmp_path, seed)) for seed in range(3)] == ["finished", "failed", "finished"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack_seeds": 0}, "stack_seeds must be >= 1, got 0"),
        ({"stack_seeds": 2}, "stacked_function must be given for stack_seeds = 2, got None"),
        ({"stacked_function": "m:f"}, "stacked_function has no effect without stack_seeds"),
        ({"stack_seeds": 2, "stacked_function": lambda: None}, "stacked_function must be defined at the top level"),
    ],
)
def test_wrong_parameters_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_one_stacked_seed_is_as_without(tmp_path):
    assert stacked(tmp_path, "breaks", stack_seeds=1, **ONE) == 0


def test_an_error_without_runs_is_refused():
    with pytest.raises(ValueError, match="errors must name a seed, got none"):
        StackedRunsError({})
