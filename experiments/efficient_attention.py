"""What does cheaper attention cost in quality? Small transformers with many kinds of attention, against operations and time.

Two tasks for each length: Tiny Shakespeare (validation loss in nats per character), and associative recall of pairs that are spread
over the whole length, where accuracy is 1 with a perfect memory and 1 / num_values without any. Next to the usual report, which has
training time, the study writes efficiency.md, efficiency.csv and a figure for each task: quality against counted operations and
measured time of attention in a forward pass. The runs go to RUNS/NAME. A study can be stopped at any time; the same command goes on
where it stopped, and seeds, lengths or kinds can be added later under the same name.

Examples:
    python experiments/efficient_attention.py --preset quick
    python experiments/efficient_attention.py --attentions softmax tree_tf tree_tc tree_tf_bootstrap tree_tc_bootstrap
    python experiments/efficient_attention.py --lengths 256 1024 4096 16384 --tokens-per-step 65536 --num-steps 3000 --device cuda
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from _checks import check_device, hint
from _command import Jobs, Machines, parse_with_presets, run_command
from _efficient_attention_report import write_efficiency
from _efficient_attention_training import KINDS, TASKS
from tyro.conf import arg

from rlopt.data import load
from rlopt.study import Costs, Task
from rlopt.study.grid import folder_name

PresetName = Literal["standard", "quick"]


@dataclass(frozen=True)
class AttentionStudy:
    """Options of the comparison."""

    preset: PresetName = "standard"
    """standard: 512 tokens, three seeds, for a CPU. quick: a tiny model on 64 tokens, a minute."""
    tasks: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = ("text", "recall")
    """Tasks: text (Tiny Shakespeare), recall (values of keys that are spread over the length)."""
    attentions: Annotated[tuple[str, ...], arg(metavar="NAME [NAME ...]")] = (
        "softmax", "favor+", "favor++", "linear", "decay", "tree_tf", "tree_tc", "tree_tf_bootstrap", "tree_tc_bootstrap",
    )  # fmt: skip
    """Kinds: softmax and relu (exact), favor+ and favor++ (random features), linear (ELU + 1), decay and toeplitz (the same with
    weights of distances, falling or learned), tree_tf and tree_tc (softmax in a leaf, means on a path), both also with _bootstrap
    (training begins with softmax), tree_tf_all_pairs (the tree also learns from pairs that it separates). The baseline of the
    comparison is softmax if it is there, else the first."""
    lengths: Annotated[tuple[int, ...], arg(metavar="INT [INT ...]")] = (512,)
    """Lengths of sequences, > 1; each is a task of its own."""
    num_steps: int = 300
    """Steps of a run, > 0."""
    warmup_steps: int = 30
    """Steps in which the learning rate rises from 0, in [0, num_steps); then it falls to 0, linearly."""
    learning_rate: float = 5e-3
    """Of AdamW, > 0."""
    tokens_per_step: int = 2048
    """Tokens of a step, > 0: so many sequences of a length as fit, at least one."""
    eval_tokens: int = 32768
    """Tokens of an evaluation, > 0, likewise."""
    num_evaluations: int = 5
    """Evaluations of a run, > 0, at equal distances."""
    num_layers: int | None = None
    """Layers, > 0; None: 2 for text, 1 for recall."""
    num_heads: int = 2
    """Heads of the attention, > 0; they divide width."""
    width: int = 64
    """Width of the residual stream, > 0."""
    num_features: int = 64
    """Random features of favor+ and favor++, > 0."""
    height: int | None = None
    """Height of trees, > 0; None: leaves of a balanced tree hold 32 to 63 tokens."""
    dense_share: float = 0.4
    """Share of the steps with exact attention before trees come with _bootstrap, in [0, 1)."""
    growing_share: float = 0.3
    """Share of the steps in which they then come and grow, > 0; at most 1 together with dense_share."""
    num_pairs: int = 32
    """Pairs of key and value in recall, > 0; all are asked for at the end."""
    num_values: int = 4
    """Different values in recall, > 1."""
    device: str = "cpu"
    """PyTorch device of the training."""
    seeds: int = 3
    """Initial weights and training data, > 0; seeds 0, 1, ..."""
    jobs: Jobs = None
    """Runs at a time, > 0, each in a process with one thread."""
    machines: Annotated[Machines, arg(name="")] = field(default_factory=Machines)
    """Where the runs are."""
    output: Annotated[Path, arg(metavar="RUNS")] = Path("runs")
    """Folder of all studies."""
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: made of the options)")] = None
    """Name of this study, its folder in RUNS."""

    def __post_init__(self) -> None:
        for option in (
            *(
                "num_steps",
                "learning_rate",
                "tokens_per_step",
                "eval_tokens",
                "num_evaluations",
                "num_layers",
                "num_heads",
                "width",
            ),
            *("num_features", "height", "num_pairs", "seeds", "jobs"),
        ):
            value = getattr(self, option)
            if value is not None and not value > 0:
                raise ValueError(f"{option} must be > 0, got {value}")
        if self.num_values < 2:
            raise ValueError(f"num_values must be > 1, got {self.num_values}")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width = {self.width}, got {self.num_heads}")
        if not 0 <= self.warmup_steps < self.num_steps:
            raise ValueError(f"warmup_steps must be in [0, num_steps = {self.num_steps}), got {self.warmup_steps}")
        if not (0.0 <= self.dense_share < 1.0 and 0.0 < self.growing_share <= 1.0 - self.dense_share):
            raise ValueError(
                "dense_share must be in [0, 1) and growing_share > 0, at most 1 together, "
                f"got {self.dense_share} and {self.growing_share}"
            )
        if self.name is not None and self.name != folder_name(self.name):
            raise ValueError(f"name must be one folder without '/' and spaces around it, got {self.name!r}")
        for option, known in (("tasks", TASKS), ("attentions", KINDS)):
            names = getattr(self, option)
            doubles = [name for name in names if names.count(name) > 1]
            if doubles or not names:
                raise ValueError(f"{option} must be different names, got {doubles[0] + ' twice' if doubles else 'none'}")
            for name in names:
                if name not in known:
                    raise ValueError(f"{option} must be among {', '.join(known)}, got {name}{hint(name, known)}")
        if not self.lengths or len(set(self.lengths)) < len(self.lengths) or min(self.lengths) < 2:
            raise ValueError(f"lengths must be one or more different numbers > 1, got {self.lengths or 'none'}")
        if "recall" in self.tasks and min(self.lengths) < 2 * self.num_pairs:
            raise ValueError(f"lengths must be >= 2 * num_pairs = {2 * self.num_pairs} with recall, got {min(self.lengths)}")


# Name -> what it is, and its options.
PRESETS: dict[PresetName, tuple[str, AttentionStudy]] = {
    "standard": ("512 tokens on a CPU", AttentionStudy()),
    "quick": (
        "a tiny model on 64 tokens",
        AttentionStudy(
            "quick", attentions=("softmax", "favor+", "tree_tf", "tree_tc_bootstrap"), lengths=(64,), num_steps=60, warmup_steps=6,
            tokens_per_step=1024, eval_tokens=4096, num_evaluations=2, num_layers=1, width=32, num_features=32, height=2,
            num_pairs=4, seeds=1,
        ),
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return an exit status; an error is one line."""
    folders: list[Path] = []

    def remember(given: Sequence[str]) -> dict[str, Any]:
        options = prepare(given)
        folders.append(options["folder"])
        return options

    status = run_command(remember, arguments)
    if status in (0, 1):
        print(f"Quality, operations and time: {write_efficiency(folders[0])}")
    return status


def prepare(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn the command line into a study.

    Raises:
        ValueError: If the text is nowhere to be found, or the device is not there.
    """
    study = parse(arguments)
    check_device(study.device)
    if "text" in study.tasks:
        load("tiny_shakespeare")
    return {
        "function": f"{Path(__file__).resolve().parent / '_efficient_attention_training.py'}:train",
        "tasks": [make_task(study, name, length) for length in study.lengths for name in study.tasks],
        "variants": {name: {"attention": name} for name in study.attentions},
        "seeds": study.seeds,
        "folder": study.output / (study.name or default_name(study)),
        "baseline": "softmax" if "softmax" in study.attentions else study.attentions[0],
        "jobs": study.jobs,
        "machines": study.machines,
    }


def parse(arguments: Sequence[str]) -> AttentionStudy:
    """Read the command line; what is not given comes from the preset."""
    return parse_with_presets(AttentionStudy, PRESETS, "standard", arguments, __doc__)


def make_task(study: AttentionStudy, name: str, length: int) -> Task:
    """Return a task at a length."""
    own = {"preset", "tasks", "attentions", "lengths", "learning_rate", "seeds", "jobs", "machines", "output", "name"}
    config = {entry.name: getattr(study, entry.name) for entry in fields(study) if entry.name not in own}
    config |= {"task_kind": name, "length": length, "lr": study.learning_rate}
    if study.num_layers is None:
        config["num_layers"] = TASKS[name].num_layers
    shared: dict[str, Any] = {"step_name": "steps", "final_evaluations": 1, "costs": Costs("steps", "time/cpu_seconds")}
    if name == "recall":
        chance = 1.0 / study.num_values
        return Task(f"recall_{length}", study.num_steps, config, chance, 1.0, score_name="recall accuracy", **shared)
    return Task(
        f"tiny_shakespeare_{length}",
        study.num_steps,
        {**config, "data": "tiny_shakespeare"},
        goal="minimize",
        score_name="validation loss, nats per character",
        **shared,
    )


def default_name(study: AttentionStudy) -> str:
    """Return a name that tells what differs from the preset, so that different studies get different folders."""
    default = PRESETS[study.preset][1]
    shared = {"preset", "tasks", "attentions", "lengths", "seeds", "jobs", "machines", "output", "name"}
    parts = [
        f"{field.name}={getattr(study, field.name)}"
        for field in fields(study)
        if field.name not in shared and getattr(study, field.name) != getattr(default, field.name)
    ]
    return folder_name("_".join(["efficient_attention", study.preset, *parts]))


if __name__ == "__main__":
    sys.exit(main())
