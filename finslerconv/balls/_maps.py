"""The maps that carry points of the Euclidean unit ball into the unit ball of a metric.

Both are the identity for the Euclidean metric, and differentiable in the metric everywhere.
"""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float

from finslerconv._arrays import Array, check_vectors
from finslerconv._linalg import matvec, spd_sqrt
from finslerconv.metrics import FinslerMetric

#: From a metric and points ``(..., d)`` to their images ``(..., d)``.
BallMap = Callable[[FinslerMetric, Array], Array]

#: The names of the maps, :func:`radial` and :func:`affine`.
MapName = Literal["radial", "affine"]


def radial(metric: FinslerMetric, points: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
    """Return ``g |g| / F(g)``: every ray keeps its direction. For every Finsler metric.

    ``{|g| <= s}`` goes onto ``{F <= s}``; see
    :meth:`finslerconv.metrics.FinslerMetric.unit_ball`.

    Parameters
    ----------
    metric : FinslerMetric
    points : array, shape (..., d)
        Points of the Euclidean unit ball; their batch broadcasts against the metric's.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import polar, radial
    >>> from finslerconv.metrics import Randers
    >>> metric = Randers(np.eye(2), np.array([0.0, 0.5]))
    >>> positions = radial(metric, polar(1, 4).points)
    >>> positions.round(3).tolist()
    [[0.0, 0.667], [1.0, 0.0], [0.0, -2.0], [-1.0, -0.0]]
    >>> metric.norm(positions).round(12).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    return metric.unit_ball(points)


def affine(metric: FinslerMetric, points: Float[Array, "*_ d"]) -> Float[Array, "*_ d"]:
    """Return ``W + h^{-1/2} g``: the ellipse's own map, under which equal areas stay equal.

    Its Jacobian is constant, ``lambda^{-(d+1)/2} det(M)^{-1/2}``. The origin goes to the
    ellipse's centre ``W``.

    Parameters
    ----------
    metric : Randers, Riemannian or Euclidean
        The metrics whose balls are ellipses.
    points : array, shape (..., d)
        As for :func:`radial`.

    Raises
    ------
    TypeError
        If the metric is of another kind, whose ball is no ellipse: use ``radial``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import affine
    >>> from finslerconv.metrics import Randers
    >>> metric = Randers(np.eye(2), np.array([0.0, 0.5]))
    >>> affine(metric, np.array([[0.0, 0.0], [0.0, 1.0]])).round(3).tolist()
    [[0.0, -0.667], [0.0, 0.667]]
    >>> metric.zermelo().W.round(3).tolist()
    [-0.0, -0.667]
    """
    check_vectors("points", points, metric.dim)
    form = metric.randers_form(points)
    if form is None:
        raise TypeError(
            "metric: the affine map is for Riemannian and Randers metrics, whose balls are "
            f"ellipses; for {type(metric).__name__} use the radial map"
        )
    check_vectors("points", points, metric.dim, form.M)
    # The dual metric is the ellipse: M* = h^{-1} and omega* = W.
    shape, centre = form.dual()
    images = matvec(spd_sqrt(shape), points)
    return images if centre is None else centre + images


_MAPS: dict[str, BallMap] = {"radial": radial, "affine": affine}


def ball_map(map: str) -> BallMap:
    """Return the map of a name, "radial" or "affine"; a ValueError if there is none.

    Examples
    --------
    >>> from finslerconv.balls import ball_map, radial
    >>> ball_map("radial") is radial
    True
    """
    if map not in _MAPS:
        raise ValueError(f"map: expected 'radial' or 'affine', got {map!r}")
    return _MAPS[map]
