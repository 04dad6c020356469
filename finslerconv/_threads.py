"""Threads for compiled code that runs without Python's lock.

Where PyTorch computes with GNU OpenMP (its Linux wheels do), tasks run on its threads. These spin
for some milliseconds after every operation before they sleep; other threads would share the cores
with them, which doubles the time of a convolution.

Elsewhere tasks run on ordinary Python threads, as many as ``torch.set_num_threads`` allows, started
at the first call. So they do in a forked child, where OpenMP's threads do not exist and asking for
them hangs. Numba's own parallel loops may not be entered from two threads at once.

A compiled call is deaf to Ctrl-C. A long task is therefore a generator that pauses between calls of
a tenth of a second or so, its bands: there Python handles signals, and the other threads stop.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

import torch

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_workers = 0
_forked = False

_OUTLINED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


Task = Callable[[int], object]
"""What computes a part, by its number; a generator pauses where it may be stopped."""


def run(task: Task, parts: int) -> None:
    """Call ``task(0)``, ..., ``task(parts - 1)`` side by side, and return when all have ended.

    The calling thread does its share. Tasks must not call :func:`run` themselves. When one has
    failed, those that are generators end where they pause.
    """
    if parts <= 1:
        if parts == 1:
            _perform(task, 0, [])
        return
    openmp = None if _forked else _openmp()
    if openmp is not None:
        _run_team(openmp, task, parts)
    else:
        _run_pool(task, parts)


def _perform(task: Task, part: int, failed: list[BaseException]) -> None:
    """Do one part of a task; note what it raises, and raise it."""
    try:
        steps = task(part)
        if isinstance(steps, Iterator):
            for _ in steps:
                if failed:
                    return
    except BaseException as error:
        failed.append(error)
        raise


def share(units: int, part: int, parts: int, multiple: int = 1) -> tuple[int, int]:
    """Return the range ``(begin, end)`` of the units that belongs to a part, cut at multiples."""
    pieces = -(-units // multiple)
    begin, end = (pieces * p // parts * multiple for p in (part, part + 1))
    return min(begin, units), min(end, units)


def bands(begin: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces of a range, each of ``size`` units but for the last."""
    for first in range(begin, end, size):
        yield first, min(first + size, end)


@cache
def _openmp() -> ctypes.CDLL | None:
    """Return the OpenMP library of PyTorch's wheel, or None if it has none of GNU's."""
    root = Path(torch.__file__).parent
    for folder in (root / "lib", root.parent / "torch.libs"):
        for path in folder.glob("libgomp*.so*"):
            try:
                library = ctypes.CDLL(str(path))
                count = ctypes.c_uint
                library.GOMP_parallel.argtypes = (_OUTLINED, ctypes.c_void_p, count, count)
                library.GOMP_parallel.restype = None
                return library
            except (OSError, AttributeError):
                continue
    return None


def _run_team(openmp: ctypes.CDLL, task: Task, parts: int) -> None:
    failed: list[BaseException] = []
    ended: list[int] = []

    def outlined(_: object) -> None:
        try:
            # The team may be smaller than asked for: within another parallel region it is one.
            size = openmp.omp_get_num_threads()
            for part in range(openmp.omp_get_thread_num(), parts, size):
                _perform(task, part, failed)
                ended.append(part)
        except BaseException as error:  # it cannot pass through OpenMP
            failed.append(error)

    # A team of PyTorch's own size, whatever the parts: OpenMP ends the threads of a larger one.
    openmp.GOMP_parallel(_OUTLINED(outlined), None, max(parts, torch.get_num_threads()), 0)
    if failed:
        raise failed[0]
    if len(ended) < parts:  # Ctrl-C came while ``outlined`` was being entered or left
        raise KeyboardInterrupt


def _run_pool(task: Task, parts: int) -> None:
    failed: list[BaseException] = []
    futures = _submit(task, parts, failed)
    try:
        _perform(task, 0, failed)
    finally:
        # Buffers of the caller are in use until the last part has ended, whatever happened here.
        for future in futures:
            future.exception()
    for future in futures:
        future.result()


def _submit(task: Task, parts: int, failed: list[BaseException]) -> list[Future[None]]:
    global _pool, _workers
    with _lock:
        if _pool is None or _workers < parts - 1:
            if _pool is not None:
                _pool.shutdown(wait=False)  # what others have submitted still runs
            _workers = parts - 1
            _pool = ThreadPoolExecutor(_workers, thread_name_prefix="finslerconv")
        return [_pool.submit(_perform, task, part, failed) for part in range(1, parts)]


def _forget() -> None:
    """Forget the parent's threads in a forked child, where they do not exist."""
    global _pool, _workers, _lock, _forked
    _lock = Lock()
    _pool, _workers, _forked = None, 0, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
