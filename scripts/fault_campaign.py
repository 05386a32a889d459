"""Kills training runs at random moments, starts them again, and compares what they end with to runs that nobody disturbed.

Each agent family trains with checkpoints, in processes that are forked from this one and killed by SIGKILL after a random time,
until it is done; then weights, replay, evaluations and logged numbers must be those of the undisturbed run, to the bit. After each
kill, all checkpoints that are there are read. The family "study" is a study of four runs: its command is killed, and besides, runs
that were finished have to stay as they were.

Examples:
    python scripts/fault_campaign.py --kills 200
    python scripts/fault_campaign.py --kills 10 --families dqn ppo
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import tyro
from tyro.conf import arg

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "experiments")]

import _training  # noqa: E402  # of the experiments
import _transformer_policy_training as _memory_training  # noqa: E402

from rlopt.files import load  # noqa: E402
from rlopt.files.state_file import write_state  # noqa: E402
from rlopt.study import Task, run_study  # noqa: E402

_SMALL = {"learning_starts": 100, "batch_size": 16, "buffer_size": 600, "net_arch": [16], "learning_rate": 1e-3}
_PHASES = {"train_freq": 16, "gradient_steps": 8}


def _config(env_id: str, agent: str, replay: str, options: dict[str, Any], total_timesteps: int) -> dict[str, Any]:
    return {
        "env_id": env_id, "agent": agent, "total_timesteps": total_timesteps, "num_evaluations": 4, "eval_episodes": 2,
        "device": "cpu", "replay": replay, "replay_options": {}, "learning_rate_factor": 1.0, "options": options,
    }  # fmt: skip


_PPO = {
    "environment": "cartpole", "agent": "ppo", "extractor": "memoryless", "env_options": {}, "history": 2,
    "total_timesteps": 12_000,
    "num_evaluations": 4, "eval_episodes": 2, "device": "cpu",
    "options": {"n_envs": 4, "n_steps": 32, "batch_size": 32, "n_epochs": 2, "normalize_rewards": True, "decay": True,
                "learning_rate": 1e-3},
}  # fmt: skip

# Name -> configuration of a run, of `_memory_training` if it has an extractor, else of `_training`.
FAMILIES: dict[str, dict[str, Any]] = {
    "dqn": _config("CartPole-v1", "dqn", "uniform", _SMALL | _PHASES, 6000),
    "dqn_prioritized": _config("CartPole-v1", "dqn", "prioritized", _SMALL | _PHASES, 6000),
    "dqn_introspective": _config("Acrobot-v1", "dqn", "introspective", _SMALL | _PHASES, 4000),
    "ddpg": _config("Pendulum-v1", "ddpg", "reverse", _SMALL | _PHASES, 3000),
    "td3": _config("Pendulum-v1", "td3", "uniform", _SMALL | _PHASES, 3000),
    "sac": _config("Pendulum-v1", "sac", "uniform", _SMALL | _PHASES, 3000),
    "ppo": _PPO,
    "study": {"study": [_config("CartPole-v1", "dqn", name, _SMALL | _PHASES, 1500) for name in ("uniform", "prioritized")]},
}


@dataclass(frozen=True)
class Campaign:
    """Options of the campaign."""

    kills: int = 200
    """Kills in all, > 0."""
    families: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = tuple(FAMILIES)
    """Which runs."""
    seed: int = 0
    """Of the moments of the kills."""
    kills_per_run: int = 10
    """After so many kills a run is left to end, > 0."""
    scale: float = 1.0
    """Length of the runs, relative to the usual one, > 0."""


def main() -> int:
    """Run the campaign, print a table, and return an exit status."""
    campaign = tyro.cli(Campaign, description=__doc__)
    torch.set_num_threads(1)
    for name in campaign.families:
        for config in FAMILIES[name].get("study", [FAMILIES[name]]):
            config["total_timesteps"] = int(config["total_timesteps"] * campaign.scale)
    rng = random.Random(campaign.seed)
    folder = Path(tempfile.mkdtemp(prefix="fault_campaign_"))
    references = {}
    for name in campaign.families:
        start = time.monotonic()
        process = _start(name, folder / "undisturbed" / name)
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"error: {name} fails without being disturbed, see {folder / 'undisturbed' / name / 'output.txt'}")
        references[name] = (_outcome(folder / "undisturbed" / name), time.monotonic() - start)
    counts = dict.fromkeys(campaign.families, 0)
    runs = dict.fromkeys(campaign.families, 0)
    wrong: list[str] = []
    damaged: list[str] = []
    lost: list[str] = []
    num_read = 0
    while sum(counts.values()) < campaign.kills:
        name = min(counts, key=lambda family: counts[family])
        reference, seconds = references[name]
        place = folder / "killed" / f"{name}_{runs[name]}"
        finished: dict[Path, bytes] = {}
        for kill in range(campaign.kills_per_run + 1):
            process = _start(name, place)
            process.join(timeout=rng.uniform(0.02, 0.5) * seconds if kill < campaign.kills_per_run else None)
            if process.exitcode is not None:
                break
            assert process.pid is not None
            victims = psutil.Process(process.pid).children(recursive=True) if rng.random() < 0.5 else []
            for pid in [process.pid, *(victim.pid for victim in victims)]:  # the command of a study alone, or with its runs
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.join()
            counts[name] += 1
            _wait_for_workers(place)
            for path in sorted(place.rglob("step_*/manifest.json")):
                num_read += 1
                try:
                    load(path.parent)
                except ValueError as error:
                    damaged.append(str(error))
            lost += [str(path) for path, content in finished.items() if not path.exists() or path.read_bytes() != content]
            finished = _finished(place)
        if kill == 0:  # it ended before its first kill: runs are faster now than when the time was taken
            references[name] = (reference, seconds / 2)
        runs[name] += 1
        print(f"{name}: {kill} kills, {sum(counts.values())} in all", flush=True)
        if process.exitcode != 0 or _outcome(place) != reference:
            wrong.append(str(place))
        else:
            shutil.rmtree(place)
    print(f"{'family':20} {'kills':>6} {'runs':>6}")
    for name in campaign.families:
        print(f"{name:20} {counts[name]:6} {runs[name]:6}")
    print(f"{sum(counts.values())} kills, {sum(runs.values())} runs, {len(wrong)} with another result than undisturbed.", *wrong)
    print(f"{num_read} checkpoints read after kills, {len(damaged)} damaged.", *damaged)
    print(f"{len(lost)} runs lost that had been finished.", *lost)
    return 1 if wrong or damaged or lost else 0


def _start(name: str, folder: Path) -> Any:
    process = multiprocessing.get_context("fork").Process(target=_run, args=(FAMILIES[name], folder))
    process.start()
    return process


def _run(config: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.txt").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        if "study" in config:
            _run_study(config["study"], folder)
            return
        made: list[Any] = []
        module: Any = _memory_training if "extractor" in config else _training
        make: Callable[..., Any] = module.make_agent
        module.make_agent = lambda *args: made.append(make(*args)) or made[-1]  # type: ignore[func-returns-value]
        try:
            module.train(config, 3, folder)
        except BaseException:
            traceback.print_exc()
            raise
        agent = made[0]
        state = {name: value.numpy() for name, value in agent.policy.state_dict().items()}
        replay = getattr(agent, "replay_buffer", None)
        write_state({"policy": state, "replay": replay and replay.state_dict(copy=False)}, folder / "end.npz")


def _run_study(configs: list[dict[str, Any]], folder: Path) -> None:
    options = {config["replay"]: dict(config) for config in configs}
    tasks = [Task("CartPole", total_steps=configs[0]["total_timesteps"])]
    function = f"{ROOT / 'experiments' / '_training.py'}:train"
    if run_study(function, tasks=tasks, variants=options, seeds=2, folder=folder / "study", jobs=2):
        raise RuntimeError("a run of the study failed")


def _finished(folder: Path) -> dict[Path, bytes]:
    """Files of the runs of a study that are finished."""
    places = [
        path.parent for path in folder.rglob("seed_*/manifest.json") if json.loads(path.read_text()).get("status") == "finished"
    ]
    return {file: file.read_bytes() for place in places for file in place.iterdir() if file.is_file()}


def _wait_for_workers(folder: Path) -> None:
    """Wait for the processes of a study's runs, which notice within a second that its command is gone."""
    while any(str(folder) in " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])):
        time.sleep(0.05)


def _outcome(folder: Path) -> dict[str, Any]:
    """What a run ended with, times left out."""
    found: dict[str, Any] = {}
    for path in sorted([*folder.rglob("progress.csv"), *folder.rglob("evaluations.csv")]):
        with path.open() as file:
            found[str(path.relative_to(folder))] = [
                {key: value for key, value in row.items() if not key.startswith("time/") and key != "seconds"}
                for row in csv.DictReader(file)
            ]
    if (folder / "end.npz").exists():
        found["end"] = hashlib.sha256((folder / "end.npz").read_bytes()).hexdigest()
    return json.loads(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
