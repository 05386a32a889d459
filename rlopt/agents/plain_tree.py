"""Trees of plain data as trees of dicts, lists, numbers, strings and NumPy arrays, and back, nothing lost."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch as th


def encode(value: Any) -> Any:
    """Return a tree that `rlopt.replay.serialization.write_state` can write.

    Tensors, NumPy's numbers, tuples, deques, and dicts with keys that are not strings become dicts with one key that begins
    with "$".

    Raises:
        TypeError: For anything else, an object with code for instance.

    Example:
        >>> tree = {"a": (1, 2.5), 3: [None, th.ones(2)]}
        >>> decode(encode(tree))
        {'a': (1, 2.5), 3: [None, tensor([1., 1.])]}
    """
    if isinstance(value, th.Tensor):
        tensor = value.detach().cpu()
        if tensor.dtype == th.bfloat16:
            return {"$bfloat16": tensor.contiguous().view(th.int16).numpy()}
        return {"$tensor": tensor.numpy()}  # not made contiguous: products of matrices round differently by layout
    if isinstance(value, np.generic):
        return {"$number": np.asarray(value)}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(part) for key, part in value.items()}
        return {"$dict": [[encode(key), encode(part)] for key, part in value.items()]}
    if isinstance(value, deque):
        return {"$deque": [encode(part) for part in value], "$maxlen": value.maxlen}
    if isinstance(value, tuple):
        return {"$tuple": [encode(part) for part in value]}
    if isinstance(value, list):
        return [encode(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str, np.ndarray)):
        return value
    raise TypeError(f"only plain data can be encoded, got {type(value).__name__}.")


def decode(tree: Any) -> Any:
    """Return what was given to `encode`; tensors are on the CPU.

    Raises:
        ValueError: For a tree that `encode` does not make.
    """
    if isinstance(tree, list):
        return [decode(part) for part in tree]
    if not isinstance(tree, dict):
        return tree
    if "$deque" in tree:
        return deque((decode(part) for part in tree["$deque"]), tree["$maxlen"])
    tag = next((key for key in tree if key.startswith("$")), None)
    if tag is None:
        return {key: decode(part) for key, part in tree.items()}
    content = tree[tag]
    if tag == "$tensor":
        return th.from_numpy(content)
    if tag == "$bfloat16":
        return th.from_numpy(content).view(th.bfloat16)
    if tag == "$number":
        return content[()]
    if tag == "$tuple":
        return tuple(decode(part) for part in content)
    if tag == "$dict":
        return {decode(key): decode(part) for key, part in content}
    raise ValueError(f"unknown tag {tag!r}.")
