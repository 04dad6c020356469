"""The area that an ellipse shares with a convex polygon, and its derivatives in the ellipse.

In the frame in which the ellipse is the unit disc, one nearby is the disc moved along a field
``X(y) = E y + e``, with ``E`` symmetric. The derivatives are in its five components
``a = (E00, E01, E11, e0, e1)``.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Area(NamedTuple):
    """The areas of intersections in units of the disc's frame, with derivatives."""

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch 5"]
    hessian: Float[Tensor, "batch 5 5"]


def shared_area(polygon: Float[Tensor, "batch h 2"]) -> Float[Tensor, " batch"]:
    """Return the areas of the intersections of polygons with the unit disc.

    Corners turn from axis 0 towards axis 1; they may be repeated.
    """
    return _area(_chords(polygon))


def shared_area_derivatives(polygon: Float[Tensor, "batch h 2"]) -> Area:
    """Return the areas of the intersections with the unit disc, and their derivatives.

    Along ``X`` the area changes by the flux of ``X`` through the part of the disc's rim inside the
    polygon: ``tr E`` times the area, less the flux through the chords that the edges cut off. In
    the second derivative the chords' ends run along the edges at the speed ``X.n / |t.n|``, for
    ``n`` the normal of the disc and ``t`` the direction of the edge.
    """
    chords = _chords(polygon)
    value = _area(chords)
    trace = value.new_tensor((1.0, 0.0, 1.0, 0.0, 0.0))
    start, end = chords.start, chords.end
    outward = _turned(end - start)
    gradient = value[:, None] * trace - field_along((start + end) / 2, outward).sum(1)

    hessian = trace[:, None] * gradient[:, None]
    length = chords.length.clamp_min(torch.finfo(value.dtype).tiny)[..., None]
    tangent = chords.edge / length
    for point, crosses in ((start, chords.enters), (end, chords.leaves)):
        slope = (tangent * point).sum(-1).abs().clamp_min(1e-9)
        weight = torch.where(crosses, 1 / slope, torch.zeros_like(slope))
        through_edge = field_along(point, _turned(tangent)) * weight[..., None]
        hessian = hessian - torch.einsum("bhi,bhj->bij", through_edge, field_along(point, point))
    return Area(value, gradient, (hessian + hessian.mT) / 2)


def polygon_area(polygon: Float[Tensor, "batch h 2"]) -> Float[Tensor, " batch"]:
    """Return the areas of polygons, shape (batch,)."""
    return _cross(polygon, polygon.roll(-1, dims=1)).sum(1) / 2


def field_along(
    points: Float[Tensor, "*batch 2"], normals: Float[Tensor, "*batch 2"]
) -> Float[Tensor, "*batch 5"]:
    """Return ``X(y) . n`` as a linear form of the components of ``X``."""
    y0, y1, n0, n1 = points[..., 0], points[..., 1], normals[..., 0], normals[..., 1]
    return torch.stack((y0 * n0, y0 * n1 + y1 * n0, y1 * n1, n0, n1), dim=-1)


def squared_field(
    points: Float[Tensor, "batch n 2"], weights: Float[Tensor, "batch n"]
) -> Float[Tensor, "batch 5 5"]:
    """Return ``sum_i w_i |X(y_i)|^2`` as a quadratic form of the components of ``X``."""
    zero, one = torch.zeros_like(points[..., 0]), torch.ones_like(points[..., 0])
    y0, y1 = points[..., 0], points[..., 1]
    down = torch.stack((y0, y1, zero, one, zero), dim=-1)
    right = torch.stack((zero, y0, y1, zero, one), dim=-1)
    weighted = weights[..., None]
    return (weighted * down).mT @ down + (weighted * right).mT @ right


class _Chords(NamedTuple):
    """What the unit disc cuts out of the edges of polygons."""

    corner: Tensor
    next_corner: Tensor
    edge: Tensor
    length: Tensor
    start: Tensor
    end: Tensor
    enters: Tensor
    leaves: Tensor


def _chords(polygon: Tensor) -> _Chords:
    p, q = polygon, polygon.roll(-1, dims=1)
    d = q - p
    squared = (d * d).sum(-1)
    safe = torch.where(squared > 0, squared, torch.ones_like(squared))
    along = (p * d).sum(-1)
    discriminant = along**2 - squared * ((p * p).sum(-1) - 1)
    meets = (discriminant > 0) & (squared > 0)
    root = torch.where(meets, discriminant, torch.zeros_like(discriminant)).sqrt()
    first, last = (-along - root) / safe, (-along + root) / safe
    return _Chords(
        corner=p,
        next_corner=q,
        edge=d,
        length=squared.sqrt(),
        start=p + first.clamp(0, 1)[..., None] * d,
        end=p + last.clamp(0, 1)[..., None] * d,
        enters=meets & (first > 0) & (first < 1),
        leaves=meets & (last > 0) & (last < 1),
    )


def _area(c: _Chords) -> Tensor:
    """Sum the signed parts between edges and centre: a sector, a triangle, a sector each."""
    sectors = _angle(c.corner, c.start) + _angle(c.end, c.next_corner)
    return (sectors + _cross(c.start, c.end)).sum(1) / 2


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


def _angle(u: Tensor, v: Tensor) -> Tensor:
    return torch.atan2(_cross(u, v), (u * v).sum(-1))


def _turned(v: Tensor) -> Tensor:
    """Return the outward normals of edges, of the edges' lengths."""
    return torch.stack((v[..., 1], -v[..., 0]), dim=-1)
