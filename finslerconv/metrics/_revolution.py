"""Norms of revolution: a Euclidean length times a profile of the angle to an axis.

``F(v) = |v| f(s)``, with ``s`` the component along the axis of the unit vector ``v / |v|``. In the
plane of ``v`` and the axis, and so in every dimension, such a norm is a curve.
"""

import math
from collections.abc import Callable

import numpy as np

from finslerconv._arrays import Array, constant_like, detached, namespace, no_gradient
from finslerconv._norms import golden_section

Profile = Callable[[Array], Array]

#: As many angles as the profiles are checked at.
_CHECKED = 128


def dual_of_revolution(profile: Profile, along: Array, across: Array) -> Array:
    """Return the dual norms of unit covectors whose components along and across the axis are given.

    That is ``max_t cos(t) / f(along cos(t) + across sin(t))``, over the directions at the angle
    ``t`` to the covector, ``|t| <= pi / 2``, all turned in the plane of the covector and the axis.
    Derivatives of every order up to the seventh are right where ``f`` is smooth.
    """

    def value(t: Array) -> Array:
        xp = namespace(t)
        cos, sin = xp.cos(t), xp.sin(t)
        return cos / profile(along * cos + across * sin)

    with no_gradient():
        xp = namespace(along)
        quarter = math.pi / 2 * xp.ones_like(detached(along + across))
        t = detached(golden_section(value, -quarter, quarter))
    return value(polished(value, t))


def polished(value: Callable[[Array], Array], t: Array) -> Array:
    """Return maximisers of ``value`` from close ones, differentiable in what ``value`` depends on.

    By chord steps towards a zero of the derivative: every step gives one more derivative.
    Where ``value`` has a kink, ``t`` stays.
    """
    xp = namespace(t)
    eps = float(xp.finfo(t.dtype).eps)
    h = eps**0.2

    def slope(t: Array) -> Array:
        return (8 * (value(t + h) - value(t - h)) - (value(t + 2 * h) - value(t - 2 * h))) / (
            12 * h
        )

    with no_gradient():
        middle, left, right = value(t), value(t - h), value(t + h)
        far = value(t - 2 * h) + value(t + 2 * h)
        bend = detached((16 * (left + right) - far - 30 * middle) / (12 * h * h))
        # At a smooth maximum the values fall like a parabola on both sides.
        smooth = (bend < 0) & (xp.abs(right - left) < 0.1 * xp.abs(bend) * h * h)
        bend = xp.where(smooth, bend, -xp.ones_like(bend))
    for _ in range(3):
        step = slope(t) / bend
        t = t - xp.where(smooth, step, xp.zeros_like(step))
    return t


def profile_values(profile: Profile, b: Array) -> tuple[Array, Array, Array]:
    """Return a profile at ``s = b cos(t)``, how convex it is there, and the ``s``; samples lead.

    The norm is convex in all dimensions if it is in the plane, where that is ``f + f'' > 0`` in the
    angle ``t``: ``phi(s) - s phi'(s) + (b^2 - s^2) phi''(s) > 0``. What is returned for three
    neighbouring angles is ``(f(t - h) + f(t + h) - 2 cos(h) f(t)) / h^2``: the triangle
    inequality, without any error of differences.
    """
    xp = namespace(b)
    h = math.pi / _CHECKED
    cosines = np.cos(h * np.arange(-1, _CHECKED + 2))
    s = constant_like(cosines.reshape((-1, *(1,) * b.ndim)), b) * b
    f = profile(s) + xp.zeros_like(s)
    convexity = (f[:-2, ...] + f[2:, ...] - 2 * math.cos(h) * f[1:-1, ...]) / h**2
    return f[1:-1, ...], convexity, s[1:-1, ...]
