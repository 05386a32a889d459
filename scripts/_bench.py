"""What the measuring scripts share: turns, ratios within a round, a description of the machine, and one form of JSON.

Contestants take turns in one process, round after round (A B A B ...), so that a machine that slows down slows all of them. A
ratio is taken within each round; what is shown is the median over rounds with its range.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

PACKAGES = (
    "rlopt", "torch", "numpy", "numba", "gymnasium", "stable-baselines3", "sbx-rl", "jax", "cpprb", "torchrl", "tianshou",
    "locoprop", "mujoco",
)  # fmt: skip
_FLAGS = ("avx", "amx", "fma", "f16c", "sse4", "asimd", "sve", "bf16")  # those that decide how products are computed
Work = Callable[[], object]
ENVIRONMENT_STEP = "environment step"  # the unit that is shown as a rate


class Ratio(NamedTuple):
    """Median and range over rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """The median with the range in brackets."""
        digits = 2 if self.median >= 1 else 3
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def ratio(times: Sequence[float], others: Sequence[float]) -> Ratio:
    """Return `times / others` round by round."""
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Comparison:
    """Times of contestants that did the same work in turns.

    Args:
        what: The work.
        unit: What is counted, e.g. "update" or ENVIRONMENT_STEP.
        seconds: Contestant to seconds of one unit, a number for each round.
        ours: Contestants of this package.
        peers: What they are compared with.
        limit: What no contestant can be faster than, e.g. its products of matrices alone.
        clock: "cpu" (time of the process) or "wall" (on an accelerator).

    Raises:
        ValueError: If a name has no times, or rounds are missing.
    """

    what: str
    unit: str
    seconds: dict[str, list[float]]
    ours: tuple[str, ...]
    peers: tuple[str, ...]
    limit: str | None = None
    clock: str = "cpu"

    def __post_init__(self) -> None:
        """Check names and rounds."""
        for who in (*self.ours, *self.peers, *([self.limit] if self.limit else [])):
            if who not in self.seconds:
                raise ValueError(f"seconds must have times of all contestants of '{self.what}', got none of '{who}'")
        if len({len(times) for times in self.seconds.values()}) != 1:
            raise ValueError(f"seconds must have equally many rounds of all contestants of '{self.what}'")

    def speed_up(self, who: str, peer: str) -> Ratio:
        """How many times faster `who` is than `peer`."""
        return ratio(self.seconds[peer], self.seconds[who])

    def times_limit(self, who: str) -> Ratio | None:
        """How many times the limit `who` takes."""
        return None if self.limit is None else ratio(self.seconds[who], self.seconds[self.limit])


def clock_of(device: str) -> Callable[[], float]:
    """Return CPU time of the process, or on an accelerator the time of day after all its work is done.

    Raises:
        ValueError: If there is no such device.
    """
    if device == "cpu":
        return time.process_time
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"device must be cpu, or cuda where there is one, got {device}")

    def wall() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return wall


def take_turns(
    works: Mapping[str, Work], num_rounds: int, *, block_seconds: float = 0.0, device: str = "cpu", warm_up: int = 1
) -> dict[str, list[float]]:
    """Time callables round by round in turns, without the garbage collector.

    Args:
        works: Names and callables.
        num_rounds: Blocks of each.
        block_seconds: What a block lasts: a callable is called so many times in a row (at least once).
        device: See `clock_of`.
        warm_up: Calls of each before, at least 1 where `block_seconds` is given.

    Returns:
        Name to seconds of one call, a number for each round.
    """
    clock = clock_of(device)
    num_calls = dict.fromkeys(works, 1)
    for name, work in works.items():
        for _ in range(warm_up):
            work()
        if block_seconds:
            start = clock()
            work()
            num_calls[name] = max(1, int(block_seconds / max(clock() - start, 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.disable()
    try:
        for _ in range(num_rounds):
            for name, work in works.items():
                start = clock()
                for _ in range(num_calls[name]):
                    work()
                times[name].append((clock() - start) / num_calls[name])
    finally:
        gc.enable()
    return times


def cpu_seconds(work: Work) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def machine() -> dict[str, Any]:
    """Describe the machine: processor, the flags that decide how products are computed, cores, memory, load, accelerator."""
    processor, flags = platform.processor() or platform.machine(), ""
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line)
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        processor, flags = fields.get("model name", processor), fields.get("flags", fields.get("Features", ""))
    torch = sys.modules.get("torch")  # loaded by those who need it
    return {
        "processor": processor,
        "flags": sorted(flag for flag in flags.split() if any(part in flag for part in _FLAGS)),
        "num_cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "num_threads": torch.get_num_threads() if torch else 1,
        "gpu": torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of what is measured, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def write_json(path: Path, comparisons: Sequence[Comparison], **more: Any) -> None:
    """Write what was measured, when, where and with which versions; `more` is added as it is."""
    content = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        **more,
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".part")
    half.write_text(json.dumps(content, indent=1, default=str) + "\n")
    half.replace(path)


def comparisons_of(content: Mapping[str, Any]) -> list[Comparison]:
    """Return the comparisons in what `write_json` wrote."""
    return [
        Comparison(**{**entry, "ours": tuple(entry["ours"]), "peers": tuple(entry["peers"])}) for entry in content["comparisons"]
    ]
