"""One run of a Q-learner on a problem whose optimal values are known."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.logger import configure

import rlopt_envs
from rlopt.study import Recorder
from rlopt.sysid.estimator import log_checkpoints
from rlopt.sysid.q_buffers import find_buffers
from rlopt.sysid.q_learning import QLearning, QLearningReplay, QRex, QRexDaRe
from rlopt.sysid.transitions import Transitions, collect, tabular_features
from rlopt_envs.finite_mdp import FiniteMDP

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# Errors are kept in this range: reports need finite numbers, and logarithms need positive ones. The upper end means divergence.
SMALLEST_ERROR, LARGEST_ERROR = 1e-12, 1e6

DEFAULT_DISCOUNT = 0.9  # of environments that have none of their own


class Problem(NamedTuple):
    """What is to be learned.

    Attributes:
        env: The environment.
        features: Table (S, A, d).
        discount: γ.
        optimal_q: Q*, (S, A).
        behaviour_policy: What gathers the data, (S, A).
        counted: Pairs that the behaviour policy meets, (S, A) bool; only there errors are measured.
        initial_weights: (d,).
        mdp: The process for fast simulation, None where the environment itself must be stepped.
    """

    env: gym.Env[Any, Any]
    features: FloatArray
    discount: float
    optimal_q: FloatArray
    behaviour_policy: FloatArray
    counted: BoolArray
    initial_weights: FloatArray
    mdp: FiniteMDP | None


def learn(config: dict[str, Any], seed: int, folder: Path) -> None:
    """Learn from a growing part of one stream of data; the function of the study.

    Args:
        config: `env_id`, `discount`, `features`, `method` and its options, `num_samples`, `num_checkpoints`.
        seed: Everything random derives from it: the data, which all methods share, and the draws of a method.
        folder: Where progress.csv and TensorBoard events go.
    """
    recorder = Recorder(folder)
    recorder.progress(0)
    problem = load_problem(config["env_id"], config["discount"], config["features"])
    data = make_data(problem, config["num_samples"], seed)
    learner = make_learner(config, problem, seed)
    points = log_checkpoints(len(data), config["num_checkpoints"], config["gap"] + config["buffer_size"])
    logger = configure(str(folder), ["csv", "tensorboard"])
    for start, stop in pairwise([0, *points.tolist()]):
        found = error(weights_after(learner, data, start, stop, problem), problem)
        recorder.evaluation(stop, found)
        logger.record("error/max_abs", found)
        logger.record("error/diverged", float(found == LARGEST_ERROR))
        logger.record("samples", stop, exclude="tensorboard")
        logger.dump(stop)
    logger.close()


def load_problem(env_id: str, discount: float | None, features: str) -> Problem:
    """Return the problem that an environment poses.

    Args:
        env_id: An environment of rlopt_envs with `optimal_q`, or one with a table `P` of transitions (Gymnasium's toy text).
        discount: γ; None: the environment's own, or 0.9.
        features: "own" or "tabular".

    Raises:
        ValueError: If the optimal values cannot be known.
    """
    options: dict[str, Any] = {} if discount is None or env_id not in rlopt_envs.ENV_IDS else {"discount": discount}
    env = gym.make(env_id, **options)
    base: Any = env.unwrapped
    if hasattr(base, "optimal_q"):
        mdp, policy, optimal_q = base.mdp, base.behaviour_policy, base.optimal_q
        simulated, law = mdp, mdp.stationary_law(policy)
    elif hasattr(base, "P"):
        mdp = from_table(base.P, base.initial_state_distrib, DEFAULT_DISCOUNT if discount is None else discount)
        num_states = len(base.P)
        optimal_q, simulated = mdp.value_iteration()[:num_states], None
        law = mdp.stationary_law()[:num_states]
        policy = np.full(optimal_q.shape, 1.0 / mdp.num_actions)
    else:
        raise ValueError(
            f"env_id must be an environment with finitely many states and known transitions, got {env_id}; for instance "
            f"rlopt/RingMDP-v0 or FrozenLake-v1"
        )
    table, first = tabular_features(*optimal_q.shape), None
    if features == "own" and hasattr(base, "features"):
        table, first = base.features, getattr(base, "initial_weights", None)
    initial_weights = np.zeros(table.shape[-1]) if first is None else first
    counted = (law[:, None] > 1e-12) & (policy > 0)
    return Problem(env, table, mdp.discount, optimal_q, policy, counted, initial_weights, simulated)


def from_table(table: dict[int, dict[int, list[Any]]], initial: FloatArray, discount: float) -> FiniteMDP:
    """Return the process of a table state -> action -> [(probability, next state, reward, terminated)].

    Transitions that terminate lead to one more state, the last one, which is terminal.
    """
    num_states, num_actions = len(table), len(table[0])
    transition = np.zeros((num_states + 1, num_actions, num_states + 1))
    reward = np.zeros((num_states + 1, num_actions))
    for state, actions in table.items():
        for action, outcomes in actions.items():
            for probability, following, gain, terminated in outcomes:
                transition[state, action, num_states if terminated else following] += probability
                reward[state, action] += probability * gain
    terminal = np.arange(num_states + 1) == num_states
    return FiniteMDP(transition, reward, discount, terminal, np.append(np.asarray(initial, np.float64), 0.0))


def make_data(problem: Problem, num_samples: int, seed: int) -> Transitions:
    """Return the data of a seed, one stream of the behaviour policy."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
    if problem.mdp is not None:
        return Transitions.from_rollout(problem.mdp.simulate(num_samples, rng, problem.behaviour_policy))
    assert isinstance(problem.env.observation_space, spaces.Discrete)
    return collect(problem.env, num_samples, problem.behaviour_policy, seed=int(rng.integers(2**31)))


def make_learner(config: dict[str, Any], problem: Problem, seed: int) -> QLearning | QLearningReplay | QRex | QRexDaRe:
    """Return the learner of a run."""
    common: dict[str, Any] = {"step_size": config["step_size"], "initial_weights": problem.initial_weights}
    buffers = {"buffer_size": config["buffer_size"], "gap": config["gap"], **common}
    draws = int(np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(1)[0])
    where = problem.features, problem.discount
    match config["method"]:
        case "qlearning":
            return QLearning(*where, **common)
        case "qlearning_replay":
            return QLearningReplay(*where, seed=draws, **buffers)
        case "qrex":
            return QRex(*where, num_buffers=config["num_buffers"], **buffers)
        case "qrex_forward":
            return QRex(*where, num_buffers=config["num_buffers"], order="forward", **buffers)
        case "qrex_random":
            return QRex(*where, num_buffers=config["num_buffers"], order="random", seed=draws, **buffers)
        case "qrex_dare":
            return QRexDaRe(*where, num_targets=config["num_targets"], **buffers)
        case method:
            raise ValueError(f"method must be one that this experiment knows, got {method}")


def weights_after(
    learner: QLearning | QLearningReplay | QRex | QRexDaRe, data: Transitions, start: int, stop: int, problem: Problem
) -> FloatArray:
    """Return what a learner knows after `stop` transitions, having met `start` before.

    Q-RexDaRe, which goes through its data many times, begins anew with all of them.
    """
    if not isinstance(learner, QRexDaRe):
        return learner.partial_fit(data[start:stop]).weights_
    part = data[:stop]
    has_buffer = len(find_buffers(part, learner.gap, learner.buffer_size)[0]) > 0
    return learner.fit(part, num_checkpoints=1).weights_ if has_buffer else problem.initial_weights


def error(weights: FloatArray, problem: Problem) -> float:
    """Return the largest |Q_w - Q*| over the pairs that count, within the range that a report can show."""
    with np.errstate(over="ignore", invalid="ignore"):  # weights that have diverged
        differences = np.abs(problem.features @ weights - problem.optimal_q)[problem.counted]
    largest = float(differences.max())
    return LARGEST_ERROR if not largest < LARGEST_ERROR else max(largest, SMALLEST_ERROR)
