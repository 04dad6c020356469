"""What all marches ask: the entries of fields, the states of nodes, problems side by side."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finslerconv._memory import array_of
from finslerconv._progress import counted
from finslerconv.geodesics.distances._heap import FAR, WALL
from finslerconv.geodesics.distances._stencils import alike

# Nodes that a compiled call takes: some hundredths of a second.
_STEPS = 65_536


def entries(field: Tensor, size: int) -> np.ndarray:
    """Return the entries of a field, one row a node, or one row if all nodes have the same."""
    field = field.detach()
    first = field[(0,) * (field.ndim - (1 if size == field.shape[-1] else 2))]
    grid = field.ndim - first.ndim
    spread = any(n > 1 for n, s in zip(field.shape[:grid], field.stride(), strict=False) if s)
    rows = array_of((field if spread else first).contiguous()).reshape(-1, size)
    return rows[:1].copy() if spread and alike(rows) else rows


class Queue(NamedTuple):
    """The nodes that a front reaches next, kept between the calls of a march (`_heap`)."""

    keys: np.ndarray
    nodes: np.ndarray
    place: np.ndarray
    state: np.ndarray
    """int64: entries of the queue, nodes taken out of it so far, targets still to be reached
    (-1 without targets)."""

    @classmethod
    def of(cls, walls: np.ndarray, targets: np.ndarray | None) -> tuple["Queue", np.ndarray]:
        """Return an empty queue, and which nodes are targets, one flag a node."""
        place = np.where(walls.reshape(-1), np.int32(WALL), np.int32(FAR))
        nodes = place.size
        flags = np.zeros(0 if targets is None else nodes, np.bool_)
        left = -1
        if targets is not None:
            flags[targets] = True
            flags &= place != WALL  # those are never reached
            left = int(flags.sum()) or -1
        state = np.array([0, 0, left], np.int64)
        return cls(np.empty(nodes), np.empty(nodes, np.int32), place, state), flags


class March:
    """The marches of some problems side by side, which end together where one fails.

    A march is a sequence of compiled calls that hold no lock. Between the calls the interpreter
    sees Ctrl-C, and progress is told.
    """

    def __init__(self, nodes: int, problems: int) -> None:
        self._failed = threading.Event()
        self._nodes, self._problems = nodes, problems

    def run(self, problem: Callable[[int], Any]) -> list[Any]:
        """Return ``[problem(0), ...]``, in as many threads as ``torch.set_num_threads`` allows."""
        with counted("Marching", self._nodes * self._problems) as self._advance:
            workers = min(self._problems, torch.get_num_threads(), os.cpu_count() or 1)
            if workers <= 1:
                return [problem(p) for p in range(self._problems)]
            with ThreadPoolExecutor(workers, thread_name_prefix="finslerconv") as pool:
                try:
                    return list(pool.map(problem, range(self._problems)))
                except BaseException:
                    self._failed.set()
                    raise

    def go(self, step: Callable[[int], bool], queue: Queue) -> None:
        """Call ``step`` with a number of nodes to take until it returns that there are no more."""
        told = 0
        while step(_STEPS) and not self._failed.is_set():
            done = min(int(queue.state[1]), self._nodes)
            self._advance(done - told)
            told = done
        self._advance(self._nodes - told)
