"""Sphinx's settings. ``make docs`` builds the pages of the installed fastopt; nothing here asks the network."""

import doctest
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import fastopt

project = "fastopt"
author = "fastopt developers"
copyright = author
version = release = fastopt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "numpydoc",
    "from_fastopt",
]
exclude_patterns = ["_build", "_generated"]
nitpicky = True
default_role = "py:obj"
highlight_language = "none"  # of formulas in docstrings; fences say theirs

# What Sphinx says in lists of classes that are documented under the names of the package.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
add_module_names = False
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
viewcode_line_numbers = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_title = f"fastopt {version}"
html_static_path = ["_static"]
html_css_files = ["fastopt.css"]
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

# Messages of errors are part of the examples; "..." stands for what is too long for a line.
doctest_default_flags = doctest.ELLIPSIS
