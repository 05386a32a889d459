"""The command line of the comparison of language models, and what a run computes."""

import csv
import json
import math

import _language_training as training
import language_model as experiment
import numpy as np
import pytest
import torch
from commands import MACHINES, refusal, run

from rlopt.data import Dataset
from rlopt.optim import ScaleInvariantSGD

TINY = {
    "num_steps": 4, "warmup_steps": 1, "decay": "linear", "num_evaluations": 2, "initial_scale": 1.0, "loss_scale": 1.0,
    "context": 8, "batch_size": 2, "num_layers": 1, "num_heads": 2, "width": 8, "device": "cpu", "lr": None, "weight_decay": None,
}  # fmt: skip

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *(
        "--batch-size",
        "--context",
        "--decay",
        "--device",
        "--help",
        "--initial-scales",
        "--jobs",
        "--learning-rates",
        "--loss-scales",
    ),
    *("--methods", "--name", "--num-evaluations", "--num-heads", "--num-layers", "--num-steps", "--output", "--preset", "--seeds"),
    *("--warmup-steps", "--weight-decays", "--width"),
]


def config(**changes):
    text = np.tile(np.arange(5, dtype=np.uint8), 60)
    data = Dataset("cycle", text[:-1], text[1:], text[:-1], text[1:], target_names=tuple("abcde"))
    return {**TINY, "data": data, "method": "si_sgd", **changes}


def test_option_list(capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--help"])
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").split()
    assert sorted({word for word in words if word.startswith("--") and word.strip("-")}) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be > 0, got 0"),
        (["--context", "1"], "context must be > 1, got 1"),
        (["--num-heads", "3"], "num_heads must divide width = 128, got 3"),
        (["--warmup-steps", "2000"], "warmup_steps must be in [0, num_steps = 2000), got 2000"),
        (["--initial-scales", "1", "1"], "initial_scales must be one or more different numbers > 0, got (1.0, 1.0)"),
        (["--loss-scales", "-1"], "loss_scales must be one or more different numbers > 0"),
        (["--methods", "si_sdg"], "got si_sdg; did you mean si_sgd"),
        (["--methods", "sgd", "sgd"], "methods must be different names, got sgd twice"),
        (["--methods", "sgd", "--learning-rates", "adam=1"], "learning_rates must be of methods that take part (sgd), got adam"),
        (["--weight-decays", "si_sgd=x"], "weight_decays must have the form NAME=NUMBER with a number > 0, got si_sgd=x"),
        (["--name", "a/b"], "name must be one folder without '/'"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_missing_text_is_told_before_anything_starts(capsys, tmp_path, monkeypatch):
    def load(name):
        raise FileNotFoundError(f"data set {name} is nowhere")

    monkeypatch.setattr(experiment, "load", load)
    assert refusal(experiment.main, ["--output", str(tmp_path)], capsys) == "error: data set tiny_shakespeare is nowhere"
    assert not list(tmp_path.iterdir())


def test_scales_make_tasks_and_options_make_names():
    study = experiment.parse(["--initial-scales", "1", "100", "--loss-scales", "0.001"])
    names = [experiment.make_task(study, scale, 0.001).name for scale in study.initial_scales]
    assert names == ["tiny_shakespeare_loss_x0.001", "tiny_shakespeare_initial_x100_loss_x0.001"]
    assert experiment.default_name(study) == "language_cpu"
    assert experiment.default_name(experiment.parse(["--width", "64"])) == "language_cpu_width=64"


def test_rates_fall_at_60_and_90_percent():
    schedule = training.make_schedule({"method": "si_sgd_paper", "num_steps": 10})
    assert [schedule(step) for step in range(10)] == [1.0] * 6 + [0.1] * 3 + [0.01]
    shared = {"num_steps": 10, "warmup_steps": 2}
    for decay, after_a_quarter in (("linear", 0.75), ("cosine", 0.8535534)):
        warm = training.make_schedule({"method": "adam", "decay": decay, **shared})
        assert [warm(0), warm(1), warm(2), warm(4), warm(6)] == pytest.approx([0.5, 1.0, 1.0, after_a_quarter, 0.5])
    at_once = training.make_schedule({"method": "si_sgd", "decay": "linear", **shared})
    assert [at_once(0), at_once(4), at_once(10)] == pytest.approx([1.0, 0.6, 0.0])


def test_initial_scale_leaves_the_head_and_the_output_of_the_invariant_model():
    plain, scaled = (training.make_trainer(config(initial_scale=scale), seed=0).model for scale in (1.0, 64.0))
    assert training.encoder_norm(scaled) == pytest.approx(64 * training.encoder_norm(plain), rel=1e-6)
    assert torch.equal(plain.head.weight, scaled.head.weight)
    tokens = torch.arange(8)[None] % 5
    torch.testing.assert_close(scaled(tokens), plain(tokens), rtol=1e-4, atol=1e-5)
    ordinary, other = (training.make_trainer(config(initial_scale=s, method="adam"), seed=0).model for s in (1.0, 64.0))
    assert not torch.allclose(ordinary(tokens), other(tokens), atol=1e-2)


def test_only_the_encoder_is_trained_by_scale_invariant_sgd():
    trainer = training.make_trainer(config(lr=0.5, weight_decay=0.02), seed=0)
    parts = getattr(trainer.optimizer, "optimizers", [trainer.optimizer])
    mine = next(part for part in parts if isinstance(part, ScaleInvariantSGD))
    assert {id(p) for group in mine.param_groups for p in group["params"]} == {
        id(p) for p in training.encoder_parameters(trainer.model)
    }
    assert [(group["lr"], group["weight_decay"]) for group in mine.param_groups] == [(0.5, 0.02)]


def test_loss_scale_scales_gradients_and_not_the_score(tmp_path):
    scores = []
    for scale in (1.0, 8.0):
        # Rescaling the loss by 8, the rate by 1/8 and the decay by 8 changes nothing for the encoder; the head uses Adam.
        options = config(method="si_sgd_slow_start", loss_scale=scale, lr=1.0 / scale, weight_decay=1e-3 * scale)
        folder = tmp_path / str(scale)
        folder.mkdir()
        training.train(options, 0, folder)
        with (folder / "evaluations.csv").open() as file:
            scores.append([float(row["score"]) for row in csv.DictReader(file)])
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert len(scores[0]) == 2


@pytest.mark.parametrize("scales", [{"initial_scale": 100.0}, {"initial_scale": 0.01}, {"loss_scale": 1000.0}])
def test_start_in_equilibrium_makes_scales_irrelevant(tmp_path, scales):
    scores = []
    for name, change in (("plain", {}), ("scaled", scales)):
        folder = tmp_path / name
        folder.mkdir()
        training.train(config(**change), 0, folder)
        with (folder / "evaluations.csv").open() as file:
            scores.append([float(row["score"]) for row in csv.DictReader(file)])
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_divergence_is_a_large_score(tmp_path):
    training.train(config(method="sgd", lr=1e9), 0, tmp_path)
    with (tmp_path / "evaluations.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["score"]) == training.LARGEST_LOSS


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path):
    try:
        experiment.load("tiny_shakespeare", download=False)
    except (FileNotFoundError, ValueError) as error:
        pytest.skip(f"needs the text: {error}")
    small = ["--num-steps", "4", "--warmup-steps", "1", "--num-evaluations", "2", "--width", "8", "--num-layers", "1"]
    arguments = [*small, "--num-heads", "2", "--methods", "adam", "si_sgd", "--seeds", "1", "--output", tmp_path, "--name", "s"]
    code, output = run("language_model.py", *arguments)
    assert code == 0, output
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "| si_sgd |" in text
    found = json.loads(next((tmp_path / "s").rglob("si_sgd/seed_0/config.json")).read_text())
    assert (found["initial_scale"], found["loss_scale"], found["width"]) == (1.0, 1.0, 8)
    assert 0 < math.log(65) < 4.2
