"""Where the processes of runs are started: on this machine, or on others that share its disk."""

from __future__ import annotations

from rlopt.study.launchers.base import Ended, Launcher, Trial
from rlopt.study.launchers.local import Local

__all__ = ["Ended", "Launcher", "Local", "Trial"]
