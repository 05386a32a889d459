"""Where the processes of runs are started: on this machine, or on others that share its disk."""

from __future__ import annotations

from rlopt.study.launchers.base import Ended, Launcher, Start, Trial
from rlopt.study.launchers.local import Local
from rlopt.study.launchers.ray import Ray
from rlopt.study.launchers.slurm import Slurm

LAUNCHERS: dict[str, type[Local] | type[Ray] | type[Slurm]] = {"local": Local, "ray": Ray, "slurm": Slurm}

__all__ = ["LAUNCHERS", "Ended", "Launcher", "Local", "Ray", "Slurm", "Start", "Trial"]


def make_launcher(launcher: str | Launcher) -> Launcher:
    """Return the launcher of a name, with its standard options; a launcher is returned as it is.

    Raises:
        ValueError: If there is none of that name.
    """
    if not isinstance(launcher, str):
        return launcher
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}, got {launcher}")
    return LAUNCHERS[launcher]()
