"""Checkpoints of an agent on several processes: one folder for each, and all go on from the same step."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch as th
import torch.distributed as dist
from stable_baselines3.common.base_class import BaseAlgorithm

from rlopt.agents.checkpoints import Checkpoints, read_agent
from rlopt.files.checkpoint import read_manifest


class CheckpointsOfProcesses(Checkpoints):
    """The checkpoints of one of several processes, in `process_<rank>` of a folder that need not be shared.

    All processes have to make and use it together. They go on from the newest checkpoint that all of them can read; a signal to one
    of them ends all.

    Args:
        common: What `learn` was given.

    Raises:
        ValueError: If the folder was written by another number of processes.
    """

    def __init__(self, common: Checkpoints) -> None:
        rank, size = dist.get_rank(), dist.get_world_size()
        super().__init__(common.folder / f"process_{rank}", common.every, common.keep)
        found = [sorted(path.name for path in common.folder.glob("process_*"))]
        dist.broadcast_object_list(found)  # nobody has made a folder before all are here
        if found[0] and len(found[0]) != size and common.folder.is_dir():
            raise ValueError(
                f"checkpoints in {common.folder} are those of {len(found[0])} processes, got {size}: start as many, or take "
                f"another folder."
            )

    def read(self) -> tuple[Path, dict[str, Any]] | None:
        """Path and state of the newest checkpoint that all processes can read, None if nobody has one.

        Raises:
            ValueError: If there are checkpoints and none that all can read.
        """
        good = {}
        for path in self.paths():
            try:
                good[read_manifest(path, "agent")["num_timesteps"]] = path
            except ValueError as error:
                warnings.warn(f"{error} An earlier one is used.", stacklevel=3)
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (bool(self.paths()), sorted(good)))
        common = set.intersection(*(set(steps) for _, steps in everyone))
        if not common:
            if any(some for some, _ in everyone):
                raise ValueError(
                    f"no checkpoint in {self.folder.parent} can be read by all processes: move them away to start again."
                )
            return None
        path = good[max(common)]
        self._damaged = [other for other in self.paths() if other.name > path.name]
        return path, read_agent(path)

    def visit(self, agent: BaseAlgorithm) -> None:
        """Write a checkpoint if it is time, or if a signal to any of the processes asks for the end."""
        device = agent.device if dist.get_backend() == "nccl" else th.device("cpu")
        received = th.tensor(self._signal or 0, device=device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        self._signal = int(received.item()) or None
        super().visit(agent)
