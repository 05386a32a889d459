"""Which layers of a module can have a local problem, and what follows them."""

from __future__ import annotations

import itertools
from collections import Counter

from torch import nn


def eligible_layers(module: nn.Module) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
    """Return names and layers that can have a local problem.

    These are `nn.Linear` and `nn.Conv2d` with one group that compute what these classes compute, whose parameters are their own
    tensors: not derived from others (weight normalisation, parametrisations) and not shared with other modules.
    """
    owners = Counter(id(param) for part in module.modules() for param in part._parameters.values() if param is not None)
    found: list[tuple[str, nn.Linear | nn.Conv2d]] = []
    for name, part in module.named_modules():
        is_linear = isinstance(part, nn.Linear) and type(part).forward is nn.Linear.forward
        is_conv = isinstance(part, nn.Conv2d) and type(part).forward is nn.Conv2d.forward and part.groups == 1
        if not (is_linear or is_conv) or part._parameters.get("weight") is None:
            continue
        own = [param for param in part._parameters.values() if param is not None]
        is_plain = set(part._parameters) == {"weight", "bias"} and not ("weight" in vars(part) or "bias" in vars(part))
        if is_plain and all(owners[id(param)] == 1 for param in own):
            found.append((name, part))
    return found


def next_modules(module: nn.Module) -> dict[nn.Module, nn.Module]:
    """Map modules to what comes after them in an `nn.Sequential`; those with several followers are left out."""
    followers: dict[nn.Module, set[nn.Module]] = {}
    for container in module.modules():
        if isinstance(container, nn.Sequential):
            children = list(container)  # a module that occurs twice is here twice
            for child, follower in itertools.pairwise(children):
                followers.setdefault(child, set()).add(follower)
    return {child: found.pop() for child, found in followers.items() if len(found) == 1}
