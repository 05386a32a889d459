"""Sequential Attention: a softmax mask over the inputs of a model that selects features one after another while it trains.

It has nothing to do with attention among tokens.

References: Yasuda, Bateni, Chen, Fahrbach, Fu, Mirrokni, Sequential attention for feature selection, ICLR 2023, arXiv 2209.14881.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Standard deviation of the logits at the start and after each selection (the authors' code).
_INITIAL_STD = 1e-5


class SequentialAttention(nn.Module):
    """Mask over the features of an input, of which k are selected in the course of training.

    With the selected features S and logits w,

        mask_i = 1 for i in S,   mask_i = exp(w_i) / sum_{j not in S} exp(w_j) for the others

    and before `start` all entries are 1. Training between `start` and `stop` (as parts of the whole) is divided into
    k / per_step phases of equal length. At the end of each, the `per_step` unselected features with the largest logits are
    selected, and the logits are drawn anew. The model goes on with the weights it has: one training selects all features.

    `forward` gives the mask for a progress in training and changes nothing; `step` selects, when a phase is over:

        loss = criterion(model(x * attention(i / n)), y)      # in step i of n, counted from 0
        ...                                                   # backward, optimizer step over model and attention
        attention.step((i + 1) / n, optimizer)

    Args:
        num_features: Features d, >= 1.
        k: Features to select, in [1, d].
        per_step: Features that are selected together, >= 1, a divisor of `k`.
        start: Progress at which the first phase begins, in [0, 1); before it, the model trains with all features (the authors'
            code: 0.1).
        stop: Progress at which the last feature is selected, in (start, 1].
        reset: Whether logits are drawn anew at each selection.
        seed: Seed of the logits.

    Attributes:
        logits: (d,), the parameter w, normal with deviation 1e-5 at first and after each reset.

    Raises:
        ValueError: For arguments outside these sets.

    Differs from the paper's code, which selects at the *beginning* of each phase: the first feature is then chosen by logits that
    have never been trained, and those of the last phase choose nothing. Here a phase ends with its selection, and k features are
    selected at `stop` for every `per_step`.

    Example:
        >>> attention = SequentialAttention(4, 2, start=0.0)
        >>> with torch.no_grad():
        ...     _ = attention.logits.copy_(torch.tensor([0.0, 3.0, 0.0, 0.0]))
        >>> attention.step(0.5)
        True
        >>> attention.selected.tolist(), [round(value, 3) for value in attention(0.5).tolist()]
        ([1], [0.333, 1.0, 0.333, 0.333])
    """

    _order: Tensor
    _is_selected: Tensor

    def __init__(
        self,
        num_features: int,
        k: int,
        *,
        per_step: int = 1,
        start: float = 0.1,
        stop: float = 1.0,
        reset: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be >= 1, got {num_features}.")
        if not 1 <= k <= num_features:
            raise ValueError(f"k must be in [1, number of features = {num_features}], got {k}.")
        if per_step < 1 or k % per_step:
            raise ValueError(f"per_step must be a divisor of k = {k}, got {per_step}.")
        if not 0.0 <= start < stop <= 1.0:
            raise ValueError(f"start and stop must be 0 <= start < stop <= 1, got {start} and {stop}.")
        self.num_features, self.k, self.per_step = num_features, k, per_step
        self.start, self.stop, self.reset = start, stop, reset
        self._generator = torch.Generator().manual_seed(seed)
        self.logits = nn.Parameter(self._draw())
        self.register_buffer("_order", torch.full((k,), -1))  # selected features in order, then -1
        self.register_buffer("_is_selected", torch.zeros(num_features, dtype=torch.bool))

    @property
    def selected(self) -> Tensor:
        """Selected features in the order of selection, int64."""
        return self._order[self._order >= 0]

    def forward(self, progress: float) -> Tensor:
        """Return the mask.

        Args:
            progress: Part of training that is done, in [0, 1].

        Returns:
            (d,) with gradient for the logits; ones before `start`.

        Raises:
            ValueError: If `progress` is outside [0, 1].
        """
        _check_progress(progress)
        if progress < self.start:
            return torch.ones_like(self.logits)
        # Of an empty set there is no softmax: with everything selected nothing is left out, and nothing of it is used.
        left_out = self._is_selected & ~self._is_selected.all()
        softmax = self.logits.masked_fill(left_out, -math.inf).softmax(dim=0)
        return torch.where(self._is_selected, 1.0, softmax)

    @torch.no_grad()
    def step(self, progress: float, optimizer: Optimizer | None = None) -> bool:
        """Select features if a phase is over.

        If several phases are over, their features are selected together, by the logits there are.

        Args:
            progress: Part of training that is done, in [0, 1]. It must not be less than before; at `stop`, k features are selected.
            optimizer: What trains the logits. Its state for them (moments) is dropped when they are drawn anew.

        Returns:
            Whether anything was selected.

        Raises:
            ValueError: If `progress` is outside [0, 1].
        """
        _check_progress(progress)
        num_phases = self.k // self.per_step
        # Tolerance: (i / n - start) / (stop - start) of an exact end of a phase may come out a little below it.
        phases = math.floor((progress - self.start) / (self.stop - self.start) * num_phases + 1e-9)
        num_selected = len(self.selected)
        num_new = min(phases, num_phases) * self.per_step - num_selected
        if num_new <= 0:
            return False
        new = self.logits.masked_fill(self._is_selected, -math.inf).topk(num_new).indices
        self._order[num_selected : num_selected + num_new] = new
        self._is_selected[new] = True
        if self.reset:
            self.logits.copy_(self._draw())
            if optimizer is not None:
                optimizer.state.pop(self.logits, None)
        return True

    def get_extra_state(self) -> Tensor:
        """State of the generator, so that a restored module draws the same logits."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the state of a generator."""
        self._generator.set_state(state.cpu())

    def extra_repr(self) -> str:
        """Options."""
        options: Mapping[str, Any] = {
            name: getattr(self, name) for name in ("num_features", "k", "per_step", "start", "stop", "reset")
        }
        return ", ".join(f"{name}={value}" for name, value in options.items())

    def _draw(self) -> Tensor:
        return torch.empty(self.num_features).normal_(0.0, _INITIAL_STD, generator=self._generator)


def _check_progress(progress: float) -> None:
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must be in [0, 1], got {progress}.")
