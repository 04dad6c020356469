"""Every Python block of the site is run; cells of notebook pages are run by the site's build."""

from pathlib import Path

import code_blocks
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"


SLOW = (
    "extending.md",
    "how-to/larger_than_memory.md",
    "how-to/terrain_and_wind.md",
    "how-to/vessels.md",
)


def pages():
    """Return the pages that have blocks, those that trace a model as tests of their own process."""
    for page in sorted(DOCS.rglob("*.md")):
        source = "".join(code_blocks.python_blocks(page)) if "_build" not in page.parts else ""
        if source:
            traces = "torch.export" in source or "torch.compile" in source
            name = page.relative_to(DOCS).as_posix()
            marks = [pytest.mark.uninstrumented] if traces else []
            marks += [pytest.mark.slow] if name in SLOW else []
            yield pytest.param(page, id=name, marks=marks)


# A reader's session does not check shapes.
@pytest.mark.slow
@pytest.mark.unchecked
@pytest.mark.parametrize("page", list(pages()))
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    code_blocks.run(page)


def test_there_are_pages_to_run():
    assert len(list(pages())) >= 5
