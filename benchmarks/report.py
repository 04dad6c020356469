"""What benchmarks share: the machine's name, figures as JSON, a run compared with an older one.

A benchmark's results are dictionaries and lists, and their floats are the figures. A figure is
named by the keys that lead to it. A dictionary in a list is a row of a table, and what is no float
in it (names, sizes, flags) names the row. So two runs are compared figure by figure, whatever else
they measured.
"""

import argparse
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table


class Change(NamedTuple):
    """A figure that two runs have."""

    name: str
    old: float
    new: float

    @property
    def ratio(self) -> float:
        """New over old; NaN unless both are positive."""
        return self.new / self.old if self.old > 0 and self.new > 0 else math.nan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--compare", type=read, metavar="OLD.json", help="show old against new")


def read(path: str) -> Any:
    """Return the results in a file that ``--json`` wrote."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected a file that --json wrote: {error}") from error


def finish(options: argparse.Namespace, results: Any, console: Console | None = None) -> None:
    """Write the results and compare them, as ``options`` say."""
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.compare is not None:
        show_changes(options.compare, results, console or Console())


def machine(**more: Any) -> dict[str, Any]:
    """Return what a benchmark ran on."""
    return {
        "processor": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **more,
    }


def processor() -> str:
    """Return the name of the processor's model, or at least its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def figures(results: Any, *names: str) -> Iterator[tuple[str, float]]:
    """Return every figure of the results, with its name."""
    if isinstance(results, float):
        yield ", ".join(names), results
    elif isinstance(results, dict):
        for key, value in results.items():
            yield from figures(value, *names, key)
    elif isinstance(results, list | tuple):
        for number, value in enumerate(results):
            own = [str(number)]
            if isinstance(value, dict):
                own = [name for key, entry in value.items() if (name := _name(key, entry))]
            yield from figures(value, *names, *own)


def _name(key: str, value: Any) -> str:
    """Return how an entry names its row; empty if it does not."""
    if isinstance(value, bool):
        return key if value else ""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{key} {value}"
    if isinstance(value, list | tuple) and all(isinstance(x, int | str) for x in value):
        return f"{key} {' '.join(map(str, value))}"
    return ""


def changes(old: Any, new: Any) -> list[Change]:
    """Return the figures that both results have, in the order of the new ones."""
    before = dict(figures(old))
    return [Change(name, before[name], x) for name, x in figures(new) if name in before]


def means(found: list[Change]) -> dict[str, float]:
    """Return the geometric mean of the ratios of each kind of figure: the last part of its name."""
    kinds: dict[str, list[float]] = {}
    for change in found:
        if not math.isnan(change.ratio):
            kinds.setdefault(change.name.rpartition(", ")[2], []).append(math.log(change.ratio))
    return {kind: math.exp(sum(logs) / len(logs)) for kind, logs in kinds.items()}


def show_changes(old: Any, new: Any, console: Console) -> None:
    """Print the table of old against new figures."""
    for title, results in (("old", old), ("new", new)):
        if isinstance(results, dict) and "machine" in results:
            console.print(f"{title}: {results['machine']}")
    found = changes(old, new)
    table = Table(title="old against new")
    table.add_column("figure")
    for column in ("old", "new", "new / old"):
        table.add_column(column, justify="right", no_wrap=True)
    for change in found:
        ratio = "-" if math.isnan(change.ratio) else f"{change.ratio:.2f}"
        table.add_row(change.name, f"{change.old:.4g}", f"{change.new:.4g}", ratio)
    table.add_section()
    for kind, mean in means(found).items():
        table.add_row(f"geometric mean: {kind}", "", "", f"{mean:.2f}")
    console.print(table)
    only = [len(list(figures(x))) - len(found) for x in (old, new)]
    if any(only):
        console.print(f"figures in one run only: {only[0]} old, {only[1]} new")
