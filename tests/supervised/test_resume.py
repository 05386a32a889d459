"""Stopped and continued runs are the same runs, to the bit; damaged and foreign checkpoints are refused."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import NUM_STEPS, facts, make, network, resumable, sgd
from torch import Tensor, nn

from rlopt.files.checkpoint import finish, list_checkpoints, make_scratch
from rlopt.nn import CharTransformer, CharTransformerConfig, ScaleInvariantMLP, TransformerConfig
from rlopt.optim import OPTIMIZERS
from rlopt.optim.locoprop import LocoProp
from rlopt.supervised import EarlyStopping, TextWindows, Trainer, TrainerConfig, WarmupDecay
from rlopt.supervised.checkpoint import read_checkpoint, write_checkpoint
from rlopt.supervised.losses import token_cross_entropy


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for one, other in zip(found["weights"], expected["weights"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert found["history"] == expected["history"]
    assert found["evaluations"] == expected["evaluations"]


@pytest.mark.slow
def test_runs_continued_in_another_process_equal_those_that_were_never_stopped(tmp_path: Path) -> None:
    optimizers = ("momentum", "adam", "lbfgs", "sam")
    for optimizer in optimizers:
        # Neither a log line nor an evaluation nor the end of an epoch (3 steps) falls on the step of the stop.
        resumable(optimizer, tmp_path / optimizer).train(10)
    command = [sys.executable, str(Path(__file__).parent / "small.py"), str(tmp_path), *optimizers]
    subprocess.run(command, check=True, timeout=120)
    for optimizer in optimizers:
        whole = resumable(optimizer, None)
        whole.train()
        assert len(whole.history) == NUM_STEPS // 3
        assert_same(torch.load(tmp_path / f"{optimizer}.pt", weights_only=True), facts(whole))


def scale_invariant_network() -> nn.Module:
    model = nn.Sequential(ScaleInvariantMLP(3, (8,)), nn.Dropout(0.2), nn.Linear(8, 1))
    generator = torch.Generator().manual_seed(0)
    for param in model.parameters():
        nn.init.uniform_(param, -0.5, 0.5, generator=generator)
    return model


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, LocoProp])
def test_every_optimizer_continues_exactly(optimizer: str | type[LocoProp], tmp_path: Path) -> None:
    def start(folder: Path | None) -> Trainer:
        model = network(dropout=0.2) if optimizer != "scale_invariant_sgd" else scale_invariant_network()
        try:
            built = optimizer if isinstance(optimizer, str) else optimizer(model)
            return make(built, model=model, folder=folder, num_steps=8, schedule=WarmupDecay(8, warmup_steps=3))
        except ImportError as error:
            pytest.skip(str(error))

    whole, first, second = start(None), start(tmp_path), start(tmp_path)
    whole.train()
    first.train(5)
    assert second.resume()
    second.train()
    assert_same(facts(second), facts(whole))


def test_pauses_change_nothing(tmp_path: Path) -> None:
    whole, paused = resumable("adam", None), resumable("adam", None)
    whole.train()
    for _ in range(7):
        paused.train(3)
    assert_same(facts(paused), facts(whole))


def test_checkpoint_from_the_midst_of_training_continues_exactly(tmp_path: Path) -> None:
    def start() -> Trainer:
        return make(dropout=0.3, folder=tmp_path, num_steps=10, save_every=4)

    whole = start()
    whole.train()
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000010")
    continued = start()
    assert continued.resume()
    assert continued.step == 8
    continued.train()
    assert_same(facts(continued), facts(whole))


class OwnDropout(nn.Module):
    """Dropout that draws from a generator of its own, which its `state_dict` holds."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape, generator=self.generator) > 0.3) if self.training else x

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state)


def small_model() -> nn.Module:
    model = network()
    model[2] = OwnDropout()
    return nn.Sequential(nn.Embedding.from_pretrained(torch.eye(5, 3)), model, nn.Linear(1, 5))


def language_model() -> nn.Module:
    return CharTransformer(CharTransformerConfig(5, TransformerConfig(context=6, num_layers=1, num_heads=2, width=8, dropout=0.3)))


@pytest.mark.parametrize("make_model", [small_model, language_model])
def test_layers_with_generators_of_their_own_continue_exactly(make_model: Callable[[], nn.Module], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.set_rng_state(torch.Generator().manual_seed(0).get_state())
        initial = make_model()

    def start(folder: Path | None) -> Trainer:
        data = TextWindows(torch.arange(60) % 5, torch.arange(30) % 5, length=6, batch_size=4)
        options = TrainerConfig(num_steps=8, log_every=1, eval_every=2, early_stopping=EarlyStopping(patience=9))
        return Trainer(copy.deepcopy(initial), token_cross_entropy, "adam", data, options, folder=folder)

    whole, first, second = start(None), start(tmp_path), start(tmp_path)
    whole.train()
    first.train(4)
    assert second.resume()
    second.train()
    assert_same(facts(second), facts(whole))


def test_layers_draw_what_the_seed_says_and_leave_the_global_generator_alone() -> None:
    one, same, other = (make(dropout=0.5, seed=seed) for seed in (0, 0, 1))
    before = torch.get_rng_state()
    one.train()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.rand(5)
        same.train()
    other.train()
    assert facts(one)["history"] == facts(same)["history"]
    assert facts(one)["history"] != facts(other)["history"]


def test_checkpoint_is_written_at_its_steps_and_old_ones_go(tmp_path: Path) -> None:
    make(folder=tmp_path, save_every=3, keep_checkpoints=2).train(10)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step_00000009", "step_00000010"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000009", "step_00000010"]


def test_checkpoint_that_is_not_finished_is_invisible(tmp_path: Path) -> None:
    (tmp_path / ".new-killed").mkdir()
    assert list_checkpoints(tmp_path) == []
    write_checkpoint(tmp_path, 1, {"x": torch.ones(1)}, {}, keep=2)
    with pytest.raises(TypeError, match="is a object; only"):
        write_checkpoint(tmp_path, 2, {"x": object()}, {}, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("name", ["state.npz", "manifest.json"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, 1, {"x": torch.ones(100)}, {"step": 1}, keep=1)
    (path / name).write_bytes((path / name).read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"step_00000001 (is damaged: state.npz|must be the folder of a checkpoint)"):
        read_checkpoint(path)


def test_checkpoint_runs_no_code(tmp_path: Path) -> None:
    scratch = make_scratch(tmp_path)
    torch.save({"model": network()}, scratch / "state.npz")  # a pickled object, not a tensor
    finish(scratch, tmp_path / "step_1", {"kind": "trainer", "record": {}})
    with pytest.raises(ValueError, match="is not a state file of rlopt, or it is damaged"):
        read_checkpoint(tmp_path / "step_1")


def test_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    whole = make(folder=tmp_path / "whole", save_every=3)
    whole.train(10)
    make(folder=tmp_path / "run", save_every=3).train(7)
    paths = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert [path.name for path in paths] == ["step_00000006", "step_00000007"]
    (paths[-1] / "state.npz").write_bytes(b"")
    trainer = make(folder=tmp_path / "run", save_every=3)
    with pytest.warns(UserWarning, match="is damaged: state.npz.*The checkpoint before it is used"):
        assert trainer.resume()
    assert trainer.step == 6
    trainer.train(4)
    assert facts(trainer)["history"] == facts(whole)["history"]
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "manifest.json").unlink()
    with (
        pytest.warns(UserWarning, match="there is none"),
        pytest.raises(ValueError, match="no good one before it: move it away"),
    ):
        make(folder=tmp_path / "run").resume()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 5}, "seed"),
        ({"micro_batches": 2}, "micro_batches"),
        ({"schedule": WarmupDecay(30)}, "schedule"),
        ({"optimizer": "adam"}, "optimizer"),
    ],
)
def test_run_with_other_options_is_not_continued(tmp_path: Path, options: dict[str, Any], name: str) -> None:
    make(folder=tmp_path).train(2)
    with pytest.raises(ValueError, match=f"{name} must be that of the run in"):
        make(folder=tmp_path, **options).resume()


def test_folder_of_another_run_is_not_written_to(tmp_path: Path) -> None:
    make(folder=tmp_path).train(2)
    with pytest.raises(ValueError, match=r"folder must be a new one, or resume\(\) called first"):
        make(folder=tmp_path).train(1)
    with pytest.raises(ValueError, match="folder must be a new one"):
        make(folder=tmp_path).save()


def test_resume_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    trainer = make(folder=tmp_path / "new")
    assert not trainer.resume()
    trainer.train(1)
    assert not make().resume()


def test_longer_run_is_continued_from_a_shorter_one(tmp_path: Path) -> None:
    make(folder=tmp_path, num_steps=5).train()
    longer = make(folder=tmp_path, num_steps=9)
    assert longer.resume()
    longer.train()
    whole = make(sgd(), num_steps=9)
    whole.train()
    assert longer.history == whole.history
