"""Tuning on the command line of the experiments that have it."""

import sys
from dataclasses import asdict
from functools import cache

import deep_autoencoder
import pytest
import replay
import rl_optimizers
from _replay_ranges import RATE_FACTORS, ranges_of, with_ranges
from commands import refusal, run

from rlopt.replay import REPLAYS
from rlopt.study import Range
from rlopt.study.ranges import filled, ranges_in

EXPERIMENTS = pytest.mark.parametrize("experiment", [deep_autoencoder, replay, rl_optimizers])
TINY = [
    *("--total-timesteps", "80", "--num-evaluations", "4", "--eval-episodes", "2", "--buffer-size", "100", "--net-arch", "8", "4"),
    *("--batch-size", "8", "--learning-starts", "10", "--train-freq", "16", "--gradient-steps", "2"),
]


@cache
def images():
    """The default images of the auto-encoder take seconds to make."""
    return deep_autoencoder.load_images(deep_autoencoder.make_config(deep_autoencoder.parse([])))


@pytest.fixture(autouse=True)
def images_made_once(monkeypatch):
    found = images()
    monkeypatch.setattr(deep_autoencoder, "load_images", lambda config: found)


def said(experiment, capsys, *arguments):
    assert experiment.main(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removesuffix("\n")


@EXPERIMENTS
def test_options_without_a_search_are_refused(experiment, tmp_path, capsys):
    for option, value in (("pruner", "median"), ("storage", "sqlite:///x.db")):
        error = said(experiment, capsys, f"--{option}", value, "--output", str(tmp_path))
        assert error == f"error: {option} has no effect without search; add --search or drop the option"
    assert not list(tmp_path.iterdir())
    assert "search must be > 1, got 1" in refusal(experiment.main, ["--search", "1"], capsys)


@EXPERIMENTS
def test_a_search_without_optuna_is_one_line(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    error = said(experiment, capsys, "--search", "2", "--output", str(tmp_path))
    message = "search is not possible here: optuna must be installed for a search, but is not: pip install 'rlopt[search]'."
    assert error == f"error: {message}"
    assert not list(tmp_path.iterdir())


@EXPERIMENTS
def test_a_storage_that_is_no_database_is_one_line(experiment, tmp_path, capsys):
    pytest.importorskip("optuna")
    error = said(experiment, capsys, "--search", "2", "--storage", "my database", "--output", str(tmp_path))
    assert error == "error: storage must be the URL of a database, such as sqlite:///search.db, got my database"


@EXPERIMENTS
def test_a_part_of_the_runs_is_refused_with_a_search(experiment, tmp_path, capsys):
    pytest.importorskip("optuna")
    error = said(experiment, capsys, "--search", "2", "--shard", "1/2", "--output", str(tmp_path))
    assert error == "error: shard must be left out with search, whose trials all commands on one folder share; drop the option"
    assert not list(tmp_path.iterdir())


@EXPERIMENTS
def test_what_determines_the_search_is_in_the_name_of_the_study(experiment):
    pytest.importorskip("optuna")
    first, longer, pruned, stored = (
        experiment.prepare(["--search", *arguments])["folder"].name
        for arguments in (["4"], ["8"], ["4", "--pruner", "halving"], ["4", "--storage", "sqlite:///x.db"])
    )
    assert first == stored
    assert len({first, longer, pruned, experiment.prepare([])["folder"].name}) == 4


@EXPERIMENTS
def test_the_first_trial_is_the_comparison_without_a_search(experiment):
    pytest.importorskip("optuna")
    without, options = experiment.prepare([]), experiment.prepare(["--search", "4", "--pruner", "median"])
    assert without["search"] is None
    assert {name: options["search"][name] for name in ("num_trials", "pruner", "storage")} == {
        "num_trials": 4, "pruner": "median", "storage": None,
    }  # fmt: skip
    for task in options["tasks"]:
        variants = options["variants"](task) if callable(options["variants"]) else options["variants"]
        assert list(variants) == list(without["variants"])
        for name, variant in variants.items():
            ranges = ranges_in(variant)
            assert ranges
            first = filled(variant, {key: span.start for key, span in ranges.items()})
            expected = without["variants"][name]
            if "replay" in variant:  # None stands for a number that depends on another option
                expected = {**expected, "replay_options": {**expected["replay_options"]}}
                for option, value in {"alpha": 0.6, "beta": 0.4}.items() if name == "prioritized" else ():
                    expected["replay_options"][option] = value
            assert first == expected


@pytest.mark.parametrize("name", REPLAYS)
def test_the_ends_of_the_ranges_are_options_of_the_replay(name):
    options = asdict(REPLAYS[name].config_class())
    spans = ranges_of(name, options)
    assert bool(spans) == (name not in ("uniform", "combined", "greedy"))
    for end in ("low", "high", "start"):
        REPLAYS[name].config_class(**{**options, **{option: getattr(span, end) for option, span in spans.items()}})


def test_given_options_of_a_replay_are_not_searched():
    study = replay.parse(["--prioritized.alpha", "0.9", "--prioritized.priority", "rank", "--prioritized-lr-factor", "0.25"])
    found = with_ranges(replay.variant(study, "prioritized"), "td3")
    assert ranges_in(found) == {
        "replay_options.beta": Range(0.0, 1.0, start=0.5),
        "learning_rate_factor": Range.around(0.25, RATE_FACTORS["td3"]),
    }
    assert found["replay_options"]["alpha"] == 0.9


def test_ranges_of_the_learning_rate_follow_the_agent():
    pytest.importorskip("optuna")
    options = replay.prepare(["--env-id", "CartPole-v1", "Pendulum-v1", "--replays", "uniform", "--search", "4"])
    spans = [options["variants"](task)["uniform"]["learning_rate_factor"] for task in options["tasks"]]
    assert spans == [Range.around(1.0, 10.0), Range.around(1.0, 5.0)]


def test_rates_of_the_networks_that_get_the_optimizer_are_searched():
    pytest.importorskip("optuna")
    arguments = ["--agents", "dqn", "td3", "--env-id", "CartPole-v1", "Pendulum-v1", "--optimizers", "sgd", "--search", "4"]
    for part, expected in (("both", {"critic", "actor"}), ("critic", {"critic"})):
        options = rl_optimizers.prepare([*arguments, "--apply-to", part])
        found = {task.config["agent"]: set(ranges_in(options["variants"](task)["sgd"])) for task in options["tasks"]}
        assert found == {"dqn": {"networks.q.lr"}, "td3": {f"networks.{network}.lr" for network in expected}}
    span = ranges_in(options["variants"](options["tasks"][0])["sgd"])["networks.q.lr"]
    assert (span.low, span.high, span.start) == (pytest.approx(0.1 / 30), pytest.approx(3.0), 0.1)


@pytest.mark.slow
def test_tuned_comparison_of_replays_end_to_end(tmp_path):
    """Trials, runs with other seeds, and the report with the budget."""
    pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path / 'search.db'}"
    arguments = [*TINY, "--replays", "prioritized", "--seeds", "1", "--search", "2", "--output", tmp_path, "--name", "s"]
    code, output = run("replay.py", *arguments, "--storage", url)
    assert code == 0, output
    assert f"Report: {tmp_path / 's' / 'report.html'}" in output
    assert "CartPole-v1 / prioritized: replay_options.alpha = " in output
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "## Tuning" in text
    assert "learning_rate_factor = " in text
    found = sorted(path.parent.relative_to(tmp_path / "s").as_posix() for path in (tmp_path / "s").glob("**/evaluations.csv"))
    trials = [f"search/CartPole-v1/prioritized_trial_{number}/seed_1000000" for number in range(2)]
    assert found == ["CartPole-v1/prioritized/seed_0", *trials]
    assert (tmp_path / "search.db").exists()
