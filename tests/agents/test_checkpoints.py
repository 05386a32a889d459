"""Training that goes on from a checkpoint in another process is the training that was never stopped, to the bit."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from rlopt.agents import DQN, PPO, SAC, Checkpoints
from rlopt.agents.making import describe_space, revive, revive_space
from rlopt.agents.plain_state import give_state, take_state
from rlopt.files.checkpoint import finish, make_scratch
from rlopt.files.state_file import read_state, write_state
from rlopt.optim import Muon
from rlopt.replay import PrioritizedReplay
from tests.agents.resuming import CASES

JOB = Path(__file__).with_name("resuming.py")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("resuming")
    for part in ("first", "second"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(JOB), part, str(folder), *CASES], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
    return {part: json.loads((folder / f"{part}.json").read_text()) for part in ("first", "second")}


@pytest.mark.parametrize("case", CASES)
def test_goes_on_to_the_bit(case: str, outcomes: dict[str, dict[str, Any]]) -> None:
    whole, resumed = outcomes["first"][case], outcomes["second"][case]
    start = resumed.pop("start")
    rows = [row for row in whole.pop("rows") if int(row["step"]) > start]
    assert 120 <= start < 240
    assert rows or case in ("td3_noise_normalize", "sac_lqg_native")  # no episode ends there
    assert resumed.pop("rows") == rows
    assert {name: part for name, part in resumed.items() if part != whole[name]} == {}


OPTIONS: dict[str, Any] = {"seed": 0, "device": "cpu", "learning_starts": 20, "buffer_size": 200, "batch_size": 8}


def make(**changes: Any) -> DQN:
    return DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, **OPTIONS | changes)


def weights(agent: Any) -> np.ndarray[Any, Any]:
    return th.cat([parameter.detach().flatten() for parameter in agent.policy.parameters()]).numpy()


def test_checkpoints_are_written_at_distances_and_the_newest_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=40, keep=2)
    make(train_freq=8).learn(150, checkpoints=checkpoints)
    # The last one is written when `learn` ends, at the end of a phase.
    assert [path.name for path in checkpoints.paths()] == ["step_0000000120", "step_0000000152"]


def test_learn_goes_to_the_steps_of_the_whole_run(tmp_path: Path) -> None:
    make().learn(100, checkpoints=Checkpoints(tmp_path))
    agent = make().learn(100, checkpoints=Checkpoints(tmp_path))
    assert agent.num_timesteps == 100
    assert agent.learn(140, checkpoints=Checkpoints(tmp_path)).num_timesteps == 140
    whole = make().learn(100)
    whole.learn(40, reset_num_timesteps=False)
    assert np.array_equal(weights(agent), weights(whole))


@pytest.mark.parametrize("name", ["state.npz", "replay/rows_000000000080-000000000100.npz", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "empty"])
def test_damaged_checkpoint_is_told_and_the_one_before_used(tmp_path: Path, damage: str, name: str) -> None:
    checkpoints = Checkpoints(tmp_path, every=40)
    make().learn(100, checkpoints=checkpoints)
    newest = checkpoints.paths()[-1]
    file = newest / name
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes({
        "truncate": content[:middle],
        "flip": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "foreign": b"not a checkpoint at all",
        "empty": b"",
    }[damage])  # fmt: skip
    again = Checkpoints(tmp_path, every=40)
    with pytest.warns(UserWarning, match="The checkpoint before it is used"):
        assert again.num_timesteps == 80
    make().learn(120, checkpoints=again)
    assert [path.name for path in again.paths()] == ["step_0000000080", "step_0000000120"]  # the damaged one is gone
    for path in again.paths():
        (path / "state.npz").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="no good one before it: move it away"),
    ):
        make().learn(100, checkpoints=Checkpoints(tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 0.5}, "learning_rate must be 0.0001 as in"),
        ({"gamma": 0.9}, "gamma must be 0.99 as in .*, got 0.9"),
        ({"buffer_size": 300}, "buffer_size must be 200"),
        ({"optimizer": "sgd"}, "optimizer must be 'None'"),
        ({"policy_kwargs": {"net_arch": [9]}}, "holds other networks or optimizers"),
    ],
)
def test_other_options_than_those_of_the_run_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    make().learn(30, checkpoints=Checkpoints(tmp_path))
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}} | OPTIONS | changes
    with pytest.raises(ValueError, match=words):
        DQN("MlpPolicy", "CartPole-v1", **options).learn(60, checkpoints=Checkpoints(tmp_path))


def test_other_agents_and_other_files_are_refused(tmp_path: Path) -> None:
    make().learn(30, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="is a checkpoint of DQN, got a PPO"):
        PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=16, device="cpu").learn(60, checkpoints=Checkpoints(tmp_path))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    scratch = make_scratch(foreign)
    finish(scratch, foreign / "step_90", {"kind": "something"})
    with pytest.raises(ValueError, match="must be a checkpoint of the kind 'agent', got 'something', and there is no good one"):
        make().learn(60, checkpoints=Checkpoints(foreign))


def test_steps_cannot_be_counted_anew(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reset_num_timesteps must be True with checkpoints"):
        make().learn(30, checkpoints=Checkpoints(tmp_path), reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("options", "words"), [({"every": 0}, "every must be > 0, got 0"), ({"keep": 0}, "keep must be > 0, got 0")]
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Checkpoints(tmp_path, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_lets_the_step_finish_and_is_delivered_then(tmp_path: Path, number: signal.Signals) -> None:
    received: list[int] = []
    before = signal.signal(number, lambda *_: received.append(number))
    try:

        class Interrupt(BaseCallback):
            def _on_step(self) -> bool:
                if self.num_timesteps == 50:
                    os.kill(os.getpid(), number)
                    assert not received
                return True

        checkpoints = Checkpoints(tmp_path)
        agent = make(train_freq=8).learn(100, callback=Interrupt(), checkpoints=checkpoints)
    finally:
        signal.signal(number, before)
    assert received == [number]
    assert agent.num_timesteps == 56
    assert [path.name for path in checkpoints.paths()] == ["step_0000000056"]
    resumed = make(train_freq=8).learn(100, checkpoints=checkpoints)
    assert np.array_equal(weights(resumed), weights(make(train_freq=8).learn(100)))


def test_environment_whose_state_is_unknown_begins_new_episodes(tmp_path: Path) -> None:
    class Opaque(gym.Wrapper[Any, Any, Any, Any]):
        pass

    def opaque() -> Any:
        return DQN("MlpPolicy", Opaque(gym.make("CartPole-v1")), policy_kwargs={"net_arch": [8]}, **OPTIONS)

    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="begins new episodes: .*Opaque has no state_dict"):
        opaque().learn(60, checkpoints=checkpoints)
    assert "Opaque" in str(checkpoints.restarts_episodes)
    with pytest.warns(UserWarning, match="begins new episodes"):
        agent = opaque().learn(90, checkpoints=checkpoints)
    replay: Any = agent.replay_buffer
    batch = replay._get_samples(np.array([60, 61]))  # the first steps after the stop
    assert batch.observations.abs().max() < 0.5
    assert replay.storage.num_steps(np.array([59]), "newer", within_episode=True)[0] == 0


def test_wrapper_with_a_state_dict_is_asked() -> None:
    class Counting(gym.Wrapper[Any, Any, Any, Any]):
        count = 0

        def step(self, action: Any) -> Any:
            self.count += 1
            return self.env.step(action)

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count, "env": take_state(self.env)}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]
            give_state(self.env, state["env"])

    first, second = (Counting(gym.make("CartPole-v1")) for _ in range(2))
    first.reset(seed=0)
    for _ in range(5):
        first.step(0)
    second.reset(seed=1)
    give_state(second, take_state(first))
    assert second.count == 5
    np.testing.assert_array_equal(second.step(1)[0], first.step(1)[0])


def test_nothing_can_be_saved_after_a_stop_in_the_middle_of_a_step(tmp_path: Path) -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 50

    checkpoints = Checkpoints(tmp_path, every=20)
    make().learn(100, callback=Stop(), checkpoints=checkpoints)
    assert checkpoints.paths()[-1].name == "step_0000000040"


ENVS = ["Acrobot-v1", "MountainCar-v0", "FrozenLake-v1", "Taxi-v4", "rlopt/LQG-v0", "rlopt/Chain-v0", "rlopt/TMaze-v0"]
MUJOCO = ["HalfCheetah-v5", "Ant-v5", "Hopper-v5"]


@pytest.mark.parametrize("name", ENVS + MUJOCO)
def test_environment_goes_on_as_the_one_that_was_saved(name: str) -> None:
    if name in MUJOCO:
        pytest.importorskip("mujoco")
        pytest.importorskip("imageio")
    first, second = (make_vec_env(name, n_envs=2, seed=seed) for seed in (0, 1))
    first.action_space.seed(0)
    actions = [np.array([first.action_space.sample() for _ in range(2)]) for _ in range(120)]
    first.reset()
    second.reset()
    for t in range(60):
        first.step(actions[t])
    second.step(actions[0])
    give_state(second, take_state(first))
    for t in range(60, 120):
        for one, other in zip(first.step(actions[t])[:3], second.step(actions[t])[:3], strict=True):
            np.testing.assert_array_equal(one, other)


def test_transitions_are_written_once(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, every=50)
    make(train_freq=10).learn(150, checkpoints=checkpoints)
    first, second = ([file.name for file in sorted((path / "replay").iterdir())] for path in checkpoints.paths())
    assert first == ["rows_000000000000-000000000050.npz", "rows_000000000050-000000000100.npz"]
    assert second == [*first, "rows_000000000100-000000000150.npz"]
    older, newer = checkpoints.paths()
    assert all((older / "replay" / name).stat().st_ino == (newer / "replay" / name).stat().st_ino for name in first)
    # Also by the one that goes on; what the ring of 200 has overwritten is left out.
    make(train_freq=10).learn(350, checkpoints=Checkpoints(tmp_path, every=50))
    newest = sorted(file.name for file in (checkpoints.paths()[-1] / "replay").iterdir())
    assert newest == [f"rows_{first:012d}-{first + 50:012d}.npz" for first in (150, 200, 250, 300)]


def test_disk_that_is_full_costs_a_warning_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = os.fsync, 0

    def fsync(descriptor: int) -> None:
        if 110 < steps < 130:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            nonlocal steps
            steps = self.num_timesteps
            return True

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints = Checkpoints(tmp_path, every=40, keep=9)
    with pytest.warns(UserWarning, match=r"after 120 steps could not be written .*No space left.*newest is step_0000000080"):
        agent = make().learn(200, callback=Watch(), checkpoints=checkpoints)
    assert [path.name for path in checkpoints.paths()] == [f"step_{step:010d}" for step in (40, 80, 160, 200)]
    assert not list(tmp_path.glob(".new-*"))
    assert np.array_equal(weights(agent), weights(make().learn(200)))
    resumed = make().learn(240, checkpoints=Checkpoints(tmp_path))
    assert np.array_equal(weights(resumed), weights(make().learn(240)))


def test_folder_that_cannot_be_written_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder must be one that can be written, got .*file/run"):
        make().learn(30, checkpoints=Checkpoints(tmp_path / "file" / "run"))


def test_schedules_are_compared(tmp_path: Path) -> None:
    make(learning_rate=lambda progress: 1e-3 * progress).learn(30, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match=r"learning_rate must be \[0.001, 0.00075, 0.0005, 0.00025, 0.0\] as in"):
        make(learning_rate=lambda progress: 2e-3 * progress).learn(60, checkpoints=Checkpoints(tmp_path))
    make(learning_rate=lambda progress: progress * 1e-3).learn(60, checkpoints=Checkpoints(tmp_path))


def test_statistics_of_observations_are_kept_where_the_environment_cannot_be(tmp_path: Path) -> None:
    class Opaque(gym.Wrapper[Any, Any, Any, Any]):
        pass

    def opaque() -> Any:
        env = VecNormalize(make_vec_env("CartPole-v1", seed=1, wrapper_class=Opaque))
        return DQN("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **OPTIONS)

    with pytest.warns(UserWarning, match="begins new episodes"):
        first = opaque().learn(60, checkpoints=Checkpoints(tmp_path))
    second = opaque().learn(60, checkpoints=Checkpoints(tmp_path))
    for name in ("obs_rms", "ret_rms"):
        one, other = (getattr(agent.get_vec_normalize_env(), name) for agent in (first, second))
        # The one that goes on has seen one observation more, that of its first reset.
        assert other.count - one.count in (0.0, 1.0)
        np.testing.assert_allclose(other.mean, one.mean, atol=0.05)


MAKERS: dict[str, Any] = {
    "dqn": lambda env: make(replay_buffer_class=PrioritizedReplay, optimizer=Muon(lr=1e-2), double_q=True),
    "sac": lambda env: SAC("MlpPolicy", env, policy_kwargs={"net_arch": [8], "activation_fn": th.nn.Tanh}, **OPTIONS),
    "ppo": lambda env: PPO(ActorCriticPolicy, env, n_steps=16, batch_size=16, seed=0, device="cpu", clip_range=lambda _: 0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_agent_is_made_of_a_checkpoint(tmp_path: Path, name: str) -> None:
    env = "Pendulum-v1" if name == "sac" else "CartPole-v1"
    agent = MAKERS[name](env).learn(64, checkpoints=Checkpoints(tmp_path))
    changes: dict[str, Any] = {}
    if name == "ppo":
        with pytest.raises(ValueError, match=r"clip_range must be given, because .* cannot hold it: pass it to load"):
            type(agent).load(tmp_path)
        changes = {"clip_range": 0.1}
    newest = Checkpoints(tmp_path).paths()[-1]
    obs = np.stack([agent.observation_space.sample() for _ in range(50)])
    for path, given in ((tmp_path, None), (newest, env)):
        loaded = type(agent).load(path, env=given, device="cpu", **changes)
        assert (loaded.num_timesteps, loaded._n_updates) == (64, agent._n_updates)
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], agent.predict(obs, deterministic=True)[0])
        for part in agent._get_torch_save_params()[0]:
            assert str(attrgetter(part)(loaded).state_dict()) == str(attrgetter(part)(agent).state_dict())
        if name != "ppo":
            assert type(loaded.replay_buffer) is type(agent.replay_buffer)
            assert str(loaded.replay_buffer.state_dict()) == str(agent.replay_buffer.state_dict())
    assert loaded.learn(100, reset_num_timesteps=False).num_timesteps >= 164


def test_checkpoint_is_not_made_into_another_agent(tmp_path: Path) -> None:
    make().learn(30, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(ValueError, match="is a checkpoint of DQN, got a PPO"):
        PPO.load(tmp_path)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        DQN.load(tmp_path, env="Acrobot-v1")
    with pytest.raises(ValueError, match="env must have 1 environments as in"):
        DQN.load(tmp_path, env=make_vec_env("CartPole-v1", n_envs=2))
    with pytest.raises(ValueError, match="path must be a checkpoint, or a folder of checkpoints"):
        DQN.load(tmp_path.parent)


def test_agent_of_a_file_of_save_cannot_be_made_of_a_checkpoint(tmp_path: Path) -> None:
    make().save(tmp_path / "agent.zip")
    loaded = DQN.load(tmp_path / "agent.zip", env=gym.make("CartPole-v1"))
    loaded.learn(30, checkpoints=Checkpoints(tmp_path / "run"))
    with pytest.raises(ValueError, match="does not know the arguments of its agent, which Stable-Baselines3 loaded"):
        DQN.load(tmp_path / "run")


@pytest.mark.parametrize(
    "place", ["os:system", "subprocess:Popen", "torch.hub:load", "rlopt.study.runs:Recorder", "torch:nothing", 3]
)
def test_file_cannot_name_anything_but_parts_of_agents(place: Any) -> None:
    with pytest.raises(ValueError, match="a file may only name networks, optimizers, replays and configurations"):
        revive({"policy_kwargs": {"x": [{"class of": place}]}})
    with pytest.raises(ValueError, match="a file may only name networks, optimizers, replays and configurations"):
        revive({"policy_kwargs": {"config of": place, "fields": {}}})


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-1.0, np.array([1.0, np.inf]), dtype=np.float64),
        gym.spaces.Discrete(4, start=2),
        gym.spaces.MultiDiscrete([3, 5]),
        gym.spaces.MultiBinary([2, 3]),
        gym.spaces.Dict({"b": gym.spaces.Box(0, 255, (3, 4, 4), np.uint8), "a": gym.spaces.Discrete(2)}),
    ],
    ids=lambda space: type(space).__name__,
)
def test_spaces_survive_a_file(tmp_path: Path, space: gym.Space[Any]) -> None:
    write_state(describe_space(space), tmp_path / "space")
    assert revive_space(read_state(tmp_path / "space")) == space
