"""Tree attention by sorting: each query reads only the keys of its node. Nodes are constants here, they get no gradient.

Batch and heads are one dimension G. When keys are sorted by node, and by position within a node, those of a node are one range, and
so are those of its past.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rlopt.nn._tree_dense import masked_softmax

SCORES_AT_ONCE = 1 << 20  # bounds the memory: about as many scores are held at a time


class SortedKeys(NamedTuple):
    """Keys of all groups, sorted by group, node and rank. Places count over all (G * S) keys."""

    number: Tensor  # (G * S,): node * S + rank, ascending
    place: Tensor  # (G * S,): of the keys


class Routes(NamedTuple):
    """Where the keys of queries lie, for the n queries that read from one level. Places count over all (G * L) queries."""

    keys: SortedKeys
    query: Tensor  # (n,): places, by node and then by position
    node: Tensor  # (n,)
    start: Tensor  # (n,): first sorted key that a query reads
    end: Tensor  # (n,): behind the last; within a node, starts and ends do not fall
    itself: Tensor  # (n,): whether it reads its own key in addition, which lies in another node


def sort_keys(node: Tensor, num_nodes: int, *, valid: Tensor, rank: Tensor | None = None) -> SortedKeys:
    """Sort keys by node.

    Args:
        node: (G, S) integers in [0, num_nodes). Over all groups, node i of group g counts as g * (num_nodes + 1) + i.
        num_nodes: Of the level.
        valid: (G, S); other keys are sorted into a node of their own, num_nodes.
        rank: (G, S), a permutation: order within a node; None: by position.
    """
    num_groups, num_keys = node.shape
    group = torch.arange(num_groups, device=node.device).unsqueeze(-1)
    rank = torch.arange(num_keys, device=node.device) if rank is None else rank
    node = torch.where(valid, node, num_nodes) + group * (num_nodes + 1)
    number, order = (node * num_keys + rank).sort(dim=-1)
    return SortedKeys(number.flatten(), (order + group * num_keys).flatten())


def find_ranges(keys: SortedKeys, node: Tensor, last: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    """Start and end of the sorted keys of nodes with rank <= last; all of one shape."""
    first = node * num_keys
    return torch.searchsorted(keys.number, first), torch.searchsorted(keys.number, first + last, right=True)


def find_routes(
    leaf_query: Tensor, leaf_key: Tensor, height: int, *, valid: Tensor, causal: bool, cap: int | None, rank: Tensor | None
) -> Iterator[Routes]:
    """From the leaves upwards, give every query the first node on its way that holds a visible key; `cap` limits its range.

    Args:
        leaf_query: (G, L).
        leaf_key: (G, S).
        height: Of the tree.
        valid: (G, S).
        causal: Whether query i sees keys j <= i only, and always itself.
        cap: Most keys that a query reads; None: all.
        rank: (G, S), a permutation: which keys stay under a cap, the first ones; None: the last ones by position.

    Yields:
        For every level at which there were queries left, from `height` to 0.
    """
    num_queries, num_keys = leaf_query.shape[-1], leaf_key.shape[-1]
    waiting = torch.arange(leaf_query.numel(), device=leaf_query.device)  # places of queries that have found no key yet
    for up in range(height + 1):
        num_nodes = 2 ** (height - up)
        keys = sort_keys(leaf_key >> up, num_nodes, valid=valid, rank=rank)
        group, position = waiting // num_queries, waiting % num_queries
        node = take_rows(leaf_query.flatten(), waiting) >> up
        if causal:
            last = position.clamp(max=num_keys - 1)
            own_place = group * num_keys + last
            itself = (node != take_rows(leaf_key.flatten(), own_place) >> up) & take_rows(valid.flatten(), own_place)
            itself &= position < num_keys
        else:
            last, itself = torch.full_like(position, num_keys - 1), torch.zeros_like(node, dtype=torch.bool)
        node = node + group * (num_nodes + 1)
        start, end = find_ranges(keys, node, last, num_keys)
        reads = end > start
        if cap is not None and rank is None:
            start = torch.maximum(start, end - cap)
        elif cap is not None:
            end = torch.minimum(end, start + cap)
        found = reads.nonzero().squeeze(-1)
        found = take_rows(found, take_rows(node, found).argsort(stable=True))
        yield Routes(keys, *(take_rows(x, found) for x in (waiting, node, start, end, itself)))
        waiting = take_rows(waiting, (~reads).nonzero().squeeze(-1))
        if not len(waiting):
            return


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index], which is faster so: (n, ...) and (m, ...) to (m, ..., ...)."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])


def cut_tiles(node: Tensor, tile_size: int) -> tuple[Tensor, Tensor]:
    """Cut a sorted list of nodes into tiles of at most `tile_size` neighbours with the same node.

    Args:
        node: (n,) sorted integers.
        tile_size: Most members of a tile.

    Returns:
        Places in the list (T, tile_size), the last one repeated where a tile is not full; and True for real ones, likewise.

    Example:
        >>> cut_tiles(torch.tensor([3, 3, 3, 5]), 2)[0].tolist()
        [[0, 1], [2, 2], [3, 3]]
    """
    place = torch.arange(len(node), device=node.device)
    _, which, count = torch.unique_consecutive(node, return_inverse=True, return_counts=True)
    in_node = place - (count.cumsum(0) - count)[which]
    begins = (in_node % tile_size == 0).nonzero().squeeze(-1)  # (T,)
    size = torch.diff(begins, append=begins.new_tensor([len(node)])).unsqueeze(-1)
    offset = torch.arange(tile_size, device=node.device)
    return begins.unsqueeze(-1) + torch.minimum(offset, size - 1), offset < size


def attend_routes(
    query: Tensor, key: Tensor, value: Tensor, routes: Routes, *, tile_size: int, scale: float
) -> Iterator[tuple[Tensor, ...]]:
    """Softmax attention over their ranges, of the queries that read from one level.

    Queries are gathered in tiles of one node, tiles are gathered by the length of the range that they cover, and each group is a
    batched matrix product.

    Args:
        query: (G * L, D).
        key: (G * S, D).
        value: (G * S, Dv).
        routes: Of one level.
        tile_size: Queries in a tile.
        scale: Of the scores.

    Yields:
        For some of the queries: their places in `routes`, outputs (n, Dv), and logarithms of the sums of numerators (n, 1).
    """
    query, key, value = take_rows(query, routes.query), take_rows(key, routes.keys.place), take_rows(value, routes.keys.place)
    members, filled = cut_tiles(routes.node, tile_size)  # (T, tile_size)
    start, end = take_rows(routes.start, members), take_rows(routes.end, members)  # (T, tile_size)
    width = end[:, -1] - start[:, 0]
    # Four sizes per factor of two: few groups, and little that is computed in vain.
    step = torch.where(width > 64, 2 ** (width.float().log2().floor() - 2).long(), 8)
    width = (width + step - 1) // step * step
    for num_read in torch.unique(width).tolist():
        for tiles in (width == num_read).nonzero().squeeze(-1).split(max(1, SCORES_AT_ONCE // (tile_size * num_read))):
            place = start[tiles, :1] + torch.arange(num_read, device=query.device)  # (t, num_read)
            read = place.clamp(max=len(key) - 1)
            scores = scale * take_rows(query, members[tiles]) @ take_rows(key, read).transpose(-2, -1)  # (t, tile_size, num_read)
            place = place.unsqueeze(1)
            outside = (place < start[tiles].unsqueeze(-1)) | (place >= end[tiles].unsqueeze(-1))
            scores = scores.masked_fill(outside, float("-inf"))
            largest = scores.amax(dim=-1, keepdim=True)
            numerators = (scores - largest).exp()
            total = numerators.sum(dim=-1, keepdim=True)
            out = numerators @ take_rows(value, read) / total  # (t, tile_size, Dv)
            real = filled[tiles].flatten().nonzero().squeeze(-1)
            yield tuple(take_rows(x.flatten(0, 1), real) for x in (members[tiles], out, largest + total.log()))


def attend_leaf(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    leaf_query: Tensor,
    leaf_key: Tensor,
    height: int,
    *,
    valid: Tensor,
    causal: bool,
    cap: int | None,
    rank: Tensor | None,
    scale: float,
) -> Tensor:
    """Softmax attention over the keys in the leaf, as `find_routes` says; a query without any gives zeros.

    Args:
        query: (G, L, D).
        key: (G, S, D).
        value: (G, S, Dv).
        leaf_query: (G, L).
        leaf_key: (G, S).
        height: Of the tree.
        valid: (G, S).
        causal: See `find_routes`.
        cap: See `find_routes`.
        rank: See `find_routes`.
        scale: Of the scores.

    Returns:
        (G, L, Dv).
    """
    num_queries, num_keys = leaf_query.shape[-1], leaf_key.shape[-1]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # (G, L, D) -> (G * L, D)
    tile_size = min(32, max(8, 1 << (num_queries >> height).bit_length()))
    result = value.new_zeros(leaf_query.numel(), value.shape[-1])
    for routes in find_routes(leaf_query, leaf_key, height, valid=valid, causal=causal, cap=cap, rank=rank):
        parts = list(attend_routes(query, key, value, routes, tile_size=tile_size, scale=scale))
        if not parts:
            continue
        which, output, log = (torch.cat(part) for part in zip(*parts, strict=True))
        place = take_rows(routes.query, which)
        if causal:
            chosen = take_rows(routes.itself, which).nonzero().squeeze(-1)
            of_query = take_rows(place, chosen)
            of_key = of_query // num_queries * num_keys + of_query % num_queries
            own_score = scale * (take_rows(query, of_query) * take_rows(key, of_key)).sum(dim=-1, keepdim=True)
            share = torch.sigmoid(own_score - take_rows(log, chosen))  # of the own key, among all that are read
            output = output.index_copy(0, chosen, torch.lerp(take_rows(output, chosen), take_rows(value, of_key), share))
        result = result.index_copy(0, place, output)
    return result.view(*leaf_query.shape, -1)


def attend_path(
    value: Tensor, leaf_query: Tensor, leaf_key: Tensor, height: int, *, valid: Tensor, causal: bool, logits: Tensor
) -> Tensor:
    """Weighted sum over levels of the mean of the values that share the query's node.

    Args:
        value: (G, S, Dv).
        leaf_query: (G, L).
        leaf_key: (G, S).
        height: Of the tree.
        valid: (G, S).
        causal: Whether query i counts keys j <= i only.
        logits: (G, height + 1), of the weights of levels.

    Returns:
        (G, L, Dv).
    """
    value = torch.where(valid.unsqueeze(-1), value, 0.0)
    if causal:
        return _past_means(value, leaf_query, leaf_key, height, valid=valid, logits=logits)
    num_groups, _, value_dim = value.shape
    place = leaf_key + (torch.arange(num_groups, device=value.device).unsqueeze(-1) << height)  # (G, S)
    size = num_groups << height
    sums = value.new_zeros(size, value_dim).index_add(0, place.flatten(), value.flatten(0, 1)).view(num_groups, -1, value_dim)
    counts = value.new_zeros(size).index_add(0, place.flatten(), valid.flatten().to(value.dtype)).view(num_groups, -1)
    means, occupied = [], []
    for level in range(height, -1, -1):
        below = 2 ** (height - level)  # leaves of a node
        means.append((sums / counts.clamp(min=1.0).unsqueeze(-1)).repeat_interleave(below, dim=1))  # (G, 2^height, Dv)
        occupied.append((counts > 0).repeat_interleave(below, dim=1))
        if level:
            sums, counts = sums[:, ::2] + sums[:, 1::2], counts[:, ::2] + counts[:, 1::2]
    alpha = masked_softmax(logits.unsqueeze(1), torch.stack(occupied[::-1], dim=-1))  # (G, 2^height, height + 1)
    of_leaf = torch.stack(means[::-1], dim=-1) @ alpha.unsqueeze(-1)  # (G, 2^height, Dv, 1)
    return of_leaf.squeeze(-1).gather(1, leaf_query.unsqueeze(-1).expand(-1, -1, value_dim))


def _past_means(value: Tensor, leaf_query: Tensor, leaf_key: Tensor, height: int, *, valid: Tensor, logits: Tensor) -> Tensor:
    """The causal case of `attend_path`: among sorted keys, sums over the past of a node are differences of running sums."""
    (num_groups, num_queries), num_keys = leaf_query.shape, leaf_key.shape[-1]
    last = torch.arange(num_queries, device=value.device).clamp(max=num_keys - 1).expand(num_groups, -1)
    group = torch.arange(num_groups, device=value.device).unsqueeze(-1)
    ranges = []
    for up in range(height, -1, -1):
        keys = sort_keys(leaf_key >> up, 2 ** (height - up), valid=valid)
        ranges.append((keys, *find_ranges(keys, (leaf_query >> up) + group * (2 ** (height - up) + 1), last, num_keys)))
    counts = torch.stack([end - start for _, start, end in ranges], dim=-1)  # (G, L, height + 1)
    weights = masked_softmax(logits.unsqueeze(1), counts > 0) / counts.clamp(min=1)
    wide = value.double().flatten(0, 1)  # running sums are far larger than their differences
    result = wide.new_zeros(num_groups, num_queries, value.shape[-1])
    for level, (keys, start, end) in enumerate(ranges):
        # (G, S, Dv) in sorted order; sums are taken within a group, so that no other sample of the batch enters
        running = take_rows(wide, keys.place).view(num_groups, num_keys, -1).cumsum(dim=1)
        running = torch.nn.functional.pad(running, (0, 0, 1, 0)).flatten(0, 1)  # (G * (S + 1), Dv)
        total = take_rows(running, end + group) - take_rows(running, start + group)
        result = result + weights[..., level : level + 1] * total
    return result.to(value.dtype)
