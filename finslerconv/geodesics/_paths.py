"""Shortest paths found with a distance map, and the lengths of curves.

A path is searched from its end back to a source, with the distances as a guide, and then made as
short as it can be: both by chords measured in the field itself. The map is never read between its
nodes, where in a narrow valley of the metric it says nothing.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv.geodesics._fast_marching_heap import FAR
from finslerconv.geodesics._grid import GridMetric, MetricField, put_inside, read_positions
from finslerconv.geodesics._kinds import (
    Positions,
    as_tensor,
    as_tensors,
    check_finite,
    is_numpy,
    like,
)
from finslerconv.geodesics._path_search import search
from finslerconv.geodesics._path_shortening import shorten

if TYPE_CHECKING:
    from finslerconv.geodesics._distances import DistanceMap


def minimal_path(distances: "DistanceMap", to: Any, *, step: float = 0.25) -> Array | list[Array]:
    r"""Return the shortest path between the source of a distance map and a position.

    Parameters
    ----------
    distances : DistanceMap
        ``distance(field, sources, full=True)``.
    to : array or sequence, shape (d,) or (k, d), or (\*problems, d)
        Where the paths end (begin, for a map made with ``reverse``): physical positions; for a
        map of several problems one for each.
    step : float
        The longest side of the path, in nodes; at most 1.

    Returns
    -------
    array, shape (n, d), or list of arrays
        Points of the path in the order of travel: from the source to ``to``, or from ``to`` to
        the source for a map made with ``reverse``; as many as it takes, at least two. A list for
        several positions or problems, row-major. In the kind and dtype of the map, without
        gradients.

    Raises
    ------
    TypeError
        If ``distances`` is no :class:`DistanceMap`.
    ValueError
        If a position is outside the grid, not finite, or was not reached by a front; or if no path
        leads from it to a source.

    Notes
    -----
    The path is searched from ``to`` back to a source by steps of any angle between nodes, with the
    distances as the estimate of what is left (A* in the form of Nash and others, "Theta*: any-angle
    path planning on grids", 2007), and then shortened: its corners move across it, all together, by
    widths from two nodes down to a thousandth. What counts is the length in the field itself,
    interpolated linearly. So the path is as short as its way round the walls allows, to about the
    square of the spacing where the field is smooth, and straight where the field is constant. It
    is as long as the map says, but for the map's own error; of a coarse map ("graph" in an
    anisotropic field, say) it is shorter.

    It does not lead through a wall, by the rule of :func:`distance`: along walls and past their
    corners it may touch them, so that it can be shorter than a way from node to node.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, distance, minimal_path
    >>> field = GridMetric(np.broadcast_to(np.eye(2), (9, 9, 2, 2)))
    >>> path = minimal_path(distance(field, (4, 0), full=True), (4, 8))
    >>> path[0], path[-1], bool(np.allclose(path[:, 0], 4))
    (array([4., 0.]), array([4., 8.]), True)
    """
    field = getattr(distances, "field", None)
    if field is None or not hasattr(distances, "label"):
        raise TypeError(
            f"distances: expected a DistanceMap, got {type(distances).__name__}; "
            "distance(field, sources, full=True) returns one"
        )
    if not 0 < step <= 1:
        raise ValueError(f"step: expected a number in (0, 1], got {step!r}")
    d, grid = field.dim, field.grid_shape
    problems = tuple(distances.distance.shape[: distances.distance.ndim - d])
    ends, each = _ends(to, problems, d)
    inside = put_inside(field, "to", torch.from_numpy(ends)).numpy()
    coordinates = (inside - np.asarray(field.origin)) / np.asarray(field.spacing)
    np.clip(coordinates, 0.0, np.asarray(grid) - 1.0, out=coordinates)
    paths = []
    finder: _Finder | None = None
    for number, end in enumerate(coordinates):
        problem = np.unravel_index(number, problems) if problems else ()
        if finder is None or problems:
            finder = _Finder(distances, tuple(int(i) for i in problem))
        points = finder.path(end, float(step))
        if points is None:
            raise ValueError(_no_path(finder, end, ends[number]))
        points[-1] = ends[number]
        points = points[::-1].copy() if distances.reverse else points
        result = torch.from_numpy(points).to(as_tensor("distance", distances.distance).detach())
        paths.append(like(result, distances.distance))
    return paths if each else paths[0]


class _Finder:
    """One problem of a map made ready for paths; in index coordinates of three axes."""

    def __init__(self, distances: "DistanceMap", problem: tuple[int, ...]) -> None:
        field = distances.field
        d, grid = field.dim, field.grid_shape
        self.origin, self.spacing = np.asarray(field.origin), np.asarray(field.spacing)
        self.d, self.shape = d, (*grid, 1)[:3]
        number = int(np.ravel_multi_index(problem, distances.distance.shape[:-d])) if problem else 0
        places = _cpu(distances.sources[number]).double().numpy()
        self.sources = self._space((places - self.origin) / self.spacing)
        self.values = _cpu(distances.values[number]).double().numpy()
        self.left = _cpu(distances.distance)[problem].double().contiguous().numpy().reshape(-1)
        known = self.left[np.isfinite(self.left)]
        self.last = float(known.max()) if len(known) else math.inf
        self.label = _cpu(distances.label)[problem].contiguous().numpy().reshape(-1)
        self.table = _table(field, distances.reverse, problem)
        self.wall, self.walled = np.zeros(1, np.bool_), False
        if distances.mask is not None:
            mask = torch.as_tensor(distances.mask).cpu()
            mask = mask.expand(*distances.distance.shape)[problem]
            self.wall = ~mask.contiguous().numpy().reshape(-1)
            self.walled = bool(self.wall.any())
        nodes = len(self.left)
        self.scratch = (
            np.empty(nodes), np.empty(nodes, np.int32), np.full(nodes, FAR, np.int32),
            np.empty(nodes), np.empty(nodes, np.int32),
        )  # fmt: skip

    def path(self, end: np.ndarray, step: float) -> np.ndarray | None:
        """Return the path (n, d) to ``end`` in index coordinates, None if there is none."""
        found = search(
            self.table, self.wall, self.walled, self.shape, self.left, self.last, self.label,
            self.sources, self.values, self._space(end), *self.scratch,
        )  # fmt: skip
        if not len(found):
            return None
        path = shorten(self.table, self.wall, self.walled, self.shape, self.d, found, step)
        return self.origin + self.spacing * path[:, : self.d]

    def _space(self, points: np.ndarray) -> np.ndarray:
        """Return points of the plane as points of space."""
        return np.ascontiguousarray(np.concatenate((points, np.zeros_like(points)), -1)[..., :3])


def _cpu(x: Array) -> Tensor:
    return torch.as_tensor(x.copy() if is_numpy(x) else x).detach().cpu()


def _table(field: GridMetric, reverse: bool, problem: tuple[int, ...]) -> np.ndarray:
    """Return the rows of one problem's field, as the kernels read it."""
    d, nodes = field.dim, math.prod(field.grid_shape)
    # The batch of the field broadcasts with the problems.
    lead = len(problem) - len(field.batch_shape)
    which = tuple(i if n > 1 else 0 for i, n in zip(problem[lead:], field.batch_shape, strict=True))
    M = torch.zeros(nodes, 3, 3, dtype=torch.float64)
    omega = torch.zeros(nodes, 3, dtype=torch.float64)
    h = torch.tensor(field.spacing, dtype=torch.float64)
    M[:, :d, :d] = _cpu(field.M)[which].double().reshape(nodes, d, d) * h[:, None] * h
    if field.omega is not None:
        omega[:, :d] = _cpu(field.omega)[which].double().reshape(nodes, d) * h
    upper = torch.triu_indices(3, 3)
    return torch.cat((M[:, *upper], -omega if reverse else omega), -1).numpy()


def path_length(field: MetricField, curve: Positions) -> Float[Array, "..."]:
    r"""Return the lengths of polylines, ``F`` integrated along them.

    Parameters
    ----------
    field : GridMetric, FunctionMetric or MetricField
    curve : array or sequence, shape (n, \*batch, ..., d)
        Points in the order of travel, physical, at least two; what :func:`geodesic` and
        :func:`minimal_path` return. Of a batch of fields the batch comes after the points.

    Returns
    -------
    array, shape (\*batch, ...)
        Differentiable in the curve and in the field. Each side by Gauss's rule of two nodes.

    Raises
    ------
    TypeError, ValueError
        If ``curve`` is no array of floats of that shape, or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, path_length
    >>> from finslerconv.metrics import Randers
    >>> wind = GridMetric.from_metric(Randers(np.eye(2), np.array([0.0, 0.5])), (8, 8))
    >>> there = np.array([[1.0, 1.0], [1.0, 5.0]])
    >>> float(path_length(wind, there)), float(path_length(wind, there[::-1].copy()))
    (6.0, 2.0)
    """
    (curve,) = read_positions(field, curve=curve)
    (points,) = as_tensors(curve=curve)
    d = field.dim
    if points.ndim < 2 or points.shape[-1] != d or points.shape[0] < 2:
        raise ValueError(
            f"curve: expected at least two points, shape (n, ..., {d}), got {tuple(points.shape)}"
        )
    check_finite("curve", points)
    batch = tuple(getattr(field, "batch_shape", ()))
    given = tuple(points.shape[1:-1])[: len(batch)]
    if len(given) < len(batch) or any(
        n not in (1, wanted) for n, wanted in zip(given, batch, strict=True)
    ):
        raise ValueError(
            f"curve: expected shape (n, {', '.join(map(str, batch))}, ..., {d}) for a batch of "
            f"fields, got {tuple(points.shape)}"
        )
    points = points.movedim(0, -2)
    begin, side = points[..., :-1, :], points[..., 1:, :] - points[..., :-1, :]
    total: Tensor | float = 0.0
    for place in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):
        metric = _as_tensor_field(field).at(begin + place * side)
        total = total + metric.norm(side).sum(-1) / 2
    assert isinstance(total, Tensor)
    return total.detach().cpu().numpy() if is_numpy(curve) else total


def _as_tensor_field(field: Any) -> MetricField:
    return field.torch() if hasattr(field, "torch") else field


def _ends(to: Any, problems: tuple[int, ...], d: int) -> tuple[np.ndarray, bool]:
    """Return the ends (k, d), and whether the result is a list."""
    if isinstance(to, Tensor):
        to = to.detach().cpu().numpy()
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
