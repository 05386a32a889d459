"""The container: what belongs together, and splits that keep groups whole."""

import numpy as np
import pytest

from rlopt.data import Dataset


def test_split_partitions_the_examples() -> None:
    data = Dataset("numbers", np.arange(10), np.arange(10) * 2).split(0.3, seed=1)
    assert data.test_inputs is not None
    assert len(data.test_inputs) == 3
    assert sorted([*data.inputs, *data.test_inputs]) == list(range(10))
    np.testing.assert_array_equal(data.test_targets, data.test_inputs * 2)


def test_split_keeps_groups_whole() -> None:
    groups = np.arange(60) % 12
    data = Dataset("numbers", np.arange(60), groups=groups).split(0.25)
    assert data.test_inputs is not None
    assert set(groups[data.inputs]).isdisjoint(groups[data.test_inputs])
    assert len(data.test_inputs) == 15


def test_split_depends_on_the_seed_only() -> None:
    data = Dataset("numbers", np.arange(100))
    np.testing.assert_array_equal(data.split(seed=3).inputs, data.split(seed=3).inputs)
    assert not np.array_equal(data.split(seed=3).inputs, data.split(seed=4).inputs)


def test_second_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split is for data without a test part"):
        Dataset("numbers", np.arange(10)).split().split()


@pytest.mark.parametrize(("share", "message"), [(0.0, r"in \(0, 1\)"), (1.0, r"in \(0, 1\)"), (0.01, "both parts")])
def test_share_that_leaves_a_part_empty_is_refused(share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset("numbers", np.arange(10)).split(share)


@pytest.mark.parametrize("parts", [{"targets": np.zeros(3)}, {"groups": np.zeros(1)}, {"test_targets": np.zeros(2)}])
def test_parts_of_different_length_are_refused(parts: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(parts))} must have one entry for each input"):
        Dataset("numbers", np.zeros(2), **parts)
