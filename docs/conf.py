"""Sphinx configuration. The API pages are written when a build starts, one per public package."""

import importlib
import pkgutil
import re
from pathlib import Path

from sphinx.application import Sphinx

import rlopt
import rlopt_envs

project = "rlopt"
author = "The rlopt authors"
copyright = "2026, The rlopt authors"
version = release = rlopt.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"rlopt {release}"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_inherit_docstrings = False  # Those of the base libraries are written in other formats.
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # Each field of a named tuple appears once.

# Single backticks in docstrings are code.
default_role = "code"


# Modules of functions that their package does not re-export.
FUNCTION_MODULES = {"rlopt_envs": ("riccati", "kalman", "ar_chain")}


def write_api_pages(folder: Path) -> None:
    """Write a page per public subpackage of rlopt, one for rlopt_envs, and the index that lists them."""
    folder.mkdir(exist_ok=True)
    rooms = [f"rlopt.{m.name}" for m in pkgutil.iter_modules(rlopt.__path__) if m.ispkg and not m.name.startswith("_")]
    pages = {"index.md": "# API\n\n```{toctree}\n:glob:\n\nrlopt*\n```\n"}
    for name in [*rooms, rlopt_envs.__name__]:
        importlib.import_module(name)  # A package that cannot be imported stops the build here, with its own error.
        modules = [name, *(f"{name}.{module}" for module in FUNCTION_MODULES.get(name, ()))]
        directive = "\n".join(f".. automodule:: {module}\n   :members:\n   :show-inheritance:\n" for module in modules)
        pages[f"{name}.md"] = f"# {name}\n\n```{{eval-rst}}\n{directive}```\n"
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


# Bars of |x|, which would name a substitution, and the star of a shape (B, *obs_shape), which would begin emphasis.
LITERAL = re.compile(r"(?<!\\)(\||(?<![\w*])\*(?=\w+[,) ]))")
# Lines of tables and of examples.
VERBATIM = re.compile(r"\s*([|+]([-= ]|$)|>>>|\.\.\.)")


def escape_formulas(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep what is meant literally in the formulas and shapes of docstrings."""
    for i, line in enumerate(lines):
        if not VERBATIM.match(line):
            parts = line.split("`")
            parts[::2] = [LITERAL.sub(r"\\\1", part) for part in parts[::2]]  # outside of code
            lines[i] = "`".join(parts)


def setup(app: Sphinx) -> None:
    """Connect the hook and write the API pages."""
    app.connect("autodoc-process-docstring", escape_formulas)
    write_api_pages(Path(app.srcdir) / "api")
