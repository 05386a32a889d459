"""Checkpoints of agents: training that was stopped goes on as if it had not been."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.save_util import recursive_getattr

from rlopt.agents.plain_state import CannotBeSaved, give_state, take_state
from rlopt.agents.plain_tree import decode, encode
from rlopt.replay.buffer import Replay
from rlopt.replay.serialization import read_state, write_state

FORMAT = "rlopt-agent-1"
_NAME = re.compile(r"step_(\d+)\.npz")
# What changes while an agent trains, besides networks, optimizers, replay, environment and generators.
_COUNTERS = (
    "num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate", "_current_progress_remaining", "action_noise",
    "ep_info_buffer", "ep_success_buffer", "_last_episode_starts", "_last_obs", "_last_original_obs", "_diagnostics", "_aux",
    "num_skipped_updates",
)  # fmt: skip
_OF_EPISODE = ("_last_episode_starts", "_last_obs", "_last_original_obs")
_LOGGED = ("name_to_value", "name_to_count", "name_to_excluded")
# Options that must be the same when a run goes on; they are compared where an agent has them.
_OPTIONS = (
    "learning_rate", "gamma", "batch_size", "n_envs", "learning_starts", "tau", "gradient_steps", "target_update_interval",
    "policy_delay", "n_steps", "n_epochs", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "buffer_size",
    "double_q", "use_sde", "seed",
)  # fmt: skip


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

    Files hold arrays and JSON, no code; they appear complete or not at all, and reading checks their sums. If the newest is
    damaged, a warning says so and the one before is used.

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

    def paths(self) -> list[Path]:
        """The checkpoints in the folder, the oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(int(match[1]), path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(found)]

    def resume(self, agent: BaseAlgorithm, callback: BaseCallback | None = None) -> bool:
        """Give an agent, whose `learn` is set up, the state of the newest checkpoint that can be read.

        Args:
            agent: Made with the options of the one that was saved.
            callback: Its callbacks.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If there are checkpoints and none can be read, or that of another agent.
        """
        self._callback, self._saved_at = callback, 0
        newest, self._newest = self._newest or self._read(), None
        if newest is None:
            return False
        _load(agent, newest[1], callback, newest[0])
        self._saved_at = agent.num_timesteps
        return True

    @property
    def num_timesteps(self) -> int:
        """Steps that were done at the newest checkpoint that can be read, 0 if there is none.

        Raises:
            ValueError: If there are checkpoints and none can be read.
        """
        self._newest = self._newest or self._read()
        return 0 if self._newest is None else int(self._newest[1]["counters"]["num_timesteps"])

    def _read(self) -> tuple[Path, dict[str, Any]] | None:
        """Path and content of the newest checkpoint that can be read."""
        paths = self.paths()
        for path in reversed(paths):
            try:
                state = decode(read_state(path))
            except ValueError as error:
                warnings.warn(f"{error} The checkpoint before it is used.", stacklevel=3)
            else:
                if state.get("format") != FORMAT:
                    raise ValueError(f"{path} must be a checkpoint of an agent, got the format {state.get('format')!r}.")
                return path, state
        if paths:
            raise ValueError(f"no checkpoint in {self.folder} can be read: move them away to start again.")
        return None

    def visit(self, agent: BaseAlgorithm) -> None:
        """Write a checkpoint if it is time, or if a signal asks for the end."""
        due = agent.num_timesteps - self._saved_at >= self.every
        if due or (self._signal is not None and agent.num_timesteps > self._saved_at):
            self.save(agent)
        if self._signal is not None:
            raise _Ended(self._signal)

    def save(self, agent: Any) -> Path:
        """Write a checkpoint, and remove all but the newest.

        Returns:
            The file.

        Raises:
            OSError: If it cannot be written; those before stay.
            NonFiniteError: If a parameter is not finite; those before stay.
        """
        agent._finite.check_parameters()
        state, self.restarts_episodes = _take(agent, self._callback)
        path = self.folder / f"step_{agent.num_timesteps:010d}.npz"
        write_state(encode(state), path)
        self._saved_at = agent.num_timesteps
        for old in self.paths()[: -self.keep]:
            old.unlink()
        return path

    def finish(self, agent: BaseAlgorithm) -> None:
        """Write the checkpoint at the end of `learn`, unless there is one already."""
        if agent.num_timesteps > self._saved_at:
            self.save(agent)

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


def _take(agent: Any, callback: BaseCallback | None) -> tuple[dict[str, Any], str | None]:
    """Return the state of an agent, and why that of its environment is not in it."""
    modules, variables = agent._get_torch_save_params()
    env, reason = None, None
    try:
        env = take_state(agent.env)
    except CannotBeSaved as error:
        reason = str(error)
        if agent.num_timesteps:
            warnings.warn(f"After a stop the environment begins new episodes: {reason}.", stacklevel=4)
    counters = {name: take_state(getattr(agent, name)) for name in _COUNTERS if hasattr(agent, name)}
    if env is None:
        for name in _OF_EPISODE:
            counters.pop(name, None)
    replay = getattr(agent, "replay_buffer", None)
    state = {
        "format": FORMAT,
        "agent": type(agent).__name__,
        "options": _options(agent),
        "counters": counters,
        "modules": {name: recursive_getattr(agent, name).state_dict() for name in modules},
        "variables": {name: recursive_getattr(agent, name) for name in variables},
        "replay": replay.state_dict(copy=False) if isinstance(replay, Replay) else None if replay is None else take_state(replay),
        "env": env,
        "callbacks": [_state_or_none(part) for part in _parts(callback)],
        "logger": take_state({name: dict(getattr(agent.logger, name)) for name in _LOGGED}),
        "spaces": take_state(agent.action_space),
        "random": _take_random(),
    }
    return state, reason


def _load(agent: Any, state: dict[str, Any], callback: BaseCallback | None, path: Path) -> None:
    if state["agent"] != type(agent).__name__:
        raise ValueError(f"{path} is a checkpoint of {state['agent']}, got a {type(agent).__name__}.")
    options = _options(agent)
    for name, value in state["options"].items():
        if options.get(name) != value:
            raise ValueError(
                f"{name} must be {value!r} as in {path}, got {options.get(name)!r}; take another folder for another run."
            )
    try:
        for name, part in state["modules"].items():
            recursive_getattr(agent, name).load_state_dict(part)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} holds other networks or optimizers than the agent: {' '.join(str(error).split())}") from None
    with th.no_grad():
        for name, value in state["variables"].items():
            recursive_getattr(agent, name).copy_(value)
    for name, value in state["counters"].items():
        setattr(agent, name, give_state(getattr(agent, name), value))
    agent._num_timesteps_at_start = agent.num_timesteps
    replay = getattr(agent, "replay_buffer", None)
    if isinstance(replay, Replay):
        replay.load_state_dict(state["replay"])
    elif replay is not None:
        give_state(replay, state["replay"])
    if state["env"] is not None:
        give_state(agent.env, state["env"])
    for part, saved in zip(_parts(callback), state["callbacks"], strict=False):
        if saved is not None:
            give_state(part, saved)
    for name, values in state["logger"].items():
        getattr(agent.logger, name).update(values)
    give_state(agent.action_space, state["spaces"])
    _give_random(state["random"])


def _options(agent: Any) -> dict[str, Any]:
    found = {name: getattr(agent, name) for name in _OPTIONS if hasattr(agent, name)}
    plain = {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str))}
    optimizer = getattr(agent, "optimizer", None)
    known = optimizer is None or isinstance(optimizer, (str, dict)) or dataclasses.is_dataclass(optimizer)
    return {"optimizer": repr(optimizer) if known else type(optimizer).__name__, **plain}


def _parts(callback: BaseCallback | None) -> list[BaseCallback]:
    """Callbacks in a tree of them, in order."""
    if callback is None:
        return []
    if isinstance(callback, CallbackList):
        return [found for part in callback.callbacks for found in _parts(part)]
    return [callback]


def _state_or_none(callback: BaseCallback) -> Any:
    try:
        return take_state(callback)
    except CannotBeSaved:
        return None


def _take_random() -> dict[str, Any]:
    return {
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
        "numpy": np.random.get_state(),  # noqa: NPY002  # Stable-Baselines3 draws from it
        "python": random.getstate(),
    }


def _give_random(state: Mapping[str, Any]) -> None:
    th.set_rng_state(state["torch"])
    if state["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(state["cuda"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
