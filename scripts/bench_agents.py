"""Measure agents: what an update costs, and how many steps of an environment they do in a second of CPU time.

Stable-Baselines3, a bare loop in PyTorch (fused Adam, one `_foreach_lerp_`, no class in the way), rlopt's agents, and their fast
form take turns in one process, so that a machine that slows down slows all. Numbers are medians over rounds; ratios are those
within a round, with their range. The floor of an update is its products of matrices alone.

Commands:
    scripts/bench agents
    scripts/bench agents --quick
    scripts/bench agents --tasks sac_pendulum --json agents.json
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
import tyro
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn
from torch.nn import functional as F
from tyro.conf import arg

from rlopt import agents

Agent = Any
_OFF_POLICY = {"learning_starts": 500, "buffer_size": 20_000, "seed": 0, "device": "cpu", "gamma": 0.99}
_ZOO = {
    "learning_rate": 2.3e-3, "batch_size": 64, "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128,
    "exploration_fraction": 0.01, "exploration_final_eps": 0.04, "net_arch": [256, 256],
}  # fmt: skip
_EVERY_STEP = {
    "learning_rate": 1e-3, "batch_size": 64, "target_update_interval": 500, "train_freq": 1, "gradient_steps": 1,
    "exploration_fraction": 0.01, "exploration_final_eps": 0.05, "net_arch": [64, 64],
}  # fmt: skip
_CONTINUOUS = {
    "learning_rate": 1e-3, "batch_size": 256, "tau": 0.005, "train_freq": 1, "gradient_steps": 1, "net_arch": [256, 256],
}  # fmt: skip
# Name -> agent, environment, options, steps of a round.
TASKS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "dqn_every_step": ("DQN", "CartPole-v1", _EVERY_STEP, 2000),
    "dqn_zoo": ("DQN", "CartPole-v1", _ZOO, 2560),
    "td3_pendulum": ("TD3", "Pendulum-v1", _CONTINUOUS, 300),
    "td3_cheetah": ("TD3", "HalfCheetah-v5", _CONTINUOUS, 200),
    "sac_pendulum": ("SAC", "Pendulum-v1", _CONTINUOUS, 200),
}


@dataclass(frozen=True)
class Config:
    """What to measure."""

    tasks: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = tuple(TASKS)
    """Which agents on which environments: dqn_every_step (2x64, batch 64, an update each step), dqn_zoo (2x256, 128 updates
    after 256 steps), td3_pendulum, td3_cheetah, sac_pendulum (2x256, batch 256, an update each step)."""
    num_rounds: int = 7
    """Rounds of each, > 2."""
    quick: bool = False
    """Three rounds of a quarter of the steps."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers go, too."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.tasks if name not in TASKS]
        if unknown:
            raise ValueError(f"tasks must be among {', '.join(TASKS)}, got {unknown[0]}")
        if self.num_rounds < 3:
            raise ValueError(f"num_rounds must be > 2, got {self.num_rounds}")


@dataclass(frozen=True)
class Line:
    """What was measured of one contestant."""

    task: str
    who: str
    update_us: float
    steps_per_second: float
    update_ratio: float
    update_ratio_range: tuple[float, float]
    steps_ratio: float
    steps_ratio_range: tuple[float, float]


class BareLoop:
    """A loop as short as PyTorch's eager mode allows, with the same learning rule."""

    def __init__(self, kind: str, env_id: str, options: dict[str, Any]) -> None:
        self.kind, self.options = kind, options
        self.env = gym.make(env_id)
        space: Any = self.env.action_space
        self.is_discrete = kind == "DQN"
        self.num_actions = int(space.n) if self.is_discrete else space.shape[0]
        self.high = 1.0 if self.is_discrete else float(space.high[0])
        assert self.env.observation_space.shape is not None
        size = self.env.observation_space.shape[0]
        capacity = _OFF_POLICY["buffer_size"]
        self.memory = [torch.zeros(capacity, size), torch.zeros(capacity, size), torch.zeros(capacity), torch.zeros(capacity)]
        self.memory.append(
            torch.zeros(capacity, dtype=torch.int64) if self.is_discrete else torch.zeros(capacity, self.num_actions)
        )
        self.rng, self.steps, self.num_updates = np.random.default_rng(0), 0, 0
        outputs = {"DQN": self.num_actions, "TD3": self.num_actions, "SAC": 2 * self.num_actions}[kind]
        self.policy, self.policy_target = (_mlp(size, outputs, options["net_arch"]) for _ in range(2))
        self.policy_target.load_state_dict(self.policy.state_dict())
        self.policy_adam = self._adam(self.policy.parameters())
        if not self.is_discrete:
            self.critics, self.critics_target = (
                nn.ModuleList(_mlp(size + self.num_actions, 1, options["net_arch"]) for _ in range(2)) for _ in range(2)
            )
            self.critics_target.load_state_dict(self.critics.state_dict())
            self.critic_adam = self._adam(self.critics.parameters())
            self.log_alpha = torch.zeros(1, requires_grad=True)
            self.alpha_adam = self._adam([self.log_alpha])
        self.obs = self.env.reset(seed=0)[0].astype(np.float32)

    def _adam(self, params: Any) -> torch.optim.Adam:
        return torch.optim.Adam(params, lr=self.options["learning_rate"], fused=True)

    def learn(self, num_steps: int) -> None:
        """Act and learn."""
        options = self.options
        for _ in range(num_steps):
            action = self.act()
            obs, reward, terminated, truncated, _ = self.env.step(action if self.is_discrete else action * self.high)
            place = self.steps % len(self.memory[0])
            for column, value in zip(self.memory, (self.obs, obs, reward, terminated, action), strict=True):
                column.numpy()[place] = value
            self.obs = np.asarray(self.env.reset()[0] if terminated or truncated else obs, np.float32)
            self.steps += 1
            if self.steps > _OFF_POLICY["learning_starts"] and self.steps % options["train_freq"] == 0:
                self.train(options["gradient_steps"])
            if self.is_discrete and self.steps % options["target_update_interval"] == 0:
                _polyak(self.policy, self.policy_target, 1.0)

    def act(self) -> Any:
        """Explore."""
        if self.steps < _OFF_POLICY["learning_starts"] or (self.is_discrete and self.rng.random() < 0.05):
            return int(self.rng.integers(self.num_actions)) if self.is_discrete else self.rng.uniform(-1, 1, self.num_actions)
        with torch.no_grad():
            obs = torch.from_numpy(self.obs)
            if self.is_discrete:
                return int(self.policy(obs).argmax())
            if self.kind == "SAC":
                return self._draw(obs)[0].numpy()
            return (torch.tanh(self.policy(obs)) + 0.1 * torch.randn(self.num_actions)).clamp_(-1, 1).numpy()

    def train(self, num_updates: int) -> None:
        """Learn from batches."""
        for _ in range(num_updates):
            self.num_updates += 1
            index = torch.randint(0, min(self.steps, len(self.memory[0])), (self.options["batch_size"],))
            batch = [column.index_select(0, index) for column in self.memory]
            (self._update_dqn if self.is_discrete else self._update_actor_critic)(*batch)

    def _update_dqn(self, obs: Any, next_obs: Any, reward: Any, done: Any, action: Any) -> None:
        with torch.no_grad():
            target = reward + 0.99 * self.policy_target(next_obs).amax(1) * (1 - done)
        loss = F.smooth_l1_loss(self.policy(obs).gather(1, action[:, None]).squeeze(1), target)
        self.policy_adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 10.0)
        self.policy_adam.step()

    def _update_actor_critic(self, obs: Any, next_obs: Any, reward: Any, done: Any, action: Any) -> None:
        with torch.no_grad():
            if self.kind == "TD3":
                noise = (torch.randn_like(action) * 0.2).clamp_(-0.5, 0.5)
                next_action, bonus = (torch.tanh(self.policy_target(next_obs)) + noise).clamp_(-1, 1), 0.0
            else:
                next_action, log_prob = self._draw(next_obs)
                bonus = self.log_alpha.exp() * log_prob
            both = torch.cat([next_obs, next_action], 1)
            value = torch.min(*(critic(both).squeeze(1) for critic in self.critics_target))
            target = reward + 0.99 * (1 - done) * (value - bonus)
        both = torch.cat([obs, action], 1)
        loss = sum(F.mse_loss(critic(both).squeeze(1), target) for critic in self.critics)
        self.critic_adam.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        self.critic_adam.step()
        if self.kind == "TD3" and self.num_updates % 2:
            return
        self.critics.requires_grad_(False)
        if self.kind == "TD3":
            loss = -self.critics[0](torch.cat([obs, torch.tanh(self.policy(obs))], 1)).mean()
        else:
            drawn, log_prob = self._draw(obs)
            alpha_loss = -(self.log_alpha * (log_prob.detach() - self.num_actions)).mean()
            self.alpha_adam.zero_grad()
            alpha_loss.backward()
            self.alpha_adam.step()
            both = torch.cat([obs, drawn], 1)
            loss = (
                self.log_alpha.exp().detach() * log_prob - torch.min(*(critic(both).squeeze(1) for critic in self.critics))
            ).mean()
        self.policy_adam.zero_grad()
        loss.backward()
        self.policy_adam.step()
        self.critics.requires_grad_(True)
        _polyak(self.critics, self.critics_target, 0.005)
        if self.kind == "TD3":
            _polyak(self.policy, self.policy_target, 0.005)

    def _draw(self, obs: Any) -> Any:
        mean, log_std = self.policy(obs).chunk(2, -1)
        std = log_std.clamp(-20, 2).exp()
        raw = mean + std * torch.randn_like(mean)
        action = torch.tanh(raw)
        log_prob = -0.5 * ((raw - mean) / std) ** 2 - std.log() - 0.9189385 - torch.log(1 - action * action + 1e-6)
        return action, log_prob.sum(-1)


def _mlp(size: int, outputs: int, widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, outputs))


@torch.no_grad()
def _polyak(source: nn.Module, target: nn.Module, tau: float) -> None:
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)


class Contestant:
    """An agent or a loop that can be asked to learn for some steps, or to do some updates."""

    def __init__(self, who: str, kind: str, env_id: str, options: dict[str, Any]) -> None:
        self.who, self._batch_size = who, options["batch_size"]
        if who == "bare loop":
            self._loop: Any = BareLoop(kind, env_id, options)
            self.steps, self.updates = self._loop.learn, self._loop.train
            return
        given = {name: value for name, value in options.items() if name != "net_arch"} | _OFF_POLICY
        env = gym.make(env_id)
        if kind == "TD3":
            assert env.action_space.shape is not None
            given["action_noise"] = NormalActionNoise(np.zeros(env.action_space.shape), 0.1 * np.ones(env.action_space.shape))
        library = stable_baselines3 if who == "Stable-Baselines3" else agents
        extra = {"fast": True} if who == "rlopt, fast" else {}
        self._agent = getattr(library, kind)("MlpPolicy", env, policy_kwargs={"net_arch": options["net_arch"]}, **given, **extra)
        self.updates = lambda count: self._agent.train(gradient_steps=count, batch_size=self._batch_size)

    def steps(self, count: int) -> None:
        """Act and learn."""
        self._agent.learn(count, reset_num_timesteps=False, log_interval=10**9)


WHO = ("Stable-Baselines3", "bare loop", "rlopt", "rlopt, fast")


def floor(kind: str, env_id: str, options: dict[str, Any]) -> Callable[[], None]:
    """Return the products of matrices of one update (two thirds of them where the actor learns every second time)."""
    env = gym.make(env_id)
    assert env.observation_space.shape is not None
    obs, rows = env.observation_space.shape[0], options["batch_size"]
    space: Any = env.action_space
    act = int(space.n) if kind == "DQN" else space.shape[0]

    def passes(size: int, outputs: int) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
        widths = [size, *options["net_arch"], outputs]
        values = [torch.randn(rows, width) for width in widths]
        weights = [torch.randn(before, after) for before, after in pairwise(widths)]
        grads = [torch.empty_like(weight) for weight in weights]

        def forward() -> None:
            for value, weight, out in zip(values, weights, values[1:], strict=False):
                torch.mm(value, weight, out=out)

        def through() -> None:
            for i in reversed(range(1, len(weights))):
                torch.mm(values[i + 1], weights[i].t(), out=values[i])

        def backward() -> None:
            through()
            for value, grad, out in zip(values, grads, values[1:], strict=False):
                torch.mm(value.t(), out, out=grad)

        return forward, through, backward

    if kind == "DQN":
        forward, _, backward = passes(obs, act)
        return lambda: (forward(), forward(), backward())  # type: ignore[func-returns-value, return-value]
    forward, _, backward = passes(obs, act if kind == "TD3" else 2 * act)
    critic, through, learn = passes(obs + act, 1)
    num_actor = [0]

    def work() -> None:
        forward()
        for _ in range(2):
            critic()
            critic()
            learn()
        num_actor[0] += 1
        if kind == "SAC" or num_actor[0] % 2 == 0:
            forward()
            for _ in range(1 if kind == "TD3" else 2):
                critic()
                through()
            backward()

    return work


def measure(task: str, num_rounds: int, share: float, say: Callable[[str], None]) -> list[Line]:
    """Return the numbers of all contestants."""
    kind, env_id, options, steps = TASKS[task]
    steps = max(int(steps * share), options["train_freq"])
    num_updates = max(int(steps * share), 20)
    contestants = [Contestant(who, kind, env_id, options) for who in WHO]
    for contestant in contestants:
        contestant.steps(_OFF_POLICY["learning_starts"] + 2 * options["train_freq"])
        contestant.updates(20)
    products = floor(kind, env_id, options)
    step_times: list[list[float]] = []
    update_times: list[list[float]] = []
    for number in range(num_rounds):
        say(f"{task}: round {number + 1} of {num_rounds}")
        update_times.append([_seconds(lambda c=c: c.updates(num_updates)) / num_updates for c in contestants])  # type: ignore[misc]
        update_times[-1].append(_seconds(lambda: [products() for _ in range(num_updates)]) / num_updates)  # type: ignore[misc]
        step_times.append([_seconds(lambda c=c: c.steps(steps)) / steps for c in contestants])  # type: ignore[misc]
        step_times[-1].append(float("nan"))
    lines = []
    for i, who in enumerate((*WHO, "floor: products of matrices")):
        update_ratios = [row[i] / row[0] for row in update_times]
        step_ratios = [row[0] / row[i] for row in step_times]
        lines.append(
            Line(
                task, who, 1e6 * statistics.median(row[i] for row in update_times),
                1 / statistics.median(row[i] for row in step_times),
                statistics.median(update_ratios), (min(update_ratios), max(update_ratios)),
                statistics.median(step_ratios), (min(step_ratios), max(step_ratios)),
            )
        )  # fmt: skip
    return lines


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> int:
    """Print the table."""
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    console = Console()
    table = Table("task", "who", "update, us", "relative (range)", "steps / CPU s", "relative (range)", box=None)
    lines: list[Line] = []
    with console.status("") as status:
        for task in config.tasks:
            rounds, share = (3, 0.25) if config.quick else (config.num_rounds, 1.0)
            lines += measure(task, rounds, share, status.update)
    for line in lines:
        is_floor = line.who.startswith("floor")
        steps = "" if is_floor else f"{line.steps_per_second:,.0f}"
        ratio = "" if is_floor else f"{line.steps_ratio:.2f} ({line.steps_ratio_range[0]:.2f} to {line.steps_ratio_range[1]:.2f})"
        low, high = line.update_ratio_range
        table.add_row(
            line.task, line.who, f"{line.update_us:,.0f}", f"{line.update_ratio:.3f} ({low:.3f} to {high:.3f})", steps, ratio
        )
    console.print(table)
    if config.json is not None:
        content = [{**asdict(line), "steps_per_second": None} if line.who.startswith("floor") else asdict(line) for line in lines]
        config.json.write_text(json.dumps(content, indent=1).replace("NaN", "null"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
