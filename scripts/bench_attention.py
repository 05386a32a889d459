"""Cost of attention by length: linear attention against torch's scaled_dot_product_attention, causal unless the row says otherwise.

All methods take turns, round after round, on the same random queries, keys and values (float32); what is shown is the median of the
CPU times of a call, forward alone (without autograd) or with backward, the ratio to the exact attention, and what doubling the
length costs. "overtakes" is the shortest of the measured lengths from which on a method is faster than the exact attention.

A second table has the time of one decoding step after so many tokens.

Commands:
    scripts/bench attention
    scripts/bench attention --backward
    scripts/bench attention --only favor --chunk-sizes 32 64 128
    scripts/bench attention --only toeplitz --lengths 256 512 1024 2048
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from _bench import Comparison, Work, clock_of, cpu_seconds, take_turns, write_json
from torch import Tensor
from torch.nn import functional as F
from tyro.conf import arg

from rlopt.nn.attention import Attention, SoftmaxAttention
from rlopt.nn.attention_masks import Decay, Toeplitz
from rlopt.nn.linear_attention import FavorAttention, LinearAttention
from rlopt.nn.random_features import EluFeatures, ReluFeatures

EXACT, PRODUCTS = "exact (torch)", ": products alone"
# Features whose products are counted -> whether they multiply by a random matrix.
PROJECTED = {"favor+, chunks": True, "elu + 1": False}


@dataclass(frozen=True)
class Config:
    """What is measured."""

    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    """Lengths of sequences, growing."""
    batch: int = 1
    """Sequences, > 0."""
    heads: int = 4
    """Heads, > 0."""
    head_dim: int = 32
    """Entries of queries, keys and values of a head, > 0."""
    features: int = 64
    """Random features, > 0."""
    chunk_sizes: tuple[int, ...] = (64,)
    """Sizes of chunks of FAVOR+."""
    backward: bool = False
    """Measure forward and backward."""
    decoding: bool = True
    """Measure decoding steps after the forward passes."""
    num_rounds: int = 5
    """Rounds, > 0."""
    threads: int = 1
    """Threads of torch, > 0."""
    max_toeplitz: int = 2048
    """Longest sequence for Toeplitz masks: as matrices they take memory with the square of the length."""
    only: tuple[str, ...] = ()
    """Parts of names of the methods to measure besides the exact one; none: all."""
    device: str = "cpu"
    """Where tensors live: cpu or cuda; decoding steps are measured on the CPU only."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers of whole sequences go, too."""

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "head_dim", "features", "num_rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
        clock_of(self.device)


Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend exactly."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def modules(config: Config) -> dict[str, Attention]:
    """All rows but the exact one."""
    dim, features, longest = config.head_dim, config.features, max(config.lengths)
    rows: dict[str, Attention] = {}
    for chunk_size in config.chunk_sizes:
        rows[f"favor+, chunks of {chunk_size}"] = FavorAttention(dim, features, A=None, chunk_size=chunk_size)
    rows |= {
        "favor++, A = -0.1": FavorAttention(dim, features, A=-0.1),
        "favor+ with decay": FavorAttention(dim, features, A=None, mask=Decay(0.99)),
        "relu features": LinearAttention(ReluFeatures(dim, features)),
        "elu + 1": LinearAttention(EluFeatures(dim)),
        "toeplitz, elu + 1, as matrix": LinearAttention(EluFeatures(dim), Toeplitz(config.heads, longest), dense_length=longest),
        "toeplitz, elu + 1, by fourier": LinearAttention(EluFeatures(dim), Toeplitz(config.heads, longest), dense_length=0),
    }
    return {name: row for name, row in rows.items() if not config.only or any(part in name for part in config.only)}


def products_of(config: Config, length: int, num_features: int, projected: bool) -> Work:
    """Return the products of matrices of a causal pass with so many features, in chunks, without gradients.

    A chunk multiplies its queries with its own keys, the weights with the values, the queries with the sum of all earlier
    products of keys and values, and adds its own to that sum; random features multiply queries and keys by a matrix before.
    """
    dim, chunk = config.head_dim, config.chunk_sizes[0]
    batch = config.batch * config.heads * -(-length // chunk)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=config.device)

    rows, features, weights = zeros(batch, chunk, dim), zeros(batch, chunk, num_features), zeros(batch, chunk, chunk)
    values, state = zeros(batch, chunk, dim + 1), zeros(batch, num_features, dim + 1)  # ones beside the values sum the weights
    calls = [(rows, zeros(dim, num_features).expand(batch, -1, -1))] * 2 if projected else []
    calls += [(features, features.mT), (weights, values), (features, state), (features.mT, values)]
    outs = [a @ b for a, b in calls]

    def multiply() -> None:
        for (a, b), out in zip(calls, outs, strict=True):
            torch.bmm(a, b, out=out)

    return multiply


def run(call: Call, qkv: list[Tensor], backward: bool) -> None:
    """Do what is measured."""
    if backward:
        leaves = [x.detach().requires_grad_() for x in qkv]
        call(*leaves).sum().backward()
    else:
        with torch.no_grad():
            call(*qkv)


def measure_lengths(config: Config, rows: dict[str, Attention]) -> list[Comparison]:
    """Print the table of whole sequences."""

    def causal(module: Attention) -> Call:
        return lambda query, key, value: module(query, key, value, is_causal=True)

    calls: dict[str, Call] = {EXACT: exact, **{name: causal(module) for name, module in rows.items()}}
    times: dict[tuple[str, int], list[float]] = {}
    found = []
    generator = torch.Generator().manual_seed(0)
    what = "forward and backward" if config.backward else "forward"
    for length in config.lengths:
        shape = (config.batch, config.heads, length, config.head_dim)
        qkv = [0.5 * torch.randn(shape, generator=generator).to(config.device) for _ in range(3)]
        used = {name: call for name, call in calls.items() if "toeplitz" not in name or length <= config.max_toeplitz}
        works: dict[str, Work] = {name: lambda call=call, qkv=qkv: run(call, qkv, config.backward) for name, call in used.items()}  # type: ignore[misc]
        floors = {} if config.backward else {name: num for name, num in PROJECTED.items() if any(name in row for row in rows)}
        works |= {
            f"{name}{PRODUCTS}": products_of(config, length, config.features if projected else config.head_dim, projected)
            for name, projected in floors.items()
        }
        measured = take_turns(works, config.num_rounds, device=config.device)
        times |= {(name, length): seconds for name, seconds in measured.items()}
        clock = "cpu" if config.device == "cpu" else "wall"
        for part in PROJECTED:
            name = next((name for name in used if part in name and "toeplitz" not in name), None)
            if name is not None:
                limit = f"{part}{PRODUCTS}" if part in floors else None
                chosen = {who: measured[who] for who in (name, EXACT, *([limit] if limit else []))}
                found.append(Comparison(f"causal, {length} tokens, {what}", "call", chosen, (name,), (EXACT,), limit, clock))
    middle = {key: statistics.median(values) for key, values in times.items()}
    print("| method | " + " | ".join(f"L = {length}, ms" for length in config.lengths) + " | doubling | speed-up | overtakes |")
    print("| --- |" + " --- |" * (len(config.lengths) + 3))
    for name in calls:
        done = [length for length in config.lengths if (name, length) in middle]
        if not done:
            continue
        cells = [f"{1e3 * middle[name, length]:.1f}" if length in done else "" for length in config.lengths]
        growth = [middle[name, b] / middle[name, a] for a, b in itertools.pairwise(done) if b == 2 * a]
        faster = [middle[name, length] < middle[EXACT, length] for length in done]
        first = next((length for i, length in enumerate(done) if all(faster[i:])), None)
        cells += [f"{growth[-1]:.2f}" if growth else "", f"{middle[EXACT, done[-1]] / middle[name, done[-1]]:.1f}"]
        print(f"| {name} | " + " | ".join(cells) + f" | {'' if name == EXACT else first or 'never'} |")
    for name in sorted({name for name, _ in middle if name.endswith(PRODUCTS)}):
        cells = [f"{1e3 * middle[name, length]:.1f}" for length in config.lengths]
        print(f"| {name} | " + " | ".join(cells) + " | | | |")
    return found


def measure_steps(config: Config, rows: dict[str, Attention]) -> None:
    """Print the table of decoding steps."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.batch, config.heads, 1, config.head_dim)
    qkv = [0.5 * torch.randn(shape, generator=generator) for _ in range(3)]
    decoders: dict[str, Attention] = {"exact, cache": SoftmaxAttention()}
    decoders |= {name: module for name, module in rows.items() if "toeplitz" not in name}
    print("| method | " + " | ".join(f"{length} tokens, ms" for length in config.lengths) + " |")
    print("| --- |" + " --- |" * len(config.lengths))
    for name, module in decoders.items():
        cells = []
        for length in config.lengths:
            state = module.init_state(config.batch, num_heads=config.heads, head_dim=config.head_dim, context=length)
            with torch.no_grad():
                _, state = module.step(*qkv, state)
                seconds = [cpu_seconds(lambda state=state: module.step(*qkv, state)) for _ in range(50)]  # type: ignore[misc]  # noqa: B023
            cells.append(f"{1e3 * statistics.median(seconds):.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    rows = modules(config)
    what = "forward and backward" if config.backward else "forward"
    sizes = f"batch {config.batch}, {config.heads} heads of {config.head_dim}, {config.features} features"
    print(f"torch {torch.__version__}, {config.threads} thread(s), {sizes}; {what}.\n")
    rows = {name: module.to(config.device) for name, module in rows.items()}
    comparisons = measure_lengths(config, rows)
    if config.json is not None:
        write_json(config.json, comparisons, settings=asdict(config))
    if not config.backward and config.decoding and config.device == "cpu":
        print()
        measure_steps(config, rows)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
