import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlopt.replay.sampler import top_k
from tests.replay.twin import ranked


@given(st.lists(st.integers(-5, 5), max_size=60), st.integers(-1, 70))
def test_top_k_is_the_head_of_a_stable_sort(scores: list[int], k: int) -> None:
    array = np.array(scores, np.float64)
    assert top_k(array, k).tolist() == list(ranked(array))[: max(k, 0)]


def test_top_k_of_scores_that_are_not_numbers_chooses_nothing_twice() -> None:
    chosen = top_k(np.array([np.nan, 1.0, 3.0, np.inf, 2.0]), 3).tolist()
    assert len(set(chosen)) == len(chosen) <= 3
