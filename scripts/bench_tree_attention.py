"""Cost of tree attention without gradients, against torch's exact attention: CPU time, and counted floating-point operations.

Queries, keys and values are independent normal numbers, hyperplanes are as drawn (no training), height is `suggest_height(length)`.
All methods take turns, round after round; shown is the least CPU time of a process with one thread, and flops_ratio as
`TreeAttention` counts it from the real leaves: operations of exact attention on visible pairs, divided by those of the tree.

Command:
    scripts/bench tree_attention --lengths 1024 4096 16384
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from torch.nn import functional as F

from rlopt.nn.tree_attention import TreeAttention, suggest_height


@dataclass(frozen=True)
class Config:
    """What is measured."""

    lengths: tuple[int, ...] = (1024, 4096, 16384)
    """Tokens."""
    num_heads: int = 4
    """Heads."""
    head_dim: int = 32
    """Width of a head."""
    num_rounds: int = 3
    """Rounds, > 0."""
    threads: int = 1
    """Threads of torch, > 0."""


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


@torch.no_grad()
def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(0)
    print(f"H={config.num_heads}, D={config.head_dim}, {config.threads} thread(s), milliseconds of CPU time")
    print(f"{'length':>7} {'causal':>6} {'height':>6} {'method':>12} {'ms':>9} {'exact / it':>10} {'flops_ratio':>11} {'empty':>7}")
    for length in config.lengths:
        height = suggest_height(length)
        shape = (1, config.num_heads, length, config.head_dim)
        query, key, value = (torch.randn(shape, generator=generator) for _ in range(3))
        trees = {
            "tf": TreeAttention(config.num_heads, config.head_dim, height),
            "tf, cap 64": TreeAttention(config.num_heads, config.head_dim, height, leaf_cap=64),
            "tc": TreeAttention(config.num_heads, config.head_dim, height, "tc"),
        }
        for causal in (False, True):
            methods: dict[str, Callable[[], Any]] = {
                "exact": partial(F.scaled_dot_product_attention, query, key, value, is_causal=causal)
            }
            methods |= {name: partial(tree, query, key, value, is_causal=causal) for name, tree in trees.items()}
            least = dict.fromkeys(methods, float("inf"))
            for _ in range(config.num_rounds):
                for name, method in methods.items():
                    least[name] = min(least[name], cpu_seconds(method))
            for name, seconds in least.items():
                line = f"{length:7d} {causal!s:>6} {height:6d} {name:>12} {1e3 * seconds:9.1f} {least['exact'] / seconds:10.2f}"
                if name in trees:
                    stats = trees[name](query, key, value, is_causal=causal, return_stats=True)[1]
                    line += f" {stats['flops_ratio'].item():11.1f} {stats['empty_leaf_rate'].item():7.4f}"
                print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config))
