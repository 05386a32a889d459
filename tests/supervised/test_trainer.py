"""Steps against plain PyTorch, logged numbers by hand, evaluation, early stopping, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from small import arrays, make, mse, network, sgd
from torch import Tensor, nn

import rlopt.supervised.logs
from rlopt.data import curves_like
from rlopt.optim import LBFGS, CombinedOptimizer, Sgd
from rlopt.optim.kfac import KFAC
from rlopt.optim.locoprop import LocoProp
from rlopt.supervised import ArrayData, EarlyStopping, Trainer, TrainerConfig, deep_autoencoder


def weights(trainer: Trainer) -> list[Tensor]:
    return [param.detach() for param in trainer.model.parameters()]


def test_steps_are_those_of_a_plain_loop() -> None:
    trainer = make(lambda params: torch.optim.Adam(params, lr=0.01), schedule=lambda step: 1 / (1 + step))
    trainer.train(5)
    model, data = network(), ArrayData(*arrays(), batch_size=16, seed=3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
        x, y = data.draw()
        optimizer.zero_grad()
        mse(model(x), y).backward()
        optimizer.step()
    for one, other in zip(weights(trainer), model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=0, atol=0)


def test_schedule_multiplies_the_rate_of_each_group() -> None:
    model = network()
    optimizer = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters(), "lr": 0.02}])
    data = ArrayData(*arrays(), batch_size=16)
    trainer = Trainer(model, mse, optimizer, data, TrainerConfig(num_steps=3, log_every=1), schedule=lambda step: 0.5**step)
    trainer.train()
    assert [row["lr"] for row in trainer.history] == pytest.approx([0.1, 0.05, 0.025])
    assert [row["lr_1"] for row in trainer.history] == pytest.approx([0.02, 0.01, 0.005])


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_batch_in_parts_is_the_whole_batch(parts: int) -> None:
    whole, split = make(), make(micro_batches=parts)
    whole.train(4)
    split.train(4)
    for one, other in zip(weights(split), weights(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in split.history] == pytest.approx([row["loss"] for row in whole.history], rel=1e-5)


def test_more_parts_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="micro_batches must be at most the rows of a batch, 16, got 17"):
        make(micro_batches=17).train(1)


def test_logged_numbers_of_one_weight_are_those_by_hand() -> None:
    # loss = (3 w - 1)^2 at w = 2: 25; gradient 2 * 5 * 3 = 30; step to 2 - 0.01 * 30 = 1.7.
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(2.0)
    data = ArrayData(torch.tensor([[3.0]]), torch.tensor([[1.0]]), batch_size=1)
    trainer = Trainer(model, mse, Sgd(lr=0.01), data, TrainerConfig(num_steps=1, log_every=1, clip_norm=100.0))
    result = trainer.train()
    expected = {
        "step": 1,
        "loss": 25,
        "grad_norm": 30,
        "weight_norm": 1.7,
        "update_ratio": 0.15,
        "lr": 0.01,
        "effective_lr": 0.01 / 1.7**2,
    }
    assert trainer.history == [pytest.approx(expected, rel=1e-6)]
    assert result == pytest.approx({"step": 1, "loss": 4.1**2}, rel=1e-6)


def test_gradient_is_clipped_to_its_bound_and_logged_as_it_was() -> None:
    free, bound = make(sgd(1.0)), make(sgd(1.0), clip_norm=0.05)
    free.train(1)
    bound.train(1)
    assert bound.history[0]["grad_norm"] == free.history[0]["grad_norm"] > 0.05
    start = network()
    moved = torch.cat([(new - old.detach()).flatten() for new, old in zip(weights(bound), start.parameters(), strict=True)])
    assert float(moved.norm()) == pytest.approx(0.05, rel=1e-4)


def test_evaluation_counts_each_row_once_and_leaves_the_mode() -> None:
    x, y = arrays(10)
    data = ArrayData(x, y, batch_size=5, eval_batch_size=4)  # 4 + 4 + 2 rows
    model = network(dropout=0.9)
    trainer = Trainer(model, mse, sgd(), data, metrics={"error": lambda out, target: (out - target).abs().mean()})
    result = trainer.evaluate()
    assert model.training
    outputs = model.eval()(x).detach()
    assert result == pytest.approx({"loss": float(mse(outputs, y)), "error": float((outputs - y).abs().mean())}, rel=1e-6)


def test_evaluations_are_at_their_steps_and_at_the_end() -> None:
    trainer = make(num_steps=7, eval_every=3)
    trainer.train(2)
    trainer.train()
    assert [row["step"] for row in trainer.evaluations] == [3, 6, 7]


def test_training_ends_when_patience_does_and_the_best_weights_come_back() -> None:
    # The metric is 3, 2, 2, 2, ...: the second evaluation is the best, and two in a row without improvement end it.
    values = iter([3.0, 2.0, 2.0, 2.0, 2.0])
    trainer = make(
        eval_every=2,
        early_stopping=EarlyStopping(patience=2, monitor="error"),
        metrics={"error": lambda *_: torch.tensor(next(values))},
    )
    trainer.train(4)
    best = [weight.clone() for weight in weights(trainer)]
    trainer.train()
    assert (trainer.step, trainer.is_finished) == (8, True)
    assert not torch.equal(weights(trainer)[0], best[0])
    trainer.load_best()
    for one, other in zip(weights(trainer), best, strict=True):
        assert torch.equal(one, other)
    trainer.train()
    assert trainer.step == 8


def test_improvement_has_a_direction_and_a_size() -> None:
    values = iter([1.0, 1.05, 2.0, 2.05, 2.1])
    stopping = EarlyStopping(patience=2, monitor="score", higher_is_better=True, min_improvement=0.1)
    trainer = make(eval_every=1, early_stopping=stopping, metrics={"score": lambda *_: torch.tensor(next(values))})
    trainer.train()
    assert trainer.step == 5


@pytest.mark.parametrize(("optimizer", "evaluations"), [(LBFGS(lr=1.0, max_iter=5), 6), ("sam", 2)])
def test_optimizer_that_evaluates_the_loss_gets_the_same_batch_each_time(optimizer: Any, evaluations: int) -> None:
    seen: list[Tensor] = []

    class Recorder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x)

    model = Recorder(3, 1)
    trainer = Trainer(model, mse, optimizer, ArrayData(*arrays(), batch_size=16), TrainerConfig(num_steps=1, log_every=1))
    before = mse(model(seen_batch(trainer)), seen_targets(trainer)).item()
    seen.clear()
    trainer.train()
    training = [x for x in seen if len(x) == 16]
    assert 2 <= len(training) <= evaluations
    assert all(torch.equal(x, training[0]) for x in training)
    assert trainer.history[0]["loss"] == pytest.approx(before)


def seen_batch(trainer: Trainer) -> Tensor:
    """Inputs of the batch that the trainer will draw."""
    return ArrayData(*arrays(), batch_size=16).draw()[0]


def seen_targets(trainer: Trainer) -> Tensor:
    return ArrayData(*arrays(), batch_size=16).draw()[1]


def test_lbfgs_solves_least_squares_where_sgd_does_not() -> None:
    x, _ = arrays()
    x = x * torch.tensor([1.0, 10.0, 100.0])
    y = x @ torch.tensor([[1.0], [2.0], [3.0]])
    losses = {}
    for name, optimizer in (("lbfgs", LBFGS(lr=1.0)), ("sgd", Sgd(lr=1e-5))):
        trainer = Trainer(nn.Linear(3, 1, bias=False), mse, optimizer, ArrayData(x, y, batch_size=48), TrainerConfig(num_steps=5))
        losses[name] = trainer.train()["loss"]
    assert losses["lbfgs"] < 1e-4 < losses["sgd"]


def test_bfloat16_trains_parameters_in_float32() -> None:
    model = network()
    kinds = []
    model[0].register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    data = ArrayData(*arrays(), batch_size=48)
    trainer = Trainer(model, mse, sgd(), data, TrainerConfig(num_steps=30, precision="bfloat16"))
    start = trainer.evaluate()["loss"]
    assert trainer.train()["loss"] < start
    assert set(kinds) == {torch.bfloat16}
    assert {param.dtype for param in model.parameters()} == {torch.float32}


def test_model_is_compiled_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    trainer = make(compile=True)
    trainer.train(1)
    assert compiled == [trainer.model]


def test_events_hold_the_logged_numbers_once_after_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # Files of the same second get numbers, and by name number 10 comes before number 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    options: dict[str, Any] = {"folder": tmp_path, "num_steps": 6, "eval_every": 3, "save_every": 2}
    first = make(**options)
    first.train(4)
    # As if the run had been killed at step 4 with its last checkpoint at step 2.
    import shutil

    shutil.rmtree(tmp_path / "checkpoints" / "step_00000004")
    second = make(**options)
    assert second.resume()
    second.train()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name in ("loss", "grad_norm", "weight_norm", "update_ratio", "lr", "effective_lr"):
        steps, values = zip(*scalars[f"train/{name}"], strict=True)
        assert steps == (1, 2, 3, 4, 5, 6)
        assert list(values) == pytest.approx([row[name] for row in second.history], rel=1e-6)
    assert [step for step, _ in scalars["eval/loss"]] == [3, 6]


def test_local_losses_of_an_optimizer_are_logged() -> None:
    class Local(torch.optim.SGD):
        local_losses: dict[str, tuple[Tensor, Tensor]] = {}  # noqa: RUF012
        track_local_losses = False

        def step(self, closure: Any = None) -> Any:
            self.local_losses = {"0": (torch.tensor(1.5), torch.tensor(0.5))} if self.track_local_losses else {}
            return super().step(closure)

    trainer = make(lambda params: Local(params, lr=0.1), log_every=2)
    trainer.train(1)
    assert trainer.optimizer.local_losses == {}  # type: ignore[attr-defined]
    trainer.train(1)
    assert (trainer.history[0]["local_loss/0"], trainer.history[0]["local_loss_after/0"]) == (1.5, 0.5)
    with pytest.raises(ValueError, match="clip_norm must be None with Local"):
        make(lambda params: Local(params, lr=0.1), clip_norm=1.0)


def test_locoprop_finds_the_link_of_the_loss_and_reports_its_local_losses() -> None:
    task = deep_autoencoder(curves_like(60), widths=(8, 2), batch_size=20)
    trainer = task.trainer(LocoProp(task.model), TrainerConfig(num_steps=6, log_every=2, eval_every=6))
    start = trainer.evaluate()["loss"]
    assert trainer.train()["loss"] < start
    assert isinstance(trainer.optimizer, LocoProp)
    assert trainer.optimizer.transfers == {"0": "tanh", "2": "identity", "3": "tanh", "5": "sigmoid"}
    for name in ("0", "2", "3", "5"):
        assert all(row[f"local_loss_after/{name}"] < row[f"local_loss/{name}"] for row in trainer.history)


@pytest.mark.parametrize("kind", ["locoprop", "kfac"])
def test_optimizer_with_hooks_is_not_compiled(kind: str) -> None:
    model = network()
    optimizer = LocoProp(model) if kind == "locoprop" else CombinedOptimizer([KFAC(model)])
    with pytest.raises(ValueError, match=r"compile must be False with (LocoProp|KFAC)"):
        Trainer(model, mse, optimizer, ArrayData(*arrays(), batch_size=16), TrainerConfig(compile=True))


def test_bar_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make().train(3)
    assert capsys.readouterr().err == ""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    real = rlopt.supervised.logs.tqdm
    monkeypatch.setattr(rlopt.supervised.logs, "tqdm", lambda **options: real(file=screen, **options))
    make().train(3)
    assert "3/20" in screen.getvalue()
    screen.truncate(0)
    make(progress=False).train(3)
    assert screen.getvalue().strip("\0") == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be >= 1, got 0"),
        ({"eval_every": 0}, "eval_every must be >= 1, got 0"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0 or None, got 0.0"),
        ({"precision": "float8"}, "precision must be 'float32', 'bfloat16' or 'float16', got 'float8'"),
        ({"precision": "float16"}, "precision must not be 'float16' unless device is cuda"),
        ({"early_stopping": EarlyStopping()}, "eval_every must be given with early_stopping"),
        ({"save_every": 2}, "folder must be given with save_every"),
        ({"metrics": {"loss": mse}}, "metrics must not be named 'loss'"),
        ({"eval_every": 1, "early_stopping": EarlyStopping(monitor="score")}, "monitor must be one of loss, got 'score'"),
    ],
)
def test_option_without_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_calls_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps must be >= 0 or None, got -1"):
        make().train(-1)
    with pytest.raises(ValueError, match="load_best needs early_stopping"):
        make().load_best()
    with pytest.raises(ValueError, match="folder must be given to save"):
        make().save()
    with pytest.raises(ValueError, match="patience must be >= 1, got 0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="min_improvement must be >= 0, got nan"):
        EarlyStopping(min_improvement=float("nan"))
