"""Print constraints.txt: the exact versions of all packages in the environment that runs this script.

A package whose release does not run on the oldest supported Python gets a marker, so that the older interpreter
resolves it from the ranges of pyproject.toml.

Run in a fresh environment: .venv/bin/python scripts/freeze_constraints.py > constraints.txt
"""

from importlib.metadata import distributions

from packaging.specifiers import SpecifierSet
from packaging.version import Version

OLDEST_PYTHON = (3, 10)
NEWER_PYTHONS = range(11, 16)
NOT_PINNED = {"rlopt", "pip", "setuptools", "wheel"}

HEADER = """\
# Exact versions that the extra `dev` resolves to; used by scripts/_env.sh. The ranges are in pyproject.toml.
# Written by scripts/freeze_constraints.py.
"""


def first_supported_minor(requires_python: str | None) -> int:
    """Return the smallest minor version of Python 3, at least the oldest supported one, that a release runs on."""
    allowed = SpecifierSet(requires_python or "")
    for minor in (OLDEST_PYTHON[1], *NEWER_PYTHONS):
        if allowed.contains(Version(f"3.{minor}.99")):
            return minor
    raise ValueError(f"no supported Python is allowed by {requires_python!r}")


def main() -> None:
    """Write the constraints to standard output."""
    lines = {}
    for distribution in distributions():
        name = distribution.name
        if name.lower() in NOT_PINNED:
            continue
        minor = first_supported_minor(distribution.metadata.get("Requires-Python"))
        marker = "" if minor == OLDEST_PYTHON[1] else f' ; python_version >= "3.{minor}"'
        lines[name.lower()] = f"{name}=={Version(distribution.version).public}{marker}"
    print(HEADER + "\n".join(lines[name] for name in sorted(lines)))


if __name__ == "__main__":
    main()
