"""Losses of features extractors inside the agents: they move what they should, by how much they should, and nothing else."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor

import rlopt.agents
from rlopt.agents.auxiliary import AuxiliaryLosses, plus, pop_aux_losses
from rlopt.optim import Adam, Sam, Sgd

ENVS = {"DQN": "CartPole-v1", "DDPG": "Pendulum-v1", "TD3": "Pendulum-v1", "SAC": "Pendulum-v1", "PPO": "CartPole-v1"}
RATE, COEF, START = 0.01, 0.5, 3.0
SGD = Sgd(lr=RATE)


class Pulled(BaseFeaturesExtractor):
    """Hands observations on. A parameter beside them is moved by the loss "pull" alone, whose gradient is 1."""

    def __init__(self, space: gym.spaces.Box) -> None:
        super().__init__(space, space.shape[0])
        self.param = th.nn.Parameter(th.tensor(START))
        self.latest: dict[str, th.Tensor] = {}

    def forward(self, obs: th.Tensor) -> th.Tensor:
        if self.training:
            self.latest = {"pull": self.param * 1.0, "size": obs.detach().abs().mean()}
        return obs

    def pop_aux_losses(self) -> dict[str, th.Tensor]:
        latest, self.latest = self.latest, {}
        return latest


def make(name: str, coefs: Any, optimizer: Any = SGD, extractor: Any = Pulled, shared: bool = False, **options: Any) -> Any:
    policy: dict[str, Any] = {"net_arch": [8], "features_extractor_class": extractor}
    if name != "DQN":
        policy["share_features_extractor"] = shared
    if name == "PPO":
        options = {"n_steps": 32, "n_epochs": 2, "batch_size": 16, "max_grad_norm": float("inf"), **options}
    else:
        options = {"learning_starts": 8, "batch_size": 8, "buffer_size": 100, **options}
    if name == "DQN":
        options = {"train_freq": 1, "max_grad_norm": float("inf"), **options}
    agent_class = getattr(rlopt.agents, name)
    return agent_class(
        "MlpPolicy", ENVS[name], policy_kwargs=policy, optimizer=optimizer, aux_loss_coefs=coefs, seed=0, device="cpu", **options
    )


def num_updates(agent: Any) -> dict[str, int]:
    """Updates of each network that has an extractor of its own."""
    if isinstance(agent, rlopt.agents.PPO):
        return {"policy": agent._n_updates * 2}
    if isinstance(agent, rlopt.agents.DQN):
        return {"q_net": agent._n_updates}
    return {"critic": agent._n_updates, "actor": agent._n_updates // getattr(agent, "policy_delay", 1)}


def extractors(network: Any) -> list[Pulled]:
    return [part for part in network.modules() if isinstance(part, Pulled)]


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("name", [*ENVS, "double DQN"])
def test_loss_moves_each_extractor_once_per_update_of_its_network(name: str, shared: bool) -> None:
    if "DQN" in name and shared:
        pytest.skip("DQN has one network")
    options = {"double_q": True} if "double" in name else {}
    agent = make(name.split()[-1], {"pull": COEF}, shared=shared, **options)
    agent.learn(20 if not isinstance(agent, rlopt.agents.PPO) else 32)
    counts = num_updates(agent)
    assert min(counts.values()) >= 4
    if shared:
        counts.pop("critic", None)  # its extractor is the actor's, and only the actor's loss moves it
    for network, count in counts.items():
        found = extractors(getattr(agent, network))
        assert len(found) == (2 if name == "PPO" and not shared else 1)
        for extractor in found:
            assert extractor.param.item() == pytest.approx(START - count * RATE * COEF, abs=1e-5)
    logged = agent.logger.name_to_value
    assert logged["train/aux_size"] > 0
    assert "train/aux_pull" in logged


@pytest.mark.parametrize("name", list(ENVS))
def test_without_coefficients_losses_are_logged_and_nothing_moves(name: str) -> None:
    agent = make(name, None).learn(32)
    assert all(extractor.param.item() == START for extractor in extractors(agent.policy))
    assert agent.logger.name_to_value["train/aux_pull"] == pytest.approx(START * (2 if name == "PPO" else 1))


@pytest.mark.parametrize("name", list(ENVS))
def test_no_graph_stays_behind(name: str) -> None:
    agent = make(name, {"pull": COEF}).learn(32)
    found = extractors(agent.policy)
    assert not any(value.requires_grad for extractor in found for value in extractor.latest.values())
    copy.deepcopy(found)  # graphs cannot be copied


def test_loss_of_the_agent_is_the_one_that_is_logged() -> None:
    """With everything else frozen the loss falls by what the parameter moves."""
    with_loss, without = (make("DQN", {"pull": coef}, Sgd(lr=0.0)).learn(12) for coef in (1.0, 0.0))
    difference = with_loss.logger.name_to_value["train/loss"] - without.logger.name_to_value["train/loss"]
    assert difference == pytest.approx(START, rel=1e-5)


@pytest.mark.parametrize("name", ["DQN", "SAC", "PPO"])
def test_optimizers_that_evaluate_again_see_the_loss_each_time(name: str) -> None:
    """The slope of "pull" is the same everywhere, so SAM moves its parameter like SGD."""
    agent = make(name, {"pull": COEF}, Sam(base=Sgd(lr=RATE)), shared=True).learn(32)
    network = {"DQN": "q_net", "SAC": "actor", "PPO": "policy"}[name]
    count = num_updates(agent)[network]
    assert extractors(getattr(agent, network))[0].param.item() == pytest.approx(START - count * RATE * COEF, abs=1e-5)


def test_losses_of_several_extractors_are_added_up() -> None:
    space = gym.spaces.Box(-1, 1, (2,))
    network = th.nn.ModuleList([Pulled(space), Pulled(space), th.nn.Linear(2, 2)])
    for part in extractors(network):
        part(th.full((4, 2), 0.25))
    losses = pop_aux_losses(network)
    assert {name: value.item() for name, value in losses.items()} == {"pull": 2 * START, "size": 0.5}
    assert pop_aux_losses(network) == {}


def test_weighed_sum_by_hand() -> None:
    extractor = Pulled(gym.spaces.Box(-1, 1, (2,)))
    extractor(th.full((4, 2), 0.5))
    extra = AuxiliaryLosses({"pull": 2.0, "size": 10.0}).pop(extractor)
    assert extra is not None
    assert plus(th.tensor(1.0), extra).item() == 1 + 2 * START + 10 * 0.5
    assert plus(th.tensor(1.0), None).item() == 1


def test_stock_extractors_have_nothing_to_do() -> None:
    agent = make("DQN", None, extractor=FlattenExtractor)
    assert agent._aux.pop(agent.q_net) is None
    agent.learn(16)
    assert not any("aux" in key for key in agent.logger.name_to_value)


def test_coefficients_without_effect_are_refused() -> None:

    with pytest.raises(ValueError, match="aux_loss_coefs must be None, since no features extractor has a method pop_aux_losses"):
        make("TD3", {"pull": 1.0}, extractor=FlattenExtractor)
    with pytest.raises(ValueError, match="aux_loss_coefs must have names among pull, size, got 'balance'"):
        make("SAC", {"pull": 1.0, "balance": 1.0}).learn(20)
    for coef in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"aux_loss_coefs\['pull'\] must be finite and at least 0"):
            make("PPO", {"pull": coef})


@pytest.mark.parametrize("name", ["TD3", "PPO"])
def test_coefficients_are_saved_with_the_agent(name: str, tmp_path: Path) -> None:
    agent = make(name, {"pull": COEF}, Adam(lr=1e-3))
    agent.save(tmp_path / "agent.zip")
    loaded = type(agent).load(tmp_path / "agent.zip", env=agent.get_env())
    assert loaded.aux_loss_coefs == {"pull": COEF}
    assert loaded._aux.coefs == {"pull": COEF}


@pytest.mark.parametrize("name", ["TD3", "SAC"])
def test_critic_with_the_actors_extractor_has_no_losses(name: str) -> None:
    """Its loss does not move the extractor, so nothing is added to it or logged twice."""
    for shared in (True, False):
        agent = make(name, {"pull": COEF}, shared=shared)
        agent.critic.train()
        agent.critic(th.zeros(2, 3), th.zeros(2, 1))
        assert (agent._aux.pop(agent.critic) is None) == shared
