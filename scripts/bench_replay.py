"""Speed of replay buffers: rlopt, Stable-Baselines3, cpprb, TorchRL, Tianshou, and floors.

All buffers of a case stand in one process and take turns, block by block, so that whatever else the machine does meets
them alike. A number is the median over blocks of the CPU time of one call, on one thread. Ratios are medians over turns
of the time relative to Stable-Baselines3's uniform `sample` (or `add`) in the same turn; smaller is faster.

Commands:
    scripts/bench replay                          # everything
    scripts/bench replay --quick                  # smaller buffers, shorter blocks
    scripts/bench replay --frame-capacity 100000  # 11 GB per library: measured one after the other
    scripts/bench replay --cases phase            # only the cost of a phase of introspective replay
    scripts/bench replay --cases loop             # only its cost per environment step
"""

import gc
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch as th
import tyro
from _bench import Comparison, Work, take_turns, write_json
from _bench_buffers import BUFFERS, Buffer, StableBaselines3, Transitions
from _bench_introspective import LoopCost, format_loop, measure_loop

MEMORY_SHARE = 0.6  # of the free memory that all buffers together may take
PHASE_STEPS = 500
BASELINE = StableBaselines3.library
LIMIT = "floor: one C call"


@dataclass(frozen=True)
class Config:
    """What is measured."""

    quick: bool = False
    """Smaller buffers (a tenth of the capacities) and shorter blocks."""
    cases: tuple[Literal["vector", "frames", "phase", "loop"], ...] = ("vector", "frames", "phase", "loop")
    """Data of 17 floats, frames of 84x84x4 bytes, the cost of a phase of introspective replay, and that of an environment step of
    DQN with it."""
    vector_capacity: int = 100_000
    """Transitions in a buffer of vectors."""
    frame_capacity: int = 20_000
    """Transitions in a buffer of frames; each takes 56 kB in the plain layout."""
    loop_capacity: int = 1_000_000
    """Transitions in the memory of an agent."""
    loop_phases: tuple[int, ...] = (64, 256)
    """Steps of an agent's learning phase."""
    rescore_after: tuple[int, ...] = (1, 64, 256)
    """Values of the option of introspective replay; 1 scores everything in each phase."""
    batch_sizes: tuple[int, ...] = (32, 256, 4096)
    """Transitions per sample."""
    num_blocks: int = 7
    """Timed blocks per buffer and operation, at least 5."""
    block_seconds: float = 0.1
    """Duration of a block."""
    libraries: tuple[str, ...] = ()
    """Rows whose name contains one of these words, e.g. `rlopt cpprb`; empty for all. The baseline is always there."""
    output: Path = Path("bench_results/replay.json")
    """File for all numbers, relative to the current folder."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.num_blocks < 5:
            raise ValueError(f"num_blocks must be at least 5, got {self.num_blocks}.")
        if min(self.vector_capacity, self.frame_capacity) < 1000:
            raise ValueError("vector_capacity and frame_capacity must be at least 1000.")

    def capacity(self, case: str) -> int:
        """Return the transitions in a buffer of a case."""
        full = {"frames": self.frame_capacity, "loop": self.loop_capacity}.get(case, self.vector_capacity)
        return full // 10 if self.quick else full

    @property
    def seconds(self) -> float:
        """Duration of a block."""
        return self.block_seconds / 4 if self.quick else self.block_seconds


@dataclass(frozen=True)
class Row:
    """Time of one operation of one buffer."""

    case: str
    library: str
    operation: str  # add, sample, sample+update
    batch_size: int
    capacity: int
    cpu_us: float
    cpu_us_low: float
    cpu_us_high: float
    cpu_us_blocks: list[float]
    ratio: float | None  # to the baseline's add or sample
    alternated: bool


def time_in_turns(calls: Mapping[str, Work], config: Config) -> dict[str, list[float]]:
    """Return the CPU time of one call in microseconds, `num_blocks` values per callable."""
    times = take_turns(calls, config.num_blocks, block_seconds=config.seconds, warm_up=2)  # the first call compiles and allocates
    return {name: [1e6 * value for value in values] for name, values in times.items()}


def operations(buffers: list[Buffer], batch_size: int) -> dict[str, Callable[[], object]]:
    """Return one call per buffer: `add` for batch size 0, else `sample`, with `update` where there are priorities."""

    def add(buffer: Buffer) -> Callable[[], object]:
        places = itertools.cycle(range(len(buffer.data.rewards)))  # a trajectory: each observation continues the last one
        return lambda: buffer.add(next(places))

    def sample(buffer: Buffer) -> Callable[[], object]:
        td_errors = np.random.default_rng(0).exponential(size=batch_size).astype(np.float32) + 0.1

        def sample_and_update() -> None:
            buffer.sample(batch_size)
            buffer.update(td_errors)

        return sample_and_update if buffer.prioritized else lambda: buffer.sample(batch_size)

    return {buffer.library: (sample if batch_size else add)(buffer) for buffer in buffers}


def make_buffer(kind: type[Buffer], data: Transitions, capacity: int) -> Buffer | None:
    """Return a full buffer, or None, with a line that says why, where the library cannot be used."""
    try:
        buffer = kind(data, capacity)
        buffer.fill()
        buffer.sample(32)
    except Exception as error:  # Whatever a library raises, the others are still measured.
        reason = str(error).strip().splitlines()
        print(f"left out: {kind.library}: {type(error).__name__}: {reason[0][:150] if reason else ''}", file=sys.stderr)
        return None
    return buffer


def measure(config: Config, case: str) -> list[Row]:
    """Measure all buffers on one kind of data."""
    data, capacity = Transitions.make(case, np.random.default_rng(0)), config.capacity(case)
    words = config.libraries
    kinds = [k for k in BUFFERS if k is StableBaselines3 or not words or any(w in k.library for w in words)]
    fits = len(kinds) * capacity * data.row_nbytes < MEMORY_SHARE * psutil.virtual_memory().available
    times: dict[tuple[str, int], list[float]] = {}
    prioritized = {}
    for group in [kinds] if fits else [[kind] for kind in kinds]:
        buffers = [buffer for kind in group if (buffer := make_buffer(kind, data, capacity)) is not None]
        for batch_size in (0, *config.batch_sizes):
            turns = time_in_turns(operations(buffers, batch_size), config)
            times |= {(library, batch_size): values for library, values in turns.items()}
            print(f"measured: {case}, {f'batch {batch_size}' if batch_size else 'add'}", file=sys.stderr)
        prioritized |= {buffer.library: buffer.prioritized for buffer in buffers}
        del buffers
        gc.collect()
    rows = []
    for (library, batch_size), values in times.items():
        operation = "add" if not batch_size else "sample+update" if prioritized[library] else "sample"
        base = times.get((BASELINE, batch_size))
        ratio = statistics.median(x / y for x, y in zip(values, base, strict=True)) if base else None
        numbers = (statistics.median(values), min(values), max(values), values)
        rows.append(Row(case, library, operation, batch_size, capacity, *numbers, ratio, fits))
    return rows


@dataclass(frozen=True)
class PhaseCost:
    """CPU milliseconds of the start of a phase of introspective replay, and of its parts measured alone."""

    capacity: int
    gradient_steps: int
    whole: float
    forward_passes: float  # TD errors of all stored transitions, batches made before
    gather_and_select: float  # begin_phase with a function that returns ready-made errors
    share_of_selection: float  # gather_and_select / whole


def measure_phase(config: Config) -> PhaseCost:
    """Measure what IER adds to the forward passes that it needs: double DQN, two hidden layers of 256."""
    from rlopt.replay import IntrospectiveReplay

    data, capacity = Transitions.make("vector", np.random.default_rng(0)), config.capacity("vector")
    buffer = IntrospectiveReplay(capacity, data.observation_space, data.action_space, device="cpu", seed=0)
    for i in range(capacity):
        j = slice(i % len(data.rewards), i % len(data.rewards) + 1)
        buffer.add(data.obs[j], data.next_obs[j], data.actions[j], data.rewards[j], data.dones[j], [{}])

    def network() -> th.nn.Module:
        layers = [th.nn.Linear(17, 256), th.nn.ReLU(), th.nn.Linear(256, 256), th.nn.ReLU(), th.nn.Linear(256, 6)]
        return th.nn.Sequential(*layers)

    online, target = network(), network()

    @th.no_grad()
    def td_errors(batch: Any) -> th.Tensor:
        """Double DQN; the greedy entry of the stored action vector stands for the discrete action."""
        action = batch.actions.argmax(dim=1, keepdim=True)  # (B, 1)
        greedy = online(batch.next_observations).argmax(dim=1, keepdim=True)
        value = target(batch.next_observations).gather(1, greedy)
        error = batch.rewards + 0.99 * (1.0 - batch.dones) * value - online(batch.observations).gather(1, action)
        return error.squeeze(1)

    batches: list[Any] = []

    def keep(batch: Any) -> th.Tensor:
        batches.append(batch)
        return td_errors(batch)

    buffer.begin_phase(PHASE_STEPS, keep, progress=0.0)
    ready = {len(batch.indices): td_errors(batch) for batch in batches}

    def forward() -> None:
        for batch in batches:
            td_errors(batch)

    calls: dict[str, Callable[[], object]] = {
        "whole": lambda: buffer.begin_phase(PHASE_STEPS, td_errors, progress=0.0),
        "forward": forward,
        "gather": lambda: buffer.begin_phase(PHASE_STEPS, lambda batch: ready[len(batch.indices)], progress=0.0),
    }
    times = time_in_turns(calls, config)
    milliseconds = [statistics.median(times[name]) / 1e3 for name in ("whole", "forward", "gather")]
    share = statistics.median(x / y for x, y in zip(times["gather"], times["whole"], strict=True))
    return PhaseCost(capacity, PHASE_STEPS, *milliseconds, share)


def format_table(rows: list[Row], batch_sizes: tuple[int, ...]) -> str:
    """Return the table: a line per buffer, a column per kind of data and operation."""
    cases = list(dict.fromkeys(row.case for row in rows))
    cells = {(row.library, row.case, row.batch_size): row for row in rows}
    capacity = {row.case: row.capacity for row in rows}
    columns = [(case, size) for case in cases for size in (0, *batch_sizes)]
    head = [f"{case} {capacity[case]:,}: {f'batch {size}' if size else 'add'}" for case, size in columns]
    lines = ["| buffer | operation | " + " | ".join(head) + " |", "| --- " * 2 + "| ---: " * len(columns) + "|"]
    operation = {row.library: row.operation for row in rows if row.batch_size}
    for library in dict.fromkeys(row.library for row in rows):
        texts = []
        for case, size in columns:
            row = cells.get((library, case, size))
            ratio = "" if row is None or row.ratio is None else f" ({row.ratio:.2f})"
            texts.append("-" if row is None else f"{row.cpu_us:.3g}{ratio}" if row.cpu_us < 1000 else f"{row.cpu_us:.0f}{ratio}")
        lines.append(f"| {library} | {operation[library]} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def describe(config: Config, rows: list[Row]) -> str:
    """Return what one has to know to read the table."""
    one_by_one = sorted({row.case for row in rows if not row.alternated})
    text = (
        f"CPU microseconds per call, one thread, median of {config.num_blocks} blocks; in brackets the time relative "
        f"to {BASELINE}'s `add` or uniform `sample` of the same batch size. Full buffers, one environment; the "
        "capacity stands in the head. vector: observation 17 floats, action 6 floats. frames: 84x84x4 bytes, discrete action."
    )
    frames = [row.capacity for row in rows if row.case == "frames"]
    if frames and frames[0] < 100_000 and not config.quick:
        text += f" Frames: {frames[0]:,} transitions instead of 100,000, so that all buffers fit into memory together."
    if one_by_one:
        text += f" Measured one after the other, because they do not fit into memory together: {', '.join(one_by_one)}."
    return text


def comparisons(rows: list[Row]) -> list[Comparison]:
    """Compare the buffers of rlopt in the layout `plain` with the others at adding and at batches of 256."""
    found = []
    for case, batch_size, operation in itertools.product(("vector", "frames"), (0, 256), ("add", "sample", "sample+update")):
        chosen = {
            row.library: [value / 1e6 for value in row.cpu_us_blocks]
            for row in rows
            if (row.case, row.batch_size, row.operation) == (case, batch_size, operation)
            and ("prioritized" in row.library) == (operation == "sample+update")
        }
        name = "rlopt prioritized" if operation == "sample+update" else "rlopt uniform"
        names = (name, f"{name}, reused memory") if batch_size else (name,)
        ours = tuple(name for name in names if name in chosen)
        if ours:
            peers = tuple(name for name in chosen if not name.startswith(("rlopt", "floor")))
            limit = LIMIT if LIMIT in chosen and operation == "sample" else None
            what = f"{case}, {operation}" + (f" of {batch_size}" if batch_size else "")
            found.append(Comparison(what, operation, chosen, ours, peers, limit))
    return found


def main(config: Config) -> None:
    """Measure, print the table, write the numbers."""
    th.set_num_threads(1)
    th.manual_seed(0)
    rows = [row for case in config.cases if case in ("vector", "frames") for row in measure(config, case)]
    phase = measure_phase(config) if "phase" in config.cases else None
    loop: list[LoopCost] = []
    if "loop" in config.cases:
        capacity = config.capacity("loop")
        loop = measure_loop(capacity, config.loop_phases, config.rescore_after, config.num_blocks)
    if rows:
        print(describe(config, rows) + "\n")
        print(format_table(rows, config.batch_sizes))
    if phase is not None:
        print(
            f"\nStart of a phase of introspective replay, N = {phase.capacity:,}, {phase.gradient_steps} pivots, "
            f"double DQN with two hidden layers of 256: {phase.whole:.1f} ms CPU time; the forward passes alone take "
            f"{phase.forward_passes:.1f} ms, gathering and selection alone {phase.gather_and_select:.1f} ms "
            f"({phase.share_of_selection:.1%})."
        )
    if loop:
        print(
            f"\nCPU microseconds per environment step of DQN, one thread: two hidden layers of 64, batch 64, an update per step of "
            f"CartPole-v1, a full memory of {loop[0].capacity:,} transitions; median of {config.num_blocks} blocks, in brackets "
            f"the time relative to uniform replay in the same turn.\n\n{format_loop(loop)}"
        )
    more = {
        "settings": asdict(config),
        "rows": [asdict(row) for row in rows],
        "phase": asdict(phase) if phase else None,
        "loop": [asdict(row) for row in loop],
    }
    write_json(config.output, comparisons(rows), **more)
    print(f"\nAll numbers: {config.output}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
