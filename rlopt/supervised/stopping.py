"""Early stopping: the best evaluation so far and how long ago it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from rlopt.supervised.config import EarlyStopping


class BestSoFar:
    """Remembers the best evaluation and its weights.

    Args:
        config: What must improve, and how patient to be.
    """

    def __init__(self, config: EarlyStopping) -> None:
        self._config = config
        self._sign = -1.0 if config.higher_is_better else 1.0
        self.value = float("inf")  # of what is monitored, with the sign that makes less better
        self.num_without_improvement = 0
        self.weights: dict[str, Any] | None = None

    @property
    def is_exhausted(self) -> bool:
        """Whether patience is at its end."""
        return self.num_without_improvement >= self._config.patience

    def update(self, row: Mapping[str, float], model: nn.Module) -> None:
        """Take note of an evaluation of the model; nan is no improvement."""
        value = self._sign * row[self._config.monitor]
        if value < self.value - self._config.min_improvement:
            self.value, self.num_without_improvement = value, 0
            self.weights = copy.deepcopy(model.state_dict())
        else:
            self.num_without_improvement += 1

    def state_dict(self) -> dict[str, Any]:
        """The best value, its age and its weights."""
        return {"value": self.value, "num_without_improvement": self.num_without_improvement, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.value, self.num_without_improvement = state["value"], state["num_without_improvement"]
        self.weights = state["weights"]
