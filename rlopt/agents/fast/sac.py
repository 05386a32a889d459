"""The gradients of SAC's losses, written out for perceptrons."""

from __future__ import annotations

import math
from typing import Any

import torch as th

from rlopt.agents.fast.mlp import StackedMLP
from rlopt.agents.fast.td3 import TwinCritics

LOG_STD_RANGE = (-20.0, 2.0)  # as in Stable-Baselines3
_EPSILON = 1e-6  # in the logarithm of the derivative of tanh, as there


class SquashedGaussian:
    """The policies of S agents: a = tanh(mu + sigma * noise), with mu and log(sigma) the two halves of a perceptron's output.

    Args:
        network: From observations to 2 A numbers.
    """

    def __init__(self, network: StackedMLP) -> None:
        self.network = network
        self._drawn: dict[str, tuple[th.Tensor, ...]] = {}

    @th.no_grad()
    def sample(self, observations: th.Tensor, noise: th.Tensor, slot: str = "") -> tuple[th.Tensor, th.Tensor]:
        """Return the actions (S, B, A) of standard normal noise with log pi (S, B, 1)."""
        mean, raw = self.network.forward(observations, slot).chunk(2, dim=2)
        log_std = raw.clamp(*LOG_STD_RANGE)
        spread = log_std.exp().mul_(noise)
        actions = (mean + spread).tanh_()
        room = (1 - actions * actions).add_(_EPSILON)
        self._drawn[slot] = (actions, raw, spread, room)
        parts = noise.square().mul_(-0.5).sub_(log_std).sub_(0.5 * math.log(2 * math.pi)).sub_(room.log())
        return actions, parts.sum(2, keepdim=True)

    def backward(self, action_grad: th.Tensor, log_prob_grad: th.Tensor, grads: th.Tensor, slot: str = "") -> None:
        """Derivatives through the last sample of a slot.

        Args:
            action_grad: Of the loss with respect to the actions, (S, B, A).
            log_prob_grad: Of the loss with respect to log pi, (S, 1, 1).
            grads: Where those with respect to the parameters are written.
            slot: As in `sample`.
        """
        actions, raw, spread, room = self._drawn[slot]
        slope = 1 - actions * actions  # of tanh
        # d(-log(1 - a^2 + eps)) / da = 2 a / (1 - a^2 + eps)
        mean_grad = (actions / room).mul_(2.0 * log_prob_grad).add_(action_grad).mul_(slope)
        log_std_grad = (mean_grad * spread).sub_(log_prob_grad)
        log_std_grad.mul_((raw >= LOG_STD_RANGE[0]) & (raw <= LOG_STD_RANGE[1]))
        self.network.backward(th.cat([mean_grad, log_std_grad], dim=2), grads, slot)


class SACGradient:
    """Gradients of the losses of S agents at once, each on a batch of its own; see `rlopt.agents.SAC` for the losses.

    Args:
        actor: Policies.
        critics: Of each agent.
        critics_target: Their target networks.
        gamma: Discount of batches without discounts of their own.

    Attributes:
        critic_grads: (S, C n), of the last call of `of_critics`.
        actor_grads: (S, m), of the last call of `of_actor`.
    """

    def __init__(self, actor: SquashedGaussian, critics: TwinCritics, critics_target: TwinCritics, gamma: float) -> None:
        self.actor, self.critics, self.critics_target, self.gamma = actor, critics, critics_target, gamma
        self.critic_grads = th.zeros_like(critics.all.params).view(actor.network.num, -1)
        self.actor_grads = th.zeros_like(actor.network.params)

    @th.no_grad()
    def of_critics(self, batch: Any, ent_coef: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Write the critics' gradients of a batch with a leading dimension S; `ent_coef` (S, 1, 1).

        `noise` is that of the next actions (S, B, A), standard normal.

        Returns:
            Loss of each agent (S,), and the TD errors with the smallest value (S, B, 1).
        """
        next_actions, next_log_prob = self.actor.sample(batch.next_observations, noise, "next")
        target = self.critics_target(batch.next_observations, next_actions).amin(1)
        target.sub_(next_log_prob.mul_(ent_coef))
        discounts = self.gamma if batch.discounts is None else batch.discounts
        target.mul_((1 - batch.dones).mul_(discounts)).add_(batch.rewards)
        values = self.critics(batch.observations, batch.actions)
        smallest = values.amin(1)
        errors = values - target.unsqueeze(1)
        weighted = errors * batch.weights.unsqueeze(1)
        loss = 0.5 * (weighted * errors).mean(2).sum((1, 2))
        self.critics.backward(weighted.div_(errors.shape[2]), self.critic_grads)
        return loss, target.sub_(smallest)

    @th.no_grad()
    def of_actor(self, batch: Any, ent_coef: th.Tensor, actions: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        """Write the actors' gradients for actions that were drawn last, in the slot ""; returns their losses (S,)."""
        num, rows = actions.shape[:2]
        values = self.critics(batch.observations, actions, "actor")
        smallest, which = values.min(1, keepdim=True)  # (S, 1, B, 1)
        grad = th.zeros_like(values).scatter_(1, which, -1.0 / rows)
        slope = self.critics.all.backward(grad.flatten(0, 1), None, "actor", input_grad=True)
        assert slope is not None
        action_grad = slope.view(num, -1, *slope.shape[1:]).sum(1)[..., batch.observations.shape[2] :]
        self.actor.backward(action_grad, ent_coef / rows, self.actor_grads)
        return (ent_coef * log_prob - smallest.squeeze(1)).mean((1, 2))
