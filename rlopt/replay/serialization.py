"""State dicts in one file without pickle: NumPy's npz for arrays, JSON for the rest.

Arrays of object dtype are refused on both sides, so opening a stranger's file cannot run code. Files are written under a
temporary name, flushed to the disk and renamed: a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "rlopt-state-1"
_ARRAY = "__array__"  # JSON placeholder of an array: {"__array__": "<name in the npz file>"}


def write_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write nested dicts, lists, numbers, strings, None and NumPy arrays to `path`.

    Args:
        state: String keys only.
        path: The file; its folder is made if needed. The name is used as it is.

    Raises:
        TypeError: If `state` holds something else.
        OSError: If the file cannot be written; an older file of that name stays untouched.
    """
    arrays: dict[str, NDArray[Any]] = {}
    tree = {"format": FORMAT, "state": _to_json(state, "", arrays)}
    arrays["json"] = np.frombuffer(json.dumps(tree).encode(), np.uint8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner may read; states are for sharing
        with os.fdopen(handle, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_state(path: str | Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        ValueError: If the file is missing, damaged, or of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            tree = json.loads(file["json"].tobytes())
            if not isinstance(tree, dict) or tree.get("format") != FORMAT:
                raise ValueError("unknown format")
            state = _from_json(tree["state"], file)
    except FileNotFoundError:
        raise ValueError(f"{str(path)!r} does not exist.") from None
    # RuntimeError: a damaged entry of the archive can look encrypted, or compressed by an unknown method.
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        AttributeError,
        RuntimeError,
        MemoryError,  # a header can say that an array is as large as it likes
        OverflowError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
    ) as error:
        raise ValueError(f"{str(path)!r} is not a state file of rlopt, or it is damaged ({error}).") from error
    if not isinstance(state, dict):
        raise ValueError(f"{str(path)!r} is not a state file of rlopt: it holds no dict.")
    return state


def _to_json(value: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            raise TypeError(f"state{name} is an array of objects; only arrays of numbers can be written.")
        key = f"array{len(arrays)}"
        arrays[key] = value
        return {_ARRAY: key}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"state{name} has keys that are not strings.")
        return {key: _to_json(part, f"{name}[{key!r}]", arrays) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part, f"{name}[{i}]", arrays) for i, part in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"state{name} is a {type(value).__name__}; only dicts, lists, numbers, strings, None and arrays can be written."
    )


def _from_json(value: Any, file: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return file[value[_ARRAY]]
        return {key: _from_json(part, file) for key, part in value.items()}
    if isinstance(value, list):
        return [_from_json(part, file) for part in value]
    return value
