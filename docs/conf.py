"""How these pages are built: pip install '.[docs]', then python -m sphinx -W docs docs/_build."""

import importlib
import inspect
import re

import hsjax

project = "hsjax"
author = "the hsjax authors"
version = release = hsjax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

# What GitHub renders: $...$, ```math blocks and links to headings.
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
default_role = "py:obj"  # `cosines` in a docstring is a link

html_theme = "furo"
html_title = "hsjax"


def name_array_like(app, what, name, obj, options, signature, returns):
    """Signatures say ArrayLike, not the union it stands for."""
    union = r"~?[\w.]*Array \| [^,)=]*\bcomplex"
    return (re.sub(union, "ArrayLike", signature), returns) if signature else None


def describe_fields(app, what, name, obj, options, lines):
    """A field of a NamedTuple is described by the comment beside it."""
    if lines and lines[0].startswith("Alias for field number"):
        module, owner, field = name.rsplit(".", 2)
        source = inspect.getsource(getattr(importlib.import_module(module), owner))
        beside = re.search(rf"^    {field}: .*?  # (?:type: ignore\S*  # )?(.*)$", source, re.M)
        lines[:] = [beside[1] if beside else ""]


def setup(app):
    """Connect the two above."""
    app.connect("autodoc-process-signature", name_array_like)
    app.connect("autodoc-process-docstring", describe_fields)
