"""One training run of an agent with an optimizer, and the optimizers that can be compared in agents."""

from __future__ import annotations

import copy
import csv
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from _comparing_optimizers import state_bytes
from _training import Evaluation, learn, make_agent, play
from numpy.typing import NDArray
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch.optim import Optimizer

from rlopt.files.checkpoint import remove_all
from rlopt.optim.specs import (
    LBFGS,
    Adagrad,
    Adam,
    AdamP,
    AdamW,
    Agc,
    Kfac,
    Lamb,
    Lars,
    LocoPropSpec,
    Muon,
    RMSprop,
    RMSpropTFSpec,
    Sam,
    Sgd,
    SgdP,
    Shampoo,
    Soap,
    Spec,
)
from rlopt.study import Costs, Recorder

_SECONDS = "time/learning_cpu_seconds"
_MEMORY = "memory/optimizer_state_bytes"
COSTS = Costs("time/total_timesteps", _SECONDS, memory=_MEMORY)

# Networks with a learning rate of their own: DQN has the first, the other agents have the two others.
NETWORKS = ("q", "critic", "actor")

# An agent with a larger weight has diverged: beside it a float32 has no digits left for anything of order 1.
LARGEST_WEIGHT = 1e8


@dataclass(frozen=True)
class Choice:
    """An optimizer with its learning rates for the networks of agents."""

    spec: Spec
    q: float
    critic: float
    actor: float


# The released gamma, 10 for 1000 rows, for batches of any size.
_ITERATIVE = LocoPropSpec(gamma=0.01, gamma_mode="per_row")
_CLOSED = LocoPropSpec(variant="squared", solver="closed_form", gamma=1.0, gamma_mode="per_row", prox_eta=1.0)

# Rates of `q` were chosen by single runs of DQN on CartPole-v1; those of critics and actors are those of Adam, or guesses.
OPTIMIZERS: dict[str, Choice] = {
    "sgd": Choice(Sgd(), 0.1, 1e-3, 1e-3),
    "momentum": Choice(Sgd(momentum=0.9), 1e-2, 1e-4, 1e-4),
    "nesterov": Choice(Sgd(momentum=0.9, nesterov=True), 1e-2, 1e-4, 1e-4),
    "adam": Choice(Adam(), 2.3e-3, 1e-3, 1e-3),
    "adamw": Choice(AdamW(), 2.3e-3, 1e-3, 1e-3),
    "adamp": Choice(AdamP(), 2.3e-3, 1e-3, 1e-3),
    "rmsprop": Choice(RMSprop(), 1e-3, 1e-3, 1e-3),
    "rmsprop_tf": Choice(RMSpropTFSpec(), 1e-3, 1e-3, 1e-3),
    "adagrad": Choice(Adagrad(), 3e-2, 1e-2, 1e-2),
    "lamb": Choice(Lamb(weight_decay=0.0), 1e-2, 1e-2, 1e-2),
    "lars": Choice(Lars(trust_coefficient=1.0), 1e-3, 1e-3, 1e-3),
    "sgdp": Choice(SgdP(), 1e-2, 1e-4, 1e-4),
    "muon": Choice(Muon(weight_decay=0.0, precision="float32"), 1e-2, 1e-2, 1e-2),
    "soap": Choice(Soap(weight_decay=0.0), 3e-3, 1e-3, 1e-3),
    "shampoo": Choice(Shampoo(), 0.3, 0.1, 0.1),
    "kfac": Choice(Kfac(damping=0.1, kl_clip=None), 1e-2, 1e-2, 1e-2),  # as measured: without a limit on the step
    "agc": Choice(Agc(base=Sgd(momentum=0.9)), 0.1, 1e-2, 1e-2),
    "sam": Choice(Sam(base=Adam()), 2.3e-3, 1e-3, 1e-3),
    "lbfgs": Choice(LBFGS(max_iter=4, history_size=10, line_search="strong_wolfe"), 1.0, 1.0, 1.0),
    "locoprop_m": Choice(_ITERATIVE, 1e-6, 1e-5, 1e-5),
    "locoprop_s": Choice(replace(_ITERATIVE, variant="squared", inner="adam"), 1e-4, 1e-4, 1e-4),
    "locoprop_closed": Choice(_CLOSED, 0.03, 1e-3, 1e-3),
}


def train(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Train and evaluate; the function of the study. Scores are mean returns of the deterministic policy.

    If the training diverges (`is_divergence`, `has_diverged`), it ends there, `train/diverged` becomes 1, and the scores of the
    remaining evaluations are those of random actions.

    Args:
        config: `env_id`, `agent`, `total_timesteps`, `num_evaluations`, `eval_episodes`, `device`, under `options` the
            hyper-parameters of the agent that differ from its defaults, and under `networks` an `optimizer` with its `lr` for each
            of `NETWORKS`, whether the agent has it or not.
        seed: Seed of the agent; evaluations use seeds of their own, derived from it.
        folder: Where progress.csv and TensorBoard events go.
    """
    agent = make_learner(config, seed)
    evaluation = CostEvaluation(
        Recorder(folder),
        partial(gym.make, config["env_id"]),
        total_timesteps=config["total_timesteps"],
        num_evaluations=config["num_evaluations"],
        num_episodes=config["eval_episodes"],
        seed=seed,
    )
    try:
        learn(agent, config["total_timesteps"], folder, evaluation)
    except (FloatingPointError, RuntimeError, ValueError) as error:
        if not (is_divergence(error) or has_diverged(agent)):
            raise
        print(f"The training diverged in step {agent.num_timesteps}: {error}")
        evaluation.give_up()
        agent.logger.close()
        remove_all(folder / "checkpoint")


def make_learner(config: Mapping[str, Any], seed: int) -> OffPolicyAlgorithm:
    """Build the agent of a run."""
    specs = {network: make_spec(**chosen) for network, chosen in config["networks"].items()}
    optimizer = specs["q"] if config["agent"] == "dqn" else {network: specs[network] for network in ("actor", "critic")}
    others = {"replay": "uniform", "replay_options": {}, "learning_rate_factor": 1.0}
    return make_agent({**config, **others, "options": {**config["options"], "optimizer": optimizer}}, seed)


def make_spec(optimizer: str, lr: float) -> Spec:
    """Return the specification of an optimizer with a learning rate of its own."""
    spec: Any = OPTIMIZERS[optimizer].spec
    if isinstance(spec, Agc | Sam):
        return replace(spec, base=replace(spec.base, lr=lr))
    return cast(Spec, replace(spec, lr=lr))


def optimizers_of(agent: Any) -> list[Optimizer]:
    """Return the optimizers that are compared: of the online network, or of critic and actor."""
    return [agent.policy.optimizer] if hasattr(agent, "q_net") else [agent.critic.optimizer, agent.actor.optimizer]


def is_divergence(error: Exception) -> bool:
    """Whether an error says by itself that a training has diverged.

    So do floating-point errors, factorisations that fail, and optimizers of rlopt that refuse what is not finite.
    """
    numerical = isinstance(error, FloatingPointError | torch.linalg.LinAlgError)  # type: ignore[attr-defined]  # not in its __all__
    return numerical or (isinstance(error, RuntimeError) and "must be finite" in str(error))


def has_diverged(agent: OffPolicyAlgorithm) -> bool:
    """Whether a weight is not a number or too large."""
    return any(not bool((p.detach().abs() <= LARGEST_WEIGHT).all()) for p in agent.policy.parameters())  # nan is not


def ended_diverged(folder: Path) -> bool:
    """Whether a finished run had diverged at its last evaluation."""
    with (folder / "progress.csv").open(encoding="utf-8", newline="") as file:
        marks = [row["train/diverged"] for row in csv.DictReader(file) if row["train/diverged"]]  # others are of the log between
    return float(marks[-1]) == 1


class CostEvaluation(Evaluation):
    """Evaluates, logs what the optimizers cost, and notices divergence; arguments as of `Evaluation`.

    * `time/learning_cpu_seconds`: CPU seconds of all learning phases so far, without acting and evaluations.
    * `memory/optimizer_state_bytes`: tensors in the states of the optimizers.
    * `train/diverged`: 1 from divergence on.
    """

    _learning_seconds = 0.0
    _phase_start: float | None = None

    def state_dict(self) -> dict[str, float]:
        """CPU seconds of learning so far."""
        running = 0.0 if self._phase_start is None else time.process_time() - self._phase_start
        return {"learning_seconds": self._learning_seconds + running}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from what `state_dict` returned."""
        self._learning_seconds, self._phase_start = state["learning_seconds"], None

    def evaluate(self) -> float:
        """Return the mean return."""
        self._log_costs(diverged=False)
        return super().evaluate()

    def give_up(self) -> None:
        """Give the remaining evaluations the scores of random actions."""
        self._stop_clock()
        space = copy.deepcopy(self._envs[0].action_space)
        while self._points:
            self.num_timesteps = self._points.pop(0)
            seeds = np.random.SeedSequence(self._seed, spawn_key=(1, self.num_timesteps)).generate_state(len(self._envs) + 1)
            space.seed(int(seeds[-1]))
            returns = play(RandomActions(space), self._envs, seeds[:-1].tolist())
            self._log_costs(diverged=True)
            self.logger.record("eval/mean_reward", float(np.mean(returns)))
            self._recorder.evaluation(self.num_timesteps, float(np.mean(returns)))
            self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
            self.logger.dump(self.num_timesteps)
        self._on_training_end()

    def _log_costs(self, *, diverged: bool) -> None:
        self.logger.record(_SECONDS, self._learning_seconds)
        held = sum(state_bytes(optimizer.state_dict()) for optimizer in optimizers_of(self.model))
        self.logger.record(_MEMORY, held)
        self.logger.record("train/diverged", int(diverged))

    def _on_rollout_end(self) -> None:
        self._phase_start = time.process_time()

    def _stop_clock(self) -> None:
        if self._phase_start is not None:
            if self.model.device.type == "cuda":
                torch.cuda.synchronize(self.model.device)  # the clock must not stop before the work is done
            self._learning_seconds += time.process_time() - self._phase_start
            self._phase_start = None

    def _on_rollout_start(self) -> None:
        self._stop_clock()
        if has_diverged(cast(OffPolicyAlgorithm, self.model)):
            raise FloatingPointError(f"a weight is not a number or larger than {LARGEST_WEIGHT:g}")


class RandomActions:
    """A policy that draws its actions.

    Args:
        space: Draws them.
    """

    def __init__(self, space: gym.Space[Any]) -> None:
        self._space = space

    def predict(self, observations: Any, *, deterministic: bool) -> tuple[NDArray[Any], None]:
        """Return an action for each observation."""
        batch = next(iter(observations.values())) if isinstance(observations, dict) else observations
        return np.array([self._space.sample() for _ in batch]), None
