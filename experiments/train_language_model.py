"""Train one small language model on Tiny Shakespeare, on one process or many, with dense layers or a mixture of experts.

The same command goes on where it was stopped, also with another number of processes. Without torchrun one process trains. The batch
is that of all processes together; with or without them, losses and weights are the same up to rounding (and dropout).

Examples:
    python experiments/train_language_model.py --num-steps 2000
    torchrun --standalone --nproc-per-node=2 experiments/train_language_model.py --num-experts 8 --expert-parallel
    torchrun --standalone --nproc-per-node=8 experiments/train_language_model.py --device cuda --parallel fsdp --batch-size 256
    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 experiments/train_language_model.py \
        --device cuda --batch-size 512 --output /shared/runs
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import check_device
from rich.console import Console
from tyro.conf import arg

from rlopt.data import load
from rlopt.nn import MoEConfig, TokenChoice, TransformerConfig
from rlopt.optim import Adam, AdamW
from rlopt.study.command_line import parse_arguments
from rlopt.study.grid import folder_name
from rlopt.supervised import Trainer, TrainerConfig, WarmupDecay, language_model
from rlopt.supervised.distributed import Processes, process_group

PATIENCE = 5.0  # seconds in which the first process is to tell an error that all have
# Options that a run may change when it goes on.
_FREE = ("parallel", "expert_parallel", "device", "output", "name", "eval_every", "save_every", "log_every")


@dataclass(frozen=True)
class Options:
    """Options of the run."""

    num_steps: int = 2000
    """Steps, > 0."""
    batch_size: int = 12
    """Windows of a step, of all processes together, > 0."""
    context: int = 64
    """Characters that the model sees, > 1."""
    num_layers: int = 4
    """Layers, > 0."""
    num_heads: int = 4
    """Heads of the attention, > 0; they divide width."""
    width: int = 128
    """Width of the residual stream, > 0."""
    dropout: float = 0.0
    """Probability of dropping, in [0, 1)."""
    num_experts: Annotated[int | None, arg(metavar="INT")] = None
    """Experts of every n-th layer, > 1; None: all layers are dense."""
    moe_every: int = 2
    """Of every so many layers the last one has experts, > 0, at most num_layers."""
    top_k: int = 2
    """Experts of a token, > 0, at most num_experts."""
    balance_coef: float = 0.01
    """Factor of the loss that balances the loads of experts, >= 0."""
    router_z_coef: float = 0.001
    """Factor of the loss that keeps the logits of routers small, >= 0."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw decays matrices only; adam has no decay."""
    lr: float = 6e-3
    """Largest learning rate, > 0."""
    weight_decay: float = 0.1
    """Of adamw, >= 0."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises from 0, in [0, num_steps); then it falls linearly to 0."""
    clip_norm: float = 1.0
    """Bound on the norm of the gradient, > 0."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward passes."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How the processes of torchrun share the work. ddp: each has all parameters. fsdp: each has a part of them."""
    expert_parallel: bool = False
    """Whether each process has a part of the experts; with ddp."""
    device: str = "cpu"
    """cpu or cuda; under torchrun each process takes the GPU of its number."""
    log_every: int = 50
    """Steps from one line of the log to the next, > 0."""
    eval_every: int = 100
    """Steps from one evaluation to the next, > 0."""
    save_every: int = 500
    """Steps from one checkpoint to the next, > 0."""
    seed: int = 0
    """Of weights, windows and dropout."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs/train_language_model")
    """Folder of all runs; on several machines, one that all of them see."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this run, its folder in RUNS."""

    def __post_init__(self) -> None:
        for option in ("num_steps", "batch_size", "moe_every", "top_k", "log_every", "eval_every", "save_every"):
            if getattr(self, option) < 1:
                raise ValueError(f"{option} must be > 0, got {getattr(self, option)}")
        for option in ("lr", "clip_norm"):
            if not getattr(self, option) > 0.0:
                raise ValueError(f"{option} must be > 0, got {getattr(self, option)}")
        for option in ("weight_decay", "balance_coef", "router_z_coef"):
            if not getattr(self, option) >= 0.0:
                raise ValueError(f"{option} must be >= 0, got {getattr(self, option)}")
        if self.context < 2:
            raise ValueError(f"context must be > 1, got {self.context}")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps must be in [0, num_steps = {self.num_steps}), got {self.warmup_steps}")
        if self.num_experts is not None and self.num_experts < max(2, self.top_k):
            raise ValueError(f"num_experts must be > 1 and at least top_k = {self.top_k}, got {self.num_experts}")
        if self.num_experts is None and self.expert_parallel:
            raise ValueError("num_experts must be given with expert_parallel, got None")
        if self.expert_parallel and self.parallel != "ddp":
            raise ValueError(f"parallel must be ddp with expert_parallel, got {self.parallel}")
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device}")
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")

        _ = self.transformer  # refuses what it does not allow

    @property
    def transformer(self) -> TransformerConfig:
        """Form of the network."""
        moe = None
        if self.num_experts is not None:
            moe = MoEConfig(self.num_experts, TokenChoice(top_k=self.top_k), every=self.moe_every)
        return TransformerConfig(
            width=self.width,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            context=self.context,
            dropout=self.dropout,
            moe=moe,
            seed=self.seed,
        )

    @property
    def fixed(self) -> dict[str, Any]:
        """What must stay as it is when the run goes on."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}

    @property
    def folder(self) -> Path:
        """Where the run is, the same one for the same numbers."""
        default = Options().fixed
        changed = [f"{name}={value}" for name, value in self.fixed.items() if value != default[name]]
        return self.output / (self.name or "_".join(["model", *changed]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and return an exit status; an error is one line, of the first process if all have it."""
    is_first = os.environ.get("RANK", "0") == "0"
    quiet = contextlib.ExitStack()
    if not is_first:
        quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
    try:
        with quiet:
            options = parse_arguments(Options, arguments, description=__doc__)
    except SystemExit:
        if is_first:
            raise
        return 0  # the first process says what is wrong with the command line, unless torchrun ends it for the status of another
    try:
        check_device(options.device)
        with process_group(options.device):
            lines = train(options)
    except (ValueError, OSError, FloatingPointError) as error:
        if not is_first:
            time.sleep(PATIENCE)  # torchrun ends this process here if the first one has failed, too
        who = "" if is_first else f" of process {os.environ['RANK']}"
        Console(stderr=True).print(f"error{who}: {' '.join(str(error).split())}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        if is_first:
            Console(stderr=True).print("Stopped. The same command goes on from the last checkpoint.")
        return 130
    if is_first:
        Console().print(lines, markup=False, highlight=False, soft_wrap=True)
    return 0


def train(options: Options) -> str:
    """Train to the end; returns what there is to say.

    Raises:
        ValueError: If options do not fit each other, the text or the run that is in the folder.
    """
    processes = Processes()
    _get_text(processes)
    trainer = make(options)  # before the folder is claimed, in case options do not fit each other
    _claim(options, processes)
    trainer.resume()
    done = trainer.step
    trainer.train()
    last = trainer.evaluations[-1]
    nats = last.get("nats", last["loss"])
    before = f" ({done} of them before)" if done else ""
    by = "one process" if processes.size == 1 else f"{processes.size} processes"
    result = f"{nats:.4f} nats per character of the validation text after {trainer.step} steps{before} by {by}"
    return f"{result}\nLogs: tensorboard --logdir {options.folder}"


def make(options: Options) -> Trainer:
    """Return the trainer of the run."""
    form = options.transformer
    coefs = None if form.moe is None else {"balance": options.balance_coef, "router_z": options.router_z_coef}
    task = language_model(
        transformer=form, aux_loss_coefs=coefs, length=options.context, batch_size=options.batch_size, seed=options.seed
    )
    config = TrainerConfig(
        num_steps=options.num_steps,
        log_every=options.log_every,
        eval_every=options.eval_every,
        save_every=options.save_every,
        clip_norm=options.clip_norm,
        precision=options.precision,
        device=options.device,
        seed=options.seed,
        parallel=options.parallel,
        expert_parallel=options.expert_parallel,
    )
    adamw = AdamW(lr=options.lr, betas=(0.9, 0.99), weight_decay=options.weight_decay, decay_matrices_only=True)
    optimizer = adamw if options.optimizer == "adamw" else Adam(lr=options.lr, betas=(0.9, 0.99))
    schedule = WarmupDecay(options.num_steps, warmup_steps=options.warmup_steps)
    return task.trainer(optimizer, config, schedule=schedule, folder=options.folder)


def _get_text(processes: Processes) -> None:
    """Let one process per machine look for the text first, which may have to be downloaded."""
    is_local_first = os.environ.get("LOCAL_RANK", "0") == "0"
    failed = ""
    if is_local_first:
        try:
            load("tiny_shakespeare")
        except (OSError, ValueError) as error:
            failed = str(error)
    failures = [text for text in processes.gather(failed) if text]
    if failures:
        raise ValueError(failures[0])


def _claim(options: Options, processes: Processes) -> None:
    """Write the options into the folder, or refuse a folder with a run of other options."""
    refused = ""
    if processes.is_first:
        path = options.folder / "config.json"
        mine = json.loads(json.dumps(options.fixed))
        if not path.exists():
            options.folder.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".new")
            scratch.write_text(json.dumps(mine, indent=1), encoding="utf-8")
            os.replace(scratch, path)
        else:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            other = [key for key in mine if mine[key] != theirs.get(key)]
            if other:
                refused = f"{other[0]} must be that of the run in {options.folder}, {theirs.get(other[0])}, got {mine[other[0]]}"
    refused = processes.from_first(refused)
    if refused:
        raise ValueError(refused)


if __name__ == "__main__":
    sys.exit(main())
