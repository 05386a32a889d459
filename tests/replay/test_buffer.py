import dataclasses
import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from rlopt.replay import REPLAYS, Replay, ReplayBatch, UniformReplay
from tests.replay.histories import (
    History,
    assert_batch_of_twin,
    assert_batches_equal,
    histories,
    make_history,
    make_replay,
    observations_for,
)

BOX = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(2)
BATCH_FIELDS = ("observations", "actions", "next_observations", "dones", "rewards")


def filled(name: str = "uniform", num_adds: int = 30, **options: Any) -> Replay:
    history = make_history(0, num_adds=num_adds, capacity=25, observations=observations_for(name)[0])
    replay = make_replay(name, history, **options)
    for add in history.adds:
        add.to(replay)
    return replay


def surprise(batch: ReplayBatch) -> th.Tensor:
    return batch.rewards


# ---------------------------------------------------------------------- batches against the twin


@pytest.mark.parametrize("layout", ["plain", "shared"])
@pytest.mark.parametrize("name", sorted(set(REPLAYS) - {"hindsight"}))
@given(history=histories(max_adds=40), n_steps=st.integers(1, 5), data=st.data())
def test_every_sampled_batch_is_what_the_twin_remembers(
    name: str, layout: str, history: History, n_steps: int, data: st.DataObject
) -> None:
    gamma = data.draw(st.sampled_from([0.5, 0.9, 1.0]), label="gamma")
    options: dict[str, Any] = {"n_steps": n_steps, "gamma": gamma, "layout": layout}
    if name in ("reverse", "introspective"):
        options["respect_episodes"] = data.draw(st.booleans(), label="respect_episodes")
    replay, twin = make_replay(name, history, **options), history.twin(0)
    assert replay.capacity == history.num_rows * history.n_envs
    for t, add in enumerate(history.adds):
        add.to(replay)
        twin.add(*add)
        if t % 5 != 0 and t != len(history.adds) - 1:
            continue
        replay.begin_phase(4, surprise, progress=0.5)
        for batch_size in (1, 7):
            batch = replay.sample(batch_size)
            assert_batch_of_twin(batch, twin, n_steps, gamma)
            assert 1 <= len(batch.indices) <= batch_size
            replay.update(batch.indices, batch.rewards)
    assert len(replay) == len(twin.places())
    assert replay.full == (twin.num_added >= history.num_rows)
    assert replay.size() == len(twin.rows())


@given(histories(max_adds=40), st.integers(1, 5), st.sampled_from(sorted(REPLAYS)))
def test_layouts_give_equal_batches_with_equal_seeds(history: History, n_steps: int, name: str) -> None:
    if name == "hindsight":
        history = make_history(n_steps, len(history.adds), history.n_envs, history.capacity, 0.3, observations="goal")
    options: dict[str, Any] = {"n_steps": n_steps, "gamma": 0.9}
    plain, shared = make_replay(name, history, **options), make_replay(name, history, layout="shared", **options)
    for t, add in enumerate(history.adds):
        add.to(plain)
        add.to(shared)
        if t % 4 == 0:
            for replay in (plain, shared):
                replay.begin_phase(2, surprise)
            for _ in range(2):
                batch, other = plain.sample(6), shared.sample(6)
                assert_batches_equal(batch, other)
                for replay in (plain, shared):
                    replay.update(batch.indices, batch.rewards)


def test_n_step_return_by_hand() -> None:
    replay = UniformReplay(10, BOX, DISCRETE, "cpu", n_steps=3, gamma=0.5)
    #         0 -> 1 -> 2 -> 3 truncated | 10 -> 11 terminated | 20 -> 21 goes on
    ends = {2: "cut", 4: "end"}
    for t, start in enumerate([0, 1, 2, 10, 11, 20]):
        obs = np.full((1, 3), start, np.float32)
        info = {"TimeLimit.truncated": ends.get(t) == "cut"}
        replay.add(obs, obs + 1, np.array([0]), np.array([2.0**t]), np.array([t in ends]), [info])
    batch = replay._get_samples(np.arange(6))
    assert batch.rewards.flatten().tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16, 32]
    assert batch.discounts is not None
    assert batch.discounts.flatten().tolist() == [0.125, 0.25, 0.5, 0.25, 0.5, 0.5]
    assert batch.dones.flatten().tolist() == [0, 0, 0, 1, 1, 0]
    assert isinstance(batch.next_observations, th.Tensor)
    assert batch.next_observations[:, 0].tolist() == [3, 3, 3, 12, 12, 21]


def test_time_limits_count_as_ends_only_when_they_are_not_handled() -> None:
    for handled, expected in ((True, 0.0), (False, 1.0)):
        replay = UniformReplay(4, BOX, DISCRETE, "cpu", handle_timeout_termination=handled)
        obs = np.zeros((1, 3), np.float32)
        replay.add(obs, obs, np.array([0]), np.array([0.0]), np.array([True]), [{"TimeLimit.truncated": True}])
        assert replay.sample(1).dones.item() == expected


def test_uniform_draws_are_uniform() -> None:
    replay = filled(num_adds=40)
    counts = np.bincount(np.concatenate([replay.sample(1000).indices for _ in range(50)]), minlength=25)
    expected = 50_000 / 25
    assert ((counts - expected) ** 2 / expected).sum() < 51.2  # 99.9 % quantile of chi-square with 24 degrees of freedom


def test_weights_are_ones_without_importance_sampling() -> None:
    for name in sorted(set(REPLAYS) - {"prioritized"}):
        assert filled(name).sample(5).weights.flatten().tolist() == [1.0] * 5


def test_same_seed_same_draws_and_another_seed_others() -> None:
    first, second, other = filled(seed=3), filled(seed=3), filled(seed=4)
    assert_batches_equal(first.sample(20), second.sample(20))
    assert not np.array_equal(first.sample(20).indices, other.sample(20).indices)


def test_without_a_seed_the_global_generator_is_read_but_not_advanced() -> None:
    draws = []
    saved = np.random.get_state()  # noqa: NPY002
    try:
        for seed in (5, 5, 6):
            np.random.seed(seed)  # noqa: NPY002
            replay = filled(seed=None)
            draws.append(replay.sample(20).indices.tolist())
            after = np.random.random()  # noqa: NPY002
            np.random.seed(seed)  # noqa: NPY002
            assert after == np.random.random()  # noqa: NPY002
    finally:
        np.random.set_state(saved)  # noqa: NPY002
    assert draws[0] == draws[1] != draws[2]


def test_reset_forgets_the_transitions() -> None:
    for name in sorted(REPLAYS):
        history = make_history(0, num_adds=30, capacity=25, observations=observations_for(name)[0])
        used, twin = make_replay(name, history), history.twin(0)
        for add in history.adds:
            add.to(used)
        used.begin_phase(3, surprise)
        used.sample(4)
        used.reset()
        assert (len(used), used.pos, used.full) == (0, 0, False)
        with pytest.raises(ValueError, match="the replay buffer is empty"):
            used.sample(1)
        for add in history.adds[:4]:
            add.to(used)
            twin.add(*add)
        used.begin_phase(3, surprise)
        for _ in range(3):
            assert set(used.sample(6).indices.tolist()) <= {0, 1, 2, 3}
        if name != "hindsight":
            assert_batch_of_twin(used.sample(6), twin)


def test_an_empty_buffer_is_true() -> None:
    assert bool(UniformReplay(4, BOX, DISCRETE, "cpu"))


def test_counters_tell_uniform_from_chosen_batches() -> None:
    replay = filled("introspective", mix=0.25)
    replay.begin_phase(8, surprise)
    for _ in range(8):
        replay.sample(3)
    assert (replay.num_chosen_batches, replay.num_uniform_batches) == (6, 2)


# ---------------------------------------------------------------------- against Stable-Baselines3


def stored_equally(ours: Replay, theirs: ReplayBuffer) -> None:
    for name in ("actions", "rewards", "dones", "timeouts"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert mine.dtype == other.dtype, name
        assert np.array_equal(mine, other), name
    assert (ours.pos, ours.full, ours.buffer_size) == (theirs.pos, theirs.full, theirs.buffer_size)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [("box", "discrete"), ("float64", "float64"), ("image", "box"), ("discrete", "multi_discrete"), ("dict", "multi_binary")],
)
def test_same_slots_give_the_same_batch_as_stable_baselines3_in_every_bit(observations: str, actions: str) -> None:
    history = make_history(0, num_adds=70, capacity=50, observations=observations, actions=actions)
    theirs_class: Any = DictReplayBuffer if observations == "dict" else ReplayBuffer
    theirs = theirs_class(history.capacity, history.observation_space, history.action_space, "cpu")
    ours = make_replay("uniform", history)
    for t, add in enumerate(history.adds):
        add.to(ours)
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in add.truncated]
        theirs.add(add.obs, add.next_obs, add.action, add.reward, add.terminated | add.truncated, infos)
        if t % 10 == 0:
            batch = ours.sample(16)
            reference = theirs._get_samples(batch.indices)  # one environment: a slot is a row
            for field in BATCH_FIELDS:
                mine, other = getattr(batch, field), getattr(reference, field)
                mine, other = (mine, other) if isinstance(mine, dict) else ({"": mine}, {"": other})
                assert mine.keys() == other.keys()
                for key in mine:
                    assert mine[key].dtype == other[key].dtype, field
                    assert th.equal(mine[key], other[key]), field
            assert reference.discounts is None
            assert batch.discounts is None
    stored_equally(ours, theirs)


def test_storage_of_several_environments_equals_stable_baselines3() -> None:
    history = make_history(1, num_adds=40, n_envs=3, capacity=75)
    ours = make_replay("uniform", history)
    theirs = ReplayBuffer(75, history.observation_space, history.action_space, "cpu", n_envs=3)
    for add in history.adds:
        add.to(ours)
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in add.truncated]
        theirs.add(add.obs, add.next_obs, add.action, add.reward, add.terminated | add.truncated, infos)
    stored_equally(ours, theirs)
    assert np.array_equal(ours.observations, theirs.observations)
    assert np.array_equal(ours.next_observations, theirs.next_observations)


@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(1, 80), st.sampled_from([0.0, 0.1, 0.5]))
def test_n_step_batches_equal_stable_baselines3(seed: int, n_steps: int, num_adds: int, end_share: float) -> None:
    history = make_history(seed, num_adds, capacity=40, end_share=end_share, resets_from_outside=False)
    ours = make_replay("uniform", history, n_steps=n_steps, gamma=0.97)
    theirs = NStepReplayBuffer(
        history.capacity, history.observation_space, history.action_space, "cpu", n_steps=n_steps, gamma=0.97
    )
    for add in history.adds:
        add.to(ours)
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in add.truncated]
        theirs.add(add.obs, add.next_obs, add.action, add.reward, add.terminated | add.truncated, infos)
    slots = np.arange(len(ours))
    batch, reference = ours._get_samples(slots), theirs._get_samples(slots)
    for field in BATCH_FIELDS[:4]:
        assert th.equal(getattr(batch, field), getattr(reference, field)), field
    assert batch.discounts is not None
    assert reference.discounts is not None
    np.testing.assert_allclose(batch.rewards, reference.rewards, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(batch.discounts, reference.discounts, rtol=1e-6)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_observations_and_rewards_are_normalised_as_in_stable_baselines3(n_steps: int) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0), clip_reward=1.5)
    env.reset()
    for _ in range(30):
        env.step(np.array([[0.3]]))
    space, action_space = env.observation_space, env.action_space
    ours = UniformReplay(50, space, action_space, "cpu", n_steps=n_steps, gamma=0.9)
    theirs = NStepReplayBuffer(50, space, action_space, "cpu", n_steps=n_steps, gamma=0.9)
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((1, 3)).astype(np.float32)
    for t in range(50):
        next_obs = rng.standard_normal((1, 3)).astype(np.float32)
        done = np.array([t % 9 == 8])
        for buffer in (ours, theirs):
            buffer.add(obs, next_obs, np.zeros((1, 1), np.float32), rng.standard_normal(1) * 0 + t, done, [{}])
        obs = next_obs
    batch, reference = ours._get_samples(np.arange(50), env), theirs._get_samples(np.arange(50), env)
    assert th.equal(batch.observations, reference.observations)  # type: ignore[arg-type]
    assert th.equal(batch.next_observations, reference.next_observations)  # type: ignore[arg-type]
    np.testing.assert_allclose(batch.rewards, reference.rewards, rtol=1e-6)


# ---------------------------------------------------------------------- phases and updates


def test_a_long_phase_with_td_errors_does_not_warn() -> None:
    for name in ("introspective", "greedy"):
        replay = filled(name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(2):
                replay.begin_phase(300, surprise)
                for _ in range(300):
                    replay.sample(2)


@pytest.mark.parametrize("name", ["introspective", "greedy", "prioritized"])
def test_a_replay_that_gets_no_td_errors_says_so_once(name: str) -> None:
    replay = filled(name)
    for _ in range(99):
        replay.sample(2)
    with pytest.warns(UserWarning, match="got no TD errors in 100 draws"):
        replay.sample(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(300):
            replay.sample(2)


def test_updates_keep_prioritized_replay_silent() -> None:
    replay = filled("prioritized")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            batch = replay.sample(2)
            replay.update(batch.indices, batch.rewards)


def test_td_errors_of_any_kind_and_sign_are_taken() -> None:
    values = np.array([-3.0, 2.0])
    for errors in (values, values[:, None], th.tensor(values), th.tensor(values[:, None], requires_grad=True)):
        replay = filled("prioritized", alpha=1.0, epsilon=1e-12)
        replay.update(np.array([4, 7]), errors)
        assert replay.sampler.tree.get(np.array([4, 7])).tolist() == pytest.approx([3.0, 2.0])  # type: ignore[attr-defined]


@pytest.mark.parametrize("errors", [np.array([1.0]), np.ones((4, 2)), np.float64(1.0), th.ones(3)])
def test_update_without_one_td_error_per_transition_is_refused(errors: Any) -> None:
    replay = filled("prioritized")
    before = replay.sampler.state_dict()["priorities"]
    with pytest.raises(ValueError, match=r"td_errors must be one number per transition, shape \(4,\) or \(4, 1\), got"):
        replay.update(np.arange(4), errors)
    assert np.array_equal(replay.sampler.state_dict()["priorities"], before)


def test_td_error_function_without_one_number_per_transition_is_refused() -> None:
    replay = filled("introspective")
    with pytest.raises(ValueError, match="td_errors must be one number per transition"):
        replay.begin_phase(4, lambda batch: batch.rewards.mean())


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize("name", sorted(REPLAYS))
def test_options_of_the_registered_config_are_the_keywords_of_the_replay_with_the_same_defaults(name: str) -> None:
    entry = REPLAYS[name]
    config = entry.config_class()
    history = make_history(0, num_adds=1, observations=observations_for(name)[0])
    make_replay(name, history, **dataclasses.asdict(config))
    parameters = inspect.signature(entry.replay_class.__init__).parameters
    for field in dataclasses.fields(config):
        assert parameters[field.name].default == getattr(config, field.name), field.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = 1


@pytest.mark.parametrize("layout", ["plain", "shared"])
def test_scalar_observations_and_a_discrete_space_that_does_not_start_at_zero(layout: Any) -> None:
    for space, values in (
        (spaces.Box(-9, 9, (), np.float32), np.arange(4, dtype=np.float32)),
        (spaces.Discrete(6, start=-2), np.arange(-2, 2)),
    ):
        replay = UniformReplay(4, space, DISCRETE, "cpu", n_envs=2, layout=layout)
        reference = ReplayBuffer(4, space, DISCRETE, "cpu", n_envs=2)
        for buffer in (replay, reference):
            buffer.add(values[:2], values[2:], np.array([0, 1]), np.zeros(2), np.zeros(2, bool), [{}, {}])
        batch = replay._get_samples(np.arange(2))
        assert batch.observations.numpy().tolist() == reference.observations[0].tolist()  # type: ignore[union-attr]
        assert batch.next_observations.numpy().tolist() == reference.next_observations[0].tolist()  # type: ignore[union-attr]


# ---------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("uniform", {"n_steps": 0}, "n_steps must be a whole number of at least 1, got 0."),
        ("uniform", {"n_steps": 1.5, "gamma": 0.9}, "n_steps must be a whole number of at least 1, got 1.5."),
        ("uniform", {"n_steps": 2}, "gamma must be given for n_steps=2"),
        ("uniform", {"n_steps": 2, "gamma": 1.5}, r"gamma must be in \(0, 1\], got 1.5."),
        ("uniform", {"gamma": 0.0}, r"gamma must be in \(0, 1\], got 0.0."),
        ("uniform", {"layout": "half"}, "layout must be 'plain' or 'shared', got 'half'."),
        ("uniform", {"layout": "half", "optimize_memory_usage": True}, "layout must be 'plain' or 'shared', got 'half'."),
        ("emphasize_recent", {"eta": 0.0}, r"eta must be in \(0, 1\], got 0.0."),
        ("emphasize_recent", {"eta_final": 1.1}, r"eta_final must be in \(0, 1\], got 1.1."),
        ("emphasize_recent", {"min_range": 0}, "min_range must be at least 1, got 0."),
        ("prioritized", {"priority": "best"}, "priority must be 'proportional' or 'rank', got 'best'."),
        ("prioritized", {"normalize": "none"}, "normalize must be 'memory' or 'batch', got 'none'."),
        ("prioritized", {"alpha": -0.1}, "alpha must be at least 0, got -0.1."),
        ("prioritized", {"beta": 1.1}, r"beta must be in \[0, 1\], got 1.1."),
        ("prioritized", {"beta_final": -1.0}, r"beta_final must be in \[0, 1\], got -1.0."),
        ("prioritized", {"epsilon": 0.0}, "epsilon must be > 0, got 0.0."),
        ("prioritized", {"clip_td_error": 0.0}, "clip_td_error must be > 0, or None not to clip, got 0.0."),
        ("prioritized", {"priority": "rank", "epsilon": 0.1}, "epsilon has no effect with priority='rank'; drop it."),
        ("hindsight", {"n_sampled_goal": -1}, "n_sampled_goal must be at least 0, got -1."),
        ("hindsight", {"goal_selection_strategy": "next"}, "goal_selection_strategy must be 'future', .* got 'next'."),
        ("reverse", {"mix": 1.5}, r"mix must be in \[0, 1\], got 1.5."),
        ("reverse", {"restart": "never"}, "restart must be 'on_new_data' or 'on_exhausted', got 'never'."),
        ("reverse", {"sequential": True, "respect_episodes": True}, "respect_episodes has no effect with sequential=True"),
        ("introspective", {"mix": -0.5}, r"mix must be in \[0, 1\], got -0.5."),
        ("introspective", {"direction": "up"}, "direction must be one of back, forward, centre, random, got 'up'."),
        ("introspective", {"min_separation": -1}, "min_separation must be at least 0, got -1."),
        ("introspective", {"refresh_subset": 0}, "refresh_subset must be at least 1, or None .*, got 0."),
        ("introspective", {"rescore_after": 0}, "rescore_after must be at least 1, got 0."),
        ("introspective", {"rescore_after": 2, "refresh_subset": 5}, "refresh_subset has no effect with rescore_after > 1"),
        ("introspective", {"interleave": True, "respect_episodes": True}, "respect_episodes=True needs interleave=False"),
    ],
)
def test_wrong_option_is_refused_with_name_allowed_values_and_what_came(name: str, options: dict[str, Any], message: str) -> None:
    history = make_history(0, num_adds=1, observations=observations_for(name)[0])
    with pytest.raises(ValueError, match=message):
        make_replay(name, history, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, BOX, DISCRETE), "buffer_size must be at least 1, got 0."),
        ((-5, BOX, DISCRETE), "buffer_size must be at least 1, got -5."),
        ((5, BOX, DISCRETE, "cpu", 0), "n_envs must be at least 1, got 0."),
    ],
)
def test_wrong_size_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniformReplay(*arguments)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Text(3), "observation_space"),
        (spaces.Tuple([BOX, BOX]), "observation_space"),
        (spaces.Dict(inner=spaces.Dict(box=BOX)), "observation_space"),
        (spaces.Sequence(BOX), "observation_space"),
    ],
)
def test_unsupported_observation_space_is_refused(space: spaces.Space[Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.* must be a Box, Discrete, MultiDiscrete or MultiBinary space, got"):
        UniformReplay(5, space, DISCRETE, "cpu")


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Tuple([BOX, BOX]), spaces.Dict(box=BOX)])
def test_unsupported_action_space_is_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match="action_space must be a Box, Discrete, MultiDiscrete or MultiBinary space, got"):
        UniformReplay(5, BOX, space, "cpu")


def test_capacity_is_rounded_up_to_full_rows_and_says_so() -> None:
    with pytest.warns(UserWarning, match=r"buffer_size=10 is not a multiple of n_envs=4: rounded up to 12\.") as caught:
        replay = UniformReplay(10, BOX, DISCRETE, "cpu", n_envs=4)
    assert replay.capacity == 12
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert UniformReplay(12, BOX, DISCRETE, "cpu", n_envs=4).capacity == 12


def test_calls_out_of_order_or_out_of_range_are_refused() -> None:
    replay = UniformReplay(5, BOX, DISCRETE, "cpu")
    with pytest.raises(ValueError, match=r"sample: the replay buffer is empty; add transitions first"):
        replay.sample(3)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1, got 0\."):
        replay.sample(0)
    with pytest.raises(ValueError, match=r"gradient_steps must be at least 1, got 0\."):
        replay.begin_phase(0)


def test_next_observations_of_the_shared_layout_say_where_to_look() -> None:
    replay = filled(layout="shared")
    with pytest.raises(AttributeError, match=r"use storage\.next_observation"):
        _ = replay.next_observations


def test_optimize_memory_usage_means_the_shared_layout() -> None:
    replay = UniformReplay(5, BOX, DISCRETE, "cpu", optimize_memory_usage=True, handle_timeout_termination=True)
    assert replay.storage.layout == "shared"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_td_errors_that_are_not_finite_are_refused(bad: float) -> None:
    replay = make_replay("prioritized", make_history(0, 9))
    for add in make_history(0, 9).adds:
        add.to(replay)
    with pytest.raises(ValueError, match="td_errors must be finite, got 1 that are not: learning diverged"):
        replay.update(np.array([0, 1]), np.array([1.0, bad]))


def test_progress_outside_its_range_is_refused() -> None:
    replay = make_replay("uniform", make_history(0, 9))
    with pytest.raises(ValueError, match=r"progress must be in \[0, 1\], got 1.5"):
        replay.begin_phase(4, progress=1.5)
