"""The gradients of TD3's and DDPG's losses, written out for perceptrons."""

from __future__ import annotations

from typing import Any

import torch as th

from rlopt.agents.fast.mlp import StackedMLP


class TwinCritics:
    """C critics of each of S agents, as one stack of S C perceptrons: row s C + c is critic c of agent s.

    Args:
        params: (S, C n), the critics of an agent one behind the other.
        widths: Of one critic.
        activation: Of its hidden layers.
        num_critics: C.
    """

    def __init__(self, params: th.Tensor, widths: list[int], activation: Any, num_critics: int) -> None:
        self.params, self.num_agents, self.num_critics = params, len(params), num_critics
        rows = params.view(self.num_agents * num_critics, -1)
        self.all = StackedMLP(widths, len(rows), activation, rows)
        self.first = StackedMLP(widths, self.num_agents, activation, params[:, : rows.shape[1]])

    def __call__(self, observations: th.Tensor, actions: th.Tensor, slot: str = "") -> th.Tensor:
        """Values (S, C, B, 1) of observations (S, B, o) and actions (S, B, a)."""
        inputs = self._repeated(th.cat([observations, actions], dim=2))
        return self.all.forward(inputs, slot).view(self.num_agents, self.num_critics, inputs.shape[1], 1)

    def _repeated(self, x: th.Tensor) -> th.Tensor:
        """(S, ...) -> (S C, ...), the same for each critic of an agent."""
        return x.repeat_interleave(self.num_critics, 0) if self.num_critics > 1 else x

    def backward(self, grad: th.Tensor, grads: th.Tensor) -> None:
        """Write the derivatives for `grad` (S, C, B, 1) into `grads` (S, C n)."""
        self.all.backward(grad.flatten(0, 1), grads.view(len(self.all.params), -1))

    def slope_of_first(self, observations: th.Tensor, actions: th.Tensor, grad: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Values (S, B, 1) of each agent's first critic, and the derivative of their sum times `grad` by the actions."""
        values = self.first.forward(th.cat([observations, actions], dim=2))
        slope = self.first.backward(grad, None, input_grad=True)
        assert slope is not None
        return values, slope[..., observations.shape[2] :]


class TD3Gradient:
    """Gradients of the losses of S agents at once, each on a batch of its own; see `rlopt.agents.TD3` for the losses.

    Args:
        actor: Of each agent, without the tanh at its end.
        actor_target: Their target networks.
        critics: Of each agent.
        critics_target: Their target networks.
        gamma: Discount of batches without discounts of their own.

    Attributes:
        critic_grads: (S, C n), of the last call of `of_critics`.
        actor_grads: (S, m), of the last call of `of_actor`.
    """

    def __init__(
        self,
        actor: StackedMLP,
        actor_target: StackedMLP,
        critics: TwinCritics,
        critics_target: TwinCritics,
        gamma: float,
    ) -> None:
        self.actor, self.actor_target, self.critics, self.critics_target = actor, actor_target, critics, critics_target
        self.gamma = gamma
        self.critic_grads = th.zeros_like(critics.all.params).view(actor.num, -1)
        self.actor_grads = th.zeros_like(actor.params)

    @th.no_grad()
    def of_critics(self, batch: Any, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Write the critics' gradients of a batch with a leading dimension S, with noise on the target actions (S, B, a).

        Returns:
            Loss of each agent (S,), and the TD errors with the smallest value (S, B, 1).
        """
        next_actions = self.actor_target.forward(batch.next_observations).tanh_().add_(noise).clamp_(-1, 1)
        target = self.critics_target(batch.next_observations, next_actions).amin(1)
        discounts = self.gamma if batch.discounts is None else batch.discounts
        target.mul_((1 - batch.dones).mul_(discounts)).add_(batch.rewards)
        values = self.critics(batch.observations, batch.actions)
        smallest = values.amin(1)
        errors = values - target.unsqueeze(1)
        weighted = errors * batch.weights.unsqueeze(1)
        loss = (weighted * errors).mean(2).sum((1, 2))
        self.critics.backward(weighted.mul_(2.0 / errors.shape[2]), self.critic_grads)
        return loss, target.sub_(smallest)

    @th.no_grad()
    def of_actor(self, batch: Any) -> th.Tensor:
        """Write the actors' gradients; returns their losses (S,)."""
        actions = self.actor.forward(batch.observations).tanh_()
        rows = actions.shape[1]
        grad = actions.new_full((self.actor.num, rows, 1), -1.0 / rows)
        values, slope = self.critics.slope_of_first(batch.observations, actions, grad)
        self.actor.backward(th.ops.aten.tanh_backward(slope, actions), self.actor_grads)
        return -values.mean((1, 2))
