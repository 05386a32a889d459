from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rlopt.replay import Replay
from rlopt.replay.prioritized import RANK_STALENESS
from tests.replay.histories import make_history, make_replay

# Many draws without a report are what these tests are about; the warning is tested with the buffer.
pytestmark = pytest.mark.filterwarnings("ignore:PrioritizedReplay got no TD errors:UserWarning")


def filled(num_adds: int = 40, n_envs: int = 1, capacity: int = 40, **options: Any) -> Replay:
    history = make_history(0, num_adds, n_envs, capacity, observations="discrete")
    replay = make_replay("prioritized", history, **options)
    for add in history.adds:
        add.to(replay)
    return replay


def priorities(replay: Replay) -> NDArray[np.float64]:
    return np.asarray(replay.sampler.state_dict()["priorities"])


def chi_square(slots: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
    expected = probabilities * len(slots)
    counts = np.bincount(slots, minlength=len(probabilities))
    return float(((counts - expected) ** 2 / expected).sum())


def errors_for(num: int) -> NDArray[np.float64]:
    return np.random.default_rng(7).exponential(size=num) ** 2


# ---------------------------------------------------------------------- proportional


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_frequencies_are_proportional_to_the_power_of_the_priority(alpha: float) -> None:
    replay, errors = filled(alpha=alpha), errors_for(40)
    replay.update(np.arange(40), errors)
    slots = np.concatenate([replay.sample(20).indices for _ in range(1000)])
    mass = (errors + 1e-6) ** alpha
    assert priorities(replay) == pytest.approx(mass)
    large = mass * 20_000 / mass.sum() >= 5  # what the chi-square approximation needs
    pooled = np.append(mass[large], mass[~large].sum() + 1e-300) / mass.sum()
    place = np.full(40, large.sum())
    place[large] = np.arange(large.sum())
    assert chi_square(place[slots], pooled) < 77.0  # beyond the 99.9 % quantile for at most 40 degrees of freedom


def test_a_batch_takes_one_transition_of_every_stratum() -> None:
    replay = filled(alpha=1.0)
    replay.update(np.arange(40), np.full(40, 1.0))
    for _ in range(20):
        assert sorted(replay.sample(40).indices.tolist()) == list(range(40))
        assert np.array_equal(replay.sample(8).indices // 5, np.arange(8))


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_over_the_memory_are_the_formula(beta: float) -> None:
    replay, errors = filled(beta=beta), errors_for(40)
    replay.update(np.arange(40), errors)
    probabilities = (errors + 1e-6) ** 0.6 / ((errors + 1e-6) ** 0.6).sum()
    weights = (40 * probabilities) ** -beta
    weights /= weights.max()
    for _ in range(20):
        batch = replay.sample(16)
        np.testing.assert_allclose(batch.weights[:, 0], weights[batch.indices], rtol=1e-6)
        assert batch.weights.max().item() <= 1.0


def test_largest_weight_of_a_batch_is_exactly_one_under_batch_normalisation() -> None:
    replay, errors = filled(normalize="batch"), errors_for(40)
    replay.update(np.arange(40), errors)
    for _ in range(50):
        batch = replay.sample(8)
        assert batch.weights.max().item() == 1.0
        expected = ((errors + 1e-6)[batch.indices] / (errors + 1e-6)[batch.indices].min()) ** (-0.6 * 0.4)
        np.testing.assert_allclose(batch.weights[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("priority", ["proportional", "rank"])
def test_full_correction_makes_the_weighted_mean_proportional_to_the_plain_mean(priority: str) -> None:
    replay, errors = filled(priority=priority, beta=1.0), errors_for(40)
    quantity = np.random.default_rng(3).standard_normal((2, 40)) + 1.0
    replay.update(np.arange(40), errors)
    sums = np.zeros(2)
    for _ in range(300):
        batch = replay.sample(512)
        sums += quantity[:, batch.indices] @ batch.weights.numpy()[:, 0]
    # Proportional with one unknown factor, so two quantities tell: their ratio is that of the plain means.
    assert sums[0] / sums[1] == pytest.approx(quantity[0].mean() / quantity[1].mean(), rel=0.02)


def test_only_reported_transitions_change_their_priority() -> None:
    replay = filled(alpha=0.5, epsilon=0.25)
    replay.update(np.array([3, 8]), np.array([-3.75, 0.0]))
    expected = np.ones(40)
    expected[[3, 8]] = [2.0, 0.5]
    assert priorities(replay).tolist() == pytest.approx(expected.tolist())


def test_new_transitions_enter_at_the_largest_stored_priority() -> None:
    replay = filled(num_adds=10, alpha=1.0, epsilon=1e-9)
    assert priorities(replay).tolist() == [1.0] * 10  # the first ones enter at 1
    replay.update(np.arange(10), np.array([5.0, 2.0, 7.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    make_history(1, 1, capacity=40, observations="discrete").adds[0].to(replay)
    assert priorities(replay)[10] == pytest.approx(7.0)
    replay.update(np.array([2, 10]), np.array([3.0, 4.0]))
    make_history(2, 1, capacity=40, observations="discrete").adds[0].to(replay)
    assert priorities(replay)[11] == pytest.approx(5.0)


def test_new_transitions_forget_a_largest_priority_that_was_overwritten() -> None:
    history = make_history(0, 12, capacity=10, observations="discrete")
    replay = make_replay("prioritized", history, alpha=1.0, epsilon=1e-9)
    for add in history.adds[:10]:
        add.to(replay)
    replay.update(np.arange(10), np.array([100.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
    history.adds[10].to(replay)  # takes the place of the 100
    assert priorities(replay)[0] == pytest.approx(3.0)
    replay.update(np.array([0]), np.array([0.5]))
    history.adds[11].to(replay)  # takes the place of the 3
    assert priorities(replay)[1] == pytest.approx(2.0)


def test_new_transitions_of_several_environments_enter_alike() -> None:
    history = make_history(0, 7, n_envs=3, capacity=18, observations="discrete")
    replay = make_replay("prioritized", history, alpha=1.0, epsilon=1e-9)
    for add in history.adds[:6]:
        add.to(replay)
    replay.update(np.arange(18), np.array([9.0, 8.0, 7.0, *[1.0] * 14, 2.0]))
    history.adds[6].to(replay)
    assert priorities(replay)[:4].tolist() == pytest.approx([2.0, 2.0, 2.0, 1.0])


def test_root_of_the_tree_is_the_sum_of_the_priorities_after_100_000_updates() -> None:
    replay = filled()
    rng = np.random.default_rng(5)
    for _ in range(1000):
        replay.update(rng.integers(0, 40, 100), rng.exponential(size=100) ** 4)
    assert replay.sampler.tree.total == pytest.approx(priorities(replay).sum(), rel=1e-9)  # type: ignore[attr-defined]


def test_td_errors_are_clipped_where_asked() -> None:
    replay = filled(alpha=1.0, epsilon=1e-9, clip_td_error=1.0)
    replay.update(np.array([0, 1]), np.array([-30.0, 0.5]))
    assert priorities(replay)[:2].tolist() == pytest.approx([1.0, 0.5])


@pytest.mark.parametrize(("progress", "beta"), [(0.0, 0.4), (0.5, 0.65), (1.0, 0.9), (None, 0.4)])
def test_beta_goes_linearly_with_training_progress(progress: float | None, beta: float) -> None:
    replay = filled(beta_final=0.9)
    replay.begin_phase(3, progress=progress)
    assert replay.sampler.beta == pytest.approx(beta)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("alpha", "beta", "limit"), [(1.0, 0.0, 2.5), (0.6, 0.0, 2.0209), (0.6, 0.4, 1.6581), (0.6, 1.0, 1.0), (1.0, 1.0, 1.0)]
)
def test_fixed_point_of_one_state_with_terminal_rewards(alpha: float, beta: float, limit: float) -> None:
    replay = filled(alpha=alpha, beta=beta, beta_final=beta)
    rewards = np.zeros(40)
    rewards[::10] = 10.0  # 90 % zeros, 10 % tens
    value, tail = 1.0, []
    for t in range(2500):
        replay.update(np.arange(40), rewards - value)  # fresh priorities
        batch = replay.sample(32)
        weights = batch.weights.numpy()[:, 0]
        value += 0.05 * float((weights * (rewards[batch.indices] - value)).mean())
        if t >= 500:
            tail.append(value)
    assert np.mean(tail) == pytest.approx(limit, rel=0.02)


# ---------------------------------------------------------------------- rank


@pytest.mark.parametrize("alpha", [0.5, 0.7, 1.0])
def test_frequencies_fall_with_the_power_of_the_rank(alpha: float) -> None:
    replay, errors = filled(priority="rank", alpha=alpha), errors_for(40)
    replay.update(np.arange(40), errors)
    slots = np.concatenate([replay.sample(20).indices for _ in range(1000)])
    rank = np.empty(40)
    rank[np.argsort(-errors)] = np.arange(1, 41)
    assert chi_square(slots, rank**-alpha / (rank**-alpha).sum()) < 72.1  # 99.9 % quantile, 39 degrees of freedom


@pytest.mark.parametrize("normalize", ["memory", "batch"])
def test_rank_weights_are_the_formula(normalize: str) -> None:
    replay, errors = filled(priority="rank", normalize=normalize), errors_for(40)
    replay.update(np.arange(40), errors)
    rank = np.empty(40)
    rank[np.argsort(-errors)] = np.arange(1, 41)
    weights = (rank**-0.7) ** -0.5
    for _ in range(20):
        batch = replay.sample(16)
        largest = weights.max() if normalize == "memory" else weights[batch.indices].max()
        np.testing.assert_allclose(batch.weights[:, 0], weights[batch.indices] / largest, rtol=1e-6)


@pytest.mark.parametrize("wrapped", [False, True])
def test_new_transitions_stand_in_front_of_the_ranking_newest_first(wrapped: bool) -> None:
    num_old = 640
    history = make_history(0, num_old + 3, capacity=num_old if wrapped else 1000, observations="discrete")
    replay = make_replay("prioritized", history, priority="rank", alpha=1.0)
    for add in history.adds[:num_old]:
        add.to(replay)
    replay.update(np.arange(num_old), np.arange(float(num_old)))
    replay.sample(1)
    for add in history.adds[num_old:]:
        add.to(replay)
    assert RANK_STALENESS * num_old > 3  # not sorted anew
    slots = np.concatenate([replay.sample(500).indices for _ in range(40)])
    total = (1.0 / np.arange(1, num_old + 4)).sum()
    newest = [slot % num_old if wrapped else slot for slot in (num_old + 2, num_old + 1, num_old)]
    for rank, slot in enumerate([*newest, num_old - 1, num_old - 2], start=1):
        assert np.mean(slots == slot) == pytest.approx(1 / rank / total, abs=0.01)


def test_ranking_is_sorted_anew_once_enough_changed() -> None:
    replay = filled(num_adds=320, capacity=320, priority="rank", alpha=1.0)
    replay.update(np.arange(320), np.arange(320.0))
    assert np.bincount(replay.sample(2000).indices).argmax() == 319
    replay.update(np.arange(10), np.arange(10) + 1000.0)  # a share of 1/32: not yet
    assert np.bincount(replay.sample(2000).indices).argmax() == 319
    replay.update(np.array([20]), np.array([5000.0]))
    assert np.bincount(replay.sample(2000).indices).argmax() == 20


def test_rank_draws_stay_inside_the_stored_data_while_the_ring_fills_and_wraps() -> None:
    history = make_history(0, 200, n_envs=2, capacity=101, observations="discrete")
    replay = make_replay("prioritized", history, priority="rank")
    rng = np.random.default_rng(0)
    for t, add in enumerate(history.adds):
        add.to(replay)
        if t % 3 == 0:
            batch = replay.sample(9)
            assert batch.indices.min() >= 0
            assert batch.indices.max() < len(replay)
            assert batch.weights.max().item() <= 1.0
            replay.update(batch.indices, rng.exponential(size=9))
