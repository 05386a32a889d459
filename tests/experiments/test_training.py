"""A training run: evaluation on the side, exact length, files, options that arrive."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import _training
import gymnasium as gym
import numpy as np
import pytest
import torch
from _training import make_agent, play, train

from rlopt.agents import Checkpoints
from rlopt.files.checkpoint import list_checkpoints
from rlopt.replay import IntrospectiveReplay, PrioritizedReplay
from rlopt.study.files import write_json
from rlopt.study.runs import read_evaluations, read_manifest
from rlopt.study.worker import execute

CONFIG = {
    "env_id": "CartPole-v1",
    "agent": "dqn",
    "total_timesteps": 600,
    "num_evaluations": 3,
    "eval_episodes": 2,
    "device": "cpu",
    "replay": "uniform",
    "replay_options": {},
    "learning_rate_factor": 1.0,
    "options": {
        "learning_rate": 1e-3,
        "learning_starts": 100,
        "batch_size": 16,
        "buffer_size": 500,
        "train_freq": 32,
        "gradient_steps": 8,
        "net_arch": [16],
    },
}


def trained(folder, monkeypatch, **changes):
    """Train and return the agent."""
    made = []
    monkeypatch.setattr("_training.make_agent", lambda *args: made.append(make_agent(*args)) or made[-1])
    train({**CONFIG, **changes}, 3, folder)
    return made[0]


def weights(agent):
    return torch.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()]).numpy()


def test_evaluating_more_often_does_not_change_training(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    few = trained(tmp_path / "a", monkeypatch, num_evaluations=1)
    many = trained(tmp_path / "b", monkeypatch, num_evaluations=20, eval_episodes=3)
    assert np.array_equal(weights(few), weights(many))
    assert np.array_equal(few.replay_buffer.sample(8).indices, many.replay_buffer.sample(8).indices)


def test_evaluations_are_spread_evenly_and_training_stops_exactly(tmp_path, monkeypatch):
    agent = trained(tmp_path, monkeypatch, num_evaluations=4, total_timesteps=610)
    assert [row.step for row in read_evaluations(tmp_path)] == [153, 305, 458, 610]
    assert agent.num_timesteps == 610


def test_more_evaluations_than_steps_are_one_per_step(tmp_path, monkeypatch):
    trained(tmp_path, monkeypatch, num_evaluations=50, total_timesteps=5)
    assert [row.step for row in read_evaluations(tmp_path)] == [1, 2, 3, 4, 5]


def test_run_folder_gets_progress_and_tensorboard_events(tmp_path, monkeypatch):
    trained(tmp_path, monkeypatch)
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["eval/mean_reward"]) == read_evaluations(tmp_path)[-1].score
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert json.loads((tmp_path / "live.json").read_text())["step"] > 0


def test_same_seed_same_run_and_other_seed_other_run():
    results = []
    for seed in (0, 0, 1):
        agent = make_agent(CONFIG, seed)  # Stable-Baselines3 seeds global generators here: one agent at a time
        agent.learn(200)
        results.append(weights(agent))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_replay_and_agent_options_arrive():
    config = {
        **CONFIG,
        "replay": "introspective",
        "replay_options": {"mix": 0.3},
        "options": {**CONFIG["options"], "gamma": 0.9, "n_steps": 3, "double_q": True},
    }
    agent = make_agent(config, 0)
    assert isinstance(agent.replay_buffer, IntrospectiveReplay)
    assert agent.replay_buffer.sampler.config.mix == 0.3
    assert (agent.replay_buffer.n_steps, agent.replay_buffer.gamma) == (3, 0.9)
    assert (agent.gamma, agent.double_q, agent.batch_size, agent.gradient_steps) == (0.9, True, 16, 8)
    assert [layer.out_features for layer in agent.q_net.q_net if isinstance(layer, torch.nn.Linear)] == [16, 2]


def test_learning_rate_factor_multiplies():
    agent = make_agent({**CONFIG, "replay": "prioritized", "learning_rate_factor": 0.25}, 0)
    assert isinstance(agent.replay_buffer, PrioritizedReplay)
    assert agent.learning_rate == 2.5e-4


def test_continuous_agents_get_their_noise():
    options = {"action_noise": 0.2, "learning_rate": 1e-3, "net_arch": [8]}
    agent = make_agent({**CONFIG, "env_id": "Pendulum-v1", "agent": "td3", "options": options}, 0)
    assert agent.action_noise._sigma.tolist() == [pytest.approx(0.2)]
    agent = make_agent({**CONFIG, "env_id": "Pendulum-v1", "agent": "sac", "options": {**options, "action_noise": 0.0}}, 0)
    assert agent.action_noise is None


class Counting(gym.Env):
    """Ends after as many steps as the seed says; the reward of a step is the action."""

    observation_space = gym.spaces.Box(0, 100, (1,))
    action_space = gym.spaces.Box(0, 100, (1,))

    def reset(self, *, seed=None, options=None):
        self.left = seed
        return np.array([self.left], np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.array([self.left], np.float32), float(action[0]), self.left == 0, False, {}


class Echo:
    """A policy whose action is the observation; it notes how many observations it got at a time."""

    def __init__(self):
        self.batches = []

    def predict(self, observations, deterministic):
        assert deterministic
        self.batches.append(len(observations))
        return observations, None


def test_play_returns_the_return_of_each_episode():
    policy = Echo()
    returns = play(policy, [Counting(), Counting(), Counting()], [3, 1, 4])
    assert returns == [3 + 2 + 1, 1, 4 + 3 + 2 + 1]
    assert policy.batches == [3, 2, 2, 1]  # all at once, finished episodes drop out


def test_play_discounts():
    assert play(Echo(), [Counting(), Counting()], [3, 1], 0.5) == [3 + 2 * 0.5 + 0.25, 1]


def test_play_stacks_dict_observations():
    class DictCounting(Counting):
        def reset(self, **kwargs):
            return {"a": super().reset(**kwargs)[0]}, {}

        def step(self, action):
            observation, *rest = super().step(action)
            return {"a": observation}, *rest

    class DictEcho(Echo):
        def predict(self, observations, deterministic):
            return observations["a"], None

    assert play(DictEcho(), [DictCounting(), DictCounting()], [2, 1]) == [3, 1]


def logged(folder):
    with (folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def test_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    (tmp_path / "whole").mkdir()
    whole = trained(tmp_path / "whole", monkeypatch, total_timesteps=1500)
    killed = tmp_path / "killed"
    killed.mkdir()
    code = (
        "import json, sys; from pathlib import Path; from _training import train; "
        "train(json.loads(sys.argv[1]), 3, Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, json.dumps({**CONFIG, "total_timesteps": 1500}), str(killed)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
    while process.poll() is None and not any(path.name > "step_0000000500" for path in list_checkpoints(killed / "checkpoint")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert (killed / "checkpoint").exists()
    again = trained(killed, monkeypatch, total_timesteps=1500)
    assert np.array_equal(weights(again), weights(whole))
    assert [(row.step, row.score) for row in read_evaluations(killed)] == [
        (row.step, row.score) for row in read_evaluations(tmp_path / "whole")
    ]
    assert logged(killed) == logged(tmp_path / "whole")
    assert not (killed / "checkpoint").exists()


class Broken(gym.Wrapper):
    """CartPole that loses its reward in step 330."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.count = 0

    def step(self, action):
        self.count += 1
        observation, reward, *rest = self.env.step(action)
        return observation, np.nan if self.count == 330 else reward, *rest


@pytest.mark.filterwarnings("ignore:After a stop")
def test_run_that_meets_nan_fails_with_one_line_and_keeps_its_checkpoint(tmp_path):
    gym.register("Broken-v0", Broken)
    write_json(tmp_path / "config.json", {**CONFIG, "env_id": "Broken-v0", "seed": 3})
    try:
        assert execute({tmp_path: 1}, f"{_training.__file__}:train", "a command") == 1
    finally:
        del gym.registry["Broken-v0"]
    manifest = read_manifest(tmp_path)
    last = Checkpoints(tmp_path / "checkpoint").paths()[-1]
    assert manifest["status"] == "failed"
    assert manifest["error"] == (
        f"NonFiniteError: step 330: the reward of environment 0 is nan; the last good checkpoint is {last}; see what the "
        "environment computes."
    )
    assert 300 <= Checkpoints(tmp_path / "checkpoint").num_timesteps < 330
