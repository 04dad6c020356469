"""Shortest paths read off a distance map, and the lengths of curves.

From the target the path goes back along the flow of the front that arrived there, between nodes
too, as long as the distance falls as fast as it must. Where it does not, near walls and where two
fronts meet, the path steps to a node of smaller distance, the nearest that it can see: such a node
always exists but at a source, so a path always ends there. It need not be a neighbour, for the
fronts of very anisotropic fields reach a node from beyond its neighbours.
"""

import math
from typing import TYPE_CHECKING, Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv.geodesics._exponential_numba import entry, jit
from finslerconv.geodesics._grid import MetricField, read_positions
from finslerconv.geodesics._kinds import (
    Positions,
    as_tensor,
    as_tensors,
    check_finite,
    is_numpy,
    like,
)

if TYPE_CHECKING:
    from finslerconv.geodesics._distances import DistanceMap

# So near to its source, in nodes along each axis, a path goes straight: the flow is coarse there.
_NEAR = 2

# A step along the flow must lower the distance by this part of what the flow promises.
_PROGRESS = 0.1


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
        Length of a step along the flow, in nodes; at most 1.

    Returns
    -------
    array, shape (n, d), or list of arrays
        Points of the path in the order of travel: from the source to ``to``, or from ``to`` to
        the source for a map made with ``reverse``; as many as it takes. A list for several
        positions or problems, row-major. In the kind and dtype of the map, without gradients.

    Raises
    ------
    TypeError
        If ``distances`` is no :class:`DistanceMap`.
    ValueError
        If a position is outside the grid, not finite, or was not reached by a front.

    Notes
    -----
    Second-order steps in the linearly interpolated flow, so the path is accurate to about the
    square of the spacing where the flow is smooth. It does not cut through nodes that were not
    reached.

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
    if field is None or not hasattr(distances, "flow"):
        raise TypeError(
            f"distances: expected a DistanceMap, got {type(distances).__name__}; "
            "distance(field, sources, full=True) returns one"
        )
    if not 0 < step <= 1:
        raise ValueError(f"step: expected a number in (0, 1], got {step!r}")
    d, grid = field.dim, field.grid_shape
    problems = tuple(distances.distance.shape[: distances.distance.ndim - d])
    values = as_tensor("distance", distances.distance).detach().cpu()
    ends, each = _ends(to, problems, d)
    coordinates = (ends - np.asarray(field.origin)) / np.asarray(field.spacing)
    _check_inside(coordinates, ends, grid)
    flow = as_tensor("flow", distances.flow).detach().cpu()
    # In nodes, and towards the source.
    sign = 1.0 if distances.reverse else -1.0
    ways = (sign * flow.double() / torch.tensor(field.spacing)).reshape(-1, math.prod(grid), d)
    lengths = values.double().reshape(len(ways), -1).contiguous().numpy()
    labels = torch.as_tensor(distances.label).cpu().reshape(len(ways), -1).numpy()
    spacing, origin = np.asarray(field.spacing), np.asarray(field.origin)
    paths = []
    for number, start in enumerate(coordinates):
        problem = number if problems else 0
        sources = as_tensor("sources", distances.sources[problem]).double().cpu().numpy()
        path = _back(
            lengths[problem], ways[problem].contiguous().numpy(), labels[problem],
            (sources - origin) / spacing, grid, start, step,
        )  # fmt: skip
        if path is None:
            raise ValueError(
                f"to: no front has reached {ends[number].tolist()}: it is behind walls, or beyond "
                "the radius at which the distances stopped"
            )
        points = origin + spacing * path
        points[0] = ends[number]
        points = points if distances.reverse else points[::-1].copy()
        result = torch.from_numpy(points).to(as_tensor("distance", distances.distance).detach())
        paths.append(like(result, distances.distance))
    return paths if each else paths[0]


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


def _check_inside(coordinates: np.ndarray, ends: np.ndarray, grid: tuple[int, ...]) -> None:
    last = np.asarray(grid) - 1.0
    slack = 1e-9 * (1 + last)
    bad = ~((coordinates >= -slack) & (coordinates <= last + slack)).all(-1)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"to: expected positions inside the grid, got {ends[row].tolist()}")
    np.clip(coordinates, 0.0, last, out=coordinates)


def _back(
    lengths: np.ndarray,
    ways: np.ndarray,
    labels: np.ndarray,
    sources: np.ndarray,
    grid: tuple[int, ...],
    start: np.ndarray,
    step: float,
) -> np.ndarray | None:
    """Return the path (n, d) in nodes from ``start`` to a source; None if it has no distance."""
    shape = np.asarray(grid, dtype=np.int64)
    room = int(8 * sum(grid) / step) + 64
    # Every step lowers the distance, and no node is met twice: this is beyond any path.
    most = 64 * int(math.prod(grid) / step) + 1024
    while True:
        out = np.empty((room, len(grid)))
        count = _follow(lengths, ways, labels, sources, shape, start, step, out)
        if count >= 0 or room >= most:
            return out[:count] if count > 0 else None
        room *= 4


@jit
@no_type_check
def _corner(c, shape, corner):
    """Return the flat index and the weight of a corner of the cell around ``c``."""
    index = 0
    weight = 1.0
    for axis in range(len(shape)):
        i = max(min(int(c[axis]), shape[axis] - 2), 0)
        f = c[axis] - i
        bit = (corner >> axis) & 1
        index = index * shape[axis] + min(i + bit, shape[axis] - 1)
        weight *= f if bit else 1.0 - f
    return index, weight


@jit
@no_type_check
def _length(lengths, shape, c):
    """Return the distance at ``c``, of the corners that were reached; inf if none is near."""
    nearest = 0
    for axis in range(len(shape)):
        nearest = nearest * shape[axis] + int(np.rint(c[axis]))
    if not np.isfinite(lengths[nearest]):
        return np.inf
    total, weights = 0.0, 0.0
    for corner in range(1 << len(shape)):
        index, weight = _corner(c, shape, corner)
        if weight > 0.0 and np.isfinite(lengths[index]):
            total += weight * lengths[index]
            weights += weight
    return total / weights if weights > 0.0 else np.inf


@jit
@no_type_check
def _way(lengths, ways, shape, c, out):
    """Write the unit direction at ``c`` and return the speed in nodes; 0 where there is none."""
    d = len(shape)
    weights = 0.0
    for axis in range(d):
        out[axis] = 0.0
    speed = 0.0
    for corner in range(1 << d):
        index, weight = _corner(c, shape, corner)
        if weight > 0.0 and np.isfinite(lengths[index]):
            square = 0.0
            for axis in range(d):
                out[axis] += weight * ways[index, axis]
                square += ways[index, axis] ** 2
            speed += weight * np.sqrt(square)
            weights += weight
    square = 0.0
    for axis in range(d):
        square += out[axis] ** 2
    size = np.sqrt(square)
    # Where directions cancel there is none: a source, or a place that two fronts reach.
    if weights == 0.0 or not size > 0.3 * speed:
        return 0.0
    for axis in range(d):
        out[axis] /= size
    return speed / weights


@jit
@no_type_check
def _place(index, shape, out):
    """Write the coordinates of a node."""
    for k in range(len(shape)):
        axis = len(shape) - 1 - k
        out[axis] = index % shape[axis]
        index //= shape[axis]


@jit
@no_type_check
def _lowest(lengths, shape, c):
    """Return the corner of the smallest distance of the cell around ``c``."""
    best = -1
    for corner in range(1 << len(shape)):
        index, _ = _corner(c, shape, corner)
        if np.isfinite(lengths[index]) and (best < 0 or lengths[index] < lengths[best]):
            best = index
    return best


@jit
@no_type_check
def _downhill(lengths, shape, c, u):
    """Return a node below ``u`` in sight of ``c``: the lowest of the nearest ring, or -1."""
    d = len(shape)
    reach = 0
    for axis in range(d):
        reach = max(reach, shape[axis])
    for ring in range(1, reach):
        wide = 2 * ring + 1
        best = -1
        for neighbour in range(wide**d):
            rest, index, stride, inside, edge = neighbour, 0, 1, True, False
            for k in range(d):
                axis = d - 1 - k
                step = rest % wide - ring
                rest //= wide
                i = int(np.rint(c[axis])) + step
                edge = edge or abs(step) == ring or ring == 1
                inside = inside and 0 <= i < shape[axis]
                index += stride * i
                stride *= shape[axis]
            bound = u if best < 0 else lengths[best]
            lower = inside and edge and lengths[index] < bound
            if lower and _in_sight(lengths, shape, c, index):
                best = index
        if best >= 0:
            return best
    return -1


@jit
@no_type_check
def _in_sight(lengths, shape, c, node):
    """Return whether the segment from ``c`` to a node passes only by nodes that were reached."""
    d = len(shape)
    end = np.empty(d)
    _place(node, shape, end)
    far = 0.0
    for axis in range(d):
        far = max(far, abs(end[axis] - c[axis]))
    parts = 2 * int(np.ceil(far))
    for part in range(1, parts):
        index = 0
        for axis in range(d):
            i = int(np.rint(c[axis] + part / parts * (end[axis] - c[axis])))
            index = index * shape[axis] + i
        if not np.isfinite(lengths[index]):
            return False
    return True


@jit
@no_type_check
def _open(lengths, shape, a, b):
    """Return whether two places are near each other, and all nodes around them were reached."""
    d = len(shape)
    for axis in range(d):
        if abs(a[axis] - b[axis]) > _NEAR:
            return False
    wide = _NEAR + 2
    for step in range(wide**d):
        rest, index, inside = step, 0, True
        for axis in range(d):
            i = int(np.floor(min(a[axis], b[axis]))) + rest % wide
            rest //= wide
            inside = inside and i <= np.ceil(max(a[axis], b[axis])) and i < shape[axis]
            index = index * shape[axis] + i
        if inside and not np.isfinite(lengths[index]):
            return False
    return True


@entry
@no_type_check
def _follow(lengths, ways, labels, sources, shape, start, step, out):
    """Write the path from ``start`` to a source; return its number of points.

    0 if the start has no distance, -1 if there is no more room.
    """
    d = len(shape)
    room = len(out)
    here, there, way = start.copy(), start.copy(), np.empty(d)
    u = _length(lengths, shape, here)
    if not np.isfinite(u):
        return 0
    out[0] = here
    count = 1
    while count < room - 1:
        best = _lowest(lengths, shape, here)
        source = sources[labels[best]]
        if _open(lengths, shape, here, source):
            out[count] = source
            return count + 1

        speed = _way(lengths, ways, shape, here, way)
        good = speed > 0.0
        if good:
            for axis in range(d):
                there[axis] = min(max(here[axis] + step / 2 * way[axis], 0.0), shape[axis] - 1.0)
            good = _way(lengths, ways, shape, there, way) > 0.0
        if good:
            for axis in range(d):
                there[axis] = min(max(here[axis] + step * way[axis], 0.0), shape[axis] - 1.0)
            length = _length(lengths, shape, there)
            good = length < u - _PROGRESS * step / speed
        if good:
            for axis in range(d):
                here[axis] = there[axis]
            u = length
        else:
            found = _downhill(lengths, shape, here, u)
            if found < 0:  # the lowest node that can be reached: what is left is its source
                out[count] = source
                return count + 1
            u = lengths[found]
            _place(found, shape, here)
        out[count] = here
        count += 1
    return -1
