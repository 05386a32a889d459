"""Sequences against the twin that counts rows since the beginning of time."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rlopt.replay import REPLAYS, PrioritizedReplay, Replay, SequenceBatch, UniformReplay
from tests.replay.histories import History, compute_reward, equal_bits, histories, make_history, make_replay
from tests.replay.twin import Twin, Value

BOX = spaces.Box(-1, 1, (1,), np.float32)
NAMES = sorted(set(REPLAYS) - {"hindsight"})
PLACES = ("random", "end")


def entry(field: Any, *index: int) -> Value:
    """One entry of a batch field, as NumPy."""
    return {key: part[index].numpy() for key, part in field.items()} if isinstance(field, dict) else field[index].numpy()


def expected_rows(batch: SequenceBatch, twin: Twin, i: int, total: int) -> tuple[int, list[int]]:
    """Environment and rows of sequence i, from its pivot and the place of the pivot in it."""
    env, row = twin.place(int(batch.indices[i]))
    episode = twin.episode(env, row)
    last = row + total - 1 - int(batch.pivots[i])
    assert last in episode
    return env, [r for r in episode if last - total < r <= last]


def assert_sequences_of_twin(
    batch: SequenceBatch, twin: Twin, length: int, burn_in: int, pivot_at: str, n_steps: int, gamma: float
) -> None:
    """All fields of all positions are what the twin remembers; padding is zero and on the left."""
    num, total = len(batch.indices), length + burn_in
    assert batch.valid.shape == batch.learn.shape == (num, total)
    assert batch.dones.shape == batch.rewards.shape == batch.weights.shape == (num, total, 1)
    assert batch.dones.dtype == batch.rewards.dtype == batch.weights.dtype == th.float32
    assert (batch.discounts is None) == (n_steps == 1)
    for i in range(num):
        assert burn_in <= batch.pivots[i] < total
        assert batch.learn[i, batch.pivots[i]]
        if pivot_at == "end":
            assert batch.pivots[i] == total - 1
        env, rows = expected_rows(batch, twin, i, total)
        num_padded = total - len(rows)
        assert batch.valid[i].tolist() == [False] * num_padded + [True] * len(rows)
        assert batch.learn[i].tolist() == [t >= max(burn_in, num_padded) for t in range(total)]
        for t, row in enumerate(rows, start=num_padded):
            step = twin.streams[env][row]
            result = twin.n_step_return(twin.slot(env, row), n_steps, gamma)
            assert equal_bits(entry(batch.observations, i, t), step.obs)
            assert equal_bits(entry(batch.next_observations, i, t), result.last.next_obs)
            assert np.array_equal(batch.actions[i, t].numpy().reshape(-1), np.asarray(step.action).reshape(-1).astype(np.float32))
            assert batch.dones[i, t].item() == float(result.last.terminated)
            np.testing.assert_allclose(batch.rewards[i, t].item(), result.reward, rtol=1e-6, atol=2e-6 if n_steps > 1 else 0)
            if batch.discounts is not None:
                np.testing.assert_allclose(batch.discounts[i, t].item(), result.discount, rtol=1e-6)
        for field in (batch.observations, batch.next_observations, batch.actions, batch.dones, batch.rewards, batch.discounts):
            for part in field.values() if isinstance(field, dict) else [field] if field is not None else []:
                assert not part[i, :num_padded].any()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(history=histories(max_adds=25), data=st.data())
def test_every_sequence_is_what_the_twin_remembers(name: str, history: History, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["plain", "shared"]), label="layout")
    n_steps, gamma = data.draw(st.sampled_from([(1, 0.9), (3, 0.5)]), label="return")
    length, burn_in = data.draw(st.integers(1, 6), label="length"), data.draw(st.integers(0, 4), label="burn_in")
    pivot_at: Any = data.draw(st.sampled_from(PLACES), label="pivot_at")
    replay, twin = make_replay(name, history, n_steps=n_steps, gamma=gamma, layout=layout), history.twin(0)
    for t, add in enumerate(history.adds):
        add.to(replay)
        twin.add(*add)
        if t % 7 == 0 or t == len(history.adds) - 1:
            replay.begin_phase(2, lambda batch: batch.rewards, progress=0.5)
            batch = replay.sample_sequences(5, length, burn_in, pivot_at=pivot_at)
            assert_sequences_of_twin(batch, twin, length, burn_in, pivot_at, n_steps, gamma)
            replay.update(batch.indices, batch.at_pivots(batch.rewards))


@given(histories(max_adds=30), st.sampled_from(NAMES), st.sampled_from(PLACES))
def test_pivots_and_weights_are_those_that_sample_would_draw(history: History, name: str, pivot_at: Any) -> None:
    one, other = make_replay(name, history), make_replay(name, history)
    for add in history.adds:
        for replay in (one, other):
            add.to(replay)
    rows = one.storage.all_slots()
    for replay in (one, other):
        replay.update(rows, np.arange(len(rows)) + 1.0)
        replay.begin_phase(2, lambda batch: batch.rewards)
    sequences, transitions = one.sample_sequences(4, 3, 1, pivot_at=pivot_at), other.sample(4)
    assert sequences.indices.tolist() == transitions.indices.tolist()
    assert th.equal(sequences.weights, transitions.weights[:, None].expand(-1, 4, 1))
    assert th.equal(sequences.at_pivots(sequences.rewards), transitions.rewards[:, 0])
    assert (one.num_uniform_batches, one.num_chosen_batches) == (other.num_uniform_batches, other.num_chosen_batches)


@given(histories(max_adds=30), st.sampled_from(PLACES), st.integers(1, 3))
def test_layouts_give_equal_sequences_with_equal_seeds(history: History, pivot_at: Any, n_steps: int) -> None:
    plain, shared = (make_replay("uniform", history, n_steps=n_steps, gamma=0.9, layout=layout) for layout in ("plain", "shared"))
    for add in history.adds:
        add.to(plain)
        add.to(shared)
    one, other = (replay.sample_sequences(6, 4, 2, pivot_at=pivot_at) for replay in (plain, shared))
    for name, left, right in zip(SequenceBatch._fields, one, other, strict=True):
        for key in left if isinstance(left, dict) else [None]:
            a, b = (left[key], right[key]) if key else (left, right)
            assert (a is None) if b is None else np.array_equal(np.asarray(a), np.asarray(b)), name


def filled(episodes: list[int], capacity: int = 100, replay_class: type[Replay] = UniformReplay, **options: Any) -> Replay:
    """Episodes of given lengths that terminate; the reward of a transition is its number since the beginning of time."""
    replay = replay_class(capacity, BOX, spaces.Discrete(2), "cpu", seed=0, **options)
    t = 0
    for length in episodes:
        for step in range(length):
            obs = np.full((1, 1), t + 0.5, np.float32)
            replay.add(obs, obs + 1, np.array([0]), np.array([float(t)]), np.array([step == length - 1]), [{}])
            t += 1
    return replay


def test_short_episode_is_padded_on_the_left_by_hand() -> None:
    batch = filled([4, 2, 3], capacity=9).sample_sequences(300, length=3, burn_in=1, pivot_at="end")
    found = {
        int(i): (batch.rewards[n, :, 0].tolist(), batch.valid[n].tolist(), batch.learn[n].tolist())
        for n, i in enumerate(batch.indices)
    }
    assert found[3] == ([0, 1, 2, 3], [True] * 4, [False, True, True, True])
    assert found[5] == ([0, 0, 4, 5], [False, False, True, True], [False, False, True, True])
    assert found[6] == ([0, 0, 0, 6], [False, False, False, True], [False, False, False, True])
    assert batch.dones[batch.indices == 5][0, :, 0].tolist() == [0, 0, 0, 1]


def test_overwritten_beginning_of_an_episode_counts_as_padding() -> None:
    batch = filled([3, 7], capacity=5).sample_sequences(200, length=4)
    assert batch.rewards[batch.valid].min() == 5  # rows 5..9 are stored; the episode began with row 3
    assert {tuple(row) for row in batch.rewards[:, :, 0].tolist()} >= {(0, 0, 0, 5), (0, 0, 5, 6), (6, 7, 8, 9)}


def test_sequence_of_the_running_episode_ends_at_the_write_head() -> None:
    replay = filled([3])
    obs = np.zeros((1, 1), np.float32)
    for t in (3.0, 4.0):
        replay.add(obs, obs, np.array([0]), np.array([t]), np.array([False]), [{}])
    batch = replay.sample_sequences(100, length=3)
    running = batch.rewards[batch.indices >= 3][:, :, 0].tolist()
    assert {tuple(row) for row in running} == {(0, 3, 4), (0, 0, 3)}


def test_place_of_the_pivot_is_uniform_where_the_episode_is_long() -> None:
    batch = filled([100]).sample_sequences(20_000, length=5, burn_in=3)
    inside = batch.pivots[(batch.indices >= 10) & (batch.indices < 90)].numpy()
    counts = np.bincount(inside - 3, minlength=5)
    assert ((counts - len(inside) / 5) ** 2 / (len(inside) / 5)).sum() < 18.5  # 99.9 % quantile of chi-square, 4 degrees


@pytest.mark.parametrize(
    ("pivot_at", "last", "first"),
    # Of `length` = 5 windows that hold a transition in the middle: 5 * 5 pairs of pivot and offset, at an end 1 + 2 + ... + 5.
    [("random", 15 / 25, 15 / 25), ("end", 1 / 5, 1.0)],
)
def test_share_of_the_ends_of_an_episode(pivot_at: Any, last: float, first: float) -> None:
    batch = filled([40]).sample_sequences(40_000, length=5, pivot_at=pivot_at)
    counts = Counter(batch.rewards[batch.learn][:, 0].int().tolist())
    middle = np.mean([counts[t] for t in range(10, 30)])
    assert counts[39] / middle == pytest.approx(last, rel=0.06)
    assert counts[0] / middle == pytest.approx(first, rel=0.06)


def test_reported_errors_reach_the_pivots() -> None:
    replay = filled([10, 10], replay_class=PrioritizedReplay)
    batch = replay.sample_sequences(6, length=4)
    errors = th.arange(24.0).reshape(6, 4)
    at_pivots = batch.at_pivots(errors)
    assert at_pivots.tolist() == [errors[i, c].item() for i, c in enumerate(batch.pivots.tolist())]
    replay.update(batch.indices, at_pivots)
    last = {int(slot): float(error) for slot, error in zip(batch.indices, at_pivots, strict=True)}  # a slot drawn twice: the last
    for slot, error in last.items():
        assert replay.sampler.tree.get(np.array([slot]))[0] == pytest.approx((error + 1e-6) ** 0.6, rel=1e-4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("strategy", ["future", "final", "episode", "random"])
@pytest.mark.parametrize("n_steps", [1, 3])
@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), n_envs=st.integers(1, 3))
def test_hindsight_gives_a_sequence_one_goal(strategy: Any, n_steps: int, seed: int, n_envs: int) -> None:
    gamma, total = 0.5, 6
    history = make_history(seed, 30, n_envs, capacity=40, observations="goal")
    replay = make_replay("hindsight", history, goal_selection_strategy=strategy, n_steps=n_steps, gamma=gamma)
    twin = history.twin()
    for add in history.adds:
        add.to(replay)
    batch = replay.sample_sequences(8, length=4, burn_in=2)
    num_relabelled = 0
    for i in range(8):
        env, rows = expected_rows(batch, twin, i, total)
        goals = batch.observations["desired_goal"][i, total - len(rows) :]  # type: ignore[call-overload]
        stored = [twin.streams[env][row].obs["desired_goal"] for row in rows]  # type: ignore[index]
        steps = [[twin.streams[env][r] for r in twin.path(twin.slot(env, row), n_steps)] for row in rows]
        if not np.array_equal(goals.numpy(), stored):
            num_relabelled += 1
            assert len(set(goals.flatten().tolist())) == 1
            allowed = twin.goal_places(twin.slot(env, rows[-1]), strategy)
            assert goals[0].item() in {twin.streams[e][r].next_obs["achieved_goal"].item() for e, r in allowed}  # type: ignore[index]
            assert th.equal(batch.next_observations["desired_goal"][i, total - len(rows) :], goals)  # type: ignore[call-overload]
        for t, (path, goal) in enumerate(zip(steps, goals.numpy(), strict=True), start=total - len(rows)):
            if np.array_equal(goals.numpy(), stored):
                rewards = [float(step.reward) for step in path]
            else:
                rewards = [float(compute_reward(s.next_obs["achieved_goal"][None], goal[None], [{}])[0]) for s in path]  # type: ignore[index]
            expected = sum(gamma**k * reward for k, reward in enumerate(rewards))
            np.testing.assert_allclose(batch.rewards[i, t].item(), expected, rtol=1e-5, atol=1e-4)
    assert num_relabelled >= 2


def test_normalisation_is_that_of_single_transitions() -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    env.reset()
    for _ in range(20):
        env.step(np.array([0, 1]))
    replay = UniformReplay(100, env.observation_space, env.action_space, "cpu", n_envs=2, seed=0)
    rng = np.random.default_rng(0)
    for t in range(20):
        obs, next_obs = rng.standard_normal((2, 2, 4)).astype(np.float32)
        replay.add(obs, next_obs, np.zeros(2), rng.standard_normal(2), np.full(2, t % 3 == 2), [{}, {}])
    batch = replay.sample_sequences(16, length=4, env=env)
    single = replay._get_samples(batch.indices, env)
    assert th.equal(batch.at_pivots(batch.rewards), single.rewards[:, 0])
    rows = th.arange(16)
    assert th.equal(batch.observations[rows, batch.pivots], single.observations)  # type: ignore[index]
    assert th.equal(batch.next_observations[rows, batch.pivots], single.next_observations)  # type: ignore[index]
    assert not th.equal(single.rewards, replay._get_samples(batch.indices).rewards)
    assert not batch.observations[~batch.valid].any()  # type: ignore[index]


def test_drawing_changes_nothing_stored_and_a_kept_batch_stays(tmp_path: Path) -> None:
    replay = filled([3, 2, 4], memmap_path=tmp_path)
    before = replay.state_dict()["storage"]["parts"][0]["columns"]
    batch = replay.sample_sequences(200, length=20)
    kept = batch.observations.clone()  # type: ignore[union-attr]
    for _ in range(6):
        replay.sample_sequences(200, length=20)
    assert th.equal(batch.observations, kept)  # type: ignore[arg-type]
    after = replay.state_dict()["storage"]["parts"][0]["columns"]
    assert all(np.array_equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"burn_in": -1}, "burn_in must be at least 0, got -1"),
        ({"pivot_at": "start"}, "pivot_at must be 'random' or 'end', got 'start'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled([3]).sample_sequences(**{"batch_size": 2, "length": 2, **options})


def test_empty_replay_is_refused() -> None:
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        filled([]).sample_sequences(2, 2)
