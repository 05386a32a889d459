from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlopt.replay import Replay
from tests.replay.histories import History, histories, make_history, make_replay
from tests.replay.twin import ReverseTwin


def filled(num_adds: int, n_envs: int = 1, capacity: int = 200, end_share: float = 0.1, **options: Any) -> tuple[Replay, History]:
    history = make_history(0, num_adds, n_envs, capacity, end_share)
    replay = make_replay("reverse", history, **options)
    for add in history.adds:
        add.to(replay)
    return replay, history


@given(
    history=histories(observations=("discrete",), max_adds=60),
    restart=st.sampled_from(["on_new_data", "on_exhausted"]),
    mode=st.sampled_from(["plain", "respect_episodes", "sequential"]),
    batch_size=st.integers(1, 8),
    num_draws=st.integers(0, 5),
)
def test_sweeps_equal_the_twins(history: History, restart: str, mode: str, batch_size: int, num_draws: int) -> None:
    options: dict[str, Any] = {} if mode == "plain" else {mode: True}
    replay = make_replay("reverse", history, restart=restart, **options)
    twin = history.twin(0)
    sweeps = ReverseTwin(twin, restart, mode == "respect_episodes", mode == "sequential")
    for t, add in enumerate(history.adds):
        add.to(replay)
        twin.add(*add)
        sweeps.on_add()
        for _ in range(num_draws if t % 3 else 1):
            assert replay.sample(batch_size).indices.tolist() == sweeps.draw(batch_size)
    for _ in range(20):
        assert replay.sample(batch_size).indices.tolist() == sweeps.draw(batch_size)


def test_one_sweep_is_everything_newest_first_and_then_begins_again() -> None:
    replay, history = filled(103)
    batches = [replay.sample(10).indices.tolist() for _ in range(11)]
    assert [slot for batch in batches for slot in batch] == list(range(102, -1, -1))
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert replay.sample(10).indices.tolist() == list(range(102, 92, -1))
    for add in history.adds[:7]:
        add.to(replay)
    assert replay.sample(10).indices.tolist() == list(range(109, 99, -1))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_sweep_through_a_wrapped_ring_goes_back_in_time_within_a_stream(n_envs: int) -> None:
    replay, history = filled(137, n_envs, capacity=50 * n_envs)
    twin = history.twin()
    rows: dict[int, list[int]] = {env: [] for env in range(n_envs)}
    for turn in range(5 * n_envs):
        places = [twin.place(slot) for slot in replay.sample(10).indices.tolist()]
        assert {env for env, _ in places} == {turn % n_envs}
        rows[turn % n_envs] += [row for _, row in places]
    assert all(swept == list(range(136, 86, -1)) for swept in rows.values())


def test_reverse_window_stops_at_episode_start() -> None:
    history = make_history(0, num_adds=6, end_share=0.0)
    history.adds[2].terminated[:] = True  # episodes of 3 and 3 transitions
    replay = make_replay("reverse", history, respect_episodes=True)
    for add in history.adds:
        add.to(replay)
    assert [replay.sample(4).indices.tolist() for _ in range(3)] == [[5, 4, 3], [2, 1, 0], [5, 4, 3]]


def test_sequential_batches_hold_one_transition() -> None:
    replay, _ = filled(5, sequential=True)
    assert [replay.sample(4).indices.tolist() for _ in range(6)] == [[4], [3], [2], [1], [0], [4]]


def test_on_exhausted_goes_on_with_its_sweep_when_data_comes() -> None:
    replay, history = filled(10, restart="on_exhausted")
    assert replay.sample(4).indices.tolist() == [9, 8, 7, 6]
    history.adds[0].to(replay)
    assert replay.sample(4).indices.tolist() == [5, 4, 3, 2]
    assert replay.sample(4).indices.tolist() == [1, 0]
    assert replay.sample(4).indices.tolist() == [10, 9, 8, 7]


@pytest.mark.parametrize(("mix", "expected"), [(0.0, 0), (0.25, 10), (0.3, 12), (0.1, 4), (1.0, 40)])
def test_mix_is_the_share_of_uniform_batches(mix: float, expected: int) -> None:
    replay, _ = filled(30, mix=mix)
    for _ in range(40):
        replay.sample(5)
    assert (replay.num_uniform_batches, replay.num_chosen_batches) == (expected, 40 - expected)


def test_uniform_batches_do_not_move_the_sweep() -> None:
    replay, _ = filled(30, mix=0.5)
    swept = [batch for batch in (replay.sample(5).indices.tolist() for _ in range(12)) if np.all(np.diff(batch) == -1)]
    assert [slot for batch in swept for slot in batch] == list(range(29, -1, -1))
