"""Packages that an extra installs: what to do about a missing one, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

#: The packages of each extra, by the names under which they are imported.
_EXTRAS = {
    "plot": ("matplotlib",),
    "cli": ("matplotlib", "PIL", "rich", "skimage", "typer"),
    "dask": ("dask", "distributed"),
}


class MissingExtraError(ImportError):
    """An optional package is not installed; the message says how to install it."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Raise a MissingExtraError in place of the ModuleNotFoundError of an extra's package.

    ``what`` is what the package is needed for.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in _EXTRAS[extra]:
            raise
        raise MissingExtraError(
            f'{what} needs {name}, which is not installed: pip install "finslerconv[{extra}]"'
        ) from error
