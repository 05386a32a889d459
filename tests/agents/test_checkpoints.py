"""Training that goes on from a checkpoint in another process is the training that was never stopped, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from rlopt.agents import DQN, PPO, Checkpoints
from rlopt.agents.plain_state import give_state, take_state
from rlopt.agents.plain_tree import decode, encode
from rlopt.replay.serialization import read_state, write_state
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
    assert [path.name for path in checkpoints.paths()] == ["step_0000000120.npz", "step_0000000152.npz"]


def test_learn_goes_to_the_steps_of_the_whole_run(tmp_path: Path) -> None:
    make().learn(100, checkpoints=Checkpoints(tmp_path))
    agent = make().learn(100, checkpoints=Checkpoints(tmp_path))
    assert agent.num_timesteps == 100
    assert agent.learn(140, checkpoints=Checkpoints(tmp_path)).num_timesteps == 140
    whole = make().learn(100)
    whole.learn(40, reset_num_timesteps=False)
    assert np.array_equal(weights(agent), weights(whole))


@pytest.mark.parametrize("damage", ["truncate", "flip", "foreign", "empty"])
def test_damaged_checkpoint_is_told_and_the_one_before_used(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, every=50)
    make().learn(100, checkpoints=checkpoints)
    older, newest = checkpoints.paths()
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes({
        "truncate": content[:middle],
        "flip": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "foreign": b"not a checkpoint at all",
        "empty": b"",
    }[damage])  # fmt: skip
    again = Checkpoints(tmp_path, every=50)
    with pytest.warns(UserWarning, match="damaged.*The checkpoint before it is used"):
        assert again.num_timesteps == int(older.stem.split("_")[1])
    older.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match=r"no checkpoint in .* can be read"):
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
    write_state({"format": "something"}, tmp_path / "step_0000000090.npz")
    with pytest.raises(ValueError, match="must be a checkpoint of an agent, got the format 'something'"):
        make().learn(60, checkpoints=Checkpoints(tmp_path))


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
    assert [path.name for path in checkpoints.paths()] == ["step_0000000056.npz"]
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
    assert checkpoints.paths()[-1].name == "step_0000000040.npz"


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


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
        | st.sampled_from([np.float32(1.5), np.int64(3), np.arange(3), th.arange(3.0), th.ones(2, dtype=th.bfloat16)]),
        lambda part: st.lists(part, max_size=3) | st.lists(part, max_size=3).map(tuple) | st.lists(part, max_size=3).map(deque)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.just("$tensor"), part, max_size=3),
        max_leaves=10,
    )
)  # fmt: skip
def test_trees_survive_a_file(tree: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_state({"tree": encode(tree)}, Path(folder) / "state.npz")
        assert _same(decode(read_state(Path(folder) / "state.npz"))["tree"], tree)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, th.Tensor):
        return one.dtype == other.dtype and th.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_objects_with_code_cannot_be_encoded() -> None:
    with pytest.raises(TypeError, match="only plain data can be encoded, got function"):
        encode({"f": lambda: None})
