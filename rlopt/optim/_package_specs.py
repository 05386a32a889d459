"""Specs of optimizers of the package pytorch-optimizer, which the extra `rlopt[optim]` installs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import nn
from torch.optim import Optimizer

from rlopt.optim._building import Spec, decay_groups, optional_package


@dataclass(frozen=True)
class Soap(Spec):
    """SOAP of pytorch-optimizer: Adam in the eigenbases of Shampoo's statistics (Vyas et al., 2024, arXiv 2409.11321).

    The first step only collects statistics and moves nothing. Defaults: the package's, which are the paper's.
    """

    lr: float = 3e-3
    """Learning rate, >= 0."""
    betas: tuple[float, float] = (0.95, 0.95)
    """Decay of the averages, in [0, 1); the second one also of Shampoo's statistics."""
    eps: float = 1e-8
    """Added to the root, >= 0."""
    weight_decay: float = 1e-2
    """Weights shrink by lr * weight_decay per step, >= 0."""
    precondition_frequency: int = 10
    """Steps from one refresh of the eigenbases to the next, > 0."""
    max_precondition_dim: int = 10_000
    """Sides longer than this keep their basis, > 0."""
    decay_matrices_only: bool = False
    """Whether biases and gains are not decayed."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        package = optional_package("pytorch_optimizer")
        optimizer = package.SOAP(
            decay_groups(module, self.weight_decay, self.decay_matrices_only), lr=self.lr, betas=self.betas, eps=self.eps,
            precondition_frequency=self.precondition_frequency, max_precondition_dim=self.max_precondition_dim,
        )  # fmt: skip
        return cast(Optimizer, optimizer)


@dataclass(frozen=True)
class Shampoo(Spec):
    """Shampoo of pytorch-optimizer: W <- W - lr L^(-1/4) G R^(-1/4), with sums of G G' and G' G (Gupta et al., 2018).

    arXiv 1802.09568. Statistics are summed, not averaged, as in the paper; nothing is grafted. The package's momentum mixes
    gradients from before and after preconditioning and is not offered. Each step computes the roots by singular values, which is
    slow.
    """

    lr: float = 0.1
    """Learning rate, >= 0. The first step has singular values of about lr."""
    eps: float = 1e-6
    """Start of the statistics, times the identity, >= 0 (default: package)."""
    weight_decay: float = 0.0
    """Added to the gradient times the weight, >= 0."""
    decay_matrices_only: bool = False
    """Whether biases and gains are not decayed."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        package = optional_package("pytorch_optimizer")
        groups = decay_groups(module, self.weight_decay, self.decay_matrices_only)
        return cast(Optimizer, package.Shampoo(groups, lr=self.lr, matrix_eps=self.eps))


@dataclass(frozen=True)
class Lars(Spec):
    """LARS of pytorch-optimizer: the step on each matrix is proportional to the matrix (You et al., 2017, arXiv 1708.03888).

    v <- momentum v + trust |w| / (|g| + weight_decay |w|) (g + weight_decay w), w <- w - lr v; vectors take plain steps without
    decay. The paper has lr inside of v, which differs only while lr changes. The package changes `.grad` in place.
    """

    lr: float = 0.1
    """Learning rate, >= 0; that of vectors too, which are not scaled."""
    momentum: float = 0.9
    """In [0, 1)."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    weight_decay: float = 0.0
    """Of matrices, >= 0."""
    trust_coefficient: float = 1e-3
    """Length of a step relative to the matrix, at lr 1."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        package = optional_package("pytorch_optimizer")
        optimizer = package.LARS(
            module.parameters(), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay,
            trust_coefficient=self.trust_coefficient,
        )  # fmt: skip
        return cast(Optimizer, optimizer)


@dataclass(frozen=True)
class SgdP(Spec):
    """SGDP of pytorch-optimizer: SGD that leaves out the radial part of steps on scale-invariant weights.

    A weight counts as scale invariant where its gradient is nearly orthogonal to it (Heo et al., ICLR 2021, arXiv 2006.08217).
    """

    lr: float = 0.1
    """Learning rate, >= 0."""
    momentum: float = 0.9
    """In [0, 1)."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    weight_decay: float = 0.0
    """Weights shrink by lr * weight_decay / (1 - momentum) per step, >= 0."""
    delta: float = 0.1
    """Largest cosine, times the root of the dimension, that counts as orthogonal (default: paper)."""
    decay_ratio: float = 0.1
    """Factor of the decay of weights that count as scale invariant (default: paper)."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        package = optional_package("pytorch_optimizer")
        optimizer = package.SGDP(
            module.parameters(), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay,
            delta=self.delta, wd_ratio=self.decay_ratio,
        )  # fmt: skip
        return cast(Optimizer, optimizer)


@dataclass(frozen=True)
class AdamP(Spec):
    """AdamP of pytorch-optimizer: AdamW with the projection of `SgdP` (Heo et al., ICLR 2021, arXiv 2006.08217)."""

    lr: float = 1e-3
    """Learning rate, >= 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """As in Adam."""
    eps: float = 1e-8
    """Added to the root, >= 0."""
    weight_decay: float = 0.0
    """Weights shrink by lr * weight_decay per step, >= 0."""
    delta: float = 0.1
    """As in SgdP."""
    decay_ratio: float = 0.1
    """As in SgdP."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        package = optional_package("pytorch_optimizer")
        optimizer = package.AdamP(
            module.parameters(), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, delta=self.delta,
            wd_ratio=self.decay_ratio,
        )  # fmt: skip
        return cast(Optimizer, optimizer)
