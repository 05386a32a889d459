"""Machines of a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlopt.study.launchers import carrier
from rlopt.study.launchers.base import Ended, Start
from rlopt.study.launchers.environment import worker_command, worker_environment


@dataclass(frozen=True)
class Ray:
    """Starts runs as tasks of a Ray cluster, whose machines share the disk and the Python installation with this one.

    Each task starts the same process as the local launcher does and waits for it. So a run is the same wherever it goes, Ray's own
    processes never carry the state of an earlier run, and how a run ended is known even if it was killed. Ray is not asked to
    repeat tasks: that is done as for every launcher, from the checkpoint.

    Raises:
        ValueError: If a field is out of its range.
    """

    address: str | None = None
    """Address of the cluster: HOST:PORT, ray://HOST:PORT, auto (the one of this machine), local (a new one, of this machine alone).
    By default the one that the variable RAY_ADDRESS names or that runs on this machine, otherwise a new one."""
    cpus: float = 1.0
    """Cores that a run is counted with, > 0; it uses one thread."""
    gpus: float = 0.0
    """GPUs that a run is counted with, >= 0; without any it sees none."""
    memory: float | None = None
    """Memory that a run is counted with in GiB, > 0; by default it is not counted."""

    def __post_init__(self) -> None:
        _check_resources(self)

    @property
    def grace_seconds(self) -> float:
        """How long a process that was told to stop may take."""
        return 30.0

    @contextlib.contextmanager
    def connect(self, folder: Path) -> Iterator[Start]:
        """Connect to the cluster, or start one, and return what starts a worker; a cluster that was started here ends with it."""
        check_installed()
        import ray

        connected = not ray.is_initialized()
        if connected:
            _connect(self.address)
        try:
            ray.cloudpickle.register_pickle_by_value(carrier)  # type: ignore[no-untyped-call]
            needs: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
            if self.memory is not None:
                needs["memory"] = int(self.memory * 2**30)
            carry = ray.remote(max_retries=0, **needs)(carrier.carry)

            def start(arguments: Sequence[str]) -> RayTrial:
                return RayTrial(carry.remote(worker_command(arguments), worker_environment(), os.getcwd(), self.grace_seconds))

            yield start
        finally:
            if connected:
                ray.shutdown()


class RayTrial:
    """A task of a Ray cluster."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def poll(self) -> Ended | None:
        """Return how the process ended, None while it has not."""
        import ray

        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return Ended(*ray.get(self._reference))
        except ray.exceptions.RayError as error:
            first_sentence = " ".join(str(error).split()).partition(". ")[0]
            return Ended(None, f"{type(error).__name__}: {first_sentence[:200]}")

    def stop(self) -> None:
        """Take the task out of the queue, or interrupt it."""
        import ray

        ray.cancel(self._reference)

    def kill(self) -> None:
        """End the process at once."""
        import ray

        ray.cancel(self._reference, force=True)


def check_installed() -> None:
    """Import Ray.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise ImportError("ray must be installed for the launcher ray, but is not: pip install 'rlopt[ray]'.") from error


def _connect(address: str | None) -> None:
    """Connect to a cluster.

    Raises:
        ValueError: If there is none at the address.
    """
    import ray

    named = address or os.environ.get("RAY_ADDRESS")
    host, separator, port = (named or "").rpartition(":")
    if separator and port.isdigit() and not host.startswith("ray:"):
        try:  # Ray itself waits for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ValueError(f"address must be that of a running Ray cluster, got {named}: {error}") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address != "local":
        try:
            ray.init(address=address or "auto", **quiet)
            return
        except ConnectionError as error:
            if named is not None:
                raise ValueError(f"address must be that of a running Ray cluster, got {named}: {error}") from None
    ray.init(address="local", include_dashboard=False, **quiet)


def _check_resources(options: Ray) -> None:
    for name, value in (("cpus", options.cpus), ("memory", options.memory)):
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be > 0, got {value}")
    if options.gpus < 0:
        raise ValueError(f"gpus must be >= 0, got {options.gpus}")
