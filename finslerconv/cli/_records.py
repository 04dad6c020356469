"""Numbers of a command as JSON or CSV, in a file or on standard output."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

#: The name of standard output, where a file is expected.
STDOUT = Path("-")

Record = Mapping[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Write a value of plain Python; a number that is not finite becomes null."""
    with _opened(path) as file:
        json.dump(_finite(value), file, indent=2, allow_nan=False)
        file.write("\n")


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """Write a row for each record, under the names of all.

    Entries of mappings and sequences get columns of their own, named ``outer.inner`` and
    ``name.0``. Cells of None, or of numbers that are not finite, are empty.
    """
    rows = [dict(_cells("", _finite(record))) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with _opened(path) as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if path == STDOUT:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror or error})") from error


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if abs(value) < float("inf") else None  # NaN neither
        case Mapping():
            return {key: _finite(each) for key, each in value.items()}
        case list() | tuple():
            return [_finite(each) for each in value]
    return value


def _cells(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case Mapping():
            inner: Iterator[tuple[Any, Any]] = iter(value.items())
        case list():
            inner = enumerate(value)
        case _:
            yield name, value
            return
    for key, each in inner:
        yield from _cells(f"{name}.{key}" if name else str(key), each)
