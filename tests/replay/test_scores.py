"""Which scores are made in a phase."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlopt.replay.scores import _BLOCK, ScoreTable, _largest


@pytest.mark.parametrize("num", [0, 40, 4 * _BLOCK, 6 * _BLOCK + 5])
@pytest.mark.parametrize("count", [0, 1, 3, 5, 300])
@pytest.mark.parametrize("kinds", [1, 3, 10**6])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_largest_scores_are_those_of_a_stable_sort(num: int, count: int, kinds: int, order: str) -> None:
    scores = np.random.default_rng(0).integers(0, kinds, num).astype(np.float32) / 7
    if order != "random":
        scores = np.sort(scores) if order == "ascending" else np.sort(scores)[::-1].copy()
    assert _largest(scores, count).tolist() == np.argsort(-scores, kind="stable")[:count].tolist()


@given(
    period=st.integers(1, 9),
    new=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    num_largest=st.integers(0, 6),
    seed=st.integers(0, 2**31),
)
def test_every_phase_scores_what_the_definition_says(period: int, new: list[int], num_largest: int, seed: int) -> None:
    """A ring of 50 slots; what is due is found again from lists of scores and of the phases that they are of."""
    rng, size = np.random.default_rng(seed), 50
    table = ScoreTable(size, period)
    score: dict[int, float] = {}  # slot -> score
    until: dict[int, int] = {}  # slot -> phase in which it has to be made again
    num_added = 0
    for phase, num_new in enumerate(new):
        fresh = [(num_added + i) % size for i in range(num_new)]
        num_added += num_new
        table.forget(np.array(fresh, np.int64))
        for slot in fresh:
            score[slot] = 0.0
            until.pop(slot, None)
        num = min(num_added, size)
        due = table.due(num, num_largest)
        largest = sorted(range(num), key=lambda slot: (-score[slot], slot))[:num_largest]
        assert due.tolist() == [slot for slot in range(num) if slot in largest or until.get(slot, 0) <= phase]
        made = rng.integers(0, 20, len(due)).astype(float)
        table.note(due, made)
        unknown = [slot for slot in due.tolist() if slot not in until]
        for slot, value in zip(due.tolist(), made.tolist(), strict=True):
            score[slot], until[slot] = value, phase + period
        for place, slot in enumerate(unknown):
            until[slot] = phase + 1 + place * period // len(unknown)


def test_many_new_slots_come_again_equally_spread_and_then_once_per_period() -> None:
    table = ScoreTable(1000, 10)
    counts = []
    for _ in range(31):
        due = table.due(1000, 0)
        counts.append(len(due))
        table.note(due, np.zeros(len(due)))
    assert counts == [1000] + [100] * 30


def test_a_state_holds_the_scores_of_the_slots_in_use() -> None:
    table, other = ScoreTable(10, 4), ScoreTable(10, 4)
    other.note(other.due(10, 0), np.arange(10.0))
    table.note(table.due(6, 0), np.arange(6.0))
    state = table.state_dict(6)
    assert [len(state[name]) for name in ("scores", "due_at")] == [6, 6]
    other.load_state_dict(state)
    assert other.due(10, 1).tolist() == table.due(10, 1).tolist() == [0, 1, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("size", [1, 7])
def test_bytes_are_those_of_a_score_and_a_phase_per_slot(size: int) -> None:
    assert ScoreTable(size, 3).nbytes == 8 * size
