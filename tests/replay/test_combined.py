import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.replay.histories import History, histories, make_history, make_replay


@given(histories(observations=("discrete",)), st.integers(1, 9))
def test_the_newest_transition_is_in_every_batch(history: History, batch_size: int) -> None:
    replay, twin = make_replay("combined", history), history.twin(0)
    for add in history.adds:
        add.to(replay)
        twin.add(*add)
        slots = replay.sample(batch_size).indices
        assert len(slots) == batch_size
        assert slots[0] in [twin.slot(env, twin.num_added - 1) for env in range(history.n_envs)]


def test_the_other_transitions_are_uniform_and_the_newest_of_all_environments_takes_turns_at_random() -> None:
    history = make_history(0, num_adds=8, n_envs=2, capacity=16)
    replay = make_replay("combined", history)
    for add in history.adds:
        add.to(replay)
    slots = np.stack([replay.sample(5).indices for _ in range(4000)])
    assert np.abs(np.bincount(slots[:, 0], minlength=16)[14:] - 2000).max() < 130  # 4 standard deviations
    expected = 16_000 / 16
    chi_square = ((np.bincount(slots[:, 1:].ravel(), minlength=16) - expected) ** 2 / expected).sum()
    assert chi_square < 37.7  # 99.9 % quantile with 15 degrees of freedom
