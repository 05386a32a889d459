"""Estimators for dynamical systems and Q-functions from one trajectory, with the limits to measure them by."""

from rlopt.sysid.estimator import Estimator, History
from rlopt.sysid.generalized_linear import GLMtron, QuasiNewton
from rlopt.sysid.least_squares import LeastSquares
from rlopt.sysid.limits import (
    errors_and_ratios,
    frobenius_error,
    frobenius_limit,
    nonlinear_frobenius_limit,
    operator_error,
    operator_limit,
    prediction_limit,
    prediction_risk,
)
from rlopt.sysid.links import make_link
from rlopt.sysid.q_learning import QHistory, QLearning, QLearningReplay, QRex, QRexDaRe
from rlopt.sysid.replay_sgd import SGDReplay, SGDReverseReplay
from rlopt.sysid.sgd import SGD, ParallelSGD, SGDDataDrop
from rlopt.sysid.step_size import step_size_from_rule
from rlopt.sysid.trajectory import Trajectory, rollout, trajectories_of_replay
from rlopt.sysid.transitions import Transitions, collect, tabular_features

__all__ = [
    "SGD",
    "Estimator",
    "GLMtron",
    "History",
    "LeastSquares",
    "ParallelSGD",
    "QHistory",
    "QLearning",
    "QLearningReplay",
    "QRex",
    "QRexDaRe",
    "QuasiNewton",
    "SGDDataDrop",
    "SGDReplay",
    "SGDReverseReplay",
    "Trajectory",
    "Transitions",
    "collect",
    "errors_and_ratios",
    "frobenius_error",
    "frobenius_limit",
    "make_link",
    "nonlinear_frobenius_limit",
    "operator_error",
    "operator_limit",
    "prediction_limit",
    "prediction_risk",
    "rollout",
    "step_size_from_rule",
    "tabular_features",
    "trajectories_of_replay",
]
