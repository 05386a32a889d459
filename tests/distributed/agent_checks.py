"""What every process of a torchrun checks about PPO on several processes."""

from __future__ import annotations

import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.distributed as dist
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlopt.agents import PPO, Checkpoints
from rlopt.agents.distributed import DistributedPPO
from rlopt.optim import Adam, NonFiniteError, Sgd

NUM_ENVS, NUM_STEPS = 2, 6
Numbers = dict[str, float]


def environments(num_envs: int = NUM_ENVS) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make("CartPole-v1")] * num_envs)


def make(kind: Any, num_envs: int = NUM_ENVS, **options: Any) -> Any:
    options = {"n_steps": NUM_STEPS, "batch_size": NUM_STEPS * num_envs, "n_epochs": 3, "seed": 0, "device": "cpu"} | options
    return kind("MlpPolicy", options.pop("env", None) or environments(num_envs), **options)


def fill(agent: Any, envs: slice, *, far: float) -> None:
    """Give an agent the rollouts of some of the environments of all processes; far: how unlike their actions became there."""
    rng, size = np.random.default_rng(0), dist.get_world_size()
    shape = (NUM_STEPS, NUM_ENVS * size)
    buffer = agent.rollout_buffer
    buffer.reset()
    buffer.observations = rng.normal(size=(*shape, 4)).astype(np.float32)[:, envs]
    buffer.actions = rng.integers(2, size=(*shape, 1)).astype(np.float32)[:, envs]
    for name in ("values", "advantages", "returns"):
        setattr(buffer, name, rng.normal(size=shape).astype(np.float32)[:, envs])
    distance = np.where(np.arange(shape[1]) < NUM_ENVS, 0.0, far)  # the environments of the first process are as they were
    buffer.log_probs = (-0.7 - distance + 0.1 * rng.normal(size=shape)).astype(np.float32)[:, envs]
    buffer.full, buffer.generator_ready = True, False
    agent._setup_learn(1)


def both(**options: Any) -> tuple[Any, Any]:
    """An agent with the environments of all processes, and that of this process."""
    size, rank = dist.get_world_size(), dist.get_rank()
    far = options.pop("far", 0.2)
    whole, own = make(PPO, NUM_ENVS * size, **options), make(DistributedPPO, **options)
    fill(whole, slice(None), far=far)
    fill(own, slice(rank * NUM_ENVS, (rank + 1) * NUM_ENVS), far=far)
    return whole, own


def gradients(**options: Any) -> Numbers:
    whole, own = both(**options)
    for agent in (whole, own):
        agent.policy.set_training_mode(True)
        batch = next(iter(agent.rollout_buffer.get(None)))
        agent._evaluate(batch, 0.2, None)[0].backward()
    pairs = zip(own.policy.named_parameters(), whole.policy.parameters(), strict=True)
    return {name: (param.grad - other.grad).abs().max().item() for (name, param), other in pairs}


def training(num_steps: int, **options: Any) -> Numbers:
    """All epochs of an update; `num_steps`: how many steps the mean KL divergence lets pass."""
    whole, own = both(optimizer=Sgd(lr=0.1), **options)
    for agent in (whole, own):
        agent.count = 0
        agent.policy.optimizer.register_step_post_hook(lambda *_, agent=agent: setattr(agent, "count", agent.count + 1))
        agent.train()
        assert agent.count == num_steps, agent.count
    pairs = zip(own.policy.named_parameters(), whole.policy.parameters(), strict=True)
    return {name: (param - other).abs().max().item() for (name, param), other in pairs}


def learning(folder: Path) -> Numbers:
    agent = make(DistributedPPO, optimizer=Adam(lr=1e-3))
    assert agent.learn(2 * NUM_ENVS * NUM_STEPS * dist.get_world_size()) is agent
    assert agent.num_timesteps == 2 * NUM_ENVS * NUM_STEPS
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, agent.rollout_buffer.observations.tobytes())
    assert len(set(seen)) == len(seen), "processes saw the same observations"
    if dist.get_rank() == 0:
        agent.save(folder / "agent.zip")
        loaded = PPO.load(folder / "agent.zip", device="cpu")
        assert all(torch.equal(a, b) for a, b in zip(loaded.policy.parameters(), agent.policy.parameters(), strict=True))
    with torch.no_grad():
        next(agent.policy.parameters()).add_(float(dist.get_rank()))
    if dist.get_rank() > 0:
        with pytest.raises(RuntimeError, match="differ from those of the first"):
            agent.learn(0)
    else:
        agent.learn(0)
    return {}


def weights(agent: Any) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(agent.policy.parameters()).detach()


def going_on(folder: Path) -> Numbers:
    rollout = NUM_ENVS * NUM_STEPS * dist.get_world_size()
    rank = dist.get_rank()
    whole = make(DistributedPPO).learn(6 * rollout)

    def checkpoints() -> Checkpoints:
        return Checkpoints(folder / "run", every=NUM_ENVS * NUM_STEPS)

    make(DistributedPPO).learn(4 * rollout, checkpoints=checkpoints())
    resumed = make(DistributedPPO).learn(6 * rollout, checkpoints=checkpoints())
    assert resumed.num_timesteps == whole.num_timesteps
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.rollout_buffer.observations.tobytes() == whole.rollout_buffer.observations.tobytes()
    # One process has lost its newest: all go on from the one before.
    own = Checkpoints(folder / "run" / f"process_{rank}")
    assert [path.name for path in own.paths()] == ["step_0000000060", "step_0000000072"]
    if rank == 1:
        (own.paths()[-1] / "state.npz").unlink()
        with pytest.warns(UserWarning, match="state.npz is missing"):
            again = make(DistributedPPO).learn(6 * rollout, checkpoints=checkpoints())
    else:
        again = make(DistributedPPO).learn(6 * rollout, checkpoints=checkpoints())
    assert torch.equal(weights(again), weights(whole))
    # A signal to one ends all.
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(rank))

    def interrupt(*_: Any) -> bool:
        if rank == 1 and agent.num_timesteps == 10 * NUM_ENVS:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    agent = make(DistributedPPO)
    agent.learn(6 * rollout, callback=interrupt, checkpoints=Checkpoints(folder / "signal"))
    signal.signal(signal.SIGTERM, before)
    assert received == [rank]
    assert agent.num_timesteps == 2 * NUM_ENVS * NUM_STEPS
    dist.barrier()
    if rank == 0:
        (folder / "run" / "process_2").mkdir()
    with pytest.raises(ValueError, match="are those of 3 processes, got 2"):
        make(DistributedPPO).learn(rollout, checkpoints=checkpoints())
    return {}


def callback_of_one_process() -> Numbers:
    agent = make(DistributedPPO)
    agent.learn(10_000, callback=lambda *_: not (dist.get_rank() == 1 and agent.num_timesteps >= 3 * NUM_ENVS))
    assert agent.num_timesteps <= NUM_ENVS * NUM_STEPS
    return {}


class Breaking(gym.Wrapper[Any, Any, Any, Any]):
    """Gives nan as the reward of its fourth step, or as its first observation, on the second process."""

    count = 0

    def __init__(self, what: str) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.what = what

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        return observation * (np.nan if dist.get_rank() == 1 and self.what == "observation" else 1.0), info

    def step(self, action: Any) -> Any:
        self.count += 1
        observation, reward, *rest = self.env.step(action)
        return observation, np.nan if self.count == 4 and dist.get_rank() == 1 and self.what == "reward" else reward, *rest


def not_finite_in_one_environment(what: str, step: int) -> Numbers:
    agent = make(DistributedPPO, env=DummyVecEnv([lambda: Breaking(what)] * NUM_ENVS))
    with pytest.raises(
        NonFiniteError, match=f"^process 1: step {step}: the {what} of environment 0 is nan; there is no checkpoint;"
    ):
        agent.learn(10_000)
    return {}


def not_finite_loss_of_one_process(non_finite: str) -> Numbers:
    """The loss of the second process is infinite in the third gradient step; its gradient is as always."""
    agent = make(DistributedPPO, non_finite=non_finite)
    evaluate, calls = agent._evaluate, iter(range(10**6))

    def broken(*args: Any) -> Any:
        loss, *rest = evaluate(*args)
        return (loss + (float("inf") if next(calls) == 2 and dist.get_rank() == 1 else 0.0), *rest)

    agent._evaluate = broken
    if non_finite == "skip":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            agent.learn(1)  # checks at the end that weights are the same everywhere
        assert agent.num_skipped_updates == 1
    else:
        with pytest.raises(NonFiniteError, match=r"^step 12, gradient step 3: process 1: the loss is inf; there"):
            agent.learn(1)
    return {}


def refused(message: str, **options: Any) -> Numbers:
    with pytest.raises(ValueError, match=re.escape(message)):
        make(DistributedPPO, **options)
    return {}


def checks(folder: Path) -> Iterator[tuple[str, Callable[[], Numbers]]]:
    if dist.get_world_size() != 2:
        return
    yield "agents/gradients", gradients
    yield "agents/training", lambda: training(3)
    yield "agents/training_clipped", lambda: training(3, max_grad_norm=0.05)
    # The KL divergence is about 0.5 on the second process and 0.01 on the first.
    yield "agents/training_stopped", lambda: training(0, far=0.8, target_kl=0.1)
    yield "agents/training_not_stopped", lambda: training(3, far=0.8, target_kl=0.5)
    yield "agents/learning", lambda: learning(folder)
    yield "agents/going_on", lambda: going_on(folder)
    yield "agents/callback", callback_of_one_process
    yield "agents/not_finite_reward", lambda: not_finite_in_one_environment("reward", 8)
    yield "agents/not_finite_observation", lambda: not_finite_in_one_environment("observation", 0)
    yield "agents/not_finite_loss", lambda: not_finite_loss_of_one_process("raise")
    yield "agents/not_finite_loss_skipped", lambda: not_finite_loss_of_one_process("skip")
    yield "agents/refused_lbfgs", lambda: refused("got LBFGS", optimizer="lbfgs", max_grad_norm=float("inf"))
    yield "agents/refused_kfac", lambda: refused("must take one step along a gradient", optimizer="kfac")
    yield "agents/refused_steps", lambda: refused("n_steps must be the same on all processes", n_steps=8 + dist.get_rank())
    yield "agents/refused_normalize", lambda: refused("must not be a VecNormalize", env=VecNormalize(environments()))
