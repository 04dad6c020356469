"""The site's sources: alternative texts, external links, identities that exist."""

import json
import re
from pathlib import Path

import pytest

from finslerconv.symbolic import identities

ROOT = Path(__file__).parents[2]
LINKS = Path(__file__).with_name("external_links.txt")
PAGES = [
    page
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if "_build" not in page.parts and "jupyter_execute" not in page.parts
]
NOTEBOOKS = sorted((ROOT / "theory_notebooks").glob("*.ipynb"))
#: What in a cell's source shows a picture.
DRAWS = re.compile(r"plt\.show\(\)|^figure$|^plot_\w+\(", re.MULTILINE)

by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_name
def test_pictures_have_alternative_texts(page):
    text = page.read_text(encoding="utf-8")
    for body in re.findall(r"^```\{(?:image|figure)\}(.*?)^```", text, re.DOTALL | re.MULTILINE):
        assert re.search(r"^:alt: \S", body, re.MULTILINE), body
    assert not re.search(r"!\[\s*\]", text)
    for cell in re.findall(r"^```\{code-cell\}(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if DRAWS.search(cell):
            assert re.search(r"^:\s+alt: \S", cell, re.MULTILINE), cell


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_notebooks_are_stripped_and_their_pictures_have_alternative_texts(notebook):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert any(DRAWS.search("".join(cell["source"])) for cell in cells)
    for cell in cells:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        if DRAWS.search("".join(cell["source"])):
            assert cell["metadata"]["mystnb"]["image"]["alt"].strip(), cell["source"]


@by_name
def test_code_is_seen_whole(page):
    """A line of code that is shown has 100 characters at most, which the site's column holds."""
    text = page.read_text(encoding="utf-8")
    fence = r"^[ ]*```(?:\w+|\{code-cell\}[^\n]*)\n(.*?)^[ ]*```"
    blocks = re.findall(fence, text, re.DOTALL | re.MULTILINE)
    shown = [b for b in blocks if not re.search(r"^:tags: \[remove-", b, re.MULTILINE)]
    wide = [line for block in shown for line in block.split("\n") if len(line) > 100]
    assert [line for line in wide if not re.match(r":\s+(alt|caption): ", line)] == []


@by_name
def test_named_identities_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"```\{identity\} (\S+)", text) + re.findall(r"\{proved\}`([^`]+)`", text)
    assert set(named) <= set(identities())


def test_the_list_of_external_links_is_complete():
    """External links are listed, not fetched: whoever adds one writes it into the list."""
    sources = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *NOTEBOOKS]
    sources += (ROOT / "finslerconv").rglob("*.py")
    found = set()
    for source in sources:
        found |= set(re.findall(r"https?://[^\s)>\"'`\]\\]+", source.read_text(encoding="utf-8")))
    found = {link.rstrip(".,;:") for link in found}
    listed = LINKS.read_text(encoding="utf-8").split()
    assert listed == sorted(listed)
    assert sorted(found) == listed
