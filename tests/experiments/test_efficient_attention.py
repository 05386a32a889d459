"""The comparison of kinds of attention: command line, counted operations, what a run does, and the table of efficiency."""

import csv

import _attention_costs as costs
import _efficient_attention_report as reporting
import _efficient_attention_training as training
import efficient_attention as experiment
import numpy as np
import pytest
import torch
from commands import MACHINES, refusal, run
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rlopt.data import Dataset
from rlopt.nn import CharTransformer, CharTransformerConfig, TransformerConfig, TreeAttentionConfig
from rlopt.nn.attention import ReluAttention, SoftmaxAttention
from rlopt.nn.attention_masks import Decay, Toeplitz
from rlopt.nn.linear_attention import LinearAttention
from rlopt.nn.random_features import EluFeatures, FavorPlus, FavorPlusPlus, ReluFeatures
from rlopt.nn.tree_attention import TreeAttention
from rlopt.study import Task
from rlopt.study.record import StudyRecord
from rlopt.study.results import RunResult, StudyResults

TINY = {
    "num_steps": 10, "warmup_steps": 1, "num_evaluations": 2, "lr": 1e-2, "length": 16, "tokens_per_step": 32, "eval_tokens": 64,
    "num_layers": 2, "num_heads": 2, "width": 8, "num_features": 8, "height": 2, "num_pairs": 3, "num_values": 2,
    "dense_share": 0.4, "growing_share": 0.4, "device": "cpu",
}  # fmt: skip

# Changing this list changes the interface that users type: do it deliberately, and tell it in the changelog.
OPTIONS = [
    *MACHINES,
    *("--attentions", "--dense-share", "--device", "--eval-tokens", "--growing-share", "--height", "--help", "--jobs"),
    *("--learning-rate", "--lengths", "--name", "--num-evaluations", "--num-features", "--num-heads", "--num-layers"),
    *("--num-pairs", "--num-steps", "--num-values", "--output", "--preset", "--seeds", "--tasks", "--tokens-per-step"),
    *("--warmup-steps", "--width"),
]
LENGTH, DIM, CHUNK = 100, 8, 20


def config(**changes):
    text = np.tile(np.arange(5, dtype=np.uint8), 60)
    data = Dataset("cycle", text[:-1], text[1:], text[:-1], text[1:], target_names=tuple("abcde"))
    return {**TINY, "task_kind": "text", "data": data, **changes}


def test_option_list(capsys):
    with pytest.raises(SystemExit):
        experiment.main(["--help"])
    words = capsys.readouterr().out.replace("│", " ").replace(",", " ").split()
    assert sorted({word for word in words if word.startswith("--") and word.strip("-")}) == sorted(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "seeds must be > 0, got 0"),
        (["--num-values", "1"], "num_values must be > 1, got 1"),
        (["--num-heads", "3"], "num_heads must divide width = 64, got 3"),
        (["--warmup-steps", "300"], "warmup_steps must be in [0, num_steps = 300), got 300"),
        (["--dense-share", "0.8"], "dense_share must be in [0, 1) and growing_share > 0, at most 1 together, got 0.8 and 0.3"),
        (["--attentions", "tree_ft"], "got tree_ft; did you mean tree_tf"),
        (["--tasks", "text", "text"], "tasks must be different names, got text twice"),
        (["--lengths", "512", "512"], "lengths must be one or more different numbers > 1, got (512, 512)"),
        (["--lengths", "32"], "lengths must be >= 2 * num_pairs = 64 with recall, got 32"),
        (["--name", "a/b"], "name must be one folder without '/'"),
    ],
)
def test_values_out_of_range_are_refused(capsys, arguments, message):
    assert message in refusal(experiment.main, arguments, capsys)


def test_lengths_make_tasks_with_known_best_and_worst_recall():
    study = experiment.parse(["--lengths", "256", "1024", "--num-values", "5"])
    text, recall = (experiment.make_task(study, name, 256) for name in study.tasks)
    assert (text.name, recall.name) == ("tiny_shakespeare_256", "recall_256")
    assert (recall.low, recall.high, recall.goal, text.goal) == (0.2, 1.0, "maximize", "minimize")
    assert (text.config["num_layers"], recall.config["num_layers"]) == (2, 1)
    assert experiment.make_task(experiment.parse(["--num-layers", "3"]), "recall", 512).config["num_layers"] == 3
    assert experiment.default_name(study) == "efficient_attention_standard_num_values=5"


KINDS = {
    "softmax": lambda: SoftmaxAttention(),
    "relu": lambda: ReluAttention(),
    "favor+": lambda: LinearAttention(FavorPlus(DIM, 16), chunk_size=CHUNK),
    "favor++": lambda: LinearAttention(FavorPlusPlus(DIM, 16, A="ema"), chunk_size=CHUNK),
    "linear": lambda: LinearAttention(EluFeatures(DIM), chunk_size=CHUNK),
    "decay": lambda: LinearAttention(EluFeatures(DIM), Decay(0.9), chunk_size=CHUNK),
    "toeplitz": lambda: LinearAttention(EluFeatures(DIM), Toeplitz(3, LENGTH)),
}


@pytest.mark.parametrize("name", KINDS)
def test_formulas_count_what_torch_counts_but_for_pairs_with_later_keys(name):
    attention = KINDS[name]()
    q, k, v = (torch.randn(2, 3, LENGTH, DIM, generator=torch.Generator().manual_seed(i)) for i in range(3))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        attention(q, k, v, is_causal=True)
    # Blocks of pairs are formed whole: their upper triangles are what torch counts too much.
    size, features = (
        (CHUNK, attention.feature_map.num_features) if name in ("favor+", "favor++", "linear", "decay") else (LENGTH, DIM)
    )
    ones = 0 if name in ("softmax", "relu") else 1  # the column of ones beside the values
    later = LENGTH // size * size * (size - 1) // 2
    assert costs.attention_flops(attention, LENGTH, DIM) == counter.get_total_flops() / 6 - later * 2 * (features + DIM + ones)


def test_the_last_chunk_may_be_shorter():
    # Five tokens in chunks of 2: 3 + 3 + 1 pairs.
    expected = 2 * 7 * (4 + 8 + 1) + 4 * 5 * 4 * 9
    assert costs.linear_flops(5, 8, num_features=4, chunk_size=2) == expected


def test_fourier_transforms_are_counted_by_hand_and_win_at_great_length():
    # L = 4: 2 transforms of 8 numbers, 2.5 * 8 * 3 each, 6 * 5 for spectra and 3 * 4 for products, for 2 * (3 + 1) columns.
    assert costs.toeplitz_flops(4, 3, num_features=2, dense_length=0) == 8 * (120 + 30 + 12)
    assert costs.toeplitz_flops(2**17, 32, 32, 0) < costs.toeplitz_flops(2**17, 32, 32, 2**17)


def test_attention_without_a_formula_is_refused():
    with pytest.raises(ValueError, match="feature_map must be EluFeatures or FavorPlus"):
        costs.attention_flops(LinearAttention(ReluFeatures(DIM, 4)), LENGTH, DIM)
    with pytest.raises(ValueError, match="attention must be of a kind with a formula, got TreeAttention"):
        costs.attention_flops(TreeAttention(1, DIM, 1), LENGTH, DIM)


def make_model(**changes):
    return CharTransformer(CharTransformerConfig(5, TransformerConfig(width=8, num_layers=2, num_heads=2, context=12, **changes)))


def test_model_is_the_sum_of_linear_maps_and_attention():
    model, tokens = make_model(), torch.arange(24).view(2, 12) % 5
    found = costs.measure(model, tokens, num_rounds=1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens)
    per_head = 4 * 4 * 12 * 12  # of attention, with pairs that are hidden
    assert found.model_flops - found.flops == (counter.get_total_flops() - 2 * 2 * 2 * per_head) / 24
    assert found.flops == found.dense_flops == 2 * 2 * 4 * 4 * (12 * 13 / 2) / 12
    assert found.microseconds > 0
    assert found.model_microseconds > 0
    assert found.empty_leaf_rate == 0
    assert model.training


@pytest.mark.parametrize("mode", ["tf", "tc"])
def test_trees_are_counted_from_the_leaves_of_the_data(mode):
    model = make_model(attention=TreeAttentionConfig(height=1, mode=mode))
    tokens = torch.arange(12).view(1, 12) % 5
    trees = [module for module in model.modules() if isinstance(module, TreeAttention)]
    with torch.no_grad():
        for tree in trees:  # everything goes left
            tree.tree.hyperplanes[0].zero_()
            tree.tree.biases[0].fill_(1.0)
    found = costs.measure(model, tokens, num_rounds=1)
    routing = 2 * 24 * 4  # queries and keys, one level, width 4
    attending = 4 * 4 * 12 * 13 / 2 if mode == "tf" else 24 * 2 * 4
    assert found.flops == pytest.approx(2 * 2 * (routing + attending) / 12)
    assert found.empty_leaf_rate == 0
    assert found.dense_flops == 2 * 2 * 4 * 4 * (12 * 13 / 2) / 12


@pytest.mark.parametrize("name", training.KINDS)
def test_every_kind_trains_on_both_tasks(name, tmp_path):
    for kind in ("text", "recall"):
        folder = tmp_path / kind
        folder.mkdir()
        training.train(config(attention=name, task_kind=kind), 0, folder)
        with (folder / "evaluations.csv").open() as file:
            scores = [float(row["score"]) for row in csv.DictReader(file)]
        assert len(scores) == 2
        assert all(0 <= score < 3 for score in scores)
        found = training.final_costs(folder)
        assert found["steps"] == 10
        assert 0 < found["cost/flops"] < found["cost/model_flops"]


@pytest.mark.parametrize(("name", "mode"), [("tree_tf_bootstrap", "tf"), ("tree_tc_bootstrap", "tc")])
def test_trees_come_after_the_dense_share_and_are_trained(name, mode):
    made = training.Run(config(attention=name), seed=0)  # four dense steps, then four stages of one step
    kinds = lambda: [type(module) for module in made.model.modules() if isinstance(module, SoftmaxAttention | TreeAttention)]  # noqa: E731
    made.train(4)
    assert kinds() == [SoftmaxAttention, SoftmaxAttention]
    made.train(1)
    assert kinds() == [SoftmaxAttention, TreeAttention]
    made.train(3)
    trees = [module for module in made.model.modules() if isinstance(module, TreeAttention)]
    assert [(tree.mode, tree.height) for tree in trees] == [(mode, 2), (mode, 2)]
    learned = {id(p) for group in made.trainer.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in made.model.parameters()} == learned
    before = [p.clone() for tree in trees for p in tree.parameters()]
    made.train(2)
    assert any(not torch.equal(a, b) for a, b in zip(before, [p for tree in trees for p in tree.parameters()], strict=True))


def test_only_all_pairs_teach_the_tree_of_that_name():
    built = {
        name: training.make_attention(config(attention=name)).build(2, 4, causal=True, seed=0)
        for name in ("tree_tf", "tree_tf_all_pairs")
    }
    assert {name: (tree.mode, tree.height, tree.gradient.pairs) for name, tree in built.items()} == {
        "tree_tf": ("tf", 2, "kept"),
        "tree_tf_all_pairs": ("tf", 2, "visible"),
    }


def test_features_of_favor_plus_plus_follow_the_data():
    made = training.Run(config(attention="favor++"), seed=0)
    features = [module for module in made.model.modules() if isinstance(module, FavorPlusPlus)]
    assert all((part.A == 0).all() for part in features)
    made.train(2)
    assert all((part.A < 0).all() for part in features)


def test_weights_and_data_are_equal_for_all_kinds():
    one, other = (training.Run(config(attention=name), seed=3) for name in ("softmax", "tree_tf"))
    weights = dict(other.model.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in one.model.named_parameters())
    assert torch.equal(one.task.data.draw()[0], other.task.data.draw()[0])


def results(folder, finals):
    """Results of a study with given final scores by variant, and costs that tell variant and seed."""
    task, runs = Task("t", 10, goal="minimize", final_evaluations=1, score_name="loss"), []
    for number, (variant, scores) in enumerate(finals.items(), start=1):
        for seed, score in enumerate(scores):
            place = folder / "t" / variant / f"seed_{seed}"
            place.mkdir(parents=True)
            row = {
                "cost/flops": 100.0 / number, "cost/dense_flops": 100.0, "cost/microseconds": number, "cost/model_flops": 1000.0,
                "cost/model_microseconds": 2.0 * number, "cost/empty_leaf_rate": 0.0, "time/cpu_seconds": 10.0 + seed, "steps": 10,
            }  # fmt: skip
            text = "\n".join([",".join(row), ",".join(["0"] * len(row)), ",".join(map(str, row.values()))])
            (place / "progress.csv").write_text(text + "\n")
            evaluations = np.array([5.0, 10.0]), np.array([9.0, score])
            runs.append(RunResult(place, "t", variant, seed, {}, "finished", {}, *evaluations, 1))
    return StudyResults(folder, StudyRecord((task,), tuple(finals), "softmax", ()), tuple(runs)), task


def test_table_compares_equal_seeds(tmp_path):
    found, task = results(tmp_path, {"softmax": [1.0, 3.0, 2.0], "tree": [1.5, 3.1], "lone": [4.0]})
    softmax, tree, lone = reporting.efficiency_rows(found, task)
    assert (softmax.score, softmax.low, softmax.high, softmax.difference) == (2.0, 1.0, 3.0, None)
    assert tree.difference == pytest.approx(0.3)
    assert tree.difference_sd == pytest.approx(np.std([0.5, 0.1], ddof=1))
    assert (lone.difference, lone.difference_sd) == (3.0, None)
    assert (tree.dense_ratio, tree.attention_us, tree.model_us, tree.training_seconds, tree.seeds) == (2.0, 2.0, 4.0, 10.5, 2)
    lines = reporting.markdown([softmax, tree, lone], task, "softmax")
    assert "| tree | 2.300 (1.500 to 3.100) | +0.300 ± 0.283 | 50 | 2.00x | 2.00 | 1,000 | 4.00 | 10.5 |  | 2 |" in lines
    reporting.draw([softmax, tree, lone], task, "softmax", tmp_path / "t.svg")
    assert (tmp_path / "t.svg").read_text().startswith("<?xml")


def test_run_without_rows_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"progress.csv must hold rows of a run, got none"):
        training.final_costs(tmp_path)


@pytest.mark.slow
def test_comparison_end_to_end(tmp_path):
    small = ["--preset", "quick", "--tasks", "recall", "--num-steps", "10", "--warmup-steps", "1", "--seeds", "1"]
    arguments = [*small, "--attentions", "softmax", "tree_tf", "--output", tmp_path, "--name", "s"]
    code, output = run("efficient_attention.py", *arguments)
    assert code == 0, output
    assert f"Quality, operations and time: {tmp_path / 's' / 'efficiency.md'}" in output.replace("\n", " ")
    text = (tmp_path / "s" / "efficiency.md").read_text(encoding="utf-8")
    assert "| tree_tf |" in text
    assert (tmp_path / "s" / "recall_64-efficiency.svg").exists()
    with (tmp_path / "s" / "efficiency.csv").open() as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["softmax", "tree_tf"]
