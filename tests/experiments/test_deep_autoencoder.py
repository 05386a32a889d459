"""The command line of the comparison of optimizers on auto-encoders, and what a run computes."""

import ast
import csv
import inspect
import json
import math
from importlib.util import find_spec
from itertools import pairwise

import _autoencoder_training as training
import deep_autoencoder as experiment
import numpy as np
import pytest
import torch
from _comparing_optimizers import state_bytes
from commands import MACHINES, refusal, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from rlopt.data import Dataset
from rlopt.optim import build_optimizer
from rlopt.study.runs import update_manifest

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="a search needs optuna")

# 10 steps of 50 images.
TINY = ["--num-images", "250", "--batch-size", "50", "--epochs", "2", "--warmup-epochs", "0.4", "--seeds", "1", "--jobs", "2"]
NARROW = ["--widths", "16", "4"]

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *("--activation", "--batch-size", "--device", "--epochs", "--eval-every", "--help", "--jobs", "--learning-rates"),
    *(
        "--locoprop-schedule",
        "--name",
        "--num-images",
        "--optimizers",
        "--output",
        "--preset",
        "--pruner",
        "--schedule-epochs",
        "--search",
        "--search-epochs",
    ),
    *("--seeds", "--storage", "--warmup-epochs", "--widths"),
]


def config(*arguments, optimizer="adam", lr=None):
    found = experiment.make_config(experiment.parse([*TINY, *NARROW, *arguments]))
    return {**found, "optimizer": optimizer, "lr": training.OPTIMIZERS[optimizer].lr if lr is None else lr}


def rows_of(folder):
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def test_option_list(capsys):
    with pytest.raises(SystemExit) as exit_:
        experiment.main(["--help"])
    assert exit_.value.code == 0
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").split()
    found = {word for word in words if word.startswith("--") and word.strip("-")}
    assert sorted(found) == sorted(OPTIONS)


def test_every_option_has_a_help_text():
    body = ast.parse(inspect.getsource(experiment.AutoencoderStudy)).body[0].body
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr), field.target.id
            assert isinstance(after.value.value, str), field.target.id


def test_help_names_every_optimizer():
    text = inspect.getsource(experiment.AutoencoderStudy)
    assert [name for name in training.OPTIMIZERS if f"{name}," not in text and f"{name} (" not in text] == []


@pytest.mark.parametrize("name", experiment.PRESETS)
def test_presets_parse_and_have_no_option_without_effect(name):
    study = experiment.parse(["--preset", name])
    assert study == experiment.PRESETS[name][1]
    assert study.preset == name
    experiment.refuse_options_without_effect(study)


def test_the_small_benchmark_has_400_steps_and_the_published_one_99_epochs():
    small = experiment.parse([])
    assert small.epochs * (small.num_images // small.batch_size) == 400
    assert small.warmup_epochs * (small.num_images // small.batch_size) == 20
    mnist = experiment.parse(["--preset", "mnist"])
    assert (mnist.epochs, mnist.batch_size, mnist.widths) == (99, 1000, (1000, 500, 250, 30))


def test_explicit_options_win_over_the_preset():
    study = experiment.parse(["--preset", "mnist", "--epochs", "7", "--widths", "20", "5"])
    assert (study.epochs, study.widths, study.warmup_epochs) == (7, (20, 5), 5.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--preset", "mnist", "--num-images", "100"],
            "num_images has no effect: it belongs to presets with curves, the preset here is mnist; drop the option",
        ),
        (["--num-images", "None"], "num_images must be a number with preset curves14, got None"),
        (["--search-epochs", "3"], "search_epochs has no effect without search; add --search or drop the option"),
        (
            ["--optimizers", "sgd", "locoprop_closed", "--locoprop-schedule", "published"],
            "locoprop_schedule has no effect: the optimizers (sgd, locoprop_closed) hold none of locoprop_m",
        ),
        (
            ["--optimizers", "sgd", "adam", "--learning-rates", "adan=0.1"],
            "learning_rates has no effect for adan: the optimizers are sgd, adam; did you mean adam?; drop it",
        ),
        (["--num-images", "100"], "batch_size must be at most the number of training images, 100, got 500"),
        (["--device", "abacus"], "device must be one that this machine has, got abacus"),
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
        (["--batch-size", "0"], "batch_size must be > 0, got 0"),
        (["--eval-every", "51"], "eval_every must be at most epochs = 50, got 51"),
        (["--search", "3", "--search-epochs", "51"], "search_epochs must be at most epochs = 50, got 51"),
        (["--search", "1"], "search must be > 1, got 1"),
        (["--schedule-epochs", "49"], "schedule_epochs must be at least epochs = 50, got 49"),
        (["--warmup-epochs", "50"], "warmup_epochs must be in [0, 50), the epochs of the schedule, got 50.0"),
        (["--warmup-epochs", "nan"], "warmup_epochs must be in [0, 50), the epochs of the schedule, got nan"),
        (["--widths", "10", "0"], "widths must be one or more numbers > 0, got (10, 0)"),
        (["--optimizers", "adm"], "got adm; did you mean adam"),
        (["--optimizers", "sgd", "sgd"], "optimizers must be different names, got sgd twice"),
        (["--learning-rates", "adam"], "learning_rates must have the form NAME=NUMBER with a number > 0, got adam"),
        (["--learning-rates", "adam=-1"], "learning_rates must have the form NAME=NUMBER with a number > 0, got adam=-1"),
        (["--learning-rates", "sgd=1", "sgd=2"], "learning_rates must give sgd once, got it twice"),
        (["--name", "a/b"], "name must be one folder without '/'"),
        (["--preset", "best"], "curves14, curves28, mnist, fashion_mnist, quick"),
        (["--sead", "3"], "Unrecognized options: --sead"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_missing_data_are_told_before_anything_is_started(tmp_path, capsys, monkeypatch):
    def nowhere(name):
        raise FileNotFoundError(f"data set {name!r} is in none of a, b, and the download failed.")

    monkeypatch.setattr(training, "load", nowhere)
    assert experiment.main(["--preset", "mnist", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == "error: data set 'mnist' is in none of a, b, and the download failed.\n"
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_before_anything_is_started(tmp_path, capsys, monkeypatch):
    def missing(spec, module):
        raise ImportError("pytorch_optimizer must be installed for this optimizer, but is not.")

    monkeypatch.setattr(experiment, "build_optimizer", missing)
    assert experiment.main(["--optimizers", "soap", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: optimizers must not hold soap here: pytorch_optimizer must be installed")
    assert not list(tmp_path.iterdir())


def test_default_names_tell_studies_apart():
    def name(*arguments):
        return experiment.default_name(experiment.parse(arguments))

    assert name("--preset", "quick") == "autoencoder_quick"
    assert name("--learning-rates", "sgd=0.1", "--widths", "8", "2") == "autoencoder_curves14_learning_rates=sgd=0.1_widths=8,2"
    # More seeds or optimizers belong to the same study.
    assert name("--seeds", "9", "--optimizers", "sgd") == "autoencoder_curves14"


def test_given_rates_replace_defaults():
    study = experiment.parse(["--optimizers", "sgd", "adam", "--learning-rates", "adam=0.5"])
    assert experiment.learning_rates(study) == {"sgd": 0.03, "adam": 0.5}


def test_a_trial_is_a_shorter_run_with_the_schedule_in_proportion():
    task = experiment.search_task(experiment.parse(["--search", "3"]))
    assert (task.total_steps, task.config["epochs"], task.config["warmup_epochs"], task.config["eval_every"]) == (10, 10, 0.5, 10)
    task = experiment.search_task(experiment.parse(["--search", "3", "--search-epochs", "25", "--pruner", "median"]))
    assert (task.config["warmup_epochs"], task.config["eval_every"]) == (1.25, 3)


def test_published_schedule():
    schedule = training.PublishedSchedule(epochs=99, warmup_epochs=5.0, steps_per_epoch=60)
    # e / 5, then 1 - (e + 1 - 5) / 95 with 100 nominal epochs.
    expected = [e / 5 if e < 5 else 1 - (e + 1 - 5) / 95 for e in range(99)]
    assert [schedule(60 * e + 59) for e in range(99)] == pytest.approx(expected, rel=1e-12)


def test_first_part_of_a_longer_training_follows_its_schedule() -> None:
    study = experiment.parse(["--epochs", "14", "--schedule-epochs", "99", "--warmup-epochs", "5"])
    config = experiment.make_config(study) | {"optimizer": "adam", "lr": 1e-3}
    schedule = training.make_schedule(config, 60)
    assert experiment.make_task(study, training.load_images(config)).total_steps == 14
    assert schedule(300 - 1) == pytest.approx(1.0)
    assert schedule(14 * 60) == pytest.approx((99 * 60 - 14 * 60) / (99 * 60 - 300), abs=1e-3)


@pytest.mark.parametrize(("optimizer", "published"), [("locoprop_m", True), ("locoprop_closed", False), ("adam", False)])
def test_only_iterative_locoprop_takes_the_published_schedule(optimizer, published):
    options = config("--locoprop-schedule", "published", optimizer=optimizer)
    schedule = training.make_schedule(options, 5)
    assert isinstance(schedule, training.PublishedSchedule) == published
    if not published:  # 2 of 10 steps rise
        assert [schedule(step) for step in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_one_schedule_for_all_by_default():
    schedules = {training.make_schedule(config(optimizer=name), 5) for name in training.OPTIMIZERS}
    assert len(schedules) == 1


def test_closed_form_takes_gamma_times_the_rows_of_the_batch():
    spec = training.OPTIMIZERS["locoprop_closed"]
    assert (spec.gamma, spec.gamma_mode, spec.prox_eta, spec.lr) == (1.0, "per_row", 1.0, 1.0)
    assert training.OPTIMIZERS["locoprop_closed_near"].prox_eta == 0.1


def test_loss_floor_by_hand_and_for_bytes():
    half = np.full((3, 2, 2), 0.5, np.float32)
    assert training.loss_floor(half) == pytest.approx(4 * math.log(2))
    assert training.loss_floor(np.array([[[0, 255]]], np.uint8)) == 0.0
    of_51 = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert training.loss_floor(np.array([[[51]], [[0]]], np.uint8)) == pytest.approx(of_51 / 2)


def test_loss_floor_of_the_small_benchmark():
    # A number measured by an independent program.
    study = experiment.parse(["--epochs", "2", "--warmup-epochs", "1"])
    task = experiment.make_task(study, training.load_images(experiment.make_config(study)))
    assert task.references["entropy of the pixels"][0][1] == pytest.approx(18.17, abs=0.005)
    assert (task.goal, task.log_scale, task.step_name, task.final_evaluations) == ("minimize", True, "epochs", 1)


def test_test_images_leave_the_training_images_as_they_are():
    images = training.load_images(config())
    assert (images.inputs.shape, images.test_inputs.shape) == ((250, 14, 14), (62, 14, 14))
    assert training.load_images(config("--preset", "curves28", "--num-images", "60")).inputs.shape == (60, 28, 28)


def test_state_bytes_of_known_optimizers():
    net = nn.Linear(3, 2)  # 8 numbers in 2 tensors
    net(torch.ones(1, 3)).sum().backward()
    expected = {"sgd": 0, "momentum": 8 * 4, "rmsprop": 8 * 4 + 2 * 4, "adam": 2 * 8 * 4 + 2 * 4}  # adam, rmsprop count steps
    for name, count in expected.items():
        optimizer = build_optimizer(training.OPTIMIZERS[name], net)
        optimizer.step()
        assert state_bytes(optimizer.state_dict()) == count, name


def test_a_seed_means_the_same_weights_and_order_for_all_optimizers():
    images = training.load_images(config())
    first, other = (training.make_trainer(config(optimizer=name), images, 3) for name in ("adam", "locoprop_m"))
    different = training.make_trainer(config(), images, 4)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), other.model.parameters(), strict=True))
    assert not torch.equal(next(first.model.parameters()), next(different.model.parameters()))
    batches = [trainer.data.draw()[0] for trainer in (first, other, different)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_a_run_is_what_a_plain_loop_computes(tmp_path):
    options = config(optimizer="sgd", lr=0.02)
    training.train(options, 5, tmp_path)
    images = training.load_images(options)
    twin = training.make_trainer(options, images, 5)
    factors = [0.5, 1.0, *(1 - (step - 2) / 8 for step in range(2, 10))]
    for factor in factors:
        pixels, _ = twin.data.draw()
        loss = nn.functional.binary_cross_entropy_with_logits(twin.model(pixels), pixels, reduction="none").sum(1).mean()
        gradients = torch.autograd.grad(loss, list(twin.model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.model.parameters(), gradients, strict=True):
                parameter -= 0.02 * factor * gradient
    last = rows_of(tmp_path)[-1]
    for name, part in (("loss/train", images.inputs), ("loss/test", images.test_inputs)):
        pixels = torch.from_numpy(part).flatten(1)
        loss = nn.functional.binary_cross_entropy_with_logits(twin.model(pixels), pixels, reduction="none").sum(1).mean()
        assert float(last[name]) == pytest.approx(loss.item(), rel=1e-5), name


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(tmp_path, optimizer):
    if optimizer in ("soap", "shampoo"):
        pytest.importorskip("pytorch_optimizer")
    training.train(config("--epochs", "6", optimizer=optimizer), 0, tmp_path)
    losses = [float(row["loss/train"]) for row in rows_of(tmp_path)]
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_run_records_scores_costs_and_tensorboard_scalars(tmp_path):
    training.train(config("--epochs", "5", "--eval-every", "2", optimizer="adam"), 0, tmp_path)
    rows = rows_of(tmp_path)
    assert [int(row["epochs"]) for row in rows] == [2, 4, 5]
    seconds = [float(row["time/cpu_seconds"]) for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    numbers = 196 * 16 + 16 + 16 * 4 + 4 + 4 * 16 + 16 + 16 * 196 + 196
    study = experiment.parse([])
    costs = experiment.make_task(study, training.load_images(experiment.make_config(study))).costs
    assert {costs.step, costs.seconds, costs.memory} <= set(rows[0])
    assert [int(row[costs.step]) for row in rows] == [2, 4, 5]
    assert int(float(rows[-1]["memory/optimizer_state_bytes"])) == 2 * 4 * numbers + 8 * 4  # a step count for each of 8 tensors
    scores = list(csv.DictReader((tmp_path / "evaluations.csv").open()))
    assert [float(row["score"]) for row in scores] == pytest.approx([float(row["loss/train"]) for row in rows])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"loss/train", "loss/test", "time/cpu_seconds", "memory/optimizer_state_bytes"} <= set(events.Tags()["scalars"])
    assert [scalar.step for scalar in events.Scalars("loss/test")] == [2, 4, 5]


def test_a_run_that_diverges_ends_with_the_largest_loss(tmp_path):
    training.train(config(optimizer="sgd", lr=1e30), 0, tmp_path)
    rows = rows_of(tmp_path)
    assert [float(row["loss/train"]) for row in rows] == [training.LARGEST_LOSS] * 2
    assert float(rows[0]["loss/test"]) == training.LARGEST_LOSS


def test_images_without_a_test_part_have_no_test_loss(tmp_path, monkeypatch):
    images = Dataset("bytes", (np.arange(250 * 196) % 256).astype(np.uint8).reshape(250, 14, 14))
    monkeypatch.setattr(training, "load_images", lambda config: images)
    training.train(config(), 0, tmp_path)
    assert "loss/test" not in rows_of(tmp_path)[0]


@pytest.fixture
def quick_runs(monkeypatch):
    """Runs in no time: the loss of adam has its minimum at 0.1; sgd diverges, and lamb fails above 0.01.

    Returns the configs of all runs that were made.
    """
    configs = []

    def study_of(function, tasks, variants, seeds, folder, jobs, launcher, retries, baseline=None):
        assert function.endswith("_autoencoder_training.py:train")
        for variant, options in variants.items():
            for seed in seeds:
                configs.append({**tasks[0].config, **options, "seed": seed})
                place = folder / tasks[0].name / variant / f"seed_{seed}"
                place.mkdir(parents=True, exist_ok=True)
                fails = options["optimizer"] == "lamb" and options["lr"] > 0.01
                loss = training.LARGEST_LOSS if options["optimizer"] == "sgd" else abs(math.log(options["lr"] / 0.1)) + 1
                (place / "evaluations.csv").write_text(f"step,score,seconds\n1,{loss},0.1\n")
                update_manifest(place, status="failed" if fails else "finished")
        return 0

    monkeypatch.setattr("rlopt.study.search.run_study", study_of)
    monkeypatch.setattr("rlopt.study.tuning.run_study", study_of)
    monkeypatch.setattr("rlopt.study.reporting.report", lambda folder: folder / "report.html")
    return configs


@needs_optuna
def test_search_takes_the_rate_with_the_lowest_loss(tmp_path, capsys, quick_runs):
    arguments = ["--learning-rates", "adam=0.03", "lamb=0.01", "--search", "7", "--output", str(tmp_path), "--name", "s"]
    assert experiment.main([*TINY, "--optimizers", "adam", "lamb", *arguments]) == 0
    found = json.loads((tmp_path / "s" / "search.json").read_text())["tasks"]["curves14"]
    for name, centre in (("adam", 0.03), ("lamb", 0.01)):
        entry = found[name]
        tried = [trial["values"]["lr"] for trial in entry["trials"]]
        assert tried == [config["lr"] for config in quick_runs if config["optimizer"] == name and config["seed"] == 1_000_000]
        assert (len(tried), tried[0]) == (7, centre)
        assert (entry["trial_steps"], entry["seeds"]) == (1, [1_000_000])
        span = entry["ranges"]["lr"]
        assert [span["low"], span["high"]] == pytest.approx([centre / 30, centre * 30])
        losses = [trial["score"] for trial in entry["trials"]]
        assert entry["values"]["lr"] == tried[int(np.argmin(losses))]
        expected = [training.LARGEST_LOSS if name == "lamb" and rate > 0.01 else abs(math.log(rate / 0.1)) + 1 for rate in tried]
        assert losses == pytest.approx(expected)
        compared = [(config["lr"], config["epochs"]) for config in quick_runs if (config["optimizer"], config["seed"]) == (name, 0)]
        assert compared == [(entry["values"]["lr"], 2)]
    assert 0 < found["lamb"]["failed"] < 7
    assert f"curves14 / lamb: lr = 0.01; 7 trials, {found['lamb']['failed']} failed." in capsys.readouterr().out


@needs_optuna
def test_rates_that_all_diverge_are_refused(tmp_path, capsys, quick_runs):
    assert experiment.main([*TINY, "--optimizers", "sgd", "--search", "3", "--output", str(tmp_path)]) == 2
    assert "but none of 3 trials of sgd on curves14 ended well; see" in capsys.readouterr().err


@needs_optuna
def test_a_search_that_is_stopped_ends_the_command_with_its_status(tmp_path, monkeypatch):
    monkeypatch.setattr("rlopt.study.search.run_study", lambda *args, **options: 130)
    assert experiment.main([*TINY, "--optimizers", "sgd", "--search", "2", "--output", str(tmp_path)]) == 130


@needs_optuna
@pytest.mark.slow
def test_comparison_end_to_end(tmp_path, capsys):
    """Search, runs, report with the floor, a second start that repeats nothing, and a folder of another configuration."""
    arguments = [*TINY, *NARROW, "--optimizers", "adam", "locoprop_m", "--search", "2", "--output", tmp_path, "--name", "s"]
    code, output = run("deep_autoencoder.py", *arguments)
    assert code == 0, output
    assert f"Report: {tmp_path / 's' / 'report.html'}" in output
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "### Ratio to the reference" in text
    assert "### Equal time" in text
    with (tmp_path / "s" / "curves14-costs.csv").open() as file:
        costs = {row["variant"]: row for row in csv.DictReader(file)}
    assert float(costs["adam"]["relative_seconds"]) == 1.0
    assert float(costs["locoprop_m"]["relative_seconds"]) > 1.0
    assert costs["locoprop_m"]["equal_seconds"] == costs["adam"]["equal_seconds"]  # adam is the quicker one
    assert "Budgets are equal" in text
    found = json.loads((tmp_path / "s" / "search.json").read_text())
    assert {name: len(of["trials"]) for name, of in found["tasks"]["curves14"].items()} == {"adam": 2, "locoprop_m": 2}
    folder = tmp_path / "s" / "curves14" / "adam" / "seed_0"
    options = json.loads((folder / "config.json").read_text())
    assert (options["optimizer"], options["lr"]) == ("adam", found["tasks"]["curves14"]["adam"]["values"]["lr"])
    trial = next((tmp_path / "s" / "search" / "curves14").glob("adam_trial_*/seed_*/manifest.json"))
    before = [path.stat().st_mtime_ns for path in (folder / "manifest.json", trial)]

    words = [str(word) for word in arguments]
    assert experiment.main(words) == 0
    said = capsys.readouterr().out
    assert "2 of 2 runs are finished already." in said
    assert f"curves14 / adam: lr = {options['lr']:.4g}; 2 trials" in said
    assert [path.stat().st_mtime_ns for path in (folder / "manifest.json", trial)] == before

    assert experiment.main([*words, "--activation", "relu"]) == 2
    assert "holds a search for adam with config.activation = " in capsys.readouterr().err
