"""Linear fields on grids, read for the flow: tables of their nodes, and the flow in closed form."""

from typing import NamedTuple, TypeGuard

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from finslerconv._linalg import dot, matvec
from finslerconv.geodesics.fields import (
    GridMetric,
    MetricField,
    Outside,
    cell_along,
    first_rows,
    slope_factor,
    upper_entries,
)
from finslerconv.geodesics.flow._rates import rates
from finslerconv.geodesics.flow._steps import Rates
from finslerconv.metrics import Randers, RandersForm


class Grid(NamedTuple):
    """The geometry of fields that are read from a table of their nodes' entries."""

    shape: tuple[int, ...]
    """The number of nodes along each axis."""

    spacing: tuple[float, ...]
    outside: Outside


def grid_table(
    grid: Grid,
    M: Float[Tensor, "*nodes d d"],
    omega: Float[Tensor, "*nodes d"] | None,
) -> Float[Tensor, "rows entries"]:
    """Return the table of fields: a row for each node, fields one after the other.

    A row holds the upper triangle of ``M`` row by row and ``omega``, if there is one, then their
    slopes along each axis: central differences, one-sided at the ends. Between the nodes slopes are
    interpolated as the entries are. The slopes of the interpolated entries would jump at every line
    of nodes. These do not, and differ from them by the square of the spacing, as the field itself
    does from what it samples. So long steps serve, and a ray along a line of nodes sees both sides.
    """
    d = M.shape[-1]
    entries = torch.stack(upper_entries(M, omega), dim=-1)
    slopes = [_slope(entries, axis - d - 1, grid.spacing[axis]) for axis in range(d)]
    return torch.cat((entries, *slopes), dim=-1).flatten(0, -2)


def _slope(f: Tensor, axis: int, step: float) -> Tensor:
    """Return the slopes along an axis counted from the last, 0 along one of a single node."""
    n = f.shape[axis]
    # Without a case of its own for small n, so that a program exported for one size serves all.
    wider = torch.cat((f.narrow(axis, 0, 1), f, f.narrow(axis, n - 1, 1)), dim=axis)
    place = torch.arange(n, device=f.device).reshape(-1, *(1,) * (-axis - 1))
    at_end = (place == 0) | (place == n - 1)
    apart = 2 - at_end.to(f.dtype)
    return (wider.narrow(axis, 2, n) - wider.narrow(axis, 0, n)) / (apart * step)


def is_linear(field: object) -> TypeGuard[GridMetric]:
    """Return whether a Randers field is read linearly between nodes of a grid: from a table."""
    return isinstance(field, GridMetric) and field.M is not None and field.interpolation == "linear"


def tabulated(field: GridMetric, x: Float[Tensor, "*batch d"]) -> tuple[Grid, Tensor]:
    """Return the geometry of a linear field, and its table in the dtype of positions ``x``."""
    grid = Grid(field.grid_shape, field.spacing, field.outside)
    return grid, grid_table(grid, field.M, field.omega).to(x)


def in_nodes(field: GridMetric, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Return physical positions in nodes of the grid."""
    return (x - x.new_tensor(field.origin)) / x.new_tensor(field.spacing)


def grid_metric(
    grid: Grid,
    table: Float[Tensor, "nodes entries"],
    first: Int[Tensor, "*#batch"],
    c: Float[Tensor, "*#batch d"],
) -> Randers:
    """Return the metrics of fields read linearly; arguments as of :func:`grid_rates`."""
    (M, omega), _ = _read(grid, table, first, c)
    return Randers(M, omega, validate=False)


def grid_rates(
    grid: Grid,
    table: Float[Tensor, "nodes entries"],
    first: Int[Tensor, "*#batch"],
    c: Float[Tensor, "*#batch d"],
    p: Float[Tensor, "*#batch d"],
    length: Float[Tensor, "*#batch"],
) -> tuple[Float[Tensor, "*_ d"], Float[Tensor, "*_ d"]]:
    """Return :func:`rates` for fields read linearly from their grids, in closed form.

    The force ``-dF*/dx`` is the derivative of ``F_x(v)`` in ``x`` at the velocity, times
    ``F* / L``.

    Parameters
    ----------
    grid : Grid
    table : Tensor, shape (nodes, entries)
        Of :func:`grid_table`.
    first : Tensor, shape (...)
        The row of the table at which a ray's field begins.
    c : Tensor, shape (..., d)
        Coordinates in nodes.
    p : Tensor, shape (..., d)
        Momenta, none zero.
    length : Tensor, shape (...)
        The lengths ``L`` of velocities.
    """
    (M, omega), slopes = _read(grid, table, first, c)
    z, root, F = RandersForm(M, omega).normal(p)
    scale = length / root
    force = [scale * (dot(z, matvec(dM, z)) / 2 + F * dot(domega, z)) for dM, domega in slopes]
    return scale[..., None] * z, torch.stack(force, dim=-1)


def momentum_rates(
    field: MetricField, x: Float[Tensor, "*batch d"], length: Float[Tensor, "*batch"]
) -> Rates:
    """Return the rates of positions and momenta, of rays of these lengths that start at ``x``."""
    if not is_linear(field):
        return lambda x, p: rates(field, x, p, length)
    # By the table, so that a linear field has one flow by all methods.
    grid, table = tabulated(field, x)
    first = first_rows(field, x)
    return lambda x, p: grid_rates(grid, table, first, in_nodes(field, x), p, length)


_Entries = tuple[Tensor, Tensor]


def _read(grid: Grid, table: Tensor, first: Tensor, c: Tensor) -> tuple[_Entries, list[_Entries]]:
    """Return ``(M, omega)`` at the coordinates, and their slopes along each axis."""
    d = len(grid.shape)
    offsets = torch.zeros_like(first)[..., None]
    weights = torch.ones_like(c[..., :1])
    factors = []
    for axis, n in enumerate(grid.shape):
        factors.append(slope_factor(c[..., axis], n, grid.outside))
        i, f = cell_along(c[..., axis], n, grid.outside)
        nodes = torch.stack((i, (i + 1).clamp(max=n - 1)), dim=-1)
        w = torch.stack((1 - f, f), dim=-1)
        weights = (weights[..., :, None] * w[..., None, :]).flatten(-2)
        offsets = (n * offsets[..., :, None] + nodes[..., None, :]).flatten(-2)
    rows = embedding(first[..., None] + offsets, table)
    value, *slopes = (rows * weights[..., None]).sum(-2).chunk(d + 1, dim=-1)
    return _unpacked(value, d), [
        _unpacked(slope * factor[..., None], d)
        for slope, factor in zip(slopes, factors, strict=True)
    ]


def _unpacked(entries: Tensor, d: int) -> _Entries:
    upper = [(i, j) for i in range(d) for j in range(i, d)]
    places = [upper.index((min(i, j), max(i, j))) for i in range(d) for j in range(d)]
    M = entries[..., places].unflatten(-1, (d, d))
    omega = entries[..., len(upper) :]
    return M, omega if omega.shape[-1] else torch.zeros_like(M[..., 0])
