"""Configuration of the Sphinx site."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import finslerconv

here = Path(__file__).parent
sys.path.insert(0, str(here / "_extensions"))

project = "finslerconv"
author = "The finslerconv developers"
copyright = "2026, the finslerconv developers"
version = release = finslerconv.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
    "identities",
    "statements",
    "formulas",
    "inventories",
    "see_also",
    "alt_text",
    "short_names",
]
exclude_patterns = ["_build", "_extensions", "_inventories", "_templates"]
templates_path = ["_templates"]

# The theory notebooks live beside the docs; Sphinx reads what is below its own folder.
shutil.copytree(here.parent / "theory_notebooks", here / "notebooks", dirs_exist_ok=True)

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_merge_streams = True  # what a cell prints line by line is one block
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_render_markdown_format = "myst"
# Cells show their pictures through the notebook, whatever the shell draws with.
os.environ.pop("MPLBACKEND", None)
os.environ["MATPLOTLIBRC"] = str(here / "matplotlibrc")
# The cells' pictures are small: threads would cost them more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a cell prints to stderr (progress bars, warnings) is no part of a page.
nb_output_stderr = "remove-warn"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# One parameter a line where a signature is long: shapes are read, not skipped.
maximum_signature_line_length = 88
python_display_short_literal_types = True
# The pages' template lists the members itself.
numpydoc_show_class_members = False

# Theorems and figures are numbered through the site, formulas on their page.
numfig = True
numfig_format = {"theorem": "Theorem %s"}
math_numfig = False

# Every reference must lead somewhere. Of other packages' classes, those that are in _inventories/
# lead to their sites; type variables and private base classes have no pages.
nitpicky = True
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(abc|collections|enum|pathlib|re|typing|types|numpy|torch|jaxtyping|sympy|matplotlib|scipy|skimage|"
        r"rich|typer|dask)(\..+)?",
    ),
    # The names by which our docstrings call some of these.
    (r"py:class", r"(Tensor|ndarray|Array|Figure|Axes|Module|Table)"),
    # What is exported is found under its public name; the rest is private.
    (r"py:class", r"finslerconv\.(\w+\.)*_.+"),
    (r"py:meth", r"_\w+"),
]

# Formulas without a network: the one file of MathJax 3 that fetches no fonts, from a package of
# pip's, goes into the site.
_mathjax = find_spec("sphinx-mathjax-offline")
if _mathjax is None or _mathjax.submodule_search_locations is None:
    raise ImportError('the site needs the "docs" extra: pip install -e ".[docs]"')
_mathjax_folder = Path(_mathjax.submodule_search_locations[0]) / "static" / "mathjax"
mathjax_path = "tex-svg.js"

html_theme = "furo"
html_title = f"finslerconv {release}"
html_static_path = ["_static", str(_mathjax_folder / mathjax_path)]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
# Pages whose pictures are drawn by their own cells show no prompts to copy.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"

# External links are listed by "sphinx-build -b linkcheck", never fetched by a build.
linkcheck_timeout = 15
