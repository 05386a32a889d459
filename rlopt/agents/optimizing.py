"""How agents take a step with any optimizer: one function for those that need the loss once and those that evaluate it again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import LBFGS, Optimizer

from rlopt.agents.finite import FiniteCheck, zero_if_finite
from rlopt.optim import KFAC, CombinedOptimizer, LocoProp, NonFiniteError, needs_closure

T = TypeVar("T")
Evaluation = tuple[th.Tensor, ...]


def take_step(
    optimizer: Optimizer,
    evaluate: Callable[[], Evaluation],
    max_grad_norm: float = math.inf,
    unless: Callable[[Evaluation], bool] | None = None,
    check: FiniteCheck | None = None,
    of: str = "the loss",
) -> Evaluation | None:
    """Minimise a loss by one step.

    Optimizers that evaluate the loss themselves (L-BFGS, SAM) get a closure that computes it on the same batch with the same random
    numbers; for all others it is computed once, and the step is the usual one.

    Args:
        optimizer: Of the parameters to be moved. What `zero_grad` clears, recorded rows included, is cleared before the forward
            pass.
        evaluate: Returns the loss, and further tensors that the caller wants to see.
        max_grad_norm: Bound of the gradient's norm, over all parameters of the optimizer, in each evaluation.
        unless: Looks at the first evaluation, without graph; if it says True, there is no step. None: there always is.
        check: Looks at loss and gradient in front of the step. None: nobody does.
        of: What the loss is called.

    Returns:
        What `evaluate` returned first, at the parameters before the step, without graph. None if the step was left out because
        something was not finite; then everything is as it was.

    Raises:
        NonFiniteError: By `check`.

    Example:
        >>> w = nn.Parameter(th.tensor([3.0]))
        >>> sgd = th.optim.SGD([w], lr=0.5)
        >>> take_step(sgd, lambda: ((w**2).sum(),))[0].item(), w.item()
        (9.0, 0.0)
    """
    compute = repeatable(evaluate, optimizer)
    undo = None if check is None else check.undo(optimizer)

    def cleared() -> Evaluation:
        optimizer.zero_grad()
        return compute()

    at_hand = [cleared()]
    first = tuple(value.detach() for value in at_hand[0])
    if unless is not None and unless(first):
        return first

    def closure() -> th.Tensor:
        loss = (at_hand.pop() if at_hand else cleared())[0]
        loss.backward()  # type: ignore[no-untyped-call]
        clips = max_grad_norm < math.inf
        if check is not None or clips:
            params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
            grads = [param.grad for param in params]
            norm = get_total_norm(grads) if clips else zero_if_finite(grads)
            if check is not None:
                check.look(of, loss, norm, optimizer)
            if clips:
                clip_grads_with_norm_(params, max_grad_norm, norm)
        return loss.detach()

    try:
        if needs_closure(optimizer):
            optimizer.step(closure)  # type: ignore[arg-type]  # annotated to return a float; a tensor is the custom
        else:
            closure()
            optimizer.step()
    except NonFiniteError as error:
        if check is None:
            raise
        check.settle(error, undo, optimizer)
        return None
    return first


def repeatable(compute: Callable[[], T], optimizer: Optimizer) -> Callable[[], T]:
    """Make every call of `compute` draw the random numbers of the first, so that an optimizer compares one and the same loss.

    Args:
        compute: May draw from PyTorch's generators (dropout, sampled actions).
        optimizer: If it does not evaluate the loss again, `compute` is returned as it is.

    Example:
        >>> compute = repeatable(lambda: th.empty(1).normal_().item(), LBFGS([nn.Parameter(th.zeros(1))]))
        >>> compute() == compute()
        True
    """
    if not needs_closure(optimizer):
        return compute
    device = optimizer.param_groups[0]["params"][0].device
    devices = [device] if device.type == "cuda" else []
    start: list[th.Tensor] = []

    def repeated() -> T:
        if not start:
            start.append(th.get_rng_state())
            start.extend(th.cuda.get_rng_state(cuda) for cuda in devices)
            return compute()
        with th.random.fork_rng(devices):  # later draws do not depend on how often this is called
            th.set_rng_state(start[0])
            for cuda, state in zip(devices, start[1:], strict=True):
                th.cuda.set_rng_state(state, cuda)
            return compute()

    return repeated


def steps_along_gradient(optimizer: Optimizer) -> bool:
    """Whether clipping the gradient bounds what an optimizer steps along.

    LocoProp solves local problems instead, and L-BFGS would take differences of clipped gradients for curvature.
    """
    parts = optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else ()
    return not isinstance(optimizer, (LocoProp, LBFGS)) and all(map(steps_along_gradient, parts))


def grad_norm_bound(optimizer: Optimizer, max_grad_norm: float, was_given: bool) -> float:
    """Bound of the gradient's norm that goes with an optimizer: `max_grad_norm`, or infinity where clipping does not act.

    Args:
        optimizer: Of an agent.
        max_grad_norm: Of the agent.
        was_given: Whether the user chose it.

    Raises:
        ValueError: If the user chose a bound that would not act.
    """
    if steps_along_gradient(optimizer):
        return max_grad_norm
    if was_given and max_grad_norm < math.inf:
        name = type(optimizer).__name__
        hint = "LocoPropSpec(max_delta_norm=...) bounds its targets" if name == "LocoProp" else "drop it"
        raise ValueError(
            f"max_grad_norm must be left out or math.inf with {name}, which does not step along the gradient, got {max_grad_norm}: "
            f"{hint}."
        )
    return math.inf


@contextmanager
def without_recording(optimizer: Optimizer) -> Iterator[None]:
    """Let an optimizer that records forward passes of its network (LocoProp, K-FAC) leave out those inside."""
    with ExitStack() as stack:
        if isinstance(optimizer, LocoProp | KFAC):
            stack.enter_context(optimizer.suspended())
        for part in optimizer.optimizers if isinstance(optimizer, CombinedOptimizer) else ():
            stack.enter_context(without_recording(part))
        yield


def trained_part(critic: ContinuousCritic) -> nn.Module:
    """The part of a critic that its loss moves: all, or the Q-networks alone behind a features extractor that is the actor's."""
    return nn.ModuleList(critic.q_networks) if critic.share_features_extractor else critic
