"""Run the suite of measurements and print one table: how many times faster, and how far from the limit.

Each part is a script of its own (`scripts/bench NAME` runs it alone) in a process of its own, one after the other: the contestants
of a part take turns in one process. "times faster" is the peer's time divided by rlopt's, "times the limit" rlopt's time divided by
that of what cannot be left out (products of matrices alone, a pass over the memory): medians over rounds of the ratios within a
round, with their range. Times are CPU times of one thread; on an accelerator, times of the clock.

Written to the folder: `suite.json` (all numbers of all rounds, machine, versions), `suite.svg`, and what each part printed.

Commands:
    scripts/bench            # everything
    scripts/bench --quick    # about five minutes on a quiet machine
    scripts/bench all --parts replay agents
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from _bench import ENVIRONMENT_STEP, Comparison, comparisons_of, write_json
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich.console import Console
from rich.table import Table
from tyro.conf import arg

SCRIPTS = Path(__file__).parent
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555", "#000000")


@dataclass(frozen=True)
class Part:
    """A script `bench_<script>.py` that writes comparisons (`_bench.write_json`) to the file that its option names."""

    script: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    file_option: str = "--json"
    has_device: bool = True


_LOCOPROP = ("--only", "T = 5", "closed")
_LENGTHS = ("--only", "favor+, chunks", "elu + 1", "--max-toeplitz", "0", "--no-decoding", "--lengths")
_ONE_TOKEN = ("--batch", "1", "--length", "1", "--no-backward", "--block-seconds", "0.02")
# A new part is a line here.
PARTS = {
    "replay": Part("replay", (), ("--quick", "--cases", "vector", "frames", "--batch-sizes", "256"), "--output", has_device=False),
    "agents": Part("agents", (), ("--quick",)),
    "stacked": Part("stacked", (), ("--quick",), has_device=False),
    "adam": Part("adam", (), ("--num-rounds", "5", "--block-seconds", "0.02")),
    "locoprop": Part("locoprop", _LOCOPROP, (*_LOCOPROP, "--num-rounds", "3")),
    "attention": Part("attention", (*_LENGTHS, "1024", "4096", "16384"), (*_LENGTHS, "1024", "4096", "--num-rounds", "5")),
    "moe": Part("moe", (), ("--num-rounds", "5")),
    "moe_one_token": Part("moe", _ONE_TOKEN, (*_ONE_TOKEN, "--num-rounds", "5")),
    "envs": Part("envs", (), ("--num-rounds", "3", "--round-seconds", "0.02", "--num-envs", "16"), has_device=False),
}


@dataclass(frozen=True)
class Config:
    """What is run, and where the results go."""

    parts: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = tuple(PARTS)
    """Parts: replay, agents, stacked, adam, locoprop, attention, moe, moe_one_token, envs."""
    quick: bool = False
    """Fewer rounds and less work in each."""
    folder: Path = Path("bench_results")
    """Where the results go, relative to the current folder."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.parts if name not in PARTS]
        if unknown:
            raise ValueError(f"parts must be among {', '.join(PARTS)}, got {unknown[0]}")


def run_part(name: str, part: Part, options: Iterable[str], folder: Path) -> dict[str, Any] | None:
    """Run a part and return what it wrote; None, with a line that says why, if it failed.

    What it printed goes to a text file in the folder.
    """
    start, cpu_start = time.perf_counter(), children_seconds()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "part.json"
        command = [sys.executable, "-W", "ignore", str(SCRIPTS / f"bench_{part.script}.py"), *options]
        done = subprocess.run([*command, part.file_option, str(path)], capture_output=True, text=True, check=False)
        (folder / f"{name}.txt").write_text(done.stdout + done.stderr)
        if done.returncode or not path.exists():
            last = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()[-1]
            print(f"{name} failed (exit {done.returncode}): {last}", file=sys.stderr)
            return None
        content: dict[str, Any] = json.loads(path.read_text())
    content["wall_seconds"] = round(time.perf_counter() - start, 1)
    content["cpu_seconds"] = round(children_seconds() - cpu_start, 1)
    print(f"{name}: {content['wall_seconds']:.0f} s, {content['cpu_seconds']:.0f} s of CPU time", file=sys.stderr)
    return content


def children_seconds() -> float:
    """CPU time of all processes that were started and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def rows_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each pair of a contestant of ours and a peer, of all parts."""
    rows = []
    for part, measured in content["parts"].items():
        for comparison in comparisons_of(measured):
            for ours in comparison.ours:
                limit = comparison.times_limit(ours)
                for peer in comparison.peers or ("",):
                    rows.append(
                        {
                            "part": part,
                            "what": comparison.what,
                            "ours": ours,
                            "time": shown_time(comparison, ours),
                            "peer": peer,
                            "faster": comparison.speed_up(ours, peer) if peer else None,
                            "limit": limit,
                        }
                    )
    return rows


def shown_time(comparison: Comparison, who: str) -> str:
    """Return the median time of a unit of work, or their number in a second where they are steps of an environment."""
    seconds = statistics.median(comparison.seconds[who])
    if comparison.unit == ENVIRONMENT_STEP:
        return f"{1 / seconds:,.0f} / s"
    return f"{1e6 * seconds:,.1f} us" if seconds < 1e-4 else f"{1e3 * seconds:,.3g} ms"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios of all pairs with their ranges, a colour for each part."""
    drawn = [row for row in rows if row["faster"] is not None]
    parts = list(dict.fromkeys(row["part"] for row in drawn))
    with rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "path"}):
        figure = Figure(figsize=(10.4, 0.7 + 0.17 * len(drawn)), layout="constrained")
        axes = figure.subplots()
        for number, row in enumerate(drawn):
            colour = COLOURS[parts.index(row["part"]) % len(COLOURS)]
            axes.plot(row["faster"][1:], (number, number), color=colour, linewidth=1.5)
            axes.plot(row["faster"][0], number, "o", color=colour, markersize=3.5)
        axes.axvline(1, color="#555555", linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(drawn)), [f"{row['what']} | {row['ours']} against {row['peer']}" for row in drawn])
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.set_xlabel("times faster than the peer: median and range over rounds")
        axes.grid(axis="x", alpha=0.25)
        figure.savefig(path, metadata={"Date": None})


def main(config: Config) -> int:
    """Run the parts one after the other; what is done is kept if a later one fails or is interrupted."""
    config.folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 180)
    path, start = config.folder / "suite.json", time.perf_counter()
    parts: dict[str, Any] = {}
    failed = []
    for name in config.parts:
        part = PARTS[name]
        for device in ("cpu", "cuda") if part.has_device and has_gpu() else ("cpu",):
            options = [*(part.quick if config.quick else part.full), *(["--device", "cuda"] if device == "cuda" else [])]
            key = name if device == "cpu" else f"{name}, GPU"
            content = run_part(key, part, options, config.folder)
            if content is None:
                failed.append(key)
                continue
            parts[key] = content
            write_json(path, [], settings=asdict(config), parts=parts, wall_seconds=round(time.perf_counter() - start, 1))
    if not parts:
        return 1
    rows = rows_of({"parts": parts})
    table = Table("part", "what", "rlopt", "time", "peer", "times faster (range)", "times the limit (range)", box=None)
    for row in rows:
        table.add_row(
            row["part"], row["what"], row["ours"], row["time"], row["peer"], str(row["faster"] or ""), str(row["limit"] or "")
        )
    console.print(table)
    for name, content in parts.items():
        for line in content.get("left_out", []):
            console.print(f"left out of {name}: {line}")
    draw(rows, path.with_suffix(".svg"))
    console.print(f"{time.perf_counter() - start:.0f} s. All numbers: {path}, {path.with_suffix('.svg')}")
    return 1 if failed else 0


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Config, description=__doc__)))
    except ValueError as error:
        sys.exit(f"error: {error}")
