"""The Python of a Markdown page, run as a reader runs it: block after block, in one session."""

import contextlib
import re
import tempfile
import textwrap
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

#: Packages that a page may use and that are no dependency: a block that lacks one is left out.
OPTIONAL = ("torchvision", "timm", "onnxruntime", "onnxscript", "jax", "cupy")


def python_blocks(page: Path) -> list[str]:
    """Return the blocks that are marked as Python; the cells of notebook pages are not."""
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^([ ]*)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in fences]


@cache
def usable(package: str) -> bool:
    """Return whether a package can be imported; one built for another PyTorch cannot."""
    try:
        import_module(package)
    except (ImportError, RuntimeError):
        return False
    return True


def run(page: Path) -> dict[str, Any]:
    """Run a page's blocks one after another, in an empty folder; return the session's names."""
    names: dict[str, Any] = {"__name__": "__main__"}
    missing = set()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in python_blocks(page):
            lacking = {
                package
                for package in OPTIONAL
                if re.search(rf"^(import|from) {package}\b", block, re.MULTILINE)
                and not usable(package)
            }
            missing |= lacking
            if not lacking:
                exec(compile(block, str(page), "exec"), names)
    if missing:
        pytest.skip(f"ran without the blocks that need {', '.join(sorted(missing))}")
    return names
