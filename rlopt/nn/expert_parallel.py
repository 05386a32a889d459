"""Expert parallelism: the experts of a mixture live on several processes, and tokens travel to them.

Process r of W owns experts r e / W to (r + 1) e / W - 1. Rows that a router assigned go to the owners of their experts by an
all-to-all, are computed there, and come back by another. Routers, gates and everything else of the network are on all processes.

Gradients are those of a loss that is the mean over processes of what each computes from its own samples. For weights that all
processes have, their mean is to be taken, which `DistributedDataParallel` does. The owner of an expert already has the sum over the
samples of all processes from the exchange; it is divided by W there, so that every gradient is that of one process which has
all samples. With weights that count samples differently the same holds for the weighted mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from rlopt.nn.assignment import RouterStats
from rlopt.nn.experts import Experts
from rlopt.nn.moe import MoE
from rlopt.nn.routing import ExpertChoice
from rlopt.nn.soft_moe import SoftMoE

Group = dist.ProcessGroup | None


def shard_experts(model: nn.Module, group: Group = None) -> nn.Module:
    """Share the experts of all `MoE` and `SoftMoE` layers of a network out over processes, in place.

    Call it before the optimizer is made, with the same weights on all processes. Without a process group, or with one process,
    nothing changes. Afterwards `state_dict` has the own experts only; see `gather_state_dict`. Balance losses are shared as well,
    see `share_balance`, and `DistributedDataParallel(model)` leaves the experts out of its averages. If you wrap the model into
    another before that, set its `_ddp_params_and_buffers_to_ignore` to the names of `expert_parameters`.

    In training mode, layers whose numbers of rows follow from shapes alone (`ExpertChoice`, `SoftMoE`) exchange no sizes: all
    processes must then have batches of one shape. In evaluation mode, and with `TokenChoice`, they may differ. All processes must
    call a layer equally often, backward passes included. With `group="batch"` the tokens of one process compete for experts.

    Args:
        model: Holds the layers.
        group: Of W processes; None: the default group.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such layer, or W does not divide its number of experts.

    References: Lepikhin et al., GShard, ICLR 2021, arXiv 2006.16668.

    Example:
        >>> from rlopt.nn import TokenChoice
        >>> layer = shard_experts(MoE(8, 16, num_experts=4, router=TokenChoice()))  # one process: as it was
        >>> layer(torch.ones(1, 3, 8)).y.shape
        torch.Size([1, 3, 8])
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, (MoE, SoftMoE))]
    if not layers:
        raise ValueError("model must hold a MoE or SoftMoE layer for expert parallelism, got none.")
    size = world_size(group)
    for name, layer in layers:
        if layer.num_experts % size:
            raise ValueError(
                f"num_experts must be divisible by the number of processes, got {layer.num_experts} experts "
                f"({name or 'of the layer'}) and {size} processes."
            )
    if size == 1:
        return model
    for _, layer in layers:
        if not isinstance(layer.experts, ParallelExperts):
            static = isinstance(layer, SoftMoE) or isinstance(layer.router, ExpertChoice)
            layer.experts = ParallelExperts(layer.experts, group, static=static)
    share_balance(model, group)
    model._ddp_params_and_buffers_to_ignore = [name for name, _ in expert_parameters(model)]  # type: ignore[assignment]
    return model


def share_balance(model: nn.Module, group: Group = None) -> None:
    """Let the balance losses of all `MoE` layers be those of the tokens of all processes, in training mode.

    These losses are no means over tokens: they multiply a share f_i of tokens with a mean probability P_i, or square the latter.
    Here both are means over the tokens of all processes, in the value; the gradient goes to the own tokens. With equally many
    valid tokens per sample the mean of gradients over processes is that of one process with all samples. "router_z" is a mean over
    tokens and needs nothing. Costs one or two all-reduces of e + 1 numbers per layer.

    Args:
        model: Holds the layers; may hold none.
        group: Of processes; None: the default group. One process: nothing changes.
    """
    if world_size(group) > 1:
        for layer in model.modules():
            if isinstance(layer, MoE):
                layer.across = MeanOverProcesses(group)


def expert_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters of experts that belong to this process alone; none without expert parallelism."""
    for prefix, module in model.named_modules():
        if isinstance(module, ParallelExperts):
            for name, param in module.named_parameters():
                yield f"{prefix}.{name}" if prefix else name, param


def total_grad_norm(model: nn.Module, group: Group = None) -> Tensor:
    """Norm of the gradient of all parameters, the experts of other processes included: the same number on all of them.

    |g|^2 = |g_shared|^2 + sum over processes of |g_own experts|^2. Gradients of shared parameters must have been averaged.

    Args:
        model: With gradients in `grad`.
        group: Of processes; None: the default group.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> total_grad_norm(layer).item()
        5.0
    """
    own = {id(param) for _, param in expert_parameters(model)}
    params = [param for param in model.parameters() if param.grad is not None]
    shared = get_total_norm([cast(Tensor, param.grad) for param in params if id(param) not in own])
    if not own or world_size(group) == 1:
        return shared
    squared = get_total_norm([cast(Tensor, param.grad) for param in params if id(param) in own]).square()
    dist.all_reduce(squared, group=group)
    return (shared.to(squared.device).square() + squared).sqrt()


def clip_grad_norm(model: nn.Module, max_norm: float, group: Group = None) -> Tensor:
    """Scale gradients so that `total_grad_norm` is at most `max_norm`; returns the norm before.

    Args:
        model: With gradients in `grad`.
        max_norm: > 0.
        group: Of processes; None: the default group.

    Raises:
        ValueError: If `max_norm` is not > 0.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm must be > 0, got {max_norm}.")
    norm = total_grad_norm(model, group)
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def gather_state_dict(model: nn.Module, group: Group = None) -> dict[str, Any]:
    """`state_dict` with all experts, as that of the network before `shard_experts`; all processes must call it.

    Args:
        model: The network.
        group: Of processes; None: the default group.
    """
    state = dict(model.state_dict())
    for name, param in expert_parameters(model):
        parts = [torch.empty_like(param) for _ in range(world_size(group))]
        dist.all_gather(parts, param.detach().contiguous(), group=group)
        state[name] = torch.cat(parts)
    return state


def load_gathered_state_dict(model: nn.Module, state: Mapping[str, Any], group: Group = None) -> None:
    """Load a `state_dict` with all experts; each process takes its own, however many processes saved it.

    Args:
        model: The network.
        state: From `gather_state_dict`, or from a network without expert parallelism.
        group: Of processes; None: the default group.
    """
    own = dict(state)
    for name, _ in expert_parameters(model):
        own[name] = state[name].tensor_split(world_size(group))[dist.get_rank(group)]
    model.load_state_dict(own)


def sync_stats(stats: RouterStats, group: Group = None) -> RouterStats:
    """Statistics of a router over the tokens of all processes; all processes must call it.

    Counts are added; means are weighted with the numbers of valid tokens. `dropped_fraction` counts choices of token choice, and is
    exact if tokens of all processes make equally many.

    Args:
        stats: Of the own tokens.
        group: Of processes; None: the default group. One process: returned as they are.
    """
    if world_size(group) == 1:
        return stats
    num_experts = len(stats.load)
    counts = torch.cat([stats.load, stats.experts_per_token])
    num_tokens = stats.experts_per_token.sum()
    scalars = torch.stack([stats.dropped_fraction, stats.router_entropy, stats.max_prob_mean])
    means = MeanOverProcesses(group)(torch.cat([stats.importance, scalars.to(stats.importance.dtype)]), num_tokens)
    dist.all_reduce(counts, group=group)
    capacity = torch.tensor(stats.capacity, device=counts.device)
    dist.all_reduce(capacity, op=dist.ReduceOp.MAX, group=group)
    dropped, entropy, max_prob = means[num_experts:].unbind()
    return RouterStats(
        load=counts[:num_experts],
        importance=means[:num_experts],
        experts_per_token=counts[num_experts:],
        dropped_fraction=dropped,
        router_entropy=entropy,
        max_prob_mean=max_prob,
        capacity=int(capacity),
    )


class MeanOverProcesses:
    """Mean over the tokens of all processes, of which each knows the mean of its own; the gradient goes to the own tokens.

    Args:
        group: Of processes; None: the default group.
    """

    def __init__(self, group: Group = None) -> None:
        self._group = group

    def __call__(self, mean: Tensor, num_tokens: Tensor | int) -> Tensor:
        """The mean of all.

        Args:
            mean: (n,), over `num_tokens` tokens.
            num_tokens: Own tokens, >= 0; processes may differ.
        """
        own = torch.as_tensor(num_tokens, dtype=mean.dtype, device=mean.device)
        total = torch.cat([mean.detach() * own, own.view(1)])
        dist.all_reduce(total, group=self._group)
        return mean + (total[:-1] / total[-1].clamp_min(1) - mean.detach())


class ParallelExperts(Experts):
    """The experts of one process, in the place of `Experts`; `forward` takes and returns the rows of all experts.

    Rows go to the owners of their experts and come back: `forward` maps (rows, width), sorted by expert, to the same, as `Experts`
    does. The parameters are those of the own experts, (e / W, ...).

    Args:
        experts: All experts, the same ones on all processes.
        group: Of W processes; None: the default group.
        static: Whether, in training mode, all processes have equally many rows for each expert, so that no sizes are exchanged.

    Attributes:
        num_experts: Own experts, e / W.
        static: As given.
    """

    def __init__(self, experts: Experts, group: Group = None, *, static: bool = False) -> None:
        nn.Module.__init__(self)
        self._group, self.static, self._num_processes = group, static, dist.get_world_size(group)
        rank = dist.get_rank(group)
        self.num_experts = experts.num_experts // self._num_processes
        self.width, self.hidden_width, self.activation = experts.width, experts.hidden_width, experts.activation
        first = rank * self.num_experts
        for name in ("w_in", "w_out", "b_in", "b_out"):
            whole: nn.Parameter | None = getattr(experts, name)
            own = (
                None
                if whole is None
                else nn.Parameter(whole.detach()[first : first + self.num_experts].clone(), whole.requires_grad)
            )
            self.register_parameter(name, own)

    def forward(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """Let the owners compute rows.

        Args:
            rows: (sum of sizes, width); first the rows of expert 0 of all e, and so on.
            sizes: Rows of each of the e experts, >= 0.

        Returns:
            (sum of sizes, width), in the same order.
        """
        num, num_own = self._num_processes, self.num_experts
        send = [sum(sizes[first : first + num_own]) for first in range(0, num * num_own, num_own)]
        if self.static and self.training:
            received = torch.tensor([list(sizes[:num_own])] * num)  # (W, e / W): equal for all, whatever the process
        else:
            received = self._exchange_sizes(sizes, rows.device)
        receive = received.sum(dim=1).tolist()
        arrived = exchange_rows(rows, send, receive, self._group, grad_scale=float(num))
        # Arrived rows are sorted by process, then by expert; experts want theirs together.
        expert = torch.arange(num_own).repeat(num).repeat_interleave(received.flatten())  # (rows,)
        order = torch.sort(expert, stable=True).indices.to(rows.device)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        computed = super().forward(arrived.index_select(0, order), received.sum(dim=0).tolist())
        return exchange_rows(computed.index_select(0, back), receive, send, self._group, grad_scale=1.0 / num)

    def _exchange_sizes(self, sizes: Sequence[int], device: torch.device) -> Tensor:
        """Rows (W, e / W) that come from each process for each own expert; on the CPU."""
        outgoing = torch.tensor(list(sizes), device=device)
        incoming = torch.empty_like(outgoing)
        dist.all_to_all_single(incoming, outgoing, group=self._group)
        return incoming.view(self._num_processes, self.num_experts).cpu()


def exchange_rows(
    rows: Tensor, send: Sequence[int], receive: Sequence[int], group: Group = None, *, grad_scale: float = 1.0
) -> Tensor:
    """Send consecutive rows to the processes of a group and return what comes from them, with gradient.

    The gradient travels back by the same exchange with `send` and `receive` swapped, times `grad_scale`. All processes must call
    it, and all must go backward through it or none.

    Args:
        rows: (sum of send, ...): first the rows for process 0, and so on.
        send: Rows for each process, >= 0.
        receive: Rows from each process, >= 0: what these send to this one.
        group: Of processes; None: the default group.
        grad_scale: Factor of the gradient.

    Returns:
        (sum of receive, ...): first the rows of process 0, and so on.
    """
    return cast(Tensor, _Exchange.apply(rows, list(send), list(receive), group, grad_scale))  # type: ignore[no-untyped-call]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], group: Group, grad_scale: float) -> Tensor:
        ctx.send, ctx.receive, ctx.group, ctx.grad_scale = send, receive, group, grad_scale
        return _all_to_all(rows, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        back = _all_to_all(grads[0], ctx.receive, ctx.send, ctx.group)
        return back * ctx.grad_scale, None, None, None, None


def _all_to_all(rows: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    return out


def world_size(group: Group = None) -> int:
    """Number of processes of a group, 1 without one."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1
