"""Columns of fixed-size records, packed so that one memory access fetches many fields.

A replay batch reads a few hundred records from random places of a table that is far larger than the processor's cache, so
the cost is the number of places touched, not the number of bytes. Small columns of one dtype therefore share one matrix,
and a record of an ordinary task (observation, next observation, action, reward, terminated: all float32) is one contiguous
row. Columns above `PACK_LIMIT` bytes (images) get a matrix of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

PACK_LIMIT = 1024
"""Columns of at most this many bytes per record are packed together with others of their dtype."""

RECYCLE_LIMIT = 1 << 16
"""Gathered blocks of at least this many bytes reuse memory (below, the allocator is as fast)."""


class Column(NamedTuple):
    """One field of a record: name, shape of one entry, dtype, and the group that it may be packed with."""

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike
    group: str = ""

    @property
    def width(self) -> int:
        """Number of scalars in one entry."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of one entry."""
        return self.width * np.dtype(self.dtype).itemsize


class _Recycler:
    """Hands out output arrays and takes them back once nobody refers to them.

    Fresh memory for a batch of frames costs more in page faults than the copy itself. An array is used again only when the
    reference count shows that no view and no tensor made from it is alive, so a batch that somebody keeps is never changed.
    """

    def __init__(self) -> None:
        self._pools: dict[tuple[tuple[int, ...], np.dtype[Any]], list[NDArray[Any]]] = {}

    @staticmethod
    def _num_references(pool: list[NDArray[Any]], i: int) -> int:
        return sys.getrefcount(pool[i])

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        pool = self._pools.setdefault((shape, dtype), [])
        for i in range(len(pool)):
            if self._num_references(pool, i) == _UNSHARED:
                return pool[i]
        array = np.empty(shape, dtype)
        if len(pool) < 4:  # a caller that keeps every batch gets ordinary arrays
            pool.append(array)
        return array


# What the reference count of an array is that only the pool holds: measured, since it differs between interpreters.
_UNSHARED = _Recycler._num_references([np.empty(1)], 0)


class PackedRows:
    """A table of `num_rows` records with named columns.

    Args:
        columns: The fields. Columns of equal dtype and group share a matrix unless they are larger than `PACK_LIMIT`.
        num_rows: Number of records, > 0.
        folder: If given, the matrices are memory-mapped files in this folder instead of memory.

    Example:
        >>> rows = PackedRows([Column("x", (2,), np.float32), Column("r", (1,), np.float32)], num_rows=3)
        >>> rows.view("x")[1] = [4.0, 5.0]
        >>> rows.gather(np.array([1, 0]))["x"].tolist()
        [[4.0, 5.0], [0.0, 0.0]]
        >>> rows.nbytes
        36
    """

    def __init__(self, columns: Sequence[Column], num_rows: int, folder: Path | None = None) -> None:
        self.columns = tuple(columns)
        self.num_rows = num_rows
        self._matrices: list[NDArray[Any]] = []
        self._groups: list[str] = []
        # Per matrix: the columns it holds as (name, first scalar, end, entry shape).
        self._layout: list[list[tuple[str, int, int, tuple[int, ...]]]] = []

        groups: dict[tuple[Any, ...], list[Column]] = {}
        for column in self.columns:
            packed = column.nbytes <= PACK_LIMIT
            key = (np.dtype(column.dtype).str, column.group, "" if packed else column.name)
            groups.setdefault(key, []).append(column)
        for number, members in enumerate(groups.values()):
            width = sum(column.width for column in members)
            dtype = np.dtype(members[0].dtype)
            if folder is None:
                matrix: NDArray[Any] = np.zeros((num_rows, width), dtype)
            else:
                matrix = np.asarray(np.memmap(folder / f"rows_{number}.bin", dtype, "w+", shape=(num_rows, width)))
            layout, start = [], 0
            for column in members:
                layout.append((column.name, start, start + column.width, column.shape))
                start += column.width
            self._matrices.append(matrix)
            self._groups.append(members[0].group)
            self._layout.append(layout)
        self._make_views()

    def _make_views(self) -> None:
        self._recycler = _Recycler()
        self._views: dict[str, NDArray[Any]] = {}
        for matrix, layout in zip(self._matrices, self._layout, strict=True):
            for name, start, stop, shape in layout:
                # (num_rows, width) -> (num_rows, *shape): a view, since the scalars of an entry lie side by side.
                self._views[name] = matrix[:, start:stop].reshape(self.num_rows, *shape)

    def __getstate__(self) -> dict[str, Any]:
        """For copies: views would lose their matrix, so they are made anew."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_views", "_recycler")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        self.__dict__.update(state)
        self._make_views()

    @staticmethod
    def nbytes_of(columns: Sequence[Column], num_rows: int) -> int:
        """Bytes that a table of these columns takes, without making it."""
        return num_rows * sum(column.nbytes for column in columns)

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices, in memory or in memory-mapped files."""
        return sum(matrix.nbytes for matrix in self._matrices)

    def view(self, name: str) -> NDArray[Any]:
        """The column `name` as a writable array of shape (num_rows, *shape)."""
        return self._views[name]

    def gather(self, index: NDArray[np.int64], group: str | None = None) -> dict[str, NDArray[Any]]:
        """Copies of the records `index` (B,), of one group if given: a dict name -> array of shape (B, *shape)."""
        out: dict[str, NDArray[Any]] = {}
        num = len(index)
        for matrix, layout, its_group in zip(self._matrices, self._layout, self._groups, strict=True):
            if group is not None and its_group != group:
                continue
            if num * matrix.shape[1] * matrix.itemsize < RECYCLE_LIMIT:
                block = matrix.take(index, 0)
            else:
                # "clip" lets NumPy write to `out` without a second buffer; the indices are valid by construction.
                block = matrix.take(index, 0, out=self._recycler.empty((num, matrix.shape[1]), matrix.dtype), mode="clip")
            _split(block, layout, out)
        return out

    def make_blocks(self, num: int) -> tuple[list[NDArray[Any]], dict[str, NDArray[Any]]]:
        """Memory for `gather_into` (B = num): blocks, and what `gather` returns as views of them."""
        blocks: list[NDArray[Any]] = [np.empty((num, matrix.shape[1]), matrix.dtype) for matrix in self._matrices]
        out: dict[str, NDArray[Any]] = {}
        for block, layout in zip(blocks, self._layout, strict=True):
            _split(block, layout, out)
        return blocks, out

    def gather_into(self, index: NDArray[np.int64], blocks: Sequence[NDArray[Any]]) -> None:
        """Copy the records `index` (B,) to blocks of `make_blocks(B)`."""
        for matrix, block in zip(self._matrices, blocks, strict=True):
            matrix.take(index, 0, out=block, mode="clip")

    def grown(self, num_rows: int, folder: Path | None = None) -> PackedRows:
        """A larger table that begins with the records of this one."""
        table = PackedRows(self.columns, num_rows, folder)
        for name, view in self._views.items():
            table.view(name)[: self.num_rows] = view
        return table


def _split(block: NDArray[Any], layout: list[tuple[str, int, int, tuple[int, ...]]], out: dict[str, NDArray[Any]]) -> None:
    """Enter the columns that a block of records holds, as views of shape (B, *shape)."""
    for name, start, stop, shape in layout:
        part = block if len(layout) == 1 else block[:, start:stop]  # (B, width)
        out[name] = part if len(shape) == 1 else part.reshape(len(block), *shape)
