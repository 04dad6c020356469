"""The page of an object ends with its neighbours, and with the pages that explain it.

Both are read from the package's page: the objects of the same group, and the links of the
paragraph beneath the package's description.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.typing import ExtensionMetadata

#: A summary table, with the package to which its names belong.
GROUP = re.compile(r"\.\. currentmodule:: (\S+)\n\.\. autosummary::\n[^`]*?\n\n((?:   \S+\n)+)")
LINK = re.compile(r"\[([^\]]+)\]\((\S+?)\.md(?:#\S+)?\)")


def entries(page: Path) -> dict[str, str]:
    """Return the last lines of the pages of a package's objects, as reStructuredText."""
    text = page.read_text(encoding="utf-8")
    above = text.split("\n## ")[0]
    explained = [f":doc:`{words} </{target(page, to)}>`" for words, to in LINK.findall(above)]
    found = {}
    for package, lines in GROUP.findall(text.replace("\n\n.. autosummary", "\n.. autosummary")):
        names = lines.split()
        for name in names:
            beside = [f":py:obj:`~{package}.{other}`" for other in names if other != name]
            found[f"{package}.{name}"] = ", ".join([*beside, *explained])
    return found


def target(page: Path, link: str) -> str:
    """Return the name of the page to which a link of another one leads."""
    docs = page.parents[1]
    return (page.parent / link).resolve().relative_to(docs.resolve()).as_posix()


def read(app: Sphinx, config: Config) -> None:
    """Give the template what it writes."""
    see = {}
    for page in sorted((Path(app.srcdir) / "reference").glob("*.md")):
        see |= entries(page)
    config.autosummary_context["see"] = see


def setup(app: Sphinx) -> ExtensionMetadata:
    """Come before autosummary writes the pages."""
    app.connect("config-inited", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
