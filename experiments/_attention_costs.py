"""What attention costs: floating-point operations by formula or from the leaves of trees, and measured time.

Counted is what causal attention without projections has to compute in a forward pass, a multiplication and an addition as two
operations, exponentials and other work on single numbers not at all. Pairs of a query and a later key do not count, wherever they
are formed. So the numbers are below what a computer does, for all kinds in the same way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlopt.nn import CharTransformer
from rlopt.nn.attention import Attention, ReluAttention, SoftmaxAttention
from rlopt.nn.attention_masks import Decay, Toeplitz
from rlopt.nn.linear_attention import LinearAttention
from rlopt.nn.random_features import EluFeatures, FavorPlus, FavorPlusPlus, FeatureMap
from rlopt.nn.tree_attention import TreeAttention

Call = tuple[Attention, tuple[Tensor, ...], dict[str, Any]]


@dataclass(frozen=True)
class AttentionCosts:
    """Costs of all attention modules of a model for a batch, in a forward pass.

    Args:
        flops: Operations per token.
        dense_flops: Operations per token of exact attention with as many heads of this width.
        microseconds: CPU (or device) time of the attention per token.
        model_flops: Operations per token of the whole model.
        model_microseconds: Time of the whole model per token.
        empty_leaf_rate: Of trees, the share of queries whose leaf holds no key that they may see; 0 without trees.
    """

    flops: float
    dense_flops: float
    microseconds: float
    model_flops: float
    model_microseconds: float
    empty_leaf_rate: float


def dense_flops(length: int, head_dim: int) -> float:
    """Exact attention of one head: scores and sums of values for all pairs j <= i."""
    return 4.0 * head_dim * _num_pairs(length)


def linear_flops(length: int, head_dim: int, num_features: int, chunk_size: int) -> float:
    """Causal attention of one head in chunks, without making features.

    Pairs in chunks: 2 (m + D + 1); for each token 2 m (D + 1) to add to the state, and the same to read it.
    """
    num_chunks, rest = divmod(length, chunk_size)
    pairs = num_chunks * _num_pairs(chunk_size) + _num_pairs(rest)
    return 2.0 * pairs * (num_features + head_dim + 1) + 4.0 * length * num_features * (head_dim + 1)


def toeplitz_flops(length: int, head_dim: int, num_features: int, dense_length: int) -> float:
    """Attention of one head under a Toeplitz mask, without making features.

    As a matrix: pairs, 2 (m + D + 1). By Fourier transforms of N = 2 L real numbers, 2.5 N log2 N each: one there and one back
    for each of m (D + 1) columns, with 6 (L + 1) for the product of spectra and 3 L for products with keys and queries.
    """
    if length <= dense_length:
        return 2.0 * _num_pairs(length) * (num_features + head_dim + 1)
    transform = 2.5 * 2 * length * math.log2(2 * length)
    return num_features * (head_dim + 1) * (2.0 * transform + 6.0 * (length + 1) + 3.0 * length)


def feature_flops(length: int, head_dim: int, feature_map: FeatureMap) -> float:
    """Making features of queries and keys of one head: projections for random ones, with one or two more entries for the norms."""
    if isinstance(feature_map, EluFeatures):
        return 0.0
    if not isinstance(feature_map, FavorPlus):
        raise ValueError(f"feature_map must be EluFeatures or FavorPlus to be counted, got {type(feature_map).__name__}.")
    extra = 2 if isinstance(feature_map, FavorPlusPlus) else 1
    return 4.0 * length * feature_map.num_features * (head_dim + extra)


def attention_flops(attention: Attention, length: int, head_dim: int) -> float:
    """Operations of one head of causal attention on a sequence; not for trees, whose number depends on the data.

    Raises:
        ValueError: For attention without a formula.
    """
    if isinstance(attention, SoftmaxAttention | ReluAttention):
        return dense_flops(length, head_dim)
    if not isinstance(attention, LinearAttention) or not (attention.mask is None or isinstance(attention.mask, Decay | Toeplitz)):
        raise ValueError(f"attention must be of a kind with a formula, got {type(attention).__name__}.")
    features = attention.feature_map
    making = feature_flops(length, head_dim, features)
    if isinstance(attention.mask, Toeplitz):
        return making + toeplitz_flops(length, head_dim, features.num_features, attention.dense_length)
    return making + linear_flops(length, head_dim, features.num_features, attention.chunk_size)


def rest_flops(model: CharTransformer) -> float:
    """Operations per token of all linear maps of a model, 2 for each weight: everything but attention."""
    return sum(2.0 * layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


@torch.no_grad()
def measure(model: CharTransformer, tokens: Tensor, num_rounds: int) -> AttentionCosts:
    """Count and time a forward pass of a model on tokens (B, L), without gradients.

    Args:
        model: Its attention is that of `rlopt.nn`.
        tokens: Real ones, since the leaves of trees depend on them.
        num_rounds: Of timing, > 0; the least time counts.
    """
    was_training = model.training
    model.eval()
    with _recorded_calls(model) as calls:
        model(tokens)
    flops = dense = 0.0
    empty = []
    for attention, inputs, options in calls:
        rows, num_heads, length, head_dim = inputs[0].shape
        dense += rows * num_heads * dense_flops(length, head_dim)
        if isinstance(attention, TreeAttention):
            stats = attention(*inputs, **options, return_stats=True)[1]
            flops += float(stats["flops"])
            empty.append(float(stats["empty_leaf_rate"]))
        else:
            flops += rows * num_heads * attention_flops(attention, length, head_dim)

    def attend() -> None:
        for attention, inputs, options in calls:
            attention(*inputs, **options)

    seconds = least_seconds(attend, num_rounds, tokens.device)
    model_seconds = least_seconds(lambda: model(tokens), num_rounds, tokens.device)
    model.train(was_training)
    count = tokens.numel()
    return AttentionCosts(
        flops=flops / count,
        dense_flops=dense / count,
        microseconds=1e6 * seconds / count,
        model_flops=flops / count + rest_flops(model),
        model_microseconds=1e6 * model_seconds / count,
        empty_leaf_rate=sum(empty) / len(empty) if empty else 0.0,
    )


def least_seconds(function: Callable[[], object], num_rounds: int, device: torch.device) -> float:
    """Least time of several calls: CPU time of the process, or the time that a device took."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    least = math.inf
    for _ in range(num_rounds):
        _wait(device)
        start = clock()
        function()
        _wait(device)
        least = min(least, clock() - start)
    return least


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _num_pairs(length: int) -> float:
    """Pairs j <= i."""
    return length * (length + 1) / 2


@contextmanager
def _recorded_calls(model: nn.Module) -> Iterator[list[Call]]:
    """Record what attention modules are called with."""
    calls: list[Call] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        assert isinstance(module, Attention)
        calls.append((module, inputs, options))

    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in attentions]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
