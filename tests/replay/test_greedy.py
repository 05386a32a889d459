from typing import Any

import numpy as np
import torch as th
from hypothesis import given
from hypothesis import strategies as st

from rlopt.replay import ReplayBatch
from tests.replay.histories import History, histories, make_history, make_replay
from tests.replay.twin import ranked


def scores_by_slot(scores: dict[int, float]) -> Any:
    def td_error(batch: ReplayBatch) -> th.Tensor:
        return th.tensor([scores[slot] for slot in batch.indices.tolist()])

    return td_error


@given(histories(observations=("discrete",)), st.integers(1, 9), st.integers(0, 2**31))
def test_batches_are_the_largest_scores_and_what_was_taken_becomes_the_smallest(
    history: History, batch_size: int, seed: int
) -> None:
    replay = make_replay("greedy", history)
    for add in history.adds:
        add.to(replay)
    order = replay.storage.all_slots().tolist()
    scores = np.random.default_rng(seed).integers(1, 6, len(order)).astype(float)
    signed = scores * np.where(np.arange(len(scores)) % 2, 1, -1)
    replay.begin_phase(4, scores_by_slot(dict(zip(order, signed, strict=True))))
    for _ in range(4):
        expected = list(ranked(scores))[:batch_size]
        assert replay.sample(batch_size).indices.tolist() == [order[i] for i in expected]
        scores[expected] = scores.min()


def test_draws_are_uniform_without_scores_and_after_new_data() -> None:
    history = make_history(0, num_adds=30)
    replay = make_replay("greedy", history)
    for add in history.adds[:20]:
        add.to(replay)
    replay.sample(4)
    replay.begin_phase(2)
    replay.sample(4)
    replay.begin_phase(2, lambda batch: batch.rewards)
    replay.sample(4)
    assert (replay.num_uniform_batches, replay.num_chosen_batches) == (2, 1)
    history.adds[20].to(replay)
    replay.sample(4)
    assert (replay.num_uniform_batches, replay.num_chosen_batches) == (3, 1)
