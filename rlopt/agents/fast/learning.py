"""The learning steps of DQN, TD3, DDPG and SAC in their fast form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from rlopt.agents.fast.adam import FlatAdam, flatten
from rlopt.agents.fast.dqn import DQNGradient
from rlopt.agents.fast.mlp import StackedMLP
from rlopt.agents.fast.networks import NumpyPolicy, check_agent, flat_adam, shape_of, taken_over
from rlopt.agents.fast.sac import LOG_STD_RANGE, SACGradient, SquashedGaussian
from rlopt.agents.fast.td3 import TD3Gradient, TwinCritics
from rlopt.optim import NonFiniteError


class FastDQN:
    """Learning step of a `rlopt.agents.DQN`, whose Q-networks it takes over.

    Raises:
        ValueError: If the agent has no fast form.
    """

    def __init__(self, agent: Any) -> None:
        check_agent(agent)
        self._agent = agent
        self.online = taken_over(agent.q_net.q_net, "the Q-network")
        self.target = taken_over(agent.q_net_target.q_net, "the Q-network")
        self._gradient = DQNGradient(self.online, self.target, agent.gamma, agent.double_q, agent.max_grad_norm)
        parameters = list(agent.q_net.parameters())
        agent.policy.optimizer = flat_adam(agent.policy.optimizer, parameters, self.online.params, self._gradient.grads)
        self._act = NumpyPolicy(self.online) if agent.device.type == "cpu" else None

    def learn(self, batch: Any) -> tuple[th.Tensor, th.Tensor] | None:
        """Take a step; returns the loss and the TD errors (B, 1), None if the step was left out."""
        loss, errors = self._gradient(stacked(batch))
        if not stepped(self._agent, self._agent.policy.optimizer, loss, self._gradient.grads, "the loss"):
            return None
        return loss, errors[0]

    def update_target(self, tau: float) -> None:
        """Move the target network."""
        self.target.params.lerp_(self.online.params, tau)

    def explore(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        """Epsilon-greedy actions (B,), with the draws of Stable-Baselines3's."""
        if np.random.rand() < self._agent.exploration_rate:  # noqa: NPY002
            return np.array([self._agent.action_space.sample() for _ in range(len(observations))])
        if self._act is not None:
            values = self._act(_rows(observations))
        else:
            values = self.online.forward(th.as_tensor(_rows(observations), device=self._agent.device)[None], "act")[0].cpu().numpy()
        return np.asarray(values.argmax(1))


class FastTD3:
    """Learning step of a `rlopt.agents.TD3` or `DDPG`, whose networks it takes over.

    Raises:
        ValueError: If the agent has no fast form.
    """

    def __init__(self, agent: Any) -> None:
        check_agent(agent)
        self._agent = agent
        self.actor, self.actor_target = (taken_over(one.mu[:-1], "the actor") for one in (agent.actor, agent.actor_target))
        self.critics, self.critics_target = (_critics(one) for one in (agent.critic, agent.critic_target))
        self._gradient = TD3Gradient(
            self.actor, self.actor_target, self.critics, self.critics_target,
            agent.gamma, agent.target_policy_noise, agent.target_noise_clip,
        )  # fmt: skip
        for part, params, grads in (
            (agent.actor, self.actor.params, self._gradient.actor_grads),
            (agent.critic, self.critics.params, self._gradient.critic_grads),
        ):
            part.optimizer = flat_adam(part.optimizer, list(part.parameters()), params, grads)
        self._act = NumpyPolicy(self.actor) if agent.device.type == "cpu" else None

    def learn_critics(self, batch: Any) -> tuple[th.Tensor, th.Tensor] | None:
        """Take a step of the critics; returns their loss and the TD errors (B, 1), None if the step was left out."""
        loss, errors = self._gradient.of_critics(stacked(batch))
        done = stepped(self._agent, self._agent.critic.optimizer, loss, self._gradient.critic_grads, "the loss of the critic")
        return (loss, errors[0]) if done else None

    def learn_actor(self, batch: Any) -> th.Tensor | None:
        """Take a step of the actor; returns its loss, None if the step was left out."""
        loss = self._gradient.of_actor(stacked(batch))
        done = stepped(self._agent, self._agent.actor.optimizer, loss, self._gradient.actor_grads, "the loss of the actor")
        return loss if done else None

    def update_targets(self, tau: float) -> None:
        """Move the target networks."""
        self.critics_target.params.lerp_(self.critics.params, tau)
        self.actor_target.params.lerp_(self.actor.params, tau)

    def explore(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Actions (B, A) in [-1, 1], without noise."""
        if self._act is not None:
            return np.tanh(self._act(_rows(observations)))
        rows = th.as_tensor(_rows(observations), device=self._agent.device)[None]
        return self.actor.forward(rows, "act")[0].tanh().cpu().numpy()


class FastSAC:
    """Learning step of a `rlopt.agents.SAC`, whose networks it takes over.

    Raises:
        ValueError: If the agent has no fast form.
    """

    def __init__(self, agent: Any) -> None:
        check_agent(agent)
        self._agent = agent
        actor = agent.actor
        widths, activation = shape_of(actor.latent_pi[:-1], "the actor")
        # The heads of mean and deviation become one layer.
        in_order = [*actor.latent_pi.parameters(), actor.mu.weight, actor.log_std.weight, actor.mu.bias, actor.log_std.bias]
        network = StackedMLP([*widths, 2 * actor.mu.out_features], 1, activation, flatten(in_order))
        self._policy = SquashedGaussian(network)
        self.critics, self.critics_target = (_critics(one) for one in (agent.critic, agent.critic_target))
        self._gradient = SACGradient(self._policy, self.critics, self.critics_target, agent.gamma)
        actor.optimizer = flat_adam(actor.optimizer, in_order, network.params, self._gradient.actor_grads)
        parameters = list(agent.critic.parameters())
        agent.critic.optimizer = flat_adam(agent.critic.optimizer, parameters, self.critics.params, self._gradient.critic_grads)
        self._act = NumpyPolicy(network) if agent.device.type == "cpu" else None
        self._log_ent_coef_grad: th.Tensor | None = None
        if agent.ent_coef_optimizer is not None:
            flat = agent.log_ent_coef.detach().view(1, 1)
            self._log_ent_coef_grad = th.zeros_like(flat)
            agent.ent_coef_optimizer = flat_adam(agent.ent_coef_optimizer, [agent.log_ent_coef], flat, self._log_ent_coef_grad)

    def explore(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Draw actions (B, A) in (-1, 1), with the draws of Stable-Baselines3's."""
        if self._act is None:
            rows = th.as_tensor(_rows(observations), device=self._agent.device)[None]
            with th.no_grad():
                return self._policy.sample(rows, "act")[0][0].cpu().numpy()
        mean, log_std = np.split(self._act(_rows(observations)), 2, axis=1)
        noise = th.empty(mean.shape).normal_().numpy()
        return np.asarray(np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise))

    def draw(self, batch: Any) -> tuple[th.Tensor, th.Tensor]:
        """Draw the policy's actions (1, B, A) for a batch, with log pi (1, B, 1)."""
        with th.no_grad():
            return self._policy.sample(batch.observations.unsqueeze(0))

    def learn_entropy_coefficient(self, log_prob: th.Tensor) -> th.Tensor | None:
        """Take a step of the entropy coefficient; returns its loss, None if the step was left out."""
        assert self._log_ent_coef_grad is not None
        with th.no_grad():
            distance = (log_prob + self._agent.target_entropy).mean()
            loss = -(self._agent.log_ent_coef.detach() * distance)
            self._log_ent_coef_grad.copy_(-distance)
        optimizer = self._agent.ent_coef_optimizer
        done = stepped(self._agent, optimizer, loss, self._log_ent_coef_grad, "the loss of the entropy coefficient")
        return loss if done else None

    def learn_critics(self, batch: Any, ent_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor] | None:
        """Take a step of the critics; returns their loss and the TD errors (B, 1), None if the step was left out."""
        loss, errors = self._gradient.of_critics(stacked(batch), ent_coef.view(1, 1, 1))
        done = stepped(self._agent, self._agent.critic.optimizer, loss, self._gradient.critic_grads, "the loss of the critic")
        return (loss, errors[0]) if done else None

    def learn_actor(self, batch: Any, ent_coef: th.Tensor, actions: th.Tensor, log_prob: th.Tensor) -> th.Tensor | None:
        """Take a step of the actor from actions drawn by `draw`; returns its loss, None if the step was left out."""
        loss = self._gradient.of_actor(stacked(batch), ent_coef.view(1, 1, 1), actions, log_prob)
        done = stepped(self._agent, self._agent.actor.optimizer, loss, self._gradient.actor_grads, "the loss of the actor")
        return loss if done else None

    def update_target(self, tau: float) -> None:
        """Move the target networks."""
        self.critics_target.params.lerp_(self.critics.params, tau)


class _Stacked:
    """A batch with a leading dimension of one agent."""

    __slots__ = ("actions", "discounts", "dones", "next_observations", "observations", "rewards", "weights")

    def __init__(self, batch: Any) -> None:
        self.observations = batch.observations.float().flatten(1).unsqueeze(0)
        self.next_observations = batch.next_observations.float().flatten(1).unsqueeze(0)
        self.actions = batch.actions.unsqueeze(0)
        self.rewards = batch.rewards.unsqueeze(0)
        self.dones = batch.dones.unsqueeze(0)
        self.weights = batch.weights.unsqueeze(0)
        self.discounts = None if batch.discounts is None else batch.discounts.unsqueeze(0)


def stacked(batch: Any) -> Any:
    """Return a batch with a leading dimension of one agent; observations are flat."""
    return _Stacked(batch)


def stepped(agent: Any, optimizer: FlatAdam, loss: th.Tensor, grads: th.Tensor, of: str) -> bool:
    """Take a step if loss and gradient are finite; otherwise leave it out or end the run, as the agent was told.

    Raises:
        NonFiniteError: If the agent ends the run.
    """
    try:
        agent._finite.look(of, loss.sum(), th.linalg.vector_norm(grads) * 0.0, optimizer)
    except NonFiniteError as error:
        agent._finite.settle(error, _nothing if agent.non_finite == "skip" else None, optimizer)
        return False
    optimizer.take()
    return True


def _nothing() -> None:
    """Nothing has to be undone: the step comes after the look."""


def _critics(critic: Any) -> TwinCritics:
    widths, activation = shape_of(critic.q_networks[0], "the critic")
    return TwinCritics(flatten(list(critic.parameters())), widths, activation, len(critic.q_networks))


def _rows(observations: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(observations, np.float32).reshape(len(observations), -1)
