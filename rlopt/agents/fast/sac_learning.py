"""The fast learning step of SAC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from rlopt.agents.fast.adam import FlatAdam, flatten
from rlopt.agents.fast.learning import FastLearning, flat_rows
from rlopt.agents.fast.mlp import StackedMLP
from rlopt.agents.fast.networks import acting, compiled_for, critics_taken_over, flat_adams, shape_of
from rlopt.agents.fast.sac import LOG_STD_RANGE, SACGradient, SquashedGaussian


class FastSAC(FastLearning):
    """Learning step of SACs; see `FastLearning`."""

    def __init__(self, agents: Sequence[Any]) -> None:
        super().__init__(agents)
        first = agents[0]
        actors = [agent.actor for agent in agents]
        widths, activation = shape_of(actors[0].latent_pi[:-1], "the actor")
        # The heads of mean and deviation become one layer.
        in_order = [
            [*one.latent_pi.parameters(), one.mu.weight, one.log_std.weight, one.mu.bias, one.log_std.bias] for one in actors
        ]
        network = StackedMLP([*widths, 2 * actors[0].mu.out_features], len(agents), activation, flatten(in_order))
        self._policy = SquashedGaussian(network)
        self.critics, self.critics_target = (
            critics_taken_over([getattr(agent, name) for agent in agents]) for name in ("critic", "critic_target")
        )
        self._gradient = SACGradient(self._policy, self.critics, self.critics_target, first.gamma)
        rows = flat_adams([one.optimizer for one in actors], in_order, network.params, self._gradient.actor_grads)
        self._actor_rows, self._actor_adams = rows
        critics = [agent.critic for agent in agents]
        parameters = [list(critic.parameters()) for critic in critics]
        rows = flat_adams([one.optimizer for one in critics], parameters, self.critics.params, self._gradient.critic_grads)
        self._critic_rows, self._critic_adams = rows
        for agent, actor_adam, critic_adam in zip(agents, self._actor_adams, self._critic_adams, strict=True):
            agent.actor.optimizer, agent.critic.optimizer = actor_adam, critic_adam
        self._learns_ent_coef = first.ent_coef_optimizer is not None
        if self._learns_ent_coef:
            logs = [[agent.log_ent_coef] for agent in agents]
            self._log_ent_coefs = flatten(logs)
            grads = th.zeros_like(self._log_ent_coefs)
            optimizers = [agent.ent_coef_optimizer for agent in agents]
            self._ent_coef_rows, self._ent_coef_adams = flat_adams(optimizers, logs, self._log_ent_coefs, grads)
            for agent, adam in zip(agents, self._ent_coef_adams, strict=True):
                agent.ent_coef_optimizer = adam
        compiled = compiled_for([network, self.critics.all])
        if compiled is not None:
            self._compiled = compiled.CompiledSAC(self._policy, self.critics, self.critics_target)
            self._gather = compiled.Gathering(len(agents), first.gamma)
        self._act = acting(network)

    def optimizers(self, agent: Any) -> list[FlatAdam]:
        """The optimizers of an agent."""
        return [agent.actor.optimizer, agent.critic.optimizer] + ([agent.ent_coef_optimizer] if self._learns_ent_coef else [])

    def _ent_coefs(self) -> th.Tensor:
        """Entropy coefficients (S,)."""
        if self._learns_ent_coef:
            return self._log_ent_coefs.exp().view(-1)
        return th.stack([agent.ent_coef_tensor.view(()) for agent in self.agents])

    def update(self, batch: Any, batches: dict[int, Any], gradient_step: int) -> None:
        """Do the gradient step of the active agents."""
        first, ent_coefs = self.agents[0], self._ent_coefs()
        in_numpy = ent_coefs.numpy() if self._compiled else None
        noise = self.normal_of(batch.actions)
        if self._compiled:
            drawn = self._compiled.draw(self.active, batch, noise)
        else:
            actions, log_probs = self._policy.sample(batch.observations, noise)
        next_noise = self.normal_of(batch.actions)
        losses, errors = self.step(
            "the loss of the critic", self._critic_rows, self._critic_adams,
            lambda: self._gradient.of_critics(batch, ent_coefs.view(-1, 1, 1), next_noise),
            lambda adam: self._compiled.learn_critics(self.active, batch, next_noise, in_numpy, adam),
        )  # fmt: skip
        self.note("critic_loss", losses)
        self.note("ent_coef", ent_coefs)
        self.report(batches, errors)
        losses, _ = self.step(
            "the loss of the actor", self._actor_rows, self._actor_adams,
            lambda: (self._gradient.of_actor(batch, ent_coefs.view(-1, 1, 1), actions, log_probs), None),
            lambda adam: self._compiled.learn_actor(self.active, batch, drawn, in_numpy, adam),
        )  # fmt: skip
        self.note("actor_loss", losses)
        if self._learns_ent_coef:
            before = self.active.copy()
            losses, _ = self.step(
                "the loss of the entropy coefficient", self._ent_coef_rows, self._ent_coef_adams,
                lambda: (self._ent_coef_gradient(log_probs), None),
                lambda adam: self._compiled.learn_ent_coefs(
                    self.active, self._log_ent_coefs.numpy(), drawn, first.target_entropy, adam
                ),
            )  # fmt: skip
            self.note("ent_coef_loss", losses)
            self.active[:] = before  # the targets move all the same
        if gradient_step % first.target_update_interval == 0:
            self.move(self.critics_target.params, self.critics.params, first.tau)

    def _ent_coef_gradient(self, log_probs: th.Tensor) -> th.Tensor:
        with th.no_grad():
            distance = (log_probs + self.agents[0].target_entropy).mean((1, 2))
            self._ent_coef_rows.grads.copy_(-distance.unsqueeze(1))
            return self._log_ent_coefs.squeeze(1).mul(distance).neg()

    def explore(self, observations: NDArray[Any], running: Sequence[int]) -> list[NDArray[Any]]:
        """Draw actions in (-1, 1), with the draws of Stable-Baselines3's."""
        mean, log_std = np.split(self._act(flat_rows(observations)), 2, axis=2)
        self.active[:] = False
        self.active[list(running)] = True
        noise = np.asarray(th.as_tensor(self.normal_of(mean)).cpu())
        actions = np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise)
        return [actions[index] for index in running]
