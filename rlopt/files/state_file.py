"""States in one file without pickle: NumPy's npz for arrays, JSON for the rest.

Arrays of object dtype are refused on both sides, so opening a stranger's file cannot run code. Files are written under a
temporary name, flushed to the disk and renamed: a reader sees the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

FORMAT = "rlopt-state-2"
_ARRAY = "$array"  # of an array: {"$array": "<name in the npz file>"}


def write_state(state: Mapping[str, Any], path: str | Path) -> None:
    """Write plain data to `path`.

    Args:
        state: Numbers, strings, None, arrays, tensors, and lists, tuples, deques, dicts of these. Reading returns the same types;
            tensors come back on the CPU.
        path: The file; its folder is made if needed. The name is used as it is.

    Raises:
        TypeError: If `state` holds something else.
        OSError: If the file cannot be written; an older file of that name stays untouched.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_state({"a": (1, 2.5), "b": [None, th.ones(2)]}, f"{folder}/state")
        ...     read_state(f"{folder}/state")
        {'a': (1, 2.5), 'b': [None, tensor([1., 1.])]}
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
                raise ValueError(f"its format is {tree.get('format') if isinstance(tree, dict) else None!r}, not {FORMAT!r}")
            state = _from_json(tree["state"], file)
    except FileNotFoundError:
        raise ValueError(f"{str(path)!r} does not exist.") from None
    # RuntimeError: a damaged entry of the archive can look encrypted, or compressed by an unknown method. MemoryError: its header
    # can ask for more memory than there is.
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        AttributeError,
        RuntimeError,
        MemoryError,
        OverflowError,
        RecursionError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
    ) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{str(path)!r} is not a state file of rlopt, or it is damaged ({text}).") from error
    if not isinstance(state, dict):
        raise ValueError(f"{str(path)!r} is not a state file of rlopt: it holds no dict.")
    return state


def _to_json(value: Any, place: str, arrays: dict[str, NDArray[Any]]) -> Any:
    """Return a JSON value: arrays go to `arrays` and leave their name, other types become dicts whose key begins with "$"."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            raise TypeError(f"state{place} is an array of objects; only arrays of numbers can be written.")
        name = f"array{len(arrays)}"
        arrays[name] = value
        return {_ARRAY: name}
    if isinstance(value, np.generic):
        return {"$number": _to_json(np.asarray(value), place, arrays)}
    if isinstance(value, th.Tensor):
        tensor = value.detach().cpu()
        if tensor.dtype == th.bfloat16:
            return {"$bfloat16": _to_json(tensor.contiguous().view(th.int16).numpy(), place, arrays)}
        # Not made contiguous: products of matrices round differently by layout.
        return {"$tensor": _to_json(tensor.numpy(), place, arrays)}
    if isinstance(value, Mapping):
        parts = [(key, _to_json(part, f"{place}[{key!r}]", arrays)) for key, part in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(parts)
        return {"$dict": [[_to_json(key, f"{place}, a key", arrays), part] for key, part in parts]}
    if isinstance(value, list | tuple | deque):
        items = [_to_json(part, f"{place}[{i}]", arrays) for i, part in enumerate(value)]
        if isinstance(value, deque):
            return {"$deque": items, "$maxlen": value.maxlen}
        return {"$tuple": items} if isinstance(value, tuple) else items
    raise TypeError(
        f"state{place} is a {type(value).__name__}; only numbers, strings, None, arrays, tensors, and lists, tuples, deques and "
        f"dicts of these can be written."
    )


def _from_json(value: Any, file: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(part, file) for part in value]
    if not isinstance(value, dict):
        return value
    tag = next((key for key in value if key.startswith("$")), None)
    if tag is None:
        return {key: _from_json(part, file) for key, part in value.items()}
    content = value[tag]
    if tag == _ARRAY:
        return file[content]
    if tag == "$dict":
        return {_from_json(key, file): _from_json(part, file) for key, part in content}
    inner = _from_json(content, file)
    if tag == "$number":
        return inner[()]
    if tag == "$tensor":
        return th.from_numpy(inner)
    if tag == "$bfloat16":
        return th.from_numpy(inner).view(th.bfloat16)
    if tag == "$tuple":
        return tuple(inner)
    if tag == "$deque":
        return deque(inner, value["$maxlen"])
    raise ValueError(f"it has the unknown tag {tag!r}")
