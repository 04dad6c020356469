"""Norms of the plane by values ``h_k`` along directions ``u_k``: the tangents of the dual ball.

The dual ball is inside the polygon of the sides ``<p, u_k> <= h_k``, and touches each at a point
``p_k``. :class:`finslerconv.metrics.Tabulated` has the norm that follows.
"""

import math

from finslerconv._arrays import Array, namespace

#: A point where a side is touched keeps this part of the edge between itself and the edge's ends.
OFF_ENDS = 1 / 8


def second_differences(samples: Array) -> Array:
    """Return ``m_k = h_(k-1) + h_(k+1) - 2 cos(step) h_k``: edges of a polygon, times sin(step)."""
    xp = namespace(samples)
    turn = 2 * math.cos(2 * math.pi / samples.shape[-1])
    return xp.roll(samples, 1, axis=-1) + xp.roll(samples, -1, axis=-1) - turn * samples


def has_corners(samples: Array) -> bool:
    """Return whether some norm has a corner, or bends too much for its table to tell.

    An edge of the polygon grows by four with the step where the norm is smooth, by two at a corner.
    """
    xp = namespace(samples)
    twice = 2 * math.cos(4 * math.pi / samples.shape[-1])
    wide = xp.roll(samples, 2, axis=-1) + xp.roll(samples, -2, axis=-1) - twice * samples
    edge = second_differences(samples)
    # Edges that are all but points are rounding.
    return bool(xp.any((edge > 1e-6 * samples) & (wide < 3 * edge)))


def slope_weights(n: int) -> tuple[float, float]:
    """Return the weights of the samples one and two steps away in the slope of the middle one.

    They are exact for trigonometric polynomials of degree 2.
    """
    s1, s2, s4 = (math.sin(2 * math.pi * k / n) for k in (1, 2, 4))
    determinant = 2 * (s1 * s4 - s2 * s2)
    return (s4 - 2 * s2) / determinant, (2 * s1 - s2) / determinant


def deficits(samples: Array) -> tuple[Array, Array]:
    """Return ``A_k`` and ``B_k``: how far the tangents at both ends of a cone are below its chord.

    ``A_k = h_(k+1) - <p_k, u_(k+1)>`` and ``B_k = h_k - <p_(k+1), u_k>`` with the point ``p_k``
    where the dual ball touches its k-th side; both are at least 0.
    """
    xp = namespace(samples)
    n = samples.shape[-1]
    step = 2 * math.pi / n
    one, two = slope_weights(n)
    h = [xp.roll(samples, -shift, axis=-1) for shift in (-2, -1, 0, 1, 2)]
    slope = one * (h[3] - h[1]) + two * (h[4] - h[0])
    # Negative by rounding only; else D would not be bounded.
    edge = second_differences(samples)
    edge = xp.where(edge > 0, edge, xp.zeros_like(edge))
    left = math.sin(step) * slope - math.cos(step) * h[2] + h[1]
    left = xp.where(left < OFF_ENDS * edge, OFF_ENDS * edge, left)
    left = xp.where(left > (1 - OFF_ENDS) * edge, (1 - OFF_ENDS) * edge, left)
    return edge - left, xp.roll(left, -1, axis=-1)
