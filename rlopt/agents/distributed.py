"""PPO on several processes, each with environments of its own, started by torchrun."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch as th
import torch.distributed as dist
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlopt.agents import losses
from rlopt.agents.distributed_checkpoints import CheckpointsOfProcesses
from rlopt.agents.finite import Found
from rlopt.agents.optimizing import Evaluation, steps_along_gradient
from rlopt.agents.ppo import PPO
from rlopt.nn.expert_parallel import share_balance
from rlopt.optim import KFAC, CombinedOptimizer, NonFiniteError, needs_closure

Self = TypeVar("Self", bound="DistributedPPO")
Result = TypeVar("Result")


class DistributedPPO(PPO):
    """PPO whose processes collect rollouts in environments of their own and take the same steps.

    A step follows the mean of the gradients of all processes, so that W processes with n environments and batches of b rows learn
    like one with W n environments and batches of W b rows: advantages are normalised over the batches of all, and `target_kl` stops
    all at once, by the mean. Processes start from the weights of the first, and end with equal ones, which is checked. Without a
    process group, or with one process, this is `PPO`.

    The seed of a process other than the first is derived from `seed` and its number. Timesteps are counted per process, but for
    those that `learn` is asked for. The first process writes the log; its numbers are of its own rollouts. If a callback ends
    training on one process, it ends on all. With `checkpoints` each process writes its own, in `process_<rank>` of the folder, and
    all go on from the newest one that all can read.

    Args:
        *args: As in `PPO`; `batch_size` is that of one process.
        **kwargs: As in `PPO`.

    Raises:
        ValueError: If processes differ in numbers of environments, steps, epochs or rows; for optimizers that evaluate the loss
            again or need the inputs of layers; for environments with running statistics (`VecNormalize`).

    References: Schulman et al. (`PPO`). Averaging over workers: Heess et al., Emergence of locomotion behaviours in rich
    environments, 2017, arXiv 1707.02286 (DPPO; there workers also wait for fewer than all).

    Example:
        >>> agent = DistributedPPO("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1, seed=0, device="cpu")  # one process
        >>> agent.learn(64).num_timesteps
        64
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _rank() > 0:
            if kwargs.get("seed") is not None:
                kwargs["seed"] = int(np.random.SeedSequence([kwargs["seed"], _rank()]).generate_state(1)[0]) // 2
            kwargs |= {"verbose": 0, "tensorboard_log": None}
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        self._evaluator: nn.Module | None = None
        if _size() == 1:
            return
        optimizer = self.policy.optimizer
        if needs_closure(optimizer) or not steps_along_gradient(optimizer) or _has_kfac(optimizer):
            name = type(optimizer).__name__
            raise ValueError(f"optimizer must take one step along a gradient if there are several processes, got {name}.")
        if self.env is not None and unwrap_vec_normalize(self.env) is not None:
            raise ValueError("env must not be a VecNormalize if there are several processes: its statistics would differ.")
        counts = {
            name: int(getattr(self, name))
            for name in ("n_envs", "n_steps", "batch_size", "n_epochs")
            if getattr(self, name) is not None
        }
        everyone: list[Any] = [None] * _size()
        dist.all_gather_object(everyone, counts)
        for name, count in counts.items():
            found = [other.get(name) for other in everyone]
            if len(set(found)) > 1:
                raise ValueError(f"{name} must be the same on all processes, got {found}; this one has {count}.")
        share_balance(self.policy)
        device = self.device if self.device.type == "cuda" else None
        # It takes over the weights of the first process.
        self._evaluator = DistributedDataParallel(_Evaluator(self.policy), device_ids=None if device is None else [device])

    def learn(self: Self, total_timesteps: int, *args: Any, **kwargs: Any) -> Self:
        """Learn, on all processes together.

        Args:
            total_timesteps: Of all processes; each does its share, rounded up.
            *args: As in Stable-Baselines3.
            **kwargs: As in Stable-Baselines3.

        Raises:
            ValueError: If `checkpoints` are those of another number of processes.
            RuntimeError: If weights of processes differ at the end.
        """
        if self._evaluator is not None and kwargs.get("checkpoints") is not None:
            kwargs["checkpoints"] = CheckpointsOfProcesses(kwargs["checkpoints"])
        super().learn(-(-total_timesteps // _size()), *args, **kwargs)
        if self._evaluator is not None:
            own = nn.utils.parameters_to_vector(self.policy.parameters()).detach()
            first = own.clone()
            dist.broadcast(first, src=0)
            if not th.equal(own, first):
                raise RuntimeError(f"weights of process {_rank()} differ from those of the first at the end of learn.")
        return self

    def collect_rollouts(self, env: Any, callback: BaseCallback, *args: Any, **kwargs: Any) -> bool:
        """Collect a rollout on each process; returns whether callbacks of all processes want to go on."""
        goes_on = bool(self._together(partial(super().collect_rollouts, env, callback, *args, **kwargs)))
        if self._evaluator is None:
            return goes_on
        flag = th.tensor(float(goes_on), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag.item())

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        return self._together(partial(super()._setup_learn, *args, **kwargs))

    def _together(self, work: Callable[[], Result]) -> Result:
        """Return what `work` does; if it meets what is not finite on one process, all stop."""
        if self._num_processes == 1:
            return work()
        error: NonFiniteError | None = None
        try:
            result = work()
        except NonFiniteError as met:
            error = met
        found = self._first_of_processes(None if error is None else (0, str(error)))
        if found is not None:
            raise NonFiniteError(found[1]) from None
        return result

    @property
    def _num_processes(self) -> int:
        return _size()

    def _over_processes(self, value: th.Tensor) -> th.Tensor:
        if self._num_processes > 1:
            dist.all_reduce(value)
        return value

    def _first_of_processes(self, found: Found | None) -> Found | None:
        if self._num_processes == 1:
            return found
        everyone: list[Found | None] = [None] * _size()
        dist.all_gather_object(everyone, found)
        named = [(one[0], rank, one[1]) for rank, one in enumerate(everyone) if one is not None]
        if not named:
            return None
        step, rank, text = min(named)
        return step, f"process {rank}: {text}"

    def _evaluate_actions(self, observations: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        if self._evaluator is None:
            return super()._evaluate_actions(observations, actions)
        evaluated: tuple[th.Tensor, th.Tensor, th.Tensor | None] = self._evaluator(observations, actions)
        return evaluated

    def _normalized(self, advantages: th.Tensor) -> th.Tensor:
        if self._evaluator is None:
            return super()._normalized(advantages)
        parts = [th.empty_like(advantages) for _ in range(_size())]
        dist.all_gather(parts, advantages.contiguous())
        return losses.normalized(th.cat(parts)).view(_size(), -1)[_rank()]  # (W * B,) -> (W, B)

    def _is_too_far(self, evaluation: Evaluation) -> bool:
        if self._evaluator is not None:
            kl = evaluation[-1].clone()
            dist.all_reduce(kl)
            evaluation = (*evaluation[:-1], kl / _size())
        return super()._is_too_far(evaluation)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_evaluator"]


class _Evaluator(nn.Module):
    """The policy as a module that evaluates actions when it is called, which is what DistributedDataParallel watches."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Any, actions: th.Tensor) -> Any:
        return self.policy.evaluate_actions(observations, actions)


def _has_kfac(optimizer: th.optim.Optimizer) -> bool:
    parts = optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else ()
    return isinstance(optimizer, KFAC) or any(map(_has_kfac, parts))


def _size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
