"""Random histories of interaction, and replays of every kind to feed them to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlopt.replay import REPLAYS, Replay, ReplayBatch
from tests.replay.twin import Twin, Value

GOAL_SPACE = spaces.Dict(
    observation=spaces.Box(-np.inf, np.inf, (2,), np.float32),
    achieved_goal=spaces.Box(-np.inf, np.inf, (1,), np.float32),
    desired_goal=spaces.Box(-np.inf, np.inf, (1,), np.float32),
)
OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "float64": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (1, 36, 36), np.uint8),  # more than 1024 bytes: a matrix of its own
    "small_image": spaces.Box(0, 255, (3, 4, 4), np.uint8),
    "discrete": spaces.Discrete(1000),
    "multi_discrete": spaces.MultiDiscrete([50, 60, 70]),
    "multi_binary": spaces.MultiBinary(12),
    "dict": spaces.Dict(
        image=spaces.Box(0, 255, (1, 36, 36), np.uint8),
        vector=spaces.Box(-np.inf, np.inf, (3,), np.float32),
        place=spaces.Discrete(1000),
        flags=spaces.MultiBinary(12),
    ),
    "goal": GOAL_SPACE,
}
ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "float64": spaces.Box(-1, 1, (2,), np.float64),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(3),
}


class Add(NamedTuple):
    """The arguments of one `add`, with the kinds of end kept apart."""

    obs: Value
    next_obs: Value
    action: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]

    def to(self, replay: Replay) -> None:
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in self.truncated]
        replay.add(self.obs, self.next_obs, self.action, self.reward, self.terminated | self.truncated, infos)  # type: ignore[arg-type]


@dataclass(frozen=True)
class History:
    """What several environments did, and the size of the buffer that is to remember it."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    n_envs: int
    capacity: int
    adds: list[Add]

    @property
    def num_rows(self) -> int:
        return -(-self.capacity // self.n_envs)

    def twin(self, num_adds: int | None = None) -> Twin:
        twin = Twin(self.num_rows, self.n_envs)
        for add in self.adds[:num_adds]:
            twin.add(*add)
        return twin


def random_value(space: spaces.Space[Any], n_envs: int, rng: np.random.Generator) -> Value:
    if isinstance(space, spaces.Dict):
        return {key: random_value(part, n_envs, rng) for key, part in space.items()}  # type: ignore[misc]
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=n_envs)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(0, space.nvec, size=(n_envs, *space.shape))
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, size=(n_envs, *space.shape)).astype(np.int8)
    assert isinstance(space, spaces.Box)
    if space.dtype == np.uint8:
        return rng.integers(0, 256, size=(n_envs, *space.shape)).astype(np.uint8)
    return rng.standard_normal((n_envs, *space.shape)).astype(space.dtype)


def select(fresh: NDArray[np.bool_], new: Value, old: Value) -> Value:
    """`new` where an environment begins afresh, else `old`."""
    if isinstance(new, dict):
        assert isinstance(old, dict)
        return {key: select(fresh, new[key], old[key]) for key in new}  # type: ignore[misc]
    assert not isinstance(old, dict)
    return np.where(fresh.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def make_history(
    seed: int,
    num_adds: int,
    n_envs: int = 1,
    capacity: int = 20,
    end_share: float = 0.2,
    observations: str = "box",
    actions: str = "discrete",
    resets_from_outside: bool = True,
) -> History:
    """Random transitions; an environment ends with probability `end_share`: terminated, truncated, or reset from outside."""
    rng = np.random.default_rng(seed)
    observation_space, action_space = OBSERVATION_SPACES[observations], ACTION_SPACES[actions]
    adds = []
    obs = random_value(observation_space, n_envs, rng)
    for t in range(num_adds):
        next_obs = random_value(observation_space, n_envs, rng)
        if observations == "goal":
            assert isinstance(obs, dict)
            assert isinstance(next_obs, dict)
            # What is achieved after step t of an environment is a number that no other step has.
            next_obs["achieved_goal"] = (1000.0 * np.arange(1, n_envs + 1) + t)[:, None].astype(np.float32)
            next_obs["desired_goal"] = obs["desired_goal"]
        end = rng.random(n_envs) < end_share
        kind = rng.integers(3 if resets_from_outside else 2, size=n_envs)
        reward = rng.standard_normal(n_envs).astype(np.float32)
        action = random_value(action_space, n_envs, rng)
        adds.append(Add(obs, next_obs, action, reward, end & (kind == 0), end & (kind == 1)))  # type: ignore[arg-type]
        obs = select(end, random_value(observation_space, n_envs, rng), next_obs)
    return History(observation_space, action_space, n_envs, capacity, adds)


@st.composite
def histories(draw: st.DrawFn, observations: tuple[str, ...] = tuple(OBSERVATION_SPACES), max_adds: int = 60) -> History:
    """Histories over all spaces, 1 to 4 environments, tiny and larger capacities, wraps, and all episode lengths."""
    return make_history(
        seed=draw(st.integers(0, 2**31), label="seed"),
        num_adds=draw(st.integers(1, max_adds), label="num_adds"),
        n_envs=draw(st.integers(1, 4), label="n_envs"),
        capacity=draw(st.one_of(st.integers(1, 6), st.integers(7, 90)), label="capacity"),
        end_share=draw(st.sampled_from([0.0, 0.05, 0.2, 0.6, 1.0]), label="end_share"),
        observations=draw(st.sampled_from(observations), label="observations"),
        actions=draw(st.sampled_from(sorted(ACTION_SPACES)), label="actions"),
    )


def compute_reward(achieved: NDArray[Any], desired: NDArray[Any], infos: list[dict[str, Any]]) -> NDArray[np.float32]:
    """A dense reward that tells every pair of goals apart."""
    assert len(achieved) == len(desired) == len(infos)
    return (achieved[:, 0] - desired[:, 0]).astype(np.float32)


def make_replay(name: str, history: History, seed: int = 0, **options: Any) -> Replay:
    """A replay by its registered name, sized for a history; the rounding warning is tested elsewhere."""
    if name == "hindsight":
        options.setdefault("compute_reward", compute_reward)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return REPLAYS[name].replay_class(
            history.capacity, history.observation_space, history.action_space, "cpu", history.n_envs, seed=seed, **options
        )


def observations_for(name: str) -> tuple[str, ...]:
    """Keys of the observation spaces that a replay takes."""
    return ("goal",) if name == "hindsight" else tuple(OBSERVATION_SPACES)


def items(batch: ReplayBatch, name: str) -> Iterator[Value]:
    """The entries of a batch field, one by one, as NumPy."""
    field = getattr(batch, name)
    for i in range(len(batch.indices)):
        yield {key: part[i].numpy() for key, part in field.items()} if isinstance(field, dict) else field[i].numpy()


def equal_bits(given: Value, expected: Value) -> bool:
    """Equal to the bit, up to the shape that Stable-Baselines3 gives scalars."""
    if isinstance(expected, dict):
        assert isinstance(given, dict)
        return given.keys() == expected.keys() and all(equal_bits(given[key], expected[key]) for key in expected)
    assert not isinstance(given, dict)
    return given.dtype == expected.dtype and given.tobytes() == expected.tobytes()


def assert_batches_equal(left: ReplayBatch, right: ReplayBatch) -> None:
    """Every field equal to the bit."""
    for name, one, other in zip(ReplayBatch._fields, left, right, strict=True):
        if isinstance(one, dict):
            assert isinstance(other, dict)
            for key in one:
                assert th.equal(one[key], other[key]), f"{name}[{key!r}]"
        elif one is None:
            assert other is None, name
        else:
            assert np.array_equal(np.asarray(one), np.asarray(other)), name


def assert_batch_of_twin(batch: ReplayBatch, twin: Twin, n_steps: int = 1, gamma: float = 0.9) -> None:
    """Everything in a batch of a replay that does not relabel is what the twin remembers of its indices.

    Observations, actions and dones agree to the bit; so do one-step rewards. n-step rewards and discounts are float32
    arithmetic, so they agree to 1e-6 of the largest sum that can occur here.
    """
    num = len(batch.indices)
    assert batch.indices.dtype == np.int64
    assert batch.dones.shape == batch.rewards.shape == batch.weights.shape == (num, 1)
    assert batch.dones.dtype == batch.rewards.dtype == batch.weights.dtype == th.float32
    assert len(batch.actions) == num
    fields = (items(batch, name) for name in ("observations", "next_observations", "actions"))
    for i, (slot, obs, next_obs, action) in enumerate(zip(batch.indices.tolist(), *fields, strict=True)):
        step = twin.at(slot)
        expected = twin.n_step_return(slot, n_steps, gamma)
        assert equal_bits(obs, step.obs)
        assert equal_bits(next_obs, expected.last.next_obs)
        assert np.array_equal(action.reshape(-1), np.asarray(step.action, action.dtype).reshape(-1))
        assert batch.dones[i, 0].item() == float(expected.last.terminated)
        if n_steps == 1:
            assert batch.discounts is None
            assert batch.rewards[i, 0].item() == float(step.reward)
        else:
            assert batch.discounts is not None
            np.testing.assert_allclose(batch.rewards[i, 0].item(), expected.reward, rtol=1e-6, atol=2e-6)
            np.testing.assert_allclose(batch.discounts[i, 0].item(), expected.discount, rtol=1e-6)
