"""The command line of the comparison of estimators, and what a run computes."""

import ast
import csv
import inspect
import json
from itertools import pairwise

import _identification as identification
import numpy as np
import pytest
import system_identification as experiment
from commands import MACHINES, refusal, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TINY = ["--num-samples", "3000", "--num-checkpoints", "4", "--seeds", "1", "--jobs", "2"]

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *("--buffer-size", "--epsilon", "--estimators", "--gap", "--glmtron-step-size", "--help", "--jobs", "--metric", "--name"),
    *("--noise-std", "--num-chains", "--num-checkpoints", "--num-iterations", "--num-samples", "--num-states", "--output"),
    *("--preset", "--quasi-newton-step-size", "--seeds", "--slope", "--spacing", "--spectral-radius", "--step-size"),
    "--tail-start",
]


def test_option_list(capsys):
    with pytest.raises(SystemExit) as exit_:
        experiment.main(["--help"])
    assert exit_.value.code == 0
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").split()
    found = {word for word in words if word.startswith("--") and word.strip("-")}
    assert sorted(found) == sorted(OPTIONS)


def test_every_option_has_a_help_text():
    body = ast.parse(inspect.getsource(experiment.IdentificationStudy)).body[0].body
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), field.target.id
            assert isinstance(after.value.value, str), field.target.id


@pytest.mark.parametrize("name", experiment.PRESETS)
def test_presets_parse_and_make_a_task(name):
    study = experiment.parse(["--preset", name])
    assert study == experiment.PRESETS[name][1]
    assert study.preset == name
    experiment.refuse_options_without_effect(study)
    task = experiment.make_task(study)
    assert (task.goal, task.log_scale, task.step_name, task.final_evaluations) == ("minimize", True, "samples", 1)
    assert task.total_steps == study.num_samples
    assert list(task.references) == ["statistical limit"]


def test_explicit_options_win_over_the_preset():
    study = experiment.parse(["--preset", "markov", "--seeds", "2", "--step-size", "0.05", "--num-states", "7"])
    assert (study.seeds, study.step_size, study.num_states, study.epsilon) == (2, 0.05, 7, 0.05)


def test_step_size_is_a_number_or_a_rule():
    assert experiment.parse(["--step-size", "1/(8RB)"]).step_size == "1/(8RB)"
    assert experiment.parse(["--step-size", "1e-3"]).step_size == 1e-3


def test_lengths_follow_from_how_fast_the_problem_mixes():
    markov = experiment.make_task(experiment.parse(["--preset", "markov"])).config
    assert (markov["buffer_size"], markov["num_chains"], markov["spacing"]) == (400, 400, 1198)  # ln(20) / 0.05^2 = 1198.3
    linear = experiment.make_task(experiment.parse([])).config
    assert (linear["buffer_size"], linear["num_chains"], linear["spacing"]) == (100, 10, 10)  # 1 / (1 - 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "0.1"], "epsilon has no effect: it belongs to preset markov, the preset here is linear; drop the option"),
        (["--slope", "0.5"], "slope has no effect: it belongs to preset nonlinear, the preset here is linear; drop the option"),
        (
            ["--preset", "markov", "--spectral-radius", "0.5"],
            "spectral_radius has no effect: it belongs to preset linear or nonlinear, the preset here is markov; drop the option",
        ),
        (
            ["--spacing", "5"],
            "spacing has no effect: the estimators (least_squares, sgd, sgd_replay, sgd_reverse_replay) hold none of "
            "sgd_data_drop; add one or drop the option",
        ),
        (["--glmtron-step-size", "0.1"], "glmtron_step_size has no effect"),
        (["--num-iterations", "5"], "num_iterations has no effect"),
        (["--estimators", "least_squares", "--step-size", "0.1"], "step_size has no effect"),
        (["--estimators", "sgd", "--buffer-size", "50"], "buffer_size has no effect"),
        (["--estimators", "sgd", "--gap", "5"], "gap has no effect"),
        (
            ["--preset", "nonlinear", "--estimators", "least_squares"],
            "estimators must not hold least_squares with preset nonlinear: it knows no link; use quasi_newton",
        ),
        (
            ["--preset", "nonlinear", "--metric", "prediction"],
            "metric must be one of operator, frobenius, squared with preset nonlinear, got prediction",
        ),
        (["--spectral-radius", "None"], "spectral_radius must be a number with preset linear, got None"),
        (["--preset", "nonlinear", "--slope", "None"], "slope must be a number with preset nonlinear, got None"),
        (
            ["--num-samples", "100", "--buffer-size", "95"],
            "num_samples must be at least one buffer with its gap, 105, got 100",
        ),
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
        (["--noise-std", "0"], "noise_std must be > 0, got 0.0"),
        (["--noise-std", "inf"], "noise_std must be > 0, got inf"),
        (["--step-size", "-1"], "step_size must be > 0, got -1.0"),
        (["--spectral-radius", "1.0"], "spectral_radius must be in (0, 1), got 1.0"),
        (["--tail-start", "1.0"], "tail_start must be in [0, 1), got 1.0"),
        (["--gap", "-1"], "gap must be >= 0, got -1"),
        (["--num-samples", "20"], "num_samples must be >= 10 num_states = 50, got 20"),
        (["--num-checkpoints", "1"], "num_checkpoints must be > 1, got 1"),
        (["--estimators", "sgd_reverse"], "got sgd_reverse; did you mean sgd_reverse_replay"),
        (["--estimators", "sgd", "sgd"], "estimators must be different names, got sgd twice"),
        (["--name", "a/b"], "name must be one folder without '/'"),
        (["--preset", "best"], "linear, nonlinear, markov, quick"),
        (["--metric", "best"], "operator, frobenius, squared, prediction"),
        (["--sead", "3"], "Unrecognized options: --sead"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_default_names_tell_studies_apart():
    def name(*arguments):
        return experiment.default_name(experiment.parse(arguments))

    assert name("--preset", "quick") == "identification_quick"
    assert name("--num-samples", "5000", "--step-size", "1/(8RB)") == "identification_linear_num_samples=5000_step_size=1-(8RB)"
    # More seeds or estimators belong to the same study.
    assert name("--seeds", "9", "--estimators", "sgd") == "identification_linear"


def config(*arguments, estimator="least_squares"):
    return {**experiment.make_task(experiment.parse([*TINY, *arguments])).config, "estimator": estimator}


@pytest.mark.parametrize("preset", ["linear", "nonlinear", "markov"])
def test_a_seed_means_the_same_problem_for_all_estimators(preset):
    first, again, other = (
        identification.make_problem(config("--preset", preset, estimator=estimator), seed)
        for estimator, seed in (("sgd", 3), ("sgd_replay", 3), ("sgd", 4))
    )
    assert np.array_equal(first.truth, again.truth)
    assert np.array_equal(first.data[0], again.data[0])
    assert np.array_equal(first.data[1], again.data[1])
    assert not np.allclose(first.truth, other.truth)


def test_system_data_and_draws_have_independent_generators():
    children = np.random.SeedSequence(3).spawn(4)
    found = [generator.random() for generator in identification._generators(3, 4)]
    assert found == [np.random.default_rng(child).random() for child in children]
    options = config(estimator="sgd_replay")
    estimator = identification.make_estimator(options, identification.make_problem(options, 3), 3)
    assert estimator.seed.spawn_key == children[2].spawn_key


def test_targets_of_the_chain_are_regressors_times_weights_plus_noise():
    problem = identification.make_problem(config("--preset", "markov"), 0)
    x, y = problem.data
    assert x.shape == (3000, 20)
    assert y.shape == (3000, 1)
    assert np.linalg.norm(problem.truth) == pytest.approx(1.0)
    assert (y - x @ problem.truth.T).std() == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "one_sample", "power"),
    [
        # Eigenvalues 0.9 (3 times) and 0.3 (twice): those of G are 1 / (1 - 0.9^2) and 1 / (1 - 0.3^2).
        (["--metric", "squared"], 5 * (3 * (1 - 0.9**2) + 2 * (1 - 0.3**2)), -1.0),
        (["--metric", "frobenius"], np.sqrt(5 * (3 * (1 - 0.9**2) + 2 * (1 - 0.3**2))), -0.5),
        (["--metric", "prediction"], 25.0, -1.0),
        (["--metric", "prediction", "--noise-std", "2"], 100.0, -1.0),
        (["--preset", "markov"], 1e-6 * 20 * 20, -1.0),
    ],
)
def test_limits_in_closed_form(arguments, one_sample, power):
    first, last = identification.limit(config(*arguments), num_seeds=1)
    assert first == pytest.approx((1.0, one_sample))
    assert last == pytest.approx((3000.0, one_sample * 3000**power))


def test_limit_of_the_operator_error():
    # E ||Z G^(-1/2)||, a number measured by an independent program.
    assert identification.limit(config(), num_seeds=1)[0][1] == pytest.approx(2.709, rel=0.01)


def test_least_squares_attains_the_limit():
    options = config("--num-samples", "20000", "--metric", "squared")
    ratios = []
    for seed in range(8):
        problem = identification.make_problem(options, seed)
        found = identification.make_estimator(options, problem, seed).fit(problem.data).weights_
        ratios.append(identification.errors(found[np.newaxis], problem)["squared"][0] / identification.limit(options, 1)[1][1])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.35)


def test_the_limit_of_a_nonlinear_system_is_the_mean_over_seeds():
    options = config("--preset", "nonlinear")
    one, two, both = (identification._nonlinear_frobenius(options, seed) for seed in (0, 1, 0))
    assert one == both
    assert identification.limit(options, num_seeds=2)[0][1] == pytest.approx((one + two) / 2)
    assert identification.limit(config("--preset", "nonlinear", "--metric", "operator"), num_seeds=1) == []


@pytest.mark.parametrize("rule", ["1/(2R)", "1/(8RB)"])
def test_estimators_without_buffers_take_the_same_step(rule):
    options = config("--step-size", rule)
    problem = identification.make_problem(options, 0)
    steps = [
        identification.make_estimator({**options, "estimator": name}, problem, 0).step_size
        for name in ("sgd", "sgd_reverse_replay")
    ]
    scale = np.linalg.norm(problem.data[: int(2 * np.log(3000))], axis=1).sum()
    assert steps == pytest.approx([1 / (2 * scale) if rule == "1/(2R)" else 1 / (8 * scale * 100)] * 2)


@pytest.mark.parametrize("preset", ["linear", "nonlinear", "markov"])
@pytest.mark.parametrize("estimator", experiment.ESTIMATORS)
def test_every_estimator_runs_on_every_problem_that_it_fits(preset, estimator):
    if (preset, estimator) == ("nonlinear", "least_squares"):
        return
    options = config("--preset", preset, estimator=estimator)
    problem = identification.make_problem(options, 0)
    history = identification.make_estimator(options, problem, 0).fit(problem.data, num_checkpoints=4).history_
    found = identification.errors(history.estimates, problem)
    assert history.samples[-1] == 3000
    assert ("prediction" in found) == (preset != "nonlinear")
    assert all(np.isfinite(values).all() and (values > 0).all() for values in found.values())


def test_a_run_records_scores_and_tensorboard_scalars(tmp_path):
    options = config(estimator="sgd_reverse_replay")
    identification.identify(options, 0, tmp_path)
    rows = list(csv.DictReader((tmp_path / "evaluations.csv").open()))
    assert len(rows) == 4
    assert int(rows[-1]["step"]) == 3000
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = events.Scalars("error/operator")
    assert [scalar.step for scalar in scalars] == [int(row["step"]) for row in rows]
    assert [scalar.value for scalar in scalars] == pytest.approx([float(row["score"]) for row in rows])
    assert {"error/frobenius", "error/squared", "error/prediction"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path, capsys):
    """Runs, report with the limit, a second start that repeats nothing, and a folder of another configuration."""
    arguments = [*TINY, "--estimators", "least_squares", "sgd_reverse_replay", "--output", tmp_path, "--name", "s"]
    code, output = run("system_identification.py", *arguments)
    assert code == 0, output
    assert f"Report: {tmp_path / 's' / 'report.html'}" in output
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "### Ratio to the reference" in text
    assert "divided by the statistical limit" in text
    assert "| sgd_reverse_replay |" in text
    assert "python experiments/system_identification.py --num-samples 3000" in text
    folder = tmp_path / "s" / "linear" / "sgd_reverse_replay" / "seed_0"
    found = json.loads((folder / "config.json").read_text())
    assert (found["estimator"], found["setting"], found["buffer_size"]) == ("sgd_reverse_replay", "linear", 100)
    before = (folder / "manifest.json").stat().st_mtime_ns

    words = [str(word) for word in arguments]
    assert experiment.main(words) == 0
    assert "2 of 2 runs are finished already." in capsys.readouterr().out
    assert (folder / "manifest.json").stat().st_mtime_ns == before

    assert experiment.main([*words, "--noise-std", "2"]) == 2
    assert "holds a run with noise_std = 1.0, but noise_std = 2.0 is asked for" in capsys.readouterr().err
