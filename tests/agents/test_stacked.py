"""Agents that are trained together learn what each learns alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from rlopt.agents import Checkpoints, StackedAgents
from rlopt.agents.agent_state import take_random
from rlopt.optim import NonFiniteError
from rlopt.replay import ReverseReplay
from tests.agents.fast_agents import AGENTS, discrete, weights

SEEDS = (3, 0, 8)
KINDS = [
    "dqn", "dqn_double", "dqn_prioritized", "dqn_introspective", "dqn_tanh", "dqn_shared", "dqn_normalize", "dqn_schedule",
    "td3", "td3_tanh", "td3_prioritized", "ddpg", "sac", "sac_tanh", "sac_fixed", "sac_normalize",
]  # fmt: skip


def maker(name: str, **changes: Any) -> Any:
    return lambda seed: AGENTS[name](fast=True, **{"seed": seed, **changes})


@pytest.mark.parametrize("name", KINDS)
def test_each_learns_what_it_learns_alone(name: str) -> None:
    stack = StackedAgents(maker(name), SEEDS).learn(140)
    assert not stack.errors
    for seed, agent in zip(SEEDS, stack.agents, strict=True):
        alone = maker(name)(seed).learn(140)
        assert agent._n_updates == alone._n_updates >= 10
        if name.endswith("tanh"):  # several networks at once in torch
            np.testing.assert_allclose(weights(agent), weights(alone), atol=2e-6)
            continue
        assert np.array_equal(weights(agent), weights(alone))
        for column in ("actions", "rewards"):
            kept = [one.replay_buffer.storage.column(column) for one in (agent, alone)]
            assert np.array_equal(*kept)
        logged = [{key: one.logger.name_to_value[key] for key in one.logger.name_to_value} for one in (agent, alone)]
        assert {key for key in logged[0] if not key.startswith("time/")} == {
            key for key in logged[1] if not key.startswith("time/")
        }
        assert logged[0]["train/n_updates"] == logged[1]["train/n_updates"]
    assert not np.array_equal(weights(stack.agents[0]), weights(stack.agents[1]))


def test_a_thousand_updates_are_the_same() -> None:
    stack = StackedAgents(maker("dqn"), SEEDS[:2]).learn(1100)
    alone = maker("dqn")(SEEDS[1]).learn(1100)
    assert alone._n_updates > 1000
    assert np.array_equal(weights(stack.agents[1]), weights(alone))


def test_batches_of_different_size_are_learned_one_after_the_other() -> None:
    def make(seed: int) -> Any:
        agent = maker("dqn", replay_buffer_class=ReverseReplay)(seed)
        if seed == SEEDS[1]:  # as at the edge of the data
            draw = agent.replay_buffer.sampler.draw
            agent.replay_buffer.sampler.draw = lambda size: draw(max(size // 2, 1))
        return agent

    stack = StackedAgents(make, SEEDS).learn(120)
    for seed, agent in zip(SEEDS, stack.agents, strict=True):
        assert np.array_equal(weights(agent), weights(make(seed).learn(120)))


def test_agents_go_on_together_or_alone_and_leave_the_process_as_it_was() -> None:
    make = maker("sac")
    before = take_random()
    stack = StackedAgents(make, SEEDS)
    stack.learn(80)
    after = take_random()
    assert np.array_equal(before["numpy"][1], after["numpy"][1])
    assert th.equal(before["torch"], after["torch"])
    stack.learn(60)
    stack.learn(30, reset_num_timesteps=False)
    alone = make(SEEDS[2]).learn(80).learn(60).learn(30, reset_num_timesteps=False)
    assert stack.agents[2].num_timesteps == 90
    assert np.array_equal(weights(stack.agents[2]), weights(alone))
    stack.agents[0].learn(50)
    assert stack.agents[0].num_timesteps == 50


class Stop(BaseCallback):
    """Ends training, or fails, at a step."""

    def __init__(self, step: int, fails: bool = False) -> None:
        super().__init__()
        self._step, self._fails = step, fails

    def _on_step(self) -> bool:
        if self._fails and self.num_timesteps == self._step:
            raise RuntimeError("of the callback")
        return self.num_timesteps < self._step


def test_one_agent_ends_and_the_others_go_on() -> None:
    make = maker("dqn")
    stack = StackedAgents(make, SEEDS).learn(140, callbacks=[Stop(90), Stop(70, fails=True), None])
    assert [agent.num_timesteps for agent in stack.agents] == [90, 70, 140]
    assert {index: str(error) for index, error in stack.errors.items()} == {1: "of the callback"}
    assert np.array_equal(weights(stack.agents[0]), weights(make(SEEDS[0]).learn(140, callback=Stop(90))))
    assert np.array_equal(weights(stack.agents[2]), weights(make(SEEDS[2]).learn(140)))


class Spoil(BaseCallback):
    """Makes the rewards of a replay infinite at a step."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 60:
            self.model.replay_buffer.storage.column("rewards")[:] = np.float32(3e38)  # type: ignore[attr-defined]
        return True


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_agent_that_meets_nan_fails_alone(name: str) -> None:
    make = maker(name)
    stack = StackedAgents(make, SEEDS).learn(100, callbacks=[None, Spoil(), None])
    assert list(stack.errors) == [1]
    assert isinstance(stack.errors[1], NonFiniteError)
    for index in (0, 2):
        assert np.array_equal(weights(stack.agents[index]), weights(make(SEEDS[index]).learn(100)))


@pytest.mark.parametrize("name", ["td3", "sac"])
def test_updates_of_one_agent_are_left_out(name: str) -> None:
    make = maker(name, non_finite="skip")
    with pytest.warns(UserWarning, match="the update is left out"):
        stack = StackedAgents(make, SEEDS).learn(70, callbacks=[None, Spoil(), None])
    with pytest.warns(UserWarning, match="the update is left out"):
        alone = make(SEEDS[1]).learn(70, callback=Spoil())
    assert [agent.num_skipped_updates for agent in stack.agents] == [0, alone.num_skipped_updates, 0]
    assert alone.num_skipped_updates > 0
    assert np.array_equal(weights(stack.agents[1]), weights(alone))
    assert np.array_equal(weights(stack.agents[2]), weights(make(SEEDS[2]).learn(70)))


@pytest.mark.parametrize("name", ["dqn_introspective", "td3", "sac"])
def test_stopped_agents_go_on_from_their_checkpoints(name: str, tmp_path: Path) -> None:
    make = maker(name)

    def checkpoints(every: int = 40) -> list[Checkpoints]:
        return [Checkpoints(tmp_path / str(seed), every=every) for seed in SEEDS]

    StackedAgents(make, SEEDS).learn(100, checkpoints=checkpoints())
    # One was stopped sooner.
    for path in Checkpoints(tmp_path / str(SEEDS[1])).paths()[1:]:
        os.rename(path, tmp_path / "newest")
    stack = StackedAgents(make, SEEDS).learn(150, checkpoints=checkpoints())
    for seed, agent in zip(SEEDS, stack.agents, strict=True):
        assert agent.num_timesteps == 150
        alone = make(seed).learn(150)
        assert np.array_equal(weights(agent), weights(alone))
    # An agent alone goes on where agents together stopped.
    alone = make(SEEDS[0]).learn(180, checkpoints=checkpoints()[0])
    assert np.array_equal(weights(alone), weights(make(SEEDS[0]).learn(180)))


class Kill(BaseCallback):
    """Sends this process a signal."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 90:
            os.kill(os.getpid(), signal.SIGINT)
        return True


def test_signal_saves_all_agents(tmp_path: Path) -> None:
    make = maker("dqn")
    checkpoints = [Checkpoints(tmp_path / str(seed), every=1000) for seed in SEEDS]
    with pytest.raises(KeyboardInterrupt):
        StackedAgents(make, SEEDS).learn(140, callbacks=[None, Kill(), None], checkpoints=checkpoints)
    assert [one.num_timesteps for one in checkpoints] == [90, 90, 90]
    stack = StackedAgents(make, SEEDS).learn(140, checkpoints=[Checkpoints(tmp_path / str(seed)) for seed in SEEDS])
    for seed, agent in zip(SEEDS, stack.agents, strict=True):
        assert np.array_equal(weights(agent), weights(make(seed).learn(140)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda seed: discrete(seed=seed), "make must return agents of rlopt with fast=True"),
        (lambda seed: discrete(seed=None, fast=True), "make must give agents their seeds"),
        (lambda seed: discrete(seed=seed, fast=True, gamma=0.9 + seed / 100), "got gamma 0.93 and 0.9"),
        (lambda seed: discrete(seed=seed, fast=True, learning_rate=1e-3 * (1 + seed)), "networks and optimizers of one form"),
        (lambda seed: discrete(seed=seed, fast=True, train_freq=(1, "episode")), "train_freq must be in steps"),
        (
            lambda seed: discrete(seed=seed, fast=True, policy_kwargs={"net_arch": [8 + seed]}),
            "networks and optimizers of one form",
        ),
    ],
)
def test_agents_that_do_not_go_together_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StackedAgents(make, SEEDS)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="seeds must hold at least one seed"):
        StackedAgents(maker("dqn"), [])
    with pytest.raises(ValueError, match="callbacks must be one for each of 3 agents, got 1"):
        StackedAgents(maker("dqn"), SEEDS).learn(10, callbacks=[None])
