"""What the fast learning steps of all agents share: S agents of one kind learn at once, each alone with its own batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from rlopt.agents.fast.adam import AdamRows, FlatAdam
from rlopt.agents.fast.networks import check_agent
from rlopt.optim import NonFiniteError

if TYPE_CHECKING:
    from rlopt.agents.fast.compiled import Learned


class StackedBatch:
    """Batches of tensors of S agents: the fields of `ReplayBatch` with a leading dimension S, observations flat."""

    __slots__ = ("actions", "discounts", "dones", "next_observations", "observations", "rewards", "weights")

    def __init__(self, batches: Sequence[Any]) -> None:
        for name in self.__slots__:
            parts = [getattr(batch, name) for batch in batches]
            if name.endswith("observations"):
                parts = [part.float().flatten(1) for part in parts]
            setattr(self, name, None if parts[0] is None else th.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0))


class FastLearning:
    """Learning steps of agents of one kind, whose networks are taken over: their parameters become rows of one tensor.

    Args:
        agents: Agents of rlopt that differ in their seeds only.

    Attributes:
        normals: Generators of the noise of each agent; None: torch's own.
        uniforms: What draws whether to explore.
        failures: Why agents stopped learning, by number; None: an error ends the run.

    Raises:
        ValueError: If an agent has no fast form.
    """

    def __init__(self, agents: Sequence[Any]) -> None:
        for agent in agents:
            check_agent(agent)
        self.agents = list(agents)
        self.normals: list[th.Generator | None] = [None] * len(agents)
        self.uniforms: list[Any] = [np.random] * len(agents)
        self.failures: dict[int, NonFiniteError] | None = None
        self.active = np.ones(len(agents), bool)  # who takes part in the gradient step at hand
        self._compiled: Any = None
        self._gather: Any = None
        self._values: list[dict[str, list[Any]]] = []
        self._is_announced = False

    # What differs between agents

    def optimizers(self, agent: Any) -> list[FlatAdam]:
        """The optimizers of an agent."""
        raise NotImplementedError

    def update(self, batch: Any, batches: dict[int, Any], gradient_step: int) -> None:
        """Do the gradient step of the active agents.

        Args:
            batch: `Arrays` for the steps in numba, else a `StackedBatch`.
            batches: What was sampled, by agent.
            gradient_step: Number in the phase.
        """
        raise NotImplementedError

    def explore(self, observations: NDArray[Any], running: Sequence[int]) -> list[NDArray[Any]]:
        """Actions (B, ...) of the agents `running`, without the noise of `action_noise`, for observations (S, B, ...)."""
        raise NotImplementedError

    # What does not

    @property
    def description(self) -> str:
        """What computes the learning step."""
        if self._compiled is None:
            return f"torch on {self.agents[0].device}"
        return f"numba, products by {self._compiled.products}"

    def train(self, gradient_steps: int, batch_size: int, running: Sequence[int] = (0,)) -> None:
        """Do a phase of learning of some agents, as their method `train` does."""
        for index in running:
            agent = self.agents[index]
            if not self._is_announced:
                agent.logger.log(f"Fast form of the learning step: {self.description}.")
            agent._begin_phase(gradient_steps)
            agent._update_learning_rate(self.optimizers(agent))
        self._is_announced = True
        self._values = [defaultdict(list) for _ in self.agents]
        for gradient_step in range(gradient_steps):
            batches = {index: self._sample(self.agents[index], batch_size) for index in running if not self._has_failed(index)}
            for members in _of_equal_size(batches):
                self.active[:] = False
                self.active[members] = True
                drawn = {index: batches[index] for index in members}
                self.update(self._gather(drawn) if self._compiled else StackedBatch(self._filled(drawn)), drawn, gradient_step)
        for index in running:
            agent = self.agents[index]
            agent._n_updates += gradient_steps
            agent.logger.record("train/n_updates", agent._n_updates, exclude="tensorboard")
            for name, values in self._values[index].items():
                agent._record_mean(name, values)

    def _sample(self, agent: Any, batch_size: int) -> Any:
        agent._finite.begin_step()
        replay = agent.replay_buffer
        return (replay.sample_arrays if self._compiled else replay.sample)(batch_size, env=agent._vec_normalize_env)

    def _filled(self, batches: dict[int, Any]) -> list[Any]:
        """A batch for each agent: those that are not active get that of another, and nothing is done with it."""
        other = next(iter(batches.values()))
        return [batches.get(index, other) for index in range(len(self.agents))]

    def _has_failed(self, index: int) -> bool:
        return self.failures is not None and index in self.failures

    def step(
        self,
        of: str,
        rows: AdamRows,
        optimizers: Sequence[FlatAdam],
        gradient: Callable[[], tuple[th.Tensor, Any]],
        kernel: Callable[..., Learned],
    ) -> tuple[Any, Any]:
        """Take a step of the active agents, those that took none are not active any more.

        Args:
            of: What the loss is called.
            rows: Of the optimizers.
            optimizers: Of all agents.
            gradient: Writes the gradients and returns losses (S,) and TD errors (S, B, 1) or something else.
            kernel: Does this and the step, in numba, for the arguments of the optimizer.

        Returns:
            Losses and TD errors.

        Raises:
            NonFiniteError: If loss or gradient of an agent is not finite, and an error ends the run.
        """
        before = self.active.copy()
        if self._compiled is None:
            losses, errors = gradient()
            for index in np.flatnonzero(before).tolist():
                self.active[index] = self._is_finite(index, optimizers[index], losses[index], rows.grads[index], of)
                if self.active[index]:
                    optimizers[index].take()
            return losses, errors
        learned = kernel(rows.arguments(optimizers[0].param_groups[0]))
        if learned.num_left_out:
            for index in np.flatnonzero(before & ~self.active).tolist():
                self._is_finite(index, optimizers[index], th.tensor(learned.losses[index]), rows.grads[index], of)
        return learned.losses, learned.errors

    def _is_finite(self, index: int, optimizer: FlatAdam, loss: th.Tensor, grads: th.Tensor, of: str) -> bool:
        """Look at a loss and its gradient; what is not finite is left out or ends the run, as the agent was told."""
        agent = self.agents[index]
        try:
            agent._finite.look(of, loss, th.linalg.vector_norm(grads) * 0.0, optimizer)
        except NonFiniteError as error:
            try:
                agent._finite.settle(error, _nothing if agent.non_finite == "skip" else None, optimizer)
            except NonFiniteError as final:
                if self.failures is None:
                    raise
                self.failures[index] = final
            return False
        return True

    def note(self, name: str, losses: Any) -> None:
        """Keep the losses of the active agents for their logs."""
        for index in np.flatnonzero(self.active).tolist():
            self._values[index][name].append(losses[index])

    def report(self, batches: dict[int, Any], errors: Any) -> None:
        """Give the replays of the active agents their TD errors (S, B, 1)."""
        for index in np.flatnonzero(self.active).tolist():
            self.agents[index]._report(batches[index], errors[index])

    def normal_of(self, like: Any, scale: float = 1.0, clip: float | None = None) -> Any:
        """Normal noise like actions (S, B, A), that of each agent from its own generator; zeros for those that are not active.

        Args:
            like: What has its shape.
            scale: Standard deviation.
            clip: Bound of its absolute value; None: none.

        Returns:
            An array for the steps in numba, else a tensor.
        """
        noise = th.zeros(like.shape, device=self.agents[0].device)
        for index in np.flatnonzero(self.active).tolist():
            noise[index].normal_(0, scale, generator=self.normals[index])
        if clip is not None:
            noise.clamp_(-clip, clip)
        return noise.numpy() if self._compiled else noise

    def move(self, targets: th.Tensor, params: th.Tensor, tau: float) -> None:
        """Move the target networks (S, n) of the active agents."""
        if self.active.all():
            targets.lerp_(params, tau)
            return
        for index in np.flatnonzero(self.active).tolist():
            targets[index].lerp_(params[index], tau)


def _of_equal_size(batches: dict[int, Any]) -> list[list[int]]:
    """Numbers of agents whose batches have the same size."""
    groups: dict[int, list[int]] = {}
    for index, batch in batches.items():
        groups.setdefault(len(batch.rewards), []).append(index)
    return list(groups.values())


def _nothing() -> None:
    """Nothing has to be undone: the step comes after the look."""


def flat_rows(observations: NDArray[Any]) -> NDArray[np.float32]:
    """Observations (S, B, ...) as float32 (S, B, o)."""
    return np.asarray(observations, np.float32).reshape(*observations.shape[:2], -1)
