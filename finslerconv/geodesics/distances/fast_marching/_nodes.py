"""What all marches ask: the entries of fields, the states of nodes, problems side by side."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finslerconv._memory import array_of
from finslerconv.geodesics.distances._heap import FAR, WALL


def entries(field: Tensor, size: int) -> np.ndarray:
    """Return the entries of a field, one row a node, or one row if all nodes have the same."""
    field = field.detach()
    flat = field.reshape(-1, size) if field.is_contiguous() else None
    first = field[(0,) * (field.ndim - (1 if size == field.shape[-1] else 2))]
    last = field[(-1,) * (field.ndim - first.ndim)]
    if bool((first == last).all()) and bool((field == first).all()):
        return array_of(first.reshape(1, size).contiguous())
    if flat is None:
        flat = field.contiguous().view(-1, size)
    return array_of(flat)


def side_by_side(task: Callable[[int], Any], parts: int) -> list[Any]:
    """Return ``[task(0), ...]``, in as many threads as ``torch.set_num_threads`` allows.

    A march is one call that holds no lock.
    """
    workers = min(parts, torch.get_num_threads(), os.cpu_count() or 1)
    if workers <= 1:
        return [task(p) for p in range(parts)]
    with ThreadPoolExecutor(workers, thread_name_prefix="finslerconv") as pool:
        return list(pool.map(task, range(parts)))


def unvisited(walls: np.ndarray) -> np.ndarray:
    """Return the states of the nodes before a march."""
    return np.where(walls.reshape(-1), np.int32(WALL), np.int32(FAR))
