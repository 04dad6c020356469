"""Errors of the user's: one line on standard error, exit code 2."""

from typing import NoReturn

import typer


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line and leave with exit code 2."""
    typer.echo("finslerconv: error: " + " ".join(message.split()), err=True)
    raise typer.Exit(2)
