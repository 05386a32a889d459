"""What every process of a torchrun checks about training together; returns the largest deviations from one process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlopt.nn import CharTransformer, CharTransformerConfig, ExpertChoice, MoEConfig, SoftMoE, TokenChoice, TransformerConfig
from rlopt.optim import LBFGS, Adam, AdamW, Agc, Lamb, LocoPropSpec, Muon, RMSprop, Sam, Sgd
from rlopt.supervised import ArrayData, EarlyStopping, TextWindows, Trainer, TrainerConfig, WarmupDecay
from rlopt.supervised.losses import AllOutputs, OnLogits, WithAuxiliaryLosses, token_cross_entropy

Numbers = dict[str, float]
DENSE: Any = None
TOP2 = MoEConfig(num_experts=4, router=TokenChoice(), every=2)
TOP1 = MoEConfig(num_experts=8, router=TokenChoice(top_k=1, balance_loss="importance"), every=2)
CHOICE = MoEConfig(num_experts=4, router=ExpertChoice(), every=2)


def transformer(moe: Any, dropout: float = 0.0) -> nn.Module:
    form = TransformerConfig(
        width=16, num_layers=2, num_heads=2, context=8, moe=moe, init_std=0.3, dropout=dropout, allow_future_leak=moe is CHOICE
    )  # fmt: skip
    return AllOutputs(CharTransformer(CharTransformerConfig(11, form)))


def text() -> Tensor:
    noise = torch.randint(0, 3, (600,), generator=torch.Generator().manual_seed(0))
    return (torch.arange(600) * 3 + noise) % 11


def make(
    optimizer: Any,
    moe: Any,
    *,
    folder: Path | None = None,
    batch_size: int = 8,
    dropout: float = 0.0,
    model: nn.Module | None = None,
    **options: Any,
) -> Trainer:
    coefs = {} if moe is None else {"router_z": 0.01} | ({} if moe is CHOICE else {"balance": 0.1})
    data = TextWindows(text(), text()[:150], length=8, batch_size=batch_size, num_eval_windows=19, seed=1)
    config = TrainerConfig(**{"num_steps": 6, "log_every": 1, "eval_every": 2, "progress": False, **options})
    loss = WithAuxiliaryLosses(token_cross_entropy, coefs)
    return Trainer(
        transformer(moe, dropout) if model is None else model, loss, optimizer, data, config,
        schedule=WarmupDecay(20, warmup_steps=3), metrics={"nats": OnLogits(token_cross_entropy)}, folder=folder,
    )  # fmt: skip


def deviations(found: Trainer, expected: Trainer) -> Numbers:
    numbers = {}
    for kind in ("history", "evaluations"):
        rows, wanted = getattr(found, kind), getattr(expected, kind)
        assert len(rows) == len(wanted) > 0
        for row, other in zip(rows, wanted, strict=True):
            assert row.keys() == other.keys()
            for name in row:
                key = f"{kind}/{name}"
                numbers[key] = max(numbers.get(key, 0.0), abs(row[name] - other[name]) / max(1.0, abs(other[name])))
    weights = expected.model.state_dict()
    state = found.whole_state_dict()
    assert state.keys() == weights.keys()
    tensors = [name for name in weights if isinstance(weights[name], Tensor) and weights[name].is_floating_point()]
    numbers["weights"] = max((state[name] - weights[name]).abs().max().item() for name in tensors)
    return numbers


def compare(optimizer: Any, moe: Any, **options: Any) -> Numbers:
    alone = {name: value for name, value in options.items() if name not in ("parallel", "expert_parallel")}
    expected, found = make(optimizer, moe, **alone), make(optimizer, moe, **options)
    expected.train()
    found.train()
    assert found.model.training == expected.model.training
    return deviations(found, expected)


def gradient(moe: Any, **options: Any) -> Numbers:
    """A step of SGD with rate 1: weights differ by as much as gradients."""
    return {"gradient": compare(Sgd(lr=3.0), moe, num_steps=1, **options)["weights"]}  # the first factor of the warm-up is 1 / 3


def together(optimizer: Any, expected: str, moe: Any = DENSE, **options: Any) -> Numbers:
    """A combination that is refused, by all processes, in one sentence."""
    with pytest.raises(ValueError, match=re.escape(expected)) as caught:
        make(optimizer, moe, **options).train(1)
    assert "\n" not in str(caught.value)
    return {}


def network(seed: int = 1) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        nn.init.normal_(param, std=0.3, generator=generator)
    return model


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def rows(parallel: Any, optimizer: Any, *, spoil: int | None = None, batch_size: int = 7, **options: Any) -> Trainer:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    y = torch.sin(x).sum(dim=1, keepdim=True)
    if spoil is not None:
        y[spoil] = float("nan")
    x, y = x.double(), y.double()
    data = ArrayData(x, y, x, y, batch_size=batch_size, eval_batch_size=3, drop_last=False, seed=3)
    config = TrainerConfig(**{"num_steps": 6, "log_every": 1, "parallel": parallel, "progress": False, **options})
    return Trainer(network().double(), mse, optimizer, data, config)


def compare_rows(optimizer: Any, parallel: str = "ddp", **options: Any) -> Numbers:
    """Batches of 7, 7 and 6 rows: shares are not equal."""
    expected, found = rows("none", optimizer, **options), rows(parallel, optimizer, **options)
    expected.train()
    found.train()
    return deviations(found, expected)


def nan_on_one_process(parallel: str) -> Numbers:
    with pytest.raises(FloatingPointError, match="step 0: the loss is nan") as caught:
        rows(parallel, Sgd(), spoil=4, batch_size=20).train()
    messages: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(messages, str(caught.value))
    assert len(set(messages)) == 1, messages
    return {}


def unused_parameter() -> Numbers:
    model = network()
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    data = ArrayData(torch.ones(8, 3), torch.ones(8, 1), batch_size=8)
    with pytest.raises(ValueError, match="such as 'unused'"):
        Trainer(model, mse, Sgd(), data, TrainerConfig(num_steps=2, parallel="ddp")).train()
    return {}


def interrupted(folder: Path, optimizer: Any, moe: Any, **options: Any) -> Numbers:
    """Stopped and continued by equally many processes: the same run."""
    expected = make(optimizer, moe, **{**options, "parallel": "none", "expert_parallel": False})
    expected.train()
    make(optimizer, moe, folder=folder, **options).train(3)
    continued = make(optimizer, moe, folder=folder, **options)
    assert continued.resume()
    assert continued.step == 3
    continued.train()
    assert len(list(folder.glob("events*"))) == 2  # one for each call of `train`, whatever the number of processes
    assert not list((folder / "checkpoints").glob(".new-*"))
    return deviations(continued, expected)


def dropout_resumes(folder: Path) -> Numbers:
    whole = make(Adam(), TOP2, dropout=0.3, parallel="ddp", expert_parallel=True)
    whole.train()
    make(Adam(), TOP2, dropout=0.3, parallel="ddp", expert_parallel=True, folder=folder).train(3)
    continued = make(Adam(), TOP2, dropout=0.3, parallel="ddp", expert_parallel=True, folder=folder)
    assert continued.resume()
    continued.train()
    drawn = [value for name, value in continued.model.state_dict().items() if name.endswith("_extra_state") and value]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, drawn)
    assert len({str(state[0]["cpu"].tolist()) for state in states}) == dist.get_world_size(), "processes draw the same numbers"
    assert whole.history == continued.history
    return deviations(continued, whole) if dist.get_world_size() == 1 else {}


def best_weights(folder: Path) -> Numbers:
    """The best weights travel through a checkpoint: here the first ones are, since the rate is far too large."""

    def start() -> Trainer:
        stopping = EarlyStopping(patience=50)
        return make(Sgd(lr=30.0), DENSE, parallel="fsdp", early_stopping=stopping, folder=folder, clip_norm=1.0, num_steps=6)

    first = start()
    first.train(2)
    best = first.whole_state_dict()
    first.train(2)
    again = start()
    assert again.resume()
    again.train()
    again.load_best()
    assert min(range(3), key=lambda i: again.evaluations[i]["loss"]) == 0
    found = again.whole_state_dict()
    return {"best": max((found[name] - best[name]).abs().max().item() for name in best if best[name].is_floating_point())}


TRAVELLERS = {
    "ddp": {"optimizer": AdamW(lr=0.01), "moe": TOP2, "parallel": "ddp"},
    "expert_parallel": {"optimizer": AdamW(lr=0.01), "moe": TOP2, "parallel": "ddp", "expert_parallel": True},
    "fsdp": {"optimizer": AdamW(lr=0.01), "moe": TOP2, "parallel": "fsdp"},
}


def traveller(name: str, folder: Path | None, *, num_steps: int, alone: bool = False) -> Trainer:
    options: dict[str, Any] = dict(TRAVELLERS[name])
    if alone:
        options |= {"parallel": "none", "expert_parallel": False}
    return make(options.pop("optimizer"), options.pop("moe"), folder=folder, num_steps=num_steps, clip_norm=0.5, **options)


def travels(name: str, folder: Path) -> Numbers:
    """Goes on where another number of processes stopped, and compares with one process that was never stopped."""
    steps = {2: 2, 4: 4, 1: 6}[dist.get_world_size() if dist.is_initialized() else 1]
    expected = traveller(name, None, num_steps=steps, alone=True)
    expected.train()
    found = traveller(name, folder / f"travels_{name}", num_steps=steps)
    assert found.resume() == (steps > 2)
    found.train()
    assert len(found.history) == steps
    return deviations(found, expected)


def takes_over(name: str, folder: Path) -> Numbers:
    """Several processes go on where one stopped."""
    expected = traveller(name, None, num_steps=4, alone=True)
    expected.train()
    found = traveller(name, folder / f"alone_{name}", num_steps=4)
    assert found.resume()
    found.train()
    return deviations(found, expected)


def crosses(folder: Path) -> Numbers:
    """Each way of sharing goes on where another stopped."""
    expected = traveller("ddp", None, num_steps=8, alone=True)
    expected.train()
    for steps, name in ((2, "expert_parallel"), (4, "fsdp"), (6, "ddp"), (8, "expert_parallel")):
        found = traveller(name, folder, num_steps=steps)
        assert found.resume() == (steps > 2)
        found.train()
    return deviations(found, expected)


def checks(folder: Path) -> Iterator[tuple[str, Callable[[], Numbers]]]:
    size = dist.get_world_size()
    own = folder / f"runs_{size}"
    for name in TRAVELLERS:
        yield f"travel/{name}", lambda name=name: travels(name, folder)
    for name, moe in (("top2", TOP2), ("top1", TOP1), ("choice", CHOICE)):
        yield f"train/ep_{name}", lambda moe=moe: gradient(moe, parallel="ddp", expert_parallel=True)
    yield "train/fsdp", lambda: gradient(TOP2, parallel="fsdp")
    if size != 2:
        return
    for name in TRAVELLERS:
        yield f"travel/alone_{name}", lambda name=name: takes_over(name, folder)
    yield "train/ddp", lambda: gradient(DENSE, parallel="ddp")
    yield "train/ddp_moe", lambda: gradient(TOP1, parallel="ddp")
    yield "train/fsdp_dense", lambda: gradient(DENSE, parallel="fsdp")
    adamw = AdamW(lr=0.01, decay_matrices_only=True)
    yield "train/ddp_adamw", lambda: compare(adamw, DENSE, parallel="ddp", clip_norm=0.5, micro_batches=2)
    yield "train/ep_adamw", lambda: compare(adamw, TOP2, parallel="ddp", expert_parallel=True, clip_norm=0.5, micro_batches=2)
    yield "train/fsdp_adamw", lambda: compare(adamw, TOP2, parallel="fsdp", clip_norm=0.5, micro_batches=2)
    yield "train/ep_muon", lambda: compare(Muon(precision="float32"), TOP2, parallel="ddp", expert_parallel=True)
    yield "train/fsdp_rmsprop", lambda: compare(RMSprop(lr=1e-3, momentum=0.9), DENSE, parallel="fsdp")
    yield "train/fsdp_rmsprop_tf", lambda: compare("rmsprop_tf", DENSE, parallel="fsdp")
    yield "train/fsdp_adagrad", lambda: compare("adagrad", DENSE, parallel="fsdp")
    yield "train/unequal_shares", lambda: compare_rows(Sgd(momentum=0.9), clip_norm=0.3)
    yield "train/unequal_shares_fsdp", lambda: compare_rows(Sgd(momentum=0.9), "fsdp", clip_norm=0.3)
    yield "train/lbfgs", lambda: compare_rows(LBFGS(lr=0.5, max_iter=3))
    yield "train/sam", lambda: compare_rows(Sam())
    for parallel in ("ddp", "fsdp"):
        yield f"refused/nan_{parallel}", lambda parallel=parallel: nan_on_one_process(parallel)
    yield "refused/unused", unused_parameter
    yield "refused/locoprop", lambda: together(LocoPropSpec(), "parallel must be 'none' with LocoProp", parallel="ddp")
    yield "refused/kfac", lambda: together("kfac", "parallel must be 'none' with KFAC", parallel="ddp")
    for optimizer, name in ((Lamb(), "LAMB"), (Agc(), "AGC"), (LBFGS(), "LBFGS"), (Sam(), "SAM"), (Muon(), "Muon")):
        yield f"refused/fsdp_{name}", lambda o=optimizer, n=name: together(o, f"with parallel 'fsdp', got {n}", parallel="fsdp")
    yield (
        "refused/ep_lamb",
        lambda: together(Lamb(), "with expert_parallel, for the experts, got LAMB", TOP2, parallel="ddp", expert_parallel=True),
    )
    model = transformer(TOP2)
    yield (
        "refused/finished",
        lambda: together(
            torch.optim.SGD(model.parameters(), lr=0.1), "finished SGD", TOP2, parallel="ddp", expert_parallel=True, model=model
        ),
    )
    yield "refused/no_experts", lambda: together(Sgd(), "must hold a MoE", parallel="ddp", expert_parallel=True)
    yield "refused/shapes", lambda: together(Sgd(), "divisible by", CHOICE, parallel="ddp", expert_parallel=True, batch_size=7)
    scaled = nn.Sequential(nn.Linear(3, 3), SoftMoE(3, 4, 4))
    yield "refused/scalar", lambda: together(Sgd(), "such as '1.scale'", parallel="fsdp", model=scaled)
    yield "refused/few_rows", lambda: together(Sgd(), "at least", parallel="ddp", batch_size=1)
    yield "refused/compile", lambda: together(Sgd(), "compile must be False", parallel="ddp", compile=True)
    yield "resume/ddp", lambda: interrupted(own / "ddp", AdamW(lr=0.01), DENSE, parallel="ddp")
    yield "resume/ep", lambda: interrupted(own / "ep", AdamW(lr=0.01), TOP2, parallel="ddp", expert_parallel=True)
    yield "resume/fsdp", lambda: interrupted(own / "fsdp", Sgd(momentum=0.9), TOP2, parallel="fsdp")
    yield "resume/crosses", lambda: crosses(own / "crosses")
    yield "resume/dropout", lambda: dropout_resumes(own / "dropout")
    yield "resume/best", lambda: best_weights(own / "best")
