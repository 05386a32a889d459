"""The fast learning step of TD3 and DDPG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlopt.agents.fast.adam import FlatAdam
from rlopt.agents.fast.learning import FastLearning, flat_rows
from rlopt.agents.fast.networks import acting, compiled_for, critics_taken_over, flat_adams, taken_over
from rlopt.agents.fast.td3 import TD3Gradient


class FastTD3(FastLearning):
    """Learning step of TD3s or DDPGs; see `FastLearning`."""

    def __init__(self, agents: Sequence[Any]) -> None:
        super().__init__(agents)
        first = agents[0]
        self.actor, self.actor_target = (
            taken_over([getattr(agent, name).mu[:-1] for agent in agents], "the actor") for name in ("actor", "actor_target")
        )
        self.critics, self.critics_target = (
            critics_taken_over([getattr(agent, name) for agent in agents]) for name in ("critic", "critic_target")
        )
        networks = self.actor, self.actor_target, self.critics, self.critics_target
        self._gradient = TD3Gradient(*networks, first.gamma)
        self._rows, self._adams = {}, {}
        for name, params, grads in (
            ("actor", self.actor.params, self._gradient.actor_grads),
            ("critic", self.critics.params, self._gradient.critic_grads),
        ):
            parts = [getattr(agent, name) for agent in agents]
            parameters = [list(part.parameters()) for part in parts]
            self._rows[name], self._adams[name] = flat_adams([part.optimizer for part in parts], parameters, params, grads)
            for part, adam in zip(parts, self._adams[name], strict=True):
                part.optimizer = adam
        compiled = compiled_for([self.actor, self.critics.all])
        if compiled is not None:
            self._compiled = compiled.CompiledTD3(*networks)
            self._gather = compiled.Gathering(len(agents), first.gamma)
        self._act = acting(self.actor)

    def optimizers(self, agent: Any) -> list[FlatAdam]:
        """The optimizers of an agent."""
        return [agent.actor.optimizer, agent.critic.optimizer]

    def update(self, batch: Any, batches: dict[int, Any], gradient_step: int) -> None:
        """Do the gradient step of the active agents."""
        first = self.agents[0]
        noise = self.normal_of(batch.actions, first.target_policy_noise, first.target_noise_clip)
        losses, errors = self.step(
            "the loss of the critic", self._rows["critic"], self._adams["critic"],
            lambda: self._gradient.of_critics(batch, noise),
            lambda adam: self._compiled.learn_critics(self.active, batch, noise, adam),
        )  # fmt: skip
        self.note("critic_loss", losses)
        self.report(batches, errors)
        members = np.flatnonzero(self.active)
        if len(members) == 0 or (self.agents[members[0]]._n_updates + gradient_step + 1) % first.policy_delay:
            return
        losses, _ = self.step(
            "the loss of the actor", self._rows["actor"], self._adams["actor"],
            lambda: (self._gradient.of_actor(batch), None), lambda adam: self._compiled.learn_actor(self.active, batch, adam),
        )  # fmt: skip
        self.note("actor_loss", losses)
        for target, online in ((self.critics_target, self.critics), (self.actor_target, self.actor)):
            self.move(target.params, online.params, first.tau)

    def explore(self, observations: NDArray[Any], running: Sequence[int]) -> list[NDArray[Any]]:
        """Actions in [-1, 1], without noise."""
        actions = np.tanh(self._act(flat_rows(observations)))
        return [actions[index] for index in running]
