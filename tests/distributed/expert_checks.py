"""What every process of a torchrun checks about expert parallelism; returns the largest deviations from one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlopt.nn import ExpertChoice, MoE, SoftMoE, TokenChoice
from rlopt.nn.expert_parallel import (
    clip_grad_norm,
    exchange_rows,
    expert_parameters,
    gather_state_dict,
    load_gathered_state_dict,
    shard_experts,
    sync_stats,
)

WIDTH, EXPERTS, LENGTH, ROWS = 6, 8, 5, 3  # rows: samples of one process
ROUTERS = {
    "top1": TokenChoice(top_k=1),
    "top2": TokenChoice(),
    "importance": TokenChoice(top_k=2, balance_loss="importance"),
    "all_choices_capacity": TokenChoice(top_k=2, balance_loss="all_choices", capacity_factor=0.8),
    "expert_choice": ExpertChoice(),
}
Numbers = dict[str, float]


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Stack(nn.Module):
    """A linear map, so that the inputs of the experts have a gradient, and the layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.entry = nn.Linear(WIDTH, WIDTH)
        self.layer = layer
        for seed, param in enumerate(self.entry.parameters()):
            param.data = 0.4 * randn(*param.shape, seed=seed)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Any:
        return self.layer(self.entry(x) + x, valid)


def make(name: str, *, bias: bool = True) -> Stack:
    if name == "soft":
        return Stack(SoftMoE(WIDTH, 7, EXPERTS, 2, bias=bias, seed=1))
    layer = MoE(WIDTH, 7, EXPERTS, ROUTERS[name], bias=bias, seed=1)
    layer.router_weight.data *= 30.0
    return Stack(layer)


def loss_of(out: Any, weights: Tensor) -> Tensor:
    """A mean over samples, and the losses of the router."""
    aux = out.aux_losses
    return (out.y * weights).sum() / len(weights) + 0.3 * aux.get("balance", 0.0) + 0.1 * aux.get("router_z", 0.0)


def share(whole: Tensor) -> Tensor:
    return whole.tensor_split(dist.get_world_size())[dist.get_rank()]


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return (found - expected).abs().max().item() if found.numel() else 0.0


def average_shared_gradients(model: nn.Module) -> None:
    own = {id(p) for _, p in expert_parameters(model)}
    for param in model.parameters():
        if id(param) not in own:
            dist.all_reduce(param.grad)
            param.grad /= dist.get_world_size()


def compare(name: str, *, starve: bool = False, ddp: bool = False, valid: Tensor | None = None) -> Numbers:
    size = dist.get_world_size()
    whole, parallel = make(name), make(name)
    x, weights = randn(size * ROWS, LENGTH, WIDTH, seed=2), randn(size * ROWS, LENGTH, WIDTH, seed=3)
    if starve:  # no token chooses the experts of the last process
        for model in (whole, parallel):
            model.entry.weight.data.zero_()
            model.entry.bias.data.fill_(1.0)
            model.layer.router_weight.data[:, -EXPERTS // size :] -= 20.0
        x = x.abs()
    shard_experts(parallel)
    whole_x, own_x = x.clone().requires_grad_(), share(x).clone().requires_grad_()
    expected = whole(whole_x, valid)
    coef = 1.0 if valid is None else 0.0  # samples with unequally many tokens: balance losses are not those of one process
    (loss_of(expected, weights) - (1.0 - coef) * (loss_of(expected, 0 * weights))).backward()
    forward = DistributedDataParallel(parallel) if ddp else parallel
    found = forward(own_x, None if valid is None else share(valid))
    (loss_of(found, share(weights)) - (1.0 - coef) * loss_of(found, 0 * share(weights))).backward()
    if not ddp:
        average_shared_gradients(parallel)
    numbers = {
        "y": difference(found.y, share(expected.y)),
        "x_grad": difference(own_x.grad / size, share(whole_x.grad)),
        "load_sum": difference(sync_stats(found.stats).load, expected.stats.load),
    }
    own = {id(p) for _, p in expert_parameters(parallel)}
    for (key, param), reference in zip(parallel.named_parameters(), whole.parameters(), strict=True):
        numbers[f"{key}.grad"] = difference(param.grad, share(reference.grad) if id(param) in own else reference.grad)
    if valid is None:
        losses = torch.stack([loss_of(found, share(weights)).detach()])
        dist.all_reduce(losses)
        numbers["loss"] = difference(losses[0] / size, loss_of(expected, weights).detach())
        for field in ("importance", "router_entropy", "max_prob_mean", "dropped_fraction", "experts_per_token"):
            synced, wanted = getattr(sync_stats(found.stats), field), getattr(expected.stats, field)
            numbers[f"stats.{field}"] = difference(synced.double(), wanted.double())
    assert found.stats.capacity == expected.stats.capacity
    if starve:
        assert expected.stats.load[-EXPERTS // size :].sum() == 0
        assert dist.get_rank() < size - 1 or all(p.grad.abs().sum() == 0 for _, p in expert_parameters(parallel))
    return numbers


def one_process_without_tokens() -> Numbers:
    valid = torch.ones(dist.get_world_size() * ROWS, LENGTH, dtype=torch.bool)
    valid[:ROWS] = False
    valid[-1, 2:] = False
    return compare("top2", valid=valid)


def clipping() -> Numbers:
    whole, parallel = make("top2"), shard_experts(make("top2"))
    x = randn(dist.get_world_size() * ROWS, LENGTH, WIDTH, seed=2)
    whole(x).y.square().sum().backward()
    for (_, param), reference in zip(parallel.named_parameters(), whole.parameters(), strict=True):
        param.grad = (share(reference.grad) if param.shape != reference.shape else reference.grad).clone()
    norm = clip_grad_norm(parallel, 0.1)
    expected = nn.utils.clip_grad_norm_(whole.parameters(), 0.1)
    numbers = {"norm": difference(norm, expected) / expected.item()}
    for (key, param), reference in zip(parallel.named_parameters(), whole.parameters(), strict=True):
        wanted = share(reference.grad) if param.shape != reference.shape else reference.grad
        numbers[key] = difference(param.grad, wanted)
    return numbers


def exchange_jacobian() -> Numbers:
    """Derivative of everything that arrives with respect to everything that is sent, by backward passes and by differences."""
    size, rank = dist.get_world_size(), dist.get_rank()
    counts = torch.tensor([[(2 * i + j) % 3 for j in range(size)] for i in range(size)])  # rows from i to j, zeros among them
    send, receive = counts[rank].tolist(), counts[:, rank].tolist()
    rows = randn(sum(send), 2, seed=rank, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        return exchange_rows(torch.sin(x) * x, send, receive, grad_scale=1.0)

    analytic, numeric = [], []
    for process in range(size):
        for k in range(int(counts[:, process].sum()) * 2):  # backward from one number that arrives at `process`
            x = rows.clone().requires_grad_()
            out = run(x)
            seed = torch.zeros_like(out)
            if process == rank:
                seed.view(-1)[k] = 1.0
            out.backward(seed)
            analytic.append(everywhere(x.grad))
        for k in range(int(counts[process].sum()) * 2):  # difference in one number that `process` sends
            step = torch.zeros_like(rows)
            if process == rank:
                step.view(-1)[k] = 1e-6
            numeric.append(everywhere((run(rows + step) - run(rows - step)) / 2e-6))
    jacobian = torch.stack(numeric).T  # (arriving, sent)
    assert jacobian.abs().sum() > 1.0
    x = rows.clone().requires_grad_()
    scaled = exchange_rows(x, send, receive, grad_scale=0.5)
    scaled.backward(torch.ones_like(scaled))
    return {"jacobian": difference(torch.stack(analytic), jacobian), "scale": difference(x.grad, torch.full_like(x, 0.5))}


def everywhere(own: Tensor) -> Tensor:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own.flatten())
    return torch.cat(parts)


def half_precision() -> Numbers:
    whole, parallel = make("top2"), shard_experts(make("top2"))
    x = randn(dist.get_world_size() * ROWS, LENGTH, WIDTH, seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = parallel(share(x)).y, whole(x).y
    assert y.dtype == expected.dtype
    y.float().sum().backward()
    return {"y": difference(y.float(), share(expected.float()))}


def different_lengths_in_evaluation() -> Numbers:
    """Without sizes from each other, processes with batches of other shapes could not understand each other."""
    whole, parallel = make("expert_choice").eval(), shard_experts(make("expert_choice")).eval()
    x = randn(dist.get_rank() + 1, LENGTH - dist.get_rank(), WIDTH, seed=dist.get_rank())
    with torch.no_grad():
        return {"y": difference(parallel(x).y, whole(x).y)}


def wrong_number_of_experts() -> Numbers:
    with pytest.raises(ValueError, match="num_experts must be divisible by the number of processes, got 3 experts"):
        shard_experts(MoE(WIDTH, 7, 3, TokenChoice()))
    with pytest.raises(ValueError, match="must hold a MoE"):
        shard_experts(nn.Linear(2, 2))
    return {}


def reshard(folder: Path) -> Numbers:
    """Take over what another number of processes saved, or a first network, and save it."""
    x = randn(4, LENGTH, WIDTH, seed=9)
    first = make("top2")
    with torch.no_grad():
        for seed, param in enumerate(first.parameters()):
            param.add_(0.1 * randn(*param.shape, seed=seed + 50))
    expected = first(x).y
    parallel = shard_experts(make("top2"))
    saved = folder / "gathered.pt"
    load_gathered_state_dict(parallel, torch.load(saved, weights_only=True) if saved.exists() else first.state_dict())
    dist.barrier()
    state = gather_state_dict(parallel)
    if dist.get_rank() == 0:
        torch.save(state, saved)
    return {"y": difference(parallel(share(x)).y, share(expected))}


def copies() -> Numbers:
    """A deep copy, such as a target network, computes the same."""
    parallel = shard_experts(make("top2"))
    x = randn(ROWS, LENGTH, WIDTH, seed=dist.get_rank())
    return {"y": difference(copy.deepcopy(parallel)(x).y, parallel(x).y)}


def checks(folder: Path) -> Iterator[tuple[str, Callable[[], Numbers]]]:
    for name in [*ROUTERS, "soft"]:
        yield f"equal/{name}", lambda name=name: compare(name)
    yield "equal/top1_starved", lambda: compare("top1", starve=True)
    yield "equal/top2_starved", lambda: compare("top2", starve=True)
    yield "equal/top2_ddp", lambda: compare("top2", ddp=True)
    yield "equal/top1_starved_ddp", lambda: compare("top1", starve=True, ddp=True)
    yield "equal/no_tokens", one_process_without_tokens
    yield "equal/clipping", clipping
    yield "equal/different_lengths", different_lengths_in_evaluation
    yield "equal/copies", copies
    yield "equal/reshard", lambda: reshard(folder)
    yield "half_precision", half_precision
    yield "wrong_number", wrong_number_of_experts
    yield "jacobian", exchange_jacobian
