"""A study of DQN on a Ray cluster of two nodes, one of which is lost in the middle, beside the same study without Ray.

Both nodes are on this machine and have one core each. All processes of the second one are killed by SIGKILL at once when a run on
it has written checkpoints; the cluster goes on with one node. Evaluations and logged numbers must be those of the undisturbed runs.

Example:
    python scripts/ray_study.py --trials 8
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

from rlopt.study import Task, run_study
from rlopt.study.launchers import Ray
from rlopt.study.runs import read_evaluations, read_manifest

FUNCTION = f"{Path(__file__).resolve().parents[1] / 'experiments' / '_training.py'}:train"
VARIANT = {"replay": "uniform", "replay_options": {}, "learning_rate_factor": 1.0}


@dataclass(frozen=True)
class Options:
    """What is run."""

    trials: int = 8
    """Seeds, > 1."""
    steps: int = 1500
    """Environment steps of a run, > 0."""


def main(options: Options) -> int:
    """Run both studies, compare them, and return an exit status."""
    config = {
        "env_id": "CartPole-v1", "agent": "dqn", "total_timesteps": options.steps, "num_evaluations": 5, "eval_episodes": 3,
        "device": "cpu",
        "options": {"learning_starts": 100, "batch_size": 16, "buffer_size": 1000, "net_arch": [16], "train_freq": 4,
                    "gradient_steps": 4, "learning_rate": 1e-3},
    }  # fmt: skip
    study: dict[str, Any] = {
        "tasks": [Task("CartPole-v1", options.steps, config)], "variants": {"uniform": VARIANT}, "seeds": options.trials,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="study_") as root, _cluster() as cluster:
        local, on_ray = Path(root) / "local", Path(root) / "ray"
        start = time.monotonic()
        if run_study(FUNCTION, **study, folder=local, jobs=2) != 0:
            return 1
        print(f"without Ray, 2 processes at a time: {time.monotonic() - start:.0f} s\n")
        start = time.monotonic()
        killer = threading.Thread(target=_kill_a_node, args=(cluster, on_ray), daemon=True)
        killer.start()
        if run_study(FUNCTION, **study, folder=on_ray, launcher=Ray(address=cluster.address)) != 0:
            return 1
        print(f"with Ray: {time.monotonic() - start:.0f} s\n")
        places = [Path("CartPole-v1") / "uniform" / f"seed_{seed}" for seed in range(options.trials)]
        equal = [_content(local / place) == _content(on_ray / place) for place in places]
        attempts = [read_manifest(on_ray / place)["attempts"] for place in places]
        for place, same, count in zip(places, equal, attempts, strict=True):
            print(f"{place.name}: {'equal' if same else 'DIFFERENT'}, {count} attempt{'s' if count > 1 else ''}")
        print(
            f"{sum(equal)} of {len(equal)} results equal those without Ray; {sum(attempts) - len(attempts)} runs were started again"
        )
    return int(not all(equal) or sum(attempts) == len(attempts))


def _kill_a_node(cluster: Any, folder: Path) -> None:
    """Wait for a checkpoint of a run on the second node, then kill the node."""
    [node] = cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    while True:
        processes, commands = [raylet, *raylet.children(recursive=True)], ""
        for process in processes:
            with contextlib.suppress(psutil.Error):  # it may end meanwhile
                commands += " ".join(process.cmdline())
        if any(str(run) in commands and len(read_evaluations(run)) >= 2 for run in folder.glob("*/*/seed_*")):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            print(f"killed the second node, {len(processes)} processes", flush=True)
            return
        time.sleep(0.1)


@contextlib.contextmanager
def _cluster() -> Any:
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder = tempfile.mkdtemp(prefix="ray_", dir="/tmp")  # names of sockets must be short
    Path("/tmp/ray").mkdir(exist_ok=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/tmp/ray").rmdir()  # if there is nothing of other clusters


def _content(folder: Path) -> list[Any]:
    """What must be equal: evaluations without their seconds, and logged numbers without times."""
    with (folder / "progress.csv").open(encoding="utf-8", newline="") as file:
        rows = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in csv.DictReader(file)]
    return [[(row.step, row.score) for row in read_evaluations(folder)], rows]


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
