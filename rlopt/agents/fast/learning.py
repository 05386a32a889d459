"""The learning steps of DQN, TD3, DDPG and SAC in their fast form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from rlopt.agents.fast.adam import FlatAdam, flatten
from rlopt.agents.fast.dqn import DQNGradient
from rlopt.agents.fast.mlp import StackedMLP
from rlopt.agents.fast.networks import acting, check_agent, compiled_for, flat_adam, shape_of, taken_over
from rlopt.agents.fast.sac import LOG_STD_RANGE, SACGradient, SquashedGaussian
from rlopt.agents.fast.td3 import TD3Gradient, TwinCritics
from rlopt.optim import NonFiniteError

if TYPE_CHECKING:
    from rlopt.agents.fast.compiled import Arrays, Drawn

Update = tuple[th.Tensor, th.Tensor]
"""Loss, and TD errors (B, 1)."""


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
        compiled = compiled_for([self.online])
        self._compiled = compiled and compiled.CompiledDQN(self.online, self.target, agent.double_q, agent.max_grad_norm)
        self._act = acting(self.online)

    def learn(self, batch: Any) -> Update | None:
        """Take a step; returns the loss and the TD errors (B, 1), None if the step was left out."""
        optimizer = self._agent.policy.optimizer
        if self._compiled is None:
            loss, errors = self._gradient(stacked(batch))
            return (loss, errors[0]) if stepped(self._agent, optimizer, loss, self._gradient.grads, "the loss") else None
        learned = self._compiled.learn(arrays_of(batch, self._agent.gamma), optimizer.arguments())
        return updated(self._agent, optimizer, learned, "the loss")

    def update_target(self, tau: float) -> None:
        """Move the target network."""
        self.target.params.lerp_(self.online.params, tau)

    def explore(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        """Epsilon-greedy actions (B,), with the draws of Stable-Baselines3's."""
        if np.random.rand() < self._agent.exploration_rate:  # noqa: NPY002
            return np.array([self._agent.action_space.sample() for _ in range(len(observations))])
        return np.asarray(self._act(_rows(observations)).argmax(1))


class FastTD3:
    """Learning step of a `rlopt.agents.TD3` or `DDPG`, whose networks it takes over.

    Raises:
        ValueError: If the agent has no fast form.
    """

    def __init__(self, agent: Any) -> None:
        check_agent(agent)
        self._agent = agent
        self._arrays: Arrays
        self.actor, self.actor_target = (taken_over(one.mu[:-1], "the actor") for one in (agent.actor, agent.actor_target))
        self.critics, self.critics_target = (_critics(one) for one in (agent.critic, agent.critic_target))
        networks = self.actor, self.actor_target, self.critics, self.critics_target
        noise = agent.target_policy_noise, agent.target_noise_clip
        self._gradient = TD3Gradient(*networks, agent.gamma, *noise)
        for part, params, grads in (
            (agent.actor, self.actor.params, self._gradient.actor_grads),
            (agent.critic, self.critics.params, self._gradient.critic_grads),
        ):
            part.optimizer = flat_adam(part.optimizer, list(part.parameters()), params, grads)
        compiled = compiled_for([self.actor, self.critics.all])
        self._compiled = compiled and compiled.CompiledTD3(*networks, *noise)
        self._act = acting(self.actor)

    def learn_critics(self, batch: Any) -> Update | None:
        """Take a step of the critics; returns their loss and the TD errors (B, 1), None if the step was left out."""
        optimizer, of = self._agent.critic.optimizer, "the loss of the critic"
        if self._compiled is None:
            loss, errors = self._gradient.of_critics(stacked(batch))
            return (loss, errors[0]) if stepped(self._agent, optimizer, loss, self._gradient.critic_grads, of) else None
        self._arrays = arrays_of(batch, self._agent.gamma)
        learned = self._compiled.learn_critics(self._arrays, self._compiled.noise(self._arrays), optimizer.arguments())
        return updated(self._agent, optimizer, learned, of)

    def learn_actor(self, batch: Any) -> th.Tensor | None:
        """Take a step of the actor with the batch that the critics had; returns its loss, None if the step was left out."""
        optimizer, of = self._agent.actor.optimizer, "the loss of the actor"
        if self._compiled is None:
            loss = self._gradient.of_actor(stacked(batch))
            return loss if stepped(self._agent, optimizer, loss, self._gradient.actor_grads, of) else None
        update = updated(self._agent, optimizer, self._compiled.learn_actor(self._arrays, optimizer.arguments()), of)
        return None if update is None else update[0]

    def update_targets(self, tau: float) -> None:
        """Move the target networks."""
        self.critics_target.params.lerp_(self.critics.params, tau)
        self.actor_target.params.lerp_(self.actor.params, tau)

    def explore(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Actions (B, A) in [-1, 1], without noise."""
        return np.tanh(self._act(_rows(observations)))


class FastSAC:
    """Learning step of a `rlopt.agents.SAC`, whose networks it takes over.

    Raises:
        ValueError: If the agent has no fast form.
    """

    def __init__(self, agent: Any) -> None:
        check_agent(agent)
        self._agent = agent
        self._arrays: Arrays
        self._drawn: Drawn
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
        compiled = compiled_for([network, self.critics.all])
        self._compiled = compiled and compiled.CompiledSAC(self._policy, self.critics, self.critics_target)
        self._act = acting(network)
        self._log_ent_coef_grad: th.Tensor | None = None
        if agent.ent_coef_optimizer is not None:
            self._log_ent_coef = flat = agent.log_ent_coef.detach().view(1, 1)
            self._log_ent_coef_grad = th.zeros_like(flat)
            agent.ent_coef_optimizer = flat_adam(agent.ent_coef_optimizer, [agent.log_ent_coef], flat, self._log_ent_coef_grad)

    def explore(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Draw actions (B, A) in (-1, 1), with the draws of Stable-Baselines3's."""
        if self._agent.device.type != "cpu":  # noise from the device's generator
            rows = th.as_tensor(_rows(observations), device=self._agent.device)[None]
            with th.no_grad():
                return self._policy.sample(rows, "act")[0][0].cpu().numpy()
        mean, log_std = np.split(self._act(_rows(observations)), 2, axis=1)
        noise = th.empty(mean.shape).normal_().numpy()
        return np.asarray(np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise))

    def draw(self, batch: Any) -> tuple[th.Tensor, th.Tensor]:
        """Draw the policy's actions (1, B, A) for a batch, with log pi (1, B, 1); the steps that follow are those of this batch."""
        if self._compiled is None:
            with th.no_grad():
                return self._policy.sample(batch.observations.unsqueeze(0))
        self._arrays = arrays_of(batch, self._agent.gamma)
        self._drawn = self._compiled.draw(self._arrays, _normal(self._arrays.actions.shape))
        return th.from_numpy(self._drawn.actions), th.from_numpy(self._drawn.log_probs)

    def learn_entropy_coefficient(self, log_prob: th.Tensor) -> th.Tensor | None:
        """Take a step of the entropy coefficient; returns its loss, None if the step was left out."""
        optimizer, of = self._agent.ent_coef_optimizer, "the loss of the entropy coefficient"
        if self._compiled is None:
            assert self._log_ent_coef_grad is not None
            with th.no_grad():
                distance = (log_prob + self._agent.target_entropy).mean()
                loss = -(self._agent.log_ent_coef.detach() * distance)
                self._log_ent_coef_grad.copy_(-distance)
            return loss if stepped(self._agent, optimizer, loss, self._log_ent_coef_grad, of) else None
        learned = self._compiled.learn_ent_coefs(
            self._log_ent_coef.numpy(), self._drawn, self._agent.target_entropy, optimizer.arguments()
        )
        update = updated(self._agent, optimizer, learned, of)
        return None if update is None else update[0]

    def learn_critics(self, batch: Any, ent_coef: th.Tensor) -> Update | None:
        """Take a step of the critics; returns their loss and the TD errors (B, 1), None if the step was left out."""
        optimizer, of = self._agent.critic.optimizer, "the loss of the critic"
        if self._compiled is None:
            loss, errors = self._gradient.of_critics(stacked(batch), ent_coef.view(1, 1, 1))
            return (loss, errors[0]) if stepped(self._agent, optimizer, loss, self._gradient.critic_grads, of) else None
        noise = _normal(self._arrays.actions.shape)
        learned = self._compiled.learn_critics(self._arrays, noise, ent_coef.view(1).numpy(), optimizer.arguments())
        return updated(self._agent, optimizer, learned, of)

    def learn_actor(self, batch: Any, ent_coef: th.Tensor, actions: th.Tensor, log_prob: th.Tensor) -> th.Tensor | None:
        """Take a step of the actor from actions drawn by `draw`; returns its loss, None if the step was left out."""
        optimizer, of = self._agent.actor.optimizer, "the loss of the actor"
        if self._compiled is None:
            loss = self._gradient.of_actor(stacked(batch), ent_coef.view(1, 1, 1), actions, log_prob)
            return loss if stepped(self._agent, optimizer, loss, self._gradient.actor_grads, of) else None
        learned = self._compiled.learn_actor(self._arrays, self._drawn, ent_coef.view(1).numpy(), optimizer.arguments())
        update = updated(self._agent, optimizer, learned, of)
        return None if update is None else update[0]

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


def arrays_of(batch: Any, gamma: float) -> Arrays:
    """Return a batch as arrays with a leading dimension of one agent."""
    from rlopt.agents.fast import compiled

    return compiled.arrays_of(batch, gamma)


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


def updated(agent: Any, optimizer: FlatAdam, learned: Any, of: str) -> Update | None:
    """Return the loss and the TD errors (B, 1) of a compiled step; None if it took none, as something was not finite.

    Raises:
        NonFiniteError: If the agent ends the run then.
    """
    if learned.num_left_out:
        stepped(agent, optimizer, th.from_numpy(learned.losses), optimizer.grads, of)
        return None
    return th.from_numpy(learned.losses), th.from_numpy(learned.errors)[:1].squeeze(0)


def _nothing() -> None:
    """Nothing has to be undone: the step comes after the look."""


def _normal(shape: tuple[int, ...]) -> NDArray[np.float32]:
    drawn: NDArray[np.float32] = th.empty(shape).normal_().numpy()
    return drawn


def _critics(critic: Any) -> TwinCritics:
    widths, activation = shape_of(critic.q_networks[0], "the critic")
    return TwinCritics(flatten(list(critic.parameters())), widths, activation, len(critic.q_networks))


def _rows(observations: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(observations, np.float32).reshape(len(observations), -1)
