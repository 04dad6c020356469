"""A pool of threads for compiled code that runs without Python's lock.

Numba's own parallel loops are not safe to enter from two threads at once, nor after a fork, and
they bring a second set of workers. These are ordinary Python threads, as many as
``torch.set_num_threads`` allows to each call, started when first wanted, and anew after a fork.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_workers = 0


def run(task: Callable[[int], object], parts: int) -> None:
    """Call ``task(0)``, ..., ``task(parts - 1)`` side by side, and return when all have ended.

    The calling thread does its share. Tasks must not call :func:`run` themselves.
    """
    if parts <= 1:
        if parts == 1:
            task(0)
        return
    futures = _submit(task, parts)
    try:
        task(0)
    finally:
        # Buffers of the caller are in use until the last part has ended, whatever happened here.
        for future in futures:
            future.exception()
    for future in futures:
        future.result()


def _submit(task: Callable[[int], object], parts: int) -> list[Future[object]]:
    global _pool, _workers
    with _lock:
        if _pool is None or _workers < parts - 1:
            if _pool is not None:
                _pool.shutdown(wait=False)  # what others have submitted still runs
            _workers = parts - 1
            _pool = ThreadPoolExecutor(_workers, thread_name_prefix="finslerconv")
        return [_pool.submit(task, part) for part in range(1, parts)]


def _forget() -> None:
    """Forget the parent's threads in a forked child, where they do not exist."""
    global _pool, _workers, _lock
    _lock = Lock()
    _pool, _workers = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
