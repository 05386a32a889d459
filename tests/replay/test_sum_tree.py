import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlopt.replay.sum_tree import SumTree


def smallest_index_above(values: list[float], mass: float) -> int:
    total = 0.0
    for i, value in enumerate(values):
        total += value
        if total > mass:
            return i
    raise AssertionError("mass must be below the total")


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 39), st.integers(0, 9)), min_size=1, max_size=60),
)
def test_tree_equals_a_list(size: int, updates: list[tuple[int, int]]) -> None:
    tree, values = SumTree(size), {}
    for index, value in updates:
        tree.set(np.array([index % size]), np.array([float(value)]))
        values[index % size] = float(value)
    full = [values.get(i, 0.0) for i in range(size)]
    assert tree.total == sum(full)
    assert tree.minimum == min((value for value in values.values() if value > 0), default=np.inf)
    assert tree.maximum == max(values.values())
    assert tree.get(np.arange(size)).tolist() == full
    # Whole numbers: prefix sums are exact, so the draw must be the definition's to the index.
    masses = np.arange(0.0, sum(full), 0.5)
    assert tree.find(masses).tolist() == [smallest_index_above(full, mass) for mass in masses]


def test_of_an_index_that_occurs_twice_the_last_value_counts() -> None:
    tree = SumTree(3)
    tree.set(np.array([1, 1, 2, 1]), np.array([5.0, 7.0, 1.0, 2.0]))
    assert tree.get(np.arange(3)).tolist() == [0.0, 2.0, 1.0]
    assert tree.total == 3.0


@pytest.mark.parametrize("size", [1, 2, 3, 37, 64])
def test_batches_of_random_updates_keep_sum_and_extremes(size: int) -> None:
    rng = np.random.default_rng(size)
    tree, values = SumTree(size), np.zeros(size)
    for _ in range(300):
        index = rng.integers(0, size, rng.integers(1, 2 * size + 1))
        new = rng.integers(0, 5, len(index)).astype(float)  # often one extreme changes and the other does not
        tree.set(index, new)
        values[index] = new
        above = values[values > 0]
        assert (tree.total, tree.maximum) == (values.sum(), values.max())
        assert tree.minimum == (above.min() if len(above) else np.inf)


def test_a_million_random_updates_leave_the_root_equal_to_the_sum_of_the_leaves() -> None:
    rng = np.random.default_rng(0)
    tree = SumTree(10_000)
    values = np.zeros(10_000)
    for _ in range(100):
        index = rng.integers(0, 10_000, 10_000)
        new = rng.random(10_000) ** 8 * 10.0 ** rng.integers(-6, 7, 10_000)
        tree.set(index, new)
        values[index] = new
    assert tree.total == pytest.approx(values.sum(), rel=1e-9)
    written = tree.get(np.arange(10_000))
    assert np.array_equal(written, values)
    assert tree.maximum == values.max()


def test_a_mass_lifted_to_the_total_by_rounding_still_finds_a_value() -> None:
    tree = SumTree(7)
    tree.set(np.array([0, 2, 4]), np.array([0.1, 0.2, 0.3]))
    found = tree.find(np.array([tree.total, np.nextafter(tree.total, 9.0), 0.1, np.nextafter(0.3, 1.0)]))
    assert set(found.tolist()) <= {0, 2, 4}
    assert found[0] == 4


def test_draws_never_return_a_value_of_zero() -> None:
    rng = np.random.default_rng(1)
    tree = SumTree(100)
    chosen = rng.choice(100, 17, replace=False)
    tree.set(chosen, rng.random(17))
    assert set(tree.find(rng.random(20_000) * tree.total).tolist()) <= set(chosen.tolist())


def test_clear_unsets_everything() -> None:
    tree = SumTree(5)
    tree.set(np.arange(5), np.arange(5.0))
    tree.clear()
    assert (tree.total, tree.minimum, tree.maximum) == (0.0, np.inf, 0.0)
