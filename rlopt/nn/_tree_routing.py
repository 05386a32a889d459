"""Decision trees of hyperplanes that sort tokens into leaves, with dense straight-through gradients.

The gradients are those of dense gradient trees: Karthikeyan, Jain, Natarajan, Jain, Learning accurate decision trees with bandit
feedback via quantized gradient descent, 2021, arXiv 2102.07567, and its public code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SignGradient = Literal["clipped", "triangular"]
LeafGradient = Literal["identity", "softmax"]
GradientPairs = Literal["kept", "visible"]

MAX_HEIGHT = 20  # a tree of this height already has a million nodes


@dataclass(frozen=True)
class StraightThrough:
    """What backward uses in place of the derivatives of sign and argmax, which are zero.

    At every node s = <w, x> + b and a = sign(s); for every leaf, z is the sum of +a over the nodes that have it on the left and of
    -a over those that have it on the right. The forward pass takes the leaf with the largest z, which is the one that is reached.
    Because z is a sum over nodes and not a product, every node above a leaf gets a gradient, also when the token went another way.

    Raises:
        ValueError: For other names.

    Example:
        >>> StraightThrough(sign="triangular").leaf
        'identity'
    """

    sign: SignGradient = field(
        default="clipped",
        metadata={"help": "da/ds: 'clipped': 1 where |s| <= 1, else 0. 'triangular': max(0, 1 - |s|)."},
    )
    leaf: LeafGradient = field(
        default="identity",
        metadata={"help": "d(one-hot leaf)/dz: 'identity', or 'softmax': that of a softmax of z."},
    )
    pairs: GradientPairs = field(
        default="kept",
        metadata={"help": "TF only. Pairs of query and key that teach the tree: 'kept', or 'visible': also those it separated."},
    )

    def __post_init__(self) -> None:
        """Check the names."""
        for name, allowed in (("sign", SignGradient), ("leaf", LeafGradient), ("pairs", GradientPairs)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} must be one of {get_args(allowed)}, got {getattr(self, name)!r}.")


class HyperplaneTree(nn.Module):
    """Complete binary trees: level l has 2^l hyperplanes, a token goes left (bit 0) where <w, x> + b >= 0.

    The number of a node in its level has the way to it as its binary digits, so that the ancestor of leaf i at level l is
    i >> (height - l), and a node covers consecutive leaves.

    Args:
        num_trees: Trees; 1: all heads share one.
        head_dim: D.
        height: Levels of hyperplanes, in [0, 20]; 2^height leaves.
        seed: Of the hyperplanes, >= 0. Each level has its own generator, so that a tree that grew equals one that was made tall.

    Hyperplanes are drawn from N(0, 1 / D), biases are 0. Each level is a pair of parameters (raw ones: Stable-Baselines3 would draw
    the weights of `nn.Linear`s again), so that optimizers keep their state for levels that exist when others are added.
    """

    def __init__(self, num_trees: int, head_dim: int, height: int, *, seed: int) -> None:
        super().__init__()
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}.")
        self.num_trees, self.head_dim, self.seed = num_trees, head_dim, seed
        self.hyperplanes = nn.ParameterList()  # level l: (num_trees, 2^l, D)
        self.biases = nn.ParameterList()  # level l: (num_trees, 2^l)
        self.set_height(height)

    @property
    def height(self) -> int:
        """Levels of hyperplanes."""
        return len(self.hyperplanes)

    def set_height(self, height: int) -> list[nn.Parameter]:
        """Add or drop levels at the bottom; returns the parameters that are new."""
        if not 0 <= height <= MAX_HEIGHT:
            raise ValueError(f"height must be in [0, {MAX_HEIGHT}], got {height}.")
        new: list[nn.Parameter] = []
        for level in range(self.height, height):
            generator = torch.Generator().manual_seed((self.seed << 6) + level)
            drawn = torch.randn(self.num_trees, 2**level, self.head_dim, generator=generator) / self.head_dim**0.5
            like = self.hyperplanes[0] if level else drawn
            for parameters, values in ((self.hyperplanes, drawn), (self.biases, torch.zeros(self.num_trees, 2**level))):
                new.append(nn.Parameter(values.to(like.device, like.dtype)))
                parameters.append(new[-1])
        if height < self.height:
            self.hyperplanes = nn.ParameterList(list(self.hyperplanes)[:height])
            self.biases = nn.ParameterList(list(self.biases)[:height])
        return new

    @torch.no_grad()
    def leaves(self, x: Tensor) -> Tensor:
        """Leaf of every token: (B, H, L, D) to (B, H, L) integers in [0, 2^height).

        Products are summed per token and not by a matrix product, whose rounding may depend on the size of the batch: with training
        and acting alike, a token takes the same way.
        """
        num_heads = x.shape[1]
        node = torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device)
        head = torch.arange(num_heads, device=x.device).view(-1, 1) if self.num_trees > 1 else 0
        for level, (weight, bias) in enumerate(zip(self.hyperplanes, self.biases, strict=True)):
            index = node + head * 2**level
            # (num_trees, 2^l, D) -> (num_trees * 2^l, D), one row per token
            chosen = F.embedding(index, weight.flatten(0, 1).to(x.dtype))
            score = (x * chosen).sum(dim=-1) + F.embedding(index, bias.view(-1, 1).to(x.dtype)).squeeze(-1)
            node = 2 * node + (score < 0)
        return node

    def memberships(self, x: Tensor, leaf: Tensor, gradient: StraightThrough) -> list[Tensor]:
        """One-hot node of every token at every level, with gradients for the tree and for `x`.

        Args:
            x: (B, H, L, D).
            leaf: (B, H, L), from `leaves`.
            gradient: Of sign and argmax.

        Returns:
            For level 0 to height: (B, H, L, 2^level) of zeros and ones.
        """
        total = x.new_zeros(*x.shape[:-1], 1)  # z of the nodes of one level
        levels = [torch.ones_like(total)]
        for level, (weight, bias) in enumerate(zip(self.hyperplanes, self.biases, strict=True)):
            score = x @ weight.to(x.dtype).transpose(-2, -1) + bias.to(x.dtype).unsqueeze(-2)  # (B, H, L, 2^l)
            sign = torch.where(score >= 0, 1.0, -1.0).to(x.dtype) + without_value(soft_sign(score, gradient.sign))
            total = torch.stack((total + sign, total - sign), dim=-1).flatten(-2)  # (B, H, L, 2^l, 2) -> (B, H, L, 2^(l + 1))
            node = leaf >> (self.height - level - 1)
            soft = total.softmax(dim=-1) if gradient.leaf == "softmax" else total
            levels.append(F.one_hot(node, 2 ** (level + 1)).to(x.dtype) + without_value(soft))
        return levels


def soft_sign(score: Tensor, kind: SignGradient) -> Tensor:
    """A function whose derivative is the one that is used for sign."""
    clipped = score.clamp(-1.0, 1.0)  # its derivative is 1 at both ends, too
    return clipped if kind == "clipped" else clipped - 0.5 * clipped * clipped.abs()


def without_value(x: Tensor) -> Tensor:
    """Zeros with the gradient of x."""
    return x - x.detach()
