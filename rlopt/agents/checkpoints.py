"""Checkpoints of agents: training that was stopped goes on as if it had not been."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, cast

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from rlopt.agents.agent_state import give_agent, take_agent
from rlopt.files.checkpoint import finish, list_checkpoints, make_scratch, pass_over, read_manifest, remove_all_but
from rlopt.files.state_file import read_state, write_state
from rlopt.replay.buffer import Replay
from rlopt.replay.segments import read_segments, write_segments

_KIND, _STATE, _SEGMENTS = "agent", "state.npz", "replay"


class Checkpoints:
    """Where and how often `learn` of rlopt's agents writes checkpoints, and goes on from the newest one.

    `agent.learn(total_timesteps, checkpoints=Checkpoints(folder))` trains up to `total_timesteps` in all: if the folder has a
    checkpoint, from there on. An agent made with the same options, also in another process, then does exactly what it would have
    done without the stop: parameters, replay, random numbers and logged values are the same to the bit, but for times.

    A checkpoint holds networks and their targets, optimizers, counters, the replay with its priorities, the generators of torch,
    NumPy, Python and all parts, statistics of `VecNormalize`, callbacks that have `state_dict` (or are Stable-Baselines3's), and
    the state of the environment where it can be taken: of Gymnasium's classic control, toy text and MuJoCo, of `rlopt_envs`, and
    of any environment and wrapper with `state_dict` and `load_state_dict`. Other environments (Box2D, those in other processes)
    begin new episodes after a stop; `restarts_episodes` says why, and a warning does.

    Each is a folder `step_<steps>` of arrays and JSON, without code, that appears complete or not at all; `manifest.json` says what
    it is and has the checksum of each file. Transitions of a replay are written once: a checkpoint adds a file with those that came
    since the one before, and links to the files of that one, so that every folder is complete by itself. If the newest is damaged,
    a warning says so and the one before is used. If one cannot be written, because the disk is full for instance, a warning says
    so and training goes on.

    `load` of an agent makes one of a checkpoint, to be used or trained further; see `rlopt.agents.learner.Learner.load`.

    The first SIGINT or SIGTERM lets the update finish, writes a checkpoint, and is then delivered again, so that the process ends
    as it would have (exit status 130 or 143); a second one acts at once.

    Args:
        folder: Folder of the checkpoints of one run.
        every: Steps of the environment between checkpoints, > 0; at the first chance after them, which is between two phases of
            learning. One is always written at the end of `learn`.
        keep: Newest checkpoints that are kept, > 0.

    Attributes:
        restarts_episodes: Why the environment's state is not in the checkpoints; None if it is, or before the first.

    Raises:
        ValueError: For options out of range.

    Example:
        >>> import tempfile
        >>> from rlopt.agents import DQN
        >>> folder = tempfile.mkdtemp()
        >>> agent = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu").learn(150, checkpoints=Checkpoints(folder, every=100))
        >>> agent = DQN("MlpPolicy", "CartPole-v1", seed=0, device="cpu").learn(200, checkpoints=Checkpoints(folder, every=100))
        >>> agent.num_timesteps
        200
    """

    def __init__(self, folder: str | Path, every: int = 10_000, keep: int = 2) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{name} must be > 0, got {value}.")
        self.folder, self.every, self.keep = Path(folder), every, keep
        self.restarts_episodes: str | None = None
        self._saved_at = 0
        self._callback: BaseCallback | None = None
        self._signal: int | None = None
        self._newest: tuple[Path, dict[str, Any]] | None = None  # read and not yet used
        self._damaged: list[Path] = []
        self._linkable: tuple[Path, int] | None = None  # last checkpoint, and `num_resets` of the storage then

    def paths(self) -> list[Path]:
        """The checkpoints in the folder, the oldest first."""
        return list_checkpoints(self.folder)

    def resume(self, agent: BaseAlgorithm, callback: BaseCallback | None = None) -> bool:
        """Give an agent, whose `learn` is set up, the state of the newest checkpoint that can be read.

        Args:
            agent: Made with the options of the one that was saved.
            callback: Its callbacks.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If there are checkpoints and none can be read, or that of another agent, or if the folder cannot be written.
        """
        self._callback, self._saved_at, self._linkable = callback, 0, None
        try:
            make_scratch(self.folder).rmdir()
        except OSError as error:
            raise ValueError(f"folder must be one that can be written, got {str(self.folder)!r} ({error}).") from None
        newest, self._newest = self._newest or self.read(), None
        if newest is None:
            return False
        path, state = newest
        give_agent(agent, state, callback, path)
        self._saved_at = agent.num_timesteps
        self._note_linkable(path, agent)
        return True

    @property
    def num_timesteps(self) -> int:
        """Steps that were done at the newest checkpoint that can be read, 0 if there is none.

        Raises:
            ValueError: If there are checkpoints and none can be read.
        """
        self._newest = self._newest or self.read()
        return 0 if self._newest is None else int(self._newest[1]["counters"]["num_timesteps"])

    def read(self) -> tuple[Path, dict[str, Any]] | None:
        """Path and state of the newest checkpoint that can be read, None if there is none.

        Raises:
            ValueError: If there are checkpoints and none can be read.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return path, read_agent(path)
            except ValueError as error:
                pass_over(error, is_last=path == paths[0])
                self._damaged.append(path)
        return None

    def visit(self, agent: BaseAlgorithm) -> None:
        """Write a checkpoint if it is time, or if a signal asks for the end."""
        if self.is_due(agent) or (self._signal is not None and agent.num_timesteps > self._saved_at):
            self._try_to_save(agent)
        if self._signal is not None:
            raise _Ended(self._signal)

    def is_due(self, agent: BaseAlgorithm) -> bool:
        """Whether it is time for a checkpoint."""
        return agent.num_timesteps - self._saved_at >= self.every

    def save(self, agent: Any) -> Path:
        """Write a checkpoint, and remove all but the newest.

        Returns:
            Its folder.

        Raises:
            OSError: If it cannot be written; those before stay.
            NonFiniteError: If a parameter is not finite; those before stay.
        """
        agent._finite.check_parameters()
        state, self.restarts_episodes = take_agent(agent, self._callback)
        replay: Any = getattr(agent, "replay_buffer", None)
        path = self.folder / f"step_{agent.num_timesteps:010d}"
        scratch = make_scratch(self.folder)
        known: dict[str, Any] = {}
        try:
            if isinstance(replay, Replay):
                state["replay"]["storage"].pop("parts")
                before = self._linkable[0] if self._linkable and self._linkable[1] == replay.storage.num_resets else None
                linked = write_segments(replay.storage, scratch / _SEGMENTS, before and before / _SEGMENTS)
                if before is not None and linked:
                    files = read_manifest(before, check_files=False)["files"]
                    known = {f"{_SEGMENTS}/{name}": files[f"{_SEGMENTS}/{name}"] for name in linked}
            write_state(state, scratch / _STATE)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        manifest = {
            "kind": _KIND,
            "agent": type(agent).__name__,
            "num_timesteps": agent.num_timesteps,
            "restarts_episodes": self.restarts_episodes,
            "rlopt": version("rlopt"),
        }
        finish(scratch, path, manifest, known)
        self._saved_at = agent.num_timesteps
        self._note_linkable(path, agent)
        for damaged in self._damaged:  # the part of the run behind this one is done again
            if damaged != path:
                shutil.rmtree(damaged, ignore_errors=True)
        self._damaged.clear()
        remove_all_but(self.folder, self.keep)
        return path

    def finish(self, agent: BaseAlgorithm) -> None:
        """Write the checkpoint at the end of `learn`, unless there is one already."""
        if agent.num_timesteps > self._saved_at:
            self._try_to_save(agent)

    def _try_to_save(self, agent: BaseAlgorithm) -> None:
        try:
            self.save(agent)
        except OSError as error:
            good = [path.name for path in self.paths() if path not in self._damaged]
            warnings.warn(
                f"The checkpoint after {agent.num_timesteps} steps could not be written ({error}); the newest is "
                f"{good[-1] if good else 'none'}. Training does not stop for it: make room for the next.",
                stacklevel=3,
            )
            self._saved_at = agent.num_timesteps

    def _note_linkable(self, path: Path, agent: Any) -> None:
        replay = getattr(agent, "replay_buffer", None)
        self._linkable = (path, replay.storage.num_resets) if isinstance(replay, Replay) else None

    @contextlib.contextmanager
    def watching_signals(self) -> Iterator[None]:
        """Let the first SIGINT or SIGTERM in the block end training at the next `visit`; then deliver it again."""
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            yield
            return
        self._signal = None
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        except _Ended:
            pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        received = cast("int | None", self._signal)  # which changed meanwhile
        if received is not None:
            os.kill(os.getpid(), received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)


class _Ended(BaseException):
    """Raised to leave training after a signal."""


def read_agent(path: Path) -> dict[str, Any]:
    """Return the state of an agent in the folder of a checkpoint; the transitions of its replay are read when they are taken.

    Raises:
        ValueError: If it is no checkpoint of an agent, or a damaged one.
    """
    read_manifest(path, _KIND)
    state = read_state(path / _STATE)
    if (path / _SEGMENTS).is_dir():
        state["replay"]["storage"]["parts"] = read_segments(path / _SEGMENTS)
    return state
