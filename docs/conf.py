"""Configuration of the Sphinx site."""

import shutil
from pathlib import Path

import finslerconv

project = "finslerconv"
author = "The finslerconv developers"
copyright = "2026, the finslerconv developers"
version = release = finslerconv.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_copybutton",
    "myst_nb",
]
exclude_patterns = ["_build"]

# The theory notebooks live beside the docs; Sphinx reads what is below its own folder.
here = Path(__file__).parent
shutil.copytree(here.parent / "theory_notebooks", here / "notebooks", dirs_exist_ok=True)

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# automodule lists the members itself.
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"finslerconv {release}"
html_static_path = ["_static"]
