"""Runs that are stopped and go on, for `test_checkpoints.py`; a process of its own does the first part, another the second.

Usage: python resuming.py {first,second} FOLDER CASE...
"""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize

import rlopt.replay
import rlopt_envs  # noqa: F401  # registers its environments
from rlopt.agents import (
    DDPG,
    DQN,
    PPO,
    SAC,
    TD3,
    Checkpoints,
    GymnasiumVecEnv,
    HistoryWrapper,
    SequenceLearning,
    TransformerExtractor,
)
from rlopt.nn import MoEConfig, TransformerConfig
from rlopt.optim import LBFGS
from rlopt.optim.factory import OPTIMIZERS

TOTAL, STOP = 240, 120
COMMON: dict[str, Any] = {"seed": 0, "device": "cpu"}
OFF_POLICY: dict[str, Any] = COMMON | {"learning_starts": 40, "batch_size": 16, "buffer_size": 100}
PHASES: dict[str, Any] = {"train_freq": 8, "gradient_steps": 4}
REPLAYS = [name for name in rlopt.replay.__all__ if name.endswith("Replay") and name not in ("Replay", "HindsightReplay")]


def discrete(kind: Any = DQN, env: Any = "CartPole-v1", policy: str = "MlpPolicy", **options: Any) -> Any:
    return kind(policy, env, policy_kwargs={"net_arch": [16]} | options.pop("policy_kwargs", {}), **OFF_POLICY | PHASES | options)


def continuous(kind: Any, env: Any = "Pendulum-v1", **options: Any) -> Any:
    return kind("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, **OFF_POLICY | PHASES | options)


def ppo(env: Any = "CartPole-v1", **options: Any) -> Any:
    return PPO("MlpPolicy", env, policy_kwargs={"net_arch": [16]}, n_steps=24, n_epochs=2, batch_size=12, **COMMON | options)


def normalized(n_envs: int) -> Any:
    return VecNormalize(make_vec_env("Pendulum-v1", n_envs=n_envs, seed=3))


def remembering(sequences: Any, n_envs: int = 1) -> Any:
    wrapper = {"wrapper_class": HistoryWrapper, "wrapper_kwargs": {"length": 5, "include_actions": True}}
    env = make_vec_env("rlopt/TMaze-v0", n_envs=n_envs, seed=2, env_kwargs={"corridor_length": 7}, **wrapper)
    transformer = TransformerConfig(
        width=8, num_layers=1, num_heads=2, context=5, positions="rotary", dropout=0.1, moe=MoEConfig(num_experts=2, every=1)
    )
    network = {"features_extractor_class": TransformerExtractor, "features_extractor_kwargs": {"transformer": transformer}}
    return discrete(DQN, env, "MultiInputPolicy", policy_kwargs=network, sequences=sequences, aux_loss_coefs={"balance": 0.1})


def native(name: str, **options: Any) -> Any:
    return GymnasiumVecEnv(gym.make_vec(name, num_envs=2, **options))


CASES: dict[str, Callable[[], Any]] = {
    **{f"dqn_{name}": functools.partial(discrete, replay_buffer_class=getattr(rlopt.replay, name)) for name in REPLAYS},
    **{f"dqn_{name}": functools.partial(discrete, optimizer=LBFGS(lr=0.1) if name == "lbfgs" else name)  # at lr 1 it diverges
       for name in OPTIMIZERS if name != "scale_invariant_sgd"},
    **{f"{kind.__name__}_{name}": functools.partial(continuous, kind, optimizer=name)
       for kind in (DDPG, TD3, SAC) for name in ("adam", "locoprop", "muon")},
    **{f"{kind.__name__}_{name}": functools.partial(continuous, kind, replay_buffer_class=getattr(rlopt.replay, name))
       for kind in (TD3, SAC) for name in ("PrioritizedReplay", "IntrospectiveReplay")},
    **{f"ppo_{name}": functools.partial(ppo, optimizer=name) for name in ("adam", "kfac", "locoprop", "sam")},
    "dqn_fast": lambda: discrete(fast=True, replay_buffer_class=rlopt.replay.PrioritizedReplay),
    "td3_fast": lambda: continuous(TD3, fast=True),
    "sac_fast": lambda: continuous(SAC, fast=True),
    "dqn_shared_layout": lambda: discrete(optimize_memory_usage=True, n_steps=3, double_q=True),
    "dqn_rescored": lambda: discrete(
        replay_buffer_class=rlopt.replay.IntrospectiveReplay, replay_buffer_kwargs={"rescore_after": 3, "reuse_memory": True}
    ),
    "dqn_episodes": lambda: discrete(train_freq=(1, "episode"), gradient_steps=-1),
    "dqn_native": lambda: discrete(env=native("CartPole-v1", vectorization_mode="vector_entry_point")),
    "dqn_history": lambda: remembering(None, n_envs=2),
    "dqn_sequences": lambda: remembering(SequenceLearning(length=3, burn_in=1)),
    "sac_sde": lambda: continuous(SAC, use_sde=True, sde_sample_freq=4, ent_coef="auto_0.1"),
    "td3_noise_normalize": lambda: continuous(
        TD3, normalized(2), action_noise=OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1))
    ),
    "sac_lqg": lambda: continuous(SAC, "rlopt/LQG-v0"),
    "sac_lqg_native": lambda: continuous(SAC, native("rlopt/LQG-v0", autoreset_mode="SameStep")),
    "ppo_normalize": lambda: ppo(normalized(4), use_sde=True),
    "ppo_normalize_rewards": lambda: ppo(VecNormalize(make_vec_env("CartPole-v1", n_envs=2, seed=3), norm_obs=False)),
    "ppo_acrobot": lambda: ppo("Acrobot-v1"),
}  # fmt: skip


class StopAt(Checkpoints):
    """Ends training, as a power cut would, behind a checkpoint."""

    def visit(self, agent: Any) -> None:
        if agent.num_timesteps >= STOP:
            self.save(agent)
            raise InterruptedError
        super().visit(agent)


def digest(agent: Any) -> dict[str, str]:
    """What an agent is, as sums of bits, by part."""
    names, variables = agent._get_torch_save_params()
    parts: dict[str, Any] = {name: functools.reduce(getattr, name.split("."), agent).state_dict() for name in names}
    parts |= {name: functools.reduce(getattr, name.split("."), agent) for name in variables}
    replay = getattr(agent, "replay_buffer", None)
    parts["replay"] = {} if replay is None else replay.state_dict()
    parts |= {"obs": agent._last_obs, "steps": agent.num_timesteps, "updates": agent._n_updates, "torch": th.get_rng_state()}
    env = agent.get_vec_normalize_env()
    parts["normalize"] = [] if env is None else [env.ret_rms.mean, env.ret_rms.var, env.returns]
    return {name: hashlib.sha256(b"".join(_bits(part))).hexdigest() for name, part in parts.items()}


def _bits(part: Any) -> list[bytes]:
    if isinstance(part, dict):
        return [bit for key in sorted(part, key=str) for bit in (str(key).encode(), *_bits(part[key]))]
    if isinstance(part, (list, tuple)):
        return [bit for value in part for bit in _bits(value)]
    if isinstance(part, th.Tensor):
        part = part.detach().contiguous().view(th.uint8).numpy() if part.numel() and part.ndim else part.detach().numpy()
    return [np.ascontiguousarray(part).tobytes()] if isinstance(part, np.ndarray) else [repr(part).encode()]


def rows(folder: Path) -> list[dict[str, str]]:
    """What was logged, but for times, with the step as "step"."""
    with (folder / "progress.csv").open() as file:
        found = list(csv.DictReader(file))
    return [
        {name: value for name, value in row.items() if value and not name.startswith("time/")}
        | {"step": row["time/total_timesteps"]}
        for row in found
    ]


def train(case: str, folder: Path, checkpoints: Checkpoints | None) -> dict[str, Any]:
    agent = CASES[case]()
    folder.mkdir(parents=True)
    agent.set_logger(configure(str(folder), ["csv"]))
    callback = None
    if case == "ppo_acrobot":
        callback = EvalCallback(make_vec_env("Acrobot-v1", seed=7), n_eval_episodes=1, eval_freq=50, verbose=0, warn=False)
    agent.learn(TOTAL, callback=callback, log_interval=2 if case == "ppo_acrobot" else 1, checkpoints=checkpoints)
    found = {**digest(agent), "rows": rows(folder)}
    if callback is not None:
        found["best"] = [callback.best_mean_reward, callback.n_calls]
    return found


def main() -> None:
    part, folder, cases = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    th.set_num_threads(1)
    found: dict[str, Any] = {}
    for case in cases:
        saved = folder / case / "checkpoints"
        if part == "first":
            found[case] = train(case, folder / case / "whole", None)
            try:
                train(case, folder / case / "first", StopAt(saved, every=10**6))
            except InterruptedError:
                continue
            raise AssertionError(case)
        start = Checkpoints(saved).num_timesteps
        found[case] = {**train(case, folder / case / "second", Checkpoints(saved)), "start": start}
    (folder / f"{part}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
