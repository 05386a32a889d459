import numpy as np
import pytest

from rlopt.replay.emphasize_recent import EmphasizeRecentConfig, EmphasizeRecentSampler
from rlopt.replay.storage import TransitionStorage
from tests.replay.histories import OBSERVATION_SPACES, make_history, make_replay


def sampler_for(capacity: int, **options: float) -> EmphasizeRecentSampler:
    sampler = EmphasizeRecentSampler(EmphasizeRecentConfig(**options))  # type: ignore[arg-type]
    storage = TransitionStorage(capacity, OBSERVATION_SPACES["discrete"], OBSERVATION_SPACES["discrete"])
    sampler.bind(storage, np.random.default_rng(0))
    return sampler


@pytest.mark.parametrize(("eta", "min_range", "last"), [(0.996, 5000, 18_169), (0.994, 1, 2434), (0.994, 5000, 5000)])
def test_range_of_the_last_draw_has_the_known_values(eta: float, min_range: int, last: int) -> None:
    sampler = sampler_for(1_000_000, eta=eta, min_range=min_range)
    sampler.begin_phase(50, None, None)
    assert sampler.range(50) == last


def test_range_follows_the_formula_and_never_widens() -> None:
    sampler = sampler_for(100_000, eta=0.997, min_range=7000)
    sampler.begin_phase(30, None, None)
    ranges = [sampler.range(k) for k in range(1, 31)]
    assert ranges == [max(int(100_000 * 0.997 ** (1000 * k / 30)), 7000) for k in range(1, 31)]
    assert ranges == sorted(ranges, reverse=True)
    assert sampler.range(31) == ranges[-1]  # draws beyond the announced ones


def test_eta_one_is_uniform_replay() -> None:
    sampler = sampler_for(20_000, eta=1.0)
    sampler.begin_phase(10, None, None)
    assert [sampler.range(k) for k in range(1, 11)] == [20_000] * 10


@pytest.mark.parametrize(("progress", "eta"), [(0.0, 0.99), (0.25, 0.9925), (1.0, 1.0)])
def test_eta_goes_linearly_with_training_progress(progress: float, eta: float) -> None:
    sampler = sampler_for(1000, eta=0.99, eta_final=1.0)
    sampler.begin_phase(10, None, progress)
    assert sampler.eta == pytest.approx(eta)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_draw_k_is_uniform_over_the_newest(n_envs: int) -> None:
    history = make_history(0, num_adds=150, n_envs=n_envs, capacity=120 * n_envs, observations="discrete")
    replay = make_replay("emphasize_recent", history, eta=0.997, min_range=20)
    for add in history.adds:
        add.to(replay)
    order = replay.storage.all_slots().tolist()
    for _ in range(3):
        replay.begin_phase(6)
        for k in range(1, 7):
            newest = max(int(120 * n_envs * 0.997 ** (1000 * k / 6)), 20)
            logical = np.array([order.index(slot) for slot in replay.sample(2000).indices.tolist()])
            assert logical.min() >= len(order) - newest
            counts = np.bincount(logical - (len(order) - newest), minlength=newest)
            expected = 2000 / newest
            freedom = newest - 1
            assert ((counts - expected) ** 2 / expected).sum() < freedom + 4.5 * np.sqrt(2 * freedom)


def test_without_announcements_the_last_phase_tells_the_length_of_the_next() -> None:
    history = make_history(0, num_adds=60, capacity=50, observations="discrete")
    replay = make_replay("emphasize_recent", history, eta=0.99, min_range=5)
    for add in history.adds[:55]:
        add.to(replay)
    # The first phase is uniform.
    assert len({slot for _ in range(4) for slot in replay.sample(500).indices.tolist()}) == 50
    history.adds[55].to(replay)
    newest_first = replay.storage.all_slots()[::-1].tolist()
    for k in range(1, 5):
        widest = max(int(50 * 0.99 ** (1000 * k / 4)), 5)
        assert set(replay.sample(500).indices.tolist()) == set(newest_first[:widest])
