"""Write the tables of docs/performance.md from the file of the suite.

What stands between the two marks of the page is replaced: when and where it was measured, and a table for each part.

Command:
    python scripts/table_performance.py bench_results/suite.json
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from bench_suite import rows_of

BEGIN, END = "<!-- suite: begin -->", "<!-- suite: end -->"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TITLES = {
    "replay": "Replay",
    "agents": "Agents: updates, and steps of an environment",
    "stacked": "Stacked seeds",
    "adam": "Adam and target updates",
    "locoprop": "LocoProp",
    "attention": "Attention",
    "moe": "Mixtures of experts",
    "moe_one_token": "Mixtures of experts: one token, as for acting",
    "envs": "Environments",
}


@dataclass(frozen=True)
class Config:
    """Where the numbers come from, and where the tables go."""

    path: Annotated[Path, tyro.conf.Positional]
    """File that `scripts/bench` wrote."""
    page: Path = PAGE
    """Page with the marks."""


def tables_of(content: dict[str, Any]) -> str:
    """Return the text between the marks."""
    machine, versions = content["machine"], content["versions"]
    flags = [flag for flag in ("avx2", "avx512f", "amx_bf16") if flag in machine["flags"]]
    names = ", ".join(f"{name} {number}" for name, number in versions.items() if name != "rlopt")
    loads = [part["machine"]["load"][0] for part in content["parts"].values()]
    minutes, cpu_minutes = content["wall_seconds"] / 60, sum(part["cpu_seconds"] for part in content["parts"].values()) / 60
    command = "scripts/bench --quick" if content["settings"]["quick"] else "scripts/bench"
    shown_flags = f" ({', '.join(flags)})" if flags else ""
    hardware = f"{machine['processor']}, {machine['num_cores']} cores, {machine['memory_gib']:.0f} GiB"
    lines = [
        f"Measured on {content['date'][:10]} by `{command}` in {minutes:.1f} minutes, {cpu_minutes:.1f} of them CPU time, on "
        f"{hardware}{shown_flags}; the load of the machine was {min(loads)} to {max(loads)}. {names}."
    ]
    rows = rows_of(content)
    for part, measured in content["parts"].items():
        name, _, where = part.partition(", ")
        title = TITLES.get(name, name) + (f", {where}" if where else "")
        lines += ["", f"### {title}", ""]
        lines += ["| what | rlopt | time | peer | times faster | times the limit |", "| --- | --- | ---: | --- | ---: | ---: |"]
        for row in rows:
            if row["part"] == part:
                cells = (row["what"], row["ours"], row["time"], row["peer"], row["faster"] or "", row["limit"] or "")
                lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
        lines += [f"\nLeft out: {line}." for line in measured.get("left_out", [])]
    return "\n".join(lines)


def main(config: Config) -> None:
    """Replace what stands between the marks.

    Raises:
        ValueError: If the file has no suite, or the page no marks.
    """
    try:
        content = json.loads(config.path.read_text())
        text = tables_of(content)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"path must be a file that scripts/bench wrote, got {config.path} ({error})") from None
    page = config.page.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"page must have the marks '{BEGIN}' and '{END}' once each, got {config.page}")
    before, after = page[: page.index(BEGIN)], page[page.index(END) :]
    config.page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{after}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
