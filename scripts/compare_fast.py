"""Does the fast form of the agents learn as well as the plain one? Trains both with the same seeds and compares the final returns.

The runs go to RUNS/compare_fast, with a report. A study that was stopped goes on with the same command.

Commands:
    python scripts/compare_fast.py --jobs 2
    python scripts/compare_fast.py --env-id CartPole-v1 --seeds 3
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments"))

from replay import ReplayStudy, make_task, variant  # noqa: E402

from rlopt.study import run_study  # noqa: E402


@dataclass(frozen=True)
class Config:
    """What to compare."""

    env_id: Annotated[tuple[str, ...], arg(metavar="ID [ID ...]")] = ("CartPole-v1", "LunarLander-v3", "Pendulum-v1")
    """Gymnasium environments; agents and hyper-parameters are those of `experiments/replay.py` with uniform replay."""
    seeds: int = 10
    """Runs of each form on each environment, > 0."""
    forms: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("plain", "fast")
    """Which forms to run now, plain or fast; the report needs both."""
    jobs: int = 1
    """Runs at a time, > 0."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.forms if name not in ("plain", "fast")]
        if unknown or not self.forms:
            raise ValueError(f"forms must be plain or fast, got {unknown[0] if unknown else 'none'}")


def main() -> int:
    """Run the study."""
    config = tyro.cli(Config, description=__doc__)
    options = ReplayStudy(env_id=config.env_id, replays=("uniform",))
    uniform = variant(options, "uniform")
    variants = {"plain": {**uniform, "fast": False}, "fast": {**uniform, "fast": True}}
    return run_study(
        f"{ROOT / 'experiments' / '_training.py'}:train",
        tasks=[make_task(options, env_id) for env_id in config.env_id],
        variants={name: variants[name] for name in config.forms},
        seeds=config.seeds,
        folder=config.output / "compare_fast",
        baseline="plain" if "plain" in config.forms else None,
        jobs=config.jobs,
    )


if __name__ == "__main__":
    sys.exit(main())
