"""Sphinx directives and a role for the identities of ``finslerconv.symbolic`` and their proofs.

A page names an identity and never writes it out: formula, assumptions and explanation come from the
object, which is proved while the site is built. One that cannot be proved is a warning, which fails
the build.

- ``{identity} unit_ball`` shows one: its formula, its proof status, a link to the list.
- ``{identities} balls`` is a section of the list, with explanations; each on one page only.
- ``{proved}`unit_ball``` is a link to the identity's place in the list.
"""

import re
from collections.abc import Iterable
from functools import cache
from typing import ClassVar

import sympy
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata, OptionSpec

from finslerconv.symbolic import (
    Identity,
    Proof,
    _about_balls,
    _about_curvature,
    _about_duality,
    _about_maps,
    _about_metrics,
    _about_norms,
    _about_tensors,
    _weighted,
    identities,
)
from finslerconv.symbolic._notation import names, side_to_latex

logger = logging.getLogger(__name__)

#: The sections of the list, in the order of the theory.
SECTIONS = {
    "norms": _about_norms.IDENTITIES,
    "balls": _about_balls.IDENTITIES,
    "duality": _about_duality.IDENTITIES,
    "maps": _about_maps.IDENTITIES,
    "tensors": _about_tensors.IDENTITIES,
    "metrics": _about_metrics.IDENTITIES,
    "curvature": _about_curvature.IDENTITIES,
    "weighted": _weighted.IDENTITIES,
}

#: A formula in one line has so many symbols at most.
WIDEST = 52


@cache
def proof(name: str) -> Proof:
    """Prove an identity, once a build."""
    return identities()[name].prove()


def target_of(name: str) -> str:
    """Return the label of an identity's place in the list."""
    return f"identity-{name.replace('_', '-')}"


def link(name: str, document: str) -> pending_xref:
    """Return a link to an identity's place in the list."""
    return pending_xref(
        "",
        nodes.literal(name, name),
        refdomain="std",
        reftype="ref",
        reftarget=target_of(name),
        refexplicit=True,
        refwarn=True,
        refdoc=document,
    )


def formula(latex: str) -> nodes.math_block:
    """Return a displayed formula, in two lines where one would be wider than the column."""
    shown = re.sub(r"\\(left|right|t?frac|sqrt|mathbb|operatorname|text)\b|[\s{}^_]", "", latex)
    if len(re.findall(r"\\[A-Za-z]+|.", shown)) > WIDEST:
        left, _, right = latex.partition(" = ")
        latex = rf"\begin{{aligned}} & {left} \\ = {{}} & {right} \end{{aligned}}"
    return nodes.math_block(latex, latex, number=None, label=None, nowrap=False)


def sentence(text: str, document: str) -> nodes.paragraph:
    """Return an explanation as a paragraph: maths is set, and the names of identities are links."""
    paragraph = nodes.paragraph()
    for words, latex in re.findall(r"([^$]*)(?:\$([^$]+)\$)?", text):
        for part in re.split(r"(\w+)", words):
            known = "_" in part and part in identities()
            paragraph += link(part, document) if known else nodes.Text(part)
        if latex:
            paragraph += nodes.math(latex, latex)
    return paragraph


def assumptions(identity: Identity) -> list[nodes.Node]:
    """Return what an identity assumes, as text and formulas."""
    shown: list[nodes.Node] = []
    for expression in identity.positive(names()):
        shown.append(nodes.Text(", " if shown else ", assuming "))
        if isinstance(expression, sympy.Determinant):
            latex = side_to_latex(expression.arg)
            shown += [nodes.math(latex, latex), nodes.Text(" positive definite")]
        else:
            latex = f"{side_to_latex(expression)} > 0".replace(" I ", " ")
            shown.append(nodes.math(latex, latex))
    return shown


def status(identity: Identity) -> nodes.paragraph:
    """Return the line that says whether, where and under which assumptions it is proved."""
    done = bool(proof(identity.name))
    *some, last = map(str, identity.dimensions)
    where = f"{', '.join(some)} and {last}" if some else last
    verdict = "Proved" if done else "NOT PROVED"
    badge = nodes.inline("", verdict, classes=["proved" if done else "unproved"])
    return nodes.paragraph(
        "",
        "",
        badge,
        nodes.Text(f" for d = {where}"),
        *assumptions(identity),
        nodes.Text("."),
        classes=["identity-status"],
    )


def box(content: Iterable[nodes.Node], **attributes: list[str]) -> nodes.container:
    """Return the frame around an identity."""
    frame = nodes.container(classes=["identity"], **attributes)
    frame.extend(content)
    return frame


class _ProvingDirective(SphinxDirective):
    """What both directives do: refuse unknown names, and warn where a proof fails."""

    required_arguments = 1

    def prove(self, identity: Identity) -> Identity:
        if not proof(identity.name):
            logger.warning("%s", proof(identity.name), location=self.get_location())
        return identity

    def choose(self, known: Iterable[str]) -> str:
        name = str(self.arguments[0])
        if name not in known:
            raise self.error(f"expected one of {', '.join(known)}; got {name!r}")
        return name


class IdentityDirective(_ProvingDirective):
    """Show one identity: its formula, whether it is proved, and a link to the list."""

    option_spec: ClassVar[OptionSpec] = {"explain": directives.flag}

    def run(self) -> list[nodes.Node]:
        """Return the box."""
        identity = self.prove(identities()[self.choose(identities())])
        parts: list[nodes.Element] = [formula(identity.statement)]
        if "explain" in self.options:
            parts.append(sentence(identity.explanation, self.env.docname))
        parts.append(status(identity))
        parts[-1].extend([nodes.Text(" "), link(identity.name, self.env.docname)])
        return [box(parts)]


class IdentitiesDirective(_ProvingDirective):
    """Show the identities of a section with their explanations: the place that links lead to."""

    def run(self) -> list[nodes.Node]:
        """Return a box for each."""
        return [self.entry(self.prove(i)) for i in SECTIONS[self.choose(SECTIONS)]]

    def entry(self, identity: Identity) -> nodes.container:
        """Return the box of one identity, to which links lead."""
        name, label = identity.name, target_of(identity.name)
        parts = [
            nodes.paragraph(
                "",
                "",
                nodes.literal(name, name),
                nodes.Text(f" ({identity.kind})"),
                classes=["identity-name"],
            ),
            formula(identity.statement),
            sentence(identity.explanation, self.env.docname),
            status(identity),
        ]
        # Under this label, and with a title given at the link, ``ref`` finds what is no section.
        self.env.domains.standard_domain.anonlabels[label] = (self.env.docname, label)
        return box(parts, ids=[label])


class ProvedRole(SphinxRole):
    """A link to an identity's place in the list."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the link; an unknown name is a warning, as for every reference."""
        return [link(self.text, self.env.docname)], []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Register the directives and the role."""
    app.add_directive("identity", IdentityDirective)
    app.add_directive("identities", IdentitiesDirective)
    app.add_role("proved", ProvedRole())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
