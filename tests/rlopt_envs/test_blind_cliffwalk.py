from itertools import product

import numpy as np
import pytest

from rlopt_envs.blind_cliffwalk import BlindCliffwalkEnv, BlindCliffwalkVectorEnv, memory


@pytest.mark.parametrize("num_states", [2, 6, 13])
def test_optimal_values_have_their_closed_form(num_states: int) -> None:
    env = BlindCliffwalkEnv(num_states)
    assert env.discount == 1.0 - 1.0 / num_states
    np.testing.assert_allclose(env.optimal_q[:-1, 1], env.discount ** np.arange(num_states - 1, -1, -1.0), rtol=1e-12)
    assert not env.optimal_q[:, 0].any()


def test_a_wrong_action_ends_the_episode_without_reward() -> None:
    env = BlindCliffwalkEnv(num_states=3)
    env.reset(seed=0)
    assert env.step(1)[:3] == (1, 0.0, False)
    assert env.step(0)[:3] == (3, 0.0, True)
    env.reset()
    assert [env.step(1)[:3] for _ in range(3)] == [(1, 0.0, False), (2, 0.0, False), (3, 1.0, True)]


@pytest.mark.parametrize("num_states", [1, 2, 3, 6])
def test_memory_equals_all_action_sequences_played_in_the_environment(num_states: int) -> None:
    env = BlindCliffwalkEnv(num_states)
    expected = []
    for sequence in product((0, 1), repeat=num_states):
        state, _ = env.reset()
        for action in sequence:
            following, reward, terminated, _, _ = env.step(action)
            expected.append((state, action, reward, following, terminated))
            state = following
            if terminated:
                break
    rollout = memory(num_states)
    columns = (rollout.states[:-1], rollout.actions, rollout.rewards, rollout.next_states, rollout.terminated)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert rollout.states[-1] == 0


@pytest.mark.parametrize("num_states", [5, 16])
def test_memory_has_the_known_counts(num_states: int) -> None:
    rollout = memory(num_states)
    assert len(rollout.actions) == 2 ** (num_states + 1) - 2
    assert rollout.rewards.sum() == 1.0
    for state in range(num_states):
        for action in (0, 1):
            count = np.count_nonzero((rollout.states[:-1] == state) & (rollout.actions == action))
            assert count == 2 ** (num_states - state - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_states": 0}, "num_states must be a whole number >= 1, got 0"),
        ({"discount": -0.1}, r"discount must be in \[0, 1\), got -0.1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    for make in (BlindCliffwalkEnv, BlindCliffwalkVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)  # type: ignore[arg-type]


def test_a_memory_that_would_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="num_states must be at most 24, got 25"):
        memory(25)
