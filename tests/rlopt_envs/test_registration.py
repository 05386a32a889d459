import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import rlopt_envs
from rlopt_envs import ENV_IDS

# Gymnasium itself excuses these for its own environments: a Gaussian has no bounds, and inputs have units.
EXCUSED = ["Box observation space minimum value is -infinity", "Box observation space maximum value is infinity"]
EXCUSED += ["we recommend using a symmetric and normalized space", "symmetric and normalized Box action space"]

CASES: list[tuple[str, dict[str, Any]]] = [
    *((env_id, {}) for env_id in ENV_IDS),
    ("rlopt/LQR-v0", {"system": "inverted_pendulum", "cost": "average"}),
    ("rlopt/LQR-v0", {"horizon": 20, "discount": 1.0}),
    ("rlopt/LQG-v0", {"system": "aircraft_longitudinal"}),
    ("rlopt/LQG-v0", {"horizon": 7, "final_Q": np.eye(2)}),
    ("rlopt/LinearSystem-v0", {"A": [[0.5]], "reward": "none", "state_bounds": 3.0, "initial_covariance": "stationary"}),
    ("rlopt/NonlinearSystem-v0", {"num_states": 2, "link": "tanh"}),
]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(("env_id", "options"), CASES)
def test_environments_follow_gymnasiums_interface(env_id: str, options: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(gym.make(env_id, **options).unwrapped)
    messages = [str(warning.message) for warning in caught]
    assert [message for message in messages if not any(excuse in message for excuse in EXCUSED)] == []


@pytest.mark.parametrize(("env_id", "options"), [case for case in CASES if "LQ" in case[0]])
def test_regulators_follow_stable_baselines3s_interface(env_id: str, options: dict[str, Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env_for_sb3(gym.make(env_id, **options))
    messages = [str(warning.message) for warning in caught]
    assert [message for message in messages if not any(excuse in message for excuse in EXCUSED)] == []


@pytest.mark.parametrize(("env_id", "options"), CASES)
def test_a_spec_makes_the_same_environment_again(env_id: str, options: dict[str, Any]) -> None:
    first = gym.make(env_id, **options)
    second = gym.make(first.spec)
    vector = gym.make_vec(env_id, num_envs=3, vectorization_mode="vector_entry_point", **options)
    again = gym.make_vec(vector.spec)
    assert (again.num_envs, type(again)) == (3, type(vector))
    for one, other, num_actions in ((first, second, ()), (vector, again, (3,))):
        one_obs, other_obs = one.reset(seed=1)[0], other.reset(seed=1)[0]
        np.testing.assert_array_equal(one_obs, other_obs)
        action = np.zeros((*num_actions, *first.action_space.shape), first.action_space.dtype)
        np.testing.assert_array_equal(one.step(action)[0], other.step(action)[0])


def test_time_limits_are_those_of_the_documentation() -> None:
    limits = {env_id.split("/")[1].split("-")[0]: gym.spec(env_id).max_episode_steps for env_id in ENV_IDS}
    assert limits["LQR"] == limits["LQG"] == 200
    assert limits["LinearSystem"] == limits["NonlinearSystem"] == 1000
    assert {limits[name] for name in ("Chain", "BlindCliffwalk", "RingMDP", "BairdStar")} == {None}


def test_an_id_with_its_module_needs_no_import() -> None:
    single = "import gymnasium; print(gymnasium.make('rlopt_envs:rlopt/LQR-v0').reset(seed=0)[0].shape)"
    assert run(single) == "(2,)"
    options = "num_envs=4, vectorization_mode='vector_entry_point'"
    assert run(f"import gymnasium; print(gymnasium.make_vec('rlopt_envs:rlopt/LQR-v0', {options}).reset()[0].shape)") == "(4, 2)"


def test_the_import_of_the_package_is_cheap() -> None:
    heavy = "{'numba', 'scipy', 'matplotlib', 'pygame', 'torch'}"
    assert run(f"import rlopt_envs, sys; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_registering_again_changes_nothing() -> None:
    before = dict(gym.registry)
    rlopt_envs._register()
    assert dict(gym.registry) == before


@pytest.mark.parametrize("name", rlopt_envs.__all__)
def test_public_names_exist(name: str) -> None:
    assert getattr(rlopt_envs, name) is not None
    assert name in dir(rlopt_envs)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pendulum'"):
        rlopt_envs.__getattr__("Pendulum")
