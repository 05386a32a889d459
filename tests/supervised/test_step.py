"""What is not finite ends training with its name, before the weights are touched; which optimizers need a closure."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small import arrays, make, mse, network, sgd
from torch import Tensor

from rlopt.files.checkpoint import list_checkpoints
from rlopt.optim import SAM, NonFiniteError, needs_closure
from rlopt.supervised import ArrayData, Trainer, TrainerConfig
from rlopt.supervised.checkpoint import read_checkpoint


def breaking(loss: Any, at: int) -> Any:
    """`mse`, but `loss` at one of its calls."""
    calls = iter(range(10**6))
    return lambda outputs, targets: loss(outputs, targets) if next(calls) == at else mse(outputs, targets)


def trainer_with(loss: Any, folder: Path | None = None, **options: Any) -> Trainer:
    data = ArrayData(*arrays(), batch_size=16, seed=3)
    return Trainer(network(), loss, sgd(), data, TrainerConfig(num_steps=20, **options), folder=folder)


def test_loss_that_is_not_finite_stops_with_the_weights_before_the_step() -> None:
    trainer, good = trainer_with(breaking(lambda out, _: out.sum() * float("nan"), 4)), trainer_with(mse)
    good.train(4)
    with pytest.raises(FloatingPointError, match=r"^step 4: the loss is nan; there is no checkpoint; try a lower learning rate"):
        trainer.train()
    assert trainer.step == 4
    for one, other in zip(trainer.model.parameters(), good.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gradient_that_is_not_finite_is_named() -> None:
    # The root of 0 has the value 0 and an infinite slope.
    broken = breaking(lambda out, target: mse(out, target) + (out - out.detach()).abs().sqrt().sum(), 2)
    with pytest.raises(FloatingPointError, match=r"step 2: the gradient of '0.weight' is not finite \(the loss is "):
        trainer_with(broken).train()


def test_last_good_checkpoint_stays_and_is_named(tmp_path: Path) -> None:
    trainer = trainer_with(breaking(lambda out, _: out.sum() * float("inf"), 7), tmp_path, save_every=3, eval_every=1000)
    with pytest.raises(FloatingPointError, match=r"step 7: the loss is (-?inf|nan); the last good checkpoint is .*step_00000006;"):
        trainer.train()
    tensors, record = read_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1])
    assert record["step"] == 6
    assert all(torch.isfinite(value).all() for value in tensors["model"].values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = make(folder=tmp_path)
    trainer.train(2)
    with torch.no_grad():
        trainer.model[3].bias.fill_(torch.nan)
    with pytest.raises(
        FloatingPointError, match=r"step 2: the parameter '3.bias' is not finite; the last good checkpoint is .*02;"
    ):
        trainer.save()
    with pytest.raises(FloatingPointError, match=r"the parameter '3.bias'"):
        trainer.train()


def test_check_can_be_made_less_often() -> None:
    trainer = trainer_with(breaking(lambda out, _: out.sum() * float("nan"), 1), check_finite_every=4)
    with pytest.raises(FloatingPointError, match=r"step 4: the parameter '0.weight' is not finite"):
        trainer.train()


@pytest.mark.parametrize("declared", [True, False])
def test_optimizer_can_say_whether_it_needs_a_closure(declared: bool) -> None:
    class Declared(torch.optim.SGD):
        needs_closure = declared

    assert needs_closure(Declared(network().parameters(), lr=0.1)) is declared


def test_closure_is_recognised_without_being_declared() -> None:
    params = list(network().parameters())
    assert needs_closure(torch.optim.LBFGS(params))
    assert needs_closure(SAM(torch.optim.SGD(params, lr=0.1)))
    assert not any(needs_closure(kind(params, lr=0.1)) for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop))


def test_fixed_parameters_stay_out_of_norms() -> None:
    def build() -> tuple[torch.nn.Sequential, Tensor]:
        model = network()
        model[0].weight.requires_grad_(False)
        return model, model[0].weight.detach().clone()

    model, fixed = build()
    optimizer = torch.optim.SGD([param for param in model.parameters() if param.requires_grad], lr=0.1)
    trainer = Trainer(model, mse, optimizer, ArrayData(*arrays(), batch_size=16), TrainerConfig(num_steps=1, log_every=1))
    trainer.train()
    assert torch.equal(model[0].weight, fixed)
    expected = torch.cat([param.detach().flatten() for param in model.parameters() if param.requires_grad]).norm()
    assert trainer.history[0]["weight_norm"] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "lbfgs", "kfac"])
def test_skip_leaves_everything_as_it_was(optimizer: str, tmp_path: Path) -> None:
    def make_trainer(loss: Any) -> Trainer:
        torch.manual_seed(0)
        net = network()
        built = {
            "sgd": sgd(),
            "sam": lambda params: SAM(torch.optim.Adam(params, lr=0.01)),
            "lbfgs": lambda params: torch.optim.LBFGS(params, max_iter=3),
            "kfac": "kfac",
        }
        data = ArrayData(*arrays(), batch_size=16, seed=3)
        config = TrainerConfig(num_steps=20, log_every=1, non_finite="skip")
        return Trainer(net, loss, built[optimizer], data, config, folder=tmp_path)

    evaluations = iter(range(10**6))
    broken: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        first = 0 if optimizer in ("sgd", "kfac") else 1  # the others evaluate it several times
        is_broken = trainer.step == 4 and trainer.model.training and next(evaluations) >= first
        broken.append(is_broken)
        return mse(outputs, targets) * (float("nan") if is_broken else 1.0)

    trainer = make_trainer(loss)
    trainer.train(4)
    before = copy.deepcopy((trainer.model.state_dict(), trainer.optimizer.state_dict()))
    with pytest.warns(
        UserWarning, match=r"^step 4: the loss is nan; the update is left out, as all such: skipped_updates counts\.$"
    ):
        trainer.train(1)
    assert any(broken)
    assert repr(before) == repr((trainer.model.state_dict(), trainer.optimizer.state_dict()))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[0][name])
    assert (trainer.step, trainer.num_skipped_updates) == (5, 1)
    trainer.train(1)
    assert [(row["step"], row["skipped_updates"]) for row in trainer.history] == [(1, 0), (2, 0), (3, 0), (4, 0), (6, 1)]
    again = make_trainer(mse)
    assert again.resume()
    assert again.num_skipped_updates == 1


def test_skip_does_not_go_on_with_weights_that_are_not_finite() -> None:
    trainer = trainer_with(mse, non_finite="skip")
    trainer.train(2)
    with torch.no_grad():
        trainer.model[0].weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^step 2: the parameter '0.weight' is not finite; there is no checkpoint; try"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"non_finite": "no"}, "non_finite must be 'raise' or 'skip', got 'no'."),
        ({"non_finite": "skip", "check_finite_every": 2}, "check_finite_every must be 1 with non_finite 'skip', got 2."),
    ],
)
def test_choice_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainerConfig(**options)
