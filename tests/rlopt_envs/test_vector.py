"""The vectorised environments of dynamical systems against their single ones and against Gymnasium's SyncVectorEnv."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import rlopt_envs  # noqa: F401  (registers)
from rlopt.agents import TD3
from rlopt.agents.vector_env import GymnasiumVecEnv
from rlopt_envs import LQGVectorEnv, LQRVectorEnv

LIMIT = 5
TASKS: list[tuple[str, dict[str, Any]]] = [
    ("rlopt/LinearSystem-v0", {"initial_covariance": "stationary"}),
    ("rlopt/LinearSystem-v0", {"num_states": 2, "state_bounds": 0.8, "B": [[1.0], [0.5]]}),  # terminates at random times
    ("rlopt/NonlinearSystem-v0", {"num_states": 3, "state_bounds": [2.0, 0.5, 2.0], "link": "tanh"}),
    ("rlopt/LQR-v0", {}),
    ("rlopt/LQR-v0", {"horizon": 4}),
    ("rlopt/LQG-v0", {"system": "aircraft_longitudinal"}),
    ("rlopt/LQG-v0", {"horizon": 4}),
]
MODES = list(AutoresetMode)


def make_native(env_id: str, num_envs: int, mode: AutoresetMode, options: dict[str, Any]) -> Any:
    options = {**options, "autoreset_mode": mode, "max_episode_steps": LIMIT}
    return gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **options)


def make_sync(env_id: str, num_envs: int, mode: AutoresetMode, options: dict[str, Any]) -> Any:
    return SyncVectorEnv([lambda: gym.make(env_id, max_episode_steps=LIMIT, **options)] * num_envs, autoreset_mode=mode)


def assert_equal_infos(native: dict[str, Any], sync: dict[str, Any], num_envs: int) -> None:
    """All that SyncVectorEnv says the native one says too, and of other copies it says nothing."""
    assert set(sync) <= set(native)
    for key in native:
        if key.startswith("_"):
            np.testing.assert_array_equal(native[key], sync.get(key, np.zeros(num_envs, bool)), err_msg=key)
        elif isinstance(native[key], dict):
            assert_equal_infos(native[key], sync[key], num_envs)
        else:
            mask = native[f"_{key}"]
            assert len(native[key]) == num_envs
            for i in np.flatnonzero(mask):
                np.testing.assert_allclose(native[key][i], sync[key][i], rtol=1e-12, atol=1e-14, err_msg=key)


def step_both(native: Any, sync: Any, actions: Any) -> tuple[Any, Any]:
    one, other = native.step(actions), sync.step(actions)
    for left, right in zip(one[:4], other[:4], strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-14)
    assert_equal_infos(one[4], other[4], native.num_envs)
    return one, other


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("env_id", "options"), TASKS)
def test_one_copy_equals_the_single_environment_with_the_same_seed(
    env_id: str, options: dict[str, Any], mode: AutoresetMode
) -> None:
    native, sync = make_native(env_id, 1, mode, options), make_sync(env_id, 1, mode, options)
    assert native.metadata["autoreset_mode"] is mode
    (first, infos), (sync_first, sync_infos) = native.reset(seed=7), sync.reset(seed=7)
    np.testing.assert_allclose(first, sync_first, rtol=1e-12)
    assert_equal_infos(infos, sync_infos, 1)
    native.action_space.seed(0)
    num_ends = 0
    for _ in range(40):
        one, _ = step_both(native, sync, native.action_space.sample())
        done = one[2] | one[3]
        num_ends += int(done.sum())
        if mode is AutoresetMode.DISABLED and done.any():
            left, right = (env.reset(options={"reset_mask": done.copy()}) for env in (native, sync))
            np.testing.assert_allclose(left[0], right[0], rtol=1e-12)
            assert_equal_infos(left[1], right[1], 1)
    assert num_ends >= 6


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("env_id", "options"), [task for task in TASKS if "LQG" not in task[0]])
def test_many_copies_without_noise_equal_gymnasiums_vector_environment(
    env_id: str, options: dict[str, Any], mode: AutoresetMode
) -> None:
    num_envs = 4
    d = gym.make(env_id, **options).unwrapped.system.num_states
    options = {**options, "noise_cov": np.zeros((d, d)), "initial_covariance": np.zeros((d, d))}
    native, sync = make_native(env_id, num_envs, mode, options), make_sync(env_id, num_envs, mode, options)
    native.reset(seed=0)
    sync.reset(seed=0)
    native.action_space.seed(1)
    ends = set()
    for t in range(30):
        one, _ = step_both(native, sync, native.action_space.sample())
        done = one[2] | one[3]
        ends |= {(t, i) for i in np.flatnonzero(done)}
        if mode is AutoresetMode.DISABLED and done.any():
            mask = {"reset_mask": done.copy()}
            np.testing.assert_allclose(native.reset(options=dict(mask))[0], sync.reset(options=dict(mask))[0], rtol=1e-12)
    assert len(ends) >= 5 * num_envs - 4
    if "state_bounds" in options:  # copies end at different times
        assert len({t for t, _ in ends}) > 6


@pytest.mark.parametrize(("env_id", "options"), TASKS)
def test_copies_are_independent_and_reproducible(env_id: str, options: dict[str, Any]) -> None:
    options = {**options, "initial_covariance": np.eye(gym.make(env_id, **options).unwrapped.system.num_states)}
    runs = []
    for seed in (3, 3, 4):
        env = make_native(env_id, 50, AutoresetMode.NEXT_STEP, options)
        obs, _ = env.reset(seed=seed)
        env.action_space.seed(0)
        action = np.repeat(env.action_space.sample()[:1], 50, axis=0)
        runs.append(np.stack([obs[:, 0], env.step(action)[0][:, 0]]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert len(set(runs[0][0])) == len(set(runs[0][1])) == 50


def test_a_reset_of_some_copies_leaves_the_others_alone() -> None:
    env = LQGVectorEnv(3, autoreset_mode="Disabled")
    env.reset(seed=0)
    obs = env.step(np.ones((3, 1)))[0]
    states = env.states
    mask = np.array([False, True, False])
    new_obs, infos = env.reset(options={"reset_mask": mask, "initial_state": [[1.0, 2.0]]})
    np.testing.assert_array_equal(new_obs[~mask], obs[~mask])
    np.testing.assert_array_equal(env.states, np.where(mask[:, None], [1.0, 2.0], states))
    np.testing.assert_array_equal(infos["_kalman_estimate"], mask)


def test_what_was_returned_does_not_change_later() -> None:
    env = LQRVectorEnv(2, max_episode_steps=2, autoreset_mode="SameStep")
    kept = [env.reset(seed=0)[0]]
    copies = [kept[0].copy()]
    for _ in range(5):
        obs, rewards, terminated, truncated, infos = env.step(np.ones((2, 1)))
        kept += [obs, rewards, terminated, truncated, infos["cost"], infos["_cost"]]
        copies += [array.copy() for array in kept[-6:]]
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number >= 1, got 0"),
        ({"autoreset_mode": "Never"}, "autoreset_mode must be one of 'NextStep', 'SameStep', 'Disabled', got 'Never'"),
        ({"max_episode_steps": 0}, "max_episode_steps must be a whole number >= 1, got 0"),
        ({"render_mode": "human"}, "render_mode must be one of 'rgb_array', got 'human'"),
        ({"horizon": 30, "max_episode_steps": 20}, "max_episode_steps must be at least the horizon 30, got 20"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LQRVectorEnv(**options)


def test_wrong_calls_are_refused() -> None:
    env = LQRVectorEnv(2, max_episode_steps=1, autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="call reset"):
        env.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="before the first reset"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions must have shape \(2, 1\) \(copies, inputs\), got \(2,\)"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="got nan"):
        env.step(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="reset_mask must be"):
        env.reset(options={"reset_mask": [True, False]})
    with pytest.raises(ValueError, match="initial_state must be finite"):
        env.reset(options={"initial_state": [1.0]})
    with pytest.raises(ValueError, match=r"no other key .* got \['state'\]"):
        env.reset(options={"state": [1.0, 2.0]})
    env.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="in mode 'Disabled' of the finished ones too"):
        env.step(np.zeros((2, 1)))


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
@pytest.mark.parametrize("env_id", ["rlopt/LQR-v0", "rlopt/LQG-v0"])
def test_an_agent_learns_from_them(env_id: str, mode: AutoresetMode) -> None:
    options = {"autoreset_mode": mode, "max_episode_steps": 20, "noise_cov": np.zeros((2, 2)), "initial_covariance": np.eye(2)}
    env = gym.make_vec(env_id, num_envs=4, vectorization_mode="vector_entry_point", **options)
    assert isinstance(env, VectorEnv)
    agent = TD3("MlpPolicy", GymnasiumVecEnv(env), buffer_size=400, learning_starts=100, batch_size=16, device="cpu", seed=0)
    agent.learn(300)
    assert agent.num_timesteps == 300
    batch: Any = agent.replay_buffer.sample(200)  # type: ignore[union-attr]
    assert not batch.dones.any()  # cut by the time limit, not terminated
    if env_id == "rlopt/LQR-v0":  # every stored step, the last ones of episodes too, is one of the system
        system, limit = env.unwrapped.system, env.single_action_space.high
        expected = batch.observations.numpy() @ system.A.T + limit * batch.actions.numpy() @ system.B.T
        np.testing.assert_allclose(batch.next_observations, expected, atol=1e-5)
