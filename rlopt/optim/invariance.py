"""Numerical checks of scale invariance: of a whole network, and which of its parameters have it."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

FACTORS = (0.1, 3.0, 50.0)


def is_scale_invariant(
    model: nn.Module,
    inputs: Any,
    parameters: Iterable[Tensor] | None = None,
    *,
    factors: Sequence[float] = FACTORS,
    rtol: float = 1e-9,
) -> bool:
    """Say whether the output stays the same when parameters are multiplied by one positive number.

    The model is copied to float64 and evaluated at `inputs`; the model itself stays untouched. True is a statement about these
    inputs and factors: a network whose output is constant there passes. A normalisation with an epsilon > 0 fails where the
    weights are small, as it should.

    Args:
        model: The network, in the mode (`train` or `eval`) that is meant; dropout takes the same mask in every evaluation.
        inputs: A tensor, or a tuple of arguments. Floating point becomes float64.
        parameters: Parameters of `model` that are multiplied together; None: all.
        factors: Positive numbers other than 1.
        rtol: Largest difference allowed, relative to the largest output.

    Returns:
        Whether the outputs agree for all factors. Outputs that are not finite do not agree.

    Raises:
        ValueError: For factors outside this set, parameters of another model, or an empty selection.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.LayerNorm(4, eps=0.0, elementwise_affine=False))
        >>> inputs = torch.arange(6.0).reshape(2, 3)
        >>> is_scale_invariant(net, inputs), is_scale_invariant(net[0], inputs)
        (True, False)
    """
    probe = _Probe(model, inputs, factors, rtol)
    return probe.is_invariant(probe.names_of(parameters))


def scale_dependent_parameters(
    model: nn.Module, inputs: Any, *, factors: Sequence[float] = FACTORS, rtol: float = 1e-9
) -> list[str]:
    """Name the parameters that must be left out so that the rest is scale invariant as one group.

    Which tensors belong together is read off the derivatives of all outputs with respect to the logarithm of each tensor's scale:
    scaling a set changes nothing if their derivatives add up to zero, and the largest such set is looked for (as a linear program).
    It is then checked with `factors`; if it fails, those tensors remain that are invariant each on its own.

    Args:
        model: As in `is_scale_invariant`.
        inputs: As there; with more output entries than the model has parameter tensors.
        factors: As there.
        rtol: As there.

    Returns:
        Names as in `named_parameters`; empty if the whole model is scale invariant.

    Raises:
        ValueError: As in `is_scale_invariant`, and if there are too few outputs.

    Example:
        >>> norm = torch.nn.LayerNorm(4, eps=0.0, elementwise_affine=False)
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), norm, torch.nn.Linear(4, 2))
        >>> scale_dependent_parameters(net, torch.linspace(-1, 1, 15).reshape(5, 3) ** 2)
        ['2.weight', '2.bias']
    """
    return _Probe(model, inputs, factors, rtol).dependent_names()


def split_scale_invariant(
    module: nn.Module, example_input: Any, *, factors: Sequence[float] = FACTORS, rtol: float = 1e-9
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the parameters into those that are scale invariant as one group, and the others.

    Args:
        module: The network.
        example_input: As `inputs` of `scale_dependent_parameters`.
        factors: As there.
        rtol: As there.

    Returns:
        `(invariant, others)`, both in the order of `module.parameters()`.

    Raises:
        ValueError: As `scale_dependent_parameters`.

    Example:
        >>> norm = torch.nn.LayerNorm(4, eps=0.0, elementwise_affine=False)
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), norm, torch.nn.Linear(4, 2))
        >>> invariant, others = split_scale_invariant(net, torch.linspace(-1, 1, 15).reshape(5, 3) ** 2)
        >>> [tuple(p.shape) for p in invariant], [tuple(p.shape) for p in others]
        ([(4, 3), (4,)], [(2, 4), (2,)])
    """
    dependent = set(scale_dependent_parameters(module, example_input, factors=factors, rtol=rtol))
    invariant = [p for name, p in module.named_parameters() if name not in dependent]
    others = [p for name, p in module.named_parameters() if name in dependent]
    return invariant, others


class _Probe:
    """A copy of a model in float64 whose parameters can be scaled."""

    def __init__(self, model: nn.Module, inputs: Any, factors: Sequence[float], rtol: float) -> None:
        if not factors or not all(factor > 0.0 and factor != 1.0 for factor in factors):
            raise ValueError(f"factors must be positive numbers other than 1, at least one, got {tuple(factors)}.")
        self.original = model
        self.model = copy.deepcopy(model).double()
        self.inputs = tuple(_to_double(x) for x in (inputs if isinstance(inputs, tuple) else (inputs,)))
        self.factors, self.rtol = factors, rtol
        self.parameters = dict(self.model.named_parameters())
        self.reference = self.outputs((), 1.0)

    def names_of(self, parameters: Iterable[Tensor] | None) -> list[str]:
        if parameters is None:
            wanted = list(self.parameters)
        else:
            name_of = {id(p): name for name, p in self.original.named_parameters()}
            chosen = list(parameters)
            if any(id(p) not in name_of for p in chosen):
                raise ValueError("parameters must be parameters of the model, got a tensor that is not.")
            wanted = [name_of[id(p)] for p in chosen]
        if not wanted:
            raise ValueError("parameters must hold at least one tensor, got none.")
        return wanted

    @torch.no_grad()
    def outputs(self, names: Collection[str], factor: float) -> Tensor:
        """All outputs as one vector after the named parameters are multiplied."""
        # A fresh copy each time, and the caller's random state given back: whatever the model keeps or draws, such as masks of
        # dropout, is the same in every evaluation.
        model = copy.deepcopy(self.model)
        parameters = dict(model.named_parameters())
        for name in names:
            parameters[name].mul_(factor)
        with torch.random.fork_rng():
            leaves = list(_leaves(model(*self.inputs)))
        return torch.cat([leaf.double().flatten() for leaf in leaves])

    def is_invariant(self, names: Collection[str]) -> bool:
        tolerance = self.rtol * self.reference.abs().max()
        return all(bool(((self.outputs(names, f) - self.reference).abs() <= tolerance).all()) for f in self.factors)

    def dependent_names(self) -> list[str]:
        names = list(self.parameters)
        if self.reference.numel() <= len(names):
            raise ValueError(
                f"inputs must give more output entries than there are parameter tensors ({len(names)}), got "
                f"{self.reference.numel()}; use a larger batch."
            )
        step = 1e-6
        # (output entries, parameter tensors): derivative with respect to the logarithm of each tensor's scale.
        columns = [(self.outputs([n], 1.0 + step) - self.outputs([n], 1.0 - step)) / (2.0 * step) for n in names]
        slopes = (torch.stack(columns, dim=1) / self.reference.abs().max()).cpu()
        alone = slopes.abs().amax(dim=0) < 1e-7  # the error of these differences is near 1e-10
        together = alone.clone()
        if not alone.all():
            together[~alone] = _largest_group(slopes[:, ~alone])
        for candidates in (together, alone):
            group = [name for name, chosen in zip(names, candidates.tolist(), strict=True) if chosen]
            if group and self.is_invariant(group):
                return [name for name in names if name not in set(group)]
        return names


def _largest_group(slopes: Tensor) -> Tensor:
    """Choose as many columns as possible that add up to zero: (columns,) of bool."""
    norms = slopes.norm(dim=0)
    _, values, directions = torch.linalg.svd(slopes / norms, full_matrices=False)
    rows = directions[values > 1e-6] * norms  # their span is that of the slopes; below are errors of the differences
    # Shares x in [0, 1] of the columns, as large as possible in sum, with rows @ x = 0. Signs are the point: scaling one layer up
    # and the next one down may change nothing as well, but it is not a common factor.
    found = linprog(-np.ones(slopes.shape[1]), A_eq=rows.numpy(), b_eq=np.zeros(len(rows)), bounds=(0.0, 1.0))
    return torch.from_numpy(np.asarray(found.x) > 0.5)


def _to_double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _leaves(value: Any) -> Iterable[Tensor]:
    """Tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _leaves(entry)
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _leaves(entry)
    else:
        raise TypeError(f"model must return tensors, or tuples, lists or mappings of them, got {type(value).__name__}.")
