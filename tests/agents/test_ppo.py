"""rlopt's PPO against Stable-Baselines3's, its losses by hand, and its optimizers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from rlopt.agents import PPO, HistoryWrapper, losses
from rlopt.optim import LBFGS, Adam, LocoPropSpec, Sam

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 3, "device": "cpu", "seed": 5}
LOCOPROP = LocoPropSpec(variant="squared", solver="closed_form", gamma=0.1, gamma_mode="per_row", prox_eta=1.0)
ADAM = Adam(lr=3e-4, eps=1e-5)  # Stable-Baselines3's


def make(agent_class: Any = PPO, env_id: str = "CartPole-v1", policy: str = "MlpPolicy", **options: Any) -> Any:
    options = {"env": make_vec_env(env_id, n_envs=2, seed=5), "policy_kwargs": {"net_arch": [16]}, **SMALL, **options}
    return agent_class(policy, **options)


def state(agent: Any) -> dict[str, th.Tensor]:
    return {key: value.clone() for key, value in agent.policy.state_dict().items()}


def assert_same(one: dict[str, th.Tensor], two: dict[str, th.Tensor], atol: float = 0.0) -> None:
    assert list(one) == list(two)
    for key, value in one.items():
        th.testing.assert_close(value, two[key], rtol=0.0, atol=atol)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"env_id": "Pendulum-v1"},
    "state_dependent_exploration": {"env_id": "Pendulum-v1", "use_sde": True, "sde_sample_freq": 4},
    "clipped_values": {"clip_range_vf": 0.05, "clip_range": LinearSchedule(0.2, 0.1, 1.0), "normalize_advantage": False},
    "early_stop": {"target_kl": 1e-4, "ent_coef": 0.1, "learning_rate": 3e-3},
    "no_closed_form": {"ent_coef": 0.1, "env_id": "Pendulum-v1", "use_sde": True, "policy_kwargs": {"squash_output": True}},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_training_equals_stable_baselines3_to_the_last_bit(options: dict[str, Any]) -> None:
    ours, stock = make(**options).learn(128), make(sb3.PPO, **options).learn(128)
    assert_same(state(ours), state(stock))
    mine, theirs = ({k: v for k, v in agent.logger.name_to_value.items() if k.startswith("train/")} for agent in (ours, stock))
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert value == pytest.approx(theirs[key], rel=1e-5, abs=1e-8), key
    if "target_kl" in options:
        assert ours._n_updates < 6  # of 3 epochs in each of 2 updates


def test_adam_as_a_spec_equals_stable_baselines3() -> None:
    ours = make(optimizer=ADAM).learn(64)
    assert_same(state(ours), state(make(sb3.PPO).learn(64)), atol=1e-6)
    assert ours.logger.name_to_value["train/learning_rate"] == 3e-4


@pytest.mark.parametrize("spec", [LOCOPROP, Sam(base=ADAM), LBFGS(lr=0.1, max_iter=2)], ids=["locoprop", "sam", "lbfgs"])
def test_other_optimizers_train_reproducibly(spec: Any) -> None:
    agent = make(optimizer=spec)
    before = state(agent)
    after = state(agent.learn(64))
    assert all(th.isfinite(value).all() and not th.equal(value, before[key]) for key, value in after.items())
    assert_same(state(make(optimizer=spec).learn(64)), after)
    assert math.isfinite(agent.logger.name_to_value["train/loss"])


@pytest.mark.parametrize("spec", [ADAM, Sam(base=ADAM), LBFGS()], ids=["adam", "sam", "lbfgs"])
def test_early_stop_takes_no_step(spec: Any, capsys: pytest.CaptureFixture[str]) -> None:
    agent = make(optimizer=spec, target_kl=1e-9, n_epochs=4, verbose=0)
    agent.learn(64)
    agent.rollout_buffer.log_probs += 1.0  # another policy gathered the data
    before = state(agent)
    agent.verbose = 1
    agent.train()
    assert_same(state(agent), before)
    assert "Early stopping at step 0" in capsys.readouterr().out
    expected = math.exp(-1.0) - 1 + 1  # of ratio e^-1, up to what the update changed
    assert agent.logger.name_to_value["train/approx_kl"] == pytest.approx(expected, rel=0.05)


def test_options_that_have_no_effect_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_grad_norm must be left out or math\.inf with LocoProp"):
        make(optimizer=LOCOPROP, max_grad_norm=0.5)
    with pytest.raises(ValueError, match="learning_rate must be left out"):
        make(optimizer=ADAM, learning_rate=1e-3)
    with pytest.raises(ValueError, match="policy_kwargs must have no optimizer_class"):
        make(optimizer=ADAM, policy_kwargs={"optimizer_class": th.optim.SGD})
    with pytest.raises(TypeError, match="optimizer must be a spec"):
        make(optimizer={"actor": ADAM, "critic": ADAM})
    assert make(optimizer=LOCOPROP).max_grad_norm == math.inf
    assert make(optimizer=ADAM).max_grad_norm == 0.5


def test_learning_rate_is_a_schedule_of_factors() -> None:
    agent = make(optimizer=ADAM, learning_rate=LinearSchedule(1.0, 0.0, 1.0)).learn(128)
    assert agent.logger.name_to_value["train/learning_rate"] == pytest.approx(0.0, abs=1e-12)
    assert make(optimizer=Adam(lr=0.02)).policy.optimizer.param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize("optimizer", [None, ADAM])
def test_save_load_and_continue(optimizer: Any, tmp_path: Path) -> None:
    agent = make(optimizer=optimizer).learn(64)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=agent.get_env(), device="cpu")
    assert_same(state(loaded), state(agent))
    assert loaded.optimizer == optimizer
    moments = [[s["exp_avg"] for s in a.policy.optimizer.state_dict()["state"].values()] for a in (agent, loaded)]
    assert len(moments[0]) > 0
    assert all(th.equal(a, b) for a, b in zip(*moments, strict=True))
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.num_timesteps == 128


def test_callbacks_evaluation_and_histories_work(tmp_path: Path) -> None:
    history = {"wrapper_class": HistoryWrapper, "wrapper_kwargs": {"length": 3, "include_actions": True}}
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0, **history), norm_obs_keys=["observations"])
    other = VecNormalize(make_vec_env("CartPole-v1", seed=1, **history), norm_obs_keys=["observations"], training=False)
    agent = make(env=env, policy="MultiInputPolicy", tensorboard_log=str(tmp_path))
    callbacks = [CheckpointCallback(32, str(tmp_path)), EvalCallback(other, n_eval_episodes=2, eval_freq=32, verbose=0)]
    agent.learn(64, callback=callbacks)
    assert evaluate_policy(agent, other, n_eval_episodes=2)[0] > 5
    assert callbacks[1].best_mean_reward > 5
    assert (tmp_path / "rl_model_64_steps.zip").exists()
    assert list(tmp_path.glob("*/events.*"))


# ---------------------------------------------------------------------- losses by hand


def test_surrogate_takes_the_smaller_of_the_ratios() -> None:
    log_ratio = th.tensor([2.0, 0.5, 2.0, 0.5, 1.0]).log()
    advantages = th.tensor([1.0, 1.0, -1.0, -1.0, 3.0])
    # min(2, 1.2), min(0.5, 0.8), min(-2, -1.2), min(-0.5, -0.8), 3
    expected = -(1.2 + 0.5 - 2.0 - 0.8 + 3.0) / 5
    assert losses.clipped_surrogate_loss(log_ratio, advantages, 0.2).item() == pytest.approx(expected)


def test_surrogate_has_no_gradient_where_it_is_clipped() -> None:
    log_ratio = th.tensor([2.0, 0.5]).log().requires_grad_()
    losses.clipped_surrogate_loss(log_ratio, th.tensor([1.0, 1.0]), 0.2).backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == pytest.approx([0.0, -0.25])  # -rho A / B


def test_value_loss_moves_within_its_range() -> None:
    values, returns, old = th.tensor([1.0, 5.0]), th.tensor([2.0, 2.0]), th.tensor([0.9, 3.0])
    assert losses.clipped_value_loss(values, returns, old).item() == pytest.approx((1 + 9) / 2)
    assert losses.clipped_value_loss(values, returns, old, 0.5).item() == pytest.approx((1 + 1.5**2) / 2)


def test_entropy_loss_is_estimated_where_it_has_no_closed_form() -> None:
    assert losses.entropy_loss(th.tensor([1.0, 3.0]), th.tensor([9.0, 9.0])).item() == -2.0
    assert losses.entropy_loss(None, th.tensor([-1.0, -4.0])).item() == -2.5


def test_approximate_kl_is_the_divergence_on_average() -> None:
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    actions = np.repeat([0, 1, 2], [500, 300, 200])  # as often as the old policy takes them
    log_ratio = th.tensor(np.log(new / old)[actions])
    assert losses.approximate_kl(log_ratio).item() == pytest.approx(float((old * np.log(old / new)).sum()))
    assert losses.approximate_kl(th.zeros(3)).item() == 0.0


def test_clip_fraction_and_normalisation() -> None:
    assert losses.clip_fraction(th.tensor([1.0, 1.3, 0.7, 1.1]).log(), 0.2).item() == 0.5
    assert losses.normalized(th.tensor([1.0, 3.0])).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert losses.normalized(th.tensor([7.0])).tolist() == [7.0]
