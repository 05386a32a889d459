"""Sum, minimum and maximum of an array under point updates, and draws in proportion to its entries."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


class SumTree:
    """Binary tree over non-negative float64 values: O(log n) update and draw, exact minimum and maximum.

    Every inner node is recomputed from its two children, so rounding does not accumulate however many updates there are.

    Args:
        size: Number of values, > 0. All begin unset: they count 0 in the sum and not at all in minimum and maximum.

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
        self._num_leaves = 1 << max(size - 1, 0).bit_length()
        # Rows: sum, minimum, maximum. Node i has children 2i and 2i + 1; leaf j is node num_leaves + j; node 1 is the root.
        self._nodes = np.empty((3, 2 * self._num_leaves))
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of the tree."""
        return self._nodes.nbytes

    @property
    def total(self) -> float:
        """Sum of the values."""
        return float(self._nodes[0, 1])

    @property
    def minimum(self) -> float:
        """Smallest value that was set, inf if there is none."""
        return float(self._nodes[1, 1])

    @property
    def maximum(self) -> float:
        """Largest value that was set, 0 if there is none."""
        return float(self._nodes[2, 1])

    def clear(self) -> None:
        """Unset all values."""
        self._nodes[0] = 0.0
        self._nodes[1] = np.inf
        self._nodes[2] = 0.0

    def get(self, index: NDArray[np.int64]) -> NDArray[np.float64]:
        """Values at `index` (B,)."""
        values: NDArray[np.float64] = self._nodes[0, self._num_leaves + index]
        return values

    def set(self, index: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Set the values at `index` (B,); of an index that occurs twice the last value counts."""
        _set(self._nodes, self._num_leaves, index, values)

    def find(self, mass: NDArray[np.float64]) -> NDArray[np.int64]:
        """For each mass (B,) in [0, total) the smallest index whose prefix sum exceeds it; never an index of value 0."""
        return _find(self._nodes[0], self._num_leaves, mass)


@numba.njit(cache=True)
def _set(nodes: NDArray[np.float64], num_leaves: int, index: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    total, low, high = nodes[0], nodes[1], nodes[2]
    for b in range(len(index)):
        node = num_leaves + index[b]
        total[node] = low[node] = high[node] = values[b]
        node >>= 1
        while node >= 1:
            left, right = 2 * node, 2 * node + 1
            total[node] = total[left] + total[right]
            low[node] = min(low[left], low[right])
            high[node] = max(high[left], high[right])
            node >>= 1


@numba.njit(cache=True)
def _find(total: NDArray[np.float64], num_leaves: int, mass: NDArray[np.float64]) -> NDArray[np.int64]:
    out = np.empty(len(mass), np.int64)
    for b in range(len(mass)):
        rest = mass[b]
        node = 1
        while node < num_leaves:
            node *= 2
            # A mass that rounding lifted to the end of its node must not slip into an empty subtree.
            if rest >= total[node] and total[node + 1] > 0.0:
                rest -= total[node]
                node += 1
        out[b] = node - num_leaves
    return out
