"""Machines of a Slurm cluster."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlopt.study.files import read_json
from rlopt.study.launchers import carrier
from rlopt.study.launchers.base import Ended, Start
from rlopt.study.launchers.environment import worker_command, worker_environment


@dataclass(frozen=True)
class Slurm:
    """Starts each run as a job of a Slurm cluster, whose machines share the disk and the Python installation with this one.

    A job that reaches its time limit or has to make room for another one is told 90 seconds before; the run saves its state, ends,
    and counts as stopped from outside: it is submitted again and goes on.

    Raises:
        ValueError: If a field is out of its range.
    """

    partition: str | None = None
    """Partition of the jobs; by default that of the cluster."""
    account: str | None = None
    """Account of the jobs; by default that of the user."""
    qos: str | None = None
    """Quality of service of the jobs; by default that of the user."""
    time: int = 24 * 60
    """Time limit of a job in minutes, > 0."""
    memory: float = 4.0
    """Memory of a job in GiB, > 0."""
    cpus: int = 1
    """Cores of a job, > 0; a run uses one thread."""
    gpus: int = 0
    """GPUs of a job, >= 0."""
    cluster: Literal["slurm", "local"] = "slurm"
    """slurm, or local: jobs are processes of this machine, to try it out."""

    def __post_init__(self) -> None:
        for name in ("time", "memory", "cpus"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.gpus < 0:
            raise ValueError(f"gpus must be >= 0, got {self.gpus}")

    @property
    def grace_seconds(self) -> float:
        """How long a process that was told to stop may take; Slurm itself kills a cancelled job after 30 seconds, usually."""
        return 30.0

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[Start]:
        """Return what submits a worker; logs of jobs that were lost or stopped stay in `.slurm` in the folder of the study."""
        check_installed()
        import cloudpickle
        import submitit

        cloudpickle.register_pickle_by_value(carrier)
        place = folder.absolute() / ".slurm" / uuid.uuid4().hex
        try:
            executor = submitit.AutoExecutor(place, cluster=self.cluster)
        except RuntimeError as error:
            raise ValueError(f"the launcher slurm must be used where sbatch and srun are, got: {error}") from None
        executor.update_parameters(
            name=folder.name,
            timeout_min=self.time,
            mem_gb=self.memory,
            cpus_per_task=self.cpus,
            gpus_per_node=self.gpus,
            **{f"slurm_{name}": value for name in ("partition", "account", "qos") if (value := getattr(self, name)) is not None},
        )

        place.mkdir(parents=True, exist_ok=True)
        trials: list[SlurmTrial] = []

        def start(arguments: Sequence[str]) -> SlurmTrial:
            outcome = place / f"outcome_{len(trials)}.json"
            command, environment = worker_command(arguments), worker_environment()
            job = executor.submit(carrier.carry_and_note, command, environment, os.getcwd(), self.grace_seconds * 0.8, str(outcome))
            trials.append(SlurmTrial(job, outcome))
            return trials[-1]

        yield start
        if all(trial.is_known for trial in trials):
            shutil.rmtree(place)
            with contextlib.suppress(OSError):
                place.parent.rmdir()  # unless another command uses it


class SlurmTrial:
    """A job of a Slurm cluster."""

    def __init__(self, job: Any, outcome: Path) -> None:
        self._job, self._outcome = job, outcome
        self.is_known = False  # how it ended

    def poll(self) -> Ended | None:
        """Return how the process ended, None while it has not."""
        if not self._job.done():
            return None
        if not self._outcome.exists():
            return Ended(None, f"job {self._job.job_id}, {self._job.state}, see {self._job.paths.stderr}")
        self.is_known = True
        outcome = read_json(self._outcome)
        return Ended(outcome["code"], outcome["text"])

    def stop(self) -> None:
        """Take the job out of the queue, or tell it to end."""
        self._job.cancel(check=False)

    def kill(self) -> None:
        """Leave the process to Slurm, which has been told to end it."""


def check_installed() -> None:
    """Import submitit.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ImportError("submitit must be installed for the launcher slurm, but is not: pip install 'rlopt[slurm]'.") from error
