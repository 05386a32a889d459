"""Tools to study how agents and networks learn: replay, optimizers, networks, agents, and fair comparisons.

Each part is a subpackage that is imported on its own, for instance `rlopt.replay`. Importing `rlopt` itself is cheap:
it loads no subpackage and no numerical library. `rlopt.load` reads any file that rlopt wrote; see `rlopt.files.load`.
"""

from importlib.metadata import version
from typing import Any

__all__ = ["__version__", "load"]

__version__: str = version("rlopt")


def __getattr__(name: str) -> Any:
    if name == "load":
        from rlopt.files import load

        return load
    raise AttributeError(f"module 'rlopt' has no attribute {name!r}")
