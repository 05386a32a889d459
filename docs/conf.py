"""Sphinx configuration. The API pages are written when a build starts, one per public package."""

import importlib
import pkgutil
from pathlib import Path

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

# Single backticks in docstrings are code.
default_role = "code"


def write_api_pages(folder: Path) -> None:
    """Write a page per public subpackage of rlopt, one for rlopt_envs, and the index that lists them."""
    folder.mkdir(exist_ok=True)
    rooms = [f"rlopt.{m.name}" for m in pkgutil.iter_modules(rlopt.__path__) if m.ispkg and not m.name.startswith("_")]
    pages = {"index.md": "# API\n\n```{toctree}\n:glob:\n\nrlopt*\n```\n"}
    for name in [*rooms, rlopt_envs.__name__]:
        importlib.import_module(name)  # A package that cannot be imported stops the build here, with its own error.
        directive = f".. automodule:: {name}\n   :members:\n   :show-inheritance:\n"
        pages[f"{name}.md"] = f"# {name}\n\n```{{eval-rst}}\n{directive}```\n"
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


write_api_pages(Path(__file__).parent / "api")
