"""Samples of geodesic balls that another geodesic reaches earlier, and where a ball folds.

Geodesics leave a centre in evenly spread directions and are recorded at equal times. Neighbouring
records are joined to simplices that fill the ball, and each corner has its time. A simplex that
contains a sample at an earlier time than the sample's own is a sign of a cut point. The geodesic to
that place in the simplex is then followed: its length, and that of the straight way from its end to
the sample, bound the sample's distance.
"""

import itertools
import math
from functools import cache
from typing import NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import ConvexHull
from torch import Tensor

from finslerconv._compiled import entry, jit, put
from finslerconv._linalg import det
from finslerconv._norms import norm_off_zero
from finslerconv._threads import run, share
from finslerconv.balls import affine
from finslerconv.geodesics.fields import FunctionMetric, GridMetric, MetricField
from finslerconv.geodesics.flow import (
    Schedule,
    exponential,
    first_conjugate,
    geodesic_flow,
    in_nodes,
    is_linear,
    shoot,
    tabulated,
)
from finslerconv.metrics import FinslerMetric

# The fraction of a geodesic's length that another must save.
_TOLERANCE = 0.02

# The fraction of its geodesic that a conjugate point lies before a sample.
_BEFORE = 0.01

# Geodesics of a fan, by the dimension, and equal times along them.
_RAYS = {2: 48, 3: 162}
_TIMES = 6

# Equal times at which neighbours are compared.
_RECORDS = 12

# Points of fans that are in memory at once.
_TILE = 2**20


class Arrivals(NamedTuple):
    """What is known of the samples of balls: fractions (n, *centres) of their own geodesics."""

    early: Float[np.ndarray, "n *centres"]
    """Bounds on the distances; 1 where no geodesic is found that saves more than the tolerance."""

    folds: Float[np.ndarray, "n *centres"]
    """Where the first conjugate point is; infinity where none is found before the sample."""


def arrivals(
    field: MetricField,
    metric: FinslerMetric,
    x: Float[Tensor, "*centres d"],
    velocities: Float[Tensor, "n *centres d"],
    positions: Float[Tensor, "n *centres d"],
    steps: int,
) -> Arrivals:
    """Return which samples are reached earlier, and which lie beyond a fold.

    ``metric`` is that of the centres ``x``. Nothing is found in dimensions other than 2 and 3.
    """
    n, d = len(velocities), x.shape[-1]
    found = Arrivals(np.ones((n, *x.shape[:-1])), np.full((n, *x.shape[:-1]), np.inf))
    if d not in _RAYS or found.early.size == 0:
        return found
    batch = field.batch_shape if isinstance(field, GridMetric) else ()
    count = math.prod(x.shape[len(batch) : -1])
    whole = [u.reshape(n, *batch, count) for u in found]
    tile = max(1, _TILE // (math.prod(batch) * _RAYS[d] * _TIMES))
    rim = torch.from_numpy(_mesh(d).vertices[-_RAYS[d] :]).to(x)
    with torch.no_grad():
        aims = _tangent(metric, rim.reshape(-1, *(1,) * (x.ndim - 1), d)).expand(-1, *x.shape)
        lengths = norm_off_zero(metric.norm, velocities)[..., None]
        # One axis for the centres of each field.
        arrays = [
            u.detach().reshape(*u.shape[: u.ndim - x.ndim], *batch, count, u.shape[-1])
            for u in (x, aims, lengths, velocities, positions)
        ]
        for begin in range(0, count, tile):
            part = (..., slice(begin, begin + tile))
            here, aim, length, v, end = (u[(*part, slice(None))] for u in arrays)
            for all_of_them, some in zip(
                whole, _tile(field, here, aim, length[..., 0], v, end, steps), strict=True
            ):
                all_of_them[part] = some
    return found


def _tangent(metric: FinslerMetric, points: Tensor) -> Tensor:
    """Return the images of points of the Euclidean unit ball in the tangent balls."""
    if metric.randers_form(points) is None:
        return metric.unit_ball(points)
    return affine(metric, points)


def _tile(
    field: MetricField,
    x: Tensor,
    aims: Tensor,
    lengths: Tensor,
    velocities: Tensor,
    positions: Tensor,
    steps: int,
) -> Arrivals:
    """Return what is known (n, *batch, centres) of some centres (*batch, centres, d)."""
    d = x.shape[-1]
    mesh = _mesh(d)
    reach = lengths.amax(0)
    shells = _follow(field, x, (reach[..., None] * aims).movedim(0, -2), steps, _TIMES)
    fan = shells.movedim(0, -3).flatten(-3, -2)
    fan = torch.cat((torch.zeros_like(fan[..., :1, :]), fan), dim=-2)
    samples = torch.cat((positions - x, (lengths / reach)[..., None]), dim=-1)
    arrays = (
        u.double().cpu().contiguous().numpy().reshape(-1, *u.shape[x.ndim - 1 :])
        for u in (fan, samples.movedim(0, -2))
    )
    nodes, samples_there = arrays
    places = np.zeros_like(samples_there[..., :-1])
    parts = min(torch.get_num_threads(), 1 + len(places) // 100)

    def task(part: int) -> None:
        _earlier(
            *mesh, nodes, samples_there, 1.0 - _TOLERANCE, *share(len(places), part, parts), places
        )

    run(task, parts)
    fractions = np.ones(lengths.shape)
    found = torch.from_numpy(places).to(x).reshape(*x.shape[:-1], -1, d).movedim(-2, 0)
    centres = (found != 0).any(-1).flatten(0, -2).any(0)
    if bool(centres.any()):
        here, there, ends = (u[..., centres, :] for u in (x, found, positions))
        bounds = _bounds(field, here, there, ends, reach[..., centres], steps)
        part = (bounds / lengths[..., centres]).double().cpu().numpy()
        fractions[..., centres.cpu().numpy()] = np.where(part < 1 - _TOLERANCE, part, 1.0)
    folds = np.full(lengths.shape, np.inf)
    corners = fan.flatten(0, -3)[:, torch.from_numpy(mesh.simplices)]
    turned = (det(corners[..., 1:, :] - corners[..., :1, :]) <= 0).any(-1)
    turned = turned.reshape(x.shape[:-1]).flatten(0, -2).any(0) if x.ndim > 2 else turned
    if bool(turned.any()):
        conjugate = _folds(field, x[..., turned, :], velocities[..., turned, :], steps)
        folds[..., turned.cpu().numpy()] = conjugate.double().cpu().numpy()
    folds[~(folds < 1 - _BEFORE)] = np.inf
    return Arrivals(fractions, folds)


def _folds(field: MetricField, x: Tensor, velocities: Tensor, steps: int) -> Tensor:
    """Return the fractions (n, *centres) of geodesics at which the first conjugate points lie."""
    d = x.shape[-1]
    v = velocities.movedim(0, -2)
    still = (v == 0).all(-1, keepdim=True)
    v = torch.where(still, 1.0, v)
    metric = field.at(x[..., None, :].expand_as(v))
    # In the columns of this frame g_v is the identity.
    frame = torch.linalg.cholesky(metric.fundamental_tensor(v).expand(*v.shape, d)).mT
    step = torch.finfo(v.dtype).eps ** 0.5 * metric.norm(v)[..., None, None]
    turned = v[..., None, :] + step * torch.linalg.inv(frame).mT
    rays = torch.cat((v[..., None, :], turned), dim=-2)
    states = _follow(field, x, rays.flatten(-3, -2), steps, _RECORDS, momenta=True)
    states = states.unflatten(-2, (-1, d + 1))
    differences = ((states[..., 1:, :] - states[..., :1, :]) / step).mT
    J, momenta = differences.split(d, dim=-2)
    rate = torch.linalg.solve(frame.mT, momenta)
    found = first_conjugate(frame @ J, rate, covariant=False)
    return torch.where(still[..., 0], math.inf, found).movedim(-1, 0)


def _bounds(
    field: MetricField,
    x: Tensor,
    places: Tensor,
    positions: Tensor,
    reach: Tensor,
    steps: int,
) -> Tensor:
    """Return upper bounds (n, *centres) on samples' distances, of the geodesics to ``places``.

    These are in the unit ball of the mesh; infinite for the place 0.
    """
    times = torch.linalg.norm(places, dim=-1)
    on_rim = places / torch.where(times > 0, times, 1.0)[..., None]
    v = times[..., None] * _tangent(field.at(x), on_rim)
    v = (reach[..., None] * v).movedim(0, -2)
    field = _continued(field, x[..., None, :])
    ends = exponential(field, x[..., None, :], v, method="rk4", steps=_steps(field, steps))
    rest = positions.movedim(0, -2) - ends
    # Trapezoidal rule on the straight way from there.
    gap = sum(norm_off_zero(field.at(y).norm, rest) for y in (ends, ends + rest)) / 2
    return torch.where(times > 0, times * reach + gap.movedim(-1, 0), math.inf)


def _steps(field: MetricField, steps: int, times: int = _TIMES) -> int:
    """Return how many steps geodesics take: those of the samples, at least one to each time.

    Of other fields than grids they are adaptive; a few to each time are exact enough.
    """
    return max(steps, times if isinstance(field, GridMetric) else 5 * times)


def _continued(field: MetricField, x: Tensor) -> MetricField:
    """Return a field with the metric of ``x`` at positions that are not finite."""
    if isinstance(field, GridMetric):
        return field
    return FunctionMetric(
        lambda y: field.at(torch.where(y.isfinite().all(-1, keepdim=True), y, x)), field.dim
    )


def _follow(
    field: MetricField, x: Tensor, v: Tensor, steps: int, count: int, *, momenta: bool = False
) -> Tensor:
    """Return displacements, and momenta, of rays ``v`` at equal times: (count, *centres, rays, d).

    Momenta follow the displacements on the last axis.
    """
    *centres, rays, d = v.shape
    times = [(j + 1) / count for j in range(count)]
    if is_linear(field):
        records = [[(time, rays * j + i) for j, time in enumerate(times)] for i in range(rays)]
        schedule = Schedule.of(records, [steps] * rays)
        fields = math.prod(field.batch_shape)
        grid, table = tabulated(field, x)
        starts = in_nodes(field, x).reshape(fields, -1, d)
        ends = v.reshape(fields, -1, rays, d)
        out = shoot(grid, table, starts, ends, schedule, momenta=momenta)
        return out.reshape(*centres, count, rays, -1).movedim(-3, 0)
    here = x[..., None, :]
    field = _continued(field, here)
    flow = geodesic_flow(field, here, v, times, method="rk4", steps=_steps(field, steps, count))
    displacements = flow.position - here
    return torch.cat((displacements, flow.momentum), dim=-1) if momenta else displacements


class _Mesh(NamedTuple):
    """Simplices that fill the Euclidean unit ball, from its centre, vertex 0, shell by shell."""

    vertices: Float[np.ndarray, "vertices d"]

    times: Float[np.ndarray, " vertices"]

    simplices: Int[np.ndarray, "simplices corners"]
    """Of positive volume."""

    rim: Int[np.ndarray, " rim"]
    """In the plane the vertices of the outermost shell, in their order; none in space."""


@cache
def _mesh(d: int) -> _Mesh:
    count = _RAYS[d]
    i = np.arange(count)
    if d == 2:
        turn = 2 * math.pi * i / count
        rays = np.stack((np.cos(turn), np.sin(turn)), axis=-1)
        faces = np.stack((i, (i + 1) % count), axis=-1)
    else:
        # Fibonacci's lattice on the sphere.
        z, golden = 1 - (2 * i + 1) / count, math.pi * (3 - math.sqrt(5)) * i
        across = np.sqrt(1 - z * z)
        rays = np.stack((z, across * np.cos(golden), across * np.sin(golden)), axis=-1)
        faces = ConvexHull(rays).simplices
    # The prism over a face between two shells is cut along the order of its corners, so that
    # neighbours are cut alike.
    faces = 1 + np.sort(faces, axis=-1)
    rows = [np.pad(faces, ((0, 0), (1, 0)))]
    for shell, cut in itertools.product(range(_TIMES - 1), range(d)):
        inner, outer = (faces + count * j for j in (shell, shell + 1))
        rows.append(np.concatenate((inner[:, : cut + 1], outer[:, cut:]), axis=-1))
    simplices = np.concatenate(rows)
    times = np.repeat(np.arange(_TIMES + 1) / _TIMES, count)[count - 1 :]
    vertices = times[:, None] * np.concatenate((rays[:1], np.tile(rays, (_TIMES, 1))))
    corners = vertices[simplices]
    turned = np.linalg.det(corners[:, 1:] - corners[:, :1]) < 0
    simplices[turned, :2] = simplices[turned, 1::-1]
    rim = len(times) - count + i if d == 2 else i[:0]
    return _Mesh(vertices, times, simplices, rim)


@jit
@no_type_check
def _volume(corners):
    """Return the signed volume (times 2 or 6) of a simplex."""
    a0, a1 = corners[1, 0] - corners[0, 0], corners[1, 1] - corners[0, 1]
    b0, b1 = corners[2, 0] - corners[0, 0], corners[2, 1] - corners[0, 1]
    if len(corners) == 3:
        return a0 * b1 - a1 * b0
    c0, c1 = corners[3, 0] - corners[0, 0], corners[3, 1] - corners[0, 1]
    a2, b2 = corners[1, 2] - corners[0, 2], corners[2, 2] - corners[0, 2]
    c2 = corners[3, 2] - corners[0, 2]
    return a0 * (b1 * c2 - b2 * c1) + a1 * (b2 * c0 - b0 * c2) + a2 * (b0 * c1 - b1 * c0)


@jit
@no_type_check
def _side(p, q, r):
    """Return on which side of the line from p to q the point r lies."""
    return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])


@jit
@no_type_check
def _covers_once(nodes, simplices, rim):
    """Whether a planar mesh lies nowhere over itself.

    No triangle has turned over and the rim does not cross itself: so many triangles lie over a
    point as the rim winds around it, and a simple curve winds at most once.
    """
    corners = np.empty((3, 2))
    for number in range(len(simplices)):
        for j in range(3):
            put(corners[j], nodes[simplices[number, j]])
        if not _volume(corners) > 0.0:
            return False
    n = len(rim)
    for i in range(n):
        a, b = nodes[rim[i]], nodes[rim[(i + 1) % n]]
        for j in range(i + 2, n - (i == 0)):
            c, d = nodes[rim[j]], nodes[rim[(j + 1) % n]]
            apart = (
                max(a[0], b[0]) < min(c[0], d[0])
                or max(c[0], d[0]) < min(a[0], b[0])
                or max(a[1], b[1]) < min(c[1], d[1])
                or max(c[1], d[1]) < min(a[1], b[1])
            )
            if apart:
                continue
            if _side(a, b, c) * _side(a, b, d) <= 0 and _side(c, d, a) * _side(c, d, b) <= 0:
                return False
    return True


@jit
@no_type_check
def _weights(corners, volume, point, weights):
    """Write the barycentric coordinates of a point; say whether they are those of one inside."""
    inside = True
    kept = np.empty(len(point))
    for j in range(len(corners)):
        put(kept, corners[j])
        put(corners[j], point)
        weights[j] = _volume(corners) / volume
        put(corners[j], kept)
        if not weights[j] >= -1e-12:
            inside = False
    return inside


@entry
@no_type_check
def _earlier(vertices, times, simplices, rim, nodes, samples, part, begin, end, places):
    """Find where in the unit ball a simplex over a sample has less than a part of its time.

    Samples are (positions, time); of several simplices that of the least time is taken. Those that
    have turned over are left out: the geodesic that is first at a point has no conjugate point
    before it.
    """
    n, d = places.shape[1:]
    corners = np.empty((d + 1, d))
    low, high = np.empty(d), np.empty(d)
    weights = np.empty(d + 1)
    bounds = np.empty(n)
    for centre in range(begin, end):
        mesh = nodes[centre]
        if len(rim) and _covers_once(mesh, simplices, rim):
            continue
        for i in range(n):
            bounds[i] = part * samples[centre, i, d]
        for number in range(len(simplices)):
            simplex = simplices[number]
            earliest = np.inf
            for j in range(d + 1):
                put(corners[j], mesh[simplex[j]])
                earliest = min(earliest, times[simplex[j]])
            volume = _volume(corners)
            if not volume > 0.0:
                continue
            for axis in range(d):
                low[axis] = high[axis] = corners[0, axis]
                for j in range(1, d + 1):
                    low[axis] = min(low[axis], corners[j, axis])
                    high[axis] = max(high[axis], corners[j, axis])
            for i in range(n):
                if earliest >= bounds[i]:
                    continue
                point = samples[centre, i, :d]
                held = True
                for axis in range(d):
                    if not (low[axis] <= point[axis] <= high[axis]):
                        held = False
                if not (held and _weights(corners, volume, point, weights)):
                    continue
                time = 0.0
                for j in range(d + 1):
                    time += weights[j] * times[simplex[j]]
                if time < bounds[i]:
                    bounds[i] = time
                    place = places[centre, i]
                    for axis in range(d):
                        place[axis] = 0.0
                        for j in range(d + 1):
                            place[axis] += weights[j] * vertices[simplex[j], axis]
