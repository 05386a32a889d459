"""Numbers that are not finite in the training of an agent: none passes silently from an environment or into a network."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from types import MethodType
from typing import Any, TypeVar, cast

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from rlopt.optim import NonFiniteError, needs_closure
from rlopt.optim.finite import Undo, cause, check_non_finite

AnyTrain = TypeVar("AnyTrain", bound=Callable[..., None])
Found = tuple[int, str]
"""Gradient step of a phase, from 1, and what is not finite in it."""


class FiniteCheck:
    """Looks at all numbers that an agent gets from its environments, gives to them, and learns from.

    A number of the environment that is not finite ends the run, before `VecNormalize` or the replay have seen it. A loss or
    gradient that is not ends it too, or with `non_finite="skip"` the step is left out: parameters, buffers and the optimizer's
    state stay as they were. A parameter that is not finite always ends it.

    On a GPU, and with several processes, losses and gradients are looked at together at the end of each phase of learning, unless
    steps are to be left out, so that no step waits for the device.

    Args:
        agent: A `rlopt.agents.learner.Learner`.

    Raises:
        ValueError: If the agent's `non_finite` is not one of its choices.
    """

    def __init__(self, agent: Any) -> None:
        check_non_finite(agent.non_finite)
        self._agent = agent
        self._skips = agent.non_finite == "skip"
        self._waits = not self._skips and (agent.device.type == "cuda" or agent._num_processes > 1)
        self._named = [*agent.policy.named_parameters()]
        if getattr(agent, "log_ent_coef", None) is not None:
            self._named.append(("log_ent_coef", agent.log_ent_coef))
        self._names = {id(param): name for name, param in self._named}
        self._buffers = [*agent.policy.buffers()]
        self._gradient_step, self._undo_buffers = 0, Undo(())
        self._seen: list[tuple[int, str, th.Tensor, th.Tensor]] = []

    # What passes between agent and environments

    @contextlib.contextmanager
    def watching(self, env: VecEnv | None) -> Iterator[None]:
        """Look at observations, rewards and actions in the block, as the environments themselves give and get them."""
        while isinstance(env, VecEnvWrapper):
            env = env.venv
        watches: dict[str, Callable[[Any], None]] = {
            "reset": partial(self._look_at_observations, 0),
            "step_async": self._look_at_actions,
            "step_wait": self._look_at_step,
        }
        for name, look in watches.items():
            if env is not None:
                setattr(env, name, _Watched(env, name, look))
        try:
            yield
        finally:
            for name in watches:
                if env is not None:
                    vars(env).pop(name, None)

    def _look_at_step(self, results: Any) -> None:
        observations, rewards, dones, infos = results
        steps = self._agent.n_envs
        self._look_at("reward", rewards, steps)
        self._look_at_observations(steps, observations)
        for i in np.flatnonzero(dones).tolist() if np.any(dones) else ():
            last = infos[i].get("terminal_observation")
            if last is not None:
                self._look_at_observations(steps, last, "last observation", i)

    def _look_at_observations(self, steps: int, observations: Any, what: str = "observation", number: int | None = None) -> None:
        if isinstance(observations, dict):
            for name, part in observations.items():
                self._look_at(f"{what} {name!r}", part, steps, number)
        else:
            self._look_at(what, observations, steps, number)

    def _look_at_actions(self, actions: Any) -> None:
        if not _is_finite(actions):
            self.check_parameters()  # which would be the cause
            self._look_at("action", actions, self._agent.n_envs, advice="see what the networks compute")

    def _look_at(
        self, what: str, values: Any, steps: int, number: int | None = None, advice: str = "see what the environment computes"
    ) -> None:
        if _is_finite(values):
            return
        array = np.asarray(values)
        first = tuple(np.argwhere(~np.isfinite(array))[0].tolist())
        number = first[0] if number is None else number
        where = f"step {self._agent.num_timesteps + steps}"
        raise self.error(f"{where}: the {what} of environment {number} is {array[first]}", advice)

    # What an agent learns from

    @contextlib.contextmanager
    def phase(self) -> Iterator[None]:
        """The block is a call of `train`: judge at its end what was not judged yet, and log how many updates were left out so far.

        Raises:
            NonFiniteError: If a loss or gradient of the phase was not finite, with the first.
        """
        self._gradient_step, self._seen = 0, []
        with self.explaining():
            yield
        found = self._agent._first_of_processes(self._first_seen()) if self._waits else None
        if found is not None:
            raise self._of_step(*found)
        if self._skips:
            self._agent.logger.record("train/skipped_updates", self._agent.num_skipped_updates)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Replace what replays and distributions say about nan by its cause, if there is one.

        Raises:
            NonFiniteError: If a loss, gradient or parameter is not finite.
        """
        try:
            yield
        except NonFiniteError:
            raise
        except (ValueError, RuntimeError):
            found = self._first_seen()  # of this process: the others may not come here
            if found is not None:
                raise self._of_step(*found) from None
            self.check_parameters()
            if self._agent._last_obs is not None:  # environments were looked at: this is what `VecNormalize` made of them
                self._look_at_observations(0, self._agent._last_obs, "normalised observation")
            raise

    def begin_step(self) -> None:
        """The next gradient step begins; it is one or more steps of optimizers."""
        self._gradient_step += 1
        if self._skips:
            self._undo_buffers = Undo(self._buffers)

    def undo(self, optimizer: Optimizer) -> Undo | None:
        """What brings back an optimizer and its parameters as they are now; None where steps are not left out."""
        return Undo((), optimizer) if self._skips else None

    def look(self, of: str, loss: th.Tensor, norm: th.Tensor, optimizer: Optimizer) -> None:
        """Look at a loss and the norm of its gradient, or what `zero_if_finite` says of it, in front of a step.

        Raises:
            NonFiniteError: If one is not finite.
        """
        if self._waits and not needs_closure(optimizer):
            self._seen.append((self._gradient_step, of, loss.detach(), norm))
            return
        if not math.isfinite(self._agent._over_processes(loss.detach() + norm).item()):
            raise NonFiniteError(self._cause(of, loss.detach(), optimizer))

    def settle(self, error: NonFiniteError, undo: Undo | None, optimizer: Optimizer) -> None:
        """Leave a step out, or end the run.

        Raises:
            NonFiniteError: As the agent was told, or if a parameter is not finite.
        """
        text = str(error).rstrip(".")
        if undo is None:
            raise self._of_step(self._gradient_step, text) from None
        undo()
        self._undo_buffers()
        optimizer.zero_grad()
        self.check_parameters(self._gradient_step)
        self._agent.num_skipped_updates += 1
        if self._agent.num_skipped_updates == 1:
            step = f"step {self._agent.num_timesteps}, gradient step {self._gradient_step}"
            warnings.warn(f"{step}: {text}; the update is left out, as all such: train/skipped_updates counts.", stacklevel=2)

    def _first_seen(self) -> Found | None:
        if not self._seen:
            return None
        numbers = th.stack([th.stack([loss, norm.to(loss)]) for _, _, loss, norm in self._seen]).tolist()
        for (step, of, _, _), (loss, norm) in zip(self._seen, numbers, strict=True):
            if not math.isfinite(loss):
                return step, f"{of} is {loss}"
            if not math.isfinite(norm):
                return step, f"the gradient of {of} is not finite ({of} is {loss:.6g})"
        return None

    def check_parameters(self, gradient_step: int | None = None) -> None:
        """Refuse parameters that are not finite.

        Args:
            gradient_step: Where a phase is, for the message.

        Raises:
            NonFiniteError: With the name of the first one.
        """
        if math.isfinite(get_total_norm([param.detach() for _, param in self._named]).item()):
            return
        for name, param in self._named:
            if not th.isfinite(param).all():
                raise self._of_step(gradient_step, f"the parameter {name!r} is not finite") from None

    def _cause(self, of: str, loss: th.Tensor, optimizer: Optimizer) -> str:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        return cause(((self._names.get(id(p), "?"), p.detach(), p.grad) for p in params), loss, of)[1]

    def _of_step(self, gradient_step: int | None, text: str) -> NonFiniteError:
        phase = "" if gradient_step is None else f", gradient step {gradient_step}"
        return self.error(f"step {self._agent.num_timesteps}{phase}: {text}", "try a lower learning rate or smaller rewards")

    def error(self, text: str, advice: str) -> NonFiniteError:
        """The error of one sentence, with the last good checkpoint."""
        checkpoints = self._agent._checkpoints
        saved = [] if checkpoints is None else checkpoints.paths()
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint"
        return NonFiniteError(f"{text}; {last}; {advice}.")


def checked(train: AnyTrain) -> AnyTrain:
    """Make a method `train` of an agent a phase of its `FiniteCheck`."""

    @wraps(train)
    def phase(self: Any, *args: Any, **kwargs: Any) -> None:
        with self._finite.phase():
            train(self, *args, **kwargs)

    return cast(AnyTrain, phase)


def zero_if_finite(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """0 if all numbers are finite, otherwise something that is not.

    Example:
        >>> zero_if_finite([th.ones(2), th.tensor([1.0, -th.inf])]).item()
        -inf
    """
    if any(tensor.dtype != th.float32 or tensor.device != tensors[0].device for tensor in tensors):
        return get_total_norm([tensor.detach() for tensor in tensors]) * 0.0
    # What GradScaler uses, and five times as fast as norms: one pass over each tensor, which is multiplied by 1.
    found = th.zeros((), device=tensors[0].device)
    th._amp_foreach_non_finite_check_and_unscale_(list(tensors), found, th.ones_like(found))
    return th.log1p(-found)  # log 1 or log 0


def _is_finite(values: Any) -> bool:
    array = np.asarray(values)
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


class _Watched:
    """A method of one object that shows what it gets (`step_async`) or returns (others).

    Copies of the object, pickled ones too, have the plain method.
    """

    def __init__(self, thing: VecEnv, name: str, look: Callable[[Any], None]) -> None:
        self._thing, self._look = thing, look
        self._method = MethodType(getattr(type(thing), name), thing)

    def __call__(self, *args: Any) -> Any:
        if args:
            self._look(*args)
            return self._method(*args)
        try:
            result = self._method()
        except ValueError as error:
            if "broadcast" not in str(error) and "could not convert" not in str(error):
                raise
            space, text = self._thing.observation_space, " ".join(str(error).split())
            raise ValueError(f"env must return observations of its space {space}, got others: {text}.") from None
        self._look(result)
        return result

    def __reduce__(self) -> tuple[type[MethodType], tuple[Any, Any]]:
        return MethodType, (self._method.__func__, self._thing)
