"""rlopt's agents against stock Stable-Baselines3, and its conventions."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecNormalize

import rlopt.agents
from rlopt.agents import losses
from rlopt.replay import IntrospectiveReplay, PrioritizedReplay, ReverseReplay, UniformReplay
from rlopt.replay.sampler import Sampler

CONTINUOUS = ["DDPG", "TD3", "SAC"]
ENVS = {"DQN": "CartPole-v1", "DDPG": "Pendulum-v1", "TD3": "Pendulum-v1", "SAC": "Pendulum-v1"}
OPTIONS: dict[str, Any] = {"learning_starts": 50, "batch_size": 16, "policy_kwargs": {"net_arch": [16, 16]}, "device": "cpu"}
DQN_OPTIONS = {"train_freq": 1, "target_update_interval": 20, "learning_rate": 1e-3}


def options_of(name: str) -> dict[str, Any]:
    # A copy: Stable-Baselines3 writes into policy_kwargs.
    return copy.deepcopy({**OPTIONS, **(DQN_OPTIONS if name == "DQN" else {})})


class _GlobalSampler(Sampler):
    """Uniform draws from NumPy's global generator, in the order of Stable-Baselines3's buffer."""

    def uniform_slots(self, batch_size: int) -> np.ndarray:
        rows = np.random.randint(0, self.storage.num_filled_rows, size=batch_size)  # noqa: NPY002
        envs = np.random.randint(0, self.storage.n_envs, size=batch_size)  # noqa: NPY002
        return rows * self.storage.n_envs + envs


class GlobalUniformReplay(UniformReplay):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sampler = _GlobalSampler()
        self.sampler.bind(self.storage, self.rng)


class Losses(BaseCallback):
    """Collects what the agent logs after each update."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []

    def _on_step(self) -> bool:
        logged = self.model.logger.name_to_value
        self.values += [logged[key] for key in ("train/loss", "train/critic_loss", "train/actor_loss") if key in logged]
        return True


def train(agent_class: Any, name: str, steps: int, **options: Any) -> tuple[Any, list[float]]:
    env = make_vec_env(ENVS[name], n_envs=options.pop("n_envs", 1), seed=3)
    agent = agent_class("MlpPolicy", env, seed=3, **{**options_of(name), **options})
    callback = Losses()
    agent.learn(steps, callback=callback)
    return agent, callback.values


def assert_equal_parameters(one: Any, two: Any) -> None:
    for (key, a), b in zip(one.policy.state_dict().items(), two.policy.state_dict().values(), strict=True):
        assert th.equal(a, b), key


@pytest.mark.parametrize("name", ["DQN", *CONTINUOUS])
@pytest.mark.parametrize("n_envs", [1, 4])
def test_learning_step_equals_sb3_number_by_number(name: str, n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same draws, same parameters to the bit after 250 updates; only the rounding of lerp is put aside."""
    monkeypatch.setattr(losses, "soft_update", polyak_update)
    ours, our_losses = train(getattr(rlopt.agents, name), name, 300, n_envs=n_envs, replay_buffer_class=GlobalUniformReplay)
    stock, stock_losses = train(getattr(sb3, name), name, 300, n_envs=n_envs)
    assert len(our_losses) > 50
    assert our_losses == stock_losses
    assert_equal_parameters(ours, stock)


@pytest.mark.parametrize("name", ["DQN", *CONTINUOUS])
def test_n_step_learning_equals_sb3(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "soft_update", polyak_update)
    ours, our_losses = train(getattr(rlopt.agents, name), name, 200, n_steps=3, replay_buffer_class=GlobalUniformReplay)
    _, stock_losses = train(getattr(sb3, name), name, 200, n_steps=3)
    np.testing.assert_allclose(our_losses, stock_losses, rtol=1e-3)
    assert ours.replay_buffer.n_steps == 3


@pytest.mark.parametrize("name", ["DQN", "SAC"])
def test_lerp_changes_rounding_only(name: str) -> None:
    _, our_losses = train(getattr(rlopt.agents, name), name, 120, replay_buffer_class=GlobalUniformReplay)
    _, stock_losses = train(getattr(sb3, name), name, 120)
    np.testing.assert_allclose(our_losses, stock_losses, rtol=1e-4)


@pytest.mark.parametrize("name", ["DQN", "TD3"])
def test_stock_buffers_work_in_our_agents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "soft_update", polyak_update)
    _, our_losses = train(getattr(rlopt.agents, name), name, 150, replay_buffer_class=ReplayBuffer)
    _, stock_losses = train(getattr(sb3, name), name, 150)
    assert our_losses == stock_losses


@pytest.mark.parametrize("name", ["DQN", "SAC"])
def test_equal_seeds_give_equal_runs_and_other_seeds_others(name: str) -> None:
    agent_class = getattr(rlopt.agents, name)
    one, _ = train(agent_class, name, 120, replay_buffer_class=PrioritizedReplay)
    two, _ = train(agent_class, name, 120, replay_buffer_class=PrioritizedReplay)
    assert_equal_parameters(one, two)
    batches = [agent_class("MlpPolicy", ENVS[name], seed=seed).replay_buffer.rng.random() for seed in (1, 1, 2)]
    assert batches[0] == batches[1] != batches[2]


@pytest.mark.parametrize("name", ["DQN", *CONTINUOUS])
@pytest.mark.parametrize("replay", [PrioritizedReplay, IntrospectiveReplay, ReverseReplay])
def test_save_load_and_continue(name: str, replay: Any, tmp_path: Path) -> None:
    agent, _ = train(getattr(rlopt.agents, name), name, 100, replay_buffer_class=replay, n_steps=2)
    agent.save(tmp_path / "agent.zip")
    agent.save_replay_buffer(tmp_path / "replay.npz")
    loaded = type(agent).load(tmp_path / "agent.zip", env=agent.get_env())
    loaded.load_replay_buffer(tmp_path / "replay.npz")
    assert_equal_parameters(agent, loaded)
    assert len(loaded.replay_buffer) == 100
    one, two = agent.replay_buffer.sample(8), loaded.replay_buffer.sample(8)
    assert one.indices.tolist() == two.indices.tolist()
    assert th.equal(one.rewards, two.rewards)
    loaded.learn(30, reset_num_timesteps=False)
    assert loaded.num_timesteps == 130
    assert len(loaded.replay_buffer) == 130
    without_env = type(agent).load(tmp_path / "agent.zip")
    assert without_env.predict(agent.observation_space.sample())[0] is not None


def test_callbacks_evaluation_and_normalisation_work(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=0))
    eval_env = VecNormalize(make_vec_env("CartPole-v1", seed=1), training=False)
    agent = rlopt.agents.DQN(
        "MlpPolicy", env, replay_buffer_class=IntrospectiveReplay, seed=0, tensorboard_log=str(tmp_path), **options_of("DQN")
    )
    checkpoint = CheckpointCallback(20, str(tmp_path / "checkpoints"), save_replay_buffer=True, save_vecnormalize=True)
    evaluation = EvalCallback(eval_env, n_eval_episodes=2, eval_freq=30, verbose=0)
    agent.learn(200, callback=[checkpoint, evaluation], progress_bar=False, log_interval=1)
    mean, _ = evaluate_policy(agent, eval_env, n_eval_episodes=2)
    assert mean > 5
    assert evaluation.best_mean_reward > 5
    assert (tmp_path / "checkpoints" / "rl_model_200_steps.zip").exists()
    agent.load_replay_buffer(tmp_path / "checkpoints" / "rl_model_replay_buffer_200_steps.pkl")
    assert list(tmp_path.glob("*/events.*"))


def test_replay_statistics_are_logged() -> None:
    agent = rlopt.agents.DQN("MlpPolicy", "CartPole-v1", replay_buffer_class=PrioritizedReplay, seed=0, **options_of("DQN"))
    logged: dict[str, float] = {}

    class Keep(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            self.model.dump_logs()

    original = rlopt.agents.diagnostics.ReplayDiagnostics.report
    agent._diagnostics.report = lambda replay: logged.update(original(agent._diagnostics, replay)) or dict(logged)
    agent.learn(150, callback=Keep(), log_interval=None)
    assert set(logged) == {
        "td_error_q10", "td_error_q50", "td_error_q90", "td_error_mean", "age_mean", "weights_ess", "uniform_share"
    }  # fmt: skip
    assert logged["td_error_q10"] <= logged["td_error_q50"] <= logged["td_error_q90"]
    assert 0 < logged["weights_ess"] <= 1
    assert 0 < logged["age_mean"] < 150
    assert logged["uniform_share"] == 0


def test_gamma_and_n_steps_must_agree() -> None:
    for options, name in [({"gamma": 0.9}, "gamma"), ({"n_steps": 5}, "n_steps")]:
        with pytest.raises(ValueError, match=f"replay_buffer_kwargs has {name}="):
            rlopt.agents.DQN(
                "MlpPolicy", "CartPole-v1", gamma=0.99, n_steps=3, replay_buffer_class=UniformReplay, replay_buffer_kwargs=options
            )


def test_n_steps_reaches_every_replay_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    agent = rlopt.agents.DQN("MlpPolicy", "CartPole-v1", gamma=0.9, n_steps=3, replay_buffer_class=ReverseReplay)
    assert (agent.replay_buffer.n_steps, agent.replay_buffer.gamma, agent.n_steps) == (3, 0.9, 3)
    assert not [warning for warning in recwarn if "n_steps" in str(warning.message)]


def test_shared_layout_by_sb3s_word_learns_like_the_plain_one() -> None:
    plain, plain_losses = train(rlopt.agents.DQN, "DQN", 200, n_envs=2)
    shared, shared_losses = train(rlopt.agents.DQN, "DQN", 200, n_envs=2, optimize_memory_usage=True)
    assert shared.replay_buffer.storage.layout == "shared"
    assert plain_losses == shared_losses
    assert_equal_parameters(plain, shared)
    assert plain.replay_buffer.storage.layout == "plain"


def test_double_q_changes_the_target() -> None:
    agent = rlopt.agents.DQN("MlpPolicy", "CartPole-v1", seed=0, double_q=True, **options_of("DQN"))
    agent.learn(120)
    batch = agent.replay_buffer.sample(16)
    with th.no_grad():
        choice = agent.q_net(batch.next_observations).argmax(1, keepdim=True)
        value = agent.q_net_target(batch.next_observations).gather(1, choice)
        expected = (
            batch.rewards + (1 - batch.dones) * agent.gamma * value - agent.q_net(batch.observations).gather(1, batch.actions)
        )
    th.testing.assert_close(rlopt.agents.td_error(agent, batch), expected)


def test_refresh_changes_no_parameter_and_no_optimizer_state() -> None:
    for name in ("DQN", "TD3", "SAC"):
        agent, _ = train(getattr(rlopt.agents, name), name, 100, replay_buffer_class=IntrospectiveReplay)
        before = {key: value.clone() for key, value in agent.policy.state_dict().items()}
        optimizer = agent.policy.optimizer if name == "DQN" else agent.critic.optimizer
        moments = [state["exp_avg"].clone() for state in optimizer.state.values()]
        agent._begin_phase(10)
        assert all(th.equal(value, before[key]) for key, value in agent.policy.state_dict().items())
        assert all(th.equal(a, b["exp_avg"]) for a, b in zip(moments, optimizer.state.values(), strict=True))


def test_pivots_are_fixed_within_a_phase_and_change_with_the_networks_in_the_next() -> None:
    agent, _ = train(rlopt.agents.DQN, "DQN", 150, replay_buffer_class=IntrospectiveReplay)
    agent._begin_phase(20)
    pivots = agent.replay_buffer.sampler.pivots.copy()
    with th.no_grad():
        for parameter in agent.q_net.parameters():
            parameter.mul_(-3.0)
    agent.replay_buffer.sample(16)
    assert agent.replay_buffer.sampler.pivots.tolist() == pivots.tolist()
    agent._begin_phase(20)
    assert agent.replay_buffer.sampler.pivots.tolist() != pivots.tolist()


def test_weights_reach_the_loss() -> None:
    """With all weight on one transition the gradient is that of this transition alone."""
    agent = rlopt.agents.DQN("MlpPolicy", "CartPole-v1", seed=0, **options_of("DQN"))
    agent.learn(60)
    batch = agent.replay_buffer.sample(4)
    q = agent.q_net(batch.observations).gather(1, batch.actions)
    weights = th.tensor([[0.0], [4.0], [0.0], [0.0]])
    weighted = losses.huber_loss(q, q.detach() + 1, weights)
    single = losses.huber_loss(q[1:2], q[1:2].detach() + 1)
    assert weighted.item() == pytest.approx(single.item())


def test_phase_callback_refuses_our_agents_and_foreign_buffers() -> None:
    ours = rlopt.agents.DQN("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="drop it"):
        ours.learn(1, callback=rlopt.agents.ReplayPhaseCallback())
    stock = sb3.DQN("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match="needs an off-policy agent with a replay of rlopt"):
        stock.learn(1, callback=rlopt.agents.ReplayPhaseCallback())


def test_phase_callback_gives_a_stock_agent_the_same_windows_as_ours() -> None:
    indices: list[list[list[int]]] = []
    for agent_class, callback in ((sb3.DQN, rlopt.agents.ReplayPhaseCallback()), (rlopt.agents.DQN, None)):
        agent = agent_class(
            "MlpPolicy",
            "CartPole-v1",
            seed=0,
            replay_buffer_class=IntrospectiveReplay,
            **{**options_of("DQN"), "train_freq": 32, "gradient_steps": -1},
        )
        drawn: list[list[int]] = []
        sample = agent.replay_buffer.sample

        def spy(*args: Any, sample: Any = sample, drawn: Any = drawn, **kwargs: Any) -> Any:
            batch = sample(*args, **kwargs)
            drawn.append(batch.indices.tolist())
            return batch

        agent.replay_buffer.sample = spy
        agent.learn(256, callback=callback)
        indices.append(drawn)
    assert len(indices[0]) > 100
    assert indices[0] == indices[1]
