"""IDX: against an array written with `struct`, and broken files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from rlopt.data import parse_idx, read_idx

CONTENT = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24))


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_file_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(CONTENT) if name.endswith(".gz") else CONTENT)
    np.testing.assert_array_equal(read_idx(path), np.arange(24).reshape(2, 3, 4))


def test_array_may_be_written_to() -> None:
    parse_idx(CONTENT)[0, 0, 0] = 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with 00 00 08, got nothing"),
        (b"\x89PNG1234", "must begin with 00 00 08, got 89 50 4e 47"),
        (CONTENT[:9], "a header of 16 bytes, got 9"),
        (CONTENT[:-1], r"of shape \(2, 3, 4\) must hold 24 values, got 23"),
        (CONTENT + b"1", "must hold 24 values, got 25"),
    ],
)
def test_other_content_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_idx(content)


def test_error_of_a_file_names_it(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(CONTENT)[:-12])
    with pytest.raises(ValueError, match=r"images.gz must be a complete gzip file"):
        read_idx(path)
