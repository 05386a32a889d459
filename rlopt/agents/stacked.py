"""Several seeds of one agent, trained together in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from rlopt.agents.agent_state import give_random, take_random
from rlopt.agents.checkpoints import Checkpoints
from rlopt.agents.fast.collecting import advance
from rlopt.agents.fast.learning import FastLearning

# What must be equal for agents to learn together, besides their networks and optimizers.
_EQUAL = (
    "gamma", "tau", "batch_size", "train_freq", "gradient_steps", "learning_starts", "n_envs", "device", "target_update_interval",
    "double_q", "max_grad_norm", "policy_delay", "target_policy_noise", "target_noise_clip", "target_entropy", "non_finite",
)  # fmt: skip


class StackedAgents:
    """Agents that differ in their seeds only, trained together: one call of the learning step does that of all.

    Each has its own environments, replay, exploration and generators, and learns what it would have learned alone: the same numbers
    drawn and, with the steps in numba, the same weights to the bit. An agent whose run ends with an error leaves the others alone.
    After `learn` the agents can be used, saved and trained on as any others.

    Args:
        make: Makes the agent of a seed: a DQN, DDPG, TD3 or SAC of rlopt with `fast=True` and `seed` given.
        seeds: One for each agent.

    Attributes:
        agents: In the order of the seeds.
        errors: What ended the runs of agents, by number.

    Raises:
        ValueError: If there is no seed, or if the agents have no fast form, differ in more than their seeds, or learn after whole
            episodes.

    Example:
        >>> from rlopt.agents import DQN
        >>> stack = StackedAgents(lambda seed: DQN("MlpPolicy", "CartPole-v1", seed=seed, device="cpu", fast=True), range(3))
        >>> stack.learn(200).agents[2].num_timesteps
        200
    """

    def __init__(self, make: Callable[[int], Any], seeds: Sequence[int]) -> None:
        if len(seeds) < 1:
            raise ValueError("seeds must hold at least one seed, got none.")
        self.agents: list[Any] = []
        self._random: list[dict[str, Any]] = []  # states of the generators that a process has, for each agent
        outside = take_random()
        for seed in seeds:
            self.agents.append(make(seed))
            self._random.append(take_random())
        give_random(outside)
        self.errors: dict[int, Exception] = {}
        self._check()

    def _check(self) -> None:
        first = self.agents[0]
        for agent in self.agents:
            if not isinstance(getattr(agent, "_fast", None), FastLearning):
                raise ValueError(f"make must return agents of rlopt with fast=True, got {type(agent).__name__} without.")
            if agent.seed is None:
                raise ValueError("make must give agents their seeds, got seed=None.")
            if agent.train_freq.unit != TrainFrequencyUnit.STEP:
                raise ValueError("train_freq must be in steps for agents that learn together, got episodes.")
            for name in _EQUAL:
                mine, others = getattr(agent, name, None), getattr(first, name, None)
                if mine != others:
                    raise ValueError(
                        f"agents that learn together must be equal but for their seeds, got {name} {others} and {mine}."
                    )
            if type(agent) is not type(first) or _structure(agent) != _structure(first):
                raise ValueError("agents that learn together must be of one kind, with networks and optimizers of one form.")

    def learn(
        self,
        total_timesteps: int,
        callbacks: Sequence[Any] | None = None,
        log_interval: int | None = 4,
        checkpoints: Sequence[Checkpoints] | None = None,
        reset_num_timesteps: bool = True,
    ) -> StackedAgents:
        """Train all agents.

        Args:
            total_timesteps: Steps of each; with `checkpoints` those of the whole run.
            callbacks: One for each agent, as in Stable-Baselines3. None: none.
            log_interval: Episodes between two writes of an agent's log.
            checkpoints: One for each agent, from which those that were stopped go on. None: none.
            reset_num_timesteps: Whether steps are counted anew and environments are reset, as in Stable-Baselines3.

        Raises:
            ValueError: If there is not one callback or `Checkpoints` for each agent, or a checkpoint cannot be read.
        """
        for name, given in (("callbacks", callbacks), ("checkpoints", checkpoints)):
            if given is not None and len(given) != len(self.agents):
                raise ValueError(f"{name} must be one for each of {len(self.agents)} agents, got {len(given)}.")
        run = _Run(self, callbacks or [None] * len(self.agents), log_interval, checkpoints)
        run.learn(total_timesteps, reset_num_timesteps)
        return self


class _Run:
    """One call of `learn`."""

    def __init__(
        self, stack: StackedAgents, callbacks: Sequence[Any], log_interval: int | None, checkpoints: Sequence[Checkpoints] | None
    ) -> None:
        self._agents, self._random, self._errors = stack.agents, stack._random, stack.errors
        self._given_callbacks, self._log_interval, self._checkpoints = callbacks, log_interval, checkpoints
        self._callbacks: list[BaseCallback] = []
        self._stopped: set[int] = set()  # by their callbacks
        self._fast: Any = None

    def learn(self, total_timesteps: int, reset_num_timesteps: bool) -> None:
        watching = contextlib.nullcontext() if self._checkpoints is None else self._checkpoints[0].watching_signals()
        with contextlib.ExitStack() as stack:
            stack.enter_context(watching)
            for agent in self._agents:
                stack.enter_context(agent._finite.watching(agent.env))
            total = self._set_up(total_timesteps, reset_num_timesteps)
            self._stack()
            try:
                self._loop(total)
            finally:
                self._unstack()
            self._end()

    def _set_up(self, total_timesteps: int, reset_num_timesteps: bool) -> int:
        total = total_timesteps
        for index, agent in enumerate(self._agents):
            agent._checkpoints = None if self._checkpoints is None else self._checkpoints[index]
            agent._is_stopped = False
            with self._its_generators(index):
                total, callback = agent._setup_learn(
                    total_timesteps, self._given_callbacks[index], reset_num_timesteps, "run", False
                )
                callback.on_training_start({"self": agent, "total_timesteps": total}, {})
            self._callbacks.append(callback)
        return total

    def _stack(self) -> None:
        """Let the agents share one learning step."""
        self._fast = type(self._agents[0]._fast)(self._agents)
        self._fast.failures = self._errors
        for index, agent in enumerate(self._agents):
            agent._fast = self._fast
            self._fast.uniforms[index] = np.random.RandomState()
            self._fast.normals[index] = th.Generator(agent.device)
        for index in range(len(self._agents)):
            self._use(index, self._random[index])

    def _unstack(self) -> None:
        """Give each agent a learning step of its own again."""
        for index, agent in enumerate(self._agents):
            self._random[index] = self._state(index)
            agent._fast = agent._make_fast()

    # Generators

    def _use(self, index: int, state: dict[str, Any]) -> None:
        """Let an agent draw on from the state of a process's generators."""
        self._fast.uniforms[index].set_state(state["numpy"])
        device = self._agents[index].device
        self._fast.normals[index].set_state(state["cuda"][device.index or 0] if device.type == "cuda" else state["torch"])
        self._random[index] = state

    def _state(self, index: int) -> dict[str, Any]:
        """The state that the generators of a process of its own would have."""
        device, drawn = self._agents[index].device, self._fast.normals[index].get_state()
        state = {**self._random[index], "numpy": self._fast.uniforms[index].get_state()}
        if device.type == "cuda":
            place = device.index or 0
            state["cuda"] = [drawn if i == place else other for i, other in enumerate(state["cuda"])]
        else:
            state["torch"] = drawn
        return state

    @contextlib.contextmanager
    def _its_generators(self, index: int) -> Iterator[None]:
        """In the block the process's generators are those of an agent."""
        outside = take_random()
        give_random(self._random[index] if self._fast is None else self._state(index))
        try:
            yield
        finally:
            if self._fast is None:
                self._random[index] = take_random()
            else:
                self._use(index, take_random())
            give_random(outside)

    # Training

    def _loop(self, total: int) -> None:
        while True:
            running = [i for i, agent in enumerate(self._agents) if agent.num_timesteps < total and not self._has_ended(i)]
            if not running:
                return
            # Those that go on from earlier checkpoints catch up first.
            lowest = min(self._agents[index].num_timesteps for index in running)
            together = [index for index in running if self._agents[index].num_timesteps == lowest]
            self._visit(together)
            self._collect(together)
            together = [index for index in together if not self._has_ended(index)]
            if together:
                self._train(together)

    def _has_ended(self, index: int) -> bool:
        return index in self._errors or index in self._stopped

    def _visit(self, together: Sequence[int]) -> None:
        """The moment for checkpoints; a signal is noted by the first, which is the last to be asked."""
        if self._checkpoints is None:
            return
        if self._checkpoints[0]._signal is not None:
            for index, (agent, checkpoints) in enumerate(zip(self._agents, self._checkpoints, strict=True)):
                if index > 0 and not self._has_ended(index):
                    with self._its_generators(index):
                        checkpoints.finish(agent)
            with self._its_generators(0):
                self._checkpoints[0].visit(self._agents[0])
        for index in together:
            agent, checkpoints = self._agents[index], self._checkpoints[index]
            if checkpoints.is_due(agent):
                with self._its_generators(index):
                    checkpoints.visit(agent)

    def _collect(self, together: Sequence[int]) -> None:
        agents, first = self._agents, self._agents[together[0]]
        for index in together:
            self._callbacks[index].on_rollout_start()
        for number in range(1, first.train_freq.frequency + 1):
            actions = self._actions(together)
            for index, (chosen, kept) in zip(together, actions, strict=True):
                agent = agents[index]
                try:
                    num_done = advance(
                        agent, agent.env, self._callbacks[index], agent.replay_buffer, chosen, kept, agent.action_noise,
                        self._log_interval, number,
                    )  # fmt: skip
                except Exception as error:  # of this agent: the others go on
                    self._errors[index] = error
                    continue
                if num_done is None:
                    self._stopped.add(index)
                    agent._is_stopped = True
            together = [index for index in together if not self._has_ended(index)]
            if not together:
                return
        for index in together:
            self._callbacks[index].on_rollout_end()

    def _actions(self, together: Sequence[int]) -> list[tuple[Any, Any]]:
        agents, first = self._agents, self._agents[together[0]]
        if first.num_timesteps < first.learning_starts:
            chosen = []
            for index in together:
                agent = agents[index]
                with self._its_generators(index) if agent.action_noise is not None else contextlib.nullcontext():
                    chosen.append(agent._sample_action(agent.learning_starts, agent.action_noise, agent.n_envs))
            return chosen
        observations = np.stack([agent._last_obs for agent in agents])
        chosen = []
        for index, actions in zip(together, self._fast.explore(observations, together), strict=True):
            agent = agents[index]
            with self._its_generators(index) if agent.action_noise is not None else contextlib.nullcontext():
                chosen.append(agent._noisy(actions, agent.action_noise))
        return chosen

    def _train(self, together: Sequence[int]) -> None:
        first = self._agents[together[0]]
        gradient_steps = first.gradient_steps if first.gradient_steps >= 0 else first.train_freq.frequency * first.n_envs
        if first.num_timesteps <= first.learning_starts or gradient_steps == 0:
            return
        phases = {index: self._agents[index]._finite.phase() for index in together}
        for phase in phases.values():
            phase.__enter__()
        self._fast.train(gradient_steps, first.batch_size, together)
        for index, phase in phases.items():
            try:
                phase.__exit__(None, None, None)
            except Exception as error:  # of this agent: the others go on
                self._errors[index] = error

    def _end(self) -> None:
        for index, (agent, callback) in enumerate(zip(self._agents, self._callbacks, strict=True)):
            if index in self._errors:
                continue
            try:
                callback.on_training_end()
                agent._finite.check_parameters()
                if agent._checkpoints is not None and not agent._is_stopped:
                    with self._its_generators(index):
                        agent._checkpoints.finish(agent)
            except Exception as error:  # of this agent: the others go on
                self._errors[index] = error


def _structure(agent: Any) -> Any:
    """What networks and optimizers must have in common."""
    options = ("lr", "betas", "eps", "weight_decay", "maximize")
    groups = [{name: adam.param_groups[0][name] for name in options} for adam in agent._fast.optimizers(agent)]
    rates = [agent.lr_schedule(progress) for progress in (1.0, 0.5, 0.0)]
    return [tuple(parameter.shape) for parameter in agent.policy.parameters()], groups, rates
