"""Losses that keep routers of experts healthy: balanced loads and bounded logits.

All of them are returned without a coefficient. They are means over all valid tokens that are passed; several normalisations of the
balance loss are in use, and the docstrings say which one stands here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

BalanceLoss = Literal["first_choice", "all_choices", "importance", "load"]
Across = Callable[[Tensor, Tensor | int], Tensor]
"""Turns a mean over tokens, and their number, into the mean over the tokens of all processes; see `rlopt.nn.expert_parallel`."""


def balance_loss(probs: Tensor, choices: Tensor, valid: Tensor | None = None, across: Across | None = None) -> Tensor:
    """Number of experts times the sum over experts of f_i P_i.

    f_i is the number of choices of expert i divided by the number of tokens, and has no gradient; P_i is the mean probability of
    expert i. With first choices only, this is Switch's loss: 1 for uniform probabilities and balanced choices, e if everything
    goes to one expert with probability 1. With all k choices, it is Flaxformer's for several experts per token: k where the other
    is 1. The loss can be below 1: f counts maxima, P averages probabilities.

    Args:
        probs: (tokens, e), softmax of the router.
        choices: (tokens, k), experts that each token chose, before any is dropped for lack of capacity.
        valid: (tokens,) bool, real tokens; None: all. Without any, the loss is 0.
        across: Makes f and P means over the tokens of several processes; None: there is one.

    Returns:
        Scalar with gradient for `probs`.

    References: Fedus, Zoph, Shazeer, Switch Transformers, JMLR 2022, arXiv 2101.03961.

    Example:
        >>> probs = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
        >>> balance_loss(probs, probs.argmax(-1, keepdim=True)).item()
        1.0
    """
    num_experts = probs.shape[-1]
    if valid is not None:
        choices = choices.masked_fill(~valid.unsqueeze(-1), num_experts)  # invalid tokens choose an expert that is not there
    counts = count_values(choices, num_experts + 1)[:num_experts]
    num_tokens = _num_tokens(probs, valid)
    fractions, means = counts.to(probs.dtype) / num_tokens, mean_over_tokens(probs, valid)
    if across is not None:
        fractions, means = across(fractions, num_tokens), across(means, num_tokens)
    return num_experts * (fractions * means).sum()


def importance_loss(probs: Tensor, valid: Tensor | None = None, across: Across | None = None) -> Tensor:
    """Squared coefficient of variation of the total probability of each expert: (std_i / mean_i)^2.

    The variance is over all experts (divided by their number). 0 if all are equally important, e - 1 if one has everything.

    Args:
        probs: (tokens, e), softmax of the router.
        valid: (tokens,) bool, real tokens; None: all. Without any, the loss is 0.
        across: Makes the importance that of the tokens of several processes; None: there is one.

    Returns:
        Scalar with gradient for `probs`.

    References: Riquelme et al., Scaling vision with sparse mixture of experts, NeurIPS 2021, arXiv 2106.05974.

    Example:
        >>> importance_loss(torch.tensor([[1.0, 0.0], [1.0, 0.0]])).item()
        1.0
    """
    # The probabilities of a token sum to 1, so the mean importance is 1 / e: no division by it is needed.
    means = mean_over_tokens(probs, valid)
    relative = (means if across is None else across(means, _num_tokens(probs, valid))) * probs.shape[-1]
    variance = (relative - 1.0).square().mean()
    return variance if valid is None else torch.where(valid.any(), variance, 0.0)


def load_loss(
    logits: Tensor, noisy: Tensor, top_k: int, noise_std: float, valid: Tensor | None = None, across: Across | None = None
) -> Tensor:
    """Squared coefficient of variation of a smooth count of the tokens of each expert, for routers with noise.

    For a token, an expert counts with the probability that its logit with new noise is at least the k-th largest of the noisy
    logits: Phi((logit - k-th noisy logit) / noise_std). Unlike counts of choices, this has a gradient.

    Args:
        logits: (tokens, e), of the router.
        noisy: (tokens, e), logits with the noise that decided; the same without noise.
        top_k: k, choices of a token.
        noise_std: Standard deviation of the noise, > 0.
        valid: (tokens,) bool, real tokens; None: all. Without any, the loss is 0.
        across: Makes the counts those of the tokens of several processes; None: there is one.

    Returns:
        Scalar with gradient for both logits: 0 if all experts count alike, e - 1 if one has everything.

    References: Riquelme et al., Scaling vision with sparse mixture of experts, NeurIPS 2021, arXiv 2106.05974.

    Example:
        >>> logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
        >>> load_loss(logits, logits, top_k=1, noise_std=0.5).item()
        0.0
        >>> round(load_loss(logits[:1], logits[:1], top_k=1, noise_std=0.5).item(), 4)
        1.0
    """
    threshold = noisy.topk(top_k, dim=-1).values[:, -1:]  # among equal values any will do
    load = mean_over_tokens(torch.special.ndtr((logits - threshold) / noise_std), valid)
    load = load if across is None else across(load, _num_tokens(logits, valid))
    relative = load / load.mean().clamp_min(torch.finfo(load.dtype).tiny)
    variance = (relative - 1.0).square().mean()
    return variance if valid is None else torch.where(valid.any(), variance, 0.0)


def router_z_loss(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over tokens of logsumexp(logits)^2, which keeps logits small.

    Args:
        logits: (tokens, e), of the router.
        valid: (tokens,) bool, real tokens; None: all. Without any, the loss is 0.

    Returns:
        Scalar with gradient.

    References: Zoph et al., ST-MoE: designing stable and transferable sparse expert models, 2022, arXiv 2202.08906.

    Example:
        >>> round(router_z_loss(torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])).item(), 5)
        10.81855
    """
    return mean_over_tokens(torch.logsumexp(logits, dim=-1).square(), valid)


def count_values(values: Tensor, num_values: int) -> Tensor:
    """Count how often each of 0 to num_values - 1 occurs; unlike `torch.bincount`, without waiting for the device."""
    flat = values.flatten()
    return torch.zeros(num_values, dtype=torch.long, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))


def mean_over_tokens(values: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the first dimension, of the valid tokens only; 0 without any."""
    if valid is None:
        return values.mean(dim=0)
    keep = valid if values.ndim == 1 else valid.unsqueeze(-1)
    return torch.where(keep, values, 0.0).sum(dim=0) / _num_tokens(values, valid)


def _num_tokens(values: Tensor, valid: Tensor | None) -> Tensor | int:
    return len(values) if valid is None else valid.sum().clamp_min(1)
