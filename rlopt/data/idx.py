"""The IDX format, in which MNIST and its relatives are published."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlopt.data.files import read_maybe_compressed

_UINT8 = 0x08


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Make an array from the content of an IDX file of bytes.

    The header is two zero bytes, the type (8 for uint8), the number of axes, and the length of each axis, big-endian
    uint32; the values follow, last axis fastest.

    Raises:
        ValueError: If the content is not of this format, or has more or fewer values than its header says.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
        [7, 8, 9]
    """
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8:
        raise ValueError(f"an IDX file of bytes must begin with 00 00 08, got {content[:4].hex(' ') or 'nothing'}.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(
            f"an IDX file with {content[3]} axes must have a header of {start} bytes, got {len(content)} bytes in all."
        )
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(f"an IDX file of shape {shape} must hold {math.prod(shape)} values, got {len(content) - start}.")
    # bytearray: arrays that may be written to become tensors without a copy.
    return np.frombuffer(bytearray(content[start:]), np.uint8).reshape(shape)


def read_idx(path: Path | str) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, compressed if its name ends in `.gz`; for data sets of your own in this format.

    Raises:
        ValueError: If the file is truncated or of another format; the message names it.
    """
    try:
        return parse_idx(read_maybe_compressed(Path(path)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
