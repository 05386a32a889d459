"""The gradient of DQN's loss, written out for perceptrons."""

from __future__ import annotations

import math
from typing import Any

import torch as th

from rlopt.agents.fast.mlp import StackedMLP


class DQNGradient:
    """Gradients of mean_i w_i huber(Q(s_i, a_i) - y_i) for S networks at once, each on a batch of its own.

    What `rlopt.agents.losses` and autograd compute, in fewer calls. See `rlopt.agents.DQN` for y.

    Args:
        online: Q-networks.
        target: Their target networks.
        gamma: Discount of batches without discounts of their own.
        double_q: Whether the online network chooses the next action.
        max_grad_norm: Bound of the norm of each network's gradient; infinity: none.

    Attributes:
        grads: Gradients (S, n) of the last call.
    """

    def __init__(self, online: StackedMLP, target: StackedMLP, gamma: float, double_q: bool, max_grad_norm: float) -> None:
        self.online, self.target = online, target
        self.gamma, self.double_q, self.max_grad_norm = gamma, double_q, max_grad_norm
        self.grads = th.zeros_like(online.params)
        self._errors: dict[int, th.Tensor] = {}

    @th.no_grad()
    def __call__(self, batch: Any) -> tuple[th.Tensor, th.Tensor]:
        """Write the gradients of a batch, and return the losses (S,) and the TD errors y - Q(s, a), (S, B, 1).

        Args:
            batch: Fields of `ReplayBatch` with a leading dimension S.
        """
        next_q = self.target.forward(batch.next_observations)
        if self.double_q:
            choice = self.online.forward(batch.next_observations, "next").argmax(2, keepdim=True)
            target = next_q.gather(2, choice)
        else:
            target = next_q.amax(2, keepdim=True)
        discounts = self.gamma if batch.discounts is None else batch.discounts
        target.mul_((1 - batch.dones).mul_(discounts)).add_(batch.rewards)
        q = self.online.forward(batch.observations)
        errors = target.sub_(q.gather(2, batch.actions))
        rows = q.shape[1]
        clipped = errors.clamp(-1.0, 1.0)
        slope = clipped * batch.weights
        # huber(e) = c (e - c / 2) with c = clip(e, -1, 1)
        loss = (errors - 0.5 * clipped).mul_(slope).mean((1, 2))
        slope.mul_(-1.0 / rows)
        grad = self._errors.get(rows)
        if grad is None:
            grad = self._errors[rows] = th.zeros_like(q)
        grad.zero_().scatter_(2, batch.actions, slope)
        self.online.backward(grad, self.grads)
        clip_norms(self.grads, self.max_grad_norm)
        return loss, errors


def clip_norms(grads: th.Tensor, bound: float) -> None:
    """Shorten the rows of (S, n) to at most `bound`, as `torch.nn.utils.clip_grad_norm_` does."""
    if bound < math.inf:
        norms = th.linalg.vector_norm(grads, dim=1, keepdim=True)
        grads.mul_((bound / norms.add_(1e-6)).clamp_(max=1.0))
