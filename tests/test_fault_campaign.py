"""A short campaign of kills: runs end as if nobody had disturbed them. `scripts/fault_campaign.py` is the long one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_killed_runs_and_studies_end_like_undisturbed_ones() -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(ROOT / "scripts" / "fault_campaign.py"),
        "--kills",
        "9",
        "--kills-per-run",
        "3",
        "--scale",
        "0.3",
    ]
    done = subprocess.run(
        [*command, "--families", "dqn_prioritized", "ppo", "study"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    num_kills, num_runs = map(int, re.search(r"(\d+) kills, (\d+) runs, 0 with another result", done.stdout).groups())  # type: ignore[union-attr]
    assert num_kills >= 9
    assert num_runs >= 3
    assert re.search(r"\d+ checkpoints read after kills, 0 damaged", done.stdout)
    assert "0 runs lost that had been finished" in done.stdout
