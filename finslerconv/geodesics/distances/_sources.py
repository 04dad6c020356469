"""The sources of distances, read from what a user gives."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv._arrays import Array, first_index, shown
from finslerconv.geodesics.distances._method import Seeds
from finslerconv.geodesics.fields import (
    GridMetric,
    grid_nodes,
    is_numpy,
    is_tensor,
    plain_numbers,
    put_inside,
    shown_position,
    shown_shape,
)

# Samples of a curve per step of the grid. The distance of a node p from the curve is then wrong by
# less than step / 512 (p / step).
_PER_STEP = 8


@final
@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """A polyline as a source: all of its points are at distance 0.

    Parameters
    ----------
    points : array, shape (n, d)
        Its corners, physical coordinates in the order of the axes; the first again at the end for a
        closed curve. One point is allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import Curve, GridMetric, distance
    >>> field = GridMetric(np.broadcast_to(np.eye(2), (5, 5, 2, 2)))
    >>> distance(field, Curve(np.array([[0.0, 0.0], [0.0, 4.0]])))[:, 2].round(6)
    array([0., 1., 2., 3., 4.])
    """

    points: Float[Array, "n d"]

    def __repr__(self) -> str:
        return f"Curve({len(self.points)} points)"

    def sampled(self, step: float) -> Float[Tensor, "samples d"]:
        """Return points of the curve, corners included, at most ``step`` apart, as float64."""
        corners = _numbers("Curve: points", self.points)
        if corners.ndim != 2 or corners.shape[0] == 0:
            raise ValueError(
                "Curve: points: expected the corners of a polyline, shape (n, d) with n at least "
                f"1, got {tuple(corners.shape)}"
            )
        _check_finite("Curve: points", corners)
        pieces = [corners[:1]]
        for a, b in itertools.pairwise(corners):
            n = max(1, math.ceil(float(torch.linalg.norm((b - a).detach())) / step))
            t = torch.arange(1, n + 1, dtype=torch.float64, device=corners.device) / n
            pieces.append(a + t[:, None] * (b - a))
        return torch.cat(pieces)


class Problems(NamedTuple):
    """The axes of the problems, ``()`` for a single one, and the seeds of each, row-major."""

    shape: tuple[int, ...]
    seeds: list[Seeds]


class _Group(NamedTuple):
    """The sources of one problem as they were given."""

    position: Float[Tensor, "sources d"]
    single: bool
    """Whether each was given by its position, so that none may lie in a wall."""
    dtype: torch.dtype
    """That of the numbers, by which they are rounded."""


def seeds_of(
    field: GridMetric,
    sources: Any,
    values: Array | None = None,
    walls: Bool[Tensor, "*problems_and_grid"] | None = None,
) -> Problems:
    """Return the seeds of each problem, from arguments of :func:`finslerconv.geodesics.distance`.

    ``walls`` are on the CPU, with axes before the grid's that broadcast against the problems and
    the batch of the field.
    """
    shape, groups = _positions(field, sources)
    for number, group in enumerate(groups):
        where = _where(number, shape)
        if len(group.position) == 0:
            raise ValueError(f"sources: expected at least one source, got none{where}")
        _check_finite(f"sources{where}", group.position)
        position = put_inside(field, f"sources{where}", group.position, group.dtype)
        groups[number] = group._replace(position=position)
    starts = _starts(values, shape, [group.position for group in groups])
    batch = () if walls is None else tuple(walls.shape[: walls.ndim - field.dim])
    try:
        whole = tuple(torch.broadcast_shapes(shape, field.batch_shape, batch))
    except RuntimeError as error:
        raise ValueError(
            f"sources: expected problems that broadcast with the batch of the field and the mask, "
            f"got {shape} for the sources, {field.batch_shape} for the field, {batch} for the mask"
        ) from error

    order = torch.arange(len(groups)).reshape(shape).expand(whole).flatten().tolist()
    if walls is not None:
        walls = walls.expand(*whole, *field.grid_shape).reshape(-1, *field.grid_shape)
        for place, number in enumerate(order):
            position, single, _ = groups[number]
            walled = walls[place][tuple(nearest_node(field, position).cpu().T)]
            if bool(walled.any() if single else walled.all()):
                first = int(walled.nonzero()[0])
                raise ValueError(
                    "sources: expected sources outside the obstacles, but mask is False at the "
                    f"node nearest to source {first}{_where(place, whole)}, which is at "
                    f"{shown_position(position[first])}"
                )
    return Problems(whole, [Seeds(groups[number].position, starts[number]) for number in order])


def targets_of(
    field: GridMetric,
    targets: Any,
    problems: Problems,
    walls: Bool[Tensor, "masks *grid"] | None,
) -> list[Int[np.ndarray, "_"]]:
    """Return the nodes around the targets of each problem, flat, without those in walls.

    ``walls`` are one mask for all problems or one a problem.
    """
    shape, groups = _positions(field, targets, "targets")
    try:
        order = torch.arange(len(groups)).reshape(shape).expand(problems.shape).flatten()
    except RuntimeError as error:
        raise ValueError(
            f"targets: expected problems that broadcast to those of the sources, {problems.shape}, "
            f"got {shape}"
        ) from error
    grid = field.grid_shape
    nodes = []
    for number, (position, _, dtype) in enumerate(groups):
        name = f"targets{_where(number, shape)}"
        if len(position) == 0:
            raise ValueError(f"targets: expected at least one target, got none{name[7:]}")
        _check_finite(name, position)
        inside = put_inside(field, name, position.detach(), dtype).cpu()
        t = (inside - torch.tensor(field.origin).double()) / torch.tensor(field.spacing).double()
        low, high = t.floor().long(), t.ceil().long()
        corners = itertools.product((low, high), repeat=field.dim)
        around = torch.cat([torch.stack([c[:, a] for a, c in enumerate(k)], -1) for k in corners])
        last = torch.tensor(grid) - 1
        index = around.clamp(min=0).minimum(last).numpy()
        nodes.append(np.unique(np.ravel_multi_index(tuple(index.T), grid)))
    found = []
    for place, number in enumerate(order.tolist()):
        mine = nodes[number]
        if walls is not None:
            mine = mine[~walls[place if len(walls) > 1 else 0].reshape(-1).numpy()[mine]]
        found.append(mine)
    return found


def nearest_node(field: GridMetric, position: Float[Tensor, "n d"]) -> Int[Tensor, "n d"]:
    """Return the indices of the nodes that positions in the grid are nearest to."""
    origin, spacing = position.new_tensor(field.origin), position.new_tensor(field.spacing)
    last = position.new_tensor([n - 1.0 for n in field.grid_shape])
    t = ((position.detach() - origin) / spacing + 0.5).floor()
    return t.clamp(min=0.0).minimum(last).long()


def _positions(
    field: GridMetric, sources: Any, name: str = "sources"
) -> tuple[tuple[int, ...], list[_Group]]:
    """Return the axes of the problems, and the positions of each, float64."""
    d = field.dim
    if isinstance(sources, Curve):
        points = sources.sampled(min(field.spacing) / _PER_STEP).to(_device(field))
        _check_width(name, points, d)
        return (), [_Group(points, single=False, dtype=_dtype(sources.points))]
    if isinstance(sources, Sequence) and not isinstance(sources, str):
        if len(sources) == 0:
            raise ValueError(f"{name}: expected at least one {name[:-1]}, got an empty list")
        rectangular = _rectangular(sources)
        if rectangular is None:
            shapes, groups = zip(*(_positions(field, s, name) for s in sources), strict=True)
            for number, shape in enumerate(shapes):
                if shape != ():
                    raise ValueError(
                        f"{name}: expected one problem in each entry of a list, entry {number} "
                        f"has problems of its own, {shape}"
                    )
            return (len(groups),), [group[0] for group in groups]
        sources = rectangular
    if not (is_numpy(sources) or is_tensor(sources)):
        raise TypeError(
            f"{name}: expected an array of positions, a boolean mask, a Curve, or a list of those "
            f"(one entry a problem), got {type(sources).__name__}"
        )
    if str(sources.dtype).endswith("bool"):
        return _masked(name, field, torch.as_tensor(sources, device=_device(field)))
    positions = _numbers(name, sources).to(_device(field))
    _check_width(name, positions, d)
    if positions.ndim == 1:
        positions = positions[None]
    shape = tuple(positions.shape[:-2])
    if math.prod(shape) == 0:
        raise ValueError(f"{name}: expected at least one problem, got shape {tuple(shape)}")
    problems = positions.reshape(math.prod(shape), *positions.shape[-2:])
    dtype = _dtype(sources)
    return shape, [_Group(position, single=True, dtype=dtype) for position in problems]


def _masked(name: str, field: GridMetric, where: Tensor) -> tuple[tuple[int, ...], list[_Group]]:
    d, grid = field.dim, field.grid_shape
    if tuple(where.shape[-d:]) != grid:
        raise ValueError(
            f"{name}: expected a boolean mask over the grid, shape (..., {str(grid)[1:-1]}), got "
            f"{tuple(where.shape)}"
        )
    nodes = grid_nodes(grid, field.spacing, field.origin, device=where.device)
    masks = where.reshape(-1, *grid)
    groups = [_Group(nodes[one], single=False, dtype=nodes.dtype) for one in masks]
    return tuple(where.shape[:-d]), groups


def _rectangular(sources: Sequence[Any]) -> np.ndarray | None:
    """Return nested sequences of numbers, or of booleans, as one array; None for anything else."""

    def boolean(x: Any) -> bool:
        return isinstance(x, bool | np.bool_) or (
            isinstance(x, list | tuple) and all(map(boolean, x))
        )

    if not boolean(sources):
        return plain_numbers(sources)
    try:
        return np.asarray(sources, dtype=bool)
    except ValueError:  # ragged
        return None


def _dtype(x: Any) -> torch.dtype:
    """Return the dtype of an array of floats, float64 for other numbers."""
    dtype = torch.as_tensor(x[:0]).dtype if is_numpy(x) or is_tensor(x) else torch.float64
    return dtype if dtype.is_floating_point else torch.float64


def _numbers(name: str, x: Any) -> Tensor:
    """Return positions or values, integers among them, as float64 with their gradient history."""
    if not (is_numpy(x) or is_tensor(x)):
        try:
            x = np.asarray(x, dtype=float)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name}: expected numbers, got {shown(x)}") from error
    tensor = x if is_tensor(x) else torch.as_tensor(np.array(x))
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected real numbers, got {tensor.dtype}")
    return tensor.to(torch.float64)


def _starts(values: Array | None, shape: tuple[int, ...], groups: list[Tensor]) -> list[Tensor]:
    if values is None:
        return [torch.zeros_like(group[:, 0]) for group in groups]
    numbers = _numbers("values", values).to(groups[0].device)
    _check_finite("values", numbers)
    lengths = {len(group) for group in groups}
    try:
        if len(lengths) > 1:
            raise RuntimeError
        whole = numbers.expand(*shape, lengths.pop())
    except RuntimeError as error:
        raise ValueError(
            "values: expected one number for each source, to broadcast with shape "
            f"{shown_shape(shape, 'sources')}, the same for all problems; got shape "
            f"{tuple(numbers.shape)}"
        ) from error
    return list(whole.reshape(len(groups), -1))


def _check_width(name: str, positions: Tensor, d: int) -> None:
    if positions.ndim == 0 or positions.shape[-1] != d:
        raise ValueError(
            f"{name}: expected positions of {d} coordinates on the last axis, shape (*problems, "
            f"{name}, {d}), got shape {tuple(positions.shape)}"
        )


def _check_finite(name: str, x: Tensor) -> None:
    bad = ~x.detach().isfinite()
    if bool(bad.any()):
        index = first_index(bad)
        raise ValueError(
            f"{name}: expected finite numbers, got {float(x.detach()[index])} at index {index}"
        )


def _where(number: int, shape: tuple[int, ...]) -> str:
    if not shape:
        return ""
    index = tuple(int(i) for i in np.unravel_index(number, shape))
    return f" in problem {index[0] if len(index) == 1 else index}"


def _device(field: GridMetric) -> torch.device:
    return field.like.device if is_tensor(field.like) else torch.device("cpu")
