"""Emphasizing recent experience (ERE): within a phase the draws narrow down to recent transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlopt.replay.buffer import Replay
from rlopt.replay.sampler import Draw, Sampler, ScoreFunction


@dataclass(frozen=True)
class EmphasizeRecentConfig:
    """Options of emphasizing recent experience."""

    eta: float = 0.996
    """Decay of the range at the beginning of training, in (0, 1]; 1 is uniform replay."""
    eta_final: float = 1.0
    """Decay at the end of training, in (0, 1]; in between it changes linearly with training progress."""
    min_range: int = 5000
    """Smallest number of newest transitions to draw from, > 0."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("eta", "eta_final"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}.")
        if self.min_range < 1:
            raise ValueError(f"min_range must be at least 1, got {self.min_range}.")


class EmphasizeRecentSampler(Sampler):
    """Draw k of a phase of K is uniform over the newest `max(N eta^(1000 k / K), min_range)` transitions."""

    def __init__(self, config: EmphasizeRecentConfig) -> None:
        self.config = config
        self.eta = config.eta
        self.num_draws = 0  # k: draws since the phase began
        self.phase_length = 0  # K, 0 while unknown

    def on_add(self, slots: Any) -> None:
        """New data after draws: without announcements, the last phase is the guess for the length of the next."""
        if self.num_draws > 0:
            self.phase_length, self.num_draws = self.num_draws, 0

    def begin_phase(self, gradient_steps: int, score: ScoreFunction | None, progress: float | None) -> None:
        """Begin with the widest range; anneal eta."""
        self.phase_length, self.num_draws = gradient_steps, 0
        if progress is not None:
            self.eta = self.config.eta + (self.config.eta_final - self.config.eta) * progress

    def range(self, k: int) -> int:
        """Number of newest transitions that draw k = 1..K may choose from, before it is cut to what is stored."""
        if self.phase_length == 0:
            return self.storage.capacity
        share: float = self.eta ** (min(k, self.phase_length) * 1000.0 / self.phase_length)
        least: int = self.config.min_range
        return max(int(self.storage.capacity * share), least)

    def draw(self, batch_size: int) -> Draw:
        """Choose a batch."""
        self.num_draws += 1
        n = len(self.storage)
        recent = min(self.range(self.num_draws), n)
        return Draw(self.storage.to_slots(self.rng.integers(n - recent, n, batch_size)), uniform=recent == n)

    def clear(self) -> None:
        """Forget the phase."""
        self.num_draws, self.phase_length = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Phase and annealing."""
        return {"eta": self.eta, "num_draws": self.num_draws, "phase_length": self.phase_length}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        self.eta = float(state["eta"])
        self.num_draws, self.phase_length = int(state["num_draws"]), int(state["phase_length"])


class EmphasizeRecentReplay(Replay):
    """Draw k = 1..K of a learning phase is uniform over the newest c_k transitions, the widest range first.

    c_k = max(N eta^(1000 k / K), min_range) with N the capacity, cut to what is stored; eta goes linearly from `eta` to `eta_final`
    over the training. Phases are announced by `begin_phase`; where nobody does, the number of draws in the phase before serves
    as K (the first phase is uniform) and eta stays at its first value.

    Differs from the paper: phases are the agent's (`train_freq`, `gradient_steps`), not necessarily episodes; use
    `train_freq=(1, "episode"), gradient_steps=-1` for that. The defaults of eta come from independent implementations for SAC.

    Args:
        *args: As in `rlopt.replay.buffer.Replay`.
        eta: See `EmphasizeRecentConfig`.
        eta_final: See `EmphasizeRecentConfig`.
        min_range: See `EmphasizeRecentConfig`.
        **kwargs: As in `rlopt.replay.buffer.Replay`.

    References: Wang and Ross, Boosting soft actor-critic: emphasizing recent experience without forgetting the past, 2019,
    arXiv 1906.04009.

    Example:
        >>> import numpy as np
        >>> from gymnasium import spaces
        >>> replay = EmphasizeRecentReplay(1_000_000, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), device="cpu", seed=0)
        >>> replay.begin_phase(gradient_steps=50)
        >>> replay.sampler.range(50)
        18169
    """

    def __init__(
        self,
        *args: Any,
        eta: float = EmphasizeRecentConfig.eta,
        eta_final: float = EmphasizeRecentConfig.eta_final,
        min_range: int = EmphasizeRecentConfig.min_range,
        **kwargs: Any,
    ) -> None:
        config = EmphasizeRecentConfig(eta, eta_final, min_range)
        super().__init__(*args, sampler=EmphasizeRecentSampler(config), **kwargs)
