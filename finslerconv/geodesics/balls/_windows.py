"""Geodesic balls as the level sets of local distances, on a window around each centre.

A window is a grid in the frame of the centre's own unit ball: with ``h`` and ``W`` its Zermelo data
and ``A = radius h^{-1/2}``, node ``xi`` lies at ``x + A xi``, where the metric is ``A' M A`` and
``A' omega``. Whatever the metric, its ball is about a unit disc there, and a few dozen nodes
resolve it. The ray of a sample is followed from the centre until the distance is the sample's.
"""

import math
from typing import Literal, NamedTuple, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._compiled import entry, jit
from finslerconv._linalg import inverse, matvec, spd_sqrt
from finslerconv._memory import array_of
from finslerconv.balls import MapName, ball_map
from finslerconv.geodesics._derivatives import refuse_second
from finslerconv.geodesics.distances import FastMarching, Heat, window_distances
from finslerconv.geodesics.fields import (
    GridMetric,
    MetricField,
    cell,
    corner,
    interpolate,
    randers_at,
)
from finslerconv.metrics import Randers

# Nodes that are solved for at once.
_TILE = 2**19

# Half the side of a window, in radii of the tangent ball; where the geodesic ball does not fit, the
# next is tried.
_MARGINS = (1.5, 3.0, 6.0, 12.0)

# The fraction of the radius by which a ray must leave the ball to hide what lies behind.
_SLACK = 0.02

Method = Literal["eikonal", "heat"]


class WindowBall(NamedTuple):
    """Samples on straight rays, and what fast marching on their windows says of them."""

    samples: Tensor
    """Positions (n, *centres, d); within this file stretches (n, *centres), inf: outside."""

    covered: Float[Tensor, "*centres"]
    """The part of what the window shows of the ball that straight rays reach within it."""

    levels: Float[Tensor, "n *centres"]
    """The samples' distances as fractions of what they should be."""


def window_ball(
    field: MetricField,
    x: Float[Tensor, "*centres d"],
    points: Float[Tensor, "n d"],
    radius: float,
    method: Method,
    map: MapName,
    resolution: int,
) -> WindowBall:
    """Return the samples of geodesic balls that local distances give.

    With ``v`` the image of ``radius g`` in the tangent space, the sample is the first point of the
    straight ray from ``x`` along ``v`` whose distance from ``x`` is ``F_x(v)``.

    Raises
    ------
    ValueError
        If a ball does not fit a window of twelve times the tangent ball's size.
    """
    batch = field.batch_shape if isinstance(field, GridMetric) else ()
    d = x.shape[-1]
    whole = x.reshape(*batch, -1, d)
    count = whole.shape[-2]
    reach = max(1.0, float(torch.linalg.norm(points.detach(), dim=-1).max()))
    found: list[WindowBall] = []
    tile = max(1, _TILE // (math.prod(batch) * _side(_MARGINS[0] * reach, resolution) ** d))
    for begin in range(0, count, tile):
        some = whole[..., begin : begin + tile, :]
        found.append(_tile(field, some, points, radius, reach, method, map, resolution, begin))
    n, centres = len(points), x.shape[:-1]
    if not found:
        return WindowBall(x.new_empty(n, *x.shape), x.new_ones(centres), x.new_ones(n, *centres))
    samples, covered, levels = zip(*found, strict=True)
    return WindowBall(
        torch.cat(samples, dim=-2).reshape(n, *x.shape),
        torch.cat(covered, dim=-1).reshape(centres),
        torch.cat(levels, dim=-1).reshape(n, *centres),
    )


def _tile(
    field: MetricField,
    x: Tensor,
    points: Tensor,
    radius: float,
    reach: float,
    method: Method,
    map: MapName,
    resolution: int,
    begin: int,
) -> WindowBall:
    """Return the balls around some centres (*batch, centres, d)."""
    metric = _metric(field, x)
    lead = points.reshape(-1, *(1,) * (x.ndim - 1), points.shape[-1])
    v = radius * ball_map(map)(metric, lead)
    ball = _stretch(field, metric, x, v, radius, reach * _MARGINS[0], method, resolution)
    outside = ~ball.samples.isfinite().all(0)
    for margin in _MARGINS[1:]:
        if not bool(outside.any()):
            break
        # Larger windows for the centres whose balls did not fit, one by one for lack of memory.
        for index in torch.nonzero(outside.any(tuple(range(outside.ndim - 1)))).flatten().tolist():
            one = (..., slice(index, index + 1))
            again = _stretch(
                field, metric[one], x[(*one, slice(None))], v[(*one, slice(None))], radius,
                reach * margin, method, resolution,
            )  # fmt: skip
            ball = WindowBall(
                *(
                    torch.cat((old[..., :index], new, old[..., index + 1 :]), dim=-1)
                    for old, new in zip(ball, again, strict=True)
                )
            )
        outside = ~ball.samples.isfinite().all(0)
    if bool(outside.any()):
        index = torch.nonzero(outside)[0].tolist()
        index[-1] += begin
        raise ValueError(
            f"radius: the geodesic ball of radius {radius:g} around centre {tuple(index)} reaches "
            f"beyond {_MARGINS[-1]:g} times the size of its tangent ball, since the field changes "
            "too much within it; use a smaller radius or a smoother field"
        )
    return ball._replace(samples=x + ball.samples[..., None] * v)


def _stretch(
    field: MetricField,
    metric: Randers,
    x: Tensor,
    v: Tensor,
    radius: float,
    margin: float,
    method: Method,
    resolution: int,
) -> WindowBall:
    """Return the factors by which ``v`` must be stretched."""
    ratio, cone, centre = _solve(field, metric, x, radius, margin, resolution, method)
    side = _side(margin, resolution)
    u = matvec(inverse(_frame(metric, radius)), v).movedim(0, -2)  # (*batch, n, d)
    t = _crossings(ratio, u, centre, side, resolution)
    safe = torch.where(t.isfinite(), t, 0.0)
    with torch.no_grad():
        # By fast marching; its own error, which falls with the square of the resolution, from
        # what it gives at half of it.
        other = resolution if method == "heat" else max(1, resolution // 2)
        marched, _, middle = _solve(field, metric, x, radius, margin, other, "eikonal")
        there = _read(marched, safe[..., None] * u, middle, _side(margin, other), other)
        # At the centre, and outside, nothing is off.
        off = torch.where(t.isfinite() & (u != 0).any(-1), safe * there - 1, 0.0)
        if method == "eikonal":
            off = -off / max((resolution / other) ** 2 - 1, 1.0)
        levels = (1 + off).movedim(-1, 0)
        known = marched if method == "heat" else ratio
        covered = _covered(ratio, known, cone / radius, centre, side)
    if not (torch.is_grad_enabled() and (ratio.requires_grad or u.requires_grad)):
        return WindowBall(t.movedim(-1, 0), covered, levels)
    # One step of Newton's at the crossing changes nothing but carries the gradient.

    def level_at(t: Tensor, ratio: Tensor, u: Tensor) -> Tensor:
        return t * _read(ratio, t[..., None] * u, centre, side, resolution)

    with torch.enable_grad():
        place = safe.clone().requires_grad_()
        (slope,) = torch.autograd.grad(level_at(place, ratio.detach(), u.detach()).sum(), place)
    # The level does not fall where it is first reached.
    fits = t.isfinite() & (slope > 0)
    level = level_at(safe, ratio, u)
    moved = t - torch.where(fits, (level - level.detach()) / torch.where(fits, slope, 1.0), 0.0)
    # Neither the slope nor a distance carries the gradient of a gradient.
    refuse_second(
        moved,
        "geodesic_ball: 'eikonal' and 'heat' have first derivatives only, and "
        "create_graph=True asks for second ones; take 'exp' with "
        "GridMetric(..., interpolation='cubic')",
    )
    return WindowBall(moved.movedim(-1, 0), covered, levels)


def _solve(
    field: MetricField,
    metric: Randers,
    x: Tensor,
    radius: float,
    margin: float,
    resolution: int,
    method: Method,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return distances on windows as multiples of the cone of the centre's own metric.

    Near the centre the distance is a cone; what is read between nodes is its ratio to that of the
    centre's metric, which is smooth.

    Returns
    -------
    ratio, cone : Tensor, shape (*batch, nodes)
    centre : Tensor, shape (*batch, d)
        The node at which ``x`` is. The tangent ball lies around it with the wind, and in the middle
        of the window.
    """
    d = x.shape[-1]
    batch = x.shape[:-1]
    side = _side(margin, resolution)
    # The frame carries gradients too: the nodes move with it, and so does what is read there.
    A = _frame(metric, radius)
    wind = matvec(inverse(A), radius * metric.dual().omega).detach()
    centre = side // 2 - (wind * resolution).round().long()
    axes = torch.meshgrid(*[torch.arange(side, device=x.device)] * d, indexing="ij")
    steps = torch.stack(axes, dim=-1).reshape(-1, d) - centre[..., None, :]
    xi = steps.to(x.dtype) / resolution
    local = _metric(field, x[..., None, :] + matvec(A[..., None, :, :], xi))
    M = A.mT[..., None, :, :] @ local.M @ A[..., None, :, :]
    omega = matvec(A.mT[..., None, :, :], local.omega)
    distance = window_distances(
        FastMarching() if method == "eikonal" else Heat(),
        M.reshape(-1, *(side,) * d, d, d), omega.reshape(-1, *(side,) * d, d), 1 / resolution,
        centre.reshape(-1, d),
    ).reshape(*batch, -1)  # fmt: skip
    forms = matvec(A.mT, metric.omega)
    cone = Randers(A.mT @ metric.M @ A, forms, validate=False)[..., None].norm(xi)
    middle = (steps == 0).all(-1)
    ratio = torch.where(middle, 1.0, distance / torch.where(middle, 1.0, cone))
    return ratio, cone, centre


def _metric(field: MetricField, x: Tensor) -> Randers:
    return randers_at(
        field, x, "the windows of 'eikonal' and 'heat' are for these; take method='exp', which is "
        "for any metric",
    )  # fmt: skip


def _frame(metric: Randers, radius: float) -> Tensor:
    """Return the matrices that carry a window's coordinates to displacements."""
    return radius * spd_sqrt(metric.dual().M)


def _side(margin: float, resolution: int) -> int:
    """Return the number of nodes along a side of a window, an odd one."""
    return 2 * math.ceil(margin * resolution) + 1


def _read(ratio: Tensor, xi: Tensor, centre: Tensor, side: int, resolution: int) -> Tensor:
    """Return ``ratio`` (*batch, nodes) between the nodes at ``xi`` (*batch, n, d), linearly."""
    first = torch.arange(ratio[..., 0].numel(), device=ratio.device) * ratio.shape[-1]
    (between,) = interpolate(
        [ratio.flatten()],
        xi * resolution + centre[..., None, :],
        (side,) * xi.shape[-1],
        first=first.reshape(*ratio.shape[:-1], 1),
    )
    return between


def _crossings(ratio: Tensor, u: Tensor, centre: Tensor, side: int, resolution: int) -> Tensor:
    """Return the first ``t > 0`` with ``t ratio(t u) = 1``, 1 for ``u = 0``; inf: outside."""
    batch, (n, d) = u.shape[:-2], u.shape[-2:]
    t = np.empty((math.prod(batch), n))
    arrays = (array_of(a.cpu().double().contiguous()) for a in (ratio, u, centre))
    values, rays, middle = arrays
    _cross(
        values.reshape(len(t), -1), rays.reshape(-1, n, d), middle.reshape(-1, d), side,
        float(resolution), t,
    )  # fmt: skip
    return torch.from_numpy(t).to(u).reshape(*batch, n)


def _covered(ratio: Tensor, known: Tensor, cone: Tensor, centre: Tensor, side: int) -> Tensor:
    """Return the part of each ball (*batch) that straight rays reach before they leave it.

    The nodes of the ball are those where ``known * cone`` is at most 1; rays leave it by ``ratio``,
    the distance of the method.
    """
    batch, d = centre.shape[:-1], centre.shape[-1]
    share = np.empty(math.prod(batch))
    arrays = (array_of(a.cpu().double().contiguous()) for a in (ratio, known, cone, centre))
    *values, middle = arrays
    windows = (a.reshape(len(share), -1) for a in values)
    _cover(*windows, middle.reshape(-1, d), side, 1.0 + _SLACK, share)
    return torch.from_numpy(share).to(cone).reshape(batch)


@jit
@no_type_check
def _level(values, u, centre, side, rate, t):
    """Return ``t ratio(t u) - 1``, or NaN outside the window."""
    d = len(u)
    for axis in range(d):
        c = t * u[axis] * rate + centre[axis]
        if not (c >= 0.0 and c <= side - 1):
            return np.nan
    shape = (side, side, side if d == 3 else 1)
    x2 = t * u[2] * rate + centre[2] if d == 3 else 0.0
    at = cell((t * u[0] * rate + centre[0], t * u[1] * rate + centre[1], x2), shape)
    total = 0.0
    for number in range(1 << d):
        node, weight = corner(at, shape, number)
        total += weight * values[node]
    return t * total - 1.0


@entry
@no_type_check
def _cross(values, rays, centre, side, rate, out):
    """Follow every ray of every window, a node at a time, to where its level first is reached."""
    windows, n, d = rays.shape
    for w in range(windows):
        for ray in range(n):
            u = rays[w, ray]
            length = 0.0
            for axis in range(d):
                length += u[axis] * u[axis]
            length = np.sqrt(length)
            if length == 0.0:
                out[w, ray] = 1.0
                continue
            step = min(0.25, 1.0 / (rate * length))
            low, f_low = 0.0, -1.0
            high = step
            f_high = _level(values[w], u, centre[w], side, rate, high)
            while f_high < 0.0:
                low, f_low = high, f_high
                high += step
                f_high = _level(values[w], u, centre[w], side, rate, high)
            if not f_high >= 0.0:
                out[w, ray] = np.inf
                continue
            # The false position, each end's value halved when it stays (Illinois).
            t = high
            last = 0
            for _ in range(60):
                if f_high == f_low:
                    break
                t = (low * f_high - high * f_low) / (f_high - f_low)
                f = _level(values[w], u, centre[w], side, rate, t)
                if abs(f) < 1e-13:
                    break
                if f > 0.0:
                    high, f_high = t, f
                    if last == 1:
                        f_low *= 0.5
                    last = 1
                else:
                    low, f_low = t, f
                    if last == -1:
                        f_high *= 0.5
                    last = -1
            out[w, ray] = t


@entry
@no_type_check
def _cover(ratio, known, cone, centre, side, limit, share):
    """Walk to every node of every ball, from its centre, a node at a time."""
    windows, d = centre.shape
    u = np.empty(d)
    for w in range(windows):
        inside = reached = 0
        for node in range(ratio.shape[1]):
            height = cone[w, node]
            if not known[w, node] * height <= 1.0:
                continue
            inside += 1
            rest = node
            steps = 1.0
            for axis in range(d - 1, -1, -1):
                u[axis] = rest % side - centre[w, axis]
                steps = max(steps, abs(u[axis]))
                rest //= side
            for step in range(1, int(steps) + 1):
                t = step / steps
                # The level of the ray through the node is 1 where its distance is the radius.
                if (_level(ratio[w], u, centre[w], side, 1.0, t) + 1.0) * height > limit:
                    break
            else:
                reached += 1
        share[w] = reached / inside
