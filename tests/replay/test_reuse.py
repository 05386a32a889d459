"""Batches that may be written over by the next one."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rlopt.agents import DQN, SAC, TD3
from rlopt.replay import REPLAYS, PrioritizedReplay, Replay
from rlopt.replay.reuse import MAX_SIZES
from tests.replay.histories import History, assert_batches_equal, make_history, make_replay, observations_for


def pair(name: str, history: History, **options: Any) -> tuple[Replay, Replay]:
    """Two replays with the same transitions, the first of which reuses memory."""
    replays = make_replay(name, history, reuse_memory=True, **options), make_replay(name, history, **options)
    for replay in replays:
        for add in history.adds:
            add.to(replay)
    return replays


@pytest.mark.parametrize(
    ("name", "observations", "options"),
    [
        *((name, observations_for(name)[-1 if name == "hindsight" else 0], {}) for name in sorted(REPLAYS)),
        ("uniform", "image", {}),
        ("uniform", "dict", {}),
        ("uniform", "float64", {}),
        ("uniform", "box", {"layout": "shared"}),
        ("uniform", "box", {"n_steps": 3, "gamma": 0.9}),
    ],
)
def test_batches_are_those_of_a_replay_that_makes_them_anew(name: str, observations: str, options: dict[str, Any]) -> None:
    reusing, anew = pair(name, make_history(0, 90, 2, 60, observations=observations, actions="box"), **options)
    for phase in range(3):
        for replay in (reusing, anew):
            replay.begin_phase(5, lambda batch: batch.rewards, progress=phase / 3)
        for size in (7, 3, 7, 7):
            left, right = reusing.sample(size), anew.sample(size)
            assert_batches_equal(left, right)
            for replay, batch in ((reusing, left), (anew, right)):
                replay.update(batch.indices, batch.rewards)


def test_normalised_batches_are_made_anew() -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    env.reset()
    for _ in range(20):
        env.step(np.array([[0.3]]))
    reusing, anew = pair("uniform", make_history(0, 90, capacity=60, actions="box"))
    assert_batches_equal(reusing.sample(8, env), anew.sample(8, env))


def test_memory_of_a_batch_is_used_by_the_next_of_the_same_size_only() -> None:
    reusing, anew = pair("uniform", make_history(0, 90, capacity=60))
    first, other = reusing.sample(8), reusing.sample(5)
    kept = other.rewards.clone()
    second = reusing.sample(8)
    assert second.observations.data_ptr() == first.observations.data_ptr()
    assert th.equal(first.rewards, second.rewards)
    assert th.equal(other.rewards, kept)
    assert first.indices.tolist() != second.indices.tolist()
    assert anew.sample(8).observations.data_ptr() != anew.sample(8).observations.data_ptr()


def test_indices_and_importance_weights_are_not_written_over() -> None:
    """Agents keep them for their logs."""
    reusing, anew = pair("prioritized", make_history(0, 90, capacity=60))
    for replay in (reusing, anew):
        replay.update(np.arange(60), np.arange(1.0, 61.0))
    kept, expected = [[replay.sample(8) for _ in range(5)] for replay in (reusing, anew)]
    for left, right in zip(kept, expected, strict=True):
        assert left.indices.tolist() == right.indices.tolist()
        assert th.equal(left.weights, right.weights)


def test_what_a_learner_wrote_to_a_batch_is_gone_from_the_next() -> None:
    reusing, anew = pair("uniform", make_history(0, 90, capacity=60))
    for part in reusing.sample(8):
        if isinstance(part, th.Tensor):
            part.zero_()
    anew.sample(8)
    assert_batches_equal(reusing.sample(8), anew.sample(8))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda replay: pickle.loads(pickle.dumps(replay))])
def test_a_copy_has_memory_of_its_own(copied: Any) -> None:
    reusing, anew = pair("uniform", make_history(0, 90, capacity=60))
    reusing.sample(8)
    anew.sample(8)
    other = copied(reusing)
    assert other.sample(8).observations.data_ptr() != reusing.sample(8).observations.data_ptr()
    anew.sample(8)
    assert_batches_equal(other.sample(8), anew.sample(8))


def test_memory_is_kept_for_few_sizes() -> None:
    reusing, _ = pair("uniform", make_history(0, 90, capacity=60))
    for size in range(1, 30):
        assert len(reusing.sample(size).rewards) == size
    assert len(reusing._memories) == MAX_SIZES


def test_scoring_a_memory_leaves_the_last_batch_as_it_is() -> None:
    reusing, _ = pair("introspective", make_history(0, 90, capacity=60))
    batch = reusing.sample(60)
    rewards = batch.rewards.clone()
    seen: list[th.Tensor] = []

    def td_error(scored: Any) -> th.Tensor:
        seen.append(scored.rewards)
        return th.from_numpy(np.arange(len(scored.rewards)))

    reusing.begin_phase(3, td_error)
    assert len(seen[0]) == 60
    assert th.equal(batch.rewards, rewards)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("kind", "env_id"), [(DQN, "CartPole-v1"), (TD3, "Pendulum-v1"), (SAC, "Pendulum-v1")])
def test_agents_learn_the_same_and_log_the_same(kind: Any, env_id: str, fast: bool) -> None:
    agents = []
    for reuse in (False, True):
        options = {"learning_starts": 20, "batch_size": 16, "buffer_size": 80, "policy_kwargs": {"net_arch": [16]}}
        agent = kind(
            "MlpPolicy", env_id, replay_buffer_class=PrioritizedReplay, replay_buffer_kwargs={"reuse_memory": reuse},
            fast=fast, seed=0, device="cpu", **options,
        )  # fmt: skip
        agents.append(agent.learn(120, log_interval=10**6))
    left, right = (agent.policy.state_dict() for agent in agents)
    assert all(th.equal(left[name], right[name]) for name in left)
    one, other = (agent._diagnostics.report(agent.replay_buffer) for agent in agents)
    assert one == other
