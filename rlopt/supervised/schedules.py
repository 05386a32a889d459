"""Learning-rate schedules: step -> factor by which the learning rate of every parameter group is multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The learning rates as they are.

    Example:
        >>> Constant()(1000)
        1.0
    """

    def __call__(self, step: int) -> float:
        """Factor of the step with this number, counted from 0."""
        return 1.0


@dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up, then a linear or cosine decay.

    With s = step, counted from 0, W = `warmup_steps`, N = `num_steps` and p = (s - W) / (N - W):
    (s + 1) / W while s < W; then 1 - p (linear) or (1 + cos(pi p)) / 2 (cosine), in both cases scaled to end at
    `final_factor`. The factor stays there after N steps. It would reach `final_factor` at step N, which is not taken.

    Args:
        num_steps: N > W.
        warmup_steps: W >= 0.
        decay: Form of the decay.
        final_factor: In [0, 1].

    Raises:
        ValueError: For arguments outside these sets.

    Example:
        >>> schedule = WarmupDecay(num_steps=6, warmup_steps=2)
        >>> [schedule(step) for step in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    num_steps: int
    warmup_steps: int = 0
    decay: Literal["linear", "cosine"] = "linear"
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps must be in [0, num_steps = {self.num_steps}), got {self.warmup_steps}.")
        if self.decay not in ("linear", "cosine"):
            raise ValueError(f"decay must be 'linear' or 'cosine', got {self.decay!r}.")
        if not 0.0 <= self.final_factor <= 1.0:
            raise ValueError(f"final_factor must be in [0, 1], got {self.final_factor}.")

    def __call__(self, step: int) -> float:
        """Factor of the step with this number, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min((step - self.warmup_steps) / (self.num_steps - self.warmup_steps), 1.0)
        share = 1.0 - progress if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.final_factor + (1.0 - self.final_factor) * share
