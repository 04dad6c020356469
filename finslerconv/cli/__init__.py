"""The command ``finslerconv``: metric convolutions at work on a photograph."""

from finslerconv._optional import needs as _needs

with _needs("cli", "the command finslerconv"):
    from finslerconv.cli._app import app

__all__ = ["app"]
