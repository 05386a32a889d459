"""Agents with optimizers of rlopt: against stock Stable-Baselines3, against steps by hand, and their options."""

import copy
import math
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import LinearSchedule, polyak_update
from torch.nn import functional as F

import rlopt.agents
from rlopt.agents import losses
from rlopt.agents.optimizing import take_step
from rlopt.nn import ScaleInvariantMLP
from rlopt.optim import (
    LBFGS,
    SAM,
    Adam,
    CombinedOptimizer,
    Kfac,
    LocoProp,
    LocoPropSpec,
    Muon,
    Sam,
    ScaleInvariantSGDSpec,
    Sgd,
)

ENVS = {"DQN": "CartPole-v1", "DDPG": "Pendulum-v1", "TD3": "Pendulum-v1", "SAC": "Pendulum-v1"}
AGENTS = list(ENVS)
RATES = {"DQN": 1e-3, "DDPG": 1e-3, "TD3": 1e-3, "SAC": 3e-4}


class ScaleInvariantFeatures(BaseFeaturesExtractor):
    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__(space, 16)
        self.net = ScaleInvariantMLP(space.shape[0], [16])

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.net(obs)


LOCOPROP = LocoPropSpec(variant="squared", solver="closed_form", gamma=0.1, gamma_mode="per_row", prox_eta=1.0)
SPECS: dict[str, Any] = {
    "locoprop": LOCOPROP,
    "locoprop_iterative": "locoprop",
    "scale_invariant_sgd": ScaleInvariantSGDSpec(lr=0.01, others=Adam(lr=1e-3)),
    "sam": Sam(base=Adam(lr=1e-3)),
    "lbfgs": LBFGS(lr=1.0, max_iter=3, history_size=5, line_search="strong_wolfe"),
}


def make(name: str, optimizer: Any = None, agent_class: Any = None, **options: Any) -> Any:
    policy: dict[str, Any] = {"net_arch": [8, 8], **options.pop("policy_kwargs", {})}
    if isinstance(optimizer, ScaleInvariantSGDSpec):
        policy["features_extractor_class"] = ScaleInvariantFeatures
    defaults: dict[str, Any] = {"learning_starts": 10, "batch_size": 8, "device": "cpu", "seed": 3, "buffer_size": 1000}
    if name == "DQN":
        defaults |= {"train_freq": 1, "target_update_interval": 5}
    if optimizer is not None:
        options["optimizer"] = optimizer
    agent_class = agent_class or getattr(rlopt.agents, name)
    return agent_class("MlpPolicy", ENVS[name], policy_kwargs=policy, **{**defaults, **options})


def copies(module: th.nn.Module) -> dict[str, th.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_equal(one: dict[str, th.Tensor], two: dict[str, th.Tensor]) -> None:
    assert list(one) == list(two)
    for key, value in one.items():
        assert th.equal(value, two[key]), key


def optimizers_of(agent: Any) -> list[th.optim.Optimizer]:
    return [agent.policy.optimizer] if hasattr(agent, "q_net") else [agent.actor.optimizer, agent.critic.optimizer]


def trained_networks(agent: Any) -> list[tuple[th.nn.Module, th.nn.Module]]:
    if hasattr(agent, "q_net"):
        return [(agent.q_net, agent.q_net_target)]
    pairs = [(agent.critic, agent.critic_target)]
    return [*pairs, (agent.actor, agent.actor_target)] if hasattr(agent, "actor_target") else pairs


@pytest.mark.parametrize("name", ["DQN", "TD3"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_trains_reproducibly_and_targets_follow(name: str, spec: Any) -> None:
    again = copies(make(name, spec).learn(32).policy)
    agent = make(name, spec)
    before = copies(agent.policy)
    agent.learn(32)
    found = [value for key, value in agent.logger.name_to_value.items() if key.endswith("loss")]
    assert found
    assert all(map(math.isfinite, found))
    after = copies(agent.policy)
    assert_equal(after, again)
    assert all(th.isfinite(value).all() for value in after.values())
    moved = [key for key, value in after.items() if not th.equal(value, before[key])]
    assert len(moved) == len(before)
    for online, target in trained_networks(agent):  # nearer to the online network than where they began
        prefix = next(key for key, module in agent.policy.named_modules() if module is online) + "."
        now = th.cat([p.flatten() for p in online.parameters()])
        start = th.cat([before[prefix + key].flatten() for key, _ in online.named_parameters()])
        followed = th.cat([p.flatten() for p in target.parameters()])
        assert (now - followed).norm() < (now - start).norm()


@pytest.mark.parametrize("name", ["DDPG", "SAC"])
@pytest.mark.parametrize("spec", [LOCOPROP, SPECS["sam"], SPECS["lbfgs"]], ids=["locoprop", "sam", "lbfgs"])
def test_other_agents_train_too(name: str, spec: Any) -> None:
    agent = make(name, spec)
    before = copies(agent.policy)
    agent.learn(25)
    after = copies(agent.policy)
    assert all(th.isfinite(value).all() and not th.equal(value, before[key]) for key, value in after.items())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_learns_the_values_of_a_fixed_replay(spec: Any) -> None:
    """Without a future the values of CartPole are 1: the loss falls to a tenth."""
    if spec == "locoprop":
        spec = LocoPropSpec(variant="squared", inner="adam", lr=1e-3, local_iters=3)
    agent = make("DQN", spec, gamma=1e-9, learning_starts=100, policy_kwargs={"net_arch": [16]})
    agent.learn(100)
    batch = agent.replay_buffer.sample(100)

    def loss() -> float:
        return losses.huber_loss(agent.q_net(batch.observations).gather(1, batch.actions), batch.rewards).item()

    before = loss()
    agent.train(200, 32)
    assert loss() < 0.1 * before


class GlobalDraws(ReplayBuffer):
    """Stable-Baselines3's own buffer, so that rlopt's and stock agents draw the same batches."""


@pytest.mark.parametrize("name", AGENTS)
def test_adam_as_a_spec_equals_stable_baselines3(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "soft_update", polyak_update)
    ours = make(name, Adam(lr=RATES[name]), replay_buffer_class=GlobalDraws).learn(45)
    stock = make(name, agent_class=getattr(sb3, name), learning_rate=RATES[name], replay_buffer_class=GlobalDraws).learn(45)
    assert_equal(copies(ours.policy), copies(stock.policy))
    assert ours.logger.name_to_value["train/learning_rate"] == RATES[name]


class CuriousAdam(th.optim.Adam):
    """Adam that looks at the loss three times before its step, and keeps what it saw."""

    seen: ClassVar[list[list[float]]] = []

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with th.enable_grad():
            values = [float(closure()) for _ in range(3)]
        self.seen.append(values)
        super().step()
        return values[0]


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("options", [{}, {"use_sde": True}, {"policy_kwargs": {"activation_fn": None}}], ids=["", "sde", "dropout"])
def test_evaluating_again_is_the_same_loss_and_changes_nothing_else(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random numbers included: a run with three evaluations per step is that with one, to the last bit."""
    if "use_sde" in options and name != "SAC":
        pytest.skip("only SAC has state-dependent exploration")
    if "policy_kwargs" in options:
        options = {"policy_kwargs": {"activation_fn": lambda: th.nn.Sequential(th.nn.ReLU(), th.nn.Dropout(0.2))}}
    monkeypatch.setattr(CuriousAdam, "seen", [])
    once = make(name, lambda params: th.optim.Adam(params, lr=1e-3), **copy.deepcopy(options)).learn(35)
    thrice = make(name, lambda params: CuriousAdam(params, lr=1e-3), **copy.deepcopy(options)).learn(35)
    assert len(CuriousAdam.seen) >= 25
    assert all(len(set(values)) == 1 for values in CuriousAdam.seen)
    assert_equal(copies(once.policy), copies(thrice.policy))


def test_first_evaluation_is_what_is_returned() -> None:
    w = th.nn.Parameter(th.tensor([3.0]))
    loss, seen = take_step(SAM(th.optim.SGD([w], lr=0.1), rho=0.5), lambda: ((w**2).sum(), w * 1))
    assert (loss.item(), seen.item(), loss.requires_grad) == (9.0, 3.0, False)
    assert w.item() == pytest.approx(3.0 - 0.1 * 2 * 3.5)


@pytest.mark.parametrize("double_q", [False, True])
def test_dqn_step_with_locoprop_equals_one_by_hand(double_q: bool) -> None:
    """On a copy of the network that never saw a target or an exploring step."""
    agent = make("DQN", LOCOPROP, double_q=double_q).learn(30)
    net = copy.deepcopy(agent.q_net)
    twin = LOCOPROP.build(net)
    twin.load_state_dict(agent.policy.optimizer.state_dict())
    generator_state = copy.deepcopy(agent.replay_buffer.rng)
    agent.train(1, 16)
    agent.replay_buffer.rng.bit_generator.state = generator_state.bit_generator.state
    batch = agent.replay_buffer.sample(16)
    with th.no_grad():
        next_q = agent.q_net_target(batch.next_observations)
        choice = (net if double_q else agent.q_net_target)(batch.next_observations).argmax(1, keepdim=True)
        target = batch.rewards + (1 - batch.dones) * agent.gamma * next_q.gather(1, choice)
    F.smooth_l1_loss(net(batch.observations).gather(1, batch.actions), target).backward()
    twin.step()
    for ours, expected in zip(agent.q_net.parameters(), net.parameters(), strict=True):
        th.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


RECORDING = {"locoprop": LOCOPROP, "kfac": Kfac(lr=1e-3, damping=0.1, inverse_every=1)}


@pytest.mark.parametrize("spec", RECORDING.values(), ids=RECORDING)
def test_td3_critic_learns_nothing_from_the_actors_loss(spec: Any) -> None:
    """Two updates, the actor's between them, equal those of critics that no actor's loss ever touched."""
    agent = make("TD3", {"actor": Sgd(lr=0.0), "critic": spec}, policy_delay=1, tau=0.0, target_policy_noise=0.0).learn(20)
    critic = agent.policy.make_critic()
    critic.load_state_dict(agent.critic.state_dict())
    twin = spec.build(critic)
    twin.load_state_dict(copy.deepcopy(agent.critic.optimizer.state_dict()))
    batches: list[Any] = []
    sample = agent.replay_buffer.sample
    agent.replay_buffer.sample = lambda *args, **kwargs: batches.append(sample(*args, **kwargs)) or batches[-1]
    agent.train(2, 16)
    for batch in batches:
        with th.no_grad():
            next_actions = agent.actor_target(batch.next_observations)
            next_q = th.cat(agent.critic_target(batch.next_observations, next_actions), 1).amin(1, keepdim=True)
            target = batch.rewards + (1 - batch.dones) * agent.gamma * next_q
        twin.zero_grad()
        sum(F.mse_loss(q, target) for q in critic(batch.observations, batch.actions)).backward()
        twin.step()
    for ours, expected in zip(agent.critic.parameters(), critic.parameters(), strict=True):
        th.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.critic.parameters())  # the actor's loss was there


def recorded_rows(optimizer: Any) -> list[int]:
    part = optimizer.optimizers[0] if isinstance(optimizer, CombinedOptimizer) else optimizer
    return [len(layer.uses) for layer in part.recorder.layers.values()]


@pytest.mark.parametrize("name", ["DDPG", "TD3", "SAC"])
@pytest.mark.parametrize("spec", RECORDING.values(), ids=RECORDING)
def test_critic_records_nothing_of_the_actors_loss(name: str, spec: Any) -> None:
    """Nothing that the next step would have to drop is there: the last thing that happens is the actor's backward pass."""
    options = {"policy_delay": 1} if name == "TD3" else {}
    agent = make(name, {"actor": "adam", "critic": spec}, **options).learn(12)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.critic.parameters())
    assert max(recorded_rows(agent.critic.optimizer)) == 0


@pytest.mark.parametrize("name", ["DDPG", "TD3", "SAC"])
@pytest.mark.parametrize("spec", RECORDING.values(), ids=RECORDING)
def test_what_a_critic_records_of_other_losses_is_dropped_before_its_step(
    name: str, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"policy_delay": 1} if name == "TD3" else {}
    expected = make(name, {"actor": "adam", "critic": spec}, **options).learn(20)
    monkeypatch.setattr(f"rlopt.agents.{'sac' if name == 'SAC' else 'td3'}.without_recording", lambda _: nullcontext())
    agent = make(name, {"actor": "adam", "critic": spec}, **options).learn(20)
    assert max(recorded_rows(agent.critic.optimizer)) == 1  # the actor's loss is there now
    assert_equal(copies(agent.policy), copies(expected.policy))


@pytest.mark.parametrize("spec", RECORDING.values(), ids=RECORDING)
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"])
def test_copy_of_a_critic_has_an_optimizer_of_its_own(spec: Any, copier: Callable[[Any], Any]) -> None:
    agent = make("TD3", {"actor": "adam", "critic": spec}).learn(15)
    critic = copier(agent.critic)
    batch = agent.replay_buffer.sample(16)
    for one in (agent.critic, critic):
        one.optimizer.zero_grad()
        one.q1_forward(batch.observations, batch.actions).square().mean().backward()
        one.optimizer.step()
    assert_equal(copies(critic), copies(agent.critic))
    before = copies(agent.critic)
    critic.optimizer.zero_grad()
    critic.q1_forward(batch.observations, batch.actions).mean().backward()
    critic.optimizer.step()
    assert_equal(copies(agent.critic), before)
    assert any(not th.equal(value, before[key]) for key, value in copies(critic).items())


@pytest.mark.parametrize("name", AGENTS)
def test_targets_have_no_hooks_and_no_rows_stay(name: str) -> None:
    agent = make(name, LOCOPROP).learn(16)
    agent.predict(agent.observation_space.sample())
    rlopt.agents.td_error(agent, agent.replay_buffer.sample(8))
    for online, target in trained_networks(agent):
        assert any(module._forward_hooks for module in online.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in target.modules())
    for optimizer in optimizers_of(agent):
        assert isinstance(optimizer, LocoProp)
        assert all(not layer.uses for layer in optimizer.recorder.layers.values())


@pytest.mark.parametrize("name", ["TD3", "SAC"])
def test_optimizers_hold_the_parameters_of_their_networks(name: str) -> None:
    def held(optimizer: th.optim.Optimizer) -> set[int]:
        return {id(p) for group in optimizer.param_groups for p in group["params"]}

    agent = make(name, Muon())
    assert held(agent.actor.optimizer) == {id(p) for p in agent.actor.parameters()}
    assert held(agent.critic.optimizer) == {id(p) for p in agent.critic.parameters()}
    assert len(agent.critic.q_networks) == 2
    shared = make(
        name, LOCOPROP, policy_kwargs={"features_extractor_class": ScaleInvariantFeatures, "share_features_extractor": True}
    )
    assert held(shared.actor.optimizer) == {id(p) for p in shared.actor.parameters()}
    assert held(shared.critic.optimizer) == {id(p) for net in shared.critic.q_networks for p in net.parameters()}
    extractor = copies(shared.actor.features_extractor)
    shared.learn(15)
    assert any(not th.equal(value, extractor[key]) for key, value in shared.actor.features_extractor.state_dict().items())


def test_mapping_gives_each_network_its_own() -> None:
    agent = make("SAC", {"actor": "adamw", "critic": Sam()})
    assert [type(optimizer).__name__ for optimizer in optimizers_of(agent)] == ["AdamW", "SAM"]


@pytest.mark.parametrize("name", AGENTS)
def test_schedule_multiplies_the_rates_of_all_groups(name: str) -> None:
    agent = make(name, Muon(lr=0.02, adam_lr=0.004), learning_rate=LinearSchedule(1.0, 0.5, 1.0))
    agent.learn(60)
    factor = agent.lr_schedule(agent._current_progress_remaining)
    assert factor == pytest.approx(0.5)
    for optimizer in optimizers_of(agent):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.002], rel=0.02)
    if name == "SAC":
        assert agent.ent_coef_optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * 0.5, rel=0.02)


def test_rates_are_the_optimizers_own_without_a_schedule() -> None:
    agent = make("SAC", Adam(lr=0.005)).learn(15)
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers_of(agent)] == [0.005, 0.005]
    assert agent.ent_coef_optimizer.param_groups[0]["lr"] == 3e-4
    warm_up = make("DQN", Adam(lr=0.005), learning_rate=lambda progress: min(1.0, 10.0 * (1.0 - progress))).learn(15)
    assert warm_up.policy.optimizer.param_groups[0]["lr"] == 0.005


@pytest.mark.parametrize("rate", [1e-3, LinearSchedule(1e-3, 0.0, 1.0), 2.0])
def test_learning_rate_of_its_own_is_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"learning_rate must be left out or be a schedule of factors.*Adam\(lr="):
        make("DQN", "adam", learning_rate=rate)
    with pytest.raises(ValueError, match="learning_rate must be left out"):
        rlopt.agents.TD3("MlpPolicy", "Pendulum-v1", rate, optimizer=LOCOPROP)


def test_clipping_keeps_its_meaning_or_is_refused() -> None:
    for spec in (Sgd(lr=1.0), Sam(base=Sgd(lr=1.0))):
        agent = make("DQN", spec, max_grad_norm=0.01).learn(20)
        before = th.cat([p.detach().flatten() for p in agent.q_net.parameters()])
        agent.train(1, 16)
        step = th.cat([p.detach().flatten() for p in agent.q_net.parameters()]) - before
        assert step.norm().item() == pytest.approx(0.01, rel=1e-2)
    for spec, hint in ((LOCOPROP, r"max_delta_norm"), (LBFGS(), "drop it")):
        with pytest.raises(ValueError, match=f"max_grad_norm must be left out or math.inf.*got 5.0: .*{hint}"):
            make("DQN", spec, max_grad_norm=5.0)
        assert make("DQN", spec).max_grad_norm == make("DQN", spec, max_grad_norm=math.inf).max_grad_norm == math.inf
    assert make("DQN", Adam()).max_grad_norm == 10


def test_clipping_that_is_given_to_load_is_refused_as_by_the_constructor(tmp_path: Path) -> None:
    for spec, hint in ((LOCOPROP, "max_delta_norm"), (LBFGS(), "drop it")):
        make("DQN", spec).save(tmp_path / "agent.zip")
        with pytest.raises(ValueError, match=f"max_grad_norm must be left out or math.inf.*got 5.0: .*{hint}"):
            rlopt.agents.DQN.load(tmp_path / "agent.zip", max_grad_norm=5.0)
        assert rlopt.agents.DQN.load(tmp_path / "agent.zip").max_grad_norm == math.inf
        assert rlopt.agents.DQN.load(tmp_path / "agent.zip", max_grad_norm=math.inf).max_grad_norm == math.inf
    make("DQN", Adam()).save(tmp_path / "adam.zip")
    assert rlopt.agents.DQN.load(tmp_path / "adam.zip", max_grad_norm=5.0).max_grad_norm == 5.0
    with pytest.raises(ValueError, match="max_grad_norm must be left out"):
        rlopt.agents.DQN.load(tmp_path / "adam.zip", optimizer=LOCOPROP, max_grad_norm=10.0)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the keys 'actor' and 'critic' if it is a mapping, got \\['critic'\\]"):
        make("TD3", {"critic": "adam"})
    with pytest.raises(TypeError, match="optimizer must be a spec, a name or a function"):
        make("DQN", {"actor": "adam", "critic": "adam"})
    with pytest.raises(ValueError, match="policy_kwargs must have no optimizer_class when optimizer is given"):
        make("DQN", "adam", policy_kwargs={"optimizer_class": th.optim.SGD})
    with pytest.raises(ValueError, match="did you mean adam"):
        make("SAC", "adan")
    with pytest.raises(ValueError, match="module must name scale-invariant parameters"):
        make("DQN", "scale_invariant_sgd")


SAVED = {**SPECS, "kfac": Kfac(lr=1e-3, damping=0.1), "muon": Muon(), "function": lambda params: th.optim.NAdam(params, lr=1e-3)}


@pytest.mark.parametrize("name", ["DQN", "SAC"])
@pytest.mark.parametrize("spec", SAVED.values(), ids=SAVED)
def test_saved_agent_goes_on_as_if_it_had_not_been_saved(name: str, spec: Any, tmp_path: Path) -> None:
    agent = make(name, spec).learn(16)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.npz")
    loaded = type(agent).load(tmp_path / "agent.zip", env=agent.get_env(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "replay.npz")
    assert callable(spec) or loaded.optimizer == spec
    assert [type(optimizer) for optimizer in optimizers_of(loaded)] == [type(optimizer) for optimizer in optimizers_of(agent)]
    loaded.set_logger(agent.logger)
    for one in (agent, loaded):
        th.manual_seed(0)
        one.train(3, 16)
    assert_equal(copies(agent.policy), copies(loaded.policy))


@pytest.mark.parametrize("spec", [LOCOPROP, SPECS["sam"], SPECS["lbfgs"], Muon()], ids=["locoprop", "sam", "lbfgs", "muon"])
def test_parameters_carry_the_optimizers_state(spec: Any) -> None:
    agent, other = make("TD3", spec).learn(18), make("TD3", spec, seed=8).learn(15)
    other.set_parameters(copy.deepcopy(agent.get_parameters()))
    other.replay_buffer = agent.replay_buffer
    other._n_updates = agent._n_updates
    state = copy.deepcopy(agent.replay_buffer.rng.bit_generator.state)
    for one in (agent, other):
        agent.replay_buffer.rng.bit_generator.state = copy.deepcopy(state)
        th.manual_seed(0)
        one.train(2, 16)
    assert_equal(copies(agent.policy), copies(other.policy))


def test_without_a_choice_nothing_differs_from_stable_baselines3() -> None:
    for name in AGENTS:
        agent = make(name)
        assert all(type(optimizer) is th.optim.Adam for optimizer in optimizers_of(agent))
        assert np.isclose(agent.learning_rate, 1e-4 if name == "DQN" else RATES[name])
