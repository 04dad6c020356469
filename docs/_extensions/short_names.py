"""A bare name in a docstring or a signature leads to the one public object that is called so.

Annotations of classes that are imported for type checkers only, and methods that a class inherits,
come without their package; Python's own rules do not find them.
"""

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata

#: What the docstrings call by a short name, and intersphinx by its full one.
ELSEWHERE = {
    "Tensor": "torch.Tensor",
    "ndarray": "numpy.ndarray",
    "Axes": "matplotlib.axes.Axes",
    "Figure": "matplotlib.figure.Figure",
    "Module": "torch.nn.Module",
    "nn.Module": "torch.nn.Module",
    "nn.Conv2d": "torch.nn.Conv2d",
    "Any": "typing.Any",
    "Path": "pathlib.Path",
}


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.reference | None:
    """Return the link, if exactly one object of the library has the name."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    if target in ELSEWHERE:
        node["reftarget"] = ELSEWHERE[target]
        return None
    if "." in target:
        return None
    places = {
        (entry.docname, entry.node_id)
        for name, entry in env.domains.python_domain.objects.items()
        if name.startswith("finslerconv.") and name.endswith(f".{target}") and not entry.aliased
    }
    if len(places) != 1:
        return None
    [(document, place)] = places
    return make_refnode(app.builder, node["refdoc"], document, place, content)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Come in where Sphinx has found nothing, and before intersphinx."""
    app.connect("missing-reference", resolve, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
