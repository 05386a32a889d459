"""The weighted sums of linear attention: sum_j M_ij phi(q_i) . phi(k_j) u_j for every query i.

Features come as numbers, or as logarithms, which are shifted before the exponential: keys by a maximum for every feature (moved to
the query, so that it cancels), queries by the maximum of their row. Shifts carry no gradient: results do not depend on them. All
functions return sums (B, H, L, E) and the logarithm of the factor they still have to be multiplied by, (B, H, L, 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sums = tuple[Tensor, Tensor]

# On a processor, blocks of about this many rows (batch * heads * tokens) are done at a time: what fits into its cache. Measured.
BLOCK_ROWS = 4096


def full_sums(query: Tensor, key: Tensor, u: Tensor, *, logarithmic: bool) -> Sums:
    """Sums over all keys.

    Args:
        query: (B, H, L, m), features or their logarithms.
        key: (B, H, S, m).
        u: (B, H, S, E).
        logarithmic: Whether they are logarithms.
    """
    query, key, log_scale = normalize_features(query, key) if logarithmic else (query, key, no_scale(query))
    return query @ (key.mT @ u), log_scale


def matvec_sums(
    query: Tensor, key: Tensor, u: Tensor, matvec: Callable[[Tensor], Tensor], *, logarithmic: bool, max_columns: int = 128
) -> Sums:
    """Sums with a mask that is given by its product with vectors, L = S; features are taken in groups to bound memory.

    Positions are the last dimension in memory here, as Fourier transforms like it.

    Args:
        query: (B, H, L, m).
        key: (B, H, L, m).
        u: (B, H, L, E).
        matvec: (B, H, L, F) to M times it, for any F.
        logarithmic: Whether features are logarithms.
        max_columns: About the F that is multiplied at a time (measured: more do not fit into the cache).
    """
    query, key, log_scale = normalize_features(query, key) if logarithmic else (query, key, no_scale(query))
    query, key, u = query.mT[:, :, :, None], key.mT.contiguous()[:, :, :, None], u.mT.contiguous()[:, :, None]
    group = max(1, max_columns // u.shape[3])
    sums: Tensor | float = 0.0
    for start in range(0, key.shape[2], group):
        outer = key[:, :, start : start + group] * u  # (B, H, g, E, L)
        masked = matvec(outer.flatten(2, 3).mT).mT  # (B, H, L, g * E) and back
        sums = sums + (query[:, :, start : start + group] * masked.reshape(outer.shape)).sum(2)
    assert isinstance(sums, Tensor)
    return sums.mT, log_scale  # (B, H, E, L) -> (B, H, L, E)


def dense_sums(query: Tensor, key: Tensor, u: Tensor, mask: Tensor, *, logarithmic: bool) -> Sums:
    """Sums with a mask that is given as a matrix, in O(L S).

    Args:
        query: (B, H, L, m).
        key: (B, H, S, m).
        u: (B, H, S, E).
        mask: Broadcastable to (B, H, L, S).
        logarithmic: Whether features are logarithms.
    """
    query, key, log_scale = normalize_features(query, key) if logarithmic else (query, key, no_scale(query))
    return ((query @ key.mT) * mask) @ u, log_scale


def causal_sums(
    query: Tensor,
    key: Tensor,
    u: Tensor,
    valid: Tensor | None,
    features: Callable[[Tensor], Tensor],
    *,
    logarithmic: bool,
    log_decay: Tensor | None,
    chunk_size: int,
) -> Sums:
    """Sums over keys j <= i, with weights gamma^(i - j) if there is a decay.

    Within chunks the weights are formed; across chunks a state (B, H, m, E) is carried, the sum of phi(k_j) u_j. Its scale is the
    running maximum of the logarithms for each feature, so that neither later keys nor much larger earlier ones get lost. Many
    chunks make a block, in which everything but the small recurrence from state to state is one product. Features are computed
    block by block, so that they stay in the processor's cache.

    Args:
        query: (B, H, L, D).
        key: (B, H, L, D).
        u: (B, H, L, E).
        valid: (B, L), True for keys that count; None: all.
        features: Queries or keys to features (B, H, L, m), or to their logarithms.
        logarithmic: Whether they are logarithms.
        log_decay: (H,) or (1,), log gamma; None: 0.
        chunk_size: Tokens of a chunk.
    """
    batch, heads, length, _ = key.shape
    chunk_size = min(chunk_size, length)
    block = chunk_size * max(1, BLOCK_ROWS // (batch * heads * chunk_size)) if key.device.type == "cpu" else length
    decays = None if log_decay is None else _Decays(log_decay, chunk_size)
    state: Tensor | None = None
    scale: Tensor | None = None
    sums, log_scales = [], []
    for start, *parts in zip(range(0, length, block), *(torch.split(x, block, dim=2) for x in (query, key, u)), strict=True):
        stop = min(start + block, length)
        fill = -(stop - start) % chunk_size
        query_features, key_features = (pad_rows(features(x), fill) for x in parts[:2])
        if valid is not None or fill:
            counts = key.new_ones(batch, stop - start, dtype=torch.bool) if valid is None else valid[:, start:stop]
            key_features = drop_rows(key_features, torch.nn.functional.pad(counts, (0, fill)), logarithmic=logarithmic)
        if state is None:
            num_features = key_features.shape[-1]
            state = u.new_zeros(batch, heads, num_features, u.shape[-1])
            # The logarithm of the state's scale; that of the empty state is -inf.
            scale = u.new_full((batch, heads, num_features), -torch.inf) if logarithmic else None
        padded = (query_features, key_features, pad_rows(parts[2], fill))
        queries, keys, us = (x.reshape(batch, heads, -1, chunk_size, x.shape[-1]) for x in padded)  # (B, H, N, C, .)
        part, log_scale, state, scale = _block_sums(queries, keys, us, state, scale, decays)
        sums.append(part.flatten(2, 3)[:, :, : stop - start])  # (B, H, N, C, E) -> (B, H, rows, E)
        log_scales.append(log_scale.flatten(2, 3)[:, :, : stop - start])
    if len(sums) == 1:
        return sums[0], log_scales[0]
    return torch.cat(sums, dim=2), torch.cat(log_scales, dim=2)


class _Decays:
    """Powers of gamma for a chunk, and their logarithms."""

    def __init__(self, log_gamma: Tensor, chunk_size: int) -> None:
        position = torch.arange(chunk_size, device=log_gamma.device)
        log_gamma = log_gamma[:, None, None, None]  # (H, 1, 1, 1): heads, chunks, rows, columns
        self.log_once = log_gamma[..., 0, 0]  # log gamma, (H, 1)
        self.log_chunk = chunk_size * self.log_once  # log gamma^C, (H, 1)
        self.log_until_end = (chunk_size - 1 - position)[:, None] * log_gamma  # log gamma^(C - 1 - j), (H, 1, C, 1)
        self.pairs = ((position[:, None] - position).clamp(min=0) * log_gamma).exp().tril()  # gamma^(i - j), (H, 1, C, C)
        self.since_start = (position[:, None] * log_gamma).exp()  # gamma^i, (H, 1, C, 1)


def _block_sums(
    query: Tensor, key: Tensor, u: Tensor, state: Tensor, scale: Tensor | None, decays: _Decays | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Sums of a block of chunks, (B, H, N, C, .), and the state (B, H, m, E) and its log scale (B, H, m) after it.

    The state is decayed to the last token before a chunk. `enter` (B, H, N, m) brings it to the first token and to the scale of the
    chunk, `carry` over the chunk to the scale of the next state; both are at most 1.
    """
    num_chunks = key.shape[2]
    if scale is not None:
        late_key = key if decays is None else key + decays.log_until_end
        with torch.no_grad():
            scales, ends, enter, carry, scale = _scales(key.amax(3), late_key.amax(3), scale, decays)
        query, shifted, log_scale = shift_features(query, key, scales[:, :, :, None])
        late_key = shifted if decays is None else (late_key - finite(ends)[:, :, :, None]).exp_()
    else:
        shifted, log_scale = key, no_scale(query)
        late_key, enter, carry = key, None, None
        if decays is not None:
            late_key = key * decays.log_until_end.exp()
            enter, carry = (x.exp()[None, :, None].expand(-1, -1, num_chunks, -1) for x in (decays.log_once, decays.log_chunk))
    weights = query @ shifted.mT  # (B, H, N, C, C)
    weights = weights.tril_() if decays is None else weights * decays.pairs
    sums = weights @ u
    updates = late_key.mT @ u  # (B, H, N, m, E)
    states = []
    # `unbind` and `split` have one gradient for the whole; indexing would make a tensor of zeros for each part.
    for n, update in enumerate(updates.unbind(dim=2)):
        states.append(state if enter is None else state * enter[:, :, n, :, None])
        # Without decay both factors are the same.
        before = states[-1] if decays is None or carry is None else state * carry[:, :, n, :, None]
        state = before + update
    earlier = query @ torch.stack(states, dim=2)
    return sums + (earlier if decays is None else earlier * decays.since_start), log_scale, state, scale


def _scales(
    largest: Tensor, largest_late: Tensor, scale: Tensor, decays: _Decays | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log scales of chunks and of the states after them, the factors `enter` and `carry`, each (B, H, N, m), and the last scale.

    Args:
        largest: Maximum of the log features of each chunk, (B, H, N, m).
        largest_late: The same after decay to the end of the chunk.
        scale: Of the state before, (B, H, m); -inf where it is empty.
        decays: None: no decay.
    """
    if decays is None:  # running maxima, for all chunks at once
        running = torch.cat([scale[:, :, None], largest], dim=2).cummax(dim=2).values
        scales = running[:, :, 1:]
        # -inf - -inf: nothing was seen yet, and any factor of the empty state will do.
        enter = (running[:, :, :-1] - scales).nan_to_num_(nan=0.0).exp_()
        return scales, scales, enter, enter, scales[:, :, -1]
    scales, ends, enter, carry = (torch.empty_like(largest) for _ in range(4))
    for n in range(largest.shape[2]):
        first, last = scale + decays.log_once, scale + decays.log_chunk
        scales[:, :, n] = torch.maximum(first, largest[:, :, n])
        ends[:, :, n] = scale = torch.maximum(last, largest_late[:, :, n])
        enter[:, :, n] = (first - scales[:, :, n]).nan_to_num_(nan=0.0)
        carry[:, :, n] = (last - scale).nan_to_num_(nan=0.0)
    return scales, ends, enter.exp_(), carry.exp_(), scale


def step_sums(
    query: Tensor, key: Tensor, u: Tensor, state: Tensor, scale: Tensor | None, log_decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Sums with one more token.

    Args:
        query: (B, H, 1, m), features, or their logarithms if there is a `scale`.
        key: (B, H, 1, m).
        u: (B, H, 1, E), whose last entry is 1.
        state: (B, H, m, E), zeros before the first token.
        scale: (B, H, m), log scale of the state; its value does not matter where the state is zero. None: features are numbers.
        log_decay: (H,) or (1,), log gamma; None: 0.

    Returns:
        Sums (B, H, 1, E), their log scale (B, H, 1, 1), the new state and its scale.
    """
    factor: Tensor | None = None if log_decay is None else log_decay.exp()[:, None]
    if scale is None:
        log_scale = no_scale(query)
    else:
        with torch.no_grad():
            before = scale if log_decay is None else scale + log_decay[:, None]
            before = before.masked_fill(state[..., -1] == 0.0, -torch.inf)
            scale = torch.maximum(before, key[:, :, 0])
            factor = (before - scale).nan_to_num_(nan=0.0).exp_()  # (B, H, m)
        query, key, log_scale = shift_features(query, key, scale[:, :, None])
        scale = finite(scale)
    if factor is not None:
        state = state * factor[..., None]
    state = state + key.mT @ u
    return query @ state, log_scale, state, scale


def normalize_features(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exponentials of log features, with keys shifted by their maximum over all keys."""
    return shift_features(query, key, key.detach().amax(-2, keepdim=True))


def shift_features(query: Tensor, key: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Exponentials exp(key - scales) and exp(query + scales - row maximum), and the row maximum.

    Args:
        query: (..., L, m).
        key: (..., S, m).
        scales: (..., 1, m), without gradient; -inf where there is no key.
    """
    key = (key - finite(scales)).exp_()
    query = query + scales
    rows = finite(query.detach().amax(-1, keepdim=True))
    return (query - rows).exp_(), key, rows


def finite(scale: Tensor) -> Tensor:
    """Zeros instead of -inf, which may be subtracted from -inf."""
    return scale.masked_fill(scale == -torch.inf, 0.0)


def no_scale(query: Tensor) -> Tensor:
    """Log scale of sums that are what they are: zeros (..., L, 1)."""
    return query.new_zeros(*query.shape[:-1], 1)


def drop_rows(features: Tensor, valid: Tensor, *, logarithmic: bool) -> Tensor:
    """Make features (B, H, S, m) of keys that do not count zero; `valid` is (B, S)."""
    return features.masked_fill(~valid[:, None, :, None], -torch.inf if logarithmic else 0.0)


def pad_rows(x: Tensor, num_rows: int) -> Tensor:
    """Add rows of zeros, (..., L, F) to (..., L + num_rows, F)."""
    return torch.nn.functional.pad(x, (0, 0, 0, num_rows)) if num_rows else x
