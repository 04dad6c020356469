"""Progress bars of long calls, where a user has asked for them; a line where the user waits."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

from finslerconv._optional import needs

#: The bars that are shown, or None.
_shown: Any = None

#: The lines that were written.
_told: set[str] = set()


@contextmanager
def progress() -> Iterator[None]:
    """Show a bar on standard error for every long call inside: ``with finslerconv.progress():``.

    Fast marching and convolutions on the CPU tell how far they are. Bars vanish when their call has
    ended. It needs the package rich, of the extra ``cli``.

    Examples
    --------
    >>> import numpy as np
    >>> import finslerconv
    >>> from finslerconv.geodesics import GridMetric, distance
    >>> with finslerconv.progress():
    ...     lengths = distance(GridMetric.from_cost(np.ones((9, 9))), (4, 4))
    """
    global _shown
    with needs("cli", "finslerconv.progress"):
        from rich.console import Console
        from rich.progress import Progress
    before = _shown
    with Progress(console=Console(stderr=True), transient=True) as bars:
        _shown = bars
        try:
            yield
        finally:
            _shown = before


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give what is called, from any thread, with the units of work that have been done."""
    bars = _shown
    if bars is None:
        yield _untold
        return
    task = bars.add_task(what, total=total)
    try:
        yield lambda done: bars.advance(task, done)
    finally:
        bars.remove_task(task)


@contextmanager
def waiting(what: str, reason: str, patience: float = 2.0) -> Iterator[None]:
    """Say what takes longer than so many seconds: a bar, or one line of the reason a process.

    The line goes to standard error, if that is a terminal.
    """
    bars, tasks = _shown, []

    def tell() -> None:
        if bars is not None:
            tasks.append(bars.add_task(what, total=None))
        elif sys.stderr and sys.stderr.isatty() and reason not in _told:
            _told.add(reason)
            print(f"finslerconv: {reason}", file=sys.stderr, flush=True)

    timer = Timer(patience, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        for task in tasks:
            bars.remove_task(task)


def _untold(done: int) -> None:
    pass
