"""What a convolution on geodesic balls samples: fans of geodesics from every centre."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array
from finslerconv._transforms import has_tangent, values
from finslerconv.balls import MapName, ball_map
from finslerconv.geodesics.fields import Outside, per_axis
from finslerconv.geodesics.flow import (
    Grid,
    NodeField,
    Schedule,
    exponential,
    grid_metric,
    grid_table,
    shoot,
)
from finslerconv.metrics import FinslerMetric


@dataclass(frozen=True, eq=False)
class Fan:
    """Reference points as rays from the centre, those on the same ray one after the other.

    Make it with :func:`fan`, once for many calls of :func:`geodesic_positions`.
    """

    points: Float[Tensor, "n d"]
    """The reference points, float64 on the CPU unless they carry gradients."""

    ends: list[int]
    """The index of the outermost point of each ray."""

    schedule: Schedule
    map: MapName


def fan(points: Float[Array, "n d"], *, map: MapName = "radial", steps: int = 4) -> Fan:
    """Return reference points as a fan of rays.

    Under the radial map points on one ray from the origin stay on one geodesic, which is integrated
    once for all of them. Under the affine map, and for points that carry gradients, every point has
    a geodesic of its own.

    Parameters
    ----------
    points : array, shape (n, d)
    map : {"radial", "affine"}
    steps : int
        Integration steps of the longest ray; shorter ones take fewer, in proportion, and at
        least one from a point to the next.
    """
    if not isinstance(points, Tensor):
        # Looked at here, so never on a default device without values.
        points = torch.from_numpy(np.array(points, dtype=np.float64))
    live = points.requires_grad or has_tangent(points)
    g = values(points.double())
    if g.shape != points.shape:
        raise RuntimeError(
            "reference: expected the same points for all that torch.vmap maps over, because how "
            "they lie on rays is looked at; give several sets one after the other"
        )
    length = np.linalg.norm(g, axis=-1)
    longest = float(length.max(initial=0.0)) or 1.0
    rays: list[list[int]] = [[i] for i in range(len(g))]
    if map == "radial" and not live:
        rays = _same_direction(g, length)
    ends = [ray[-1] for ray in rays]
    records = [[(float(length[i] / (length[ray[-1]] or 1.0)), i) for i in ray] for ray in rays]
    for record, ray in zip(records, rays, strict=True):
        record[-1] = (1.0, ray[-1])
    counts = [max(1, math.ceil(steps * length[i] / longest - 1e-9)) for i in ends]
    kept = points if live else torch.from_numpy(g)
    return Fan(kept, ends, Schedule.of(records, counts), map)


def _same_direction(g: np.ndarray, length: np.ndarray) -> list[list[int]]:
    """Return the indices of the points on each ray from the origin, from the inside out."""
    rays: list[list[int]] = []
    directions = np.empty((len(g), g.shape[-1]))
    for i in np.argsort(length, kind="stable"):
        if length[i] > 0:
            u = g[i] / length[i]
            near = np.flatnonzero(np.abs(directions[: len(rays)] - u).max(axis=-1) < 1e-12)
            # Two points in one place need two records, and time to pass between them.
            if near.size and length[i] > (1 + 1e-12) * length[rays[near[0]][-1]]:
                rays[near[0]].append(int(i))
                continue
            directions[len(rays)] = u
        else:
            directions[len(rays)] = np.nan
        rays.append([int(i)])
    return rays


def geodesic_positions(
    M: Float[Tensor, "batch *grid d d"],
    omega: Float[Tensor, "batch *grid d"] | None,
    points: Float[Tensor, "n d"] | Fan,
    *,
    spacing: float | Sequence[float] = 1.0,
    origin: float | Sequence[float] = 0.0,
    centres: Float[Tensor, "*centres d"] | None = None,
    map: MapName = "radial",
    steps: int = 4,
    outside: Outside = "constant",
    compiled: bool | None = None,
) -> Float[Tensor, "batch *_ n d"]:
    r"""Return where reference points lie in geodesic balls, as displacements from the centres.

    What a convolution on geodesic balls samples: ``exp_x(v) - x`` with ``v`` the image of the
    reference point in the unit tangent ball of ``x``. Differentiable in ``M`` and ``omega``, in the
    centres, and in the points where these carry gradients; arguments are not checked.

    Parameters
    ----------
    M : Tensor, shape (B, \*grid, d, d)
        Fields on a planar or spatial grid, read linearly between the nodes, float32 or float64.
        A layer of stride s has its metrics at nodes s pixels apart: ``spacing=s``.
    omega : Tensor, shape (B, \*grid, d), or None
    points : Tensor, shape (n, d), or Fan
        Reference points; a tensor's values are looked at (where it is on a GPU, the host waits),
        so that a layer should keep the ``Fan`` that :func:`fan` makes of them. ``map`` and
        ``steps`` are the fan's then.
    spacing, origin : float or sequence of float
        Of the grid, in the units of the metric (pixels): node ``i`` lies at ``origin + spacing i``.
    centres : Tensor, shape (\*centres, d), optional
        Physical positions, the same for every field; the nodes unless given. The metric at a
        centre between nodes is interpolated.
    map : {"radial", "affine"}
        How reference points are carried into the tangent ball.
    steps : int
        Integration steps (of order 4) of the longest ray.
    outside : {"constant", "reflect"}
        How the field goes on outside the grid.
    compiled : bool, optional
        Whether to use the compiled kernels, which serve planar grids on the CPU; where possible
        unless given. PyTorch's operations take the same steps and agree to rounding; they run in
        tiles, whose states are computed again in the backward pass, so that memory stays bounded.

    Returns
    -------
    Tensor, shape (B, \*centres, n, d)
        Displacements in the units of the metric; ``centres`` is the grid's shape for the nodes.
        A reference point 0 stays, under the radial map.
    """
    batch, d = M.shape[0], M.shape[-1]
    shape = tuple(M.shape[1:-2])
    step, first = per_axis("spacing", spacing, d), per_axis("origin", origin, d)
    grid = Grid(shape, step, outside)
    rays = points if isinstance(points, Fan) else fan(points, map=map, steps=steps)
    table = grid_table(grid, M, omega)
    ends = rays.points[rays.ends].to(table)
    if centres is None:
        axes = [torch.arange(n, dtype=M.dtype, device=M.device) for n in shape]
        starts = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    else:
        starts = (centres - M.new_tensor(first)) / M.new_tensor(step)
    fans = starts.reshape(1, -1, d).expand(batch, -1, d)
    radial = rays.map == "radial"
    if radial:
        velocities = ends.expand(*fans.shape[:2], *ends.shape)
    else:
        rows = torch.arange(batch, device=M.device)[:, None] * math.prod(shape)
        metric = grid_metric(grid, table, rows, fans)
        velocities = ball_map(rays.map)(metric[:, :, None], ends)
    out = shoot(grid, table, fans, velocities, rays.schedule, radial=radial, compiled=compiled)
    return out.reshape(batch, *starts.shape[:-1], *out.shape[-2:])


def metric_positions(
    metric: FinslerMetric,
    points: Float[Tensor, "n d"],
    *,
    spacing: float | Sequence[float] = 1.0,
    map: MapName = "radial",
    steps: int = 4,
) -> Float[Tensor, "*_ n d"]:
    r"""Return :func:`geodesic_positions` around the nodes of any metric that can be indexed.

    In PyTorch's operations; see :class:`finslerconv.geodesics.flow.NodeField` for the field between
    the nodes. Every point has a geodesic of its own, of as many steps.

    Parameters
    ----------
    metric : FinslerMetric
        Of batch shape (\*batch, \*grid).
    points : Tensor, shape (n, d)
    spacing, map, steps
        As of :func:`geodesic_positions`.

    Returns
    -------
    Tensor, shape (\*batch, \*grid, n, d)

    Raises
    ------
    TypeError
        If the metric cannot be indexed, or is none for the affine map.
    """
    field = NodeField(metric, per_axis("spacing", spacing, metric.dim))
    centres = field.nodes(points)[..., None, :]
    lead = points.reshape(-1, *(1,) * len(metric.batch_shape), points.shape[-1])
    velocities = ball_map(map)(metric, lead).movedim(0, -2)
    return exponential(field, centres, velocities, method="rk4", steps=steps) - centres
