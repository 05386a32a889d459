"""Environments around the dynamics of many copies: the single environment steps one copy, the vectorised one all at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import ArrayLike, NDArray

from rlopt_envs._batch import Batch, Infos, Observations
from rlopt_envs._validation import BoolArray, FloatArray, choice, count
from rlopt_envs.rendering import HISTORY_LENGTH, HumanWindow, Picture, SystemPicture


class BatchEnv(gym.Env[Observations, Observations]):
    """One copy of a dynamical system.

    Args:
        batch: The system, with one copy.
        picture: How it is drawn.
        render_mode: None, "rgb_array" or "human".

    Raises:
        ValueError: For another render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 20}  # type: ignore[misc]

    def __init__(self, batch: Batch, picture: SystemPicture, render_mode: str | None) -> None:
        if render_mode is not None:
            choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.observation_space = batch.observation_space  # type: ignore[assignment]
        self.action_space = batch.action_space
        self._batch, self._picture = batch, picture
        self._over = True
        self._history: deque[FloatArray] = deque(maxlen=HISTORY_LENGTH)
        self._window: HumanWindow | None = None

    @property
    def state(self) -> FloatArray:
        """The present state, (d,) float64, a copy."""
        return self._batch.states.copy().reshape(-1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Infos]:
        """Begin an episode.

        Args:
            seed: Of the noise and the first state.
            options: {"initial_state": (d,)} replaces the draw of the first state.

        Raises:
            ValueError: For other options or another shape.
        """
        super().reset(seed=seed)
        states = _initial_states(options, 1, self._batch.states.shape[1])
        rows = np.ones(1, np.bool_)
        self._batch.begin(rows, self.np_random.standard_normal((1, self._batch.num_first_draws)), states)
        self._over = False
        self._history.clear()
        self._show()
        return self._batch.observe()[0], _first_row(self._batch.describe())

    def step(self, action: ArrayLike) -> tuple[Observations, float, bool, bool, Infos]:
        """Step. The environment terminates as its class says, and never truncates by itself.

        Args:
            action: (m,), clipped to the action space.

        Raises:
            ValueError: For another shape, nan, or before the first `reset` and after the end of an episode.
        """
        if self._over:
            raise ValueError("step must come after reset, and not after the end of an episode; call reset().")
        actions = self._batch.clipped(np.asarray(action)[None])
        draws = self.np_random.standard_normal((1, self._batch.num_draws))
        rewards, terminated, infos = self._batch.advance(actions, draws)
        self._over = bool(terminated[0])
        self._show()
        info = _first_row({**infos, **self._batch.describe()})
        return self._batch.observe()[0], float(rewards[0]), self._over, False, info

    def render(self) -> Picture | None:
        """Return the picture in mode "rgb_array", (H, W, 3) uint8; in mode "human" `reset` and `step` show it."""
        return self._draw() if self.render_mode == "rgb_array" else None

    def _draw(self) -> Picture:
        return self._picture.draw(np.array([states[0] for states in self._history]), int(self._batch.steps[0]))

    def _show(self) -> None:
        if self.render_mode is None:
            return
        self._history.append(self._batch.states)
        if self.render_mode == "human":
            self._window = self._window or HumanWindow()
            self._window.show(self._draw(), self.metadata["render_fps"])

    def close(self) -> None:
        """Close the window if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


class BatchVectorEnv(VectorEnv[Observations, Observations, NDArray[Any]]):
    """Many copies of a dynamical system, stepped at once by products of matrices.

    Rewards are float64. Infos have the keys of the single environment's, each with a mask `_key` of the copies that have it.

    Args:
        batch: The system, with all copies.
        picture: How it is drawn.
        max_episode_steps: Steps after which an episode is truncated, >= 1. None: never.
        render_mode: None or "rgb_array" (a tuple of one picture for each copy).
        autoreset_mode: When finished copies begin a new episode, a `gymnasium.vector.AutoresetMode` or its value: "NextStep" (in
            the next step, which ignores their action), "SameStep" (`infos["final_obs"]` and `infos["final_info"]` have the
            end of the old episode) or "Disabled" (`reset(options={"reset_mask": mask})` must do it).

    Raises:
        ValueError: For an argument outside these sets.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (Gymnasium's own type)
        "render_modes": ["rgb_array"],
        "render_fps": 20,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        batch: Batch,
        picture: SystemPicture,
        max_episode_steps: int | None,
        render_mode: str | None,
        autoreset_mode: AutoresetMode | str,
    ) -> None:
        if render_mode is not None:
            choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.max_episode_steps = None if max_episode_steps is None else count("max_episode_steps", max_episode_steps)
        mode = autoreset_mode.value if isinstance(autoreset_mode, AutoresetMode) else autoreset_mode
        self.autoreset_mode = AutoresetMode(choice("autoreset_mode", mode, [mode.value for mode in AutoresetMode]))
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs = batch.num_envs
        self.single_observation_space, self.single_action_space = batch.observation_space, batch.action_space
        self.observation_space = batch_space(batch.observation_space, self.num_envs)
        self.action_space = batch_space(batch.action_space, self.num_envs)
        self._batch, self._picture = batch, picture
        self._owes_reset: BoolArray | None = np.ones(self.num_envs, np.bool_)  # None: no copy, the common case
        self._started = False
        self._history: deque[FloatArray] = deque(maxlen=HISTORY_LENGTH)

    @property
    def states(self) -> FloatArray:
        """The present states, (num_envs, d) float64, a copy."""
        return self._batch.states.copy()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, Infos]:
        """Begin episodes, everywhere or where `options["reset_mask"]` is true.

        Args:
            seed: Of the noise and the first states of all copies, which share one generator.
            options: "reset_mask", bool (num_envs,); "initial_state", (d,) for all or (number of copies that are reset, d).

        Raises:
            ValueError: For other options, shapes or types.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        rows = options.pop("reset_mask", np.ones(self.num_envs, np.bool_))
        if not isinstance(rows, np.ndarray) or rows.shape != (self.num_envs,) or rows.dtype != np.bool_ or not rows.any():
            raise ValueError(
                f"reset_mask must be an array of dtype bool and shape ({self.num_envs},) with at least one True, got {rows!r}."
            )
        if not (self._started or rows.all()):
            raise ValueError("reset_mask must not be given before the first reset of all copies; call reset() first.")
        self._begin(rows, _initial_states(options, int(np.count_nonzero(rows)), self._batch.states.shape[1]))
        self._started = True
        if self._owes_reset is not None:
            rest = self._owes_reset & ~rows
            self._owes_reset = rest if rest.any() else None
        if self._history and not rows.all():
            self._history.pop()  # time does not go on for the others
        self._record()
        return self._batch.observe(), _masked(self._batch.describe(), None if rows.all() else rows, self.num_envs)

    def step(self, actions: ArrayLike) -> tuple[Observations, FloatArray, BoolArray, BoolArray, Infos]:
        """Step all copies.

        Args:
            actions: (num_envs, m), clipped to the action space.

        Returns:
            Observations (num_envs, p), rewards (num_envs,), terminated (num_envs,), truncated (num_envs,) and infos; new arrays.

        Raises:
            ValueError: For another shape, nan, before `reset`, and in mode "Disabled" while a finished copy was not reset.
        """
        batch, resets = self._batch, self._owes_reset
        if not self._started or (resets is not None and self.autoreset_mode is AutoresetMode.DISABLED):
            raise ValueError("step must come after reset of all copies, in mode 'Disabled' of the finished ones too; call reset().")
        clipped = batch.clipped(actions)
        if resets is None:
            draws = self.np_random.standard_normal((self.num_envs, batch.num_draws))
        else:  # copies that are reset draw nothing for a step, so one copy draws what the single environment would
            draws = np.zeros((self.num_envs, batch.num_draws))
            draws[~resets] = self.np_random.standard_normal((self.num_envs - np.count_nonzero(resets), batch.num_draws))
        rewards, terminated, infos = batch.advance(clipped, draws)
        truncated = np.zeros(self.num_envs, np.bool_) if self.max_episode_steps is None else batch.steps >= self.max_episode_steps
        if resets is not None:
            self._begin(resets, None)
            rewards[resets], terminated[resets], truncated[resets] = 0.0, False, False
        done = terminated | truncated
        any_done = bool(done.any())
        if any_done and self.autoreset_mode is AutoresetMode.SAME_STEP:
            result = self._finished(infos, done)
            self._begin(done, None)
            result.update(_masked(infos, ~done, self.num_envs))
        else:
            self._owes_reset = done if any_done else None
            result = _masked(infos, None if resets is None else ~resets, self.num_envs)
        result.update(_masked(batch.describe(), None, self.num_envs))
        self._record()
        return batch.observe(), rewards, terminated, truncated, result

    def _begin(self, rows: BoolArray, states: FloatArray | None) -> None:
        draws = self.np_random.standard_normal((np.count_nonzero(rows), self._batch.num_first_draws))
        self._batch.begin(rows, draws, states)

    def _finished(self, infos: Infos, done: BoolArray) -> Infos:
        """Return what is told of the ends of episodes in mode "SameStep"."""
        observations, last = self._batch.observe(), np.full(self.num_envs, None, object)
        for i in np.flatnonzero(done):  # an array of arrays cannot be filled at once
            last[i] = observations[i]
        details = _masked({**infos, **self._batch.describe()}, done, self.num_envs)
        return {"final_obs": last, "_final_obs": done.copy(), "final_info": details, "_final_info": done.copy()}

    def _record(self) -> None:
        if self.render_mode is not None:
            self._history.append(self._batch.states)

    def render(self) -> tuple[Picture, ...] | None:
        """Return a picture of each copy in mode "rgb_array", each (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        history = np.array(self._history)  # (length, N, d)
        pictures = []
        for i, steps in enumerate(self._batch.steps.tolist()):
            pictures.append(self._picture.draw(history[-min(steps + 1, len(history)) :, i], steps))
        return tuple(pictures)


def _initial_states(options: Mapping[str, Any] | None, num_rows: int, num_states: int) -> FloatArray | None:
    """Return the first states that the options ask for, (num_rows, d), or None."""
    unknown = set(options or {}) - {"initial_state"}
    if unknown:
        raise ValueError(f"options must have no other key than 'initial_state' (and 'reset_mask'), got {sorted(unknown)}.")
    value = (options or {}).get("initial_state")
    if value is None:
        return None
    states = np.asarray(value, np.float64)
    if states.shape not in ((num_states,), (num_rows, num_states)) or not np.isfinite(states).all():
        raise ValueError(
            f"initial_state must be finite and have shape ({num_states},) or ({num_rows}, {num_states}), got {states.shape}."
        )
    return np.broadcast_to(states, (num_rows, num_states)).copy()


def _first_row(infos: Infos) -> Infos:
    return {key: value[0] if value.ndim > 1 else value.item() for key, value in infos.items()}


def _masked(infos: Infos, rows: BoolArray | None, num_envs: int) -> Infos:
    """Return infos with their masks; values of other copies than `rows` (None: all) are 0. `infos` stays as it is."""
    if not infos:
        return {}
    result: Infos = {}
    mask = np.ones(num_envs, np.bool_) if rows is None else rows.copy()
    for key, value in infos.items():
        if rows is not None:
            value = value.copy()
            value[~rows] = 0
        result[key], result[f"_{key}"] = value, mask
    return result
