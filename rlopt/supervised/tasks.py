"""Ready-made tasks: model, loss, data and metrics that belong together, all from one seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlopt.data import Dataset, load
from rlopt.nn import CharTransformer, CharTransformerConfig, ScaleInvariantConfig, TransformerConfig
from rlopt.optim import OptimizerLike
from rlopt.supervised.batches import ArrayData, Batch, TextWindows, TrainingData
from rlopt.supervised.config import TrainerConfig
from rlopt.supervised.losses import (
    AllOutputs,
    AuxiliaryLoss,
    OnLogits,
    WithAuxiliaryLosses,
    accuracy,
    bits_per_token,
    pixel_cross_entropy,
    pixel_squared_error,
    token_cross_entropy,
)
from rlopt.supervised.schedules import Schedule
from rlopt.supervised.step import Loss
from rlopt.supervised.trainer import Metric, Trainer

ActivationName = Literal["tanh", "relu", "sigmoid"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}


@dataclass(frozen=True)
class SupervisedTask:
    """What is learned: everything a `Trainer` needs but the optimizer.

    Args:
        name: For people.
        model: Initialised from the task's seed.
        loss: `(outputs, targets)` -> mean over rows.
        data: Batches, in the order of the task's seed.
        metrics: For evaluations.
    """

    name: str
    model: nn.Module
    loss: Loss
    data: TrainingData
    metrics: Mapping[str, Metric] = field(default_factory=dict)

    def trainer(
        self,
        optimizer: OptimizerLike | torch.optim.Optimizer,
        config: TrainerConfig | None = None,
        *,
        schedule: Schedule | None = None,
        folder: Path | str | None = None,
    ) -> Trainer:
        """Make a trainer for this task; its arguments are those of `Trainer`."""
        return Trainer(self.model, self.loss, optimizer, self.data, config, schedule=schedule, metrics=self.metrics, folder=folder)


def glorot_mlp(sizes: tuple[int, ...], linear: tuple[int, ...], activation: ActivationName, seed: int) -> nn.Sequential:
    """A dense network with Glorot-uniform weights: U(-sqrt(6 / (in + out)), +sqrt(6 / (in + out))).

    The biases are drawn by the same rule with in = out = their number n, U(-sqrt(3 / n), +sqrt(3 / n)).

    Args:
        sizes: Inputs, hidden layers, outputs; at least two numbers, each >= 1.
        linear: Numbers of the layers, from 0, that no activation follows.
        activation: What follows the others.
        seed: Seed of weights and biases.

    Raises:
        ValueError: For arguments outside these sets.

    References: Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, AISTATS 2010.

    Example:
        >>> glorot_mlp((4, 3, 2), (1,), "tanh", seed=0)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): Tanh()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must be two or more numbers >= 1, got {sizes}.")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}.")
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for number, (num_in, num_out) in enumerate(itertools.pairwise(sizes)):
        # On "meta" the constructor draws no weights, which would come from torch's global generator.
        layer = nn.Linear(num_in, num_out, device="meta").to_empty(device="cpu")
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        bound = math.sqrt(3.0 / num_out)
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        layers.append(layer)
        if number not in linear:
            layers.append(_ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


def deep_autoencoder(
    name: Literal["mnist", "fashion_mnist", "curves"] | Dataset = "mnist",
    widths: tuple[int, ...] | None = None,
    activation: ActivationName = "tanh",
    *,
    batch_size: int | None = None,
    seed: int = 0,
    root: Path | str | None = None,
    download: bool = True,
) -> SupervisedTask:
    """Train a deep auto-encoder, a benchmark on which first-order optimizers are slow.

    Dense layers D - widths - (widths backwards) - D; the last of `widths` is the code, which is linear, as is the output: its
    sigmoid is inside the loss, the binary cross-entropy summed over pixels, mean over rows. Glorot-uniform weights and
    biases, see `glorot_mlp`. Pixels in [0, 1]; incomplete batches are left out. Evaluations are on the test part, or on the
    training images where there is none ("curves").

    Args:
        name: A data set of images, or its name. A name needs its files, except for "curves".
        widths: Units of the encoder's layers; None: (1000, 500, 250, 30), and (256, 128, 64, 12) for "curves".
        activation: Of the hidden layers.
        batch_size: Images in a batch; None: 1000, and 500 for "curves" (at most all images).
        seed: Of weights and order.
        root: See `rlopt.data.load`.
        download: See `rlopt.data.load`.

    References: Hinton, Salakhutdinov, Science 313, 2006; this set-up: Amid, Anil, Warmuth, LocoProp: enhancing backprop via local
    loss optimization, AISTATS 2022, arXiv 2106.06199, and their notebook.

    Example:
        >>> from rlopt.data import curves_like
        >>> task = deep_autoencoder(curves_like(500), widths=(32, 4))
        >>> task.trainer("adam", TrainerConfig(num_steps=2)).train()["step"]
        2
    """
    data = name if isinstance(name, Dataset) else load(name, root, download)
    is_small = data.name == "curves"
    if widths is None:
        widths = (256, 128, 64, 12) if is_small else (1000, 500, 250, 30)
    num_pixels = int(np.prod(data.inputs.shape[1:]))
    model = glorot_mlp((num_pixels, *widths, *widths[-2::-1], num_pixels), (len(widths) - 1, 2 * len(widths) - 1), activation, seed)
    if batch_size is None:
        batch_size = min(500 if is_small else 1000, len(data.inputs))

    def prepare(inputs: Tensor, targets: Tensor) -> Batch:
        pixels = _as_floats(inputs)
        return pixels, pixels

    batches = ArrayData(data.inputs, None, data.test_inputs, batch_size=batch_size, prepare=prepare, seed=seed)
    return SupervisedTask(
        f"deep_autoencoder-{data.name}", model, pixel_cross_entropy, batches, {"squared_error": pixel_squared_error}
    )


def classification(
    name: str | Dataset = "digits",
    model: nn.Module | None = None,
    *,
    widths: tuple[int, ...] = (128, 128),
    activation: ActivationName = "relu",
    batch_size: int = 100,
    seed: int = 0,
    root: Path | str | None = None,
    download: bool = True,
) -> SupervisedTask:
    """Learn the classes of a data set with a dense network, or a network of your own.

    Bytes are divided by 255. The columns of a table (data with `feature_names`) are standardised with the mean and deviation of the
    training rows, and missing values become the mean. Data without a test part are split 4 to 1, whole groups at a time.

    Args:
        name: A data set with classes, or its name.
        model: Network that takes the inputs as floats, in their shape; None: a dense one, see `glorot_mlp`.
        widths: Hidden layers of the dense network.
        activation: Of the dense network.
        batch_size: Rows in a batch.
        seed: Of weights, order and split.
        root: See `rlopt.data.load`.
        download: See `rlopt.data.load`.

    Raises:
        ValueError: For data without classes.

    Example:
        >>> from rlopt.data import series_like
        >>> task = classification(series_like(200, num_test=50))
        >>> sorted(task.trainer("adam", TrainerConfig(num_steps=1)).train())
        ['accuracy', 'loss', 'step']
    """
    data = name if isinstance(name, Dataset) else load(name, root, download)
    if data.targets is None or not data.target_names or data.inputs.dtype.kind not in "uif":
        raise ValueError(f"classification needs numbers as inputs, targets and target_names, got {data!r}.")
    if data.test_inputs is None:
        data = data.split(0.2, seed=seed)
    inputs, test_inputs = _standardised(data) if data.feature_names else (data.inputs, data.test_inputs)
    assert data.targets is not None
    if model is None:
        sizes = (int(np.prod(inputs.shape[1:])), *widths, len(data.target_names))
        model = nn.Sequential(nn.Flatten(), *glorot_mlp(sizes, (len(widths),), activation, seed))

    def prepare(rows: Tensor, targets: Tensor) -> Batch:
        return _as_floats(rows, flat=False), targets.long()

    batches = ArrayData(inputs, data.targets, test_inputs, data.test_targets, batch_size=batch_size, prepare=prepare, seed=seed)
    return SupervisedTask(f"classification-{data.name}", model, F.cross_entropy, batches, {"accuracy": accuracy})


def language_model(
    name: str | Dataset = "tiny_shakespeare",
    model: nn.Module | None = None,
    *,
    transformer: TransformerConfig | ScaleInvariantConfig | None = None,
    aux_loss_coefs: Mapping[str, float] | None = None,
    length: int = 64,
    batch_size: int = 12,
    num_eval_windows: int = 256,
    seed: int = 0,
    root: Path | str | None = None,
    download: bool = True,
) -> SupervisedTask:
    """Predict the next character of a text from those before it.

    Training batches are windows at random places of the first 90 % of the text, evaluations windows at equal distances in
    the rest. The loss is the cross-entropy per character in nats.

    Args:
        name: A data set of character codes, or its name.
        model: Network from codes (B, L) to logits (B, L, V); None: a `rlopt.nn.CharTransformer`.
        transformer: Sizes and parts of that one, with `length` as its context and `seed` as its seed; None: the defaults.
        aux_loss_coefs: Coefficients of auxiliary losses of a `CharTransformer`, such as {"balance": 0.01, "router_z": 0.001} with
            a mixture of experts. They are added to "loss", in training and evaluations; evaluations also have "nats", without
            them, and each of them without its coefficient. The model of the task is then an `AllOutputs`. None: logits only.
        length: Characters in a window.
        batch_size: Windows in a batch.
        num_eval_windows: Windows of an evaluation.
        seed: Of weights, places and dropout.
        root: See `rlopt.data.load`.
        download: See `rlopt.data.load`.

    Raises:
        ValueError: For data without characters, for a transformer configuration with a model of your own, and for coefficients
            < 0 or of a model that is no `CharTransformer`; in training, for coefficients of losses that it does not have.

    References: Karpathy, nanoGPT, https://github.com/karpathy/nanoGPT (defaults are its setting for a CPU).

    Example:
        >>> text = np.tile(np.arange(5, dtype=np.uint8), 40)
        >>> cycle = Dataset("cycle", text[:-1], text[1:], text[:-1], text[1:], target_names=tuple("abcde"))
        >>> task = language_model(cycle, transformer=TransformerConfig(num_layers=1, width=16), length=8)
        >>> task.trainer("adam", TrainerConfig(num_steps=1)).train()["step"]
        1
    """
    windows, data = text_windows(name, length, batch_size, num_eval_windows, seed, root, download)
    if model is None:
        form = replace(TransformerConfig() if transformer is None else transformer, context=length, seed=seed)
        model = CharTransformer(CharTransformerConfig(len(data.target_names), form))
    elif transformer is not None:
        raise ValueError("transformer must be None with a model of your own: drop one of them.")
    return text_task(f"language_model-{data.name}", model, windows, aux_loss_coefs)


def text_windows(
    name: str | Dataset, length: int, batch_size: int, num_eval_windows: int, seed: int, root: Path | str | None, download: bool
) -> tuple[TextWindows, Dataset]:
    """Windows of a text, and the data set that holds it; arguments are those of `language_model`."""
    data = name if isinstance(name, Dataset) else load(name, root, download)
    if data.inputs.ndim != 1 or data.inputs.dtype.kind not in "ui" or data.test_inputs is None or not data.target_names:
        raise ValueError(f"a language model needs character codes with a test part and target_names, got {data!r}.")
    windows = TextWindows(
        data.inputs, data.test_inputs, length=length, batch_size=batch_size, num_eval_windows=num_eval_windows, seed=seed
    )
    return windows, data


def text_task(name: str, model: nn.Module, data: TrainingData, aux_loss_coefs: Mapping[str, float] | None) -> SupervisedTask:
    """Task of a model of text with the losses and metrics that `language_model` describes."""
    if aux_loss_coefs is None:
        return SupervisedTask(name, model, token_cross_entropy, data, {"bits": bits_per_token})
    if not isinstance(model, CharTransformer):
        raise ValueError(f"aux_loss_coefs must be None unless the model is a CharTransformer, got a {type(model).__name__}.")
    metrics: dict[str, Metric] = {"nats": OnLogits(token_cross_entropy), "bits": OnLogits(bits_per_token)}
    metrics |= {key: AuxiliaryLoss(key) for key in aux_loss_coefs}
    return SupervisedTask(name, AllOutputs(model), WithAuxiliaryLosses(token_cross_entropy, dict(aux_loss_coefs)), data, metrics)


def _as_floats(rows: Tensor, *, flat: bool = True) -> Tensor:
    """Bytes as floats in [0, 1], other numbers as float32; (B, ...) -> (B, D) if `flat`."""
    floats = rows.float() / 255 if rows.dtype == torch.uint8 else rows.float()
    return floats.flatten(1) if flat else floats


def _standardised(data: Dataset) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Columns with mean 0 and deviation 1 on the training rows; missing values at 0, constant columns too."""
    assert data.test_inputs is not None
    train = data.inputs.astype(np.float64)
    mean, deviation = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    deviation[deviation == 0.0] = 1.0
    scaled = [np.nan_to_num((part - mean) / deviation).astype(np.float32) for part in (data.inputs, data.test_inputs)]
    return scaled[0], scaled[1]
