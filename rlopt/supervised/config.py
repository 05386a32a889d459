"""Options of the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlopt.optim.finite import NonFinite, check_non_finite

Precision = Literal["float32", "bfloat16", "float16"]
Parallel = Literal["none", "ddp", "fsdp"]


@dataclass(frozen=True)
class EarlyStopping:
    """When training ends before its last step."""

    patience: int = 5
    """Evaluations in a row without improvement after which training ends, >= 1."""
    monitor: str = "loss"
    """What must improve: "loss" or the name of a metric."""
    higher_is_better: bool = False
    """Whether larger values of it are better."""
    min_improvement: float = 0.0
    """Improvements up to this size do not count, >= 0."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.patience < 1:
            raise ValueError(f"patience must be >= 1, got {self.patience}.")
        if not self.min_improvement >= 0.0:
            raise ValueError(f"min_improvement must be >= 0, got {self.min_improvement}.")


@dataclass(frozen=True)
class TrainerConfig:
    """Options of a `Trainer`."""

    num_steps: int = 1000
    """Steps of the optimizer in all, >= 1."""
    log_every: int = 50
    """Steps from one line of the log to the next, >= 1."""
    eval_every: int | None = None
    """Steps from one evaluation to the next, >= 1; None: only at the end."""
    save_every: int | None = None
    """Steps from one checkpoint to the next, >= 1; None: only when `train` returns. Needs a folder."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, >= 1."""
    early_stopping: EarlyStopping | None = None
    """When to end before `num_steps`; needs `eval_every`."""
    micro_batches: int = 1
    """Parts in which each batch passes the network, >= 1: less memory, the same gradient. For losses that are a mean over rows."""
    clip_norm: float | None = None
    """Bound on the norm of the gradient of all parameters together, > 0; None: no bound."""
    precision: Precision = "float32"
    """Arithmetic of forward passes: bfloat16 and float16 use autocast, float16 also scales the loss (CUDA only)."""
    compile: bool = False
    """Whether the model is compiled; the first steps then take long."""
    check_finite_every: int = 1
    """Steps from one check of loss and gradient to the next, >= 1; on a GPU each check waits for the device."""
    non_finite: NonFinite = "raise"
    """What happens if the loss or the gradient is nan or infinite. raise: training ends. skip: the step is left out, weights and
    optimizer stay as they were, and `skipped_updates` counts; needs check_finite_every 1. Weights that are not finite end training
    in any case."""
    device: str = "cpu"
    """Where the model lives: cpu, cuda, ..."""
    progress: bool = True
    """Whether to show a progress bar on a terminal."""
    seed: int = 0
    """Seed of what the layers draw during training (dropout)."""
    parallel: Parallel = "none"
    """How processes that torchrun started, see `process_group`, share the rows of each batch. ddp: each has all parameters. fsdp:
    each has a part of them. Without torchrun, one process works alone. none: each process works for itself."""
    expert_parallel: bool = False
    """Whether each process has a part of the experts of mixtures, and all else; needs parallel ddp."""

    def __post_init__(self) -> None:
        """Check the options."""
        for name in (
            "num_steps",
            "log_every",
            "eval_every",
            "save_every",
            "keep_checkpoints",
            "micro_batches",
            "check_finite_every",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}.")
        if self.clip_norm is not None and not self.clip_norm > 0.0:
            raise ValueError(f"clip_norm must be > 0 or None, got {self.clip_norm}.")
        check_non_finite(self.non_finite)
        if self.non_finite == "skip" and self.check_finite_every != 1:
            raise ValueError(f"check_finite_every must be 1 with non_finite 'skip', got {self.check_finite_every}.")
        if self.precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"precision must be 'float32', 'bfloat16' or 'float16', got {self.precision!r}.")
        if self.precision == "float16" and not self.device.startswith("cuda"):
            raise ValueError(f"precision must not be 'float16' unless device is cuda, got device {self.device!r}; take 'bfloat16'.")
        if self.parallel not in ("none", "ddp", "fsdp"):
            raise ValueError(f"parallel must be 'none', 'ddp' or 'fsdp', got {self.parallel!r}.")
        if self.expert_parallel and self.parallel != "ddp":
            raise ValueError(f"parallel must be 'ddp' with expert_parallel, got {self.parallel!r}.")
        if self.early_stopping is not None and self.eval_every is None:
            raise ValueError("eval_every must be given with early_stopping, got None.")
