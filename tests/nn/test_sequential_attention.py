"""Sequential Attention: the mask, the schedule of selections, recovery of planted features, and the link to matching pursuit."""

from __future__ import annotations

import copy
import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rlopt.nn.feature_selection import FeatureSelector, select_features
from rlopt.nn.sequential_attention import SequentialAttention


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def planted(num_rows: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three of eight features matter: 5 most, then 1, then 6."""
    x = randn(num_rows, 8, seed=seed)
    return x, 3.0 * x[:, 5] - 2.0 * x[:, 1] + x[:, 6]


# The mask.


def test_mask_is_ones_before_start_then_a_softmax_over_what_is_not_selected() -> None:
    attention = SequentialAttention(5, 3, start=0.25)
    assert attention(0.2).tolist() == [1.0] * 5
    with torch.no_grad():
        attention.logits.copy_(torch.tensor([0.0, 1.0, 2.0, 0.5, -1.0]))
    w = attention.logits.tolist()
    torch.testing.assert_close(attention(0.25), torch.tensor([math.exp(v) / sum(map(math.exp, w)) for v in w]))
    attention.step(0.5)  # the first of three phases ends at 0.5
    assert attention.selected.tolist() == [2]
    w = attention.logits.tolist()
    rest = sum(math.exp(w[i]) for i in (0, 1, 3, 4))
    expected = [1.0 if i == 2 else math.exp(w[i]) / rest for i in range(5)]
    torch.testing.assert_close(attention(0.5), torch.tensor(expected))


@settings(deadline=None, max_examples=60)
@given(d=st.integers(1, 9), data=st.data())
def test_selected_are_one_and_the_others_sum_to_one_at_any_time(d: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, d))
    attention = SequentialAttention(d, k, start=0.0, seed=data.draw(st.integers(0, 99)))
    with torch.no_grad():
        attention.logits.copy_(torch.tensor(data.draw(st.lists(st.floats(-200, 200), min_size=d, max_size=d))))
    for progress in (0.0, 0.4, 1.0):
        attention.step(progress)
        mask = attention(progress)
        chosen = attention.selected
        assert torch.equal(mask[chosen], torch.ones(len(chosen)))
        if len(chosen) < d:
            assert mask.sum().item() - len(chosen) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_everything_selected_gives_ones_and_zero_gradients() -> None:
    attention = SequentialAttention(4, 4)
    attention.step(1.0)
    assert sorted(attention.selected.tolist()) == [0, 1, 2, 3]
    mask = attention(1.0)
    assert mask.tolist() == [1.0] * 4
    with torch.autograd.detect_anomaly(check_nan=True):  # refuses nan on the way, too
        attention(1.0).square().sum().backward()  # type: ignore[no-untyped-call]
    assert attention.logits.grad is not None
    assert attention.logits.grad.tolist() == [0.0] * 4


def test_forward_changes_nothing() -> None:
    attention = SequentialAttention(6, 3)
    before = copy.deepcopy(attention.state_dict())
    for progress in (0.0, 0.5, 1.0):
        attention(progress)
    after = attention.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_logits_start_near_zero_and_come_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (SequentialAttention(4000, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other.logits)
    assert first.logits.std().item() == pytest.approx(1e-5, rel=0.05)


# The schedule.


@pytest.mark.parametrize("per_step", [1, 2, 5])
@pytest.mark.parametrize("num_steps", [10, 37, 400])
@pytest.mark.parametrize(("start", "stop"), [(0.1, 1.0), (0.0, 0.7), (0.3, 0.9)])
def test_k_are_selected_at_stop_without_repetition_one_phase_after_the_other(
    per_step: int, num_steps: int, start: float, stop: float
) -> None:
    attention = SequentialAttention(30, 10, per_step=per_step, start=start, stop=stop)
    num_phases = 10 // per_step
    chosen: list[int] = []
    for step in range(num_steps):
        progress = (step + 1) / num_steps
        changed = attention.step(progress)
        now = attention.selected.tolist()
        assert now[: len(chosen)] == chosen, "what is selected stays, in its order"
        assert changed == (len(now) > len(chosen))
        # Phase t ends at start + (t + 1) (stop - start) / T; in exact numbers, as many as have ended.
        ended = sum(progress >= start + (t + 1) * (stop - start) / num_phases - 1e-9 for t in range(num_phases))
        assert len(now) == per_step * ended
        chosen = now
        if progress >= stop:
            assert len(now) == 10
    assert len(set(chosen)) == 10


def test_nothing_is_selected_before_the_end_of_the_first_phase() -> None:
    attention = SequentialAttention(8, 2, start=0.1, stop=0.9)
    assert not attention.step(0.1)
    assert not attention.step(0.49)
    assert attention.step(0.5)
    assert len(attention.selected) == 1


def test_phases_that_end_together_take_the_best_of_the_logits_there_are() -> None:
    attention = SequentialAttention(6, 3, start=0.0)
    with torch.no_grad():
        attention.logits.copy_(torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0]))
    attention.step(1.0)
    assert attention.selected.tolist() == [1, 3, 5]


def test_selection_resets_logits_and_their_optimizer_state_and_leaves_the_model() -> None:
    attention, model = SequentialAttention(5, 2, start=0.0, seed=3), nn.Linear(5, 1)
    optimizer = torch.optim.Adam([*model.parameters(), attention.logits], lr=0.1)
    model(randn(8, 5) * attention(0.0)).square().mean().backward()
    optimizer.step()
    weights, moments = model.weight.clone(), optimizer.state[model.weight]["exp_avg"].clone()
    assert attention.logits.abs().max() > 1e-2
    attention.step(0.5, optimizer)
    assert attention.logits.abs().max() < 1e-4
    assert attention.logits not in optimizer.state
    assert torch.equal(model.weight, weights)
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], moments)
    kept = SequentialAttention(5, 2, start=0.0, reset=False)
    logits = kept.logits.clone()
    kept.step(0.5, optimizer)
    assert torch.equal(kept.logits, logits)


def test_state_restores_in_the_middle() -> None:
    first, second = SequentialAttention(9, 4, seed=1), SequentialAttention(9, 4, seed=2)
    first.step(0.6)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for progress in (0.7, 0.8, 1.0):
        assert first.step(progress) == second.step(progress)
        assert torch.equal(first(progress), second(progress)), "also the logits that are drawn anew"
    assert torch.equal(first.selected, second.selected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features must be >= 1, got 0"),
        ({"k": 9}, r"k must be in \[1, number of features = 8\], got 9"),
        ({"k": 0}, r"k must be in \[1, number of features = 8\], got 0"),
        ({"k": 4, "per_step": 3}, "per_step must be a divisor of k = 4, got 3"),
        ({"per_step": 0}, "per_step must be a divisor of k = 2, got 0"),
        ({"start": 0.5, "stop": 0.5}, "start and stop must be 0 <= start < stop <= 1, got 0.5 and 0.5"),
        ({"start": -0.1}, "start and stop must be"),
        ({"stop": 1.1}, "start and stop must be"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequentialAttention(**{"num_features": 8, "k": 2, **options})


def test_progress_outside_zero_and_one_is_refused() -> None:
    attention = SequentialAttention(3, 1)
    for call, progress in itertools.product((attention, attention.step), (-0.1, 1.01, math.nan)):
        with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
            call(progress)


# The link to orthogonal matching pursuit.


def unit_design(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, 10))
    return x / np.linalg.norm(x, axis=0), rng.normal(size=40)


def projected(x: np.ndarray, y: np.ndarray, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets without their part in the span of the chosen columns: the unpenalised columns, minimised over."""
    basis = np.linalg.qr(x[:, chosen])[0] if chosen else np.zeros((len(x), 0))
    return x - basis @ (basis.T @ x), y - basis @ (basis.T @ y)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_of_the_sequential_lasso_is_a_step_of_matching_pursuit(seed: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="the comparison needs scikit-learn")
    x, y = unit_design(seed)
    chosen: list[int] = []
    for size in range(1, 5):
        rest = [i for i in range(10) if i not in chosen]
        inputs, residual = projected(x, y, chosen)
        second, critical = np.sort(np.abs(x[:, rest].T @ residual))[-2:]
        # Just below the critical penalty: 0.999 of it, or closer where another feature is almost as good.
        for factor, count in ((max(0.999, 1 - 0.1 * (1 - second / critical)), 1), (1.001, 0)):
            # scikit-learn minimises ||y - X b||^2 / (2 n) + alpha ||b||_1.
            lasso = linear.Lasso(alpha=factor * critical / len(x), fit_intercept=False, tol=1e-12, max_iter=100_000)
            nonzero = [rest[i] for i in np.flatnonzero(lasso.fit(inputs[:, rest], residual).coef_)]
            assert len(nonzero) == count
            if count:
                new = nonzero[0]
        chosen.append(new)
        pursuit = linear.OrthogonalMatchingPursuit(n_nonzero_coefs=size, fit_intercept=False).fit(x, y)
        assert set(np.flatnonzero(pursuit.coef_)) == set(chosen)


def test_planted_features_are_found_in_the_order_of_matching_pursuit() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="the comparison needs scikit-learn")
    x, y = planted()
    order: list[int] = []
    for size in (1, 2, 3):
        fit = linear.OrthogonalMatchingPursuit(n_nonzero_coefs=size).fit(x.numpy(), y.numpy())
        order += [i for i in np.flatnonzero(fit.coef_).tolist() if i not in order]
    assert order == [5, 1, 6]
    for seed in range(3):
        # A linear model, trained long enough in each phase.
        found = select_features(nn.Linear(8, 1), (x, y[:, None]), 3, epochs=60, batch_size=100, lr=0.03, seed=seed)
        assert found.tolist() == order


# Selecting.


@pytest.mark.parametrize("per_step", [1, 3])
def test_planted_features_of_a_nonlinear_classification_are_found(per_step: int) -> None:
    x = randn(800, 12)
    # The sign of 3 alone tells little: which class it means depends on 7 and 10.
    y = (x[:, 3] * torch.sign(x[:, 7] + 0.5) + x[:, 10] > 0).long()
    found = FeatureSelector(3, per_step=per_step, epochs=40, batch_size=50, lr=5e-3).fit(None, (x, y))
    assert sorted(found.indices.tolist()) == [3, 7, 10]
    assert len(found.losses) == 40
    assert found.losses[-1] < 0.5 * found.losses[0]


@pytest.mark.parametrize("k", [1, 4, 8])
def test_exactly_k_different_features(k: int) -> None:
    found = select_features(None, planted(60), k, epochs=4, batch_size=20)
    assert found.dtype == torch.int64
    assert len(set(found.tolist())) == k


def test_arrays_and_other_integer_and_float_types_are_taken() -> None:
    x, y = planted(100)
    options = {"epochs": 30, "batch_size": 20, "lr": 0.01}
    expected = select_features(None, (x, y), 3, **options).tolist()
    assert select_features(None, (x.double().numpy(), y.double().numpy()), 3, **options).tolist() == expected
    classes = (y > 0).numpy()
    found = [select_features(None, (x, classes.astype(kind)), 2, **options).tolist() for kind in (np.uint8, np.int32, np.int64)]
    assert found[0] == found[1] == found[2]
    assert sorted(select_features(None, (x, np.stack([y, -y], 1)), 3, **options).tolist()) == sorted(expected)


def test_loss_and_model_of_ones_own() -> None:
    x, y = planted()

    class Doubled(nn.Module):
        """Outputs that only its own loss understands."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"half": self.linear(x)[:, 0] / 2}

    def loss(outputs: dict[str, Tensor], targets: Tensor) -> Tensor:
        return (2 * outputs["half"] - targets).abs().mean()

    model = Doubled()
    weights = model.linear.weight.clone()
    found = select_features(model, (x, y), 3, loss=loss, epochs=60, batch_size=100, lr=0.03)
    assert found.tolist() == [5, 1, 6]
    assert torch.equal(model.linear.weight, weights), "a copy is trained"
    assert model.linear.weight.grad is None


def test_selection_depends_on_the_seed_alone() -> None:
    data = randn(100, 30), randn(100, seed=1)
    state = torch.get_rng_state()
    options = {"epochs": 12, "batch_size": 20}
    first, again, other = (select_features(None, data, 10, **options, seed=seed).tolist() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"k": 9}, "k must be at most the number of features, 8, got 9"),
        ({"k": 4, "per_step": 3}, "per_step must be a divisor of k = 4, got 3"),
        ({"start": 1.0}, "start and stop must be"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"batch_size": 61}, "batch_size must be at most the number of rows, 60, got 61"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"epochs": 3, "batch_size": 60}, "epochs must give at least one step for each of the 3 phases .* got 3 with 2 steps"),
        ({"hidden_width": 0}, "hidden_width must be >= 1, got 0"),
        ({"lr": 0.0}, "lr must be a number > 0, got 0.0"),
        ({"logit_lr": math.inf}, "logit_lr must be a number > 0, got inf"),
        ({"final_lr_factor": 0.0}, r"final_lr_factor must be in \(0, 1\], got 0.0"),
    ],
)
def test_wrong_options_of_a_selection_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_features(None, planted(60), **{"k": 3, "batch_size": 20, **options})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((randn(9, 2, 2), randn(9)), r"inputs must have shape \(rows, features\), got \(9, 2, 2\); flatten images"),
        ((randn(9, 4), randn(8)), r"targets must have one row for each of the 9 inputs, got shape \(8,\)"),
        ((randn(9, 4) / 0.0, randn(9)), "inputs must be finite, got nan or infinity; fill gaps first"),
        ((randn(9, 4), torch.full((9,), math.nan)), "targets must be finite"),
        ((randn(9, 4), torch.arange(9) - 1), "integer targets must be one class >= 0 for each row, .* least -1"),
        ((randn(9, 4), torch.ones(9, 2, dtype=torch.long)), r"one class >= 0 for each row, got shape \(9, 2\)"),
    ],
)
def test_wrong_data_are_refused(data: tuple[Tensor, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_features(None, data, 2, batch_size=3)


def test_outputs_that_would_be_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"outputs of the model must have the shape of the targets, \(20,\), got \(20, 1\)"):
        select_features(nn.Linear(8, 1), planted(60), 2, batch_size=20)


def test_divergence_is_told() -> None:
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch \d+; scale the inputs, or lower lr"):
        select_features(nn.Linear(8, 8), (randn(60, 8) * 1e25, randn(60, 8)), 2, batch_size=20, lr=1e10)
