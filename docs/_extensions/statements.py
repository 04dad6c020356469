"""Theorems and equations with numbers, so that they can be cited.

- ``{theorem} Title`` is a theorem, numbered through the whole site. Its option ``name`` is the
  label by which ``{numref}`` finds it, and the anchor of its address.
- Every displayed formula of a page has a number and an anchor, ``equation-<page>-<number>``. One
  that has a label already keeps it.
"""

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata, OptionSpec
from sphinx.writers.html5 import HTML5Translator


class theorem(nodes.General, nodes.Element):  # noqa: N801  (the name of a node of docutils)
    """A numbered statement; its number is Sphinx's."""


class TheoremDirective(SphinxDirective):
    """State a theorem."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True
    option_spec: OptionSpec = {"name": directives.unchanged_required}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Return the theorem."""
        title = self.arguments[0] if self.arguments else ""
        node = theorem("", title=title)
        if title:
            words, messages = self.state.inline_text(title, self.lineno)
            node += [nodes.paragraph("", "", *words, classes=["theorem-title"]), *messages]
        self.add_name(node)
        self.set_source_info(node)
        node += self.parse_content_to_nodes()
        return [node]


class NumberEquations(SphinxTransform):
    """Give every displayed formula a label, before Sphinx numbers those that have one."""

    default_priority = 400

    def apply(self, **kwargs: object) -> None:
        """Label the formulas of the document."""
        page = self.env.docname
        if page.startswith("reference/generated/"):
            return
        for count, formula in enumerate(self.document.findall(nodes.math_block), 1):
            if formula.get("label"):
                continue
            label = f"{page}-{count}"
            formula["label"], formula["docname"] = label, page
            identifier = nodes.make_id(f"equation-{label}")
            formula["ids"].append(identifier)
            self.document.note_explicit_target(formula)
            domain = self.env.domains.math_domain
            domain.note_equation(page, label, location=formula)
            formula["number"] = domain.get_equation_number_for(label)


def visit(self: HTML5Translator, node: theorem) -> None:
    """Open the frame and write the number."""
    self.body.append(self.starttag(node, "div", CLASS="theorem"))
    self.add_fignumber(node)


def depart(self: HTML5Translator, node: theorem) -> None:
    """Close the frame."""
    self.body.append("</div>\n")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directive and the numbering."""
    app.add_enumerable_node(
        theorem, "theorem", lambda node: node["title"] or None, html=(visit, depart)
    )
    app.add_directive("theorem", TheoremDirective)
    app.add_transform(NumberEquations)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
