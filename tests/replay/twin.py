"""A slow, obvious model of a replay ring: Python lists of transitions, one list per environment.

Rows are counted since the beginning of time and never reused, so nothing here knows where a ring wraps. `slot` and `place`
are the only bridge to the slots of the storage under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = NDArray[Any] | dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Step:
    """One transition of one environment."""

    obs: Value
    next_obs: Value
    action: NDArray[Any]
    reward: np.float32
    terminated: bool
    truncated: bool


def pick(value: Value, env: int) -> Value:
    """The part of one environment, copied."""
    if isinstance(value, dict):
        return {key: np.array(part[env]) for key, part in value.items()}
    return np.array(value[env])


def same(left: Value, right: Value) -> bool:
    """Whether two observations are equal to the bit."""
    if isinstance(left, dict):
        assert isinstance(right, dict)
        return all(left[key].tobytes() == right[key].tobytes() for key in left)
    assert not isinstance(right, dict)
    return left.tobytes() == right.tobytes()


@dataclass(frozen=True)
class Return:
    """An n-step return: discounted reward, discount, and the last transition used."""

    reward: float
    discount: float
    last: Step
    num_steps: int


class Twin:
    """The ring: `streams[env][row]` is every transition ever written; the newest `num_rows` of a stream are stored."""

    def __init__(self, num_rows: int, n_envs: int) -> None:
        self.num_rows = num_rows
        self.n_envs = n_envs
        self.streams: list[list[Step]] = [[] for _ in range(n_envs)]

    def add(
        self,
        obs: Value,
        next_obs: Value,
        action: NDArray[Any],
        reward: NDArray[Any],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
    ) -> None:
        for env, stream in enumerate(self.streams):
            stream.append(
                Step(
                    pick(obs, env),
                    pick(next_obs, env),
                    np.array(action[env]),
                    np.float32(reward[env]),
                    bool(terminated[env]),
                    bool(truncated[env]) and not bool(terminated[env]),
                )
            )

    # ------------------------------------------------------------------ where things are

    @property
    def num_added(self) -> int:
        return len(self.streams[0])

    def rows(self) -> list[int]:
        """Rows that are still stored, oldest first."""
        return list(range(max(0, self.num_added - self.num_rows), self.num_added))

    def places(self) -> list[tuple[int, int]]:
        """(env, row) of every stored transition in order of insertion."""
        return [(env, row) for row in self.rows() for env in range(self.n_envs)]

    def slot(self, env: int, row: int) -> int:
        return row % self.num_rows * self.n_envs + env

    def place(self, slot: int) -> tuple[int, int]:
        row = next(row for row in self.rows() if row % self.num_rows == slot // self.n_envs)
        return slot % self.n_envs, row

    def at(self, slot: int) -> Step:
        env, row = self.place(slot)
        return self.streams[env][row]

    def age(self, slot: int) -> int:
        return self.num_added - 1 - self.place(slot)[1]

    # ------------------------------------------------------------------ episodes

    def ends_episode(self, env: int, row: int) -> bool:
        """Whether the transition is known to be the last of its episode, by a flag or because what followed does not fit."""
        step = self.streams[env][row]
        if step.terminated or step.truncated:
            return True
        return row + 1 < self.num_added and not same(step.next_obs, self.streams[env][row + 1].obs)

    def newer_in_episode(self, env: int, row: int) -> list[int]:
        """Stored rows after `row` that belong to the same episode, in order."""
        found = []
        while not self.ends_episode(env, row) and row + 1 < self.num_added:
            row += 1
            found.append(row)
        return found

    def older_in_episode(self, env: int, row: int) -> list[int]:
        """Stored rows before `row` that belong to the same episode, walking back."""
        found = []
        while row - 1 >= self.rows()[0] and not self.ends_episode(env, row - 1):
            row -= 1
            found.append(row)
        return found

    def episode(self, env: int, row: int) -> list[int]:
        return [*reversed(self.older_in_episode(env, row)), row, *self.newer_in_episode(env, row)]

    # ------------------------------------------------------------------ what learning reads

    def num_steps(self, slot: int, direction: str, within_episode: bool) -> int:
        env, row = self.place(slot)
        if direction == "older":
            return len(self.older_in_episode(env, row)) if within_episode else row - self.rows()[0]
        return len(self.newer_in_episode(env, row)) if within_episode else self.num_added - 1 - row

    def path(self, slot: int, n_steps: int) -> list[int]:
        """Rows of an n-step return."""
        env, row = self.place(slot)
        return [row, *self.newer_in_episode(env, row)][:n_steps]

    def n_step_return(self, slot: int, n_steps: int, gamma: float) -> Return:
        stream = self.streams[slot % self.n_envs]
        total, discount = 0.0, 1.0
        path = self.path(slot, n_steps)
        for row in path:
            total += discount * float(stream[row].reward)
            discount *= gamma
        return Return(total, discount, stream[path[-1]], len(path))

    def window(
        self, slot: int, length: int, direction: str, respect_episodes: bool, before: int = 0, interleave: bool = False
    ) -> list[int]:
        """Slots of the window around `slot`; `before` older ones for direction "random"."""
        env, row = self.place(slot)
        line = self.places() if interleave else [(env, row) for row in self.rows()]
        pivot = line.index((env, row))
        before = {"back": length - 1, "forward": 0, "centre": length // 2, "random": before}[direction]
        wanted = list(range(pivot - before, pivot - before + length))
        if respect_episodes:
            episode = self.episode(env, row)
            wanted = [i for i in wanted if 0 <= i < len(line) and line[i][1] in episode]
        elif length >= len(line):
            wanted = list(range(len(line)))
        else:
            while wanted[0] < 0:
                wanted = [i + 1 for i in wanted]
            while wanted[-1] >= len(line):
                wanted = [i - 1 for i in wanted]
        slots = [self.slot(*line[i]) for i in wanted]
        return slots if direction == "forward" else slots[::-1]

    def goal_places(self, slot: int, strategy: str) -> list[tuple[int, int]]:
        """Transitions whose next achieved goal may become the goal of `slot`."""
        env, row = self.place(slot)
        if strategy == "random":
            return self.places()
        if strategy == "episode":
            return [(env, r) for r in self.episode(env, row)]
        future = [row, *self.newer_in_episode(env, row)]
        return [(env, future[-1])] if strategy == "final" else [(env, r) for r in future]


class ReverseTwin:
    """The sweeps of reverse replay as lists of rows still to do, one per environment; the environments take turns."""

    def __init__(self, twin: Twin, restart: str, respect_episodes: bool, sequential: bool) -> None:
        self.twin = twin
        self.restart = restart
        self.respect_episodes = respect_episodes
        self.sequential = sequential
        self.todo: list[list[int]] = [[] for _ in range(twin.n_envs)]
        self.turn = 0

    def on_add(self) -> None:
        stored = self.twin.rows()
        if self.restart == "on_new_data":
            self.todo = [[] for _ in self.todo]
        else:
            self.todo = [[row for row in rows if row in stored] for rows in self.todo]

    def draw(self, batch_size: int) -> list[int]:
        env = self.turn
        self.turn = (self.turn + 1) % self.twin.n_envs
        if not self.todo[env]:
            self.todo[env] = self.twin.rows()[::-1]
        size = 1 if self.sequential else batch_size
        taken = self.todo[env][:size]
        if self.respect_episodes:
            episode = self.twin.episode(env, taken[0])
            taken = [row for row in taken if row in episode]
        self.todo[env] = self.todo[env][len(taken) :]
        return [self.twin.slot(env, row) for row in taken]


def ranked(scores: NDArray[np.float64]) -> Iterator[int]:
    """Indices by falling score, equal scores by lowest index."""
    yield from sorted(range(len(scores)), key=lambda i: (-scores[i], i))
