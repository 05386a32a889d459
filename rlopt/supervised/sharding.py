"""Networks on several processes: how they are spread out, which parameters are parts of a whole, and norms over all parts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from rlopt.nn.expert_parallel import ParallelExperts, expert_parameters, shard_experts, share_balance
from rlopt.optim import CombinedOptimizer, RMSpropTF
from rlopt.supervised.config import TrainerConfig
from rlopt.supervised.distributed import Processes

# Their step of a number depends on its own gradients only, so that parts of a tensor can be stepped by themselves.
_ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    RMSpropTF,
)


class Sharding:
    """Spreads a network over processes, in place, and knows what part of it is where.

    The weights of the first process are taken. With parallel "ddp", all processes have all parameters, but for experts with
    `expert_parallel`; with "fsdp" each has a part of each parameter: of those of every element of a `ModuleList` together, and of
    the rest.

    Args:
        model: On its device.
        config: How it is spread.
        processes: Over which.

    Attributes:
        needs_equal_shares: Whether all processes must have equally many rows of a batch.

    Raises:
        ValueError: For a network that cannot be spread like this.
    """

    def __init__(self, model: nn.Module, config: TrainerConfig, processes: Processes) -> None:
        self._processes, self._model, self._parallel = processes, model, config.parallel
        self._is_whole = processes.size == 1
        self._mesh: Any = None
        if not self._is_whole:
            processes.copy_from_first([*model.parameters(), *model.buffers()])
            processes.fork_generators(model)
            share_balance(model)
            if config.expert_parallel:
                shard_experts(model)
            if config.parallel == "fsdp":
                _fully_shard(model, torch.device(config.device).type)
        elif config.expert_parallel:
            shard_experts(model)  # one process: checks that there are experts
        self._experts = {id(param) for _, param in expert_parameters(model)}
        self.has_shards = bool(self._experts) or (not self._is_whole and config.parallel == "fsdp")
        self.needs_equal_shares = any(isinstance(m, ParallelExperts) and m.static for m in model.modules())
        if self.has_shards and config.precision == "float16":
            raise ValueError("precision must not be 'float16' if processes have parts of the parameters; take 'bfloat16'.")
        if not self._is_whole and config.compile:
            raise ValueError("compile must be False with several processes.")

    def forward(self) -> Callable[[Tensor], Any]:
        """What computes outputs in training, so that gradients are averaged."""
        if self._is_whole or self._parallel == "fsdp":
            return self._model
        device = next(self._model.parameters()).device
        # Also set by `shard_experts`, unless that was called on a part of the model.
        self._model._ddp_params_and_buffers_to_ignore = [name for name, _ in expert_parameters(self._model)]  # type: ignore[assignment]
        return DistributedDataParallel(self._model, device_ids=[device] if device.type == "cuda" else None)

    def check(self, optimizer: Optimizer) -> None:
        """Refuse optimizers that would step otherwise on parts of parameters than on the whole.

        Raises:
            ValueError: With the names of those that do not.
        """
        parts = optimizer.optimizers if type(optimizer) is CombinedOptimizer else (optimizer,)
        for part in parts:
            has_shards = any(self.is_shard(param) for group in part.param_groups for param in group["params"])
            if has_shards and type(part) not in _ELEMENTWISE:
                allowed = ", ".join(kind.__name__ for kind in _ELEMENTWISE)
                which = "parallel 'fsdp'" if self._parallel == "fsdp" else "expert_parallel, for the experts"
                raise ValueError(f"optimizer must be one of {allowed} with {which}, got {type(part).__name__}.")

    def is_shard(self, param: Tensor) -> bool:
        """Whether a parameter is a part of one that other processes have parts of."""
        return id(param) in self._experts or _is_dtensor(param)

    def whole_shape(self, param: Tensor) -> torch.Size:
        """Shape of the parameter of which this is a part."""
        if id(param) in self._experts:
            return torch.Size((param.shape[0] * self._processes.size, *param.shape[1:]))
        return param.shape

    def as_shard(self, tensor: Tensor, param: Tensor) -> Any:
        """A tensor like a sharded parameter, such as a moment of an optimizer, as a `DTensor` that knows its place in the whole."""
        if _is_dtensor(tensor):
            return tensor
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard

        if self._mesh is None:
            self._mesh = init_device_mesh(tensor.device.type, (self._processes.size,))
        return DTensor.from_local(tensor.detach(), self._mesh, [Shard(0)], run_check=False)

    def empty_shard(self, param: Tensor, dtype: torch.dtype) -> Any:
        """Room for the own part of a tensor like a sharded parameter, as a `DTensor`."""
        return self.as_shard(torch.empty_like(param, dtype=dtype).detach(), param)

    def from_shard(self, tensor: Any, param: Tensor) -> Tensor:
        """The inverse of `as_shard`."""
        return cast(Tensor, tensor if _is_dtensor(param) else tensor.to_local())

    def own_part(self, whole: Tensor, param: Tensor) -> Tensor:
        """The own part of a whole tensor like a sharded parameter."""
        if id(param) in self._experts:
            return whole.tensor_split(self._processes.size)[self._processes.rank]
        from torch.distributed.tensor import distribute_tensor

        # Everybody has the whole: nothing needs to be sent.
        return distribute_tensor(whole.to(param.device), param.device_mesh, param.placements, src_data_rank=None)  # type: ignore[attr-defined]

    def whole_state_dict(self) -> dict[str, Any]:
        """`state_dict` of the network with whole parameters; all processes must call it."""
        state = dict(self._model.state_dict())
        for name, param in self._model.named_parameters(remove_duplicate=False):
            if self.is_shard(param) and name in state:
                state[name] = self.as_shard(param.detach(), param).full_tensor()
        return state

    def total_norm(self, tensors: Sequence[Tensor], params: Sequence[Tensor]) -> Tensor:
        """Norm of tensors that are like parameters, over all parts of each.

        Args:
            tensors: Such as gradients.
            params: The parameter of each.
        """
        if not any(self.is_shard(param) for param in params):
            return get_total_norm(tensors)
        pairs = list(zip(tensors, params, strict=True))
        shared = get_total_norm([tensor for tensor, param in pairs if not self.is_shard(param)])
        squared = get_total_norm([local(tensor) for tensor, param in pairs if self.is_shard(param)]).square()
        return (shared.to(squared.device).square() + self._processes.sum(squared)).sqrt()

    def copy_buffers(self) -> None:
        """Give all processes the buffers of the first, such as running means, which each updates with its own samples."""
        self._processes.copy_from_first(self._model.buffers())


def local(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that this process has."""
    return cast(Tensor, tensor.to_local()) if _is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def without_averaging(forward: object) -> contextlib.AbstractContextManager[Any]:
    """Let gradients of all but the last part of a batch stay where they are; they are averaged with those of the last."""
    return forward.no_sync() if isinstance(forward, DistributedDataParallel) else contextlib.nullcontext()


def clip_(params: Iterable[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale gradients like `torch.nn.utils.clip_grads_with_norm_`, on the part that this process has."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    grads = [local(param.grad) for param in params if param.grad is not None]
    torch._foreach_mul_(grads, factor.to(grads[0].device))


def _fully_shard(model: nn.Module, device_type: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh  # slow to import, and only sharded runs need it
    from torch.distributed.fsdp import fully_shard

    for name, param in model.named_parameters():
        if param.ndim == 0:
            raise ValueError(f"parallel must not be 'fsdp' with parameters that are one number, such as {name!r}; take 'ddp'.")
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for module in reversed(list(model.modules())):  # the inner ones first
        if isinstance(module, nn.ModuleList):
            for part in module:
                if not isinstance(part, (nn.ModuleList, nn.ModuleDict)) and any(True for _ in part.parameters()):
                    fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _is_dtensor(tensor: Tensor) -> bool:
    # Not by `isinstance`: the import takes seconds, and without it there is no such tensor.
    return hasattr(tensor, "placements")
