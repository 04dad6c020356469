"""Volumes and overlaps of unit balls of any metric, by quadrature over directions.

A unit ball is star-shaped around the origin with radius ``1 / F(u)`` along ``u``, so volumes,
intersections and unions are all integrals of powers of radii over the sphere.
"""

from jaxtyping import Float

from finslerconv._arrays import (
    Array,
    constant_like,
    detached,
    identity_like,
    namespace,
    no_gradient,
)
from finslerconv._linalg import det, dot, matvec, outer, solve
from finslerconv._norms import asymmetric_direction
from finslerconv._sphere import Norm, over_batch, quadrature, round_frame
from finslerconv.metrics import Euclidean, FinslerMetric


def volume(metric: FinslerMetric) -> Float[Array, "*batch"]:
    """Return the volume of the unit ball in pixels^d (the area in the plane), shape ``(*batch)``.

    Exact to rounding for smooth metrics in the plane, however elongated; for metrics with
    corners the error falls with the square of the spacing (1024 directions). Above the plane the
    error grows as the origin comes close to the rim of the ball: for Randers metrics of
    ``|omega| = 0.9`` and 0.999 it is 1e-13 and 3e-5 in three dimensions, 1e-7 and 3 % in five.
    """
    return _volume(metric.norm, metric.dim, metric.like)


def overlap(first: FinslerMetric, second: FinslerMetric) -> Float[Array, "*batch"]:
    """Return the overlap of two unit balls, intersection over union of their volumes (IoU).

    Parameters
    ----------
    first, second : FinslerMetric
        Of the same dimension; their batches broadcast.

    Returns
    -------
    array, shape (...)
        In (0, 1], 1 for equal balls.

    Raises
    ------
    ValueError
        If the dimensions differ.
    """
    if first.dim != second.dim:
        raise ValueError(
            f"second: expected a metric of dimension {first.dim}, as the first, got {second.dim}"
        )
    # A Euclidean metric takes arrays of every kind, so the other one decides.
    like = second.like if isinstance(first, Euclidean) else first.like

    def larger(v: Array) -> Array:
        return namespace(v).maximum(first.norm(v), second.norm(v))

    # The ball of the larger norm is the intersection, convex again; the union is not.
    intersection = _volume(larger, first.dim, like)
    volumes = (_volume(metric.norm, first.dim, like) for metric in (first, second))
    return intersection / (sum(volumes) - intersection)


def _volume(norm: Norm, dim: int, like: Array) -> Array:
    # The integral is the same in every frame, so its derivative in the frame is 0.
    with no_gradient():
        frame = round_frame(norm, dim, like)
        if dim > 2:
            # The integrand peaks in the direction of greatest asymmetry.
            frame = _aligned(frame, asymmetric_direction(norm, dim, like))
        frame = detached(frame)
    xp = namespace(frame)
    points, weights = quadrature(dim, {2: 1024, 3: 96}.get(dim, 48))
    batch_ndim = frame.ndim - 2
    radii = 1 / norm(matvec(frame, over_batch(points, frame, batch_ndim)))
    cells = constant_like(weights.reshape((-1,) + (1,) * batch_ndim), frame)
    return xp.abs(det(frame)) * xp.sum(cells * radii**dim, axis=0) / dim


def _aligned(frame: Array, v: Array) -> Array:
    """Return the frame turned so that its first axis, where nodes are dense, lies along ``v``."""
    xp = namespace(frame)
    axis = solve(frame, v)
    axis = axis / xp.sqrt(dot(axis, axis))[..., None]
    # A Householder reflection; its sign is chosen so that nothing cancels.
    sign = xp.where(axis[..., :1] < 0, -xp.ones_like(axis[..., :1]), xp.ones_like(axis[..., :1]))
    mirror = axis + sign * identity_like(frame.shape[-1], frame)[0, :]
    image = 2 * matvec(frame, mirror) / dot(mirror, mirror)[..., None]
    return frame - outer(image, mirror)
