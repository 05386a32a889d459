"""Tasks: architecture and initial weights by their formulas, losses by hand, and short runs that must learn."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rlopt.data import Dataset, curves_like, load, series_like
from rlopt.nn import ScaleInvariantConfig, TransformerConfig
from rlopt.optim import Adam
from rlopt.supervised import TrainerConfig, WarmupDecay, classification, deep_autoencoder, language_model
from rlopt.supervised.losses import accuracy, bits_per_token, pixel_cross_entropy, pixel_squared_error, token_cross_entropy


def data_dir() -> Path:
    folder = os.environ.get("RLOPT_DATA_DIR")
    if not folder or not (Path(folder) / "mnist").is_dir():
        pytest.skip("needs the published data sets: set RLOPT_DATA_DIR to a folder that holds them")
    return Path(folder)


def text(num: int = 400) -> Dataset:
    codes = (np.arange(num) ** 2 % 7).astype(np.uint8)  # period 7
    return Dataset("squares", codes[:-1], codes[1:], codes[:99], codes[1:100], target_names=tuple("abcdefg"))


def test_autoencoder_has_linear_code_and_output_and_tanh_elsewhere() -> None:
    task = deep_autoencoder("curves")
    assert isinstance(task.model, nn.Sequential)
    sizes = [layer.in_features for layer in task.model if isinstance(layer, nn.Linear)]
    assert sizes == [196, 256, 128, 64, 12, 64, 128, 256]
    kinds = "".join("L" if isinstance(layer, nn.Linear) else "t" for layer in task.model)
    assert kinds == "LtLtLtLLtLtLtL"


def test_initial_weights_and_biases_are_glorot_uniform() -> None:
    task = deep_autoencoder("curves", seed=4)
    assert isinstance(task.model, nn.Sequential)
    for layer in task.model:
        if isinstance(layer, nn.Linear):
            for tensor, bound in (
                (layer.weight, math.sqrt(6 / (layer.in_features + layer.out_features))),
                (layer.bias, math.sqrt(3 / layer.out_features)),
            ):
                assert float(tensor.detach().abs().max()) <= bound
                # Within 5 standard errors; the variance of u^2 for u in [-1, 1] is 4 / 45.
                error = 5 * math.sqrt(4 / 45 / tensor.numel())
                assert float((tensor.detach() / bound).square().mean()) == pytest.approx(1 / 3, abs=error)


def test_seed_decides_weights_and_order_and_global_generators_are_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (deep_autoencoder(curves_like(500), widths=(8, 2), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for task, is_same in ((same, True), (other, False)):
        assert torch.equal(next(one.model.parameters()), next(task.model.parameters())) is is_same
    first = one.data.draw()[0]
    assert torch.equal(first, same.data.draw()[0])
    assert not torch.equal(first, other.data.draw()[0])


def test_losses_are_those_by_hand() -> None:
    logits, targets = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.5, 0.0]])
    # Probabilities 1/2, 3/4; 1/2, 1/2.
    assert pixel_cross_entropy(logits, targets).item() == pytest.approx((math.log(2) + math.log(4 / 3) + 2 * math.log(2)) / 2)
    assert pixel_squared_error(logits, targets).item() == pytest.approx((1 / 4 + 1 / 16 + 0 + 1 / 4) / 2)
    assert accuracy(torch.tensor([[1.0, 2.0], [3.0, 2.0], [0.0, 1.0]]), torch.tensor([1, 1, 1])).item() == pytest.approx(2 / 3)
    tokens = torch.tensor([[0, 1]])
    scores = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])  # probabilities 3/4 and 1/2
    assert token_cross_entropy(scores, tokens).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert bits_per_token(scores, tokens).item() == pytest.approx((math.log2(4 / 3) + 1) / 2)


def test_bytes_become_floats_and_tables_are_standardised_with_the_training_rows() -> None:
    images = Dataset(
        "grey",
        np.full((4, 2, 2), 51, np.uint8),
        np.array([0, 1, 0, 1]),
        np.zeros((1, 2, 2), np.uint8),
        np.array([0]),
        target_names=("a", "b"),
    )
    inputs, targets = classification(images, batch_size=4).data.draw()
    assert inputs.dtype == torch.float32
    assert torch.allclose(inputs, torch.tensor(0.2))
    assert targets.dtype == torch.int64
    rows = np.array([[1.0, 5.0], [3.0, np.nan], [2.0, 5.0]])
    table = Dataset(
        "table", rows, np.array([0, 1, 0]), np.array([[2.0 + math.sqrt(8 / 3), 6.0]]), np.array([1]), ("x", "y"), ("a", "b")
    )
    data = classification(table, batch_size=3).data
    (test_inputs, _), *_ = data.evaluation()
    assert test_inputs.tolist()[0] == pytest.approx([2.0, 1.0])
    assert sorted(data.draw()[0][:, 0].tolist()) == pytest.approx([-math.sqrt(1.5), 0.0, math.sqrt(1.5)])


def test_data_without_a_test_part_are_split() -> None:
    data = Dataset("table", np.arange(40.0).reshape(20, 2), np.arange(20) % 2, target_names=("a", "b"), groups=np.arange(20) // 4)
    assert sum(len(inputs) for inputs, _ in classification(data, batch_size=4).data.evaluation()) == 4


@pytest.mark.parametrize("make", [classification, language_model])
def test_data_that_do_not_fit_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"needs .*, got Dataset"):
        make(curves_like(3))  # type: ignore[operator]


def test_transformer_with_a_model_of_ones_own_is_refused() -> None:
    with pytest.raises(ValueError, match="transformer must be None with a model of your own"):
        language_model(text(), nn.Identity(), transformer=TransformerConfig())


def test_activation_is_checked() -> None:
    with pytest.raises(ValueError, match="activation must be one of tanh, relu, sigmoid, got 'gelu'"):
        deep_autoencoder("curves", activation="gelu")  # type: ignore[arg-type]


@pytest.mark.slow
def test_digits_are_learned_in_seconds() -> None:
    pytest.importorskip("sklearn", reason="the data set comes with scikit-learn")
    task = classification("digits", seed=0)
    result = task.trainer(Adam(lr=3e-3), TrainerConfig(num_steps=200), schedule=WarmupDecay(200)).train()
    assert result["accuracy"] > 0.9


@pytest.mark.slow
def test_curves_are_learned_beyond_their_mean_image() -> None:
    images = curves_like(500)
    task = deep_autoencoder(images, widths=(128, 12), batch_size=50)
    result = task.trainer(Adam(lr=3e-3), TrainerConfig(num_steps=400), schedule=WarmupDecay(400, warmup_steps=20)).train()
    mean = images.inputs.reshape(500, -1).mean(axis=0)
    of_mean_image = float(-(mean * np.log(mean) + (1 - mean) * np.log1p(-mean)).sum())
    assert result["loss"] < 0.75 * of_mean_image


@pytest.mark.slow
def test_series_are_learned_better_by_convolutions() -> None:
    data = series_like(1000, num_test=300)
    convolutions = nn.Sequential(
        nn.Unflatten(1, (1, 40)), nn.Conv1d(1, 16, 9, padding=4), nn.ReLU(), nn.Conv1d(16, 16, 9, padding=4), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    found = {}
    for name, model in (("dense", None), ("convolutions", convolutions)):
        task = classification(data, model)
        found[name] = task.trainer(Adam(lr=5e-3), TrainerConfig(num_steps=300), schedule=WarmupDecay(300)).train()["accuracy"]
    assert found["convolutions"] > found["dense"] + 0.1 > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TransformerConfig, ScaleInvariantConfig])
def test_language_model_learns_a_text_with_a_period(kind: type[TransformerConfig] | type[ScaleInvariantConfig]) -> None:
    # Both neighbours of a character vary, so one character does not tell the next; two do.
    task = language_model(text(), transformer=kind(num_layers=1, num_heads=2, width=32), length=8)
    start = task.trainer("adam").evaluate()
    assert start["loss"] == pytest.approx(math.log(7), rel=0.1)
    assert start["bits"] == pytest.approx(start["loss"] / math.log(2))
    result = task.trainer(Adam(lr=1e-2), TrainerConfig(num_steps=120)).train()
    assert result["loss"] < 0.35


def test_published_data_give_the_published_shapes() -> None:
    root = data_dir()
    task = deep_autoencoder("mnist", root=root)
    assert isinstance(task.model, nn.Sequential)
    assert [layer.in_features for layer in task.model if isinstance(layer, nn.Linear)] == [784, 1000, 500, 250, 30, 250, 500, 1000]
    inputs, targets = task.data.draw()
    assert inputs.shape == (1000, 784)
    assert torch.equal(inputs, targets)
    assert task.trainer("sgd").evaluate()["loss"] == pytest.approx(547, rel=0.05)  # a network that knows nothing: 784 log 2 = 543
    shakespeare = language_model(root=root, transformer=TransformerConfig(num_layers=1, width=32))
    assert shakespeare.trainer("sgd").evaluate()["loss"] == pytest.approx(math.log(65), rel=0.05)


@pytest.mark.slow
def test_tables_with_missing_values_are_learned() -> None:
    # Mice that were never seen, eight classes: a logistic regression has 0.47 on this split.
    task = classification(load("mice_protein", data_dir()), seed=1)
    assert task.trainer(Adam(lr=3e-3), TrainerConfig(num_steps=150)).train()["accuracy"] > 0.3
