"""What error messages of whole models share."""

from collections.abc import Sequence

# How many entries of a list a message names.
_SHOWN = 5


def first_few(entries: Sequence[str]) -> list[str]:
    """Return the first entries of a list, and how many more there are."""
    rest = len(entries) - _SHOWN
    return [*entries[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]
