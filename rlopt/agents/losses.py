"""The mathematics of the updates as pure functions of tensors.

Shapes: B transitions, C critics, A actions. Values, rewards, dones, discounts and weights are (B, 1), so that nothing broadcasts by
accident. None of the functions keeps state or knows an agent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch as th
from torch.nn import functional as F


def td_target(rewards: th.Tensor, dones: th.Tensor, discounts: th.Tensor | float, next_values: th.Tensor) -> th.Tensor:
    """Bootstrapped target r + (1 - done) * discount * v(s'), (B, 1).

    `dones` is 1 only at true terminations; `discounts` is gamma, or gamma^k for n-step returns.
    """
    return rewards + (1 - dones) * discounts * next_values


def greedy_value(target_q: th.Tensor, online_q: th.Tensor | None = None) -> th.Tensor:
    """Value of the greedy action in the next state, (B, 1).

    max_a Q_target(s', a), or with `online_q` the double-Q estimate Q_target(s', argmax_a Q_online(s', a)).

    Args:
        target_q: Q-values of the target network, (B, A).
        online_q: Q-values of the online network, (B, A).
    """
    if online_q is None:
        return target_q.max(dim=1, keepdim=True).values
    return target_q.gather(1, online_q.argmax(dim=1, keepdim=True))


def smallest_value(critics_q: Sequence[th.Tensor]) -> th.Tensor:
    """Minimum over the critics, (B, 1) each -> (B, 1)."""
    return th.cat(tuple(critics_q), dim=1).min(dim=1, keepdim=True).values


def smoothed_action(action: th.Tensor, noise: th.Tensor, clip: float) -> th.Tensor:
    """Target-policy smoothing: clip(a + clip(noise, -c, c), -1, 1), (B, action_dim)."""
    return (action + noise.clamp(-clip, clip)).clamp(-1, 1)


def huber_loss(q: th.Tensor, target: th.Tensor, weights: th.Tensor | None = None) -> th.Tensor:
    """mean_i w_i * huber(q_i - target_i) with threshold 1.

    The weights multiply each transition's loss before the mean: scaling a mean would change the step size only.
    """
    if weights is None:
        return F.smooth_l1_loss(q, target)
    return (weights * F.smooth_l1_loss(q, target, reduction="none")).mean()


def squared_loss(critics_q: Sequence[th.Tensor], target: th.Tensor, weights: th.Tensor | None = None) -> th.Tensor:
    """sum_c mean_i w_i * (q_ci - target_i)^2 over the critics."""
    if weights is None:
        return th.stack([F.mse_loss(q, target) for q in critics_q]).sum()
    return th.stack([(weights * F.mse_loss(q, target, reduction="none")).mean() for q in critics_q]).sum()


def entropy_regularised_value(q: th.Tensor, log_prob: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """Soft value Q(s', a') - alpha * log pi(a' | s'), (B, 1)."""
    return q - ent_coef * log_prob


def entropy_coefficient_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float) -> th.Tensor:
    """-log(alpha) * (log pi + target entropy), averaged; its gradient moves the policy's entropy to the target."""
    return -(log_ent_coef * (log_prob + target_entropy).detach()).mean()


@th.no_grad()
def soft_update(parameters: Iterable[th.Tensor], targets: Iterable[th.Tensor], tau: float) -> None:
    """Target <- target + tau * (parameter - target), all tensors in one call."""
    target_list = list(targets)
    if target_list:
        th._foreach_lerp_(target_list, list(parameters), tau)


def normalized(advantages: th.Tensor) -> th.Tensor:
    """Advantages (B,) with mean 0 and standard deviation 1; a single one stays as it is."""
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def clipped_surrogate_loss(log_ratio: th.Tensor, advantages: th.Tensor, clip_range: float) -> th.Tensor:
    """-mean_i min(rho_i A_i, clip(rho_i, 1 - c, 1 + c) A_i) with rho = pi(a | s) / pi_old(a | s), PPO's objective.

    Args:
        log_ratio: log rho, (B,).
        advantages: A, (B,).
        clip_range: c.
    """
    ratio = log_ratio.exp()
    return -th.min(advantages * ratio, advantages * ratio.clamp(1 - clip_range, 1 + clip_range)).mean()


def clipped_value_loss(values: th.Tensor, returns: th.Tensor, old_values: th.Tensor, clip_range: float | None = None) -> th.Tensor:
    """mean_i (R_i - v_i)^2, where v moves at most `clip_range` away from the value before the update; None: as far as it likes.

    All are (B,). As in Stable-Baselines3; the first PPO code took the larger of the losses with and without the bound.
    """
    if clip_range is not None:
        values = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return F.mse_loss(returns, values)


def entropy_loss(entropy: th.Tensor | None, log_prob: th.Tensor) -> th.Tensor:
    """-mean of the policy's entropy (B,), or its estimate mean(log pi(a | s)) where it has no closed form (None)."""
    return log_prob.mean() if entropy is None else -entropy.mean()


def approximate_kl(log_ratio: th.Tensor) -> th.Tensor:
    """mean_i (rho_i - 1 - log rho_i) >= 0 with rho = pi / pi_old: estimate of KL(pi_old || pi) from actions of pi_old."""
    return (log_ratio.exp() - 1 - log_ratio).mean()


def clip_fraction(log_ratio: th.Tensor, clip_range: float) -> th.Tensor:
    """Share of the ratios that lie outside 1 +- clip_range, (B,) -> ()."""
    return ((log_ratio.exp() - 1).abs() > clip_range).float().mean()
