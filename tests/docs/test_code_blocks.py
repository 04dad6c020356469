"""Every Python block of the site is run; cells of notebook pages are run by the site's build."""

from pathlib import Path

import code_blocks
import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"


def pages():
    """Return the pages that have blocks, those that trace a model as tests of their own process."""
    for page in sorted(DOCS.rglob("*.md")):
        source = "".join(code_blocks.python_blocks(page)) if "_build" not in page.parts else ""
        if source:
            traces = "torch.export" in source or "torch.compile" in source
            marks = [pytest.mark.uninstrumented] if traces else []
            yield pytest.param(page, id=page.relative_to(DOCS).as_posix(), marks=marks)


# A reader's session does not check shapes.
@pytest.mark.unchecked
@pytest.mark.parametrize("page", list(pages()))
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    code_blocks.run(page)


def test_there_are_pages_to_run():
    assert len(list(pages())) >= 5
