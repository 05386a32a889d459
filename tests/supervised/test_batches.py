"""Order of the data: every row once per epoch, continued exactly; windows and their targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlopt.supervised import ArrayData, TextWindows


def draws(data: ArrayData | TextWindows, count: int) -> list[list[Any]]:
    return [data.draw()[0].tolist() for _ in range(count)]


def test_every_row_comes_once_per_epoch_and_epochs_differ() -> None:
    data = ArrayData(np.arange(12), batch_size=4)
    epochs = [np.concatenate(draws(data, data.batches_per_epoch)) for _ in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4, 4, 4, 4]), (False, [4, 4, 2, 4])])
def test_incomplete_batch_is_dropped_or_short(drop_last: bool, sizes: list[int]) -> None:
    data = ArrayData(np.arange(10), batch_size=4, drop_last=drop_last)
    assert [len(batch) for batch in draws(data, 4)] == sizes
    assert data.batches_per_epoch == (2 if drop_last else 3)


def test_targets_stay_with_their_inputs() -> None:
    data = ArrayData(np.arange(10), np.arange(10) * 2, np.arange(3), np.arange(3) * 5, batch_size=5, eval_batch_size=2)
    inputs, targets = data.draw()
    assert torch.equal(targets, 2 * inputs)
    assert [[part.tolist() for part in batch] for batch in data.evaluation()] == [[[0, 1], [0, 5]], [[2], [10]]]


def test_inputs_are_the_targets_and_training_rows_the_test_without_others() -> None:
    data = ArrayData(np.arange(4), batch_size=2, eval_batch_size=3)
    inputs, targets = data.draw()
    assert torch.equal(inputs, targets)
    assert [batch[0].tolist() for batch in data.evaluation()] == [[0, 1, 2], [3]]


def test_arrays_are_not_copied_and_rows_are_prepared() -> None:
    rows = np.zeros((4, 2), np.uint8)
    data = ArrayData(rows, batch_size=4, prepare=lambda x, y: (x.float() / 255, y))
    rows[:] = 255
    inputs, targets = data.draw()
    assert inputs.tolist() == [[1.0, 1.0]] * 4
    assert targets.dtype == torch.uint8


@pytest.mark.parametrize("position", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["rows", "windows"])
def test_order_continues_from_its_state(kind: str, position: int) -> None:
    def make(seed: int) -> ArrayData | TextWindows:
        if kind == "rows":
            return ArrayData(np.arange(12), batch_size=4, seed=seed)
        return TextWindows(np.arange(40), np.arange(9), length=4, batch_size=2, seed=seed)

    data, other = make(0), make(99)
    draws(data, position)
    state = data.state_dict()
    expected = draws(data, 8)
    draws(other, 2)
    other.load_state_dict(state)
    assert draws(other, 8) == expected


def test_windows_reach_both_ends_and_targets_are_one_later() -> None:
    data = TextWindows(np.arange(10, dtype=np.uint8), np.arange(9), length=4, batch_size=50)
    starts = set()
    for _ in range(20):
        inputs, targets = data.draw()
        assert inputs.dtype == torch.int64
        assert torch.equal(targets, inputs + 1)
        starts |= set(inputs[:, 0].tolist())
    assert starts == set(range(6))  # the last target is 9


@pytest.mark.parametrize(
    ("count", "starts"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (6, [0, 1, 2, 3, 4, 5]), (99, [0, 1, 2, 3, 4, 5])]
)
def test_evaluation_windows_are_at_equal_distances(count: int, starts: list[int]) -> None:
    data = TextWindows(np.arange(9), np.arange(10), length=4, batch_size=4, num_eval_windows=count)
    assert torch.cat([inputs[:, 0] for inputs, _ in data.evaluation()]).tolist() == starts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be in \[1, number of rows = 4\], got 0"),
        ({"batch_size": 5}, r"batch_size must be in \[1, number of rows = 4\], got 5"),
        ({"batch_size": 1, "eval_batch_size": 0}, "eval_batch_size must be >= 1"),
        ({"batch_size": 1, "targets": np.zeros(3)}, "targets must have one row for each of the 4 inputs, got 3"),
        ({"batch_size": 1, "test_targets": np.zeros(3)}, "test_inputs must be given with test_targets"),
        ({"batch_size": 1, "test_inputs": np.zeros(3), "test_targets": np.zeros(3)}, "test_targets must be given if and only if"),
    ],
)
def test_arrays_without_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayData(np.zeros(4), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be >= 1"),
        ({"length": 9}, r"codes must be one sequence longer than length = 9, got shape \(9,\)"),
    ],
)
def test_windows_without_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextWindows(np.arange(9), np.arange(20), batch_size=2, **options)
