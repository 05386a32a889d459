"""Parts of tensors that processes have, written together by `torch.distributed.checkpoint` and read by any number of processes."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from rlopt.supervised.sharding import Sharding

_FOLDER = "shards"  # in that of a checkpoint
# What the description of shards is made of; nothing else is unpickled, so that reading a file runs no code.
_ALLOWED = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties", "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}  # fmt: skip
_DTYPES = {name for name in dir(torch) if isinstance(getattr(torch, name), torch.dtype)}


def split(
    tensors: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, sharding: Sharding
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the state of a run into what all processes have and what each has a part of.

    Args:
        tensors: With "model", "optimizer" and "best", the states of these.
        model: Spread over processes.
        optimizer: Of its parameters.
        sharding: Knows how.

    Returns:
        The state without shards, in the same form; shards by their path in it, as `DTensor`.
    """
    shards: dict[str, Any] = {}
    rest: dict[str, Any] = {name: dict(state) for name, state in tensors.items()}
    if rest["best"]:
        rest["best"]["weights"] = None if rest["best"]["weights"] is None else dict(rest["best"]["weights"])
    rest["optimizer"]["state"] = {index: dict(state) for index, state in rest["optimizer"]["state"].items()}
    for place, entries, name, param in _places(rest, model, optimizer, sharding):
        value = entries.get(name)
        if isinstance(value, Tensor) and value.shape == param.shape:
            shards[f"{place}/{name}"] = sharding.as_shard(entries.pop(name), param)
    return rest, shards


def merge(rest: dict[str, Any], folder: Path, model: nn.Module, optimizer: Optimizer, sharding: Sharding) -> dict[str, Any]:
    """The inverse of `split`, for processes that may be others than those that saved.

    Args:
        rest: The state, without shards, or whole.
        folder: Of the checkpoint, which may hold no shards.
        model: The network that goes on.
        optimizer: Of its parameters.
        sharding: Of these.

    Returns:
        The state with what belongs to this process.
    """
    folder = folder / _FOLDER
    stored = _read_description(folder).state_dict_metadata if folder.exists() else {}
    params = _ParamOf(model, optimizer)
    room: dict[str, Any] = {}
    for path, description in stored.items():
        param = params.at(path)
        if sharding.is_shard(param):
            room[path] = sharding.empty_shard(param, description.properties.dtype)
        else:
            room[path] = torch.empty(description.size, dtype=description.properties.dtype)
    if room:
        _load(room, folder)
    for path, value in room.items():
        param = params.at(path)
        *outer, name = _keys(path)
        entries = rest
        for key in outer:
            entries = entries.setdefault(key, {})
        entries[name] = sharding.from_shard(value, param) if sharding.is_shard(param) else value
    for place, entries, name, param in _places(rest, model, optimizer, sharding):
        value = entries.get(name)
        if f"{place}/{name}" not in room and isinstance(value, Tensor) and value.shape == sharding.whole_shape(param):
            entries[name] = sharding.own_part(value, param)
    return rest


def save_shards(shards: Mapping[str, Any], folder: Path) -> None:
    """Write shards into the folder of a checkpoint; all processes call it."""
    from torch.distributed.checkpoint.filesystem import FileSystemWriter  # slow to import, and only sharded runs need it
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(shards), storage_writer=FileSystemWriter(str(folder / _FOLDER)))


def _load(room: dict[str, Any], folder: Path) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    class Reader(FileSystemReader):
        """Reads the description without running what it may hold."""

        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            return _read_description(folder)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as it should be for one process
            load(room, storage_reader=Reader(str(folder)), no_dist=not dist.is_initialized())
    except CheckpointException as error:
        reasons = {str(failure[0]) for failure in error.failures.values()}
        raise ValueError(f"{folder} must hold all shards of a checkpoint, got: {'; '.join(sorted(reasons))}") from None


def _read_description(folder: Path) -> Any:
    try:
        with (folder / ".metadata").open("rb") as file:
            description = _Unpickler(file).load()
        if not hasattr(description, "state_dict_metadata"):
            raise TypeError(f"a {type(description).__name__} is no description")
        return description
    except Exception as error:  # what a damaged file leads to has many types
        raise ValueError(
            f"{folder} must hold shards of a checkpoint and their .metadata, got {type(error).__name__}: {error}"
        ) from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)

    def find_class(self, module: str, name: str) -> Any:
        if name in _ALLOWED.get(module, ()) or (module == "torch" and name in _DTYPES):
            return super().find_class(module, name)
        if module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # where the checkpoint was written; without effect
        raise pickle.UnpicklingError(f"{module}.{name} has no place in the description of a checkpoint")


class _ParamOf:
    """The parameter that a path in the state of a run belongs to."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._named = dict(model.named_parameters(remove_duplicate=False))
        self._numbered = dict(enumerate(param for group in optimizer.param_groups for param in group["params"]))

    def at(self, path: str) -> nn.Parameter:
        keys = _keys(path)
        return cast(nn.Parameter, self._numbered[keys[2]] if keys[0] == "optimizer" else self._named[keys[-1]])


def _keys(path: str) -> list[Any]:
    """Keys on the way into the state: names, and the number of a parameter of the optimizer."""
    keys: list[Any] = path.split("/")
    if keys[0] == "optimizer":
        keys[2] = int(keys[2])
    return keys


def _places(
    state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer, sharding: Sharding
) -> Iterator[tuple[str, dict[str, Any], str, nn.Parameter]]:
    """Where tensors like sharded parameters may be: path, dictionary, key in it, and the parameter."""
    named: Iterable[tuple[str, nn.Parameter]] = [
        (name, param) for name, param in model.named_parameters(remove_duplicate=False) if sharding.is_shard(param)
    ]
    for name, param in named:
        yield "model", state["model"], name, param
        if state["best"] and state["best"]["weights"] is not None:
            yield "best/weights", state["best"]["weights"], name, param
    for index, param in enumerate(param for group in optimizer.param_groups for param in group["params"]):
        if sharding.is_shard(param):
            for key in list(state["optimizer"]["state"].get(index, {})):
                yield f"optimizer/state/{index}", state["optimizer"]["state"][index], key, param
