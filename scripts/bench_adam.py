"""Cost of a step of Adam and of a target update: torch's forms, and rlopt's over one flat tensor.

The networks are two of agents, with two hidden layers, and the deep auto-encoder of the literature. All forms take turns; a
number is the median over rounds of the time of a call. The floor is one pass over the memory that the step changes (three numbers
for each parameter with Adam, one in a target update), which reads and writes each number in place.

Commands:
    scripts/bench adam
    scripts/bench adam --networks td3_critics --num-rounds 21
"""

from __future__ import annotations

import itertools
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from _bench import Comparison, Work, clock_of, take_turns, write_json
from stable_baselines3.common.utils import polyak_update
from torch import nn
from tyro.conf import arg

from rlopt.agents.fast.adam import AdamRows, FlatAdam, flatten

# Name -> title, widths of the layers, number of networks.
NETWORKS = {
    "dqn": ("DQN 2x64", (4, 64, 64, 2), 1),
    "td3_critics": ("TD3's critics 2x256", (23, 256, 256, 1), 2),
    "autoencoder": ("deep auto-encoder", (784, 1000, 500, 250, 30, 250, 500, 1000, 784), 1),
}
OURS, FLOOR = "rlopt: flat", "floor: memory"


@dataclass(frozen=True)
class Config:
    """What is measured."""

    networks: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = tuple(NETWORKS)
    """Networks: dqn, td3_critics, autoencoder."""
    num_rounds: int = 15
    """Rounds, > 2."""
    block_seconds: float = 0.05
    """Duration of a block, > 0."""
    device: str = "cpu"
    """Where parameters live: cpu or cuda."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers go, too."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.networks if name not in NETWORKS]
        if unknown:
            raise ValueError(f"networks must be among {', '.join(NETWORKS)}, got {unknown[0]}")
        if self.num_rounds < 3 or self.block_seconds <= 0.0:
            raise ValueError("num_rounds must be > 2 and block_seconds > 0")
        clock_of(self.device)


def make_parameters(name: str, device: str) -> list[nn.Parameter]:
    """Return a network's parameters with gradients."""
    generator = torch.Generator().manual_seed(0)
    _, widths, count = NETWORKS[name]
    shapes = [shape for fan_in, fan_out in itertools.pairwise(widths) for shape in ((fan_out, fan_in), (fan_out,))] * count
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
    return parameters


def adams(name: str, device: str) -> dict[str, Work]:
    """Return steps of Adam."""
    forms = {"torch, default": {}, "torch, foreach": {"foreach": True}, "torch, fused": {"fused": True}}
    works: dict[str, Work] = {form: torch.optim.Adam(make_parameters(name, device), **how).step for form, how in forms.items()}
    parameters = make_parameters(name, device)
    grads = torch.cat([parameter.grad.reshape(-1) for parameter in parameters if parameter.grad is not None])[None]
    works[OURS] = FlatAdam(parameters, parameters, AdamRows(flatten([parameters]), grads, len(parameters))).step
    works[FLOOR] = pass_over(3 * grads.numel(), device)
    return works


def target_updates(name: str, device: str) -> dict[str, Work]:
    """Return updates of a target network."""
    source, target = (make_parameters(name, device) for _ in range(2))
    flat_source, flat_target = (flatten([make_parameters(name, device)]) for _ in range(2))

    @torch.no_grad()
    def foreach() -> None:
        torch._foreach_lerp_(target, source, 0.005)

    return {
        "Stable-Baselines3": lambda: polyak_update(source, target, 0.005),
        "torch, foreach": foreach,
        OURS: lambda: flat_target.lerp_(flat_source, 0.005),
        FLOOR: pass_over(flat_source.numel(), device),
    }


def pass_over(num_numbers: int, device: str) -> Work:
    """Return what reads and writes so many float32 numbers in place."""
    numbers = torch.zeros(num_numbers, device=device)
    return lambda: numbers.neg_()


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    comparisons = []
    print("| network | what | form | us | relative to the first | times the floor |\n| --- | --- | --- | ---: | ---: | ---: |")
    for name in config.networks:
        for what, make in (("Adam", adams), ("target update", target_updates)):
            times = take_turns(
                make(name, config.device), config.num_rounds, block_seconds=config.block_seconds, device=config.device
            )
            peers = tuple(form for form in times if form not in (OURS, FLOOR))
            title = NETWORKS[name][0]
            clock = "cpu" if config.device == "cpu" else "wall"
            comparison = Comparison(f"{what}, {title}", "step", times, (OURS,), peers, FLOOR, clock)
            for form, seconds in times.items():
                cells = f"{1e6 * statistics.median(seconds):.1f} | {comparison.speed_up(peers[0], form)}"
                print(f"| {title} | {what} | {form} | {cells} | {comparison.times_limit(form)} |", flush=True)
            comparisons.append(comparison)
    if config.json is not None:
        write_json(config.json, comparisons, settings=asdict(config))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
