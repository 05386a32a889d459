"""An agent's perceptrons taken over by the code that computes their gradients: the same parameters, in one tensor each."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from rlopt.agents.fast.adam import AdamRows, FlatAdam, flatten
from rlopt.agents.fast.mlp import Activation, StackedMLP, widths_and_activation
from rlopt.agents.fast.td3 import TwinCritics

# Seconds after which a process says that it compiles.
PATIENCE = 3.0


def check_agent(agent: Any) -> None:
    """Refuse an agent whose learning step has no fast form.

    Raises:
        ValueError: Naming what is in the way.
    """
    space = agent.observation_space
    reasons = {
        f"observations that are a Box of numbers without images, got {space}": not isinstance(space, spaces.Box)
        or agent.policy.features_extractor_class is not FlattenExtractor,
        "no sequences": getattr(agent, "sequences", None) is not None,
        "no generalised state-dependent exploration (use_sde)": bool(getattr(agent, "use_sde", False)),
        "no aux_loss_coefs": agent.aux_loss_coefs is not None,
        "a replay of rlopt": not hasattr(agent.replay_buffer, "storage"),
    }
    for wanted, is_missing in reasons.items():
        if is_missing:
            raise ValueError(f"fast=True needs {wanted}: drop fast.")


def shape_of(network: nn.Module, name: str) -> tuple[list[int], Activation]:
    """Widths and activation of a perceptron.

    Raises:
        ValueError: If it is another network.
    """
    found = widths_and_activation(network)
    if found is None:
        raise ValueError(
            f"fast=True needs perceptrons with one activation, ReLU or Tanh, but {name} is {' '.join(str(network).split())}: drop "
            f"fast."
        )
    return found


def flat_adams(
    optimizers: Sequence[th.optim.Optimizer], in_order: Sequence[Sequence[nn.Parameter]], flat: th.Tensor, grads: th.Tensor
) -> tuple[AdamRows, list[FlatAdam]]:
    """Return what takes the place of the Adams of S agents, whose parameters are the rows of `flat` (see `flatten`).

    Raises:
        ValueError: If one is another optimizer, or one with options that the fused step does not have.
    """
    rows, adams = AdamRows(flat, grads, len(in_order[0])), []
    for index, (optimizer, parameters) in enumerate(zip(optimizers, in_order, strict=True)):
        group = optimizer.param_groups[0]
        others = [name for name in ("amsgrad", "capturable", "differentiable") if group.get(name)]
        if type(optimizer) not in (th.optim.Adam, FlatAdam) or len(optimizer.param_groups) > 1 or others:
            found = others[0] if others else type(optimizer).__name__
            raise ValueError(f"fast=True needs torch's Adam, got {found}: drop fast, or choose optimizer='adam'.")
        options = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")}
        adam = FlatAdam(group["params"], parameters, rows, index, **options)
        if optimizer.state:
            adam.load_state_dict(optimizer.state_dict())
        adams.append(adam)
    return rows, adams


def compiled_for(networks: Sequence[StackedMLP]) -> Any:
    """Return `rlopt.agents.fast.compiled` if numba computes these networks, those with ReLU on the CPU; otherwise None.

    The first process on a machine compiles for half a minute and says so; numba keeps the result on disk.
    """
    if any(network.activation != "relu" or network.params.device.type != "cpu" for network in networks):
        return None
    name = "rlopt.agents.fast.compiled"
    if name not in sys.modules:
        text = "fast=True: compiling the learning steps for this processor; later processes find them on disk."
        timer = threading.Timer(PATIENCE, sys.stderr.write, [text + "\n"])
        timer.daemon = True
        timer.start()
        begin = time.monotonic()
        importlib.import_module(name)
        timer.cancel()
        if time.monotonic() - begin > PATIENCE:
            sys.stderr.write(f"fast=True: compiled in {time.monotonic() - begin:.0f} s.\n")
    return sys.modules[name]


def acting(network: StackedMLP) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return what computes the outputs (S, B, out) of S networks for a few rows (S, B, in) soonest."""
    compiled = compiled_for([network])
    if compiled is not None:
        policy: Callable[[NDArray[np.float32]], NDArray[np.float32]] = compiled.CompiledPolicy(network)
        return policy
    device = network.params.device
    if device.type == "cpu" and network.num == 1:
        return NumpyPolicy(network)
    return lambda rows: network.forward(th.as_tensor(rows, device=device), "act").cpu().numpy()


class NumpyPolicy:
    """A perceptron applied to few rows by NumPy, which begins sooner than torch.

    Args:
        mlp: On the CPU, of one network; its parameters are read where they are.
    """

    def __init__(self, mlp: StackedMLP) -> None:
        weights, biases = mlp.layers_of(mlp.params)
        self._layers = [(weight[0].numpy().T, bias[0, 0].numpy()) for weight, bias in zip(weights, biases, strict=True)]
        self._is_relu = mlp.activation == "relu"

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Outputs (1, B, out) of inputs (1, B, in)."""
        x = x[0]
        *hidden, (weight, bias) = self._layers
        for inner, shift in hidden:
            x = np.dot(x, inner)
            x += shift
            if self._is_relu:
                np.maximum(x, 0.0, out=x)
            else:
                np.tanh(x, out=x)
        out: NDArray[np.float32] = np.dot(x, weight)
        out += bias
        return out[None]


def taken_over(networks: Sequence[nn.Module], name: str) -> StackedMLP:
    """Return the perceptrons of S agents as one stack; their parameters become views of its tensor."""
    widths, activation = shape_of(networks[0], name)
    return StackedMLP(widths, len(networks), activation, flatten([list(network.parameters()) for network in networks]))


def critics_taken_over(critics: Sequence[Any]) -> TwinCritics:
    """Return the critics of S agents as one stack; their parameters become views of its tensor."""
    widths, activation = shape_of(critics[0].q_networks[0], "the critic")
    params = flatten([list(critic.parameters()) for critic in critics])
    return TwinCritics(params, widths, activation, len(critics[0].q_networks))
