"""Checkpoints of agents that are damaged, foreign, or of another run: one sentence, nothing is run, and nothing is lost.

The files are found, not named: whatever a checkpoint consists of is damaged in turn.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env

from rlopt.agents import DQN, PPO, Checkpoints
from rlopt.optim import Adam, Sgd
from rlopt.replay import PrioritizedReplay

OPTIONS: dict[str, Any] = {"seed": 0, "device": "cpu", "learning_starts": 20, "buffer_size": 100, "batch_size": 8}


def make(kind: Any = DQN, env: Any = "CartPole-v1", **changes: Any) -> Any:
    options = {"seed": 0, "device": "cpu", "n_steps": 20, "batch_size": 10} if kind is PPO else OPTIONS
    return kind("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, **options | changes)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a run."""
    folder = tmp_path_factory.mktemp("original")
    make().learn(40, checkpoints=Checkpoints(folder, every=20))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of them, to be spoiled."""
    for path in original.rglob("*"):
        copy = tmp_path / path.relative_to(original)
        (copy if path.is_dir() else copy.parent).mkdir(parents=True, exist_ok=True)
        if path.is_file():
            copy.write_bytes(path.read_bytes())
    return tmp_path


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def content(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in folder.rglob("*")}


def refused(folder: Path, agent: Any, steps: int = 60) -> str:
    """What is said when an agent is to go on; nothing in the folder changes."""
    before = content(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checkpoints that are passed over
        with pytest.raises(ValueError, match=r".") as caught:
            agent.learn(steps, checkpoints=Checkpoints(folder, every=20))
    said = str(caught.value)
    assert "\n" not in said
    assert "Traceback" not in said
    assert content(folder) == before
    return said


class Harmful:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def foreign_npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.zeros(3))
    return file.getvalue()


def object_npz(place: Path) -> bytes:
    """An array of objects, which NumPy unpickles if it is allowed to."""
    file = io.BytesIO()
    np.savez(file, json=np.array([Harmful(place)], dtype=object), allow_pickle=True)
    return file.getvalue()


def lying_npz() -> bytes:
    """A small archive whose array says that it has 2^50 numbers."""
    file = io.BytesIO()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1125899906842624,), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("json.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"12")
    return file.getvalue()


SPOILT: dict[str, Callable[[bytes, Path], bytes]] = {
    "truncated": lambda data, _: data[: len(data) // 2],
    "a flipped bit": lambda data, _: flipped(data),
    "empty": lambda data, _: b"",
    "another file of NumPy": lambda data, _: foreign_npz(),
    "a pickle": lambda data, place: pickle.dumps(Harmful(place)),
    "objects in NumPy's format": lambda data, place: object_npz(place),
    "a header that says it is huge": lambda data, _: lying_npz(),
    "text": lambda data, _: b"{}",
}


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt_files_are_refused(how: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    harm = tmp_path_factory.mktemp("harm") / "done"
    for path in files(folder):
        path.write_bytes(SPOILT[how](path.read_bytes(), harm))
    said = refused(folder, make())
    assert str(folder) in said
    assert not harm.exists()


def test_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    for path in files(folder):
        path.unlink()
        path.mkdir()
    assert str(folder) in refused(folder, make())


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("DQN", lambda: make(PPO)),
        ("gamma", lambda: make(gamma=0.5)),
        ("seed", lambda: make(seed=5)),
        ("batch_size", lambda: make(batch_size=4)),
        ("buffer_size", lambda: make(buffer_size=120)),
        ("optimizer", lambda: make(optimizer=Sgd(lr=0.1))),
        ("n_envs", lambda: make(env=make_vec_env("CartPole-v1", n_envs=2))),
        ("other networks or optimizers", lambda: DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [9]}, **OPTIONS)),
        ("other networks or optimizers", lambda: make(env="Acrobot-v1")),
        ("replay", lambda: make(replay_buffer_class=PrioritizedReplay)),
    ],
)
def test_checkpoint_of_another_run_is_refused(name: str, agent: Callable[[], Any], folder: Path) -> None:
    said = refused(folder, agent())
    assert name in said


def test_learning_rate_of_the_optimizer_is_compared(tmp_path: Path) -> None:
    make(optimizer=Adam(lr=1e-3)).learn(40, checkpoints=Checkpoints(tmp_path, every=20))
    said = refused(tmp_path, make(optimizer=Adam(lr=1e-2)))
    assert said.startswith("optimizer must be ")


def test_missing_environment_is_noticed_first(folder: Path) -> None:
    with pytest.raises(gym.error.Error, match="Did you mean: `CartPole`"):
        make(env="CartPol-v1")
