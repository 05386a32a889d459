"""The state of objects as plain data: what their attributes hold, without code, so that it can be written to safe files."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch as th

# Objects of these packages hold nothing but plain data, and objects that do. Box2D's world is one that does not.
_KNOWN = (
    "gymnasium.envs.classic_control", "gymnasium.envs.toy_text", "gymnasium.envs.mujoco", "gymnasium.wrappers",
    "gymnasium.spaces", "gymnasium.vector", "stable_baselines3.common.vec_env", "stable_baselines3.common.monitor",
    "stable_baselines3.common.callbacks", "stable_baselines3.common.noise", "stable_baselines3.common.buffers",
    "stable_baselines3.common.running_mean_std", "rlopt_envs", "rlopt.agents",
)  # fmt: skip
# References from a part to what it is a part of, and to what is saved elsewhere or made anew.
_SKIPPED = {
    "model",
    "locals",
    "globals",
    "logger",
    "training_env",
    "parent",
    "mujoco_renderer",
    "window",
    "_window",
    "results_writer",
}


class CannotBeSaved(Exception):  # a condition that callers handle
    """Raised for an object whose state nobody knows how to take; the message says which."""


def take_state(thing: Any) -> Any:
    """Return the state of an object as plain data: numbers, strings, arrays, tensors, and lists, tuples, dicts, deques of these.

    An object with `state_dict` and `load_state_dict` says itself what its state is. Of objects of Gymnasium, Stable-Baselines3 and
    rlopt, all attributes are taken, and those of objects in them; random generators by the state of their bit generator, MuJoCo's
    data by all its arrays.

    Raises:
        CannotBeSaved: For another object, or one that has such an object in an attribute named `env` or `envs`.
    """
    return _Taker().take(thing)


def give_state(thing: Any, state: Any) -> Any:
    """Give an object, made like the one it came from, the state that `take_state` returned. Arrays are overwritten in place.

    Returns:
        What takes its place: itself unless it is plain data.

    Raises:
        ValueError: If the state does not fit.
    """
    return _give(thing, state)


_NUMBERS = (type(None), bool, int, float, str, np.generic)
_NOT_PLAIN = object()
_GENERATOR, _TORCH_GENERATOR, _STATE_DICT, _ARRAYS, _ATTRIBUTES, _MET = (
    "$generator", "$torch_generator", "$state_dict", "$arrays", "$attributes", "$met"
)  # fmt: skip
# Attributes without which an environment's state would be taken as complete though it is not.
_INDISPENSABLE = ("env", "envs", "venv")


def _is_known(thing: Any) -> bool:
    module = type(thing).__module__
    return any(module == name or module.startswith(f"{name}.") for name in _KNOWN)


def _has_state_dict(thing: Any) -> bool:
    return callable(getattr(type(thing), "state_dict", None)) and callable(getattr(type(thing), "load_state_dict", None))


def _is_constant(thing: Any) -> bool:
    return dataclasses.is_dataclass(thing) and bool(cast(Any, thing).__dataclass_params__.frozen)


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


class _Taker:
    """Takes states. An object that was met before is not taken again, so that objects may refer to each other."""

    def __init__(self) -> None:
        self._met: dict[int, Any] = {}

    def take(self, thing: Any) -> Any:
        """State of a thing, or an error."""
        found = self._try(thing)
        if found is _NOT_PLAIN:
            raise CannotBeSaved(f"{_name(thing)} has no state_dict and load_state_dict")
        return found

    def _try(self, thing: Any) -> Any:
        if isinstance(thing, _NUMBERS):
            return thing
        if isinstance(thing, np.ndarray):
            return _NOT_PLAIN if thing.dtype == object else thing.copy()
        if isinstance(thing, th.Tensor):
            return thing.detach().clone()
        if type(thing) in (list, tuple, deque) or isinstance(thing, dict):
            return self._container(thing)
        if id(thing) in self._met:
            return {_MET: True}
        self._met[id(thing)] = thing  # kept, so that its id stays its own
        if isinstance(thing, np.random.Generator):
            return {_GENERATOR: dict(thing.bit_generator.state)}
        if isinstance(thing, th.Generator):
            return {_TORCH_GENERATOR: thing.get_state()}
        if _has_state_dict(thing):
            return {_STATE_DICT: self.take(thing.state_dict())}
        if type(thing).__name__ == "MjData":
            return {_ARRAYS: {name: array.copy() for name, array in _arrays_of(thing).items()} | {"time": thing.time}}
        if _is_known(thing) and hasattr(thing, "__dict__") and not _is_constant(thing):
            return {_ATTRIBUTES: self._attributes(thing)}
        return _NOT_PLAIN

    def _container(self, thing: Any) -> Any:
        if isinstance(thing, dict):
            pairs = {key: self._try(value) for key, value in thing.items()}
            return {key: value for key, value in pairs.items() if value is not _NOT_PLAIN}
        parts = [self._try(value) for value in thing]
        if any(part is _NOT_PLAIN for part in parts):
            return _NOT_PLAIN
        return deque(parts, thing.maxlen) if isinstance(thing, deque) else type(thing)(parts)

    def _attributes(self, thing: Any) -> dict[str, Any]:
        found = {}
        for name, value in vars(thing).items():
            if name in _SKIPPED:
                continue
            if name in _INDISPENSABLE and value is not None:
                found[name] = [self.take(part) for part in value] if isinstance(value, list) else self.take(value)
            elif (part := self._try(value)) is not _NOT_PLAIN:
                found[name] = part
        return found


def _give(present: Any, state: Any) -> Any:
    """Return what takes the place of a thing: itself in its new state where possible."""
    if isinstance(state, dict) and len(state) == 1 and (tag := next(iter(state))) in _GIVERS:
        return _GIVERS[tag](present, state[tag])
    if isinstance(state, np.ndarray) and isinstance(present, np.ndarray):
        if present.shape == state.shape and present.dtype == state.dtype and present.flags.writeable:
            np.copyto(present, state)
            return present
        return state.copy()
    if isinstance(state, th.Tensor) and isinstance(present, th.Tensor) and present.shape == state.shape:
        with th.no_grad():
            present.copy_(state)
        return present
    if isinstance(state, dict):
        old = present if isinstance(present, dict) else {}
        new = {key: _give(old.get(key), value) for key, value in state.items()}
        if isinstance(present, dict):
            present.update(new)
            return present
        return new
    if isinstance(state, (list, tuple, deque)):
        old_parts: list[Any] = list(present) if isinstance(present, (list, tuple, deque)) else []
        same = len(old_parts) == len(state)
        parts = [_give(old_parts[i] if same else None, value) for i, value in enumerate(state)]
        return deque(parts, state.maxlen) if isinstance(state, deque) else type(state)(parts)
    return state


def _give_generator(present: Any, state: Any) -> Any:
    if not isinstance(present, np.random.Generator):
        present = np.random.Generator(getattr(np.random, state["bit_generator"])())
    present.bit_generator.state = state
    return present


def _give_torch_generator(present: Any, state: Any) -> Any:
    present = th.Generator() if present is None else present
    present.set_state(state)
    return present


def _give_state_dict(present: Any, state: Any) -> Any:
    if not _has_state_dict(present):
        raise ValueError(f"a {_name(present)} takes no state, but the one that was saved had one.")
    present.load_state_dict(state)
    return present


def _give_arrays(present: Any, state: Any) -> Any:
    for name, array in _arrays_of(present).items():
        if name in state and array.shape == np.shape(state[name]) and array.size:
            array[...] = state[name]
    present.time = state["time"]
    return present


def _give_attributes(present: Any, state: Any) -> Any:
    for name, value in state.items():
        old = vars(present).get(name)
        new = _give(old, value)
        if new is not old:
            setattr(present, name, new)
    return present


def _arrays_of(data: Any) -> dict[str, np.ndarray[Any, Any]]:
    """All arrays of MuJoCo's data that can be written.

    Its integration state would not do: rewards read positions of bodies of the last step, which it does not hold.
    """
    found = {}
    for name in dir(data):
        if not name.startswith("_") and isinstance(array := getattr(data, name, None), np.ndarray) and array.flags.writeable:
            found[name] = array
    return found


_GIVERS: dict[str, Callable[[Any, Any], Any]] = {
    _GENERATOR: _give_generator,
    _TORCH_GENERATOR: _give_torch_generator,
    _STATE_DICT: _give_state_dict,
    _ARRAYS: _give_arrays,
    _ATTRIBUTES: _give_attributes,
    _MET: lambda present, state: present,
}
