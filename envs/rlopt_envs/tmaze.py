"""T-maze: a sign at the beginning says where to turn at the end; everything between looks alike."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from rlopt_envs._batch import Batch, Infos, Observations
from rlopt_envs._batch_env import BatchEnv, BatchVectorEnv
from rlopt_envs._validation import BoolArray, FloatArray, count
from rlopt_envs.rendering import Picture, SystemPicture, figure_to_rgb

IntArray = NDArray[np.int64]

_LIMIT_FACTOR = 4  # steps per step of the shortest way, by default
_MOST_CELLS_DRAWN = 60


class TMazeBatch(Batch):
    """Independent copies of the maze; arguments are those of `TMazeEnv`.

    The states are floats, as in all batches: the cues, the length of the corridor, and the cell in which the agent is,
    (N, num_recalls + 2).

    Raises:
        ValueError: For an argument outside its range.
    """

    def __init__(
        self,
        num_envs: int,
        corridor_length: int,
        min_corridor_length: int | None,
        num_cues: int,
        num_recalls: int,
        distractor_probability: float,
        must_walk: bool,
        time_limit: int | None,
    ) -> None:
        self.corridor_length = count("corridor_length", corridor_length, 0)
        self.min_corridor_length = self.corridor_length
        if min_corridor_length is not None:
            self.min_corridor_length = count("min_corridor_length", min_corridor_length, 0)
        if self.min_corridor_length > self.corridor_length:
            raise ValueError(
                f"min_corridor_length must be at most the corridor_length {corridor_length}, got {min_corridor_length}."
            )
        self.num_cues, self.num_recalls = count("num_cues", num_cues, 2), count("num_recalls", num_recalls)
        if not 0.0 <= distractor_probability <= 1.0:
            raise ValueError(f"distractor_probability must be in [0, 1], got {distractor_probability}.")
        self.distractor_probability = float(distractor_probability)
        self.must_walk = must_walk
        shortest = self.corridor_length + 2 * self.num_recalls
        self.time_limit: int | None = None
        if must_walk:
            self.time_limit = _LIMIT_FACTOR * shortest if time_limit is None else count("time_limit", time_limit)
            if self.time_limit < shortest:
                raise ValueError(f"time_limit must be at least the {shortest} steps of the way through, got {time_limit}.")
        elif time_limit is not None:
            raise ValueError("time_limit must be None with must_walk=False, which gives each episode a fixed length; drop it.")
        space = spaces.Box(0.0, 1.0, (self.num_cues + 3,), np.float32)
        super().__init__(num_envs, self.num_recalls + 2, space, np.ones(1))
        self.action_space = spaces.Discrete(self.num_cues + must_walk)  # type: ignore[assignment]
        self.num_draws, self.num_first_draws = 1, self.num_recalls + 1
        self._arrived = np.ones(num_envs, np.bool_)  # whether the agent came to its cell in this step
        self._num_right = np.zeros(num_envs, np.int64)
        self._distractor = np.full(num_envs, -1)  # -1: none

    def _first_states(self, draws: FloatArray) -> FloatArray:
        shares = ndtr(draws)  # uniform on [0, 1]
        cues = _drawn(shares[:, :-1], 0, self.num_cues)
        lengths = _drawn(shares[:, -1:], self.min_corridor_length, self.corridor_length + 1)
        return np.concatenate([cues, lengths, np.zeros_like(lengths)], axis=1).astype(np.float64)

    def begin(self, rows: BoolArray, draws: FloatArray, states: FloatArray | None) -> None:
        """Put copies into first states; see `Batch.begin`.

        Raises:
            ValueError: If a first state is none of this maze, or not at its beginning.
        """
        if states is not None:
            low = [0] * self.num_recalls + [self.min_corridor_length, 0]
            high = [self.num_cues - 1] * self.num_recalls + [self.corridor_length, 0]
            if ((states < low) | (states > high) | (states != np.floor(states))).any():
                raise ValueError(
                    f"initial_state must be whole numbers (cues, length of the corridor, 0) from {low} to {high}, got "
                    f"{states.tolist()}."
                )
        self.states = self.states.copy()
        super().begin(rows, draws, states)
        self._arrived[rows], self._num_right[rows], self._distractor[rows] = True, 0, -1

    def clipped(self, actions: ArrayLike) -> FloatArray:
        """Return the actions, (N,) whole numbers.

        Raises:
            ValueError: For another shape, or numbers that are no actions.
        """
        array = np.asarray(actions)
        num_actions = self.num_cues + self.must_walk
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu" or ((array < 0) | (array >= num_actions)).any():
            raise ValueError(f"actions must be {self.num_envs} whole numbers in [0, {num_actions}), got {actions!r}.")
        return array

    def advance(self, actions: FloatArray, draws: FloatArray) -> tuple[FloatArray, BoolArray, Infos]:
        """Step all copies; see `Batch.advance`."""
        m = self.num_recalls
        lengths, cells = self.states[:, m].astype(np.int64), self.states[:, m + 1].astype(np.int64)
        junction = cells - (m + lengths)  # number of the junction, < 0 before the first
        at_junction = junction >= 0
        # Where one must walk, action 0 goes on and the others turn: only at a junction is there something to turn into.
        turns = actions.astype(np.int64) - self.must_walk
        answers = at_junction & (turns >= 0)
        moves = answers if self.must_walk else np.ones(self.num_envs, np.bool_)
        if self.must_walk:
            moves = moves | (~at_junction & (turns < 0))
        asked = self.states[np.arange(self.num_envs), np.clip(junction, 0, m - 1)]
        right = answers & (turns == asked)
        self._num_right = self._num_right + right
        rewards = np.where(answers, np.where(right, 1.0, -1.0), 0.0) / m
        self.steps = self.steps + 1
        over = answers & (junction == m - 1)
        if self.time_limit is not None:
            late = ~over & (self.steps >= self.time_limit)
            open_questions = m - np.maximum(junction + answers, 0)
            rewards = rewards - np.where(late, open_questions / m, 0.0)
            over = over | late
        states = self.states.copy()
        self._arrived = moves & ~over  # the last junction is the end of the way
        states[:, m + 1] += self._arrived
        self.states = states
        share = ndtr(draws[:, 0])
        self._distractor = np.full(self.num_envs, -1)
        if self.distractor_probability > 0.0:
            shown = share < self.distractor_probability
            self._distractor[shown] = _drawn(share[shown] / self.distractor_probability, 0, self.num_cues)
        return rewards, over, {"is_success": over & (self._num_right == m)}

    def observe(self) -> Observations:
        """Return what is seen, (N, num_cues + 3)."""
        m, rows = self.num_recalls, np.arange(self.num_envs)
        cells = self.states[:, m + 1].astype(np.int64)
        begins, ends = cells < m, cells >= m + self.states[:, m]
        obs = np.zeros((self.num_envs, self.num_cues + 3), np.float32)
        signs = np.where(begins & self._arrived, self.states[rows, np.minimum(cells, m - 1)], -1)
        signs = np.where(~begins & ~ends, self._distractor, signs).astype(np.int64)
        seen = signs >= 0
        obs[rows[seen], signs[seen]] = 1.0
        obs[:, -3], obs[:, -2], obs[:, -1] = begins, ~begins & ~ends, ends
        return obs


def _drawn(shares: FloatArray, low: int, high: int) -> IntArray:
    """Turn shares in [0, 1] into whole numbers from low to high - 1, equally likely if the shares are uniform."""
    return np.minimum(low + (shares * (high - low)).astype(np.int64), high - 1)


class _MazePicture(SystemPicture):
    """Draws the cells from the signs to the junctions; the agent is the disc, the arms to take are green."""

    def __init__(self, batch: TMazeBatch) -> None:
        super().__init__("T-maze")
        self._num_recalls, self._num_cues = batch.num_recalls, batch.num_cues

    def draw(self, states: FloatArray, step: int) -> Picture:
        """Return the picture of the present state, the last of `states` (length, d): (160, 800, 3) uint8."""
        from matplotlib.figure import Figure  # slow to import, and few want pictures

        m, k = self._num_recalls, self._num_cues
        cues, length, cell = states[-1, :m].astype(int), int(states[-1, m]), int(states[-1, m + 1])
        shown = min(length, _MOST_CELLS_DRAWN)  # a longer corridor is drawn shorter
        if length > shown and cell >= m:
            cell = m + round((cell - m) * shown / length) if cell < m + length else cell - length + shown
        total = shown + 2 * m
        figure = Figure(figsize=(8.0, 1.6), dpi=100)
        axes = figure.add_axes((0.01, 0.01, 0.98, 0.8))
        figure.suptitle(f"T-maze, step {step}, corridor {length}", fontsize=9)
        axes.set(xlim=(-0.7, total - 0.3), ylim=(-1.0, k + 0.6))
        axes.axis("off")
        middle = (k - 1) / 2
        for place in range(total):
            colour = "lightyellow" if place < m else "white" if place < m + shown else "lightgray"
            axes.fill(
                place + np.array([-0.5, 0.5, 0.5, -0.5]), middle + np.array([-0.5, -0.5, 0.5, 0.5]), colour, ec="black", lw=0.5
            )
            if place < m:
                axes.text(place, middle + 0.8, str(cues[place]), ha="center", va="bottom", fontsize=9)
            elif place >= m + shown:
                for arm in range(k):
                    is_right = arm == cues[place - m - shown]
                    axes.text(place, arm + 0.05, str(arm), ha="center", va="center", color="green" if is_right else "gray",
                              weight="bold" if is_right else "normal", fontsize=9)  # fmt: skip
        axes.plot([cell], [middle - 0.25], "o", ms=7, color="tab:red")
        return figure_to_rgb(figure)


class _Optimum:
    """Optimal returns of an environment with `num_cues`."""

    num_cues: int

    @property
    def optimal_return(self) -> float:
        """Largest expected sum of rewards, without discount."""
        return 1.0

    @property
    def memoryless_return(self) -> float:
        """Largest expected sum of rewards of a policy that sees the present observation only, 2 / num_cues - 1."""
        return 2.0 / self.num_cues - 1.0


class TMazeEnv(_Optimum, BatchEnv):
    """Remember a sign through a corridor where all looks alike, and turn to where it pointed.

    ## Description

    The way leads through `num_recalls` cells with a sign each, through the corridor, and past as many junctions. Sign i is one of
    `num_cues`, all equally likely, and is seen only when the agent comes to its cell; at junction i the arm with the number of
    sign i is right. With one sign, the default, it is in the first observation, and the memory has to last for
    corridor_length + 1 steps; with several they are recalled in order.

    By default the agent is moved on in each step, and only what it does at junctions matters: memory alone is tested. With
    `must_walk` it has to go on by itself.

    The optimal return is 1 and needs memory. Without it a policy takes one arm whatever the sign was, so the best return is
    2/num_cues - 1: 0 with two cues.

    ## Action Space

    `Discrete(num_cues)`: the arm to take; without effect outside of junctions. With `must_walk`, `Discrete(num_cues + 1)`: 0 goes
    on, k turns into arm k - 1. Going on at a junction, and turning elsewhere, changes nothing but the time.

    ## Observation Space

    `Box(0, 1, (num_cues + 3,), float32)`, without unit

    | Num              | Meaning                                        | Min | Max |
    | ---------------- | ---------------------------------------------- | --- | --- |
    | 0 .. num_cues-1  | which sign or distractor is seen; 0: none      | 0   | 1   |
    | num_cues         | the agent is in a cell with a sign             | 0   | 1   |
    | num_cues + 1     | in the corridor                                | 0   | 1   |
    | num_cues + 2     | at a junction                                  | 0   | 1   |

    ## Rewards

    At a junction 1/num_recalls for the right arm, -1/num_recalls for another one, else 0. When the time is over, -1/num_recalls
    for each junction that is not behind the agent. Range [-1, 1], and that of the sum too.

    ## Starting State

    The first cell. Signs are uniform and independent; the length of the corridor is uniform on min_corridor_length ..
    corridor_length, and not seen. `reset(options={"initial_state": [sign, ..., length, 0]})` sets both.

    ## Episode End

    * Termination: after the last junction; with `must_walk` after `time_limit` steps too. It is an end and not a cut, since time is
      part of the task.
    * Truncation: never.

    ## Information

    `env.unwrapped` has `optimal_return`, `memoryless_return`, `num_cues` and `state` (signs, length, cell). `info["is_success"]`
    after a step says whether the episode ended with all arms right.

    ## Arguments

    | Argument                 | Meaning                                                     | Default          | Range          |
    | ------------------------ | ----------------------------------------------------------- | ---------------- | -------------- |
    | `corridor_length`        | cells of the corridor, at most                              | 10               | >= 0           |
    | `min_corridor_length`    | at least; None: always corridor_length                      | None             | 0 .. length    |
    | `num_cues`               | kinds of signs, and arms                                    | 2                | >= 2           |
    | `num_recalls`            | signs to remember                                           | 1                | >= 1           |
    | `distractor_probability` | that a corridor cell shows a random sign, without meaning   | 0                | [0, 1]         |
    | `must_walk`              | whether the agent must go on by itself                      | False            |                |
    | `time_limit`             | steps; with `must_walk` only. None: 4 times the longest way | None             | >= longest way |
    | `render_mode`            | None, "rgb_array" or "human"                                | None             |                |

    Raises:
        ValueError: For an argument outside its range.

    Example:
        >>> env = TMazeEnv(corridor_length=1)
        >>> env.reset(options={"initial_state": [1, 1, 0]})[0].tolist()
        [0.0, 1.0, 1.0, 0.0, 0.0]
        >>> [env.step(0)[0].tolist() for _ in range(2)]
        [[0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]]
        >>> env.step(1)[1:3], env.optimal_return, env.memoryless_return
        ((1.0, True), 1.0, 0.0)

    ## References

    Bakker, Reinforcement learning with long short-term memory, NeurIPS 2001, has the maze in which one must walk (with other
    rewards). Ni et al., When do transformers shine in RL? Decoupling memory from credit assignment, NeurIPS 2023, arXiv 2307.03864,
    separate memory from exploration in one where one need not.

    ## Version History

    * v0: first version.
    """

    def __init__(
        self,
        corridor_length: int = 10,
        min_corridor_length: int | None = None,
        num_cues: int = 2,
        num_recalls: int = 1,
        distractor_probability: float = 0.0,
        must_walk: bool = False,
        time_limit: int | None = None,
        *,
        render_mode: str | None = None,
    ) -> None:
        batch = TMazeBatch(
            1, corridor_length, min_corridor_length, num_cues, num_recalls, distractor_probability, must_walk, time_limit
        )
        self.num_cues = batch.num_cues
        super().__init__(batch, _MazePicture(batch), render_mode)


class TMazeVectorEnv(_Optimum, BatchVectorEnv):
    """Many copies of `TMazeEnv`, stepped at once; see `BatchVectorEnv`.

    Args:
        num_envs: Copies, >= 1.
        corridor_length: See `TMazeEnv`, as the following.
        min_corridor_length: At least so many cells.
        num_cues: Kinds of signs.
        num_recalls: Signs to remember.
        distractor_probability: That a corridor cell shows a random sign.
        must_walk: Whether agents must go on by themselves.
        time_limit: Steps, with `must_walk`.
        max_episode_steps: See `BatchVectorEnv`, as the following; episodes end without it.
        render_mode: None or "rgb_array".
        autoreset_mode: When finished copies begin a new episode.

    Raises:
        ValueError: For an argument outside its range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        corridor_length: int = 10,
        min_corridor_length: int | None = None,
        num_cues: int = 2,
        num_recalls: int = 1,
        distractor_probability: float = 0.0,
        must_walk: bool = False,
        time_limit: int | None = None,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        batch = TMazeBatch(
            num_envs, corridor_length, min_corridor_length, num_cues, num_recalls, distractor_probability, must_walk, time_limit
        )
        self.num_cues = batch.num_cues
        super().__init__(batch, _MazePicture(batch), max_episode_steps, render_mode, autoreset_mode)
