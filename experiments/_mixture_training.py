"""One training run of a small model of text with a dense MLP, or one of several mixtures of experts, in every n-th layer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.logger import Logger, configure
from torch import Tensor, nn

from rlopt.nn import CharTransformer, DenseMLP, ExpertChoice, MoE, SoftMoE, TokenChoice, TransformerConfig
from rlopt.nn.assignment import RouterStats
from rlopt.nn.routing import expert_capacity
from rlopt.nn.transformer import TransformerBlock
from rlopt.nn.transformer_config import layer_seed
from rlopt.optim.specs import AdamW
from rlopt.study import Recorder
from rlopt.supervised import SupervisedTask, Trainer, TrainerConfig, WarmupDecay, language_model
from rlopt.supervised.losses import token_cross_entropy
from rlopt.supervised.masking import masked_language_model

# Losses are kept below this: reports need finite numbers. It means divergence; guessing uniformly among 65 characters costs 4.2.
LARGEST_LOSS = 100.0
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Method:
    """What stands in the place of the MLP.

    Args:
        router: Of a mixture of experts.
        is_soft: Whether it is a soft mixture.
        factor: Default of the capacity factor: room of experts per token, with expert choice experts per token, with soft mixtures
            slots per token. None: not limited, or no experts.
        eval_factor: Default of the capacity factor in evaluations. None: as in training.
    """

    router: TokenChoice | ExpertChoice | None = None
    is_soft: bool = False
    factor: float | None = None
    eval_factor: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether there are no experts."""
        return self.router is None and not self.is_soft

    @property
    def causal_safe(self) -> bool:
        """Whether what a token gets never depends on later ones."""
        return self.is_dense or (self.router is not None and self.router.causal_safe and self.factor is None)

    def auxiliary_losses(self, balance: float, router_z: float) -> dict[str, float]:
        """Coefficients of the losses that the method has."""
        if isinstance(self.router, TokenChoice):
            return {"balance": balance, "router_z": router_z}
        return {"router_z": router_z} if isinstance(self.router, ExpertChoice) else {}


# Name -> what it is.
METHODS: dict[str, Method] = {
    "dense": Method(),
    "top1": Method(TokenChoice(top_k=1)),
    "top1_capacity": Method(TokenChoice(top_k=1), factor=1.25, eval_factor=2.0),  # the factors of Switch
    "top2": Method(TokenChoice(top_k=2)),
    "top2_capacity": Method(TokenChoice(top_k=2), factor=2.0),
    "expert_choice": Method(ExpertChoice(), factor=2.0),
    "soft": Method(is_soft=True, factor=1.0),
}


@dataclass(frozen=True)
class Sizes:
    """What the cost of a layer depends on, but for its hidden width.

    Args:
        width: Of the residual stream.
        length: Tokens of a sample.
        num_experts: Experts.
        factor: Capacity factor of the method; None: not limited.
    """

    width: int
    length: int
    num_experts: int
    factor: float | None = None

    @property
    def capacity(self) -> int:
        """Tokens, or slots, of an expert in a sample; without a factor all tokens."""
        if self.factor is None:
            return self.length
        return expert_capacity(self.length, self.num_experts, self.factor)


def rows_per_token(method: Method, sizes: Sizes) -> float:
    """Return how many experts compute for a token on average: all choices if there is room for them."""
    if method.is_dense:
        return 1.0
    room = sizes.num_experts * sizes.capacity / sizes.length
    return min(method.router.top_k, room) if isinstance(method.router, TokenChoice) else room


def layer_flops(method: Method, sizes: Sizes, hidden_width: int) -> float:
    """Return multiplications and additions of the matrix products per token in the forward pass, those of routers included."""
    experts = 4.0 * sizes.width * hidden_width * rows_per_token(method, sizes)
    return experts + _overhead(method, sizes)


def equal_hidden_width(method: Method, sizes: Sizes, dense_hidden_width: int) -> int:
    """Return the hidden width of an expert with which a layer costs as much as the dense one.

    Raises:
        ValueError: If not even one unit is left.
    """
    rest = 4.0 * sizes.width * dense_hidden_width - _overhead(method, sizes)
    found = round(rest / (4.0 * sizes.width * rows_per_token(method, sizes)))
    if found < 1:
        raise ValueError(
            f"width must be so large that experts have hidden units at the cost of a dense layer, got width {sizes.width} with "
            f"{sizes.num_experts} experts and context {sizes.length}"
        )
    return found


def _overhead(method: Method, sizes: Sizes) -> float:
    """FLOPs per token of what decides, and of mixing."""
    if method.is_dense:
        return 0.0
    if method.is_soft:  # logits, tokens to slots, slots to tokens
        return 6.0 * sizes.width * sizes.num_experts * sizes.capacity
    return 2.0 * sizes.width * sizes.num_experts


def make_layer(method: Method, sizes: Sizes, hidden_width: int, seed: int) -> nn.Module:
    """Make what stands in the place of the MLP; not for the dense method."""
    if method.is_soft:
        return SoftMoE(sizes.width, hidden_width, sizes.num_experts, slots_per_expert=sizes.capacity, seed=seed)
    router = method.router
    assert router is not None
    if isinstance(router, ExpertChoice):
        assert sizes.factor is not None
        router = replace(router, capacity_factor=sizes.factor)
    elif sizes.factor is not None:
        router = replace(router, capacity_factor=sizes.factor, eval_capacity_factor=method.eval_factor)
    return MoE(sizes.width, hidden_width, sizes.num_experts, router, seed=seed)


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train a model of text; the function of the study. Scores are validation losses in nats per character, without other losses.

    A run that diverges gets `LARGEST_LOSS` from there on.

    Args:
        config: `data`, `objective`, `method`, `lr`, `capacity_factor`, `num_experts`, `every`, `balance_coef`, `router_z_coef`,
            `num_steps`, `warmup_steps`, `num_evaluations`, `num_eval_windows`, `context`, `batch_size`, `num_layers`, `num_heads`,
            `width`, `device`.
        seed: Of initial weights, windows and what is hidden. All that is not an expert or a router starts the same for all methods.
        folder: Where progress.csv and TensorBoard events go.
    """
    recorder = Recorder(folder)
    recorder.progress(0)
    trainer = make_trainer(config, seed)
    logger = configure(str(folder), ["csv", "tensorboard"])
    points = np.unique(np.linspace(0, config["num_steps"], config["num_evaluations"] + 1).round().astype(int))
    cpu, diverged = 0.0, False
    for point in points.tolist():
        start = time.process_time()
        if not diverged:
            diverged = not _train_to(trainer, point, recorder)
        cpu += time.process_time() - start
        found = {"nats": LARGEST_LOSS} if diverged else evaluate(trainer, logger)
        nats = min(found["nats"], LARGEST_LOSS) if found["nats"] == found["nats"] else LARGEST_LOSS
        if point > 0:
            recorder.evaluation(point, nats)
        for name, value in found.items():
            logger.record(f"eval/{name}", nats if name == "nats" else value)
        logger.record("time/cpu_seconds", cpu)  # of training alone, without evaluations
        logger.record("steps", point, exclude="tensorboard")
        logger.dump(point)
    logger.close()


def make_trainer(config: Mapping[str, Any], seed: int) -> Trainer:
    """Return the trainer of a run."""
    method, task = METHODS[config["method"]], make_task(config, seed)
    model = text_model(task.model)
    sizes = method_sizes(config)
    hidden_width = equal_hidden_width(method, sizes, 4 * config["width"])
    for layer, block in enumerate(model.transformer.blocks):
        if not method.is_dense and (layer + 1) % config["every"] == 0:
            experts = make_layer(method, sizes, hidden_width, layer_seed(seed, layer, part=1))
            draw_as_dense(experts, model.transformer.config, torch.Generator().manual_seed(layer_seed(seed, layer, part=2)))
            cast(TransformerBlock, block).mlp = experts
    # One step more than are taken: at its last step a trainer evaluates by itself, within the time that is measured.
    num_steps = config["num_steps"] + 1
    options = TrainerConfig(num_steps=num_steps, log_every=num_steps, device=config["device"], progress=False, seed=seed)
    spec = AdamW(lr=config["lr"], weight_decay=WEIGHT_DECAY, decay_matrices_only=True)
    return task.trainer(spec, options, schedule=WarmupDecay(config["num_steps"], config["warmup_steps"]))


def make_task(config: Mapping[str, Any], seed: int) -> SupervisedTask:
    """Return the task with the dense model."""
    is_masked = config["objective"] == "masked"
    form = TransformerConfig(
        **{name: config[name] for name in ("num_layers", "num_heads", "width")}, causal=not is_masked, positions="rotary"
    )
    make = masked_language_model if is_masked else language_model
    return make(
        config["data"],
        transformer=form,
        aux_loss_coefs=METHODS[config["method"]].auxiliary_losses(config["balance_coef"], config["router_z_coef"]),
        length=config["context"],
        batch_size=config["batch_size"],
        num_eval_windows=config["num_eval_windows"],
        seed=seed,
    )


def method_sizes(config: Mapping[str, Any]) -> Sizes:
    """Return the sizes of a layer, with the capacity factor of the method."""
    factor = METHODS[config["method"]].factor if config["capacity_factor"] is None else config["capacity_factor"]
    return Sizes(config["width"], config["context"], config["num_experts"], factor)


@torch.no_grad()
def draw_as_dense(layer: nn.Module, config: Any, generator: torch.Generator) -> None:
    """Draw the weights of experts as those of the dense MLP are drawn, so that methods do not differ in the size of weights."""
    experts = cast(MoE | SoftMoE, layer).experts
    experts.w_in.normal_(0.0, config.init_std, generator=generator)
    experts.w_out.normal_(0.0, config.init_std / (2 * config.num_layers) ** 0.5, generator=generator)


def text_model(model: nn.Module) -> CharTransformer:
    """Return the model inside that of a task."""
    found = getattr(model, "model", model)
    assert isinstance(found, CharTransformer)
    return found


def mlps(model: nn.Module) -> Iterator[DenseMLP | MoE | SoftMoE]:
    """Return what stands behind the attention of each layer."""
    for block in text_model(model).transformer.blocks:
        yield cast(DenseMLP | MoE | SoftMoE, cast(TransformerBlock, block).mlp)


@torch.no_grad()
def evaluate(trainer: Trainer, logger: Logger) -> dict[str, float]:
    """Return the validation loss and the auxiliary losses without coefficients; hand the loads of experts to a logger."""
    trainer.model.eval()
    sums: dict[str, float] = {}
    layers: dict[str, list[RouterStats]] = {}
    num_rows = 0
    for inputs, targets in trainer.data.evaluation():
        outputs = trainer.model(inputs.to(trainer.device))
        values: dict[str, Tensor] = {"nats": token_cross_entropy(outputs.logits, targets.to(trainer.device)), **outputs.aux_losses}
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(inputs)
        for name, stats in outputs.router_stats.items():
            layers.setdefault(name, []).append(stats)
        num_rows += len(inputs)
    trainer.model.train()
    loads = {name: load_values(stats) for name, stats in layers.items()}
    for name, found in loads.items():
        for key, number in found.items():
            logger.record(f"load/{name}_{key}", number)
    for key in ("max", "min", "mean", "imbalance", "dropped", "entropy", "router_entropy") if loads else ():
        logger.record(f"load/{key}", float(np.mean([found[key] for found in loads.values()])))
    return {name: total / num_rows for name, total in sums.items()}


def load_values(batches: list[RouterStats]) -> dict[str, float]:
    """Return how the tokens of an evaluation were spread over the experts of a layer.

    Returns:
        `expert<i>`: tokens that expert i computed, or slots with soft mixtures, divided by all tokens; `max`, `min` and `mean` of
        these; `imbalance`: max / mean, 1 if loads are equal, the number of experts if one computes everything; `entropy`: of the
        loads as shares of their sum, divided by log of the number of experts, 1 if equal; `dropped` (see `RouterStats`) and
        `router_entropy` (of the probabilities of a token, in nats), means over tokens.
    """
    tokens = np.array([int(stats.experts_per_token.sum()) for stats in batches])
    load = np.sum([stats.load.cpu().numpy() for stats in batches], axis=0) / tokens.sum()
    shares = load[load > 0] / load.sum()
    values = {f"expert{i}": float(value) for i, value in enumerate(load)}
    values |= {"max": float(load.max()), "min": float(load.min()), "mean": float(load.mean())}
    values |= {"imbalance": values["max"] / values["mean"]}
    values |= {"entropy": float(-(shares * np.log(shares)).sum() / math.log(len(load))) if len(load) > 1 else 1.0}
    for name, column in (("dropped", "dropped_fraction"), ("router_entropy", "router_entropy")):
        values[name] = float(np.average([float(getattr(stats, column)) for stats in batches], weights=tokens))
    return values


def _train_to(trainer: Trainer, point: int, recorder: Recorder) -> bool:
    """Train to a step; tell whether all stayed finite."""
    try:
        while trainer.step < point:
            trainer.train(min(50, point - trainer.step))
            recorder.progress(trainer.step)
    except FloatingPointError as error:
        print(error)
        return False
    return True
