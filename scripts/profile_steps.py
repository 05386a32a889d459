"""Where the time of a step goes: torch's operators by their own time, and what is left for Python and the calls.

The steps are those of `scripts/bench locoprop`, `attention` and `moe`, at their default sizes, on one thread. Shares are those of
the profiled calls, which the profiler makes a little slower; the CPU time without it stands above.

Commands:
    python scripts/profile_steps.py
    python scripts/profile_steps.py --steps moe_one_token --top 15
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import bench_attention
import bench_locoprop
import bench_moe
import torch
import tyro
from _bench import Work, cpu_seconds
from torch.profiler import ProfilerActivity, profile
from tyro.conf import arg


def locoprop(method: str) -> Work:
    """Return a step of training the deep auto-encoder."""
    images = torch.rand(1000, bench_locoprop.WIDTHS[0], generator=torch.Generator().manual_seed(0))
    return bench_locoprop.methods(bench_locoprop.Config(only=(method,)), images)[method].step


def attention(method: str, length: int, backward: bool) -> Work:
    """Return a causal pass of linear attention."""
    config = bench_attention.Config(only=(method,), lengths=(length,))
    (module,) = (row for name, row in bench_attention.modules(config).items() if "toeplitz" not in name)
    qkv = [0.5 * torch.randn(1, config.heads, length, config.head_dim) for _ in range(3)]
    return lambda: bench_attention.run(lambda q, k, v: module(q, k, v, is_causal=True), qkv, backward)


def moe(method: str, batch: int, length: int, backward: bool) -> Work:
    """Return a pass of a mixture of experts."""
    config = bench_moe.Config(batch=batch, length=length)
    layer, call = bench_moe.layers(config)[method]
    x = torch.randn(batch, length, config.width)

    def forward() -> None:
        with torch.no_grad():
            call(x)

    def both() -> None:
        layer.zero_grad()
        call(x.detach().requires_grad_()).sum().backward()

    return both if backward else forward


STEPS: dict[str, tuple[str, Callable[[], Work]]] = {
    "locoprop": ("LocoProp-M, T = 5, deep auto-encoder, batch 1000", lambda: locoprop("LocoProp-M, T = 5")),
    "closed_form": ("LocoProp-S, closed form, deep auto-encoder, batch 1000", lambda: locoprop("LocoProp-S, closed form")),
    "attention": ("FAVOR+, causal, 4096 tokens, forward", lambda: attention("favor+, chunks", 4096, False)),
    "attention_backward": ("FAVOR+, causal, 4096 tokens, with backward", lambda: attention("favor+, chunks", 4096, True)),
    "moe": ("top-2 of 8 experts, 4096 tokens, forward", lambda: moe("top-2", 64, 64, False)),
    "moe_backward": ("top-2 of 8 experts, 4096 tokens, with backward", lambda: moe("top-2", 64, 64, True)),
    "expert_choice": ("expert choice, 4096 tokens, forward", lambda: moe("expert choice, capacity 2", 64, 64, False)),
    "moe_one_token": ("top-2 of 8 experts, one token, without losses", lambda: moe(bench_moe.ALONE, 1, 1, False)),
}


@dataclass(frozen=True)
class Config:
    """What is profiled."""

    steps: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = tuple(STEPS)
    """Steps: locoprop, closed_form, attention, attention_backward, moe, moe_backward, expert_choice, moe_one_token."""
    top: int = 8
    """Operators shown, > 0."""
    seconds: float = 3.0
    """How long each is profiled, > 0."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.steps if name not in STEPS]
        if unknown:
            raise ValueError(f"steps must be among {', '.join(STEPS)}, got {unknown[0]}")
        if self.top < 1 or self.seconds <= 0.0:
            raise ValueError("top and seconds must be > 0")


def shares_of(work: Work, num_calls: int) -> tuple[list[tuple[str, float, float]], float]:
    """Return operators with their own share of the time and their calls per step, and the share outside of operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()  # the profiler's clock is that of the day
        for _ in range(num_calls):
            work()
        total = 1e6 * (time.perf_counter() - start)
    events = profiler.key_averages()
    found = [(event.key, event.self_cpu_time_total / total, event.count / num_calls) for event in events]
    found.sort(key=lambda row: -row[1])
    return found, max(0.0, 1.0 - sum(share for _, share, _ in found))


def main(config: Config) -> None:
    """Print a table for each step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in config.steps:
        title, make = STEPS[name]
        work = make()
        work()
        once = cpu_seconds(work)
        num_calls = max(3, int(config.seconds / max(once, 1e-6)))
        alone = statistics.median(cpu_seconds(work) for _ in range(max(3, num_calls // 3)))
        found, outside = shares_of(work, num_calls)
        print(f"{title}: {1e3 * alone:.3g} ms of CPU time\n")
        print("| operator | share | calls per step |\n| --- | ---: | ---: |")
        for key, share, calls in found[: config.top]:
            print(f"| `{key}` | {share:.1%} | {calls:.3g} |")
        rest = sum(share for _, share, _ in found[config.top :])
        print(f"| other operators | {rest:.1%} | |\n| outside of operators | {outside:.1%} | |\n", flush=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
