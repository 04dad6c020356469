"""The site's extensions: formulas of docstrings, links to other projects, neighbours, numbers."""

import zlib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def extensions(monkeypatch):
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(DOCS / "_extensions")


@pytest.mark.parametrize(
    ("plain", "set_"),
    [
        ("F(v) = sqrt(v' M v) + omega' v", r"F(v) = \sqrt{v^\top M v} + \omega ^\top v"),
        ("|omega|_{M^-1} < 1/2", r"|\omega |_{M^{-1}} < 1/2"),
        ("F*(p) = max {p(v) : F(v) <= 1}", r"F^*(p) = \max \{p(v) : F(v) \le 1\}"),
        ("phi - s phi'", r"\varphi - s \varphi '"),
        ("(sum_i (w_i |v_i|)^p)^(1/p)", r"(\sum _i (w_i |v_i|)^p)^{1/p}"),
        ("x'' = -2 G(x, x')", "x'' = -2 G(x, x')"),
        ("R^i_k", "R^i_k"),
        ("|omega| = 0.9", r"|\omega | = 0.9"),
        ("M = L D L'", r"M = L D L^\top"),
    ],
)
def test_a_formula_of_a_docstring_is_set(plain, set_):
    from formulas import is_formula, latex

    assert is_formula(plain)
    assert latex(plain) == set_


@pytest.mark.parametrize(
    "code", ["M", "eps_omega", "1 - eps_omega", "(n, 1, 1, d)", "k // 2", "eps_omega=1", '"same"']
)
def test_code_stays_code(code):
    from formulas import is_formula

    assert not is_formula(code)


def test_docstrings_keep_their_examples():
    from formulas import set_formulas

    lines = ["The norm ``F(v)`` of ``v``, and ``F(v) <", "1``.", ">>> a = '``F(v)``'"]
    set_formulas(None, "function", "f", None, None, lines)
    assert lines == [
        "The norm :math:`F(v)` of ``v``, and :math:`F(v) < 1`.",
        ">>> a = '``F(v)``'",
    ]


def test_inventories_are_written_as_intersphinx_reads_them(tmp_path):
    from inventories import write

    for listed in sorted((DOCS / "_inventories").glob("*.txt")):
        address, path = write(listed, tmp_path)
        assert address.startswith("https://")
        *header, objects = Path(path).read_bytes().split(b"\n", 4)
        assert header[0] == b"# Sphinx inventory version 2"
        names = [line.split()[0] for line in zlib.decompress(objects).decode().splitlines()]
        assert names == [line.split()[0] for line in listed.read_text().splitlines()[1:]]


def test_an_object_ends_with_its_neighbours_and_the_theory():
    from see_also import entries

    found = entries(DOCS / "reference" / "balls.md")
    assert ":py:obj:`~finslerconv.balls.concentric`" in found["finslerconv.balls.lattice"]
    assert "~finslerconv.balls.lattice`" not in found["finslerconv.balls.lattice"]
    assert ":doc:`the ellipse </theory/unit_balls>`" in found["finslerconv.balls.lattice"]


def test_theorems_and_equations_have_numbers(tmp_path):
    from io import StringIO

    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    source = tmp_path / "source"
    source.mkdir()
    (source / "index.md").write_text(
        "# Page\n\n```{theorem} of one\n:name: one\n\nIt is.\n\n$$a = b$$\n```\n\n"
        "See {numref}`one`.\n\n$$c = d$$\n"
    )
    settings = {
        "extensions": ["sphinx.ext.mathjax", "myst_parser", "statements"],
        "myst_enable_extensions": ["dollarmath"],
        "numfig": True,
        "numfig_format": {"theorem": "Theorem %s"},
        "math_numfig": False,
    }
    warnings = StringIO()
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            source, None, tmp_path / "out", tmp_path / "doctrees", "html", settings,
            status=None, warning=warnings,
        )  # fmt: skip
        app.build()
    assert warnings.getvalue() == ""
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'id="one"' in page
    assert "Theorem 1 </span>" in page
    assert 'href="#one"><span class="std std-numref">Theorem 1</span>' in page
    assert 'id="equation-index-1"' in page
    assert 'id="equation-index-2"' in page
