"""Sum, minimum and maximum of an array under point updates, and draws in proportion to its entries."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


class SumTree:
    """Binary tree over non-negative float64 values: O(log n) update and draw, exact minimum and maximum.

    Every inner node is recomputed from its two children, so rounding does not accumulate however many updates there are. Updates
    and draws go through the tree level by level for all entries of a batch at once, so that the processor waits for many places in
    memory at the same time; extremes are followed upwards only as far as they change.

    Args:
        size: Number of values, > 0. All begin at 0.

    Example:
        >>> tree = SumTree(4)
        >>> tree.set(np.array([0, 1, 3]), np.array([1.0, 2.0, 5.0]))
        >>> tree.total, tree.minimum, tree.maximum
        (8.0, 1.0, 5.0)
        >>> tree.find(np.array([0.5, 1.0, 7.9])).tolist()
        [0, 1, 3]
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._num_leaves = max(2, 1 << max(size - 1, 0).bit_length())
        # Node i has children 2i and 2i + 1; leaf j is node num_leaves + j; node 1 is the root.
        self._sums = np.empty(2 * self._num_leaves)
        self._extremes = np.empty((self._num_leaves, 2))  # smallest value above 0, largest value: of inner nodes only
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the tree."""
        return self._sums.nbytes + self._extremes.nbytes

    @property
    def total(self) -> float:
        """Sum of the values."""
        return float(self._sums[1])

    @property
    def minimum(self) -> float:
        """Smallest value above 0, that is, of those that are drawn; inf if there is none."""
        return float(self._extremes[1, 0])

    @property
    def maximum(self) -> float:
        """Largest value."""
        return float(self._extremes[1, 1])

    def clear(self) -> None:
        """Set all values to 0."""
        self._sums[:] = 0.0
        self._extremes[:] = np.inf, 0.0

    def get(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values at `index` (B,)."""
        values: NDArray[np.float64] = self._sums[self._num_leaves + index]
        return values

    def set(self, index: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Set the values at `index` (B,); of an index that occurs twice the last value counts."""
        _set(self._sums, self._extremes, index, values)

    def find(self, mass: NDArray[np.float64]) -> NDArray[np.int64]:
        """For each mass (B,) in [0, total) the smallest index whose prefix sum exceeds it; never an index of value 0."""
        return _find(self._sums, mass)


@numba.njit(cache=True)
def _set(sums: NDArray[np.float64], extremes: NDArray[np.float64], index: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    num_leaves = len(extremes)
    num_changed, last = 0, 0
    parents = np.empty(len(index), np.int64)  # inner nodes to be recomputed: neighbours of the same parent count once
    for b in range(len(index)):
        leaf = num_leaves + index[b]
        sums[leaf] = values[b]
        parents[num_changed] = leaf >> 1
        num_changed += (leaf >> 1) != last
        last = leaf >> 1

    num_sums, num_extremes = num_changed, 0
    with_sums, with_extremes = parents, np.empty(num_changed, np.int64)
    for b in range(num_changed):
        node = parents[b]
        left, right = sums[2 * node], sums[2 * node + 1]
        sums[node] = left + right
        high = left if left > right else right
        left, right = left if left > 0.0 else np.inf, right if right > 0.0 else np.inf
        low = left if left < right else right
        with_extremes[num_extremes] = node
        num_extremes += (low != extremes[node, 0]) | (high != extremes[node, 1])
        extremes[node, 0], extremes[node, 1] = low, high

    while num_sums > 0 and with_sums[0] > 1:
        count, last = 0, 0
        for b in range(num_sums):
            node = with_sums[b] >> 1
            sums[node] = sums[2 * node] + sums[2 * node + 1]
            with_sums[count] = node
            count += node != last
            last = node
        num_sums = count
    while num_extremes > 0 and with_extremes[0] > 1:
        count = 0
        for b in range(num_extremes):
            node = with_extremes[b] >> 1
            left, right = extremes[2 * node, 0], extremes[2 * node + 1, 0]
            low = left if left < right else right
            left, right = extremes[2 * node, 1], extremes[2 * node + 1, 1]
            high = left if left > right else right
            with_extremes[count] = node
            count += (low != extremes[node, 0]) | (high != extremes[node, 1])
            extremes[node, 0], extremes[node, 1] = low, high
        num_extremes = count


@numba.njit(cache=True)
def _find(sums: NDArray[np.float64], mass: NDArray[np.float64]) -> NDArray[np.int64]:
    node, rest = np.ones(len(mass), np.int64), mass.copy()
    num_leaves = len(sums) // 2
    width = 1
    while width < num_leaves:
        for b in range(len(mass)):
            left, right = sums[2 * node[b]], sums[2 * node[b] + 1]
            # A mass that rounding lifted to the end of its node must not slip into an empty subtree.
            goes_right = (rest[b] >= left) & (right > 0.0)
            rest[b] -= left if goes_right else 0.0
            node[b] = 2 * node[b] + goes_right
        width *= 2
    return node - num_leaves
