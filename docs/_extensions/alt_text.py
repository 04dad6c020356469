"""Every picture of the site is there, and has a text for those who cannot see it."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

logger = logging.getLogger(__name__)


def check(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Warn of each picture of a page without alternative text, and of figures shown as text."""
    for text in document.findall(nodes.literal_block):
        # The cell never imported pyplot, so that nothing knew how to draw it.
        if text.astext().startswith("<Figure size"):
            logger.warning("figure shown as text", location=(docname, text.line))
    for picture in document.findall(nodes.image):
        # What a cell draws is called by its cell's number unless the cell names it.
        if not picture.get("alt", "").strip():
            logger.warning("picture without alternative text", location=(docname, picture.line))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Look at every page once its cells' outputs are in it."""
    app.connect("doctree-resolved", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
