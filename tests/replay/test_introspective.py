import copy
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from rlopt.replay import Replay, ReplayBatch
from rlopt.replay.windows import DIRECTIONS
from tests.replay.histories import History, assert_batches_equal, histories, make_history, make_replay
from tests.replay.twin import Twin, ranked


def filled(num_adds: int, n_envs: int = 1, capacity: int = 200, end_share: float = 0.1, **options: Any) -> tuple[Replay, Twin]:
    history = make_history(0, num_adds, n_envs, capacity, end_share)
    replay = make_replay("introspective", history, **options)
    for add in history.adds:
        add.to(replay)
    return replay, history.twin()


def scores_by_slot(scores: dict[int, float]) -> Any:
    def td_error(batch: ReplayBatch) -> th.Tensor:
        return th.tensor([scores.get(slot, 0.0) for slot in batch.indices.tolist()])

    return td_error


def pivots_of_twin(places: list[tuple[int, int]], scores: Any, count: int, separation: int) -> list[tuple[int, int]]:
    """The `count` most surprising places; one within `separation` rows of a chosen one of its stream is skipped."""
    chosen: list[tuple[int, int]] = []
    for i in ranked(scores):
        env, row = places[i]
        if len(chosen) < count and all(env != other or abs(row - at) > separation or separation == 0 for other, at in chosen):
            chosen.append((env, row))
    return chosen


@given(
    history=histories(observations=("discrete",), max_adds=70),
    direction=st.sampled_from([name for name in DIRECTIONS if name != "random"]),
    respect_episodes=st.booleans(),
    separation=st.sampled_from([0, 0, 1, 4]),
    sequential=st.booleans(),
    mix=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    batch_size=st.integers(1, 8),
    steps=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_batches_of_a_phase_equal_the_twins(
    history: History,
    direction: str,
    respect_episodes: bool,
    separation: int,
    sequential: bool,
    mix: float,
    batch_size: int,
    steps: int,
    seed: int,
) -> None:
    replay = make_replay(
        "introspective",
        history,
        direction=direction,
        respect_episodes=respect_episodes,
        min_separation=separation,
        sequential=sequential,
        mix=mix,
    )
    for add in history.adds:
        add.to(replay)
    twin = history.twin()
    places = twin.places()
    scores = np.random.default_rng(seed).integers(0, 9, len(places)).astype(float)  # many ties
    replay.begin_phase(steps, scores_by_slot({twin.slot(*places[i]): score for i, score in enumerate(scores)}))
    count = math.floor((1 - mix) * steps + 1e-9)
    expected: list[list[int]] = []
    for env, row in pivots_of_twin(places, scores, count, separation):
        window = twin.window(twin.slot(env, row), batch_size, direction, respect_episodes)
        expected += [[slot] for slot in window] if sequential else [window]
    expected = expected[:count]
    for window in expected:
        assert replay.sample(batch_size).indices.tolist() == window
    assert (replay.num_chosen_batches, replay.num_uniform_batches) == (len(expected), 0)
    for _ in range(steps - len(expected)):
        assert len(replay.sample(batch_size).indices) == batch_size
    assert replay.num_uniform_batches == steps - len(expected)


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_windows_of_hand_set_scores(mix: float) -> None:
    replay, _ = filled(20, mix=mix)
    replay.begin_phase(4, scores_by_slot({3: 4.0, 12: -3.0, 11: 2.0, 0: 1.0}))
    expected = [[4, 3, 2, 1, 0], [12, 11, 10, 9, 8], [11, 10, 9, 8, 7], [4, 3, 2, 1, 0]]
    for window in expected[: 4 if mix == 0.0 else 2]:
        assert replay.sample(5).indices.tolist() == window
    assert replay.num_chosen_batches == (4 if mix == 0.0 else 2)
    if mix == 0.5:
        for _ in range(2):
            assert len(replay.sample(5).indices) == 5
        assert replay.num_uniform_batches == 2


def test_mix_one_has_the_law_of_uniform_replay() -> None:
    replay, _ = filled(20, mix=1.0)
    history = make_history(0, 20, capacity=200, end_share=0.1)
    uniform = make_replay("uniform", history)
    for add in history.adds:
        add.to(uniform)
    replay.begin_phase(50, scores_by_slot({3: 4.0}))
    for _ in range(50):
        assert_batches_equal(replay.sample(8), uniform.sample(8))


@pytest.mark.parametrize("n_envs", [1, 3])
def test_windows_of_a_wrapped_ring_are_consecutive_in_time_within_a_stream(n_envs: int) -> None:
    replay, twin = filled(137, n_envs, capacity=50 * n_envs)
    replay.begin_phase(50 * n_envs, scores_by_slot({slot: float(slot * 7 % 31) for slot in range(50 * n_envs)}))
    for _ in range(50 * n_envs):
        places = [twin.place(slot) for slot in replay.sample(8).indices.tolist()]
        assert len({env for env, _ in places}) == 1
        rows = [row for _, row in places]
        assert np.diff(rows).tolist() == [-1] * 7
        assert min(rows) >= 87
        assert max(rows) <= 136
    assert replay.num_chosen_batches == 50 * n_envs


def test_interleaved_windows_run_through_all_environments() -> None:
    replay, _ = filled(12, n_envs=3, interleave=True)
    replay.begin_phase(1, scores_by_slot({20: 1.0}))
    assert replay.sample(7).indices.tolist() == [20, 19, 18, 17, 16, 15, 14]


def test_pivots_of_one_stream_are_more_than_the_separation_apart() -> None:
    falling = {slot: 100.0 - slot for slot in range(40)}
    replay, _ = filled(40, min_separation=3)
    replay.begin_phase(4, scores_by_slot(falling))
    assert [replay.sample(1).indices.tolist() for _ in range(4)] == [[0], [4], [8], [12]]
    # Two environments: slots of the same row are in different streams, so both stay.
    replay, _ = filled(20, n_envs=2, min_separation=3)
    replay.begin_phase(4, scores_by_slot(falling))
    assert [replay.sample(1).indices.tolist() for _ in range(4)] == [[0], [1], [8], [9]]


@given(
    n_envs=st.integers(1, 3),
    num_adds=st.integers(1, 60),
    separation=st.integers(1, 6),
    count=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_separated_pivots_equal_the_twins(n_envs: int, num_adds: int, separation: int, count: int, seed: int) -> None:
    replay, twin = filled(num_adds, n_envs, capacity=40 * n_envs, min_separation=separation)
    places = twin.places()
    scores = np.random.default_rng(seed).integers(0, 30, len(places)).astype(float)
    replay.begin_phase(count, scores_by_slot({twin.slot(*places[i]): score for i, score in enumerate(scores)}))
    for place in pivots_of_twin(places, scores, count, separation):
        assert replay.sample(1).indices.tolist() == [twin.slot(*place)]
    assert replay.num_uniform_batches == 0


def test_fewer_transitions_than_a_window_are_all_used() -> None:
    replay, _ = filled(3)
    replay.begin_phase(2, scores_by_slot({1: 1.0}))
    assert replay.sample(8).indices.tolist() == [2, 1, 0]


def test_draws_are_uniform_when_the_pivots_run_out() -> None:
    replay, _ = filled(3)
    replay.begin_phase(5, scores_by_slot({1: 1.0}))
    for _ in range(5):
        replay.sample(2)
    assert (replay.num_chosen_batches, replay.num_uniform_batches) == (3, 2)


def test_refresh_of_a_subset_scores_that_many_old_and_all_new_transitions() -> None:
    history = make_history(0, num_adds=60, n_envs=2, capacity=80)
    replay = make_replay("introspective", history, refresh_subset=10)
    scored: list[list[int]] = []

    def td_error(batch: ReplayBatch) -> th.Tensor:
        scored.append(batch.indices.tolist())
        return th.ones(len(batch.indices))

    for add in history.adds[:50]:
        add.to(replay)
    replay.begin_phase(4, td_error)  # everything is new
    assert sorted(scored[-1]) == list(range(80))
    for add in history.adds[50:53]:
        add.to(replay)
    replay.begin_phase(4, td_error)
    newest = replay.storage.all_slots()[-6:].tolist()
    assert scored[-1][-6:] == newest
    assert len(set(scored[-1])) == len(scored[-1]) == 16
    replay.begin_phase(4, td_error)  # nothing is new
    assert len(set(scored[-1])) == 10
    first = list(scored[-1])
    replay.begin_phase(4, td_error)
    assert scored[-1] != first


def test_pivots_come_from_scored_transitions_only() -> None:
    replay, _ = filled(100, refresh_subset=5)
    replay.begin_phase(1, scores_by_slot({}))
    seen: list[int] = []

    def td_error(batch: ReplayBatch) -> th.Tensor:
        seen[:] = batch.indices.tolist()
        return th.ones(len(seen))

    replay.begin_phase(3, td_error)
    assert {replay.sample(1).indices[0] for _ in range(3)} == set(seen[:3])  # equal scores: oldest first


def recorder(scores: dict[int, float], seen: list[list[int]]) -> Any:
    """A TD error per slot from `scores`, which may change between phases; notes which slots were asked for."""

    def td_error(batch: ReplayBatch) -> th.Tensor:
        seen.append(batch.indices.tolist())
        return th.tensor([scores.get(slot, 0.0) for slot in seen[-1]])

    return td_error


def test_with_scores_of_earlier_phases_only_new_old_and_large_ones_are_made_in_order_of_time() -> None:
    history = make_history(0, num_adds=60, n_envs=2, capacity=80)
    replay = make_replay("introspective", history, rescore_after=4)
    scores, seen = {slot: slot / 100 for slot in range(80)}, []
    td_error = recorder(scores, seen)
    for add in history.adds[:42]:  # the ring is full, and begins at slot 4
        add.to(replay)
    replay.begin_phase(1, td_error)
    assert seen[-1] == [*range(4, 80), *range(4)]
    for add in history.adds[42:45]:  # slots 4 to 9
        add.to(replay)
    replay.begin_phase(1, td_error)
    # The oldest quarter of the first phase, slots 4 to 23; four large ones for one pivot; and what is new.
    assert seen[-1] == [*range(10, 24), *range(76, 80), *range(4, 10)]
    assert replay.sample(1).indices.tolist() == [79]
    for add in history.adds[45:48]:  # slots 10 to 15, scored a phase ago with another content
        add.to(replay)
    replay.begin_phase(1, td_error)
    assert seen[-1] == [*range(24, 44), *range(76, 80), *range(4, 6), *range(10, 16)]  # 4, 5: new ones are spread over 4 phases


def test_pivots_that_keep_a_distance_are_found_among_more_large_scores() -> None:
    replay, _ = filled(100, rescore_after=50, min_separation=2)
    seen: list[list[int]] = []
    for _ in range(2):
        replay.begin_phase(1, recorder({slot: 100.0 + slot for slot in range(100)}, seen))
    assert seen[-1] == [0, 1, *range(80, 100)]


def test_scores_of_earlier_phases_are_part_of_the_state() -> None:
    replay, _ = filled(100, rescore_after=10)
    other, _ = filled(100, rescore_after=10)
    both: list[list[list[int]]] = [[], []]
    replay.begin_phase(1, recorder({slot: slot * 7.0 % 31 for slot in range(100)}, both[0]))
    other.load_state_dict(replay.state_dict())
    for part, seen in zip((replay, other), both, strict=True):
        for _ in range(4):
            part.begin_phase(2, recorder({50: 1.0}, seen))
    assert both[0][1:] == both[1]
    assert [len(slots) for slots in both[1]] != [100] * 4


def test_a_pivot_is_chosen_by_a_new_score_and_an_error_that_grew_is_found_in_time() -> None:
    replay, _ = filled(100, rescore_after=5)
    scores, seen = dict.fromkeys(range(100), 1.0) | {7: 9.0, 8: 8.0}, []
    td_error = recorder(scores, seen)
    replay.begin_phase(1, td_error)
    assert replay.sample(1).indices.tolist() == [7]
    scores |= {7: 0.0, 99: 20.0}  # 7 was learned; the newest is scored last, in the fifth phase from now
    found = []
    for _ in range(5):
        replay.begin_phase(1, td_error)
        found += replay.sample(1).indices.tolist()
    assert found == [8, 8, 8, 8, 99]
    assert [len(slots) for slots in seen[1:]] == [20, 24, 24, 24, 24]  # a fifth, and four large ones, at first among them


@given(
    history=histories(observations=("discrete",), max_adds=60),
    phases=st.integers(1, 6),
    count=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_errors_that_never_change_give_the_pivots_of_full_scoring(history: History, phases: int, count: int, seed: int) -> None:
    both = [make_replay("introspective", history, rescore_after=period) for period in (1, 3)]
    scores = dict(enumerate(np.random.default_rng(seed).integers(0, 50, history.capacity + 4).astype(float).tolist()))
    for part in np.array_split(np.arange(len(history.adds)), phases):
        for replay in both:
            for i in part:
                history.adds[i].to(replay)
            if len(replay):
                replay.begin_phase(count, scores_by_slot(scores))
        if len(both[0]):
            for _ in range(count):
                assert_batches_equal(both[0].sample(4), both[1].sample(4))


def test_a_phase_without_errors_or_windows_leaves_the_scores_as_they_are() -> None:
    replay, _ = filled(40, rescore_after=2, mix=0.5)
    seen: list[list[int]] = []
    td_error = recorder({}, seen)
    replay.begin_phase(2, td_error)
    replay.begin_phase(2, None)
    replay.begin_phase(1, td_error)  # no window
    replay.begin_phase(2, td_error)
    assert [len(slots) for slots in seen] == [40, 20]
    replay.reset()
    for add in make_history(1, 30).adds:
        add.to(replay)
    replay.begin_phase(2, td_error)
    assert len(seen[-1]) == 30
    assert replay.nbytes == replay.storage.nbytes + 8 * 200


def network_td_error(network: th.nn.Module, target: th.nn.Module) -> Any:
    def td_error(batch: ReplayBatch) -> th.Tensor:
        with th.no_grad():
            values = batch.rewards + 0.9 * (1 - batch.dones) * target(batch.next_observations)
            return values - network(batch.observations)

    return td_error


def test_pivots_are_fixed_in_a_phase_and_chosen_anew_in_the_next() -> None:
    th.manual_seed(0)
    network, target = th.nn.Linear(3, 1), th.nn.Linear(3, 1)
    td_error = network_td_error(network, target)
    phases = []
    for change in (False, True):
        replay, _ = filled(100)
        replay.begin_phase(6, td_error)
        replay.sample(5)
        before = copy.deepcopy(network.state_dict())
        if change:
            with th.no_grad():
                network.weight.mul_(-30.0)
        phases.append([replay.sample(5).indices.tolist() for _ in range(5)])
        if change:
            replay.begin_phase(5, td_error)
            phases.append([replay.sample(5).indices.tolist() for _ in range(5)])
        network.load_state_dict(before)
    assert phases[0] == phases[1] != phases[2]


def test_scoring_leaves_networks_and_optimizer_untouched_in_every_bit() -> None:
    th.manual_seed(0)
    network, target = th.nn.Linear(3, 1), th.nn.Linear(3, 1)
    optimizer = th.optim.Adam(network.parameters())
    network(th.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy([network.state_dict(), target.state_dict(), optimizer.state_dict()])
    replay, _ = filled(100)
    replay.begin_phase(6, network_td_error(network, target))
    after = [network.state_dict(), target.state_dict(), optimizer.state_dict()]
    for old, new in zip(before[:2], after[:2], strict=True):
        assert all(th.equal(old[key], new[key]) for key in old)
    for old_state, new_state in zip(before[2]["state"].values(), after[2]["state"].values(), strict=True):
        assert all(th.equal(old_state[key], new_state[key]) for key in old_state)
    assert all(parameter.grad is None for parameter in network.parameters())


def gradient_step(network: th.nn.Module, batch: ReplayBatch, order: list[int]) -> th.Tensor:
    network.zero_grad()
    assert isinstance(batch.observations, th.Tensor)
    loss = (network(batch.observations[order]) - batch.rewards[order]).square().mean()
    loss.backward()
    return th.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("name", ["reverse", "introspective"])
def test_order_within_a_batch_does_not_matter_but_the_order_of_single_updates_does(name: str) -> None:
    th.manual_seed(0)
    network = th.nn.Sequential(th.nn.Linear(3, 16), th.nn.Tanh(), th.nn.Linear(16, 1))
    history = make_history(0, 30, capacity=50)
    order = [4, 0, 3, 1, 2, 7, 6, 5]

    def replay_with(**options: Any) -> Replay:
        replay = make_replay(name, history, **options)
        for add in history.adds:
            add.to(replay)
        replay.begin_phase(8, lambda batch: batch.rewards)
        return replay

    batch = replay_with().sample(8)
    straight, permuted = gradient_step(network, batch, list(range(8))), gradient_step(network, batch, order)
    assert th.allclose(straight, permuted, atol=1e-6)

    replay = replay_with(sequential=True)
    singles = [replay.sample(8) for _ in range(8)]
    assert [single.indices.tolist() for single in singles] == [[slot] for slot in batch.indices.tolist()]
    results = []
    for sequence in (list(range(8)), order):
        learner = copy.deepcopy(network)
        for i in sequence:
            gradient_step(learner, singles[i], [0])
            with th.no_grad():
                for parameter in learner.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.3 * parameter.grad
        results.append(th.cat([parameter.detach().flatten() for parameter in learner.parameters()]))
    assert not th.allclose(results[0], results[1], atol=1e-3)
