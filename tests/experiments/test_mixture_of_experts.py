"""The command line of the comparison of mixtures of experts, equal costs of its layers, and what a run writes."""

import csv
import json
import math

import _mixture_training as training
import mixture_of_experts as experiment
import numpy as np
import pytest
import torch
from commands import MACHINES, refusal, run
from torch.utils.flop_counter import FlopCounterMode

from rlopt.data import Dataset
from rlopt.nn import DenseMLP, MoE

TINY = {
    "objective": "masked", "capacity_factor": None, "num_experts": 4, "every": 2, "balance_coef": 0.01, "router_z_coef": 0.001,
    "num_steps": 4, "warmup_steps": 1, "num_evaluations": 2, "num_eval_windows": 5, "context": 8, "batch_size": 2, "num_layers": 2,
    "num_heads": 2, "width": 16, "device": "cpu", "lr": 1e-2,
}  # fmt: skip
LOADS = ["max", "min", "mean", "imbalance", "dropped", "entropy", "router_entropy"]

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *("--balance-coef", "--batch-size", "--capacity-factors", "--context", "--device", "--every", "--help", "--jobs"),
    *("--learning-rates", "--lr", "--methods", "--name", "--num-eval-windows", "--num-evaluations", "--num-experts"),
    *("--num-heads", "--num-layers", "--num-steps", "--objective", "--output", "--preset", "--router-z-coef", "--seeds"),
    *("--warmup-steps", "--width"),
]
SETTINGS = [(128, 64, 8), (32, 32, 4), (128, 128, 16)]  # width, context, experts; the first two are those of the presets


def config(**changes):
    text = np.tile(np.arange(5, dtype=np.uint8), 60)
    data = Dataset("cycle", text[:-1], text[1:], text[:-1], text[1:], target_names=tuple("abcde"))
    return {**TINY, "data": data, "method": "top2", **changes}


def rows(folder, name):
    with (folder / name).open() as file:
        return list(csv.DictReader(file))


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
        (["--num-experts", "1"], "num_experts must be > 1, got 1"),
        (["--num-heads", "3"], "num_heads must divide width = 128, got 3"),
        (["--every", "3"], "every must be in [1, num_layers = 2], got 3"),
        (["--warmup-steps", "1500"], "warmup_steps must be in [0, num_steps = 1500), got 1500"),
        (["--lr", "0"], "lr must be > 0, got 0.0"),
        (["--balance-coef", "-1"], "balance_coef must be >= 0, got -1.0"),
        (["--methods", "top2", "top2"], "methods must be different names, got top2 twice"),
        (["--methods", "expert_choise"], "got expert_choise; did you mean expert_choice"),
        (
            ["--methods", "dense", "--learning-rates", "top2=1"],
            "learning_rates must be of methods that take part (dense), got top2",
        ),
        (["--capacity-factors", "top2=2"], "capacity_factors must be of methods with a capacity, got top2"),
        (["--capacity-factors", "soft=9"], "capacity_factors must be at most num_experts = 8, got 9 for soft"),
        (["--width", "16", "--context", "512"], "width must be so large that experts have hidden units"),
        (["--name", "a/b"], "name must be one folder without '/'"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message, monkeypatch):
    monkeypatch.setattr(experiment, "load", lambda name: None)
    assert message in refusal(experiment.main, arguments, capsys)


@pytest.mark.parametrize("method", ["top1_capacity", "top2_capacity", "expert_choice", "soft"])
def test_methods_that_look_at_later_characters_are_refused_when_the_next_one_is_predicted(capsys, method):
    message = refusal(experiment.main, ["--objective", "causal", "--methods", "dense", method], capsys)
    expected = f"methods must be among dense, top1, top2 with objective causal, got {method}, which looks at later characters"
    assert expected in message


def test_missing_text_is_told_before_anything_starts(capsys, tmp_path, monkeypatch):
    def load(name):
        raise FileNotFoundError(f"data set {name} is nowhere")

    monkeypatch.setattr(experiment, "load", load)
    assert refusal(experiment.main, ["--output", str(tmp_path)], capsys) == "error: data set tiny_shakespeare is nowhere"
    assert not list(tmp_path.iterdir())


def test_options_reach_the_runs_and_make_names():
    arguments = ["--methods", "top2", "soft", "--learning-rates", "soft=0.5", "--capacity-factors", "soft=2"]
    study = experiment.parse(arguments)
    assert experiment.make_variants(study) == {
        "top2": {"method": "top2", "lr": 1.5e-3, "capacity_factor": None},
        "soft": {"method": "soft", "lr": 0.5, "capacity_factor": 2.0},
    }
    assert experiment.default_name(study).startswith("mixture_masked_cpu_learning_rates=soft=0.5_capacity")
    causal = experiment.parse(["--objective", "causal", "--methods", "top1"])
    assert experiment.default_name(causal) == "mixture_causal_cpu"
    task = experiment.make_task(causal)
    assert (task.name, task.score_name) == ("causal_tiny_shakespeare", "validation loss, nats per next character")
    assert set(task.config) | {"method", "lr", "capacity_factor"} == {*TINY, "data", "method"}


def counted_flops(layer, width, length):
    x = torch.randn(4, length, width, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    return counter.get_total_flops() / (4 * length)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", [name for name in training.METHODS if name != "dense"])
def test_layers_of_all_methods_cost_equally_many_operations_per_token(method, setting):
    width, context, num_experts = setting
    kind = training.METHODS[method]
    sizes = training.Sizes(width, context, num_experts, kind.factor)
    hidden_width = training.equal_hidden_width(kind, sizes, 4 * width)
    dense = counted_flops(DenseMLP(width, 4 * width), width, context)
    assert dense == 4 * width * 4 * width
    assert training.layer_flops(kind, sizes, hidden_width) == pytest.approx(dense, rel=0.02)
    layer = training.make_layer(kind, sizes, hidden_width, seed=0)
    counted = counted_flops(layer, width, context)
    if kind.router is not None and "capacity" in method:  # what is dropped is not computed
        assert counted <= dense * 1.02
        with torch.no_grad():
            layer.router_weight.zero_()
            layer.router_weight += 30.0 * torch.randn(layer.router_weight.shape, generator=torch.Generator().manual_seed(1))
        layer.router = type(layer.router)(top_k=layer.router.top_k)  # room for all
        counted = counted_flops(layer, width, context)
    assert counted == pytest.approx(training.layer_flops(kind, sizes, hidden_width), rel=1e-9)


def test_capacity_below_the_choices_makes_experts_wider():
    kind = training.METHODS["top2_capacity"]
    assert training.rows_per_token(kind, training.Sizes(128, 64, 8, 1.0)) == 1.0
    assert training.rows_per_token(kind, training.Sizes(128, 64, 8, 2.0)) == 2.0
    assert training.rows_per_token(training.METHODS["top1_capacity"], training.Sizes(128, 64, 8, 1.25)) == 1.0
    assert training.equal_hidden_width(kind, training.Sizes(128, 64, 8, 1.0), 512) == 508  # 512 less 8 / 2 for the router
    assert training.equal_hidden_width(kind, training.Sizes(128, 64, 8, 2.0), 512) == 254
    assert training.equal_hidden_width(training.METHODS["soft"], training.Sizes(128, 64, 8, 1.0), 512) == 416


def test_all_that_is_no_expert_starts_the_same_and_experts_start_as_the_dense_mlp():
    models = {name: training.make_trainer(config(method=name, width=64), seed=3).model for name in training.METHODS}
    dense = models["dense"].state_dict()
    for name, model in models.items():
        state = model.state_dict()
        for key in dense:
            if ".blocks.1.mlp." not in key:
                assert torch.equal(state[key], dense[key]), f"{name}: {key}"
        layers = list(training.mlps(model))
        assert isinstance(layers[0], DenseMLP)
        if name != "dense":
            assert layers[1].experts.w_in.std().item() == pytest.approx(0.02, rel=0.05)
            assert layers[1].experts.w_out.std().item() == pytest.approx(0.02 / 2, rel=0.05)  # divided by sqrt(2 layers)


def test_capacity_factors_reach_the_routers():
    layer = list(training.mlps(training.make_trainer(config(method="top1_capacity"), 0).model))[1]
    assert isinstance(layer, MoE)
    assert (layer.router.capacity_factor, layer.router.eval_capacity_factor) == (1.25, 2.0)
    layer = list(training.mlps(training.make_trainer(config(method="expert_choice", capacity_factor=1.0), 0).model))[1]
    assert layer.router.capacity_factor == 1.0
    layer = list(training.mlps(training.make_trainer(config(method="soft", capacity_factor=2.0), 0).model))[1]
    assert layer.slots_per_expert == 4  # 2 * 8 / 4


def test_windows_and_hidden_characters_are_the_same_for_all_methods():
    batches = [training.make_trainer(config(method=name), seed=1).data.draw() for name in ("dense", "soft")]
    assert all(torch.equal(one, two) for one, two in zip(*batches, strict=True))


@pytest.mark.parametrize("method", training.METHODS)
def test_a_run_writes_scores_and_loads(tmp_path, method):
    training.train(config(method=method), 0, tmp_path)
    scores = rows(tmp_path, "evaluations.csv")
    assert [int(row["step"]) for row in scores] == [2, 4]
    progress = rows(tmp_path, "progress.csv")
    assert [int(row["steps"]) for row in progress] == [0, 2, 4]  # loads before the first step too
    assert [float(row["eval/nats"]) for row in progress[1:]] == pytest.approx([float(row["score"]) for row in scores], rel=1e-5)
    columns = {name for name in progress[0] if name.startswith("load/")}
    of_layer = {f"load/layer1_{name}" for name in [*LOADS, *(f"expert{i}" for i in range(4))]}
    assert columns == (set() if method == "dense" else of_layer | {f"load/{name}" for name in LOADS})
    if method in ("expert_choice", "soft"):
        assert {float(row["load/imbalance"]) for row in progress} == {1.0}
        assert [float(row["load/layer1_entropy"]) for row in progress] == pytest.approx([1.0] * 3)
    losses = {name.removeprefix("eval/") for name in progress[0] if name.startswith("eval/")} - {"nats"}
    assert losses == set(training.METHODS[method].auxiliary_losses(1.0, 1.0))


def test_loads_are_those_counted_from_the_output():
    trainer = training.make_trainer(config(method="top1", every=1, num_layers=1), 0)
    trainer.model.eval()
    batches = list(trainer.data.evaluation())
    layer = next(training.mlps(trainer.model))
    expert = []
    layer.register_forward_hook(lambda module, args, out: expert.append((args[0] @ module.router_weight).argmax(-1).flatten()))
    stats = [trainer.model(inputs).router_stats["layer0"] for inputs, _ in batches]
    counts = torch.cat(expert).bincount(minlength=4).double().numpy()
    found = training.load_values(stats)
    share = counts / counts.sum()
    assert [found[f"expert{i}"] for i in range(4)] == pytest.approx(share.tolist())
    assert found["max"] == pytest.approx(share.max())
    assert found["min"] == pytest.approx(share.min())
    assert found["imbalance"] == pytest.approx(4 * share.max())
    positive = share[share > 0]
    assert found["entropy"] == pytest.approx(-(positive * np.log(positive)).sum() / math.log(4))
    assert found["dropped"] == 0.0


def test_divergence_is_a_large_score(tmp_path):
    training.train(config(lr=1e30), 0, tmp_path)
    assert float(rows(tmp_path, "evaluations.csv")[-1]["score"]) == training.LARGEST_LOSS


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path):
    try:
        experiment.load("tiny_shakespeare", download=False)
    except (FileNotFoundError, ValueError) as error:
        pytest.skip(f"needs the text: {error}")
    small = ["--preset", "quick", "--num-steps", "4", "--warmup-steps", "1", "--num-evaluations", "2", "--num-eval-windows", "4"]
    code, output = run("mixture_of_experts.py", *small, "--methods", "top2", "soft", "--output", tmp_path, "--name", "s")
    assert code == 0, output
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "| soft |" in text
    found = json.loads(next((tmp_path / "s").rglob("soft/seed_0/config.json")).read_text())
    assert (found["objective"], found["width"], found["lr"]) == ("masked", 32, 1e-2)
