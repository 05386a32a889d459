"""Gymnasium environments whose optimum is known in closed form.

Importing this package registers them: `gymnasium.make("rlopt_envs:rlopt/LQR-v0")` does both, and so does
`gymnasium.make_vec("rlopt_envs:rlopt/LQR-v0", num_envs=64, vectorization_mode="vector_entry_point")` for the vectorised versions.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gymnasium.envs.registration import register, registry

# Where a public name lives; it is imported when it is first used, which keeps the import of the package cheap.
_HOMES = {
    "LinearSystem": "systems",
    "NonlinearSystem": "systems",
    "random_bimodal": "systems",
    "LinearSystemEnv": "linear_system",
    "LinearSystemVectorEnv": "linear_system",
    "NonlinearSystemEnv": "nonlinear_system",
    "NonlinearSystemVectorEnv": "nonlinear_system",
    "LQREnv": "lqr",
    "LQRVectorEnv": "lqr",
    "LQGEnv": "lqg",
    "LQGVectorEnv": "lqg",
    "ChainEnv": "chain",
    "ChainVectorEnv": "chain",
    "BlindCliffwalkEnv": "blind_cliffwalk",
    "BlindCliffwalkVectorEnv": "blind_cliffwalk",
    "RingMDPEnv": "ring_mdp",
    "RingMDPVectorEnv": "ring_mdp",
    "BairdStarEnv": "baird_star",
    "BairdStarVectorEnv": "baird_star",
    "TMazeEnv": "tmaze",
    "TMazeVectorEnv": "tmaze",
    "KeepObservations": "partial",
    "FiniteMDP": "finite_mdp",
    "KalmanFilter": "kalman",
    "PRESETS": "presets",
    "SystemPreset": "presets",
}

# Module of each environment, and the steps after which its episodes are truncated (None: never).
_MODULES: dict[str, tuple[str, int | None]] = {
    "LinearSystem": ("linear_system", 1000),
    "NonlinearSystem": ("nonlinear_system", 1000),
    "LQR": ("lqr", 200),
    "LQG": ("lqg", 200),
    "Chain": ("chain", None),
    "BlindCliffwalk": ("blind_cliffwalk", None),
    "RingMDP": ("ring_mdp", None),
    "BairdStar": ("baird_star", None),
    "TMaze": ("tmaze", None),
}

# Gymnasium's environments with a part of their observations: the function that makes each, and its limit of steps.
_PARTIAL: dict[str, tuple[str, int]] = {
    "CartPoleNoVelocity": ("cartpole_without_velocities", 500),
    "PendulumNoVelocity": ("pendulum_without_velocity", 200),
}

ENV_IDS: tuple[str, ...] = tuple(f"rlopt/{name}-v0" for name in _MODULES)
"""Ids of the environments with a known optimum; each has a vectorised version."""

PARTIAL_ENV_IDS: tuple[str, ...] = tuple(f"rlopt/{name}-v0" for name in _PARTIAL)
"""Ids of Gymnasium's environments without velocities."""

__all__ = ["ENV_IDS", "PARTIAL_ENV_IDS", *sorted(_HOMES)]


def _register() -> None:
    for env_id, (name, (module, max_episode_steps)) in zip(ENV_IDS, _MODULES.items(), strict=True):
        if env_id not in registry:
            register(
                env_id,
                entry_point=f"rlopt_envs.{module}:{name}Env",
                vector_entry_point=f"rlopt_envs.{module}:{name}VectorEnv",
                max_episode_steps=max_episode_steps,
            )
    for env_id, (function, max_episode_steps) in zip(PARTIAL_ENV_IDS, _PARTIAL.values(), strict=True):
        if env_id not in registry:
            register(env_id, entry_point=f"rlopt_envs.partial:{function}", max_episode_steps=max_episode_steps)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_register()
