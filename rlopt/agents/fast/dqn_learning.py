"""The fast learning step of DQN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlopt.agents.fast.adam import FlatAdam
from rlopt.agents.fast.dqn import DQNGradient
from rlopt.agents.fast.learning import FastLearning, flat_rows
from rlopt.agents.fast.networks import acting, compiled_for, flat_adams, taken_over


class FastDQN(FastLearning):
    """Learning step of DQNs; see `FastLearning`."""

    def __init__(self, agents: Sequence[Any]) -> None:
        super().__init__(agents)
        first = agents[0]
        self.online = taken_over([agent.q_net.q_net for agent in agents], "the Q-network")
        self.target = taken_over([agent.q_net_target.q_net for agent in agents], "the Q-network")
        self._gradient = DQNGradient(self.online, self.target, first.gamma, first.double_q, first.max_grad_norm)
        parameters = [list(agent.q_net.parameters()) for agent in agents]
        optimizers = [agent.policy.optimizer for agent in agents]
        self._rows, self._adams = flat_adams(optimizers, parameters, self.online.params, self._gradient.grads)
        for agent, adam in zip(agents, self._adams, strict=True):
            agent.policy.optimizer = adam
        compiled = compiled_for([self.online])
        if compiled is not None:
            self._compiled = compiled.CompiledDQN(self.online, self.target, first.double_q, first.max_grad_norm)
            self._gather = compiled.Gathering(len(agents), first.gamma)
        self._act = acting(self.online)

    def optimizers(self, agent: Any) -> list[FlatAdam]:
        """The optimizer of an agent."""
        return [agent.policy.optimizer]

    def update(self, batch: Any, batches: dict[int, Any], gradient_step: int) -> None:
        """Do the gradient step of the active agents."""
        losses, errors = self.step(
            "the loss", self._rows, self._adams,
            lambda: self._gradient(batch), lambda adam: self._compiled.learn(self.active, batch, adam),
        )  # fmt: skip
        self.report(batches, errors)
        self.note("loss", losses)

    def update_target(self, agent: Any, tau: float) -> None:
        """Move the target network of an agent."""
        row = self.agents.index(agent) if len(self.agents) > 1 else 0
        self.target.params[row].lerp_(self.online.params[row], tau)

    def explore(self, observations: NDArray[Any], running: Sequence[int]) -> list[NDArray[Any]]:
        """Epsilon-greedy actions, with the draws of Stable-Baselines3's."""
        agents = [self.agents[index] for index in running]
        draws = [self.uniforms[index].rand() < agent.exploration_rate for index, agent in zip(running, agents, strict=True)]
        greedy = None if all(draws) else self._act(flat_rows(observations)).argmax(2)  # (S, B)
        size = observations.shape[1]
        return [
            np.array([agent.action_space.sample() for _ in range(size)]) if explores or greedy is None else greedy[index]
            for index, agent, explores in zip(running, agents, draws, strict=True)
        ]
