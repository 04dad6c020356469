"""Volumes and overlaps of unit balls of any metric, by quadrature over directions.

A unit ball is star-shaped around the origin with radius ``1 / F(u)`` along ``u``, so volumes,
intersections and unions are all integrals of powers of radii over the sphere.
"""

from jaxtyping import Float

from finslerconv._arrays import Array, namespace
from finslerconv._norms import ball_volume
from finslerconv.metrics import Euclidean, FinslerMetric


def volume(metric: FinslerMetric) -> Float[Array, "*batch"]:
    """Return the volume of the unit ball in pixels^d (the area in the plane), shape ``(*batch)``.

    Exact to rounding for smooth metrics in the plane, however elongated; for metrics with
    corners the error falls with the square of the spacing (1024 directions). Above the plane the
    error grows as the origin comes close to the rim of the ball: for Randers metrics of
    ``|omega| = 0.9`` and 0.999 it is 1e-13 and 3e-5 in three dimensions, 1e-7 and 3 % in five.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import volume
    >>> from finslerconv.metrics import Randers, Riemannian
    >>> float(volume(Riemannian(np.diag([1.0, 4.0]))) / np.pi)
    0.5
    >>> bool(volume(Randers(np.eye(2), np.array([0.0, 0.5]))) > np.pi)
    True
    """
    return ball_volume(metric.norm, metric.dim, metric.like)


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

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import overlap
    >>> from finslerconv.metrics import Euclidean, Riemannian
    >>> round(float(overlap(Euclidean(), Riemannian(np.eye(2) / 4))), 6)
    0.25
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
    intersection = ball_volume(larger, first.dim, like)
    volumes = (ball_volume(metric.norm, first.dim, like) for metric in (first, second))
    return intersection / (sum(volumes) - intersection)
