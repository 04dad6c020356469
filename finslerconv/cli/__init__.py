"""The command ``finslerconv``: metric convolutions at work on a photograph."""

from finslerconv.cli._app import app

__all__ = ["app"]
