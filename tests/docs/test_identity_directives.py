"""The directives that print identities: built into a small site, with what they print read back."""

import html
import re
import sys
from pathlib import Path

import pytest

from finslerconv.symbolic import Identity, identities

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_extensions"


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)
    import identities as module

    module.proof.cache_clear()
    yield module
    module.proof.cache_clear()
    sys.modules.pop("identities", None)


@pytest.fixture
def build(tmp_path, extension):
    """Build pages, by name, and return their HTML and the warnings."""
    from io import StringIO

    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    def run(**pages):
        source = tmp_path / "source"
        source.mkdir()
        for name, text in pages.items():
            (source / f"{name}.md").write_text(text)
        warnings = StringIO()
        settings = {
            "extensions": ["sphinx.ext.mathjax", "myst_parser", "identities"],
            "nitpicky": True,
        }
        with patch_docutils(), docutils_namespace():
            app = Sphinx(
                source, None, tmp_path / "out", tmp_path / "doctrees", "html", settings,
                status=None, warning=warnings,
            )  # fmt: skip
            app.build()
        read = {
            name: html.unescape((tmp_path / "out" / f"{name}.html").read_text()) for name in pages
        }
        return read, warnings.getvalue()

    return run


def test_the_sections_hold_every_identity_once(extension):
    listed = [identity.name for section in extension.SECTIONS.values() for identity in section]
    assert listed == list(identities())


def test_an_identity_is_printed_from_its_object(build, extension, monkeypatch):
    shown = tuple(identities()[name] for name in ("wind_norm", "zermelo_determinant"))
    monkeypatch.setitem(extension.SECTIONS, "balls", shown)  # to prove two, not all
    pages, warnings = build(
        index="# Page\n\n```{identity} wind_norm\n```\n\nSee {proved}`zermelo_determinant`.\n\n"
        "```{toctree}\nlist\n```\n",
        list="# List\n\n```{identities} balls\n```\n",
    )
    assert warnings == ""
    assert identities()["wind_norm"].statement in pages["index"]
    assert "Proved</span> for d = 1, 2, 3 and any" in pages["index"]
    assert "wind_norm</span></code> (theorem)" in pages["list"]
    for name in ("wind_norm", "zermelo_determinant"):
        place = f"identity-{name.replace('_', '-')}"
        assert f'href="list.html#{place}"' in pages["index"]
        assert re.search(rf'id="{place}"', pages["list"])


def test_a_wide_formula_is_set_in_two_lines(extension):
    latex = identities()["support_bound"].statement
    left, right = latex.split(" = ")
    assert extension.formula(latex).astext().split(r"\\") == [
        rf"\begin{{aligned}} & {left} ",
        rf" = {{}} & {right} \end{{aligned}}",
    ]
    narrow = identities()["unit_ball"].statement
    assert extension.formula(narrow).astext() == narrow


def test_an_explanation_is_maths_and_links(extension):
    text = identities()["affine_level"].explanation
    parts = extension.sentence(text, "page").children
    kinds = {kind: [p for p in parts if p.tagname == kind] for kind in ("math", "pending_xref")}
    assert [p.astext() for p in kinds["math"]] == re.findall(r"\$(.+?)\$", text)
    assert [p.astext() for p in kinds["pending_xref"]] == ["zermelo_round_trip"]
    assert "".join(p.astext() for p in parts) == text.replace("$", "")


def test_what_is_not_proved_is_a_warning_and_says_so(build, extension, monkeypatch):
    true = identities()["wind_norm"]
    false = Identity(
        "wind_norm", "Wrong.", lambda P: (P.metric.lam, P.metric.lam + 1), true.positive, (2,)
    )
    monkeypatch.setattr(extension, "identities", lambda: {"wind_norm": false})
    pages, warnings = build(index="# Page\n\n```{identity} wind_norm\n```\n")
    assert "NOT proved" in warnings
    assert "NOT PROVED" in pages["index"]


def test_unknown_names_are_refused(build):
    _, warnings = build(index="# Page\n\n```{identity} wind\n```\n\n{proved}`wind`\n")
    assert "expected one of cauchy_schwarz" in warnings
    assert "undefined label" in warnings
