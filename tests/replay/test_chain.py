"""Updates that a tabular learner needs on a chain of n states, with the actual replays.

s -> s + 1 with reward 0, the last transition has reward 1 and terminates; Q starts at 0, step size 1. The exact values are
Q*(k) = gamma^(n - 1 - k).
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray

from rlopt.replay import REPLAYS, Replay, ReplayBatch

NUM_STATES = 12
GAMMA = 0.5
TRUTH = GAMMA ** np.arange(NUM_STATES - 1, -1, -1.0)


def chain(name: str, **options: Any) -> Replay:
    replay = REPLAYS[name].replay_class(
        NUM_STATES, spaces.Discrete(NUM_STATES + 1), spaces.Discrete(1), "cpu", seed=options.pop("seed", 0), **options
    )
    for state in range(NUM_STATES):
        last = state == NUM_STATES - 1
        replay.add(np.array([state]), np.array([state + 1]), np.array([0]), np.array([float(last)]), np.array([last]), [{}])
    return replay


def targets(batch: ReplayBatch, values: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """States of the batch and what one-step TD wants their values to be."""
    assert isinstance(batch.observations, th.Tensor)
    assert isinstance(batch.next_observations, th.Tensor)
    following = np.append(values, 0.0)[batch.next_observations.numpy()[:, 0]]
    reward, done = batch.rewards.numpy()[:, 0], batch.dones.numpy()[:, 0]
    return batch.observations.numpy()[:, 0], reward + GAMMA * (1 - done) * following


def apply(batch: ReplayBatch, values: NDArray[np.float64]) -> None:
    """One simultaneous update with step size 1."""
    states, wanted = targets(batch, values)
    values[states] = wanted


def surprise(values: NDArray[np.float64]) -> Any:
    def td_error(batch: ReplayBatch) -> th.Tensor:
        states, wanted = targets(batch, values)
        return th.from_numpy(wanted - values[states])

    return td_error


def test_reverse_replay_needs_one_sweep() -> None:
    replay, values, updates = chain("reverse", sequential=True), np.zeros(NUM_STATES), 0
    while not np.array_equal(values, TRUTH):
        apply(replay.sample(1), values)
        updates += 1
    assert updates == 12


def test_forward_sweeps_need_133_updates() -> None:
    replay, values, updates = chain("uniform"), np.zeros(NUM_STATES), 0
    while not np.array_equal(values, TRUTH):
        apply(replay._get_samples(np.array([updates % NUM_STATES])), values)
        updates += 1
    assert updates == 133 == (NUM_STATES - 1) * NUM_STATES + 1


def test_greedy_replay_needs_12_updates() -> None:
    replay, values, updates = chain("greedy"), np.zeros(NUM_STATES), 0
    while not np.array_equal(values, TRUTH):
        replay.begin_phase(1, surprise(values))
        apply(replay.sample(1), values)
        updates += 1
    assert updates == 12


@pytest.mark.parametrize(
    ("direction", "sequential", "expected_windows"), [("back", True, 3), ("forward", True, 12), ("back", False, 12)]
)
def test_windows_that_introspective_replay_needs(direction: str, sequential: bool, expected_windows: int) -> None:
    replay = chain("introspective", direction=direction, sequential=sequential)
    values, windows = np.zeros(NUM_STATES), 0
    while not np.array_equal(values, TRUTH):
        replay.begin_phase(4, surprise(values))
        states: list[int] = []
        for _ in range(4 if sequential else 1):
            batch = replay.sample(4)
            apply(batch, values)
            states += batch.observations.flatten().tolist()  # type: ignore[union-attr]
        assert states == sorted(states, reverse=direction == "back")
        assert len(states) == 4
        windows += 1
    assert windows == expected_windows


def test_uniform_replay_needs_144_updates_on_average() -> None:
    replay, num_runs, total = chain("uniform", seed=1), 3000, 0
    draws: list[int] = []
    for _ in range(num_runs):
        # An update changes something only if it is of the last state that is not known yet (the test below shows it), so
        # counting the draws until each of these has come is the whole run.
        frontier = NUM_STATES - 1
        while frontier >= 0:
            draws = draws or replay.sample(4096).observations.flatten().tolist()  # type: ignore[union-attr]
            frontier -= draws.pop() == frontier
            total += 1
    assert total / num_runs == pytest.approx(NUM_STATES**2, rel=0.03)


def test_uniform_replay_learns_the_chain_one_state_after_the_other() -> None:
    replay, values = chain("uniform", seed=2), np.zeros(NUM_STATES)
    frontier = NUM_STATES - 1
    while frontier >= 0:
        batch, before = replay.sample(1), values.copy()
        apply(batch, values)
        drawn = int(batch.observations.item())  # type: ignore[union-attr]
        assert np.array_equal(values, before) == (drawn != frontier)
        frontier -= drawn == frontier
    assert np.array_equal(values, TRUTH)
