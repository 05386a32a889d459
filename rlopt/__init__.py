"""Tools to study how agents and networks learn: replay, optimizers, networks, agents, and fair comparisons.

Each part is a subpackage that is imported on its own, for instance `rlopt.replay`. Importing `rlopt` itself is cheap:
it loads no subpackage and no numerical library.
"""

from importlib.metadata import version

__all__ = ["__version__"]

__version__: str = version("rlopt")
