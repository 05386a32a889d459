"""No number that is not finite passes silently: it ends the run with its name, or a step is left out to the bit."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

import rlopt_envs  # noqa: F401  # registers its environments
from rlopt.agents import DDPG, DQN, PPO, SAC, TD3, Checkpoints, HistoryWrapper, SequenceLearning, TransformerExtractor
from rlopt.files.state_file import read_state
from rlopt.nn import TransformerConfig
from rlopt.optim import LBFGS, Adam, Kfac, LocoPropSpec, NonFiniteError, Sam, Sgd
from rlopt.replay import IntrospectiveReplay, PrioritizedReplay

AGENTS: dict[str, Any] = {"DQN": DQN, "DDPG": DDPG, "TD3": TD3, "SAC": SAC, "PPO": PPO}
LOSSES = {"DQN": "the loss", "DDPG": "the loss of the critic", "TD3": "the loss of the critic", "SAC": "the loss of the critic",
          "PPO": "the loss"}  # fmt: skip
NAN, INF = math.nan, math.inf


class Breaking(gym.Wrapper[Any, Any, Any, Any]):
    """Gives `value` as its observation, reward or first observation in step `at`, counted over all episodes."""

    def __init__(self, env: gym.Env[Any, Any], what: str, value: float, at: int, length: int = 1000) -> None:
        super().__init__(gym.wrappers.TimeLimit(env.unwrapped, length))
        self.what, self.value, self.at, self.count = what, value, at, 0

    def reset(self, **kwargs: Any) -> Any:
        observation, info = self.env.reset(**kwargs)
        if self.what == "first observation" and self.count >= self.at:
            observation = np.full_like(observation, self.value)
        return observation, info

    def step(self, action: Any) -> Any:
        self.count += 1
        observation, reward, *rest = self.env.step(action)
        if self.count == self.at and self.what == "observation":
            observation = observation.copy()
            observation[1] = self.value
        if self.count == self.at and self.what == "reward":
            reward = self.value
        return observation, reward, *rest


def make(name: str, env: Any = None, **options: Any) -> Any:
    common: dict[str, Any] = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    if name == "PPO":
        common |= {"n_steps": 16, "batch_size": 8, "n_epochs": 2}
    else:
        common |= {"learning_starts": 8, "batch_size": 8, "train_freq": 4, "gradient_steps": 2, "buffer_size": 200}
    if name == "DQN":
        common |= {"target_update_interval": 4}
    env = ("CartPole-v1" if name == "DQN" else "Pendulum-v1") if env is None else env
    return AGENTS[name]("MlpPolicy", env, **common | options)


def breaking(name: str, what: str, value: float, at: int, length: int = 1000) -> Breaking:
    return Breaking(gym.make("CartPole-v1" if name == "DQN" else "Pendulum-v1"), what, value, at, length)


def stopped(agent: Any, steps: int = 200, **options: Any) -> str:
    with pytest.raises(NonFiniteError) as caught:
        agent.learn(steps, **options)
    return str(caught.value)


def numbers_of(agent: Any) -> dict[str, Any]:
    """All that an update may change, but for random generators of layers: networks, targets, buffers, optimizers."""
    modules, variables = agent._get_torch_save_params()
    found: dict[str, Any] = {name: copy.deepcopy(getattr_path(agent, name).state_dict()) for name in modules}
    found["policy"] = {name: value for name, value in found["policy"].items() if not name.endswith("_extra_state")}
    return found | {name: getattr_path(agent, name).detach().clone() for name in variables}


def getattr_path(thing: Any, path: str) -> Any:
    for part in path.split("."):
        thing = getattr(thing, part)
    return thing


def assert_equal(one: Any, two: Any, path: str = "") -> None:
    if isinstance(one, th.Tensor):
        assert th.equal(one, two), path
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_equal(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), path
        for i, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{path}/{i}")
    else:
        assert one == two, path


# What environments return


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(("what", "value"), [("observation", NAN), ("reward", NAN), ("reward", -INF)])
def test_number_of_the_environment_stops_the_run_before_it_is_stored(name: str, what: str, value: float) -> None:
    agent = make(name, breaking(name, what, value, at=19))
    message = stopped(agent)
    assert message == (
        f"step 19: the {what} of environment 0 is {value}; there is no checkpoint; see what the environment computes."
    )
    if name == "PPO":
        assert np.isfinite(agent.rollout_buffer.rewards).all()
        assert np.isfinite(agent.rollout_buffer.observations).all()
    else:
        assert len(agent.replay_buffer) == 18
    assert all(p.isfinite().all() for p in agent.policy.parameters())


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_first_and_last_observations_are_looked_at(name: str) -> None:
    first = make(name, breaking(name, "first observation", INF, at=0))
    assert stopped(first).startswith("step 0: the observation of environment 0 is inf;")
    later = make(name, breaking(name, "first observation", INF, at=5, length=5))
    assert stopped(later).startswith("step 5: the observation of environment 0 is inf;")
    last = make(name, breaking(name, "observation", NAN, at=5, length=5))
    assert stopped(last).startswith("step 5: the last observation of environment 0 is nan;")


def test_the_environment_is_named_and_statistics_stay_as_they_were() -> None:
    makers = [lambda at=at: Breaking(gym.make("Pendulum-v1"), "observation", NAN, at) for at in (100, 7, 100)]
    env = VecNormalize(DummyVecEnv(makers))
    seen: list[Any] = []
    watch = OnStep(lambda: seen.append((env.obs_rms.mean.copy(), env.ret_rms.mean)))
    agent = make("SAC", env, buffer_size=300)
    assert stopped(agent, callback=watch).startswith("step 21: the observation of environment 1 is nan;")
    assert len(seen) == 6
    np.testing.assert_array_equal(env.obs_rms.mean, seen[-1][0])
    assert env.ret_rms.mean == seen[-1][1]


class OnStep(BaseCallback):
    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self.call = call

    def _on_step(self) -> bool:
        self.call()
        return True


class Parts(gym.Env[Any, Any]):
    """Observations of several parts."""

    observation_space = gym.spaces.Dict(
        {"image": gym.spaces.Box(0, 255, (3,), np.uint8), "speed": gym.spaces.Box(-INF, INF, (2,), np.float64)}
    )
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.count = 0

    def _see(self) -> dict[str, Any]:
        return {"image": np.full(3, 200, np.uint8), "speed": np.array([0.0, INF if self.count == 9 else 1.0])}

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        return self._see(), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        return self._see(), 0.0, False, False, {}


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_part_of_an_observation_is_named(name: str) -> None:
    options = {"n_steps": 16, "batch_size": 8} if name == "PPO" else {"learning_starts": 8, "batch_size": 8, "buffer_size": 100}
    agent = AGENTS[name]("MultiInputPolicy", Parts(), device="cpu", **options)
    assert stopped(agent).startswith("step 9: the observation 'speed' of environment 0 is inf;")


def test_environments_are_watched_while_an_agent_learns_only() -> None:
    copies: list[Any] = []
    agent = make("DQN")
    env = agent.get_env()
    methods = {"reset", "step_async", "step_wait"}
    agent.learn(5, callback=OnStep(lambda: copies.append((copy.deepcopy(env), methods <= vars(env).keys()))))
    assert all(watched for _, watched in copies)
    assert not methods & vars(env).keys()
    for copied, _ in copies[:1]:  # a copy in the middle is on its own, and forgets that it was watched
        assert copied.step_wait.__self__ is copied
        copied.reset()
        copied.step(np.array([0]))


def test_action_is_looked_at() -> None:
    agent = make("DDPG")
    agent.learn(10)
    with th.no_grad():
        agent.actor.mu[0].weight[0, 0] = NAN
    message = stopped(agent, 10, reset_num_timesteps=False)
    assert message.startswith("step 12: the parameter 'actor.mu.0.weight' is not finite;")
    noisy = make("DDPG", action_noise=lambda: np.array([[NAN]]))
    noisy.action_noise.reset = lambda: None  # type: ignore[attr-defined]
    assert stopped(noisy) == ("step 1: the action of environment 0 is nan; there is no checkpoint; see what the networks compute.")


# What agents learn from


def break_at(agent: Any, at: int, change: Callable[[th.Tensor], th.Tensor], method: str = "") -> list[Any]:
    """Let the loss be changed at one evaluation; returns where the numbers before that gradient step will be."""
    method = method or ("_evaluate" if hasattr(agent, "_evaluate") else "_evaluate_critic")
    plain, calls, before = getattr(agent, method), iter(range(1, 10**6)), []
    begin = agent._finite.begin_step

    def evaluate(*args: Any) -> Any:
        loss, *rest = plain(*args)
        return (change(loss) if next(calls) == at else loss, *rest)

    def begin_step() -> None:
        before.append(numbers_of(agent))
        begin()

    agent.__dict__[method] = evaluate
    agent._finite.begin_step = begin_step
    return before


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda loss: loss * NAN, r"{of} is nan"),
        (lambda loss: loss + loss.detach() * INF + INF, r"{of} is inf"),  # with a gradient that is finite
        (lambda loss: loss + (loss - loss.detach()).abs().sqrt(), r"the gradient of '[\w.]+' is not finite \({of} is [\d.e-]+\)"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_loss_and_gradient_stop_the_run_in_front_of_the_step(name: str, change: Any, words: str) -> None:
    agent = make(name)
    before = break_at(agent, 4, change)
    message = stopped(agent)
    number = 4 if name == "PPO" else 2
    pattern = rf"step 16, gradient step {number}: {words.format(of=LOSSES[name])}; there is no checkpoint; try a lower"
    assert re.match(pattern, message), message
    assert len(before) == 4
    assert_equal(numbers_of(agent), before[-1])


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_norm_that_overflows_stops_agents_that_clip(name: str) -> None:
    agent = make(name)
    break_at(agent, 4, lambda loss: loss * 1e30)
    assert re.search(r"gradient step [24]: the norm of the gradient overflows \(the loss is [\d.e+]+\); there", stopped(agent))


SPECS: dict[str, Any] = {
    "default": None,
    "locoprop": LocoPropSpec(variant="squared", solver="closed_form", gamma=0.1, gamma_mode="per_row", prox_eta=1.0),
    "kfac": Kfac(lr=1e-3),
    "sam": Sam(base=Adam(lr=1e-3)),
    "lbfgs": LBFGS(lr=0.1, max_iter=3, history_size=5, line_search="strong_wolfe"),
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", AGENTS)
def test_skip_leaves_everything_as_it_was(name: str, spec: str) -> None:
    limits: dict[str, Any] = {} if spec in ("default", "sam") or name not in ("DQN", "PPO") else {"max_grad_norm": INF}
    if name == "DQN":
        limits["target_update_interval"] = 1000  # it is no part of an update
    agent = make(name, optimizer=SPECS[spec], non_finite="skip", **limits)
    at = {"sam": 6, "lbfgs": 6}.get(spec, 4)  # one of the evaluations in the middle of a step
    before = break_at(agent, at, lambda loss: loss * NAN)
    after: list[Any] = []
    settle = agent._finite.settle

    def watched_settle(*args: Any) -> None:
        settle(*args)
        after.append((len(before), numbers_of(agent)))

    agent._finite.settle = watched_settle
    with pytest.warns(
        UserWarning, match=r"^step 1[26], gradient step [1-4]: the loss.* is nan; the update is left out, "
    ) as caught:
        agent.learn(32)
    assert len(caught) == 1
    assert agent.num_skipped_updates == len(after) == 1
    index, numbers = after[0]
    assert_equal(numbers, before[index - 1])
    assert_equal(before[index], numbers)  # nor did the rest of that gradient step change anything
    assert agent.logger.name_to_value.get("train/skipped_updates") == 1
    changed = numbers_of(agent)  # and later ones did
    assert any(not th.equal(a, b) for a, b in zip(changed["policy"].values(), numbers["policy"].values(), strict=True))
    assert all(value.isfinite().all() for value in changed["policy"].values())


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("name", ["TD3", "SAC"])
def test_skipped_step_of_the_actor_leaves_actor_and_targets(name: str) -> None:
    agent = make(name, non_finite="skip", **({"policy_delay": 1} if name == "TD3" else {}))
    before = break_at(agent, 3, lambda loss: loss * NAN, "_evaluate_actor")
    agent.learn(20)
    assert agent.num_skipped_updates == 1
    old, new = before[2], before[3]
    for part, value in old["policy"].items():
        same = th.equal(value, new["policy"][part])
        assert same == (not part.startswith("critic.")), part
    assert_equal(old["actor.optimizer"], new["actor.optimizer"])


class Normalised(BaseFeaturesExtractor):
    """With running statistics, which forward passes change."""

    def __init__(self, space: Any) -> None:
        super().__init__(space, 3)
        self.norm = th.nn.BatchNorm1d(3)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.norm(obs)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_running_statistics_are_not_spoiled_by_a_skipped_step() -> None:
    agent = make("SAC", non_finite="skip", policy_kwargs={"net_arch": [8], "features_extractor_class": Normalised})
    before = break_at(agent, 2, lambda loss: loss * NAN)
    agent.learn(20)
    assert_equal(before[1], before[2])
    assert not all(th.equal(a, b) for a, b in zip(before[0]["policy"].values(), before[1]["policy"].values(), strict=True))


@pytest.mark.parametrize("name", AGENTS)
def test_learning_rate_that_explodes(name: str, tmp_path: Path) -> None:
    agent = make(name, optimizer=Sgd(lr=1.0), gamma=0.9)
    checkpoints = Checkpoints(tmp_path, every=8)

    class Explode(OnStep):
        def _on_rollout_start(self) -> None:
            if self.model.num_timesteps >= 32:
                for rates in self.model._own_rates.values():
                    rates[:] = [1e38] * len(rates)

    message = stopped(agent, 200, callback=Explode(lambda: None), checkpoints=checkpoints)
    assert "is not finite" in message or "is nan" in message or "is inf" in message or "overflows" in message, message
    newest = checkpoints.paths()[-1]
    assert f"; the last good checkpoint is {newest};" in message
    assert message.count("\n") == 0
    for path in checkpoints.paths():
        state: Any = read_state(path / "state.npz")
        assert all(value.isfinite().all() for value in state["modules"]["policy"].values())


@pytest.mark.parametrize("name", AGENTS)
def test_parameters_that_are_not_finite_are_not_saved(name: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=16)
    agent = make(name)
    agent.learn(32, checkpoints=checkpoints)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    parameter, value = next(iter(agent.policy.named_parameters()))
    with th.no_grad():
        value.view(-1)[0] = INF
    agent.num_timesteps += 1
    with pytest.raises(NonFiniteError, match=f"step 33: the parameter '{parameter}' is not finite; the last good checkpoint is "):
        checkpoints.save(agent)
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_run_does_not_end_well_with_parameters_that_are_not_finite() -> None:
    agent = make("DQN", learning_starts=100)
    with th.no_grad():
        agent.q_net.q_net[0].bias[0] = NAN
    assert stopped(agent, 10).startswith("step 12: the parameter 'q_net.q_net.0.bias' is not finite;")


@pytest.mark.filterwarnings("ignore:.*left out")
def test_entropy_coefficient_is_looked_at() -> None:
    agent = make("SAC", non_finite="skip")
    before = break_at(agent, 2, lambda loss: loss * NAN, "_evaluate_ent_coef")
    agent.learn(16)
    assert agent.num_skipped_updates == 1
    assert th.equal(before[1]["log_ent_coef"], before[2]["log_ent_coef"])


@pytest.mark.filterwarnings("ignore:.*left out")
def test_parameter_that_is_not_finite_stops_a_run_that_skips_too() -> None:
    agent = make("SAC", non_finite="skip")
    agent.learn(16)
    with th.no_grad():
        agent.critic_target.qf0[0].weight[0, 0] = NAN
    message = stopped(agent, 16, reset_num_timesteps=False)
    assert message.startswith("step 20, gradient step 1: the parameter 'critic_target.qf0.0.weight' is not finite;")


@pytest.mark.filterwarnings("ignore:.*left out")
def test_sequences_are_looked_at() -> None:
    env = HistoryWrapper(gym.make("rlopt/TMaze-v0", corridor_length=4), length=5)
    network = TransformerConfig(width=8, num_layers=1, num_heads=2, context=6, positions="rotary", dropout=0.1)
    options = {"features_extractor_class": TransformerExtractor, "features_extractor_kwargs": {"transformer": network}}
    common: dict[str, Any] = {"sequences": SequenceLearning(length=5), "policy_kwargs": options, "buffer_size": 100, "seed": 0,
              "learning_starts": 20, "batch_size": 4, "device": "cpu", "replay_buffer_class": PrioritizedReplay}  # fmt: skip
    agent = DQN("MultiInputPolicy", env, non_finite="skip", **common)
    before = break_at(agent, 2, lambda loss: loss * NAN)
    agent.learn(40)
    assert agent.num_skipped_updates == 1
    assert_equal(before[1], before[2])


@pytest.mark.parametrize("replay", [PrioritizedReplay, IntrospectiveReplay])
@pytest.mark.parametrize("name", AGENTS)
def test_judgement_at_the_end_of_a_phase_names_the_first_step(name: str, replay: Any) -> None:
    """As on a GPU: parameters are lost by then, and what replays or distributions say about nan is not the cause."""
    agent = make(name, **({} if name == "PPO" else {"replay_buffer_class": replay, "gradient_steps": 6}))
    agent._finite._waits = True
    break_at(agent, 3, lambda loss: loss * NAN)
    expected = f"step {16 if name == 'PPO' else 12}, gradient step 3: {LOSSES[name]} is nan; there is no checkpoint;"
    assert stopped(agent).startswith(expected)


def test_judgement_at_the_end_tells_gradients_from_losses() -> None:
    agent = make("TD3")
    agent._finite._waits = True
    break_at(agent, 2, lambda loss: loss + (loss - loss.detach()).abs().sqrt())
    assert ", gradient step 2: the gradient of the loss of the critic is not finite (the loss of the critic is " in stopped(agent)


def test_healthy_runs_do_not_depend_on_the_choice() -> None:
    runs = []
    for options in ({}, {"non_finite": "skip"}):
        agent = make("SAC", optimizer=Sam(base=Adam(lr=1e-3)), **options)
        agent.learn(40)
        runs.append(numbers_of(agent))
        assert ("train/skipped_updates" in agent.logger.name_to_value) == bool(options)
    assert_equal(*runs)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_count_of_skipped_updates_goes_on_after_a_stop(tmp_path: Path) -> None:
    agent = make("DQN", non_finite="skip")
    break_at(agent, 2, lambda loss: loss * NAN)
    agent.learn(24, checkpoints=Checkpoints(tmp_path))
    again = make("DQN", non_finite="skip").learn(40, checkpoints=Checkpoints(tmp_path))
    assert again.num_skipped_updates == 1


def test_choice_is_checked_and_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="non_finite must be 'raise' or 'skip', got 'ignore'"):
        make("DQN", non_finite="ignore")
    make("DQN", non_finite="skip").save(tmp_path / "agent")
    assert DQN.load(tmp_path / "agent").non_finite == "skip"
    assert isinstance(pickle.loads(pickle.dumps(NonFiniteError("x"))), FloatingPointError)
