"""The comparison of feature selections: its command line, the classic methods, the preparation of data, and what a run computes."""

import csv
import json
from dataclasses import asdict

import _feature_rankings as rankings
import _feature_selection as training
import feature_selection as experiment
import numpy as np
import pytest
from commands import MACHINES, refusal, run

from rlopt.data import Dataset, load

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *("--batch-size", "--device", "--epochs", "--help", "--jobs", "--k", "--logit-lr", "--lr", "--methods", "--name"),
    *("--num-evaluations", "--output", "--preset", "--seeds", "--select-epochs", "--select-lr", "--weight-decay"),
]


def published(name):
    """A data set of a preset; the test is skipped without it."""
    try:
        return load(name, download=False)
    except FileNotFoundError as error:
        pytest.skip(f"needs the published data: {error}")


def planted(num_rows=600, seed=0):
    """Classes that depend on columns 2, 5 and 7 of ten; column 9 is constant."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num_rows, 10))
    inputs[:, 9] = 4.0
    targets = (inputs[:, 2] > 0) * 2 + (inputs[:, 5] + 0.3 * inputs[:, 7] > 0)
    return inputs, targets


def dataset(num_rows=600):
    inputs, targets = planted(num_rows)
    test_inputs, test_targets = planted(200, seed=1)
    return Dataset("planted", inputs, targets, test_inputs, test_targets)


def config(method="sequential_attention", **changes):
    settings = training.Settings(32, 20, 5e-3, 1e-2, 6, 1e-2)
    return {"data": "planted", "method": method, "k": 3, "num_evaluations": 2, "device": "cpu", **asdict(settings), **changes}


# The command line.


def test_option_list(capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--help"])
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").split()
    assert sorted({word for word in words if word.startswith("--") and word.strip("-")}) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "0"], "k must be > 0, got 0"),
        (["--seeds", "0"], "seeds must be > 0, got 0"),
        (["--lr", "0"], "lr must be a number > 0, got 0.0"),
        (["--weight-decay", "-1"], "weight_decay must be a number >= 0, got -1.0"),
        (["--methods", "lasoo"], "got lasoo; did you mean lasso"),
        (["--methods", "omp", "omp"], "methods must be different names, got omp twice"),
        (
            ["--methods", "omp", "--select-epochs", "3"],
            "select_epochs has no effect: the methods (omp) hold no",
        ),
        (["--methods", "all", "--k", "3"], "k has no effect: the method all selects nothing"),
        (["--name", "a/b"], "name must be one folder without '/'"),
        (["--preset", "quick", "--device", "warp"], "device must be one that this machine has, got warp"),
    ],
)
def test_wrong_options_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_options_that_do_not_fit_the_data_are_refused(capsys, monkeypatch):
    monkeypatch.setattr(experiment, "load_data", lambda name: dataset())
    assert "k must be at most 10 with preset quick, got 11" in refusal(experiment.main, ["--preset", "quick", "--k", "11"], capsys)
    arguments = ["--preset", "quick", "--k", "3", "--batch-size", "526"]
    assert "batch_size must be at most 525 with preset quick, got 526" in refusal(experiment.main, arguments, capsys)


def test_missing_data_and_packages_are_told_before_anything_starts(capsys, tmp_path, monkeypatch):
    def missing(name):
        raise FileNotFoundError(f"data set {name} is nowhere")

    monkeypatch.setattr(experiment, "load_data", missing)
    assert refusal(experiment.main, ["--output", str(tmp_path)], capsys) == "error: data set mice is nowhere"
    monkeypatch.setattr(experiment.importlib.util, "find_spec", lambda name: None)
    error = refusal(experiment.main, ["--output", str(tmp_path)], capsys)
    assert "methods must not hold lasso here: it needs scikit-learn; pip install 'rlopt[data]'" in error
    assert not list(tmp_path.iterdir())


def test_presets_have_the_settings_of_their_data():
    for name, (_, study) in experiment.PRESETS.items():
        assert study.preset == name
        assert {option: getattr(study, option) for option in asdict(training.SETTINGS[study.data])} == asdict(
            training.SETTINGS[study.data]
        )
        assert experiment.default_name(study) == f"features_{name}"
    study = experiment.parse(["--preset", "madelon", "--k", "25"])
    assert experiment.default_name(study) == "features_madelon_k=25"
    task = experiment.make_task(study)
    assert (task.name, task.total_steps, task.config["weight_decay"]) == ("madelon_k25", 60, 0.1)


# The classic methods.


def test_matching_pursuit_is_that_of_scikit_learn_for_one_target():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(80, 12)) @ rng.normal(size=(12, 12))
    targets = rng.normal(size=(80, 1))
    order = rankings.matching_pursuit(inputs, targets, 6)
    centred = inputs - inputs.mean(0)
    for size in range(1, 7):
        # scikit-learn expects columns of norm 1.
        fit = linear.OrthogonalMatchingPursuit(n_nonzero_coefs=size).fit(centred / np.linalg.norm(centred, axis=0), targets[:, 0])
        assert set(np.flatnonzero(fit.coef_)) == set(order[:size].tolist())


def test_matching_pursuit_of_several_targets_equals_plain_loops():
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(50, 8)), rng.normal(size=(50, 3))
    x, y = inputs - inputs.mean(0), targets - targets.mean(0)
    chosen = []
    for _ in range(4):
        residual = y - x[:, chosen] @ np.linalg.lstsq(x[:, chosen], y, rcond=None)[0] if chosen else y
        scores = [np.linalg.norm(x[:, i] @ residual) / np.linalg.norm(x[:, i]) if i not in chosen else -1 for i in range(8)]
        chosen.append(int(np.argmax(scores)))
    assert rankings.matching_pursuit(inputs, targets, 4).tolist() == chosen


def test_lasso_is_that_of_scikit_learn_at_a_penalty_with_k_features():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(200, 15))
    targets = inputs[:, :5] @ rng.normal(size=(5, 3)) + 0.1 * rng.normal(size=(200, 3))
    order = rankings.lasso(inputs, targets, 4)
    supports = []
    for alpha in np.geomspace(1e-3, 2, 200):
        coef = linear.MultiTaskLasso(alpha=alpha).fit(inputs, targets).coef_
        supports.append(frozenset(np.flatnonzero(np.linalg.norm(coef, axis=0))))
    assert frozenset(order.tolist()) in supports
    assert len(order) == 4


def test_compressed_data_have_the_same_products():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(30, 6)), rng.normal(size=(30, 2))
    x[:, 5] = x[:, 0] + x[:, 1]  # not of full rank
    factor, targets = rankings._compress(x, y)
    assert factor.shape == (6, 6)
    np.testing.assert_allclose(factor.T @ factor, x.T @ x, atol=1e-10)
    np.testing.assert_allclose(factor.T @ targets, x.T @ y, atol=1e-8)


@pytest.mark.parametrize("method", [name for name in training.METHODS if name not in ("random", "all")])
def test_methods_find_planted_columns_and_no_constant_one(method):
    if method in ("lasso", "mutual_information"):
        pytest.importorskip("sklearn")
    parts = training.prepare(dataset(), "planted", seed=0)
    selected = training.select(config(method), parts, seed=0).tolist()
    assert len(set(selected)) == 3
    assert {2, 5} <= set(selected)
    assert 9 not in selected


def test_random_features_are_different_and_depend_on_the_seed():
    first, again, other = (rankings.random_features(20, 8, seed).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 8


# Data.


def test_parts_are_standardised_by_the_training_part_and_share_no_row():
    parts = training.prepare(dataset(), "planted", seed=3)
    assert (len(parts.inputs), len(parts.validation_inputs), len(parts.test_inputs)) == (525, 75, 200)
    np.testing.assert_allclose(parts.inputs.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(parts.inputs.std(0), [1.0] * 9 + [0.0], atol=1e-5)
    assert not set(map(tuple, parts.inputs.tolist())) & set(map(tuple, parts.validation_inputs.tolist()))
    assert np.abs(parts.test_inputs.mean(0)).max() > 1e-3, "not by its own mean"
    assert not np.array_equal(parts.inputs, training.prepare(dataset(), "planted", seed=4).inputs)


def test_gaps_get_the_mean_of_the_class():
    inputs = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 7.0], [9.0, 8.0]])
    filled = training.fill_by_class(inputs, np.array([0, 0, 1, 1]))
    assert filled.tolist() == [[1.0, 5.0], [3.0, 5.0], [9.0, 7.0], [9.0, 8.0]]
    assert np.isnan(inputs[0, 1]), "the input stays"


def test_mice_are_in_both_parts_as_published_or_in_one():
    data = published("mice_protein")
    parts = training.prepare(data, "mice", seed=0)
    assert (len(parts.inputs), len(parts.validation_inputs), len(parts.test_inputs)) == (756, 108, 216)
    honest = training.prepare(data, "mice_by_mouse", seed=0)
    assert len(honest.test_inputs) % 15 == 0
    for one in (parts, honest):
        assert all(np.isfinite(part).all() for part in (one.inputs, one.validation_inputs, one.test_inputs))


def test_twenty_columns_of_madelon_stand_out():
    parts = training.prepare(published("madelon"), "madelon", seed=0)
    assert len(training.madelon_informative(parts.inputs)) == 20
    correlations = np.abs(np.corrcoef(parts.inputs.T)) - np.eye(500)
    largest = np.sort(correlations.max(0))
    assert largest[-20] > 0.6
    assert largest[-21] < 0.15, "a wide gap: the threshold does not matter"


# A run.


def test_a_run_records_accuracies_and_features(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_data", lambda name: dataset())
    training.train(config("omp"), 0, tmp_path)
    selected = json.loads((tmp_path / "selected.json").read_text())
    with (tmp_path / "evaluations.csv").open() as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epochs"]) for row in rows] == [3, 6]
    assert scores == pytest.approx([float(row["accuracy/test"]) for row in rows])
    parts = training.prepare(dataset(), "planted", 0)
    trainer = training.make_trainer(config("omp"), parts, np.array(selected), 0)
    assert sum(p.numel() for p in trainer.model.parameters()) == 3 * 67 + 67 + 67 * 4 + 4
    trainer.train(6 * (525 // 32))
    assert training.test_accuracy(trainer, parts, np.array(selected)) == scores[-1]
    assert scores[-1] > 0.9


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path):
    pytest.importorskip("sklearn")
    small = ["--k", "4", "--epochs", "2", "--select-epochs", "2", "--num-evaluations", "1", "--seeds", "1", "--jobs", "2"]
    methods = ["--methods", "sequential_attention", "omp", "all"]
    code, output = run("feature_selection.py", "--preset", "quick", *small, *methods, "--output", tmp_path, "--name", "s")
    assert code == 0, output
    assert "| sequential_attention |" in (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    found = {path.parts[-3]: len(json.loads(path.read_text())) for path in (tmp_path / "s").rglob("selected.json")}
    assert found == {"sequential_attention": 4, "omp": 4, "all": 64}
