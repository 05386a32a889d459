"""`rlopt.load` reads what rlopt wrote and nothing else."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN as SB3DQN

import rlopt
from rlopt.agents import DQN, Checkpoints
from rlopt.files import load
from rlopt.replay import UniformReplay
from rlopt.supervised.checkpoint import write_checkpoint


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched"),))  # type: ignore[return-value]


def test_checkpoint_of_an_agent(tmp_path: Path) -> None:
    agent = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=100).learn(60, checkpoints=Checkpoints(tmp_path))
    found = rlopt.load(tmp_path)
    assert found["manifest"]["agent"] == "DQN"
    assert found["state"]["counters"]["num_timesteps"] == 60
    for name, value in agent.policy.state_dict().items():
        assert th.equal(found["state"]["modules"]["policy"][name], value)


def test_checkpoint_of_a_trainer(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 3, {"model": {"x": th.ones(2)}}, {"step": 3}, keep=1)
    found = load(tmp_path)
    assert found["manifest"]["record"] == {"step": 3}
    assert th.equal(found["state"]["model"]["x"], th.ones(2))


def test_replay(tmp_path: Path) -> None:
    agent = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu", buffer_size=100).learn(60)
    assert isinstance(agent.replay_buffer, UniformReplay)
    agent.replay_buffer.save(tmp_path / "replay")
    assert load(tmp_path / "replay")["storage"]["num_added"] == 60


@pytest.mark.parametrize("kind", ["pickle", "torch", "sb3", "npz of objects", "text", "zip", "json", "missing", "empty folder"])
def test_everything_else_is_refused_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    words = "is not a state file of rlopt, or it is damaged"
    if kind in ("pickle", "torch", "sb3"):
        words = "must be a file without code, but reading this one can run what its author put there"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "torch":
        th.save(Evil(), path)
    elif kind == "sb3":
        path = tmp_path / "file.zip"
        SB3DQN("MlpPolicy", "CartPole-v1", buffer_size=10).save(path)
    elif kind == "npz of objects":
        with path.open("wb") as file:
            np.savez(file, json=np.array([Evil()], dtype=object))
    elif kind == "text":
        path.write_text("hello")
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("json", "{}")
    elif kind == "json":
        path.write_text(json.dumps({"format": "rlopt-state-2"}))
    elif kind == "missing":
        words = "does not exist"
    else:
        path.mkdir()
        words = "must be the folder of a checkpoint, with a manifest.json, but there is none"
    with pytest.raises(ValueError, match=words) as refusal:
        load(path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "touched").exists()
