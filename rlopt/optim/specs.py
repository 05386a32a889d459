"""Optimizers as data: frozen dataclasses with `build(module)`, for configurations and command lines.

A spec bears the name of its optimizer, with the ending `Spec` where the class itself is in `rlopt.optim`. `OptimizerSpec` is the
union of all, which tyro turns into subcommands.

Example:
    >>> spec = AdamW(lr=3e-4, decay_matrices_only=True)
    >>> [(len(group["params"]), group["weight_decay"]) for group in spec.build(torch.nn.Linear(3, 2)).param_groups]
    [(1, 0.01), (1, 0.0)]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.optim import Optimizer

from rlopt.optim._basic_specs import (
    LBFGS,
    Adagrad,
    Adam,
    AdamW,
    Lamb,
    Muon,
    RMSprop,
    RMSpropTFSpec,
    ScaleInvariantSGDSpec,
    Sgd,
)
from rlopt.optim._building import Spec, parameters_named
from rlopt.optim._package_specs import AdamP, Lars, SgdP, Shampoo, Soap
from rlopt.optim.agc import AGC
from rlopt.optim.combined import CombinedOptimizer
from rlopt.optim.kfac import KFAC
from rlopt.optim.locoprop import LocoProp
from rlopt.optim.sam import SAM

__all__ = [
    "LBFGS",
    "Adagrad",
    "Adam",
    "AdamP",
    "AdamW",
    "Agc",
    "BaseSpec",
    "Kfac",
    "Lamb",
    "Lars",
    "LocoPropSpec",
    "Muon",
    "OptimizerSpec",
    "RMSprop",
    "RMSpropTFSpec",
    "Sam",
    "ScaleInvariantSGDSpec",
    "Sgd",
    "SgdP",
    "Shampoo",
    "Soap",
    "Spec",
]

BaseSpec = Sgd | Adam | AdamW | RMSprop | RMSpropTFSpec | Adagrad | Muon | Lamb


@dataclass(frozen=True)
class Agc(Spec):
    """`rlopt.optim.AGC`: adaptive gradient clipping before another optimizer. Defaults: the paper's."""

    clip: float = 0.01
    """Largest norm of a gradient relative to its weight, per output unit, > 0."""
    min_norm: float = 1e-3
    """Weights count as at least this long, > 0."""
    exclude: tuple[str, ...] = ()
    """Patterns of names of parameters that are not clipped, such as "head.*"; usually the output layer."""
    base: BaseSpec = field(default_factory=lambda: Sgd(lr=0.1, momentum=0.9, nesterov=True))
    """The optimizer (default: kind and momentum of the paper)."""

    def build(self, module: torch.nn.Module) -> Optimizer:
        """Make the optimizer."""
        exclude = parameters_named(module, self.exclude)
        return AGC(self.base.build(module), clip=self.clip, eps=self.min_norm, exclude=exclude)


@dataclass(frozen=True)
class Sam(Spec):
    """`rlopt.optim.SAM`: sharpness-aware minimisation around another optimizer; steps need a closure. Defaults: the paper's."""

    rho: float = 0.05
    """Distance at which the gradient is taken, > 0."""
    adaptive: bool = False
    """Whether the distance is measured relative to the weights (ASAM)."""
    base: BaseSpec = field(default_factory=lambda: Sgd(lr=0.1, momentum=0.9))
    """The optimizer (default: kind and momentum of the paper)."""

    def build(self, module: torch.nn.Module) -> Optimizer:
        """Make the optimizer."""
        return SAM(self.base.build(module), rho=self.rho, adaptive=self.adaptive)


@dataclass(frozen=True)
class Kfac(Spec):
    """`rlopt.optim.KFAC` for linear layers, another optimizer for all other parameters, as one.

    Defaults are rlopt's; K-FAC is sensitive to lr and damping.
    """

    lr: float = 0.03
    """Learning rate, >= 0."""
    momentum: float = 0.9
    """In [0, 1)."""
    weight_decay: float = 0.0
    """Weights shrink by lr * weight_decay per step, >= 0."""
    damping: float = 1e-2
    """Added to the curvature, > 0."""
    factor_decay: float = 0.95
    """Decay of the averages of the two factors, in [0, 1)."""
    inverse_every: int = 10
    """Steps from one inversion to the next, > 0."""
    kl_clip: float | None = 1e-3
    """Limit of the squared length of a step in the metric of the curvature, > 0; None: none (default: usual)."""
    others: BaseSpec = field(default_factory=Adam)
    """Optimizer of all other parameters."""

    def build(self, module: torch.nn.Module) -> Optimizer:
        """Make the optimizer."""
        kfac = KFAC(
            module, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, damping=self.damping,
            factor_decay=self.factor_decay, inverse_every=self.inverse_every, kl_clip=self.kl_clip,
        )  # fmt: skip
        taken = {id(p) for group in kfac.param_groups for p in group["params"]}
        rest = torch.nn.ParameterList(p for p in module.parameters() if id(p) not in taken)
        return CombinedOptimizer([kfac, self.others.build(rest)] if len(rest) else [kfac])


@dataclass(frozen=True)
class LocoPropSpec(Spec):
    """`rlopt.optim.LocoProp`: local losses for the layers. Defaults: its own, which are the published ones."""

    lr: float | None = None
    """Step size of the inner rule, >= 0; None: 1e-5 with rmsprop_tf, and 1 without iterations, where it multiplies gamma."""
    variant: Literal["matching", "squared"] = "matching"
    """Local losses: matching loss of the activation, or squared error of the pre-activation."""
    solver: Literal["iterative", "closed_form", "fixed_point"] = "iterative"
    """How local losses are minimised; closed_form is for squared, fixed_point for matching, and both need prox_eta."""
    inner: Literal["rmsprop_tf", "rmsprop", "sgd", "adam"] = "rmsprop_tf"
    """First-order rule of the iterations."""
    local_iters: int = 10
    """Iterations per step, > 0."""
    gamma: float = 10.0
    """Step size of the targets, > 0."""
    gamma_mode: Literal["loss", "per_row"] = "loss"
    """per_row multiplies gamma by the number of rows, so that it need not change with the batch size."""
    prox_eta: float | None = None
    """Strength of staying near the old weights is 1 / prox_eta, > 0; None: not at all."""
    local_lr_floor: float = 0.25
    """Smallest factor of the step sizes within a step, in [0, 1]."""
    weight_decay: float = 0.0
    """Weights shrink by lr * weight_decay per step, >= 0."""
    max_delta_norm: float | None = None
    """Bound of the norm of the gradients that make the targets, > 0."""
    fallback: BaseSpec = field(default_factory=Adam)
    """Optimizer of everything without a local problem."""

    def __post_init__(self) -> None:
        """Leave the checks to LocoProp, which knows how the options depend on each other."""

    def build(self, module: torch.nn.Module) -> Optimizer:
        """Make the optimizer."""
        return LocoProp(
            module, self.lr, variant=self.variant, solver=self.solver, inner=self.inner, local_iters=self.local_iters,
            gamma=self.gamma, gamma_mode=self.gamma_mode, prox_eta=self.prox_eta, local_lr_floor=self.local_lr_floor,
            weight_decay=self.weight_decay, max_delta_norm=self.max_delta_norm,
            fallback=lambda params: self.fallback.build(torch.nn.ParameterList(params)),
        )  # fmt: skip


OptimizerSpec = (
    Sgd | Adam | AdamW | RMSprop | RMSpropTFSpec | Adagrad | LBFGS | Muon | Lamb | Soap | Shampoo | Lars | SgdP | AdamP | Kfac | Agc
    | Sam | ScaleInvariantSGDSpec | LocoPropSpec
)  # fmt: skip
