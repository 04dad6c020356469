"""The command ``finslerconv``, also as ``python -m finslerconv``."""

import sys

from finslerconv._optional import MissingExtraError


def main() -> None:
    """Run the command, or say in one line what has to be installed for it."""
    try:
        from finslerconv.cli import app

        app()
    except MissingExtraError as error:
        sys.exit(f"finslerconv: error: {error}")


if __name__ == "__main__":
    main()
