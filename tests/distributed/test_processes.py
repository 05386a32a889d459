"""Processes started by torchrun compute and learn what one process does, and continue each other's runs.

The checks themselves are in `expert_checks`, `trainer_checks` and `agent_checks`; two starts, of 2 and then of 4 processes, do them
all. Then this process, alone, goes on with what these have saved.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import expert_checks
import pytest
import torch
import trainer_checks
from launching import HERE, torchrun

from rlopt.nn import MoE, TokenChoice
from rlopt.nn.expert_parallel import shard_experts, sync_stats, total_grad_norm
from rlopt.supervised import Trainer

pytestmark = pytest.mark.slow
TOLERANCE = 1e-5


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="session")
def results(folder: Path) -> dict[int, dict[str, Any]]:
    """Numbers of all checks, by the number of processes."""
    for name in trainer_checks.TRAVELLERS:
        trainer_checks.traveller(name, folder / f"alone_{name}", num_steps=2).train()
    found = {}
    for size in (2, 4):
        status, output = torchrun(size, HERE / "worker.py", str(folder))
        assert status == 0, output
        found[size] = json.loads((folder / f"results_{size}.json").read_text())
    return found


def numbers(results: dict[int, dict[str, Any]], prefix: str) -> Iterator[tuple[str, Any]]:
    for size, checks in results.items():
        for name, value in checks.items():
            if name.startswith(prefix):
                yield f"{name} with {size} processes", value


def assert_small(results: dict[int, dict[str, Any]], prefix: str, limit: float = TOLERANCE, at_least: int = 1) -> None:
    checked = list(numbers(results, prefix))
    assert len(checked) >= at_least
    failed = {name: value for name, value in checked if isinstance(value, str)}
    assert not failed, "\n".join(f"{name}: {error}" for name, error in failed.items())
    far = {name: value for name, value in checked if not all(deviation <= limit for deviation in value.values())}
    assert not far, far


def test_expert_parallel_layers_equal_one_process_in_outputs_all_gradients_and_statistics(results: dict[int, Any]) -> None:
    assert_small(results, "equal/", at_least=30)


def test_jacobian_of_the_exchange_is_that_of_differences(results: dict[int, Any]) -> None:
    assert_small(results, "jacobian", 1e-8, at_least=2)


def test_autocast_computes_the_same_in_half_precision(results: dict[int, Any]) -> None:
    assert_small(results, "half_precision", at_least=2)


def test_number_of_experts_must_be_divisible(results: dict[int, Any]) -> None:
    assert_small(results, "wrong_number", at_least=2)


def test_training_together_has_losses_gradients_and_weights_of_one_process(results: dict[int, Any]) -> None:
    assert_small(results, "train/", at_least=20)


def test_what_cannot_work_is_refused_by_all_processes(results: dict[int, Any]) -> None:
    assert_small(results, "refused/", at_least=15)


def test_stopped_runs_go_on(results: dict[int, Any]) -> None:
    assert_small(results, "resume/", at_least=6)


def test_runs_go_on_with_another_number_of_processes(results: dict[int, Any]) -> None:
    assert_small(results, "travel/", at_least=9)


def test_ppo_on_two_processes_takes_the_steps_of_one_with_twice_the_environments(results: dict[int, Any]) -> None:
    assert_small(results, "agents/", at_least=16)


@pytest.mark.parametrize("name", trainer_checks.TRAVELLERS)
def test_one_process_goes_on_where_four_stopped(name: str, results: dict[int, Any], folder: Path) -> None:
    found = trainer_checks.travels(name, folder)
    assert max(found.values()) <= TOLERANCE, found


def test_gathered_experts_of_four_processes_compute_in_one(results: dict[int, Any], folder: Path) -> None:
    network = expert_checks.make("top2")
    network.load_state_dict(torch.load(folder / "gathered.pt", weights_only=True))
    expected = expert_checks.make("top2")
    with torch.no_grad():  # as in `expert_checks.reshard`, from where the weights have come by way of 2 and 4 processes
        for seed, param in enumerate(expected.parameters()):
            param.add_(0.1 * expert_checks.randn(*param.shape, seed=seed + 50))
    x = expert_checks.randn(4, expert_checks.LENGTH, expert_checks.WIDTH, seed=9)
    torch.testing.assert_close(network(x).y, expected(x).y, rtol=0, atol=1e-6)


@pytest.fixture
def sharded(results: dict[int, Any], folder: Path, tmp_path: Path) -> tuple[Trainer, Path]:
    """A run, and the folder of shards of its newest checkpoint."""
    shutil.copytree(folder / "runs_2" / "ep", tmp_path / "run")
    trainer = trainer_checks.make("adamw", trainer_checks.TOP2, folder=tmp_path / "run")
    return trainer, tmp_path / "run" / "checkpoints" / "step_00000006" / "shards"


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def make_consistent(checkpoint: Path) -> None:
    """Give the manifest the checksums of the files as they are, as somebody who means harm would."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    present = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    manifest["files"] = {
        path.relative_to(checkpoint).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in present
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_shards_run_no_code(sharded: tuple[Trainer, Path], tmp_path: Path) -> None:
    trainer, shards = sharded
    (shards / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    make_consistent(shards.parent)
    with pytest.raises(ValueError, match="must hold shards of a checkpoint"):
        trainer.resume()
    assert not (tmp_path / "mark").exists()


def test_missing_shards_are_named(sharded: tuple[Trainer, Path]) -> None:
    trainer, shards = sharded
    (shards / "__1_0.distcp").unlink()
    make_consistent(shards.parent)
    with pytest.raises(ValueError, match="must hold all shards of a checkpoint"):
        trainer.resume()


def test_without_processes_nothing_is_shared() -> None:
    layer = MoE(4, 8, 4, TokenChoice())
    keys = list(layer.state_dict())
    assert shard_experts(layer) is layer
    assert list(layer.state_dict()) == keys
    assert layer.across is None
    stats = layer(torch.ones(1, 3, 4)).stats
    assert sync_stats(stats) is stats
    layer(torch.ones(1, 3, 4)).y.sum().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in layer.parameters() if p.grad is not None])
    assert total_grad_norm(layer) == expected
