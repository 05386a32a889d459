"""One training run of a small language model with one kind of attention, on a text or on associative recall."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from _attention_costs import measure
from stable_baselines3.common.logger import configure
from torch import nn

from rlopt.nn import (
    CharTransformer,
    FavorAttentionConfig,
    LinearAttentionConfig,
    ReluAttentionConfig,
    SoftmaxAttentionConfig,
    TransformerConfig,
    TreeAttentionConfig,
)
from rlopt.nn.attention import Attention
from rlopt.nn.attention_masks import Toeplitz
from rlopt.nn.linear_attention import LinearAttention
from rlopt.nn.random_features import EluFeatures
from rlopt.nn.transformer_config import AttentionConfig
from rlopt.nn.tree_attention import StraightThrough, TreeAttention, suggest_height
from rlopt.nn.tree_bootstrap import TreeBootstrapSchedule, find_layer_groups
from rlopt.optim.specs import AdamW
from rlopt.study import Recorder
from rlopt.supervised import SupervisedTask, Trainer, TrainerConfig, WarmupDecay, language_model
from rlopt.supervised.recall import RecallConfig, associative_recall


@dataclass(frozen=True)
class AttentionTask:
    """What is learned.

    Args:
        metric: Its score among the results of an evaluation.
        num_layers: Of the model, unless the study says otherwise.
    """

    metric: str
    num_layers: int


# Name -> what it is.
TASKS = {"text": AttentionTask("loss", 2), "recall": AttentionTask("accuracy", 1)}
# Losses are kept below this: reports need finite numbers.
LARGEST_LOSS = 100.0
# About 1 / sqrt(width): with nanoGPT's 0.02 models as small as these take long to attend to anything.
INIT_STD = 0.1
# Steps from one update of the features of FAVOR++ to the next.
UPDATE_FEATURES_EVERY = 10
# Weights of linear attention with decay fall by this factor per token.
DECAY = 0.99
# Rounds of timing at each evaluation.
TIMING_ROUNDS = 3


@dataclass(frozen=True)
class ToeplitzAttentionConfig:
    """Products of ELU + 1 with learned weights of distances."""

    max_length: int
    """Longest sequence."""

    def build(self, num_heads: int, head_dim: int, *, causal: bool, seed: int) -> Attention:
        """Make the module."""
        return LinearAttention(EluFeatures(head_dim), Toeplitz(num_heads, self.max_length))


@dataclass(frozen=True)
class AllPairsTreeConfig:
    """Softmax in the leaf of a tree that also learns from pairs that it has separated, see `StraightThrough`."""

    height: int
    """Of the tree."""

    def build(self, num_heads: int, head_dim: int, *, causal: bool, seed: int) -> Attention:
        """Make the module."""
        return TreeAttention(num_heads, head_dim, self.height, gradient=StraightThrough(pairs="visible"), seed=seed)


@dataclass(frozen=True)
class Kind:
    """A kind of attention.

    Args:
        name: Of its configuration.
        bootstrap: Whether training begins with exact attention, and trees come layer by layer and level by level.
    """

    name: Literal["softmax", "relu", "favor+", "favor++", "linear", "decay", "toeplitz", "tf", "tf_all_pairs", "tc"]
    bootstrap: bool = False


# Name -> what it is.
KINDS: dict[str, Kind] = {
    "softmax": Kind("softmax"),
    "relu": Kind("relu"),
    "favor+": Kind("favor+"),
    "favor++": Kind("favor++"),
    "linear": Kind("linear"),
    "decay": Kind("decay"),
    "toeplitz": Kind("toeplitz"),
    "tree_tf": Kind("tf"),
    "tree_tf_all_pairs": Kind("tf_all_pairs"),
    "tree_tc": Kind("tc"),
    "tree_tf_bootstrap": Kind("tf", bootstrap=True),
    "tree_tc_bootstrap": Kind("tc", bootstrap=True),
}


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train and evaluate; the function of the study. Scores are nats per character, or the share of values that are recalled.

    Args:
        config: `task_kind` (text, recall), `attention`, `length`, `num_steps`, `warmup_steps`, `lr`, `num_evaluations`,
            `tokens_per_step`, `eval_tokens`, `num_layers`, `num_heads`, `width`, `num_features`, `height`, `num_pairs`,
            `num_values`, `dense_share`, `growing_share`, `device`; for a text `data`.
        seed: Of weights and training data, equal for all kinds.
        folder: Where progress.csv and TensorBoard events go.
    """
    recorder = Recorder(folder)
    recorder.progress(0)
    run = Run(config, seed)
    logger = configure(str(folder), ["csv", "tensorboard"])
    points = np.unique(np.linspace(0, config["num_steps"], config["num_evaluations"] + 1).round().astype(int))[1:]
    example = next(iter(run.task.data.evaluation()))[0].to(config["device"])
    cpu = 0.0
    for point in points.tolist():
        start = time.process_time()
        while run.trainer.step < point:
            run.train(min(UPDATE_FEATURES_EVERY, point - run.trainer.step))
            recorder.progress(run.trainer.step)
        cpu += time.process_time() - start
        score = min(run.trainer.evaluate()[TASKS[config["task_kind"]].metric], LARGEST_LOSS)
        recorder.evaluation(point, score)
        logger.record("eval/score", score)
        logger.record("time/cpu_seconds", cpu)  # of training alone
        for name, value in asdict(measure(run.model, example, TIMING_ROUNDS)).items():
            logger.record(f"cost/{name}", value)
        logger.record("steps", point, exclude="tensorboard")
        logger.dump(point)
    logger.close()


class Run:
    """Model, task and trainer of a configuration, with what has to happen between steps.

    Args:
        config: See `train`.
        seed: See `train`.
    """

    def __init__(self, config: Mapping[str, Any], seed: int) -> None:
        kind = KINDS[config["attention"]]
        self.task = make_task(config, seed)
        self.model = cast(CharTransformer, self.task.model)
        # One step more than are taken: at its last step a trainer evaluates by itself, within the time that is measured.
        num_steps = config["num_steps"] + 1
        options = TrainerConfig(
            num_steps=num_steps, log_every=num_steps, clip_norm=1.0, device=config["device"], progress=False, seed=seed
        )
        schedule = WarmupDecay(config["num_steps"], config["warmup_steps"])
        spec = AdamW(lr=config["lr"], weight_decay=0.1, decay_matrices_only=True)
        self.trainer: Trainer = self.task.trainer(spec, options, schedule=schedule)
        self._first_tree = round(config["dense_share"] * config["num_steps"])
        self._trees = make_bootstrap(self.model, config, seed) if kind.bootstrap else None

    def train(self, num_steps: int) -> None:
        """Take steps, then let features know the batches so far."""
        if self._trees is None:
            self.trainer.train(num_steps)
        else:
            for _ in range(num_steps):
                self._grow(self._trees)
                self.trainer.train(1)
        self.model.transformer.update_features()

    def _grow(self, trees: TreeBootstrapSchedule) -> None:
        if self.trainer.step < self._first_tree:
            return
        if new := trees.step(self.model):
            first = self.trainer.optimizer.param_groups[0]
            self.trainer.optimizer.add_param_group({"params": new, "weight_decay": 0.0, "initial_lr": first["initial_lr"]})


def make_task(config: Mapping[str, Any], seed: int) -> SupervisedTask:
    """Return model, loss and data of a configuration."""
    length = config["length"]
    batch_size, eval_rows = (max(1, config[name] // length) for name in ("tokens_per_step", "eval_tokens"))
    form = TransformerConfig(
        **{name: config[name] for name in ("num_layers", "num_heads", "width")},
        attention=cast(AttentionConfig, make_attention(config)),
        # What is recalled does not depend on places; on a text, learned positions as many as these take far longer to be of use.
        positions="none" if config["task_kind"] == "recall" else "rotary",
        init_std=INIT_STD,
    )
    if config["task_kind"] == "recall":
        recall = RecallConfig(
            length, config["num_pairs"], config["num_pairs"], num_keys=config["num_pairs"], num_values=config["num_values"]
        )
        return associative_recall(recall, form, batch_size=batch_size, num_eval_rows=eval_rows, seed=seed)
    return language_model(
        config["data"], transformer=form, length=length, batch_size=batch_size, num_eval_windows=eval_rows, seed=seed
    )


def make_attention(config: Mapping[str, Any]) -> AttentionConfig | ToeplitzAttentionConfig | AllPairsTreeConfig:
    """Return the attention that a run begins with."""
    kind = KINDS[config["attention"]]
    if kind.bootstrap or kind.name == "softmax":
        return SoftmaxAttentionConfig()
    if kind.name == "relu":
        return ReluAttentionConfig()
    if kind.name == "favor+" or kind.name == "favor++":
        return FavorAttentionConfig(num_features=config["num_features"], kind=kind.name)
    if kind.name == "toeplitz":
        return ToeplitzAttentionConfig(config["length"])
    if kind.name == "tf_all_pairs":
        return AllPairsTreeConfig(tree_height(config))
    if kind.name == "tf" or kind.name == "tc":
        return TreeAttentionConfig(height=tree_height(config), mode=kind.name)
    return LinearAttentionConfig(decay=DECAY if kind.name == "decay" else None)


def tree_height(config: Mapping[str, Any]) -> int:
    """Return the height of trees: the given one, or the one that goes with the length."""
    return suggest_height(config["length"]) if config["height"] is None else int(config["height"])


def make_bootstrap(model: nn.Module, config: Mapping[str, Any], seed: int) -> TreeBootstrapSchedule:
    """Return the schedule that turns exact attention into trees: layer by layer from the last one, level by level."""
    groups = find_layer_groups(model)
    heights = list(range(1, tree_height(config) + 1))
    steps = round(config["growing_share"] * config["num_steps"]) // (len(groups) * len(heights))
    mode: Any = KINDS[config["attention"]].name
    return TreeBootstrapSchedule(groups, heights, max(1, steps), modes=[mode] * len(groups), seed=seed)


def final_costs(folder: Path) -> dict[str, float]:
    """Return the last row of a run's progress.csv.

    Raises:
        ValueError: If there is none.
    """
    path = folder / "progress.csv"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if len(lines) < 2:
        raise ValueError(f"{path} must hold rows of a run, got none; delete the run's folder and start the study again")
    return {name: float(value) for name, value in zip(lines[0].split(","), lines[-1].split(","), strict=True) if value}
