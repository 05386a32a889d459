"""A loop of DQN, TD3 and SAC as short as PyTorch's eager mode allows, a rival for bench_agents.py.

Fused Adam, one `_foreach_lerp_` per target update, no class in the way; the learning rules are those of Stable-Baselines3.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class BareLoop:
    """The loop; `options` are those of the agents, in Stable-Baselines3's words."""

    def __init__(self, kind: str, env_id: str, options: dict[str, Any]) -> None:
        self.kind, self.options, self.device = kind, options, options["device"]
        self.env = gym.make(env_id)
        space: Any = self.env.action_space
        self.is_discrete = kind == "DQN"
        self.num_actions = int(space.n) if self.is_discrete else space.shape[0]
        self.high = 1.0 if self.is_discrete else float(space.high[0])
        assert self.env.observation_space.shape is not None
        size = self.env.observation_space.shape[0]
        capacity = options["buffer_size"]
        self.memory = [torch.zeros(capacity, size), torch.zeros(capacity, size), torch.zeros(capacity), torch.zeros(capacity)]
        self.memory.append(
            torch.zeros(capacity, dtype=torch.int64) if self.is_discrete else torch.zeros(capacity, self.num_actions)
        )
        self.rng, self.steps, self.num_updates = np.random.default_rng(0), 0, 0
        outputs = {"DQN": self.num_actions, "TD3": self.num_actions, "SAC": 2 * self.num_actions}[kind]
        self.policy, self.policy_target = (_mlp(size, outputs, options["net_arch"]).to(self.device) for _ in range(2))
        self.policy_target.load_state_dict(self.policy.state_dict())
        self.policy_adam = self._adam(self.policy.parameters())
        if not self.is_discrete:
            self.critics, self.critics_target = (
                nn.ModuleList(_mlp(size + self.num_actions, 1, options["net_arch"]) for _ in range(2)).to(self.device)
                for _ in range(2)
            )
            self.critics_target.load_state_dict(self.critics.state_dict())
            self.critic_adam = self._adam(self.critics.parameters())
            self.log_alpha = torch.zeros(1, requires_grad=True, device=self.device)
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
            if self.steps > options["learning_starts"] and self.steps % options["train_freq"] == 0:
                self.train(options["gradient_steps"])
            if self.is_discrete and self.steps % options["target_update_interval"] == 0:
                _polyak(self.policy, self.policy_target, 1.0)

    def act(self) -> Any:
        """Explore."""
        if self.steps < self.options["learning_starts"] or (self.is_discrete and self.rng.random() < 0.05):
            return int(self.rng.integers(self.num_actions)) if self.is_discrete else self.rng.uniform(-1, 1, self.num_actions)
        with torch.no_grad():
            obs = torch.from_numpy(self.obs).to(self.device)
            if self.is_discrete:
                return int(self.policy(obs).argmax())
            if self.kind == "SAC":
                return self._draw(obs)[0].cpu().numpy()
            return (torch.tanh(self.policy(obs)).cpu() + 0.1 * torch.randn(self.num_actions)).clamp_(-1, 1).numpy()

    def train(self, num_updates: int) -> None:
        """Learn from batches."""
        for _ in range(num_updates):
            self.num_updates += 1
            index = torch.randint(0, min(self.steps, len(self.memory[0])), (self.options["batch_size"],))
            batch = [column.index_select(0, index).to(self.device) for column in self.memory]
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
