"""What an agent was made of, as plain data: its constructor's arguments and its spaces, for files that hold no code."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer

_CLASS, _CONFIG = "class of", "config of"
# Only classes of these packages are made from a file, and only of kinds that do nothing but compute.
_PACKAGES = ("rlopt", "stable_baselines3", "torch")
_KINDS = (th.nn.Module, th.optim.Optimizer, BaseBuffer)


def describe(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments that plain data can say, and the names of the others: functions, and objects with state."""
    said, unsaid = {}, []
    for name, value in arguments.items():
        try:
            said[name] = _describe(value)
        except TypeError:
            unsaid.append(name)
    return said, unsaid


def revive(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that were described.

    Raises:
        ValueError: If it names what is no class of a known package.
    """
    return {name: _revive(value) for name, value in description.items()}


def describe_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space as plain data.

    Raises:
        TypeError: For a space of another kind than Stable-Baselines3 supports.
    """
    if isinstance(space, spaces.Box):
        return {"kind": "Box", "low": space.low, "high": space.high, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"kind": "MultiDiscrete", "nvec": space.nvec, "start": space.start}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n}
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {name: describe_space(part) for name, part in space.spaces.items()}}
    raise TypeError(f"only Box, Discrete, MultiDiscrete, MultiBinary and Dict spaces can be described, got {space}.")


def revive_space(description: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space that was described.

    Raises:
        ValueError: If it is no description.
    """
    rest = dict(description)
    match rest.pop("kind", None):
        case "Box":
            return spaces.Box(rest["low"], rest["high"], dtype=np.dtype(rest["dtype"]).type)
        case "Discrete":
            return spaces.Discrete(rest["n"], start=rest["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(rest["nvec"], start=rest["start"])
        case "MultiBinary":
            return spaces.MultiBinary(rest["n"])
        case "Dict":
            return spaces.Dict({name: revive_space(part) for name, part in rest["spaces"].items()})
        case kind:
            raise ValueError(f"a space must be Box, Discrete, MultiDiscrete, MultiBinary or Dict, got {kind!r}.")


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str | np.generic | np.ndarray | th.Tensor):
        return value
    if isinstance(value, type):
        if not _is_allowed(value):
            raise TypeError(f"{value} is no class of a known package.")
        return {_CLASS: _place(value)}
    if dataclasses.is_dataclass(value):
        if not _is_allowed(type(value)):
            raise TypeError(f"{type(value)} is no configuration of a known package.")
        fields = {field.name: _describe(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
        return {_CONFIG: _place(type(value)), "fields": fields}
    if isinstance(value, Mapping):
        return {key: _describe(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_describe(part) for part in value)
    raise TypeError(f"{type(value)} is no plain data.")


def _revive(value: Any) -> Any:
    if isinstance(value, dict):
        if _CLASS in value:
            return _find(value[_CLASS])
        if _CONFIG in value:
            return _find(value[_CONFIG])(**{name: _revive(part) for name, part in value["fields"].items()})
        return {key: _revive(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_revive(part) for part in value)
    return value


def _is_allowed(kind: type) -> bool:
    known = kind.__module__.split(".")[0] in _PACKAGES and "." not in kind.__qualname__
    if not known:
        return False
    config = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen and kind.__module__.startswith("rlopt.")  # type: ignore[attr-defined]
    return config or issubclass(kind, _KINDS)


def _place(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _find(place: Any) -> Any:
    """Import a class, if it is an allowed one."""
    module, _, name = str(place).partition(":")
    found = None
    if module.split(".")[0] in _PACKAGES:
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
    if not isinstance(found, type) or not _is_allowed(found):
        raise ValueError(f"a file may only name networks, optimizers, replays and configurations of {_PACKAGES}, got {place!r}.")
    return found
