"""The command line of the comparison of Q-learners, and what a run computes."""

import csv
import json

import _q_training as training
import linear_q_learning as experiment
import numpy as np
import pytest
from commands import MACHINES, refusal, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlopt_envs.baird_star import BairdStarEnv

TINY = ["--num-samples", "600", "--num-checkpoints", "4", "--buffer-size", "10", "--num-buffers", "5", "--seeds", "1"]

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    "--buffer-size",
    "--discount",
    "--env-id",
    "--features",
    "--gap",
    "--help",
    "--jobs",
    "--methods",
    "--name",
    "--num-buffers",
    "--num-checkpoints",
    "--num-samples",
    "--num-targets",
    "--output",
    "--preset",
    "--seeds",
    "--step-size",
]


def test_options_and_their_help_texts(capsys):
    with pytest.raises(SystemExit) as exit_:
        experiment.main(["--help"])
    assert exit_.value.code == 0
    lines = [line.strip("│╭╰─╮╯ ") for line in capsys.readouterr().out.splitlines()]
    words = " ".join(lines).replace(",", " ").split()
    examples = {"--preset", "--seeds", "--env-id", "--discount", "--methods", "--gap"}
    assert sorted({word for word in words if word.startswith("--") and word.strip("-")} | examples) == sorted(OPTIONS)
    for index, line in enumerate(lines):
        if line.startswith("--") and line.strip("-"):  # not a rule
            # The help text stands on the same line, behind two blanks, or on the next one.
            following = lines[index + 1]
            assert "  " in line or (following and not following.startswith("--")), line


@pytest.mark.parametrize("name", experiment.PRESETS)
def test_presets_parse_and_make_a_task(name):
    study = experiment.parse(["--preset", name])
    assert study == experiment.PRESETS[name][1]
    assert study.preset == name
    experiment.refuse_options_without_effect(study)
    task = experiment.make_task(study, study.env_id[0])
    assert (task.goal, task.log_scale, task.step_name, task.final_evaluations) == ("minimize", True, "samples", 1)
    assert task.total_steps == study.num_samples


def test_explicit_options_win_over_the_preset():
    study = experiment.parse(["--preset", "baird", "--seeds", "2", "--step-size", "0.05"])
    assert (study.seeds, study.step_size, study.num_samples, study.env_id) == (2, 0.05, 440_000, ("rlopt/BairdStar-v0",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "qlearning", "--gap", "3"],
            "gap has no effect: the methods (qlearning) hold none of qlearning_replay, qrex",
        ),
        (["--methods", "qlearning", "qrex_dare", "--num-buffers", "3"], "num_buffers has no effect"),
        (["--methods", "qlearning", "qrex", "--num-targets", "3"], "num_targets has no effect"),
        (["--methods", "qlearning", "--buffer-size", "9"], "buffer_size has no effect"),
        (
            ["--env-id", "CartPole-v1"],
            "env_id must be an environment with finitely many states and known transitions, got CartPole-v1",
        ),
        (["--env-id", "rlopt/RingMPD-v0"], "env_id must be an environment that is installed, got rlopt/RingMPD-v0; did you mean"),
    ],
)
def test_wrong_input_gives_one_line(tmp_path, capsys, arguments, message):
    assert experiment.main([*arguments, "--output", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be > 0, got 0"),
        (["--step-size", "inf"], "step_size must be > 0, got inf"),
        (["--num-buffers", "0"], "num_buffers must be > 0, got 0"),
        (["--gap", "-1"], "gap must be >= 0, got -1"),
        (["--discount", "1"], "discount must be in [0, 1), got 1.0"),
        (["--num-checkpoints", "1"], "num_checkpoints must be > 1, got 1"),
        (["--num-samples", "54"], "num_samples must be at least one buffer with its gap, 55, got 54"),
        (["--methods", "qrex_dere"], "got qrex_dere; did you mean qrex_dare"),
        (["--methods", "qrex", "qrex"], "methods must be different names, got qrex twice"),
        (["--name", "a/b"], "name must be one folder without '/'"),
        (["--preset", "best"], "ring, baird, chain, quick"),
        (["--features", "best"], "own, tabular"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_default_names_tell_studies_apart():
    def name(*arguments):
        return experiment.default_name(experiment.parse(arguments))

    assert name("--preset", "quick") == "q_learning_quick"
    assert name("--num-samples", "5000", "--gap", "0") == "q_learning_ring_num_samples=5000_gap=0"
    assert name("--env-id", "FrozenLake-v1") == "q_learning_ring_FrozenLake-v1"
    # More seeds or methods belong to the same study.
    assert name("--seeds", "9", "--methods", "qrex") == "q_learning_ring"


def config(*arguments, method="qrex"):
    study = experiment.parse([*TINY, *arguments])
    return {**experiment.make_task(study, study.env_id[0]).config, "method": method}


def load(options):
    return training.load_problem(options["env_id"], options["discount"], options["features"])


def test_a_seed_means_the_same_data_for_all_methods():
    problem = load(config())
    first, again, other = (training.make_data(problem, 500, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.observations, again.observations)
    assert not np.array_equal(first.observations, other.observations)


def test_features_and_first_weights_are_the_environments_own_or_those_of_a_table():
    own, tabular = (load(config("--preset", "baird", "--features", name)) for name in ("own", "tabular"))
    np.testing.assert_array_equal(own.features, BairdStarEnv().features)
    assert own.initial_weights.max() == 10.0
    assert tabular.features.shape == (7, 2, 14)
    assert not tabular.initial_weights.any()
    assert own.discount == 0.99
    assert load(config("--preset", "baird", "--discount", "0.5")).discount == 0.5


def test_values_of_frozen_lake_equal_value_iteration_on_its_table():
    problem = load(config("--env-id", "FrozenLake-v1", "--discount", "0.95"))
    table = problem.env.unwrapped.P
    q = np.zeros((16, 4))
    for _ in range(2000):
        values = q.max(axis=1)
        for s in range(16):
            for a in range(4):
                q[s, a] = sum(p * (r + (0.0 if over else 0.95 * values[t])) for p, t, r, over in table[s][a])
    np.testing.assert_allclose(problem.optimal_q, q, atol=1e-10)
    # The four holes and the goal end the episode: nothing is done there.
    assert problem.counted.sum() == 44
    data = training.make_data(problem, 2000, 0)
    assert np.all(problem.counted[data.observations, data.actions])
    assert data.terminated.any()


@pytest.mark.parametrize("preset", ["ring", "baird", "chain"])
@pytest.mark.parametrize("method", experiment.METHODS)
def test_every_method_runs_on_every_problem(tmp_path, preset, method):
    training.learn(config("--preset", preset, method=method), 0, tmp_path)
    rows = list(csv.DictReader((tmp_path / "evaluations.csv").open()))
    assert len(rows) == 4
    assert int(rows[-1]["step"]) == 600
    assert all(0 < float(row["score"]) < 1e6 for row in rows)


def test_a_curve_tells_what_a_learner_knows_at_each_number_of_samples():
    options = config()
    problem = load(options)
    data = training.make_data(problem, 600, 0)
    for method in experiment.METHODS:
        growing, anew = (training.make_learner({**options, "method": method}, problem, 0) for _ in range(2))
        for start, stop in ((0, 150), (150, 600)):
            np.testing.assert_array_equal(
                training.weights_after(growing, data, start, stop, problem), anew.fit(data[:stop]).weights_
            )


def test_without_a_buffer_of_data_a_learner_knows_its_first_weights():
    options = config("--preset", "baird", method="qrex_dare")
    problem = load(options)
    learner = training.make_learner(options, problem, 0)
    data = training.make_data(problem, 5, 0)
    np.testing.assert_array_equal(training.weights_after(learner, data, 0, 5, problem), problem.initial_weights)


def test_errors_stay_in_the_range_that_a_report_can_show():
    problem = load(config())
    exact = np.linalg.lstsq(problem.features.reshape(10, 10), problem.optimal_q.ravel(), rcond=None)[0]
    assert training.error(exact, problem) == training.SMALLEST_ERROR
    assert training.error(exact + 0.25, problem) == pytest.approx(0.25)
    for diverged in (1e9, 1e308, np.inf, np.nan):
        assert training.error(np.full(10, diverged), problem) == training.LARGEST_ERROR


def test_a_run_records_scores_and_divergence(tmp_path):
    options = config("--preset", "baird", "--num-samples", "60000", "--step-size", "0.03", method="qlearning")
    training.learn(options, 0, tmp_path)
    rows = list(csv.DictReader((tmp_path / "evaluations.csv").open()))
    assert float(rows[-1]["score"]) == 1e6
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Scalars("error/max_abs")
    assert [scalar.step for scalar in scalars] == [int(row["step"]) for row in rows]
    assert [scalar.value for scalar in scalars] == pytest.approx([float(row["score"]) for row in rows])
    assert [scalar.value for scalar in events.Scalars("error/diverged")] == [float(row["score"]) == 1e6 for row in rows]
    assert events.Scalars("error/diverged")[0].value == 0.0


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path, capsys):
    """Runs, report, a second start that repeats nothing, and a folder of another configuration."""
    arguments = [*TINY, "--methods", "qlearning", "qrex", "--output", str(tmp_path), "--name", "s"]
    code, output = run("linear_q_learning.py", *arguments)
    assert code == 0, output
    assert f"Report: {tmp_path / 's' / 'report.html'}" in output
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "Lower is better." in text
    assert "| qrex |" in text
    assert "python experiments/linear_q_learning.py --num-samples 600" in text
    folder = next((tmp_path / "s").glob("*/qrex/seed_0"))
    found = json.loads((folder / "config.json").read_text())
    assert (found["method"], found["env_id"], found["buffer_size"]) == ("qrex", "rlopt/RingMDP-v0", 10)
    before = (folder / "manifest.json").stat().st_mtime_ns

    assert experiment.main(arguments) == 0
    assert "2 of 2 runs are finished already." in capsys.readouterr().out
    assert (folder / "manifest.json").stat().st_mtime_ns == before

    assert experiment.main([*arguments, "--discount", "0.5"]) == 2
    assert "discount" in capsys.readouterr().err
