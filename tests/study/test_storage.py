"""The storage of a search: errors of one sentence, passwords, and several commands."""

import sqlite3
import sys

import pytest
from searching import TASK, VARIANTS, rates, search

from rlopt.__main__ import main
from rlopt.study.locks import lock_study
from rlopt.study.machine import command_line
from rlopt.study.runs import update_manifest
from rlopt.study.storage import Storage

optuna = pytest.importorskip("optuna")


def opened(url, folder):
    with Storage(url, folder / "optuna").opened() as storage:
        optuna.create_study(storage=storage, study_name="x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "storage must be the URL of a database, such as sqlite:///search.db, got nonsense"),
        ("foo://bar", "storage must be the URL of a database, such as sqlite:///search.db, got foo://bar"),
        (
            "sqlite:////no/such/x.db",
            "must be a database that answers, got sqlite:////no/such/x.db: unable to open database file",
        ),
        ("sqlite:///{}/text.db", "storage must be a database that answers, got sqlite:///.*/text.db: file is not a database"),
        ("mysql+nodriver://me:se@cret@h/db", r"must be the URL of a database, .* got mysql\+nodriver://me:\*\*\*@h/db$"),
        (
            "mysql+cymysql://me:secret@h/db",
            r"database whose driver is installed, got mysql\+cymysql://me:\*\*\*@h/db: No mod",
        ),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_sentence(tmp_path, url, message):
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(ValueError, match=message) as error:
        opened(url.format(tmp_path), tmp_path)
    assert "\n" not in str(error.value)
    with lock_study(tmp_path / "optuna"):  # the turn is over
        pass


def test_tables_of_another_version_are_one_sentence(tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    opened(url, tmp_path)
    with sqlite3.connect(tmp_path / "x.db") as database:
        database.execute("update alembic_version set version_num = 'v999'")
    with pytest.raises(ValueError, match=r"storage must hold tables of this version of Optuna, got sqlite:///.*x.db: "):
        opened(url, tmp_path)


def test_a_database_with_another_search_is_named(fake, tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    options = {"variants": {"a": VARIANTS["a"]}, "num_trials": 1, "storage": url}
    search(tmp_path / "s", **options)
    with pytest.raises(ValueError, match=r"sqlite:///.*x.db holds a search for a with sampler_seed = 0, .* or another storage"):
        search(tmp_path / "s", **options, sampler_seed=1)


def test_a_database_that_fails_in_the_middle_is_one_sentence(fake, tmp_path):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    real = fake.moment

    def break_it():
        real()
        with sqlite3.connect(tmp_path / "x.db") as database:
            database.execute("drop table if exists trials")

    fake.moment = break_it
    with pytest.raises(ValueError, match=r"storage must be a database that answers, got sqlite:///.*x.db: no such table"):
        search(tmp_path / "s", variants={"a": VARIANTS["a"]}, num_trials=1, storage=url)


def test_passwords_are_not_recorded(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["replay.py", "--storage", "postgresql://me:to/p@secret@host:5432/db", "--name=a:b@c"])
    assert command_line().endswith(" --storage 'postgresql://me:***@host:5432/db' --name=a:b@c")


def test_trials_that_two_folders_noted_in_one_database_count_once(fake, tmp_path):
    """The folders have the same names, as on two machines that share only the database."""
    url = f"sqlite:///{tmp_path / 'x.db'}"
    options = {"variants": {"a": VARIANTS["a"]}, "num_trials": 5, "storage": url}
    real, places = fake.__call__, [tmp_path / "one" / "runs" / "s", tmp_path / "two" / "runs" / "s"]

    class Overtaken:
        """While one command works on its third batch, the other does the whole search."""

        calls = 0

        def __call__(self, *arguments, **run):
            Overtaken.calls += 1
            if Overtaken.calls == 2:
                search(places[1], **options)
            return real(*arguments, **run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlopt.study.search.run_study", Overtaken())
        found = search(places[0], **options)
    assert found == search(tmp_path / "alone", **{**options, "storage": None})
    study = optuna.load_study(study_name="runs/s/t/a", storage=url)
    assert [trial.params["rate"] for trial in study.trials] == rates(found["a"])
    study.add_trials(study.trials[:2])
    options["num_trials"] = 7
    assert search(places[0], **options) == search(tmp_path / "alone", **{**options, "storage": None})


def test_a_trial_that_failed_elsewhere_is_not_done_again(fake, tmp_path):
    options = {"failed_score": 100.0, "num_trials": 2, "variants": {"a": {**VARIANTS["a"], "best": 1e-3}}}
    expected = search(tmp_path / "s", "fails_above_best", **options)
    assert expected["a"].trials[0].failed
    (tmp_path / "s" / "optuna" / "journal.log").unlink()  # as if the other command had not noted it yet
    before = fake.runs
    assert search(tmp_path / "s", "fails_above_best", **options) == expected
    assert fake.runs == before


def test_a_run_that_another_command_has_in_hand_is_waited_for(fake, tmp_path, monkeypatch):
    real, calls = fake.__call__, []

    def elsewhere(*arguments, **run):
        calls.append(list(run["variants"]))
        if len(calls) == 1:
            monkeypatch.setattr("rlopt.study.search.read_status", lambda folder: "running")
            return 1
        monkeypatch.undo()
        return real(*arguments, **run)

    monkeypatch.setattr("rlopt.study.search.run_study", elsewhere)
    found = search(tmp_path / "s", num_trials=2, variants={"a": VARIANTS["a"]})
    assert calls == [["a_trial_0", "a_trial_1"]] * 2
    assert len(found["a"].trials) == 2


def test_the_status_of_pruned_trials_is_shown(fake, tmp_path, capsys):
    search(tmp_path, "descent", num_trials=1, variants={"a": VARIANTS["a"]})
    assert main(["status", str(tmp_path)]) == 0
    assert "pruned" not in capsys.readouterr().out
    update_manifest(tmp_path / TASK.name / "a_trial_0" / "seed_1000000", status="pruned")
    assert main(["status", str(tmp_path)]) == 0
    header, row = capsys.readouterr().out.splitlines()[:2]
    assert header.split() == ["task", "variant", "finished", "pruned", "running", "interrupted", "failed", "waiting"]
    assert row.split() == ["t", "a_trial_0", "1"]
