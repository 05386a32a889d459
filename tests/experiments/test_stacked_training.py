"""Several seeds of an agent trained in one process of a study: each ends as it would alone."""

import gymnasium as gym
import numpy as np
import pytest
from _training import train, train_stacked
from test_training import CONFIG, Broken, logged

from rlopt.agents import Checkpoints
from rlopt.optim import NonFiniteError
from rlopt.study import StackedRunsError
from rlopt.study.runs import read_evaluations

FAST = {**CONFIG, "fast": True}
SEEDS = [3, 0]


def make_folders(place):
    folders = [place / f"seed_{seed}" for seed in SEEDS]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def scores(folder):
    return [(row.step, row.score) for row in read_evaluations(folder)]


def stacked(folders, **changes):
    train_stacked([{**FAST, **changes, "seed": seed} for seed in SEEDS], SEEDS, folders)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folders of runs by themselves."""
    folders = make_folders(tmp_path_factory.mktemp("alone"))
    for seed, folder in zip(SEEDS, folders, strict=True):
        train(FAST, seed, folder)
    return folders


def test_each_run_ends_as_it_would_alone(tmp_path, alone):
    folders = make_folders(tmp_path / "stacked")
    stacked(folders)
    assert scores(folders[0]) != scores(folders[1])
    for folder, expected in zip(folders, alone, strict=True):
        assert scores(folder) == scores(expected)
        assert logged(folder) == logged(expected)
        assert sorted(path.name.partition(".out")[0] for path in folder.iterdir()) == [
            "evaluations.csv", "events", "live.json", "progress.csv",
        ]  # fmt: skip


def test_runs_go_on_from_different_steps(tmp_path, alone, monkeypatch):
    """The first is killed by itself after 450 steps; then both are continued in one process."""
    folders = make_folders(tmp_path / "stacked")
    kept = Checkpoints.finish
    monkeypatch.setattr(Checkpoints, "finish", lambda self, agent: None if agent.num_timesteps > 450 else kept(self, agent))
    monkeypatch.setattr("_training.remove_all", lambda *args, **kwargs: None)
    train(FAST, SEEDS[0], folders[0])
    monkeypatch.undo()
    assert 0 < Checkpoints(folders[0] / "checkpoint").num_timesteps < 600
    stacked(folders)
    assert not (folders[0] / "checkpoint").exists()
    for folder, expected in zip(folders, alone, strict=True):
        assert scores(folder) == scores(expected)
        assert logged(folder) == logged(expected)


class BrokenForSeedThree(Broken):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.count = 0 if seed == 3 else 10**6
        return super().reset(seed=seed, options=options)


@pytest.mark.filterwarnings("ignore:After a stop")
def test_a_run_that_meets_nan_fails_alone_and_keeps_its_checkpoint(tmp_path):
    gym.register("BrokenForSeedThree-v0", BrokenForSeedThree)
    folders = make_folders(tmp_path / "stacked")
    try:
        with pytest.raises(StackedRunsError) as raised:
            stacked(folders, env_id="BrokenForSeedThree-v0")
    finally:
        del gym.registry["BrokenForSeedThree-v0"]
    assert list(raised.value.errors) == [3]
    assert isinstance(raised.value.errors[3], NonFiniteError)
    assert "the reward of environment 0 is nan" in str(raised.value.errors[3])
    assert 300 <= Checkpoints(folders[0] / "checkpoint").num_timesteps < 330
    assert not (folders[1] / "checkpoint").exists()
    assert scores(folders[1])[-1][0] == 600
    assert np.isfinite(scores(folders[1])[-1][1])


def test_agents_without_a_fast_form_are_refused(tmp_path):
    with pytest.raises(ValueError, match="make must return agents of rlopt with fast=True"):
        stacked(make_folders(tmp_path), fast=False)
