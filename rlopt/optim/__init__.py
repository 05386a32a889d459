"""Optimizers: scale-invariant SGD, LocoProp, baselines, and specs that build them."""

from rlopt.optim.agc import AGC, adaptive_gradient_clip
from rlopt.optim.closures import needs_closure
from rlopt.optim.combined import CombinedOptimizer
from rlopt.optim.factory import OPTIMIZERS, OptimizerLike, build_optimizer
from rlopt.optim.finite import NonFinite, NonFiniteError
from rlopt.optim.invariance import is_scale_invariant, scale_dependent_parameters, split_scale_invariant
from rlopt.optim.kfac import KFAC
from rlopt.optim.lamb import LAMB
from rlopt.optim.locoprop import LocoProp
from rlopt.optim.muon import Float32Muon
from rlopt.optim.rmsprop_tf import RMSpropTF
from rlopt.optim.sam import SAM
from rlopt.optim.scale_invariant import ScaleInvariantSGD, relative_global_clip
from rlopt.optim.specs import (
    LBFGS,
    Adagrad,
    Adam,
    AdamP,
    AdamW,
    Agc,
    BaseSpec,
    Kfac,
    Lamb,
    Lars,
    LocoPropSpec,
    Muon,
    OptimizerSpec,
    RMSprop,
    RMSpropTFSpec,
    Sam,
    ScaleInvariantSGDSpec,
    Sgd,
    SgdP,
    Shampoo,
    Soap,
    Spec,
)
from rlopt.optim.transfers import TRANSFERS, Transfer, register_transfer

__all__ = [
    "AGC",
    "KFAC",
    "LAMB",
    "LBFGS",
    "OPTIMIZERS",
    "SAM",
    "TRANSFERS",
    "Adagrad",
    "Adam",
    "AdamP",
    "AdamW",
    "Agc",
    "BaseSpec",
    "CombinedOptimizer",
    "Float32Muon",
    "Kfac",
    "Lamb",
    "Lars",
    "LocoProp",
    "LocoPropSpec",
    "Muon",
    "NonFinite",
    "NonFiniteError",
    "OptimizerLike",
    "OptimizerSpec",
    "RMSprop",
    "RMSpropTF",
    "RMSpropTFSpec",
    "Sam",
    "ScaleInvariantSGD",
    "ScaleInvariantSGDSpec",
    "Sgd",
    "SgdP",
    "Shampoo",
    "Soap",
    "Spec",
    "Transfer",
    "adaptive_gradient_clip",
    "build_optimizer",
    "is_scale_invariant",
    "needs_closure",
    "register_transfer",
    "relative_global_clip",
    "scale_dependent_parameters",
    "split_scale_invariant",
]
