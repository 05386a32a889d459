"""Small problems for the tests of the trainer; also run as a program, to continue a run in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlopt.optim import build_optimizer
from rlopt.supervised import ArrayData, EarlyStopping, Trainer, TrainerConfig, WarmupDecay

NUM_STEPS = 20


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def arrays(num: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 3, generator=generator)
    return x, torch.sin(x).sum(dim=1, keepdim=True)


def network(*, dropout: float = 0.0, seed: int = 1) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(0.3 * torch.randn(param.shape, generator=generator))
    return model


def sgd(lr: float = 0.1) -> Callable[..., Optimizer]:
    return lambda params: torch.optim.SGD(params, lr=lr)


def make(
    optimizer: Any = None, *, batch_size: int = 16, dropout: float = 0.0, folder: Path | None = None, **options: Any
) -> Trainer:
    """A trainer of the small network; options are those of the config, and `model`, `schedule`, `metrics`."""
    model = options.pop("model", None)
    rest = {name: options.pop(name) for name in ("schedule", "metrics") if name in options}
    data = ArrayData(*arrays(), batch_size=batch_size, seed=3)
    config = TrainerConfig(**{"num_steps": NUM_STEPS, "log_every": 1, **options})
    return Trainer(
        network(dropout=dropout) if model is None else model, mse, optimizer or sgd(), data, config, folder=folder, **rest
    )


def resumable(optimizer: str, folder: Path | None) -> Trainer:
    """What the processes of the test of exact continuation train: everything that has a state."""
    return make(
        lambda params: _build(optimizer, list(params)), dropout=0.2, folder=folder, log_every=3, eval_every=4,
        early_stopping=EarlyStopping(patience=100), schedule=WarmupDecay(NUM_STEPS, warmup_steps=5, decay="cosine"), seed=7,
    )  # fmt: skip


def _build(optimizer: str, params: list[nn.Parameter]) -> Optimizer:
    holder = nn.ParameterList(params)
    return torch.optim.SGD(params, lr=0.1, momentum=0.9) if optimizer == "momentum" else build_optimizer(optimizer, holder)


def facts(trainer: Trainer) -> dict[str, Any]:
    """Everything that a continued run must have in common with one that was not stopped."""
    return {
        "weights": [p.detach() for p in trainer.model.parameters()],
        "history": trainer.history,
        "evaluations": trainer.evaluations,
    }


if __name__ == "__main__":
    for name in sys.argv[2:]:
        continued = resumable(name, Path(sys.argv[1]) / name)
        assert continued.resume()
        continued.train()
        torch.save(facts(continued), Path(sys.argv[1]) / f"{name}.pt")
