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
    scripts/bench moe --batch 1 --length 1 --num-rounds 301
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F

from rlopt.nn.moe import MoE
from rlopt.nn.routing import ExpertChoice, TokenChoice, choose_experts
from rlopt.nn.soft_moe import SoftMoE

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

    def __post_init__(self) -> None:
        for name in ("batch", "length", "width", "hidden_width", "num_rounds", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}.")
        if self.num_experts < 2:
            raise ValueError(f"num_experts must be >= 2, got {self.num_experts}.")
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

    by_masks, by_one_hot = moe(TokenChoice()), moe(TokenChoice())
    rows = {
        "dense MLP, hidden width of two experts": dense(2 * hidden_width),
        "top-2": row(moe(TokenChoice())),
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


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main(config: Config) -> None:
    """Measure and print."""
    torch.set_num_threads(config.threads)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(config.batch, config.length, config.width, generator=generator)
    weights = torch.randn(x.shape, generator=generator)
    rows = layers(config)

    def forward(call: Call) -> None:
        with torch.no_grad():
            call(x)

    def both(layer: nn.Module, call: Call) -> None:
        layer.zero_grad()
        call(x.detach().requires_grad_()).backward(weights)

    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in rows}
    for layer, call in rows.values():
        both(layer, call)
    for _ in range(config.num_rounds):
        for name, (layer, call) in rows.items():
            times[name][0].append(cpu_seconds(lambda call=call: forward(call)))
            times[name][1].append(cpu_seconds(lambda layer=layer, call=call: both(layer, call)))
    sizes = f"{config.batch} x {config.length} tokens, width {config.width}, {config.num_experts} experts of {config.hidden_width}"
    print(f"torch {torch.__version__}, {config.threads} thread(s), {sizes}, median of {config.num_rounds} rounds.\n")
    print("| layer | forward, CPU ms | ratio to dense | forward and backward, CPU ms | ratio to dense |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rival = next(iter(rows))
    for name, measured in times.items():
        rival = name if name.startswith("dense") else rival
        cells = []
        for mine, other in zip(measured, times[rival], strict=True):
            ratio = statistics.median(a / b for a, b in zip(mine, other, strict=True))
            cells.append(f"{1e3 * statistics.median(mine):.2f} | {ratio:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
