"""What introspective replay costs per environment step of a whole agent, for bench_replay.py."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from _bench import take_turns

from rlopt.agents import DQN
from rlopt.replay import IntrospectiveReplay, Replay, UniformReplay

NUM_RANDOM = 1000  # transitions of random actions, repeated to fill a memory
MIN_STEPS = 512  # of a timed block, but for full scoring, whose phases take seconds


@dataclass(frozen=True)
class LoopCost:
    """CPU time of an environment step, learning included, and relative to uniform replay in the same turn."""

    fast: bool
    replay: str
    rescore_after: int | None
    capacity: int
    steps_per_phase: int
    cpu_us: float
    cpu_us_low: float
    cpu_us_high: float
    ratio: float


def measure_loop(capacity: int, phases: tuple[int, ...], rescore_after: tuple[int, ...], num_blocks: int) -> list[LoopCost]:
    """Measure DQN, 2 hidden layers of 64, batch 64, an update per step of CartPole-v1, with a full memory.

    Args:
        capacity: Transitions in the memory.
        phases: Steps, and updates, of a learning phase.
        rescore_after: Values of the option of introspective replay.
        num_blocks: Timed blocks.
    """
    rows = []
    for steps in phases:
        for fast in (False, True):
            agents = {("uniform", None): make_agent(UniformReplay, capacity, steps, fast)}
            for period in rescore_after:
                agents["introspective", period] = make_agent(IntrospectiveReplay, capacity, steps, fast, rescore_after=period)
            num_steps = {key: steps if key[1] == 1 else max(steps, MIN_STEPS) for key in agents}
            calls = {str(key): learner(agent, num_steps[key]) for key, agent in agents.items()}
            times = take_turns(calls, num_blocks)
            per_step = {key: [1e6 * value / num_steps[key] for value in times[str(key)]] for key in agents}
            base = per_step["uniform", None]
            for (name, period), values in per_step.items():
                ratio = statistics.median(x / y for x, y in zip(values, base, strict=True))
                numbers = (statistics.median(values), min(values), max(values))
                rows.append(LoopCost(fast, name, period, capacity, steps, *numbers, ratio))
    return rows


def make_agent(replay_class: type[Replay], capacity: int, steps: int, fast: bool, **options: Any) -> DQN:
    """Return an agent whose memory is full."""
    agent = DQN(
        "MlpPolicy",
        "CartPole-v1",
        buffer_size=capacity,
        batch_size=64,
        learning_starts=0,
        train_freq=steps,
        gradient_steps=steps,
        target_update_interval=1000,
        policy_kwargs={"net_arch": [64, 64]},
        replay_buffer_class=replay_class,
        replay_buffer_kwargs=options,
        fast=fast,
        seed=0,
    )
    assert isinstance(agent.replay_buffer, Replay)
    fill(agent.replay_buffer)
    return agent


def fill(replay: Replay) -> None:
    """Fill a memory with random transitions."""
    rng = np.random.default_rng(0)
    obs = rng.standard_normal((NUM_RANDOM + 1, 1, 4), dtype=np.float32)
    for i in range(NUM_RANDOM):
        done = np.array([i % 100 == 99])
        replay.add(obs[i], obs[i + 1], rng.integers(0, 2, 1), rng.standard_normal(1), done, [{}])
    state = replay.storage.state_dict()
    (part,) = state["parts"]
    repeats = -(-replay.capacity // NUM_RANDOM)
    state["num_added"] *= repeats
    part["first"] = state["num_added"] - replay.capacity
    rest = slice(repeats * NUM_RANDOM - replay.capacity, None)
    part["columns"] = {name: np.concatenate([value] * repeats)[rest] for name, value in part["columns"].items()}
    for name in ("episode_step", "truncated"):
        part[name] = np.tile(part[name], repeats)[rest]
    replay.storage.load_state_dict(state)


def learner(agent: DQN, num_steps: int) -> Callable[[], object]:
    """Return a call that goes on for `num_steps` environment steps."""
    return lambda: agent.learn(num_steps, log_interval=None, reset_num_timesteps=False)


def format_loop(rows: list[LoopCost]) -> str:
    """Return a table: a line per replay, a column per length of a phase and form of the agent."""
    columns = list(dict.fromkeys((row.steps_per_phase, row.fast) for row in rows))
    cells = {(row.replay, row.rescore_after, row.steps_per_phase, row.fast): row for row in rows}
    head = [f"phases of {steps} steps{', fast' if fast else ''}" for steps, fast in columns]
    lines = ["| replay | rescore_after | " + " | ".join(head) + " |", "| --- | ---: " + "| ---: " * len(columns) + "|"]
    for name, period in dict.fromkeys((row.replay, row.rescore_after) for row in rows):
        found = [cells[(name, period, *column)] for column in columns]
        texts = [f"{row.cpu_us:.0f} ({row.ratio:.2f})" for row in found]
        lines.append(f"| {name} | {'' if period is None else period} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
