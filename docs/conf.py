import os

import thalweg

project = "thalweg"
author = "the thalweg authors"
copyright = "the thalweg authors"
release = version = thalweg.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

default_role = "py:obj"  # docstrings name things in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# The build must not fail without a network: other projects' names are linked only when asked for.
intersphinx_mapping = {}
if os.environ.get("THALWEG_INTERSPHINX"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

html_theme = "furo"
html_title = f"thalweg {release}"
html_static_path = ["_static"]


def _keep_formulas(app, what, name, obj, options, lines):
    """Show indented formulas as they stand, and |x| as bars: reStructuredText would take those for substitutions."""
    shown, formula = [], False
    for before, line in zip(["", *lines], lines, strict=False):
        text = line.lstrip()
        if text and not line.startswith("    "):
            formula = False
        elif text and not before.strip() and not formula and shown and not shown[-2].startswith((" ", ":")):
            formula = True
            shown += ["::", ""]
        keep = formula or "``" in line or text.startswith((">>>", "..."))
        shown.append(line if keep else line.replace("|", r"\|"))
    lines[:] = shown


def setup(app):
    app.connect("autodoc-process-docstring", _keep_formulas)
