"""The grid of a study: the runs that tasks, variants and seeds make."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlopt.study.task import Task


@dataclass(frozen=True)
class Run:
    """One variant on one task with one seed.

    Args:
        folder: Where its files go.
        config: Everything that determines its result, `task`, `variant` and `seed` included; JSON values only.
        total_steps: Steps it will take.
    """

    folder: Path
    config: Mapping[str, Any]
    total_steps: int

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.config["task"])

    @property
    def variant(self) -> str:
        """Name of the variant."""
        return str(self.config["variant"])

    @property
    def seed(self) -> int:
        """The seed."""
        return int(self.config["seed"])

    def __str__(self) -> str:
        return f"{self.task} / {self.variant} / seed {self.seed}"


def expand(folder: Path, tasks: Sequence[Task], variants: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> list[Run]:
    """Return the runs of a grid, all tasks and variants of the first seed before those of the second.

    In this order the variants progress evenly: a study stopped at any time is a fair comparison of fewer seeds.

    Raises:
        ValueError: If the grid is empty, a name or seed occurs twice, or a config cannot be written as JSON or has a key that
            belongs to the study.
    """
    axes = {"tasks": [task.name for task in tasks], "variants": list(variants), "seeds": [str(seed) for seed in seeds]}
    for what, names in axes.items():
        if not names:
            raise ValueError(f"{what} must not be empty, got none")
        doubles = [name for name in names if names.count(name) > 1]
        if doubles:
            raise ValueError(f"{what} must differ from each other, got {doubles[0]} more than once")
    for seed in seeds:
        if seed < 0:
            raise ValueError(f"seeds must be >= 0, got {seed}")
    runs = []
    for seed in seeds:
        for task in tasks:
            for variant, options in variants.items():
                own = {"task": task.name, "variant": variant, "seed": seed}
                for key in own:
                    if key in task.config or key in options:
                        raise ValueError(
                            f"config of {task.name} / {variant} must have no key {key!r}, which belongs to the study; rename it"
                        )
                config = {**own, **task.config, **options}
                place = folder / folder_name(task.name) / folder_name(variant) / f"seed_{seed}"
                runs.append(Run(place, plain(config, f"config of {task.name} / {variant}"), task.total_steps))
    if len({run.folder for run in runs}) < len(runs):
        raise ValueError("names of tasks and of variants must differ in more than '/' and '-', they share a folder now")
    return runs


def groups_of(runs: Iterable[Run], size: int) -> list[list[Run]]:
    """Return the runs in groups of one task and variant each, which one process can do together.

    A group has `size` runs, the last one of a task and variant what is left; groups are in the order of their first runs.

    Args:
        runs: Runs in any order, which is kept in the groups.
        size: Most runs of a group, >= 1.
    """
    groups: list[list[Run]] = []
    open_groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        key = (run.task, run.variant)
        if key not in open_groups or len(open_groups[key]) == size:
            open_groups[key] = []
            groups.append(open_groups[key])
        open_groups[key].append(run)
    return groups


def name_of(group: Sequence[Run]) -> str:
    """Return what a group of runs is called, for instance `CartPole-v1 / uniform / seeds 0, 1, 2`."""
    if len(group) == 1:
        return str(group[0])
    return f"{group[0].task} / {group[0].variant} / seeds {', '.join(str(run.seed) for run in group)}"


def part_of(runs: Sequence[Run], number: int, count: int, stack_seeds: int = 1) -> list[Run]:
    """Return one of `count` parts of the runs, in their order.

    The parts are disjoint, together they are all runs, their sizes differ by `stack_seeds` at most, and each has about its share of
    every variant, task and seed. They depend on nothing but these arguments, so that every machine finds the same ones.

    Args:
        runs: The runs of a grid.
        number: Which part, 1, ..., `count`.
        count: Parts, >= 1.
        stack_seeds: Runs of one task and variant that stay together, those of `groups_of`.

    Raises:
        ValueError: If the number or the count is out of its range.
    """
    if not 1 <= number <= count:
        raise ValueError(f"shard must be I/N with 1 <= I <= N, got {number}/{count}")
    sizes = [0] * count
    shares: list[Counter[Any]] = [Counter() for _ in range(count)]  # of what a part has how many
    found: set[Path] = set()
    for group in groups_of(runs, stack_seeds):
        task, variant = group[0].task, group[0].variant
        features = [(task, variant), ("variant", variant), ("task", task)]
        part = min(range(count), key=lambda i: (sizes[i], *(shares[i][feature] for feature in features)))
        sizes[part] += len(group)
        shares[part].update(features)
        if part == number - 1:
            found.update(run.folder for run in group)
    return [run for run in runs if run.folder in found]


def folder_name(name: str) -> str:
    """Return the folder of a task or variant: its name, with `-` for characters that separate folders."""
    clean = name.replace("/", "-").replace("\\", "-").strip()
    if clean in ("", ".", ".."):
        raise ValueError(f"a task or variant must have a name that can be a folder, got {name!r}")
    return clean


def plain(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the config as JSON gives it back (tuples become lists), so that written and requested ones compare.

    Raises:
        ValueError: If a value is not a number, text, boolean, None, or a list or mapping of these.
    """
    try:
        return dict(json.loads(json.dumps(config, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must hold JSON values only: {error}") from None


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the dotted name of the first field that differs, and both values as text; None if all are equal."""
    left, right = dict(_flatten(old)), dict(_flatten(new))
    for name in [*right, *(name for name in left if name not in right)]:
        if name not in left or name not in right or left[name] != right[name]:
            shown = [json.dumps(side[name]) if name in side else "absent" for side in (left, right)]
            return name, shown[0], shown[1]
    return None


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
