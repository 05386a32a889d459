"""Table of LocoProp and its rivals on a small auto-encoder of generated curves, beside the numbers of an independent program.

Images of 14 x 14 pixels, 4000 of them; a tanh network 196-256-128-64-12-64-128-256-196 with a linear code and the cross-entropy
of a sigmoid output, summed over pixels; batches of 500; the step size (of the closed form: gamma) rises for 20 steps and then
falls towards zero. What is shown is the loss on all images afterwards; no model gets below 18.17, the entropy of the images.

Commands:
    python scripts/tables_locoprop.py                     # everything, three seeds: about half an hour on one core
    python scripts/tables_locoprop.py --seeds 1 --methods locoprop_m adam
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from rlopt.data.curves import curves_like
from rlopt.optim import Soap, build_optimizer
from rlopt.optim.locoprop import LocoProp
from rlopt.optim.muon import Float32Muon
from rlopt.optim.rmsprop_tf import RMSpropTF

NUM_STEPS, BATCH = 400, 500
WIDTHS = (196, 256, 128, 64, 12, 64, 128, 256, 196)
OUTPUT = {"14": "sigmoid"}  # the loss applies it to the last layer

Make = Callable[[nn.Module], list[torch.optim.Optimizer]]


def locoprop(**options: object) -> Make:
    """LocoProp with options."""
    kinds = {} if options.get("variant") == "squared" else {"transfer": OUTPUT}
    return lambda net: [LocoProp(net, **kinds, **options)]  # type: ignore[arg-type]


def closed_form(gamma: float, eta: float) -> Make:
    """LocoProp-S, solved exactly."""
    return locoprop(variant="squared", solver="closed_form", gamma=gamma, prox_eta=eta)


def muon(kind: type[torch.optim.Muon]) -> Make:
    """Muon on matrices and Adam on biases."""
    options = {"momentum": 0.95, "weight_decay": 0.0, "adjust_lr_fn": "original"}
    return lambda net: [
        kind([param for param in net.parameters() if param.ndim == 2], lr=0.05, **options),
        torch.optim.Adam([param for param in net.parameters() if param.ndim == 1], lr=2e-3),
    ]


# Name -> description, how to make it, losses of the independent program for three seeds (or as many as it ran).
METHODS: dict[str, tuple[str, Make, tuple[float, ...]]] = {
    "sgd": ("SGD, lr 0.03", lambda net: [torch.optim.SGD(net.parameters(), lr=0.03)], (34.3, 34.0, 32.6)),
    "adam": ("Adam, lr 2e-3", lambda net: [torch.optim.Adam(net.parameters(), lr=2e-3)], (29.4, 31.7, 29.1)),
    "rmsprop": (
        "RMSProp of PyTorch, lr 3e-3, alpha 0.9",
        lambda net: [torch.optim.RMSprop(net.parameters(), lr=3e-3, alpha=0.9)],
        (25.96, 25.43, 25.88),
    ),
    "rmsprop_tf": (
        "RMSProp of TensorFlow, lr 3e-3, alpha 0.9",
        lambda net: [RMSpropTF(net.parameters(), lr=3e-3)],
        (),
    ),
    "muon": ("Muon, lr 0.05, and Adam on biases, lr 2e-3", muon(torch.optim.Muon), (19.31, 19.33, 19.31)),
    "muon_float32": ("The same with products in float32", muon(Float32Muon), ()),
    "soap": (
        "SOAP, lr 0.03, no decay, refreshed every 10 steps (extra rlopt[optim])",
        lambda net: [build_optimizer(Soap(lr=0.03, weight_decay=0.0, precondition_frequency=10), net)],
        (19.49, 19.96, 19.34),
    ),
    "locoprop_m": ("LocoProp-M, defaults (T = 10)", locoprop(), (19.92, 19.82, 19.87)),
    "locoprop_m5": ("LocoProp-M, T = 5", locoprop(local_iters=5), (21.00, 20.99, 20.90)),
    "locoprop_m2": ("LocoProp-M, T = 2", locoprop(local_iters=2), (32.88,)),
    "locoprop_s": ("LocoProp-S, iterative, T = 10", locoprop(variant="squared"), (27.3, 24.7, 25.3)),
    "closed_1": ("LocoProp-S, closed form, gamma 500, eta 1", closed_form(500.0, 1.0), (19.54, 19.53, 20.28)),
    "closed_01": ("LocoProp-S, closed form, gamma 500, eta 0.1", closed_form(500.0, 0.1), (19.87, 19.85, 19.83)),
    "closed_small": ("LocoProp-S, closed form, gamma 50, eta 0.1", closed_form(50.0, 0.1), (25.82,)),
    "lr_3e-6": ("LocoProp-M, inner lr 3e-6", locoprop(lr=3e-6), (20.70,)),
    "lr_3e-5": ("LocoProp-M, inner lr 3e-5", locoprop(lr=3e-5), (19.68,)),
    "gamma_1": ("LocoProp-M, gamma 1", locoprop(gamma=1.0), (28.24,)),
    "gamma_100": ("LocoProp-M, gamma 100", locoprop(gamma=100.0), (21.65,)),
    "torch_rule": ("LocoProp-M, inner RMSProp of PyTorch", locoprop(inner="rmsprop", lr=1e-5), (20.28,)),
}


@dataclass(frozen=True)
class Config:
    """What is computed."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Rows of the table."""
    seeds: int = 3
    """Seeds of each, > 0."""
    threads: int = 1
    """Threads of torch, > 0."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.threads < 1:
            raise ValueError(f"seeds and threads must be > 0, got {self.seeds} and {self.threads}.")
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"methods must be among {sorted(METHODS)}, got {name!r}.")


def make_net(generator: torch.Generator) -> nn.Sequential:
    """Build the network: Glorot's uniform weights, and biases from the same initialiser."""
    parts: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        layer = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            layer.weight.uniform_(-1.0, 1.0, generator=generator).mul_(math.sqrt(6.0 / (fan_in + fan_out)))
            layer.bias.uniform_(-1.0, 1.0, generator=generator).mul_(math.sqrt(3.0 / fan_out))
        is_linear = index in (3, len(WIDTHS) - 2)
        parts += [layer, nn.Identity() if is_linear else nn.Tanh()]
    return nn.Sequential(*parts)


def loss_of(net: nn.Module, images: Tensor) -> Tensor:
    """Cross-entropy, summed over pixels, mean over images."""
    return F.binary_cross_entropy_with_logits(net(images), images, reduction="none").sum(1).mean()


def batches(num_images: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices, whole permutations one after another."""
    while True:
        yield from torch.randperm(num_images, generator=generator).split(BATCH)


def train(make: Make, images: Tensor, seed: int) -> float:
    """Train and return the loss on all images."""
    generator = torch.Generator().manual_seed(seed)
    net = make_net(generator)
    optimizers = make(net)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for step, indices in zip(range(NUM_STEPS), batches(len(images), generator), strict=False):
        factor = (step + 1) / 20 if step < 20 else 1.0 - (step - 20) / 380
        for optimizer, old in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, old, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        loss_of(net, images[indices]).backward()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        return loss_of(net, images).item()


def main(config: Config) -> None:
    """Train and print."""
    torch.set_num_threads(config.threads)
    images = torch.from_numpy(curves_like().inputs).flatten(1)
    print("| method | final loss, seeds 0, 1, ... | mean | independent program | CPU seconds per run |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for name in config.methods:
        description, make, reference = METHODS[name]
        begin = time.process_time()
        losses = [train(make, images, seed) for seed in range(config.seeds)]
        seconds = (time.process_time() - begin) / config.seeds
        shown = " / ".join(f"{loss:.2f}" for loss in losses)
        expected = " / ".join(f"{loss:g}" for loss in reference)
        print(f"| {description} | {shown} | {statistics.mean(losses):.2f} | {expected} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
