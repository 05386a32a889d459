"""Extra losses of policy networks, such as the balance of a mixture of experts, added to the losses of agents.

A features extractor that has such losses offers a method `pop_aux_losses() -> dict[str, Tensor]`: the unscaled scalar losses of
its latest forward pass in training mode, by name; the call forgets them. Other extractors have no such method and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch as th
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


def pop_aux_losses(network: nn.Module) -> dict[str, th.Tensor]:
    """Take the losses of all features extractors in a network; losses of one name are added up.

    Example:
        >>> pop_aux_losses(nn.Linear(2, 2))
        {}
    """
    return _taken(_sources(network))


class AuxiliaryLosses:
    """Weighs the losses of the features extractors of an agent's networks and keeps them for the log.

    Without coefficients no loss is added, but all are logged.

    Args:
        coefs: Name of a loss -> factor >= 0. Losses without one are not added. None: none is added.

    Raises:
        ValueError: If a factor is negative or not finite.
    """

    def __init__(self, coefs: Mapping[str, float] | None) -> None:
        self.coefs = dict(coefs or {})
        for name, coef in self.coefs.items():
            if not 0.0 <= coef < math.inf:
                raise ValueError(f"aux_loss_coefs[{name!r}] must be finite and at least 0, got {coef}.")
        self._sources: dict[nn.Module, list[Any]] = {}  # networks do not change: looked through once
        self._values: dict[str, list[th.Tensor]] = {}

    def require(self, network: nn.Module) -> None:
        """Check that coefficients have an effect.

        Raises:
            ValueError: If there are coefficients, and no features extractor in `network` has losses.
        """
        if self.coefs and not self._of(network):
            raise ValueError(
                f"aux_loss_coefs must be None, since no features extractor has a method pop_aux_losses, got {self.coefs}: drop it, "
                "or choose another features_extractor_class."
            )

    def pop(self, network: nn.Module) -> th.Tensor | None:
        """Sum of the losses of a network's latest forward pass times their coefficients; None if nothing is to be added.

        Call it after each training pass, in front of any other pass of the same extractors.

        Raises:
            ValueError: If a coefficient is for a loss that the extractors do not have.
        """
        sources = self._of(network)
        if not sources:
            return None
        losses = _taken(sources)
        unknown = sorted(self.coefs.keys() - losses.keys())
        if unknown:
            raise ValueError(f"aux_loss_coefs must have names among {', '.join(sorted(losses)) or 'none'}, got {unknown[0]!r}.")
        for name, value in losses.items():
            self._values.setdefault(name, []).append(value.detach())
        weighed = [coef * losses[name] for name, coef in self.coefs.items()]
        return th.stack(weighed).sum() if weighed else None

    def drop(self, network: nn.Module) -> None:
        """Forget the losses of a pass that is not learned from by these extractors, and with them its graph."""
        _taken(self._of(network))

    def state_dict(self) -> dict[str, list[th.Tensor]]:
        """What is not logged yet."""
        return {name: list(values) for name, values in self._values.items()}

    def load_state_dict(self, state: Mapping[str, list[th.Tensor]]) -> None:
        """Take what `state_dict` returned."""
        self._values = {name: list(values) for name, values in state.items()}

    def record(self, logger: Logger) -> None:
        """Log the means since the last call as `train/aux_<name>`; what is not finite belongs to updates that were left out."""
        for name, values in self._values.items():
            stacked = th.stack(values)
            finite = stacked[stacked.isfinite()]
            if len(finite):
                logger.record(f"train/aux_{name}", finite.mean().item())
        self._values = {}

    def _of(self, network: nn.Module) -> list[Any]:
        if network not in self._sources:
            self._sources[network] = _sources(network)
        return self._sources[network]


def plus(loss: th.Tensor, extra: th.Tensor | None) -> th.Tensor:
    """A loss and what `AuxiliaryLosses.pop` returned."""
    return loss if extra is None else loss + extra


def _sources(network: nn.Module) -> list[Any]:
    if isinstance(network, ContinuousCritic) and network.share_features_extractor:
        return []  # its extractor is the actor's
    return [part for part in network.modules() if isinstance(part, BaseFeaturesExtractor) and hasattr(part, "pop_aux_losses")]


def _taken(sources: list[Any]) -> dict[str, th.Tensor]:
    losses: dict[str, th.Tensor] = {}
    for source in sources:
        for name, value in source.pop_aux_losses().items():
            losses[name] = losses[name] + value if name in losses else value
    return losses
