"""Compiled inner loop of the Q-learners."""

from __future__ import annotations

from typing import Any

import numba


@numba.njit(cache=True)
def _value(features: Any, weights: Any) -> float:
    total = 0.0
    for i in range(weights.shape[0]):
        total += features[i] * weights[i]
    return total


@numba.njit(cache=True)
def run_updates(
    features: Any,
    rows: Any,
    next_rows: Any,
    actions: Any,
    rewards: Any,
    terminated: Any,
    order: Any,
    weights: Any,
    target: Any,
    frozen: bool,
    target_updates: Any,
    records: Any,
    discount: float,
    step_size: float,
    history: Any,
) -> None:
    """Apply updates w ← w + η (r + γ max_a' <θ, φ(s',a')> - <w, φ(s,a)>) φ(s,a) one after another, in place.

    Args:
        features: φ, (M, A, d).
        rows: Row of `features` for each transition's observation, (T,).
        next_rows: Row of `features` for each transition's next observation, (T,).
        actions: (T,).
        rewards: (T,).
        terminated: (T,) bool; no bootstrap there.
        order: Transitions in the order of the updates, (U,).
        weights: w, (d,), changed.
        target: θ, (d,), changed; not used unless `frozen`.
        frozen: Whether to bootstrap from θ, else from w.
        target_updates: Numbers of updates after which θ ← w, increasing.
        records: Numbers of updates after which to write θ (w unless `frozen`) to `history`, not decreasing.
        discount: γ.
        step_size: η.
        history: (H, d), written.
    """
    bootstrap = target if frozen else weights
    next_update = next_record = 0
    for done in range(order.shape[0] + 1):
        if next_update < target_updates.shape[0] and target_updates[next_update] == done:
            target[:] = weights
            next_update += 1
        while next_record < records.shape[0] and records[next_record] == done:
            history[next_record] = bootstrap
            next_record += 1
        if done == order.shape[0]:
            break
        t = order[done]
        wanted = rewards[t]
        if not terminated[t]:
            following = features[next_rows[t]]
            best = _value(following[0], bootstrap)
            for action in range(1, following.shape[0]):
                value = _value(following[action], bootstrap)
                if value > best:
                    best = value
            wanted += discount * best
        phi = features[rows[t], actions[t]]
        change = step_size * (wanted - _value(phi, weights))
        for i in range(weights.shape[0]):
            weights[i] += change * phi[i]
