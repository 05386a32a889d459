from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlopt.replay import HindsightReplay, ReplayBatch
from rlopt.replay.prioritized import PrioritizedConfig, ProportionalSampler
from tests.replay.histories import GOAL_SPACE, History, assert_batch_of_twin, compute_reward, make_history, make_replay
from tests.replay.twin import Twin

STRATEGIES = ("future", "final", "episode", "random")


def goal_histories(max_adds: int = 50) -> st.SearchStrategy[History]:
    return st.builds(
        make_history,
        seed=st.integers(0, 2**31),
        num_adds=st.integers(1, max_adds),
        n_envs=st.integers(1, 3),
        capacity=st.integers(1, 60),
        end_share=st.sampled_from([0.0, 0.1, 0.4, 1.0]),
        observations=st.just("goal"),
    )


def filled(history: History, **options: Any) -> HindsightReplay:
    replay = make_replay("hindsight", history, **options)
    for add in history.adds:
        add.to(replay)
    assert isinstance(replay, HindsightReplay)
    return replay


def goals(batch: ReplayBatch) -> NDArray[np.float32]:
    assert isinstance(batch.observations, dict)
    assert isinstance(batch.next_observations, dict)
    assert th.equal(batch.observations["desired_goal"], batch.next_observations["desired_goal"])
    return batch.observations["desired_goal"].numpy()[:, 0]


def reached(twin: Twin, env: int, row: int) -> float:
    """The goal that was achieved after a transition."""
    next_obs = twin.streams[env][row].next_obs
    assert isinstance(next_obs, dict)
    return float(next_obs["achieved_goal"][0])


def desired(twin: Twin, slot: int) -> float:
    obs = twin.at(slot).obs
    assert isinstance(obs, dict)
    return float(obs["desired_goal"][0])


@pytest.mark.parametrize("layout", ["plain", "shared"])
@given(history=goal_histories(), strategy=st.sampled_from(STRATEGIES), n_steps=st.integers(1, 4))
def test_goals_rewards_and_the_rest_equal_the_twins(layout: str, history: History, strategy: str, n_steps: int) -> None:
    gamma = 0.8
    replay = filled(history, goal_selection_strategy=strategy, layout=layout, n_steps=n_steps, gamma=gamma)
    twin = history.twin()
    batch = replay.sample(32)
    assert isinstance(batch.observations, dict)
    assert isinstance(batch.next_observations, dict)
    for i, (slot, goal) in enumerate(zip(batch.indices.tolist(), goals(batch).tolist(), strict=True)):
        env, _ = twin.place(slot)
        path = twin.path(slot, n_steps)
        original = twin.n_step_return(slot, n_steps, gamma)
        if goal == desired(twin, slot):
            expected = original.reward
        else:
            assert goal in [reached(twin, *place) for place in twin.goal_places(slot, strategy)]
            expected = sum(gamma**j * (reached(twin, env, row) - goal) for j, row in enumerate(path))
        assert batch.rewards[i, 0].item() == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert batch.dones[i, 0].item() == original.last.terminated  # never changed
        for key in ("observation", "achieved_goal"):
            assert np.array_equal(batch.observations[key][i], twin.at(slot).obs[key])  # type: ignore[call-overload]
            assert np.array_equal(batch.next_observations[key][i], original.last.next_obs[key])  # type: ignore[call-overload]


@pytest.mark.parametrize(("k", "share"), [(1, 0.5), (4, 0.8), (9, 0.9)])
def test_share_of_hindsight_goals(k: int, share: float) -> None:
    history = make_history(0, 200, capacity=200, observations="goal")
    replay, twin = filled(history, n_sampled_goal=k), history.twin()
    relabelled, total = 0, 20_000
    for _ in range(total // 500):
        batch = replay.sample(500)
        relabelled += sum(
            goal != desired(twin, slot) for slot, goal in zip(batch.indices.tolist(), goals(batch).tolist(), strict=True)
        )
    assert relabelled / total == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / total))


def test_without_hindsight_goals_the_data_is_unchanged() -> None:
    history = make_history(0, 80, n_envs=2, capacity=60, observations="goal")
    assert_batch_of_twin(filled(history, n_sampled_goal=0).sample(200), history.twin())


@pytest.mark.parametrize(("strategy", "expected"), [("future", range(4, 10)), ("final", [9]), ("episode", range(10))])
def test_goals_are_uniform_over_their_times(strategy: str, expected: Any) -> None:
    # One episode of 10 transitions, the state after step t achieved 1000 + t. Only transition 4 is asked.
    history = make_history(0, 10, capacity=10, end_share=0.0, observations="goal")
    history.adds[-1].truncated[:] = True
    replay, twin = filled(history, goal_selection_strategy=strategy), history.twin()
    batch = replay._get_samples(np.full(12_000, 4))
    times = goals(batch)[goals(batch) != np.float32(desired(twin, 4))] - 1000
    counts = np.bincount(times.astype(int), minlength=10)
    assert np.flatnonzero(counts).tolist() == list(expected)
    mean = len(times) / len(expected)
    assert np.abs(counts[list(expected)] - mean).max() < 4.5 * np.sqrt(mean)


def test_random_goals_come_from_everything_that_is_stored() -> None:
    history = make_history(0, 30, n_envs=2, capacity=20, observations="goal")
    replay, twin = filled(history, goal_selection_strategy="random"), history.twin()
    seen = set(goals(replay.sample(3000)).tolist()) - {desired(twin, slot) for slot in range(20)}
    assert seen == {reached(twin, *place) for place in twin.places()}


def test_goals_go_with_other_samplers() -> None:
    history = make_history(0, 40, capacity=40, observations="goal")
    sampler = ProportionalSampler(PrioritizedConfig(alpha=1.0))
    replay = filled(history, sampler=sampler)
    replay.update(np.arange(40), np.where(np.arange(40) == 7, 1e6, 1e-3))
    batch = replay.sample(50)
    assert set(batch.indices.tolist()) == {7}
    assert len(set(goals(batch).tolist())) > 1


class FakeVecEnv:
    """What hindsight replay asks of a vectorised environment."""

    def env_method(self, name: str, *arguments: Any, indices: list[int]) -> list[Any]:
        assert name == "compute_reward"
        return [compute_reward(*arguments) for _ in indices]


def test_environment_and_function_give_equal_rewards() -> None:
    history = make_history(0, 40, capacity=40, observations="goal")
    with_function = filled(history)
    with_env = filled(history, compute_reward=None, env=FakeVecEnv())
    attached = filled(history, compute_reward=None)
    attached.set_env(FakeVecEnv())  # type: ignore[arg-type]
    batches = [replay.sample(50) for replay in (with_function, with_env, attached)]
    assert th.equal(batches[0].rewards, batches[1].rewards)
    assert th.equal(batches[0].rewards, batches[2].rewards)


def test_without_a_way_to_compute_rewards_sampling_says_what_is_missing() -> None:
    history = make_history(0, 5, observations="goal")
    replay = filled(history, compute_reward=None)
    with pytest.raises(ValueError, match="needs env or compute_reward"):
        replay.sample(50)


def test_a_given_function_wins_over_the_environment_that_agents_pass() -> None:
    def always_seven(achieved: np.ndarray, desired: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        return np.full(len(achieved), 7.0, np.float32)

    replay = filled(make_history(0, 30, observations="goal"), compute_reward=always_seven, n_sampled_goal=10**6)
    replay.set_env(FakeVecEnv())  # type: ignore[arg-type]
    assert set(replay.sample(20).rewards.flatten().tolist()) == {7.0}


@pytest.mark.parametrize("space", [GOAL_SPACE["observation"], spaces.Dict({"observation": GOAL_SPACE["observation"]})])
def test_observations_without_goals_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"must be a Dict with the keys observation, achieved_goal, desired_goal, got"):
        HindsightReplay(5, space, spaces.Discrete(2), "cpu", compute_reward=compute_reward)
