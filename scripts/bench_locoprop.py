"""Cost of a training step with LocoProp and its rivals on the deep auto-encoder of the literature.

784-1000-500-250-30-250-500-1000-784, tanh, cross-entropy of a sigmoid output, random images, float32. All optimizers take turns,
round after round; what is shown is the CPU time of a whole step (forward, backward, step), its ratio to SGD, the time of nothing
but the matrix products that the method needs at least, done right beside it, and the bytes of state.

The package `locoprop` 0.1.0 is measured where it is installed (`pip install --no-deps locoprop==0.1.0`), at its own number of
iterations, with and without its correction of the inputs, for which it calls each layer once more.

A layer has 3 products per step (the first layer 2: its inputs need no gradient); each of T local iterations after the first adds
2, or, for layers without transfer, X'X once and 1 smaller one where that is less; the closed form adds X'X, a Cholesky
factorisation and two triangular solves.

Commands:
    scripts/bench locoprop
    scripts/bench locoprop --batch 256 --num-rounds 9 --threads 2
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from _bench import Comparison, clock_of, ratio, take_turns, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from tyro.conf import arg

from rlopt.optim.locoprop import LocoProp
from rlopt.optim.muon import Float32Muon
from rlopt.optim.rmsprop_tf import RMSpropTF

WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
PRODUCTS = ": products alone"
CODE = 3  # this layer and the last have no tanh


@dataclass(frozen=True)
class Config:
    """What is measured."""

    batch: int = 1000
    """Images of a step, > 0."""
    num_rounds: int = 7
    """Rounds, > 0."""
    threads: int = 1
    """Threads of torch, > 0."""
    precision: str = "highest"
    """Precision of float32 products: highest, high or medium."""
    with_muon: bool = False
    """Measure torch's Muon too, whose products are in bfloat16: seconds per step on a processor without instructions for it."""
    only: tuple[str, ...] = ()
    """Parts of names of the methods to measure besides SGD; none: all."""
    device: str = "cpu"
    """Where the network lives: cpu or cuda."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers go, too."""

    def __post_init__(self) -> None:
        for name in ("batch", "num_rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
        clock_of(self.device)


def make_net(device: torch.device) -> nn.Sequential:
    """Build the network."""
    parts: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        parts += [nn.Linear(fan_in, fan_out), nn.Identity() if index in (CODE, len(WIDTHS) - 2) else nn.Tanh()]
    return nn.Sequential(*parts).to(device)


def loss_of(outputs: Tensor, images: Tensor) -> Tensor:
    """Cross-entropy, summed over pixels, mean over images."""
    return F.binary_cross_entropy_with_logits(outputs, images, reduction="none").sum(1).mean()


Step = Callable[[], None]


def _solve(factor: Tensor, left: Tensor, upper: bool, out: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, left, upper=upper, left=False, out=out)


@dataclass
class Method:
    """One row: a step, the products it needs, and its optimizers."""

    step: Step
    products: Step
    optimizers: list[torch.optim.Optimizer]

    @property
    def state_bytes(self) -> int:
        """Bytes of all tensors of the state."""
        states = [state for optimizer in self.optimizers for state in optimizer.state.values()]
        return sum(v.numel() * v.element_size() for state in states for v in state.values() if isinstance(v, Tensor))


def torch_method(make: Callable[[nn.Module], list[torch.optim.Optimizer]], images: Tensor, products: Step) -> Method:
    """Make a row with optimizers of the interface of torch."""
    net = make_net(images.device)
    optimizers = make(net)

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(net(images), images).backward()
        for optimizer in optimizers:
            optimizer.step()

    return Method(step, products, optimizers)


def peer_method(images: Tensor, products: Step, correction: float) -> Method:
    """Make a row of the package `locoprop`, with its defaults but for the correction of inputs (0.1)."""
    from locoprop import LocoLayer, LocopropTrainer

    parts = list(make_net(images.device))
    layers = [
        LocoLayer(layer, nn.Sigmoid() if index == len(WIDTHS) - 2 else activation, implicit=index == len(WIDTHS) - 2)
        for index, (layer, activation) in enumerate(zip(parts[::2], parts[1::2], strict=True))
    ]
    trainer = LocopropTrainer(nn.Sequential(*layers), loss_of, correction=correction)
    return Method(lambda: trainer.step(images, images), products, trainer.opts)


def products_of(images: Tensor, num_iters: int = 1, *, matching: bool = True, exact: bool = False) -> Step:
    """Return a function that does the counted matrix products of a step and nothing else."""
    batch, device = len(images), images.device
    calls: list[tuple[Callable[..., Tensor], tuple[Any, ...], Tensor]] = []
    for index, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        x, a, w = (torch.rand(shape, device=device) for shape in ((batch, fan_in), (batch, fan_out), (fan_out, fan_in)))
        to_a, to_w, to_x = (torch.mm, (x, w.T), a.clone()), (torch.mm, (a.T, x), w.clone()), (torch.mm, (a, w), x.clone())
        square = torch.rand(fan_in, fan_in, device=device)
        gram, change = (torch.mm, (x.T, x), square.clone()), (torch.mm, (w, square), w.clone())
        calls += [to_a, to_w] + ([to_x] if index > 0 else [])
        if exact:
            matrix = x.T @ x + torch.eye(fan_in, device=device)
            factor = torch.linalg.cholesky(matrix)
            calls += [gram, (torch.linalg.cholesky, (matrix,), matrix.clone())]
            calls += [(_solve, (factor.mT, w, True), w.clone()), (_solve, (factor, w, False), w.clone())]
        elif matching and index not in (CODE,):
            calls += [to_a, to_w] * (num_iters - 1)
        elif num_iters > 1:
            short = batch * fan_in + (num_iters - 1) * fan_out * fan_in < 2 * (num_iters - 1) * batch * fan_out
            calls += [gram] + [change] * (num_iters - 1) if short else [to_a, to_w] * (num_iters - 1)

    def run() -> None:
        for function, arguments, out in calls:
            function(*arguments, out=out)

    return run


def methods(config: Config, images: Tensor) -> dict[str, Method]:
    """All rows."""

    def locoprop(**options: object) -> Callable[[nn.Module], list[torch.optim.Optimizer]]:
        transfer = {} if options.get("variant") == "squared" else {"transfer": {"14": "sigmoid"}}
        return lambda net: [LocoProp(net, **transfer, **options)]  # type: ignore[arg-type]

    def muon(kind: type[torch.optim.Muon]) -> Callable[[nn.Module], list[torch.optim.Optimizer]]:
        return lambda net: [
            kind([param for param in net.parameters() if param.ndim == 2], lr=1e-3),
            torch.optim.Adam([param for param in net.parameters() if param.ndim == 1], lr=1e-3),
        ]

    plain, five = products_of(images), products_of(images, 5)
    closed = {"variant": "squared", "solver": "closed_form", "gamma": 500.0, "prox_eta": 1.0}
    makers: dict[str, tuple[Callable[[nn.Module], list[torch.optim.Optimizer]], Step]] = {
        "SGD": (lambda net: [torch.optim.SGD(net.parameters(), lr=1e-3)], plain),
        "Adam": (lambda net: [torch.optim.Adam(net.parameters(), lr=1e-3)], plain),
        "RMSprop": (lambda net: [torch.optim.RMSprop(net.parameters(), lr=1e-3)], plain),
        "RMSpropTF": (lambda net: [RMSpropTF(net.parameters(), lr=1e-3)], plain),
        "Muon + Adam": (muon(torch.optim.Muon), plain),
        "Muon in float32 + Adam": (muon(Float32Muon), plain),
        "LocoProp-M, T = 1": (locoprop(local_iters=1), plain),
        "LocoProp-M, T = 5": (locoprop(local_iters=5), five),
        "LocoProp-M, T = 10": (locoprop(local_iters=10), products_of(images, 10)),
        "LocoProp-S, T = 10": (locoprop(variant="squared"), products_of(images, 10, matching=False)),
        "LocoProp-S, closed form": (locoprop(**closed), products_of(images, exact=True)),
    }
    if not config.with_muon:
        del makers["Muon + Adam"]
    rows = {name: partial(torch_method, make, images, products) for name, (make, products) in makers.items()}
    if importlib.util.find_spec("locoprop") is not None:
        rows["package locoprop, T = 5"] = partial(peer_method, images, five, 0.1)
        rows["package locoprop, T = 5, correction 0"] = partial(peer_method, images, five, 0.0)
    return {
        name: make() for name, make in rows.items() if name == "SGD" or not config.only or any(part in name for part in config.only)
    }


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.precision)
    images = torch.rand(config.batch, WIDTHS[0], generator=torch.Generator().manual_seed(0)).to(config.device)
    rows = methods(config, images)
    works = {key: work for name, row in rows.items() for key, work in ((name, row.step), (f"{name}{PRODUCTS}", row.products))}
    times = take_turns(works, config.num_rounds, device=config.device)
    print(f"torch {torch.__version__}, {config.threads} thread(s), batch {config.batch}, precision {config.precision}.\n")
    print("| method | CPU ms per step | ratio to SGD | products alone, ms | step / products | state, MiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        steps, products = times[name], times[f"{name}{PRODUCTS}"]
        cells = f"{1e3 * statistics.median(steps):.0f} | {ratio(steps, times['SGD']).median:.2f} | "
        cells += f"{1e3 * statistics.median(products):.0f} | {ratio(steps, products).median:.2f}"
        print(f"| {name} | {cells} | {row.state_bytes / 2**20:.1f} |")
    if config.json is not None:
        clock = "cpu" if config.device == "cpu" else "wall"
        write_json(config.json, comparisons(times, config.batch, clock), settings=asdict(config))


def comparisons(times: dict[str, list[float]], batch: int, clock: str) -> list[Comparison]:
    """Compare LocoProp's two forms, as far as they were measured, with what else is there."""
    found = []
    for name, others in (("LocoProp-M, T = 5", ("package locoprop, T = 5", "SGD")), ("LocoProp-S, closed form", ("SGD",))):
        if name in times:
            peers, limit = tuple(other for other in others if other in times), f"{name}{PRODUCTS}"
            chosen = {who: times[who] for who in (name, *peers, limit)}
            found.append(Comparison(f"step, deep auto-encoder, batch {batch}", "step", chosen, (name,), peers, limit, clock))
    return found


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
