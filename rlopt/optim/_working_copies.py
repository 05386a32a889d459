"""Parameters and inner states in the shape that a local problem works with, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlopt.optim._local_problems import LocalProblem
from rlopt.optim.inner_rules import State

States = dict[str, State]  # of "weight" and "bias"


def working_states(problem: LocalProblem, states: Mapping[Tensor, State]) -> States:
    """Return the inner states in working shape: the stored tensors or views of them where possible, else copies."""
    found: States = {}
    for name, working in problem.trained.items():
        stored = [states[layer.parameters[name]] for layer in problem.layers]
        found[name] = {key: _working([state[key] for state in stored], working) for key in stored[0]}
    return found


def _working(tensors: list[Tensor], like: Tensor) -> Tensor:
    tensor = tensors[0] if len(tensors) == 1 else torch.stack(tensors)
    if tensors[0].dim() == 0:  # a count
        return tensor if len(tensors) == 1 else tensor.view(-1, *[1] * (like.dim() - 1))
    return tensor if tensor.shape == like.shape else tensor.reshape(like.shape)


def store_states(problem: LocalProblem, working: States, states: Mapping[Tensor, State]) -> None:
    """Write working states back."""
    for name, state in working.items():
        for key, tensor in state.items():
            _write([states[layer.parameters[name]][key] for layer in problem.layers], tensor)


def store_parameters(problem: LocalProblem, factor: float) -> None:
    """Write the trained parameters back, and multiply them by a factor."""
    for name, working in problem.trained.items():
        stored = [layer.parameters[name] for layer in problem.layers]
        _write([param.detach() for param in stored], working)
        if factor != 1.0:
            for param in stored:
                param.mul_(factor)


def _write(stored: list[Tensor], working: Tensor) -> None:
    parts = [working] if len(stored) == 1 else list(working.unbind())
    for tensor, part in zip(stored, parts, strict=True):
        if tensor.data_ptr() != part.data_ptr():
            tensor.copy_(part.reshape(tensor.shape))
