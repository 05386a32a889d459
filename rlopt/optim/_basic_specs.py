"""Specs of the optimizers that are in torch, of LAMB, and of scale-invariant SGD."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from rlopt.optim._building import Spec, decay_groups, parameters_named
from rlopt.optim.combined import CombinedOptimizer
from rlopt.optim.lamb import LAMB
from rlopt.optim.muon import Float32Muon
from rlopt.optim.rmsprop_tf import RMSpropTF
from rlopt.optim.scale_invariant import ScaleInvariantSGD, Scope


@dataclass(frozen=True)
class Sgd(Spec):
    """`torch.optim.SGD`: v <- momentum v + g, w <- w - lr v. Defaults: torch's, but for lr."""

    lr: float = 0.01
    """Learning rate, >= 0."""
    momentum: float = 0.0
    """In [0, 1)."""
    nesterov: bool = False
    """Whether the step is g + momentum v; needs momentum > 0."""
    weight_decay: float = 0.0
    """Added to the gradient times the weight, >= 0."""
    decay_matrices_only: bool = False
    """Whether biases and gains are not decayed."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        groups = decay_groups(module, self.weight_decay, self.decay_matrices_only)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class Adam(Spec):
    """`torch.optim.Adam`. Defaults: the paper's, as in torch."""

    lr: float = 1e-3
    """Learning rate, >= 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root, >= 0."""
    weight_decay: float = 0.0
    """Added to the gradient times the weight, >= 0."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.Adam(module.parameters(), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class AdamW(Spec):
    """`torch.optim.AdamW`: Adam with decoupled weight decay. Defaults: torch's."""

    lr: float = 1e-3
    """Learning rate, >= 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """As in Adam."""
    eps: float = 1e-8
    """As in Adam."""
    weight_decay: float = 1e-2
    """Weights shrink by lr * weight_decay per step, >= 0."""
    decay_matrices_only: bool = False
    """Whether biases and gains are not decayed, as is usual for transformers."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        groups = decay_groups(module, self.weight_decay, self.decay_matrices_only)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@dataclass(frozen=True)
class RMSprop(Spec):
    """`torch.optim.RMSprop`. Defaults: torch's. For TensorFlow's convention see `RMSpropTFSpec`."""

    lr: float = 1e-2
    """Learning rate, >= 0."""
    alpha: float = 0.99
    """Decay of the average of squared gradients, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root, >= 0."""
    momentum: float = 0.0
    """In [0, 1)."""
    centered: bool = False
    """Whether the average is of squared deviations."""
    weight_decay: float = 0.0
    """Added to the gradient times the weight, >= 0."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.RMSprop(
            module.parameters(), lr=self.lr, alpha=self.alpha, eps=self.eps, momentum=self.momentum, centered=self.centered,
            weight_decay=self.weight_decay,
        )  # fmt: skip


@dataclass(frozen=True)
class RMSpropTFSpec(Spec):
    """`rlopt.optim.RMSpropTF`: RMSProp in TensorFlow's convention. Defaults: its own."""

    lr: float = 1e-3
    """Learning rate, >= 0."""
    alpha: float = 0.9
    """Decay of the average of squared gradients, in [0, 1)."""
    momentum: float = 0.0
    """In [0, 1)."""
    eps: float = 1e-10
    """Added under the root, >= 0."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        return RMSpropTF(module.parameters(), lr=self.lr, alpha=self.alpha, momentum=self.momentum, eps=self.eps)


@dataclass(frozen=True)
class Adagrad(Spec):
    """`torch.optim.Adagrad`. Defaults: torch's."""

    lr: float = 1e-2
    """Learning rate, >= 0."""
    initial_accumulator_value: float = 0.0
    """Start of the sum of squared gradients, >= 0."""
    eps: float = 1e-10
    """Added to the root, >= 0."""
    weight_decay: float = 0.0
    """Added to the gradient times the weight, >= 0."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.Adagrad(
            module.parameters(), lr=self.lr, initial_accumulator_value=self.initial_accumulator_value, eps=self.eps,
            weight_decay=self.weight_decay,
        )  # fmt: skip


@dataclass(frozen=True)
class LBFGS(Spec):
    """`torch.optim.LBFGS`, for full batches; it needs a closure and has one group. Defaults: torch's."""

    lr: float = 1.0
    """Length of a step, relative to the quasi-Newton step, >= 0."""
    max_iter: int = 20
    """Iterations per step, > 0."""
    history_size: int = 100
    """Pairs that approximate the curvature, > 0."""
    line_search: Literal["strong_wolfe"] | None = None
    """None: every step has length lr."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        return torch.optim.LBFGS(
            module.parameters(), lr=self.lr, max_iter=self.max_iter, history_size=self.history_size,
            line_search_fn=self.line_search,
        )  # fmt: skip


@dataclass(frozen=True)
class Muon(Spec):
    """`torch.optim.Muon` for matrices, Adam with decoupled decay for everything else, as one optimizer.

    Everything else is: what is not two-dimensional (biases, gains, convolutions), embeddings, and what `adam_names` says. Its
    authors use Adam for the output layer as well. Defaults: torch's.
    """

    lr: float = 1e-3
    """Learning rate of matrices, >= 0."""
    momentum: float = 0.95
    """In [0, 1)."""
    nesterov: bool = True
    """Whether the momentum is Nesterov's."""
    weight_decay: float = 0.1
    """Matrices shrink by lr * weight_decay per step, >= 0."""
    ns_steps: int = 5
    """Newton-Schulz iterations, > 0."""
    scale: Literal["original", "match_rms_adamw"] = "original"
    """original: sqrt(max(1, rows / columns)). match_rms_adamw: 0.2 sqrt(max(rows, columns)), for learning rates of AdamW."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the Newton-Schulz iterations. float32 is `rlopt.optim.Float32Muon`, much faster on a CPU without bfloat16 instructions."""
    adam_names: tuple[str, ...] = ()
    """Patterns of names of further parameters for Adam, such as "head.*"."""
    adam_lr: float = 1e-3
    """Learning rate of everything else, >= 0."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Of everything else."""
    adam_weight_decay: float = 0.0
    """Of everything else, >= 0."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.precision not in ("bfloat16", "float32"):
            raise ValueError(f"precision must be 'bfloat16' or 'float32', got {self.precision!r}.")

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        to_adam = {id(p) for p in parameters_named(module, self.adam_names)}
        to_adam |= {id(m.weight) for m in module.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
        params = list(module.parameters())
        matrices = [p for p in params if p.ndim == 2 and id(p) not in to_adam]
        others = [p for p in params if p.ndim != 2 or id(p) in to_adam]
        parts: list[Optimizer] = []
        if matrices:
            kind = Float32Muon if self.precision == "float32" else torch.optim.Muon
            parts.append(
                kind(
                    matrices, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay,
                    ns_steps=self.ns_steps, adjust_lr_fn=self.scale,
                )
            )  # fmt: skip
        if others:
            parts.append(torch.optim.AdamW(others, lr=self.adam_lr, betas=self.adam_betas, weight_decay=self.adam_weight_decay))
        return CombinedOptimizer(parts)


@dataclass(frozen=True)
class Lamb(Spec):
    """`rlopt.optim.LAMB`. Defaults: the paper's."""

    lr: float = 1e-3
    """Learning rate, >= 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """As in Adam."""
    eps: float = 1e-6
    """Added to the root, > 0."""
    weight_decay: float = 1e-2
    """Part of the step before it is scaled, >= 0."""
    matrices_only: bool = True
    """Whether biases and gains are neither decayed nor scaled, as is usual for transformers."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer."""
        groups = decay_groups(module, self.weight_decay, self.matrices_only, adapt=False)
        return LAMB(groups, lr=self.lr, betas=self.betas, eps=self.eps)


OthersSpec = Adam | AdamW | Lamb | Sgd | RMSprop


@dataclass(frozen=True)
class ScaleInvariantSGDSpec(Spec):
    """`rlopt.optim.ScaleInvariantSGD` for scale-invariant parameters, another optimizer for the others, as one.

    A module tells which parameters are meant by a method `scale_invariant_parameters()`, as those of `rlopt.nn` do; it is looked
    for on the network and on all modules inside.
    """

    lr: float = 8e-4
    """Learning rate of the scale-invariant parameters, >= 0 (default: paper)."""
    weight_decay: float = 1e-2
    """Their weight decay, > 0 with clipping (default: paper)."""
    clip_factor: float | None = 2.0
    """sqrt(C), >= 1 (default: paper); None: no clipping."""
    momentum: float = 0.0
    """In [0, 1); the paper has none."""
    scope: Scope = "global"
    """What shares a norm: everything (paper), each innermost module that names its parameters, or each tensor."""
    start_in_equilibrium: bool = False
    """Whether the first step rescales the scale-invariant parameters to their norm in equilibrium; the paper does not."""
    others: OthersSpec = field(default_factory=Lamb)
    """Optimizer of all other parameters (default: paper)."""

    def build(self, module: nn.Module) -> Optimizer:
        """Make the optimizer.

        Raises:
            ValueError: If no module names scale-invariant parameters.
        """
        groups = _scale_invariant_groups(module, innermost=self.scope == "group")
        invariant = {id(p) for group in groups for p in group}
        if not invariant:
            raise ValueError(
                "module must name scale-invariant parameters by a method scale_invariant_parameters(), got none; use modules of "
                "rlopt.nn, or rlopt.optim.split_scale_invariant with ScaleInvariantSGD."
            )
        parts: list[Optimizer] = [
            ScaleInvariantSGD(
                [{"params": group} for group in groups], lr=self.lr, weight_decay=self.weight_decay,
                clip_factor=self.clip_factor, momentum=self.momentum, scope=self.scope,
                start_in_equilibrium=self.start_in_equilibrium,
            )
        ]  # fmt: skip
        rest = nn.ParameterList(p for p in module.parameters() if id(p) not in invariant)
        if len(rest):
            parts.append(self.others.build(rest))
        return CombinedOptimizer(parts)


def _scale_invariant_groups(module: nn.Module, *, innermost: bool) -> list[list[nn.Parameter]]:
    """Parameters that modules name, each once; a module's own before those of modules around it if `innermost`."""
    naming = [m for m in module.modules() if callable(getattr(m, "scale_invariant_parameters", None))]
    seen: set[int] = set()
    groups = []
    for owner in reversed(naming) if innermost else naming:  # `modules` goes from the outside to the inside
        own = [p for p in owner.scale_invariant_parameters() if id(p) not in seen]  # type: ignore[operator]
        seen |= {id(p) for p in own}
        if own:
            groups.append(own)
    return groups[::-1] if innermost else groups
