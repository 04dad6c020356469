"""Errors of the user's: one line on standard error, exit code 2."""

from typing import Final, NoReturn

import typer

#: The shortest side of a picture, in pixels, on which there is anything to see.
SMALLEST: Final = 16


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line and leave with exit code 2."""
    typer.echo("finslerconv: error: " + " ".join(message.split()), err=True)
    raise typer.Exit(2)
