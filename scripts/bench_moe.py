"""Cost of mixtures of experts against a dense MLP with the same active multiplications.

The dense MLP has the hidden width of as many experts as a token uses, so that both multiply equally much; what is left is routing,
sorting, copying, and the shape of the products. All layers take turns, round after round; what is shown is the median CPU time of a
call without gradients and of forward and backward (gradients of the input included), and its median ratio to the dense MLP in the
same round.

Two common ways to write such a layer are measured beside it, with the same experts and choices: a loop over experts that looks up
each one's tokens in a mask, and one-hot matrices, whose products cost more than the experts (few tokens only).

Commands:
    scripts/bench moe
    scripts/bench moe --width 256 --num-rounds 21
    scripts/bench moe --batch 1 --length 1 --block-seconds 0.02
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from _bench import Comparison, Work, clock_of, ratio, take_turns, write_json
from torch import Tensor, nn
from torch.nn import functional as F
from tyro.conf import arg

from rlopt.nn.moe import MoE
from rlopt.nn.routing import ExpertChoice, TokenChoice, choose_experts
from rlopt.nn.soft_moe import SoftMoE

DENSE = "dense MLP, hidden width of two experts"
ALONE = "top-2, without losses and statistics"
OURS, PEERS = ("top-2", ALONE, "expert choice, capacity 2"), (DENSE, "top-2, loop over masks")
FLOOR = "products of the dense MLP of two experts alone"
FORWARD, BOTH = ": forward", ": forward and backward"
ONE_HOT_TOKENS = 4096  # above, the one-hot matrices do not fit


@dataclass(frozen=True)
class Config:
    """What is measured."""

    batch: int = 64
    """Samples, > 0."""
    length: int = 64
    """Tokens of a sample, > 0."""
    width: int = 128
    """Size of a token, > 0."""
    hidden_width: int = 512
    """Hidden units of an expert, > 0."""
    num_experts: int = 8
    """Experts, >= 2."""
    num_rounds: int = 15
    """Rounds, > 0."""
    threads: int = 1
    """Threads of torch, > 0."""
    with_capped: bool = False
    """Measure capped expert choice too, whose solver takes long."""
    with_one_hot: bool = False
    """Measure one-hot matrices too."""
    backward: bool = True
    """Measure forward and backward, besides forward alone."""
    block_seconds: float = 0.0
    """Duration of a block, >= 0: a layer is called so many times in a row, once at least. Single calls find small layers out of the
    processor's cache."""
    device: str = "cpu"
    """Where layers live: cpu or cuda."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Where the numbers go, too."""

    def __post_init__(self) -> None:
        for name in ("batch", "length", "width", "hidden_width", "num_rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
        if self.block_seconds < 0.0:
            raise ValueError(f"block_seconds must be >= 0, got {self.block_seconds}.")
        if self.num_experts < 2:
            raise ValueError(f"num_experts must be >= 2, got {self.num_experts}.")
        clock_of(self.device)
        if self.with_one_hot and self.batch * self.length > ONE_HOT_TOKENS:
            raise ValueError(f"with_one_hot takes at most {ONE_HOT_TOKENS} tokens, got {self.batch * self.length}.")


Call = Callable[[Tensor], Tensor]


def loop_over_masks(layer: MoE, x: Tensor) -> Tensor:
    """Top-2 with a loop that looks for the tokens of each expert."""
    tokens = x.flatten(0, 1)
    logits = tokens @ layer.router_weight
    gates, experts = logits.softmax(-1).topk(2)
    gates = gates / gates.sum(-1, keepdim=True)
    masks = F.one_hot(experts, layer.num_experts).permute(2, 1, 0)  # (e, k, n)
    y = torch.zeros_like(tokens)
    for i in range(layer.num_experts):
        choice, token = torch.where(masks[i])
        out = F.gelu(tokens[token] @ layer.experts.w_in[i]) @ layer.experts.w_out[i]
        y = y.index_add(0, token, out * gates[token, choice, None])
    return y.view_as(x)


def one_hot_products(layer: MoE, x: Tensor) -> Tensor:
    """Top-2 with room for twice the average, dispatched by products with one-hot matrices."""
    tokens = x.flatten(0, 1)
    logits = (tokens @ layer.router_weight)[None]
    choices = choose_experts(logits, logits.softmax(-1), TokenChoice())
    chosen = F.one_hot(choices.expert[0], layer.num_experts)  # (n, k, e)
    position = (chosen.flatten(0, 1).cumsum(0) - 1).view_as(chosen).mul(chosen).sum(-1)  # (n, k)
    room = 4 * len(tokens) // layer.num_experts
    slot = F.one_hot(position.clamp_max(room), room + 1)[..., :room].to(x.dtype)  # (n, k, c); no slot for what is over
    mask = torch.einsum("nke,nkc->nec", chosen.to(x.dtype), slot)
    weights = torch.einsum("nke,nkc,nk->nec", chosen.to(x.dtype), slot, choices.gate[0])
    rows = torch.einsum("nec,nd->ecd", mask, tokens)
    return torch.einsum("nec,ecd->nd", weights, F.gelu(rows @ layer.experts.w_in) @ layer.experts.w_out).view_as(x)


def layers(config: Config) -> dict[str, tuple[nn.Module, Call]]:
    """All rows."""
    width, hidden_width, experts = config.width, config.hidden_width, config.num_experts

    def row(layer: nn.Module) -> tuple[nn.Module, Call]:
        return layer, lambda x: layer(x).y

    def dense(hidden: int) -> tuple[nn.Module, Call]:
        layer = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, width, bias=False))
        return layer, layer

    def moe(router: TokenChoice | ExpertChoice) -> MoE:
        return MoE(width, hidden_width, experts, router)

    alone, by_masks, by_one_hot = moe(TokenChoice()).eval(), moe(TokenChoice()), moe(TokenChoice())
    rows = {
        DENSE: dense(2 * hidden_width),
        "top-2": row(moe(TokenChoice())),
        ALONE: (alone, lambda x: alone.output(x)),
        "top-2, capacity 2": row(moe(TokenChoice(capacity_factor=2.0))),
        "expert choice, capacity 2": row(moe(ExpertChoice())),
        "expert choice, capacity 2, cap 3": row(moe(ExpertChoice(cap=3))),
        "top-2, loop over masks": (by_masks, lambda x: loop_over_masks(by_masks, x)),
        "top-2, one-hot products": (by_one_hot, lambda x: one_hot_products(by_one_hot, x)),
        "soft, two slots per token": row(SoftMoE(width, hidden_width, experts, -(-2 * config.length // experts))),
        "dense MLP, hidden width of one expert": dense(hidden_width),
        "top-1": row(moe(TokenChoice(top_k=1))),
    }
    if not config.with_capped:
        del rows["expert choice, capacity 2, cap 3"]
    if not config.with_one_hot:
        del rows["top-2, one-hot products"]
    return rows


def products_of(config: Config, backward: bool) -> Work:
    """Return the products of matrices that the dense layer of two experts needs."""
    num_tokens, width, hidden = config.batch * config.length, config.width, 2 * config.hidden_width
    shapes = ((num_tokens, width), (num_tokens, hidden), (width, hidden), (hidden, width))
    x, h, w_in, w_out = (torch.randn(shape, device=config.device) for shape in shapes)
    calls = [(x, w_in), (h, w_out)]
    if backward:
        calls += [(h.T, x), (x, w_out.T), (x.T, h), (h, w_in.T)]
    outs = [a @ b for a, b in calls]

    def run() -> None:
        for (a, b), out in zip(calls, outs, strict=True):
            torch.mm(a, b, out=out)

    return run


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(config.batch, config.length, config.width, generator=generator).to(config.device)
    weights = torch.randn(x.shape, generator=generator).to(config.device)
    rows = {name: (layer.to(config.device), call) for name, (layer, call) in layers(config).items()}

    def forward(call: Call) -> None:
        with torch.no_grad():
            call(x)

    def both(layer: nn.Module, call: Call) -> None:
        layer.zero_grad()
        call(x.detach().requires_grad_()).backward(weights)

    kinds = (FORWARD, BOTH) if config.backward else (FORWARD,)
    works: dict[str, Work] = {}
    for kind in kinds:
        for name, (layer, call) in rows.items():
            works[name + kind] = partial(forward, call) if kind == FORWARD else partial(both, layer, call)
        works[FLOOR + kind] = products_of(config, kind == BOTH)
    times = take_turns(works, config.num_rounds, block_seconds=config.block_seconds, device=config.device)
    sizes = f"{config.batch} x {config.length} tokens, width {config.width}, {config.num_experts} experts of {config.hidden_width}"
    print(f"torch {torch.__version__}, {config.threads} thread(s), {sizes}, median of {config.num_rounds} rounds.\n")
    print("| layer |" + "".join(f"{kind[1:]}, CPU ms | ratio to dense |" for kind in kinds))
    print("| --- |" + " ---: | ---: |" * len(kinds))
    rival = DENSE
    for name in (*rows, FLOOR):
        rival = name if name.startswith("dense") else DENSE if name == FLOOR else rival
        cells = []
        for kind in kinds:
            mine, other = times[name + kind], times[rival + kind]
            cells.append(f"{1e3 * statistics.median(mine):.2f} | {ratio(mine, other).median:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    if config.json is not None:
        found = []
        for kind in kinds:
            seconds = {name: times[name + kind] for name in (*rows, FLOOR)}
            clock = "cpu" if config.device == "cpu" else "wall"
            found.append(Comparison(f"{config.batch} x {config.length} tokens{kind}", "call", seconds, OURS, PEERS, FLOOR, clock))
        write_json(config.json, found, settings=asdict(config))


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")
