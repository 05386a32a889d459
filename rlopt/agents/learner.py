"""What all of rlopt's agents share: the choice of their optimizers, and the extra losses of their networks."""

from __future__ import annotations

import contextlib
import inspect
import io
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.optim import Optimizer

from rlopt.agents.agent_loading import load_agent
from rlopt.agents.arguments import bind_arguments, one_sentence
from rlopt.agents.auxiliary import AuxiliaryLosses
from rlopt.agents.checkpoints import Checkpoints
from rlopt.agents.finite import FiniteCheck, Found
from rlopt.optim import NonFinite, OptimizerLike, build_optimizer

AnyLearner = TypeVar("AnyLearner", bound="Learner")


# Arguments that tell where an agent lives and what it prints, not what it is.
_NOT_OF_THE_AGENT = ("env", "device", "verbose", "tensorboard_log", "_init_setup_model")


class Learner(BaseAlgorithm):
    """Mixin that stands before a Stable-Baselines3 agent.

    With `optimizer` the agent steps with it, at its own learning rates; `learning_rate` is then a schedule of factors, 1 if it is
    not given.

    Args:
        *args: As in Stable-Baselines3.
        optimizer: What `rlopt.optim.build_optimizer` takes; agents with an actor of its own build one for each network, or take a
            mapping with "actor" and "critic". None: Stable-Baselines3's.
        aux_loss_coefs: Factors >= 0, by name, of the losses that features extractors have of their own, for extractors with a
            method `pop_aux_losses` (see `rlopt.agents.auxiliary`). They are added to the loss of the network that the extractor
            belongs to. Losses without a factor are logged only.
        non_finite: What happens if a loss or gradient is nan or infinite. "raise": the run ends. "skip": that step is left out,
            and the rest of its gradient step with it; `train/skipped_updates` counts. Observations, rewards, actions and
            parameters that are not finite always end the run.
        **kwargs: As in Stable-Baselines3.

    Raises:
        ValueError: With `optimizer`: if `learning_rate` is no schedule of factors, if `policy_kwargs` choose an optimizer as
            well, or if a mapping has other keys. If `aux_loss_coefs` has no effect or a factor outside its range. If `non_finite`
            is another word, a number is outside its range, or a space is not for this agent.
        TypeError: For an option that the agent does not have.
    """

    made_with: dict[str, Any] | None
    """Arguments of the constructor without the environment, by name; None if unknown, because Stable-Baselines3 loaded it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Learner:
        """Note the arguments, those of subclasses included."""
        learner = super().__new__(cls)
        learner.made_with = dict(kwargs)
        return learner

    def __init__(
        self,
        *args: Any,
        optimizer: OptimizerLike | Mapping[str, OptimizerLike] | None = None,
        aux_loss_coefs: Mapping[str, float] | None = None,
        non_finite: NonFinite = "raise",
        **kwargs: Any,
    ) -> None:
        self.optimizer = optimizer
        self.aux_loss_coefs = aux_loss_coefs
        self.non_finite = non_finite
        self.num_skipped_updates = 0
        self._checkpoints: Checkpoints | None = None
        arguments = bind_arguments(type(self), inspect.signature(super().__init__), args, kwargs)
        self._given, self._given_policy = list(arguments), arguments.get("policy")
        given = {**arguments, **(self.made_with or {})}
        self.made_with = {name: value for name, value in given.items() if name not in _NOT_OF_THE_AGENT}
        if optimizer is not None and "learning_rate" not in self._given:
            kwargs["learning_rate"] = 1.0
        with one_sentence(self):
            super().__init__(*args, **kwargs)

    @classmethod
    def load(
        cls: type[AnyLearner],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: Any = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> AnyLearner:
        """Make an agent of a checkpoint, or load a file that `save` wrote, as Stable-Baselines3 does.

        A checkpoint (see `rlopt.agents.Checkpoints`) holds no code, so it may come from anybody. A file of `save` is unpickled,
        which runs whatever its author put there: load your own ones only.

        Args:
            path: Folder of a checkpoint, or of several, of which the newest is taken; or the file.
            env: Environment of the agent; None: it can predict, not train.
            device: Where networks live.
            custom_objects: Of files of `save`.
            print_system_info: Of files of `save`.
            force_reset: Of files of `save`. An agent made of a checkpoint begins new episodes.
            **kwargs: Arguments of the constructor that differ. Those which a checkpoint cannot hold (functions such as schedules,
                and objects such as action noise) have to be given again. For files of `save` they count as given to the
                constructor.

        Raises:
            ValueError: If it is no checkpoint of such an agent, arguments are missing, or as the constructor.
        """
        if isinstance(path, str | pathlib.Path) and pathlib.Path(path).is_dir():
            made: AnyLearner = load_agent(cls, pathlib.Path(path), env, device, kwargs)
            return made
        agent = super().load(
            path, env, device, custom_objects, print_system_info, force_reset, **kwargs, _given_to_load=list(kwargs)
        )
        agent.made_with = None
        return agent

    def learn(
        self: AnyLearner, total_timesteps: int, *args: Any, checkpoints: Checkpoints | None = None, **kwargs: Any
    ) -> AnyLearner:
        """Train, as in Stable-Baselines3.

        Args:
            total_timesteps: Steps to train for; with `checkpoints` those of the whole run, what was done before a stop included.
            *args: As in Stable-Baselines3.
            checkpoints: Where checkpoints are written, and from where a stopped run goes on. None: nowhere.
            **kwargs: As in Stable-Baselines3.

        Raises:
            ValueError: If checkpoints cannot be read or are those of another agent, or with `reset_num_timesteps=False`.
            NonFiniteError: If an observation, a reward, an action or a parameter is not finite, or with `non_finite="raise"` a loss
                or a gradient; the checkpoints stay as they are.
        """
        if not total_timesteps >= 0:
            raise ValueError(f"total_timesteps must be >= 0, got {total_timesteps}.")
        self._checkpoints, self._is_stopped = checkpoints, False
        with self._finite.watching(self.env), contextlib.nullcontext() if checkpoints is None else checkpoints.watching_signals():
            super().learn(total_timesteps, *args, **kwargs)  # type: ignore[safe-super]  # the agent stands behind this mixin
            self._finite.check_parameters()
            if checkpoints is not None and not self._is_stopped:
                checkpoints.finish(self)
        return self

    def _setup_learn(self, total_timesteps: int, callback: Any = None, reset_num_timesteps: bool = True, *args: Any) -> Any:
        if self._checkpoints is not None and not reset_num_timesteps:
            raise ValueError("reset_num_timesteps must be True with checkpoints: total_timesteps are those of the whole run.")
        found = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args)
        if self._checkpoints is not None:
            self._checkpoints.resume(self, found[1])
        return found

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> Any:
        """Act, as in Stable-Baselines3; before it is the moment for checkpoints, between two phases of learning."""
        if self._checkpoints is not None:
            self._checkpoints.visit(self)
        with self._finite.explaining():
            rollout = self._collect(*args, **kwargs)
        # A callback that stops training does so in the middle of a step: nothing can go on from there.
        self._is_stopped = not getattr(rollout, "continue_training", rollout)
        return rollout

    def _collect(self, *args: Any, **kwargs: Any) -> Any:
        return super().collect_rollouts(*args, **kwargs)  # type: ignore[misc]  # the agent stands behind this mixin

    def _setup_model(self) -> None:
        self._given += self.__dict__.pop("_given_to_load", [])
        self._setup_networks()
        self._own_rates: dict[Optimizer, list[float]] = {}
        if self.optimizer is not None:
            self._check_options()
            self._build_optimizers()
        self._aux = AuxiliaryLosses(self.aux_loss_coefs)
        self._aux.require(self.policy)
        self._finite = FiniteCheck(self)

    @property
    def _num_processes(self) -> int:
        return 1

    def _over_processes(self, value: th.Tensor) -> th.Tensor:
        """Return the sum of a tensor over all processes."""
        return value

    def _first_of_processes(self, found: Found | None) -> Found | None:
        """Return the first finding of all processes."""
        return found

    def _setup_networks(self) -> None:
        """Make what Stable-Baselines3's agent consists of."""
        super()._setup_model()  # type: ignore[safe-super]  # the agent stands behind this mixin

    def _build_optimizers(self) -> None:
        """Put the chosen optimizers in the place of Stable-Baselines3's."""
        raise NotImplementedError

    def _check_options(self) -> None:
        """Refuse options that do not go with `optimizer`."""
        # Not the first value, which a warm-up makes small.
        largest = max(self.lr_schedule(progress) for progress in np.linspace(1.0, 0.0, 1001).tolist())
        if not np.isclose(largest, 1.0, rtol=0.01):
            raise ValueError(
                "learning_rate must be left out or be a schedule of factors, the largest 1, when optimizer is given, got a largest "
                f"value of {largest:g}: give the optimizer the rate, such as rlopt.optim.Adam(lr={largest:g})."
            )
        both = sorted({"optimizer_class", "optimizer_kwargs"} & self.policy_kwargs.keys())
        if both:
            raise ValueError(f"policy_kwargs must have no {both[0]} when optimizer is given: drop one of them.")

    def _built(self, chosen: OptimizerLike, module: th.nn.Module) -> Optimizer:
        optimizer = build_optimizer(chosen, module)
        self._own_rates[optimizer] = [group["lr"] for group in optimizer.param_groups]
        return optimizer

    def _update_learning_rate(self, optimizers: list[Optimizer] | Optimizer) -> None:
        if self.optimizer is None:
            super()._update_learning_rate(optimizers)
            return
        every = optimizers if isinstance(optimizers, list) else [optimizers]
        factor = self.lr_schedule(self._current_progress_remaining)
        for optimizer in every:
            for group, rate in zip(optimizer.param_groups, self._own_rates[optimizer], strict=True):
                group["lr"] = rate * factor
        self.logger.record("train/learning_rate", every[0].param_groups[0]["lr"])

    def _record_mean(self, name: str, values: list[th.Tensor]) -> None:
        """Log the mean of scalars, nothing if there are none; they are read from the device once."""
        if values:
            self.logger.record(f"train/{name}", sum(value.item() for value in values) / len(values))

    def _excluded_save_params(self) -> list[str]:
        own = ["_own_rates", "_aux", "_checkpoints", "_finite", "_given_policy", "made_with"]
        return [*super()._excluded_save_params(), *own]
