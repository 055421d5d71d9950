"""Sphinx: the pages in this folder, and the API reference out of the docstrings. `make docs` builds them."""

from __future__ import annotations

import sys
from pathlib import Path

import genmod

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "genmod"
author = "the genmod authors"
copyright = "the genmod authors, Apache-2.0"
release = version = genmod.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_parser",
    "genmod_family",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "tutorials"]
html_theme = "furo"
html_title = f"genmod {release}"

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
# Links from a page into the source tree are for readers of the repository; on the site they stay plain text.
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_type_aliases = {"Tensor": "torch.Tensor"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape"]
default_role = "code"  # docstrings put code in single backticks
