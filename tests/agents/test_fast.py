"""The fast form of an agent is the plain one up to rounding: gradients, steps, acting, files."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from rlopt.agents import DQN, SAC, TD3, Checkpoints, SequenceLearning
from rlopt.agents.fast.adam import AdamRows, FlatAdam, flatten
from rlopt.agents.fast.collecting import LeanVecEnv
from rlopt.agents.fast.dqn import DQNGradient, clip_norms
from rlopt.agents.fast.mlp import StackedMLP, widths_and_activation
from rlopt.agents.fast.networks import NumpyPolicy
from rlopt.agents.fast.sac import SACGradient, SquashedGaussian
from rlopt.agents.fast.td3 import TD3Gradient, TwinCritics
from rlopt.optim import NonFiniteError
from tests.agents.fast_agents import AGENTS, continuous, discrete, weights


@pytest.mark.parametrize("name", AGENTS)
def test_fast_form_is_the_plain_one_up_to_rounding(name: str) -> None:
    plain, fast = (AGENTS[name](fast=form).learn(140) for form in (False, True))
    assert fast._n_updates == plain._n_updates >= 10
    np.testing.assert_allclose(weights(fast), weights(plain), atol=2e-6)
    # In the loop through the environment roundings grow.
    actions = [agent.replay_buffer.storage.column("actions") for agent in (fast, plain)]
    np.testing.assert_allclose(*actions, atol=2e-5)
    assert np.abs(weights(fast) - weights(AGENTS[name](fast=True))).max() > 1e-3  # it has learned
    assert fast.exploration_rate == plain.exploration_rate if name.startswith("dqn") else True
    assert len(fast.ep_info_buffer) == len(plain.ep_info_buffer)


def reference(mlp: StackedMLP, params: th.Tensor, x: th.Tensor) -> th.Tensor:
    """Forward pass, one network after the other, with autograd."""
    outs = []
    activation = th.relu if mlp.activation == "relu" else th.tanh
    for row, inputs in zip(params, x, strict=True):
        begin, h = 0, inputs
        for i, (before, after) in enumerate(zip(mlp.widths, mlp.widths[1:], strict=False)):
            weight = row[begin : begin + before * after].view(after, before)
            begin += before * after
            h = h @ weight.T + row[begin : begin + after]
            begin += after
            h = activation(h) if i < len(mlp.widths) - 2 else h
        outs.append(h)
    return th.stack(outs)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("num", "widths"), [(1, [3, 5, 2]), (3, [4, 6, 5, 3]), (2, [3, 2])])
def test_backward_pass_is_that_of_autograd(num: int, widths: list[int], activation: Any) -> None:
    th.manual_seed(0)
    size = StackedMLP(widths).params.shape[1]
    params = th.randn(num, size, requires_grad=True)
    x = th.randn(num, 7, widths[0], requires_grad=True)
    grad = th.randn(num, 7, widths[-1])
    mlp = StackedMLP(widths, num, activation, params.detach().clone())
    expected = reference(mlp, params, x)
    expected.backward(grad)
    np.testing.assert_allclose(mlp.forward(x.detach(), "a"), expected.detach(), atol=1e-5)
    mlp.forward(th.randn(num, 7, widths[0]), "b")  # another call does not disturb the first
    grads = th.full_like(mlp.params, th.nan)
    slope = mlp.backward(grad, grads, "a", input_grad=True)
    np.testing.assert_allclose(grads, params.grad, atol=1e-5)
    np.testing.assert_allclose(slope, x.grad, atol=1e-5)


def test_params_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"params must have the shape \(2, 9\), got \(2, 12\)"):  # 2 * 2 + 2 + 2 * 1 + 1 = 9
        StackedMLP([2, 2, 1], 2, params=th.zeros(2, 12))


def batch(num: int, rows: int, obs: int, act: int, discrete_actions: bool) -> Any:
    actions = th.randint(0, act, (num, rows, 1)) if discrete_actions else th.rand(num, rows, act) * 2 - 1
    return SimpleNamespace(
        observations=th.randn(num, rows, obs), next_observations=th.randn(num, rows, obs), actions=actions,
        rewards=3 * th.randn(num, rows, 1), dones=(th.rand(num, rows, 1) < 0.3).float(), weights=th.rand(num, rows, 1),
        discounts=th.rand(num, rows, 1), noise=th.randn(num, rows, act),
    )  # fmt: skip


def part(of: Any, index: int) -> Any:
    return SimpleNamespace(**{name: value[index : index + 1] for name, value in vars(of).items()})


def test_several_agents_at_once_are_each_alone() -> None:
    th.manual_seed(1)
    num, rows, obs, act = 3, 8, 4, 2
    widths, policy, critic = [obs, 6, act], [obs, 6, 2 * act], [obs + act, 6, 1]
    sizes = [StackedMLP(shape).params.shape[1] for shape in (widths, policy, critic)]
    online, target = th.randn(num, sizes[0]), th.randn(num, sizes[0])
    steps, data = batch(num, rows, obs, act, True), batch(num, rows, obs, act, False)
    actor, twin, twin_target = th.randn(num, sizes[1]), th.randn(num, 2 * sizes[2]), th.randn(num, 2 * sizes[2])

    def dqn(rows_of: slice, of: Any) -> list[th.Tensor]:
        count = len(online[rows_of])
        nets = [StackedMLP(widths, count, "relu", params[rows_of].clone()) for params in (online, target)]
        gradient = DQNGradient(nets[0], nets[1], 0.9, True, 0.3)
        return [*(value.clone() for value in gradient(of)), gradient.grads]

    def sac(rows_of: slice, of: Any) -> list[th.Tensor]:
        count = len(actor[rows_of])
        gaussian = SquashedGaussian(StackedMLP(policy, count, "relu", actor[rows_of].clone()))
        critics = [TwinCritics(params[rows_of].clone(), critic, "relu", 2) for params in (twin, twin_target)]
        gradient = SACGradient(gaussian, critics[0], critics[1], 0.9)
        ent_coef = th.full((count, 1, 1), 0.3)
        actions, log_prob = gaussian.sample(of.observations, of.noise)
        loss, errors = gradient.of_critics(of, ent_coef, -of.noise)
        actor_loss = gradient.of_actor(of, ent_coef, actions, log_prob)
        return [loss, errors, actor_loss, gradient.critic_grads, gradient.actor_grads]

    def td3(rows_of: slice, of: Any) -> list[th.Tensor]:
        count = len(online[rows_of])
        nets = [StackedMLP(widths, count, "tanh", params[rows_of].clone()) for params in (online, target)]
        critics = [TwinCritics(params[rows_of].clone(), critic, "tanh", 2) for params in (twin, twin_target)]
        gradient = TD3Gradient(nets[0], nets[1], critics[0], critics[1], 0.9)
        loss, errors = gradient.of_critics(of, 0.2 * of.noise)
        return [loss, errors, gradient.of_actor(of), gradient.critic_grads, gradient.actor_grads]

    for compute, of in ((dqn, steps), (td3, data), (sac, data)):
        together = compute(slice(None), of)
        for index in range(num):
            for one, all_of_them in zip(compute(slice(index, index + 1), part(of, index)), together, strict=True):
                np.testing.assert_allclose(one[0], all_of_them[index], atol=1e-5)


def test_norms_are_bounded_per_network() -> None:
    grads = th.tensor([[3.0, 4.0], [0.3, 0.4]])
    clip_norms(grads, 1.0)
    np.testing.assert_allclose(grads, [[0.6, 0.8], [0.3, 0.4]], atol=1e-6)


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    th.manual_seed(0)
    one = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return one, copy.deepcopy(one)


def test_adam_is_torchs_and_reads_its_files() -> None:
    one, other = networks()
    options = {"lr": 1e-2, "weight_decay": 0.1, "eps": 1e-6, "betas": (0.8, 0.99)}
    plain = th.optim.Adam(one.parameters(), fused=True, **options)  # type: ignore[arg-type]
    params = list(other.parameters())
    flat = flatten([params])
    fast = FlatAdam(params, params, AdamRows(flat, th.zeros_like(flat), len(params)), **options)
    for step in range(6):
        for parameter, twin in zip(one.parameters(), params, strict=True):
            parameter.grad = th.randn_like(parameter)
            twin.grad.copy_(parameter.grad)  # type: ignore[union-attr]
        plain.step()
        fast.step()
        if step == 2:  # each goes on from the state of the other
            states = copy.deepcopy(plain.state_dict()), copy.deepcopy(fast.state_dict())
            fast.load_state_dict(states[0])
            plain.load_state_dict(states[1])
    for parameter, twin in zip(one.parameters(), params, strict=True):
        np.testing.assert_array_equal(parameter.detach(), twin.detach())
    fast.load_state_dict(th.optim.Adam(one.parameters(), **options).state_dict())  # type: ignore[arg-type]  # one that made no step
    assert not fast._exp_avg.any()
    assert not fast._steps.any()


def test_numpys_forward_pass_is_torchs() -> None:
    one, other = networks()
    found = widths_and_activation(other)
    assert found == ([3, 4, 2], "relu")
    policy = NumpyPolicy(StackedMLP(found[0], 1, found[1], flatten([list(other.parameters())])))
    x = th.randn(5, 3)
    np.testing.assert_allclose(policy(x.numpy()[None])[0], one(x).detach(), atol=1e-6)
    with th.no_grad():
        one[2].bias += 1.0
        other[2].bias += 1.0
    np.testing.assert_allclose(policy(x.numpy()[None])[0], one(x).detach(), atol=1e-6)  # parameters are read where they are


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.ELU(), nn.Linear(2, 1)),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)),
        nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
    ],
)
def test_other_networks_are_told_apart(network: nn.Module) -> None:
    assert widths_and_activation(network) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: discrete(fast=True, optimizer="sgd", learning_rate=1.0), r"fast=True needs torch's Adam, got SGD"),
        (lambda: discrete(fast=True, policy_kwargs={"optimizer_kwargs": {"amsgrad": True}}), "got amsgrad"),
        (
            lambda: discrete(fast=True, policy_kwargs={"activation_fn": nn.ELU}),
            "needs perceptrons with one activation",
        ),
        (lambda: discrete("FrozenLake-v1", fast=True), "observations that are a Box of numbers"),
        (lambda: continuous(SAC, fast=True, use_sde=True), "no generalised state-dependent exploration"),
        (lambda: discrete(fast=True, aux_loss_coefs={"balance": 1.0}), "aux_loss_coefs"),
    ],
)
def test_agents_without_a_fast_form_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_episodes_of_several_environments_are_refused() -> None:
    agent = discrete(make_vec_env("CartPole-v1", n_envs=2), fast=True, train_freq=(1, "episode"))
    with pytest.raises(ValueError, match="train_freq must be in steps with several environments, got episodes with 2"):
        agent.learn(20)


def test_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="sequences"):
        discrete(fast=True, sequences=SequenceLearning(length=2, burn_in=0))


def test_saved_and_loaded_agent_goes_on(tmp_path: Path) -> None:
    agent = discrete(fast=True).learn(100)
    agent.save(tmp_path / "agent.zip")
    loaded = DQN.load(tmp_path / "agent.zip", env=gym.make("CartPole-v1"))
    assert loaded._fast is not None
    assert loaded._fast.online.params.data_ptr() == next(loaded.q_net.parameters()).data_ptr()
    assert np.array_equal(weights(loaded), weights(agent))
    assert str(loaded.policy.optimizer.state_dict()) == str(agent.policy.optimizer.state_dict())
    before = weights(loaded)
    loaded.learn(60, reset_num_timesteps=False)
    assert np.abs(weights(loaded) - before).max() > 0
    plain = DQN.load(tmp_path / "agent.zip", env=gym.make("CartPole-v1"), fast=False)  # the plain form reads the same file
    assert plain._fast is None
    assert np.array_equal(weights(plain), weights(agent))
    folder = tmp_path / "run"
    discrete(fast=True).learn(60, checkpoints=Checkpoints(folder))
    assert DQN.load(folder)._fast is not None


def test_vec_env_returns_what_stable_baselines3s_returns() -> None:
    lean, plain = (DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2) for _ in range(2))
    lean = LeanVecEnv.of(lean)
    for env in (lean, plain):
        env.seed(3)
    np.testing.assert_array_equal(lean.reset(), plain.reset())
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(120):
        actions = rng.integers(0, 2, 2)
        one, other = lean.step(actions), plain.step(actions)
        for a, b in zip(one[:3], other[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(one[3], other[3], strict=True):  # type: ignore[assignment]
            assert a.keys() == b.keys()
            if "terminal_observation" in a:
                np.testing.assert_array_equal(a["terminal_observation"], b["terminal_observation"])  # type: ignore[index]
        seen.append(one)
    copies = [np.array(step[0]) for step in seen]
    lean.step(np.zeros(2, int))
    assert all(np.array_equal(step[0], kept) for step, kept in zip(seen, copies, strict=True))  # nothing returned changes later


class Watch(BaseCallback):
    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self.stop_at, self.names = stop_at, set()  # type: ignore[var-annotated]

    def _on_step(self) -> bool:
        self.names |= self.locals.keys()
        return self.num_timesteps < self.stop_at


def test_callbacks_see_what_they_see_and_can_stop() -> None:
    watches = [Watch(70), Watch(70)]
    agents = [discrete(fast=form).learn(140, callback=watch) for form, watch in zip((False, True), watches, strict=True)]
    assert [agent.num_timesteps for agent in agents] == [70, 70]
    wanted = {"actions", "buffer_actions", "new_obs", "rewards", "dones", "infos", "replay_buffer", "env", "num_collected_steps"}
    assert wanted <= watches[1].names


@pytest.mark.parametrize("kind", [TD3, SAC])
def test_loss_that_is_not_finite_ends_the_run_or_is_left_out(kind: Any) -> None:
    def spoiled(**changes: Any) -> Any:
        agent = continuous(kind, fast=True, **changes)
        agent.learn(60)
        agent.replay_buffer.storage.column("rewards")[:] = np.float32(3e38)
        return agent

    with pytest.raises(NonFiniteError, match=r"gradient step 1: the loss of the critic is inf"):
        spoiled().train(3, 16)
    agent = spoiled(non_finite="skip")
    before = weights(agent)
    with pytest.warns(UserWarning, match="the update is left out"):
        agent.train(3, 16)
    assert agent.num_skipped_updates == 3
    assert np.array_equal(weights(agent), before)
