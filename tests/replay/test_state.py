"""A replay that takes over a state goes on exactly as the one that gave it."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from rlopt.files.state_file import write_state
from rlopt.replay import REPLAYS, PrioritizedReplay, Replay, UniformReplay
from tests.replay.histories import History, assert_batches_equal, make_history, make_replay, observations_for

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in sorted(REPLAYS)),
    ("prioritized", {"priority": "rank"}),
    ("reverse", {"mix": 0.3, "restart": "on_exhausted"}),
    ("reverse", {"sequential": True}),
    ("introspective", {"mix": 0.4, "refresh_subset": 9, "min_separation": 2}),
    ("introspective", {"sequential": True, "direction": "random"}),
    ("introspective", {"mix": 0.4, "rescore_after": 3}),
    ("hindsight", {"goal_selection_strategy": "episode"}),
]
IDS = ["-".join([name, *map(str, options)]) for name, options in CASES]


def take_state(replay: Replay, fresh: Callable[[], Replay], folder: Path) -> Replay:
    other = fresh()
    other.load_state_dict(replay.state_dict())
    return other


def take_file(replay: Replay, fresh: Callable[[], Replay], folder: Path) -> Replay:
    replay.save(folder / "replay")
    other = fresh()
    other.load(folder / "replay")
    return other


def take_used(replay: Replay, fresh: Callable[[], Replay], folder: Path) -> Replay:
    """Into a buffer that has held other data."""
    other = fresh()
    history = make_history(99, 70, 2, 60, 0.7, observations="goal" if type(replay).__name__ == "HindsightReplay" else "dict")
    for add in history.adds:
        add.to(other)
    other.begin_phase(5, lambda batch: batch.rewards, progress=0.9)
    other.sample(3)
    other.load_state_dict(replay.state_dict())
    return other


def take_copy(replay: Replay, fresh: Callable[[], Replay], folder: Path) -> Replay:
    return copy.deepcopy(replay)


def take_pickle(replay: Replay, fresh: Callable[[], Replay], folder: Path) -> Replay:
    other = pickle.loads(pickle.dumps(replay))
    assert isinstance(other, Replay)
    return other


def go_on(replay: Replay, history: History, start: int) -> list[Any]:
    """Samples, updates, adds, phases: everything an agent does, and what came of it."""
    out = [replay.sample(5) for _ in range(3)]  # the rest of the phase
    for t, add in enumerate(history.adds[start:]):
        add.to(replay)
        if t % 8 == 0:
            replay.begin_phase(4, lambda batch: batch.rewards, progress=0.5 + t / 500)
            for _ in range(4):
                batch = replay.sample(6)
                replay.update(batch.indices, batch.rewards * (1.0 + t))
                out.append(batch)
        elif t % 3 == 0:
            out.append(replay.sample(2))
    return out


@pytest.mark.parametrize("take", [take_state, take_file, take_used, take_copy, take_pickle])
@pytest.mark.parametrize(("layout", "num_adds"), [("shared", 11), ("plain", 75), ("shared", 75)])  # filling; wrapped
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_replay_goes_on_exactly_in_the_middle_of_a_phase(
    tmp_path: Path, name: str, options: dict[str, Any], layout: str, take: Any, num_adds: int
) -> None:
    observations = "goal" if name == "hindsight" else "dict"
    history = make_history(5, num_adds + 50, n_envs=2, capacity=60, end_share=0.3, observations=observations)

    def fresh(seed: int = 1) -> Replay:
        return make_replay(name, history, seed=seed, layout=layout, n_steps=3, gamma=0.9, **options)

    replay = fresh(seed=0)
    for add in history.adds[:num_adds]:
        add.to(replay)
    replay.begin_phase(7, lambda batch: batch.rewards, progress=0.25)
    for _ in range(3):
        batch = replay.sample(6)
        replay.update(batch.indices, batch.rewards)
    other = take(replay, fresh, tmp_path)
    assert (len(other), other.pos, other.full) == (len(replay), replay.pos, replay.full)
    expected, given = go_on(replay, history, num_adds), go_on(other, history, num_adds)
    for left, right in zip(expected, given, strict=True):
        assert_batches_equal(left, right)
    assert (other.num_uniform_batches, other.num_chosen_batches) == (replay.num_uniform_batches, replay.num_chosen_batches)


@pytest.mark.parametrize("name", sorted(REPLAYS))
def test_an_empty_replay_can_be_saved(tmp_path: Path, name: str) -> None:
    history = make_history(0, 20, observations=observations_for(name)[0])
    replay, other = make_replay(name, history), make_replay(name, history, seed=1)
    replay.save(tmp_path / "replay")
    other.load(tmp_path / "replay")
    assert len(other) == 0
    for add in history.adds:
        add.to(replay)
        add.to(other)
    assert_batches_equal(replay.sample(9), other.sample(9))


def test_a_state_is_not_changed_by_what_the_buffer_does_later() -> None:
    for name, options in CASES:
        history = make_history(0, 60, observations=observations_for(name)[0])
        replay = make_replay(name, history, layout="shared", **options)
        for add in history.adds[:30]:
            add.to(replay)
        replay.begin_phase(6, lambda batch: batch.rewards)
        replay.sample(4)
        state = replay.state_dict()
        before = pickle.dumps(state)
        go_on(replay, history, 30)
        assert pickle.dumps(state) == before


def test_no_member_of_the_file_needs_pickle(tmp_path: Path) -> None:
    for name, options in CASES:
        history = make_history(0, 30, observations=observations_for(name)[-1])
        replay = make_replay(name, history, layout="shared", **options)
        for add in history.adds:
            add.to(replay)
        replay.save(tmp_path / "replay")
        with np.load(tmp_path / "replay", allow_pickle=False) as file:
            assert "json" in file.files
            for member in file.files:
                assert file[member].dtype != object


def test_memory_mapped_and_memory_buffers_take_each_others_state(tmp_path: Path) -> None:
    history = make_history(0, 130, n_envs=2, capacity=100, end_share=0.8)
    for first, second in ((tmp_path, None), (None, tmp_path)):
        replay = make_replay("uniform", history, layout="shared", memmap_path=first)
        other = make_replay("uniform", history, layout="shared", memmap_path=second, seed=9)
        for add in history.adds[:90]:
            add.to(replay)
        other.load_state_dict(replay.state_dict())
        for add in history.adds[90:]:
            add.to(replay)
            add.to(other)
        assert_batches_equal(replay.sample(64), other.sample(64))


def box(size: int) -> spaces.Box:
    return spaces.Box(-1, 1, (size,), np.float32)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: UniformReplay(12, box(3), spaces.Discrete(2), "cpu"), "capacity=10, this one 12"),
        (lambda: UniformReplay(10, box(3), spaces.Discrete(2), "cpu", n_envs=2), "n_envs=1, this one 2"),
        (lambda: UniformReplay(10, box(4), spaces.Discrete(2), "cpu"), "observation_space="),
        (lambda: UniformReplay(10, box(3), spaces.Discrete(3), "cpu"), "action_space="),
        (lambda: UniformReplay(10, box(3), spaces.Discrete(2), "cpu", layout="shared"), "layout='plain', this one 'shared'"),
        (lambda: UniformReplay(10, box(3), spaces.Discrete(2), "cpu", n_steps=2, gamma=0.9), "n_steps=1, this one 2"),
        (lambda: PrioritizedReplay(10, box(3), spaces.Discrete(2), "cpu"), "replay='UniformReplay', this one 'Prior"),
    ],
)
def test_state_of_a_buffer_with_other_options_is_refused_and_changes_nothing(
    tmp_path: Path, other: Callable[[], Replay], message: str
) -> None:
    replay = UniformReplay(10, box(3), spaces.Discrete(2), "cpu")
    obs = np.zeros((1, 3), np.float32)
    replay.add(obs, obs, np.array([0]), np.array([0.0]), np.array([False]), [{}])
    replay.save(tmp_path / "replay")
    with pytest.raises(ValueError, match=f"The saved replay buffer has {message}.*build it with the same options"):
        (changed := other()).load(tmp_path / "replay")
    assert len(other()) == 0
    del changed


@pytest.mark.parametrize(
    ("saved", "loading"),
    [({"n_steps": 2, "gamma": 0.9}, {"n_steps": 2, "gamma": 0.8}), ({"priority": "rank"}, {}), ({}, {"priority": "rank"})],
)
def test_state_with_another_discount_or_priority_is_refused(saved: dict[str, Any], loading: dict[str, Any]) -> None:
    history = make_history(0, 5)
    replay, other = make_replay("prioritized", history, **saved), make_replay("prioritized", history, **loading)
    for add in history.adds:
        add.to(replay)
    with pytest.raises(ValueError, match="build it with the same options"):
        other.load_state_dict(replay.state_dict())
    assert len(other) == 0


def test_missing_damaged_and_foreign_files_are_refused_and_change_nothing(tmp_path: Path) -> None:
    history = make_history(0, 30)
    replay = make_replay("uniform", history)
    for add in history.adds[:10]:
        add.to(replay)
    replay.save(tmp_path / "good")
    whole = (tmp_path / "good").read_bytes()
    (tmp_path / "truncated").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "damaged").write_bytes(whole[:300] + bytes(40) + whole[340:])
    (tmp_path / "pickle").write_bytes(pickle.dumps(replay))
    write_state({"weights": np.zeros(3)}, tmp_path / "foreign")
    expected = copy.deepcopy(replay).sample(8)
    for name in ("missing", "truncated", "damaged", "pickle", "foreign"):
        with pytest.raises(ValueError, match=r"does not exist|is not a state file|not the state of a replay buffer"):
            replay.load(tmp_path / name)
    assert_batches_equal(replay.sample(8), expected)


def test_saved_state_does_not_fit_a_replay_of_other_options(tmp_path: Path) -> None:
    history = make_history(0, 9)
    path = tmp_path / "replay.npz"
    make_replay("prioritized", history, alpha=0.1).save(path)
    with pytest.raises(ValueError, match=r"has options=.*'alpha': 0.1.*build it with the same options"):
        make_replay("prioritized", history, alpha=0.9).load(path)
    assert path.stat().st_mode & 0o777 == 0o644


def test_state_from_before_there_was_an_option_fits_its_default_only() -> None:
    history = make_history(0, 9)
    state = make_replay("introspective", history).state_dict()
    del state["signature"]["options"]["rescore_after"]
    make_replay("introspective", history).load_state_dict(state)
    with pytest.raises(ValueError, match="build it with the same options"):
        make_replay("introspective", history, rescore_after=2).load_state_dict(state)
