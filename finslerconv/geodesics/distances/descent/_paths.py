"""Shortest paths found with a distance map.

A path is searched from its end back to a source, with the distances as a guide, and then made as
short as it can be: both by chords measured in the field itself. The map is never read between its
nodes, where in a narrow valley of the metric it says nothing.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv._memory import array_of
from finslerconv.geodesics.distances._heap import FAR
from finslerconv.geodesics.distances._norms import Norms, rows_of
from finslerconv.geodesics.distances.descent._search import search
from finslerconv.geodesics.distances.descent._shortening import shorten
from finslerconv.geodesics.fields import GridMetric, as_kind_of, as_tensor, is_numpy, put_inside


def paths_of(distances: Any, walls: Tensor | None, to: Any, step: float) -> Array | list[Array]:
    """Return the paths of :func:`finslerconv.geodesics.minimal_path`; ``walls`` are the map's."""
    field = distances.field
    if not 0 < step <= 1:
        raise ValueError(f"step: expected a number in (0, 1], got {step!r}")
    d, grid = field.dim, field.grid_shape
    problems = tuple(distances.distance.shape[: distances.distance.ndim - d])
    ends, each = _ends(to, problems, d)
    inside = array_of(put_inside(field, "to", torch.from_numpy(ends)))
    coordinates = (inside - np.asarray(field.origin)) / np.asarray(field.spacing)
    np.clip(coordinates, 0.0, np.asarray(grid) - 1.0, out=coordinates)
    paths = []
    finder: _Finder | None = None
    for number, end in enumerate(coordinates):
        problem = np.unravel_index(number, problems) if problems else ()
        if finder is None or problems:
            finder = _Finder(distances, walls, tuple(int(i) for i in problem))
        points = finder.path(end, float(step))
        if points is None:
            raise ValueError(_no_path(finder, end, ends[number]))
        points[-1] = ends[number]
        points = points[::-1].copy() if distances.reverse else points
        result = torch.tensor(points).to(as_tensor("distance", distances.distance).detach())
        paths.append(as_kind_of(result, distances.distance))
    return paths if each else paths[0]


class _Finder:
    """One problem of a map made ready for paths; in index coordinates of three axes."""

    def __init__(self, distances: Any, walls: Tensor | None, problem: tuple[int, ...]) -> None:
        field = distances.field
        d, grid = field.dim, field.grid_shape
        self.origin, self.spacing = np.asarray(field.origin), np.asarray(field.spacing)
        self.d, self.shape = d, (*grid, 1)[:3]
        number = int(np.ravel_multi_index(problem, distances.distance.shape[:-d])) if problem else 0
        places = array_of(_cpu(distances.sources[number]).double())
        self.sources = self._space((places - self.origin) / self.spacing)
        self.values = array_of(_cpu(distances.values[number]).double())
        self.left = array_of(_cpu(distances.distance)[problem].double().contiguous()).reshape(-1)
        known = self.left[np.isfinite(self.left)]
        self.last = float(known.max()) if len(known) else math.inf
        self.label = array_of(_cpu(distances.label)[problem].contiguous()).reshape(-1)
        self.table = _table(field, distances.reverse, problem)
        self.walls, self.walled = np.zeros(1, np.bool_), False
        if walls is not None:
            mine = walls.expand(*distances.distance.shape)[problem]
            self.walls = array_of(mine.contiguous()).reshape(-1)
            self.walled = bool(self.walls.any())
        nodes = len(self.left)
        reached, before = np.empty(nodes), np.empty(nodes, np.int32)
        place, keys, queue = np.full(nodes, FAR, np.int32), np.empty(nodes), np.empty_like(before)
        self.scratch = (reached, before, place, keys, queue)

    def path(self, end: np.ndarray, step: float) -> np.ndarray | None:
        """Return the path (n, d) to ``end`` in index coordinates, None if there is none."""
        found = search(
            self.table, self.walls, self.walled, self.shape, self.left, self.last, self.label,
            self.sources, self.values, self._space(end), *self.scratch,
        )  # fmt: skip
        if not len(found):
            return None
        path = shorten(self.table, self.walls, self.walled, self.shape, self.d, found, step)
        return self.origin + self.spacing * path[:, : self.d]

    def _space(self, points: np.ndarray) -> np.ndarray:
        """Return points of the plane as points of space."""
        return np.ascontiguousarray(np.concatenate((points, np.zeros_like(points)), -1)[..., :3])


def _cpu(x: Array) -> Tensor:
    return torch.as_tensor(x.copy() if is_numpy(x) else x).detach().cpu()


def _table(field: GridMetric, reverse: bool, problem: tuple[int, ...]) -> np.ndarray | Norms:
    """Return the rows, or the norms, of one problem's field, as the kernels read them."""
    d, nodes = field.dim, math.prod(field.grid_shape)
    # The batch of the field broadcasts with the problems.
    lead = len(problem) - len(field.batch_shape)
    which = tuple(i if n > 1 else 0 for i, n in zip(problem[lead:], field.batch_shape, strict=True))
    if field.M is None:
        scale = torch.tensor(field.spacing, dtype=torch.float64)
        with torch.no_grad():
            family, rows = rows_of(field.metric, -scale if reverse else scale)
        if family.number is None:
            raise TypeError(
                "distances: expected a map of Riemannian or Randers metrics, which paths in space "
                f"are for, got {type(field.metric).__name__}"
            )
        rows = rows.expand(*field.batch_shape, *field.grid_shape, rows.shape[-1])[which]
        return family.compiled(rows.reshape(nodes, -1))
    M = torch.zeros(nodes, 3, 3, dtype=torch.float64)
    omega = torch.zeros(nodes, 3, dtype=torch.float64)
    h = torch.tensor(field.spacing, dtype=torch.float64)
    M[:, :d, :d] = _cpu(field.M)[which].double().reshape(nodes, d, d) * h[:, None] * h
    if field.omega is not None:
        omega[:, :d] = _cpu(field.omega)[which].double().reshape(nodes, d) * h
    upper = torch.triu_indices(3, 3)
    return array_of(torch.cat((M[:, *upper], -omega if reverse else omega), -1))


def _ends(to: Any, problems: tuple[int, ...], d: int) -> tuple[np.ndarray, bool]:
    """Return the ends (k, d), and whether the result is a list."""
    if isinstance(to, Tensor):
        to = array_of(to.cpu())
    try:
        ends = np.asarray(to, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"to: expected positions, got {type(to).__name__}") from error
    shapes = f"({', '.join(map(str, (*problems, d)))})" if problems else f"({d},) or (k, {d})"
    fits = ends.shape == (*problems, d) if problems else ends.ndim in (1, 2)
    if not fits or ends.shape[-1] != d:
        raise ValueError(f"to: expected shape {shapes}, got {ends.shape}")
    return ends.reshape(-1, d), ends.ndim > 1


def _no_path(finder: _Finder, end: np.ndarray, to: np.ndarray) -> str:
    """Return the message for an end that no path was found to."""
    node = np.floor(end + 0.5).astype(int)
    index = np.ravel_multi_index((*node, 0)[:3], finder.shape)
    if np.isfinite(finder.left[index]):
        return (
            f"to: no path leads from a source to {to.tolist()}, though the map has a distance "
            "there; compute the map anew with the field and the mask that it has"
        )
    return (
        f"to: no front has reached {to.tolist()}: it is behind walls, or beyond the radius at "
        "which the distances stopped"
    )
