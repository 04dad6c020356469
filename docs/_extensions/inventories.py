"""Links to the documentation of other projects, without a network.

``_inventories/`` holds a text file per project: its address, then a line per object with the
object's name, its kind and its page. Intersphinx reads them in its own format, which is written
here while the site is built.
"""

import zlib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.typing import ExtensionMetadata


def write(listed: Path, folder: Path) -> tuple[str, str]:
    """Write a project's inventory into ``folder``; return its address and the inventory's path."""
    first, *lines = listed.read_text(encoding="utf-8").splitlines()
    header = (
        f"# Sphinx inventory version 2\n# Project: {listed.stem}\n# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    objects = "".join(f"{name} {kind} 1 {page} -\n" for name, kind, page in map(str.split, lines))
    target = folder / f"{listed.stem}.inv"
    target.write_bytes(header.encode() + zlib.compress(objects.encode()))
    return first.removeprefix("# "), str(target)


def write_all(app: Sphinx, config: Config) -> None:
    """Tell intersphinx of every project that is listed."""
    folder = Path(app.doctreedir)
    folder.mkdir(parents=True, exist_ok=True)
    for listed in sorted((Path(app.srcdir) / "_inventories").glob("*.txt")):
        config.intersphinx_mapping[listed.stem] = write(listed, folder)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Come before intersphinx reads its mapping."""
    app.connect("config-inited", write_all, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
