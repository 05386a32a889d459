"""Hyper-parameters of the agents: what can be set, and tables of values per environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

_FROM_PRESET = "(default: of the preset)"


def _metavar(kind: str) -> Any:
    return arg(metavar=kind, help_behavior_hint=_FROM_PRESET)


@dataclass(frozen=True)
class AgentOptions:
    """Hyper-parameters of the agent, for all replays and environments alike."""

    total_timesteps: Annotated[int | None, _metavar("INT")] = None
    """Environment steps of a run, > 0."""
    learning_rate: Annotated[float | None, _metavar("FLOAT")] = None
    """Step size of Adam, > 0."""
    gamma: Annotated[float | None, _metavar("FLOAT")] = None
    """Discount, in (0, 1]."""
    batch_size: Annotated[int | None, _metavar("INT")] = None
    """Transitions per gradient step, > 0."""
    buffer_size: Annotated[int | None, _metavar("INT")] = None
    """Transitions that the replay holds, > 0."""
    learning_starts: Annotated[int | None, _metavar("INT")] = None
    """Steps with random actions before learning, >= 0."""
    train_freq: Annotated[int | None, _metavar("INT")] = None
    """Environment steps between two learning phases, > 0. Introspective and greedy replay score the memory once a phase."""
    gradient_steps: Annotated[int | None, _metavar("INT")] = None
    """Gradient steps of a learning phase, > 0."""
    net_arch: Annotated[tuple[int, ...] | None, _metavar("INT [INT ...]")] = None
    """Widths of the hidden layers."""
    n_steps: Annotated[int | None, _metavar("INT")] = None
    """Steps of the return in a learning target, > 0."""
    tau: Annotated[float | None, _metavar("FLOAT")] = None
    """How far a target network moves per update, in (0, 1]."""
    exploration_fraction: Annotated[float | None, _metavar("FLOAT")] = None
    """Part of the run in which epsilon falls from 1 to its final value, in (0, 1]. DQN."""
    exploration_final_eps: Annotated[float | None, _metavar("FLOAT")] = None
    """Final probability of a random action, in [0, 1]. DQN."""
    target_update_interval: Annotated[int | None, _metavar("INT")] = None
    """Environment steps between two updates of the target network, > 0. DQN."""
    double_q: Annotated[bool | None, _metavar("{True,False}")] = None
    """Whether the online network chooses the action of the learning target. DQN."""
    action_noise: Annotated[float | None, _metavar("FLOAT")] = None
    """Standard deviation of Gaussian noise on the actions, >= 0, in units of half their range. DDPG, TD3, SAC."""
    policy_delay: Annotated[int | None, _metavar("INT")] = None
    """Critic updates per actor update, > 0. TD3."""

    def __post_init__(self) -> None:
        for name in (
            "total_timesteps",
            "learning_rate",
            "batch_size",
            "buffer_size",
            "train_freq",
            "gradient_steps",
            "n_steps",
            "target_update_interval",
            "policy_delay",
        ):
            _check(name, getattr(self, name), "> 0", lambda value: value > 0)
        for name in ("gamma", "tau", "exploration_fraction"):
            _check(name, getattr(self, name), "in (0, 1]", lambda value: 0 < value <= 1)
        _check("exploration_final_eps", self.exploration_final_eps, "in [0, 1]", lambda value: 0 <= value <= 1)
        for name in ("learning_starts", "action_noise"):
            _check(name, getattr(self, name), ">= 0", lambda value: value >= 0)
        _check("net_arch", self.net_arch, "widths > 0", lambda value: all(width > 0 for width in value))

    def given(self) -> dict[str, Any]:
        """Return the options that are set."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def _check(name: str, value: Any, allowed: str, holds: Any) -> None:
    if value is not None and not holds(value):
        raise ValueError(f"{name} must be {allowed}, got {value}")


_COMMON = frozenset(
    {
        "total_timesteps",
        "learning_rate",
        "gamma",
        "batch_size",
        "buffer_size",
        "learning_starts",
        "train_freq",
        "gradient_steps",
        "net_arch",
        "n_steps",
        "tau",
    }
)

# Agent -> the options that it has.
ACCEPTED: Mapping[str, frozenset[str]] = {
    "dqn": _COMMON | {"exploration_fraction", "exploration_final_eps", "target_update_interval", "double_q"},
    "ddpg": _COMMON | {"action_noise"},
    "td3": _COMMON | {"action_noise", "policy_delay"},
    "sac": _COMMON | {"action_noise"},
}

# Environment -> mean return of random actions (200 episodes), and the return that counts as solved: the environment's
# reward threshold, for Pendulum-v1 (which has none) a usual value.
REFERENCE_SCORES: Mapping[str, tuple[float, float]] = {
    "CartPole-v1": (22.7, 475.0),
    "Acrobot-v1": (-497.4, -100.0),
    "MountainCar-v0": (-200.0, -110.0),
    "LunarLander-v3": (-185.5, 200.0),
    "LunarLanderContinuous-v3": (-212.5, 200.0),
    "Pendulum-v1": (-1255.5, -200.0),
    "MountainCarContinuous-v0": (-33.2, 90.0),
}

# What a trial of a search that fails counts: less than any return.
FAILED_RETURN = -1e9

# After the tuned values of RL Baselines3 Zoo, with two changes. Learning phases are long enough that scoring the whole memory at
# the beginning of each (introspective, greedy) costs little beside the gradient steps, and networks and runs are small enough
# that a comparison of several seeds takes minutes on a CPU.
_TUNED_DQN = AgentOptions(
    total_timesteps=100_000,
    learning_rate=6.3e-4,
    gamma=0.99,
    batch_size=128,
    buffer_size=50_000,
    learning_starts=1000,
    train_freq=256,
    gradient_steps=256,
    net_arch=(256, 256),
    exploration_fraction=0.12,
    exploration_final_eps=0.1,
    target_update_interval=250,
)
_TUNED_CONTINUOUS = AgentOptions(
    total_timesteps=100_000,
    learning_rate=1e-3,
    gamma=0.99,
    batch_size=256,
    buffer_size=100_000,
    learning_starts=1000,
    train_freq=200,
    gradient_steps=200,
    net_arch=(256, 256),
    action_noise=0.1,
)
TUNED: Mapping[str, AgentOptions] = {
    "CartPole-v1": dataclasses.replace(
        _TUNED_DQN,
        total_timesteps=50_000,
        learning_rate=2.3e-3,
        batch_size=64,
        gradient_steps=128,
        net_arch=(64, 64),
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        target_update_interval=10,
    ),
    "Acrobot-v1": dataclasses.replace(
        _TUNED_DQN, total_timesteps=30_000, batch_size=64, learning_starts=0, gradient_steps=128, net_arch=(64, 64)
    ),
    "MountainCar-v0": dataclasses.replace(
        _TUNED_DQN,
        total_timesteps=120_000,
        learning_rate=4e-3,
        gamma=0.98,
        buffer_size=10_000,
        gradient_steps=128,
        exploration_fraction=0.2,
        exploration_final_eps=0.07,
        target_update_interval=600,
    ),
    "LunarLander-v3": dataclasses.replace(_TUNED_DQN, learning_starts=0, train_freq=512, gradient_steps=256, net_arch=(128, 128)),
    "Pendulum-v1": dataclasses.replace(
        _TUNED_CONTINUOUS, total_timesteps=10_000, gamma=0.98, buffer_size=10_000, net_arch=(64, 64)
    ),
}
TUNED_OTHER: Mapping[str, AgentOptions] = {
    "dqn": _TUNED_DQN,
    "ddpg": _TUNED_CONTINUOUS,
    "td3": _TUNED_CONTINUOUS,
    "sac": _TUNED_CONTINUOUS,
}

# A few minutes for everything on two slow cores: short runs of small networks.
_QUICK_DQN = dataclasses.replace(
    _TUNED_DQN,
    total_timesteps=6000,
    learning_rate=1e-3,
    batch_size=64,
    buffer_size=6000,
    learning_starts=256,
    train_freq=128,
    gradient_steps=64,
    net_arch=(64, 64),
    exploration_fraction=0.3,
    target_update_interval=128,
)
QUICKSTART: Mapping[str, AgentOptions] = {
    "CartPole-v1": dataclasses.replace(_QUICK_DQN, exploration_final_eps=0.04),
    "Acrobot-v1": _QUICK_DQN,
}

# The launch scripts that Kumar and Nagaraj released with "Introspective Experience Replay" (arXiv 2206.03171): M steps and
# G updates per phase; they count the interval of target copies in phases. Environments are today's versions, with their
# own time limits; actor and critic share the critic's learning rate.
_PAPER_DQN = AgentOptions(
    learning_rate=5e-5,
    gamma=0.9,
    batch_size=128,
    buffer_size=1_000_000,
    learning_starts=10_000,
    train_freq=512,
    gradient_steps=500,
    net_arch=(8, 5),
    double_q=True,
)
_PAPER_TD3 = AgentOptions(
    learning_rate=1e-3,
    gamma=0.99,
    batch_size=100,
    buffer_size=1_000_000,
    learning_starts=1000,
    train_freq=100,
    gradient_steps=100,
    net_arch=(256, 256),
    tau=0.005,
    action_noise=0.1,
    policy_delay=2,
)
PAPER: Mapping[str, AgentOptions] = {
    "CartPole-v1": dataclasses.replace(
        _PAPER_DQN,
        total_timesteps=100 * 10 * 512,
        batch_size=64,
        exploration_final_eps=0.01,
        exploration_fraction=0.4,
        target_update_interval=30 * 512,
    ),
    "Acrobot-v1": dataclasses.replace(
        _PAPER_DQN,
        total_timesteps=100 * 10 * 512,
        gradient_steps=750,
        exploration_final_eps=0.1,
        exploration_fraction=0.4,
        target_update_interval=30 * 512,
    ),
    "LunarLander-v3": dataclasses.replace(
        _PAPER_DQN,
        total_timesteps=200 * 10 * 512,
        exploration_final_eps=0.1,
        exploration_fraction=0.12,
        target_update_interval=10 * 512,
    ),
    "HalfCheetah-v5": dataclasses.replace(_PAPER_TD3, total_timesteps=500 * 40 * 100),
    "Ant-v5": dataclasses.replace(_PAPER_TD3, total_timesteps=500 * 40 * 100, gradient_steps=50),
    "Hopper-v5": dataclasses.replace(_PAPER_TD3, total_timesteps=700 * 40 * 100, learning_starts=10_000),
    "InvertedDoublePendulum-v5": dataclasses.replace(
        _PAPER_TD3, total_timesteps=750 * 40 * 100, gradient_steps=1, learning_starts=10_000
    ),
}
