"""Gymnasium environments over a finite Markov decision process, single and vectorised, with their optimal values."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlopt_envs._validation import choice, count
from rlopt_envs.finite_mdp import BoolArray, FiniteMDP, FloatArray, IntArray, cumulative, invert
from rlopt_envs.rendering import HumanWindow, Picture, figure_to_rgb


class FiniteProblem:
    """What the environments of one problem share: the process, its optimum, a feature map, and a place for each state.

    Args:
        mdp: The process.
        features: φ(s,a), (S, A, d); by default one coordinate for each pair of a state that is not terminal and an action.
        behaviour_policy: Policy that gathers data, (S, A); uniform by default.
        positions: Where the picture shows each state, (S, 2); on a circle by default.

    Raises:
        ValueError: If the features are not finite or of a wrong shape.
    """

    def __init__(
        self,
        mdp: FiniteMDP,
        features: FloatArray | None = None,
        behaviour_policy: FloatArray | None = None,
        positions: FloatArray | None = None,
    ) -> None:
        shape = (mdp.num_states, mdp.num_actions)
        features = pair_features(mdp) if features is None else np.asarray(features, np.float64)
        if features.ndim != 3 or features.shape[:2] != shape or not np.isfinite(features).all():
            raise ValueError(f"features must be finite and have shape (*{shape}, d), got {features.shape}.")
        self.mdp = mdp
        self.features = features
        self.behaviour_policy = mdp.check_policy(behaviour_policy)
        self.optimal_q = mdp.value_iteration()
        self.positions = circle(mdp.num_states) if positions is None else positions


class FiniteMDPEnv(gym.Env[int, int]):
    """One copy of a finite Markov decision process.

    Attributes:
        mdp: The process, `FiniteMDP`.
        optimal_q: Q*(s,a), (S, A).
        features: φ(s,a) as a table, (S, A, d).
        behaviour_policy: Policy that gathers data, (S, A).
        discount: γ.

    Args:
        problem: Process, features, behaviour policy and places of the states.
        render_mode: None, "rgb_array" (a picture of the states with the current one marked) or "human" (a window).

    Raises:
        ValueError: For an unknown render mode.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["human", "rgb_array"], "render_fps": 4}  # type: ignore[misc]

    def __init__(self, problem: FiniteProblem, render_mode: str | None = None) -> None:
        if render_mode is not None:
            choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.mdp, self.features, self.optimal_q = problem.mdp, problem.features, problem.optimal_q
        self.behaviour_policy, self.discount = problem.behaviour_policy, problem.mdp.discount
        self.observation_space = spaces.Discrete(self.mdp.num_states)  # type: ignore[assignment]
        self.action_space = spaces.Discrete(self.mdp.num_actions)  # type: ignore[assignment]
        self._positions = problem.positions
        self._transition, self._initial = cumulative(self.mdp.transition), cumulative(self.mdp.initial)
        self._state = -1
        self._window: HumanWindow | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """Begin an episode in a state drawn from the initial law; there are no options."""
        super().reset(seed=seed)
        self._state = int(invert(self._initial, np.array(self.np_random.random())))
        self._show()
        return self._state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Take an action; the episode ends where a terminal state is reached and is never cut by the environment itself.

        Raises:
            ValueError: If the action is none of the space, or no episode is running.
        """
        if not self.action_space.contains(action):
            raise ValueError(f"action must be a whole number in [0, {self.mdp.num_actions}), got {action!r}.")
        if self._state < 0 or self.mdp.terminal[self._state]:
            raise ValueError("step must come after reset, and not after the end of an episode; call reset().")
        state = self._state
        self._state = int(invert(self._transition[state, action], np.array(self.np_random.random())))
        reward = self.mdp.reward[state, action]
        self._show()
        return (
            self._state,
            float(reward if self.mdp.reward.ndim == 2 else reward[self._state]),
            bool(self.mdp.terminal[self._state]),
            False,
            {},
        )

    def render(self) -> Picture | None:
        """Return the picture in mode "rgb_array", (H, W, 3) uint8; in mode "human" `step` and `reset` show it."""
        return draw(self.mdp, self.optimal_q, self._positions, self._state) if self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        if self.render_mode == "human":
            self._window = self._window or HumanWindow()
            self._window.show(draw(self.mdp, self.optimal_q, self._positions, self._state), self.metadata["render_fps"])

    def close(self) -> None:
        """Close the window if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None


class FiniteMDPVectorEnv(VectorEnv[IntArray, IntArray, NDArray[Any]]):
    """Many independent copies of a finite Markov decision process, stepped at once by table look-up.

    Attributes are those of `FiniteMDPEnv`. `reset(options={"reset_mask": mask})` resets the copies where the mask is True.

    Args:
        num_envs: Copies, >= 1.
        problem: Process, features, behaviour policy and places of the states.
        max_episode_steps: Steps after which an episode is truncated, >= 1; None: never.
        render_mode: None or "rgb_array" (a tuple with one picture for each copy).
        autoreset_mode: When finished copies begin a new episode; a `gymnasium.vector.AutoresetMode` or its value: "NextStep" (the
            next step ignores their action), "SameStep" (`infos["final_obs"]` has the last observation) or "Disabled" (`reset`
            with a mask must do it).

    Raises:
        ValueError: For an argument outside these sets.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  (Gymnasium's own type)
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        problem: FiniteProblem,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.num_envs = count("num_envs", num_envs)
        self.max_episode_steps = None if max_episode_steps is None else count("max_episode_steps", max_episode_steps)
        modes = [mode.value for mode in AutoresetMode]
        autoreset_mode = autoreset_mode.value if isinstance(autoreset_mode, AutoresetMode) else autoreset_mode
        self.autoreset_mode = AutoresetMode(choice("autoreset_mode", autoreset_mode, modes))
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        if render_mode is not None:
            choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.mdp, self.features, self.optimal_q = problem.mdp, problem.features, problem.optimal_q
        self.behaviour_policy, self.discount = problem.behaviour_policy, problem.mdp.discount
        self.single_observation_space = spaces.Discrete(self.mdp.num_states)
        self.single_action_space = spaces.Discrete(self.mdp.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._positions = problem.positions
        # Laws without their last entry, which is 1: counting those not above a uniform number gives the same value.
        self._transition = cumulative(self.mdp.transition)[..., :-1].reshape(-1, self.mdp.num_states - 1)  # (S*A, S-1)
        self._initial = cumulative(self.mdp.initial)
        self._reward = self.mdp.reward.reshape(self.mdp.num_states * self.mdp.num_actions, -1)  # (S*A, 1 or S)
        self._states = np.full(num_envs, -1)
        self._steps = np.zeros(num_envs, np.int64)
        self._done = np.ones(num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[IntArray, dict[str, Any]]:
        """Begin new episodes, everywhere or where `options["reset_mask"]` (num_envs,) is True.

        Raises:
            ValueError: If the mask is not of dtype bool and shape (num_envs,).
        """
        super().reset(seed=seed)
        mask = np.ones(self.num_envs, bool) if options is None or "reset_mask" not in options else options["reset_mask"]
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"reset_mask must be an array of dtype bool and shape ({self.num_envs},), got {mask!r}.")
        self._begin(mask)
        return self._states.copy(), {}

    def step(self, actions: IntArray) -> tuple[IntArray, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Step all copies.

        Args:
            actions: (num_envs,) whole numbers.

        Returns:
            Observations (num_envs,) int64, rewards (num_envs,) float64, terminated and truncated (num_envs,) bool, infos.

        Raises:
            ValueError: For wrong actions, before the first `reset`, and in mode "Disabled" while a finished copy was not reset.
        """
        actions = np.asarray(actions)
        num_actions = self.mdp.num_actions
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu" or ((actions < 0) | (actions >= num_actions)).any():
            raise ValueError(f"actions must be {self.num_envs} whole numbers in [0, {num_actions}), got {actions!r}.")
        resets = self._done
        if self._states[0] < 0 or (self.autoreset_mode is AutoresetMode.DISABLED and resets.any()):
            raise ValueError("step must come after reset of all copies, in mode 'Disabled' of the finished ones too; call reset().")
        pairs = self._states * num_actions + actions
        states = np.count_nonzero(self._transition[pairs] <= self.np_random.random(self.num_envs)[:, None], axis=1)
        rewards = self._reward[pairs, states if self._reward.shape[1] > 1 else 0]
        terminated = self.mdp.terminal[states]
        self._states = states
        self._steps += 1
        truncated = np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None:
            truncated = self._steps >= self.max_episode_steps
        if resets.any():  # mode "NextStep": these copies spend the step on their reset
            self._begin(resets)
            rewards[resets], terminated[resets], truncated[resets] = 0.0, False, False
        self._done = terminated | truncated
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            mask = self._done
            infos = {"final_obs": np.where(mask, states.astype(object), None), "_final_obs": mask, "final_info": {}}
            infos["_final_info"] = mask.copy()
            self._begin(mask)
        return self._states.copy(), rewards, terminated, truncated, infos

    def _begin(self, mask: BoolArray) -> None:
        self._states[mask] = invert(self._initial, self.np_random.random(np.count_nonzero(mask)))
        self._steps[mask] = 0
        self._done = self._done & ~mask

    def render(self) -> tuple[Picture, ...] | None:
        """Return a picture of each copy in mode "rgb_array", (H, W, 3) uint8."""
        if self.render_mode is None:
            return None
        return tuple(draw(self.mdp, self.optimal_q, self._positions, state) for state in self._states.tolist())


def pair_features(mdp: FiniteMDP) -> FloatArray:
    """Return the features of a table, (S, A, d): one coordinate for each state that is not terminal and each action."""
    live = np.flatnonzero(~mdp.terminal)
    features = np.zeros((mdp.num_states, mdp.num_actions, len(live) * mdp.num_actions))
    pairs = np.arange(len(live) * mdp.num_actions).reshape(len(live), mdp.num_actions)
    features[live[:, None], np.arange(mdp.num_actions), pairs] = 1.0
    return features


def circle(count: int) -> FloatArray:
    """Return the places of `count` states on a circle, clockwise from the top, (count, 2)."""
    angles = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def line(count: int) -> FloatArray:
    """Return the places of `count` states from left to right, (count, 2)."""
    return np.stack([np.linspace(-1.0, 1.0, count), np.zeros(count)], axis=1)


def draw(mdp: FiniteMDP, optimal_q: FloatArray, positions: FloatArray, state: int) -> Picture:
    """Return a picture of the states with their optimal values, the current one marked, (H, W, 3) uint8."""
    from matplotlib.figure import Figure  # slow to import, and few want pictures

    flat = bool(np.ptp(positions[:, 1]) == 0.0)
    width, height = (8.0, 2.0) if flat else (5.0, 5.0)  # inches; the axes show 3 units across
    figure = Figure(figsize=(width, height), dpi=80)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5 * height / width, 1.5 * height / width))
    axes.axis("off")
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    radius = min(0.18, 0.4 * float(distances[distances > 0].min()))
    axes.scatter(
        positions[:, 0],
        positions[:, 1],
        s=(2 * radius * width / 3 * 72) ** 2,
        c=["tab:orange" if place == state else "lightgray" if mdp.terminal[place] else "white" for place in range(mdp.num_states)],
        edgecolors="black",
    )
    for place, (x, y) in enumerate(positions):
        axes.text(x, y, str(place), ha="center", va="center", fontsize=9)
        if not mdp.terminal[place]:
            values = "\n".join(f"{value:.3g}" for value in optimal_q[place, :4])
            axes.text(x, y - radius - 0.03, values, ha="center", va="top", fontsize=7, color="tab:blue")
    return figure_to_rgb(figure)


def check_discount(discount: float) -> float:
    """Return a discount.

    Raises:
        ValueError: If it is outside [0, 1).
    """
    if not 0.0 <= discount < 1.0:
        raise ValueError(f"discount must be in [0, 1), got {discount}.")
    return float(discount)
