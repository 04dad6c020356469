"""Walking times on a terrain: uphill is slower than downhill."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from jaxtyping import Bool, Float

from finslerconv._arrays import (
    Array,
    as_number,
    check_floating,
    detached,
    identity_like,
    is_number,
    namespace,
    no_gradient,
    shown,
)
from finslerconv.metrics import AlphaBeta, Matsumoto
from finslerconv.physics._mask import as_mask, check_where, filled

#: How fast Tobler's speed falls with the slope, and the slope at which it is largest.
_STEEPNESS, _EASIEST = 3.5, -0.05

#: Tobler's speed on the level, 5.04 km/h, in metres per second.
_LEVEL: Final = 6 / 3.6 * math.exp(_STEEPNESS * _EASIEST)


@dataclass(frozen=True)
class _Tobler:
    """Time for a way of unit length on the map, by its slope, relative to the level; convex."""

    def __call__(self, slope: Array) -> Array:
        xp = namespace(slope)
        k = _STEEPNESS
        gentle = xp.clip(slope, -1 / k, 1 / k)
        bend = xp.exp(k * (xp.abs(gentle - _EASIEST) + _EASIEST))
        # Beyond 1 / k the tangent through 0: zigzags climb at the greatest rate there is.
        return bend * xp.where(xp.abs(slope) > 1 / k, k * xp.abs(slope), xp.ones_like(slope))


def slope_metric(
    dem: Float[Array, "*batch height width"],
    spacing: float | Sequence[float] = 1.0,
    *,
    model: Literal["tobler", "matsumoto"] = "tobler",
    speed: float = _LEVEL,
    pull: float | None = None,
    mask: Bool[Array, "..."] | None = None,
) -> AlphaBeta | Matsumoto:
    r"""Return the walking times on a terrain, which are longer uphill than downhill.

    Lengths are times, of ways on the map. With the gradient ``g`` of the height, a way in the
    direction ``v`` has the slope ``s = g . v / |v|``, positive uphill. The speed on the map is

    - ``"tobler"``: ``6 exp(-3.5 |s + 0.05|)`` km/h, Tobler's hiking function, times ``speed`` over
      its value on the level; up to the slope ``1 / 3.5``, which is 15.9 degrees, up or down. The
      function alone gives a convex unit ball, a metric, exactly where the terrain is no steeper
      than that. On steeper terrain it is quicker to zigzag than to walk straight up, and the metric
      is the one of the quickest zigzags (the convex hull of the ball): there the time depends on
      the height that is gained alone, ``3.5 e |s|`` in the place of ``exp(3.5 |s|)``. So every
      terrain has its metric.
    - ``"matsumoto"``: who walks at ``speed`` on the level is pulled downhill by gravity, as in
      :meth:`finslerconv.metrics.Matsumoto.from_slope`. Convex where ``pull sin(e) < speed / 2`` for
      the angle ``e`` of the terrain; refused elsewhere.

    Parameters
    ----------
    dem : array, shape (..., height, width)
        Heights, in the units of ``spacing``: a digital elevation model.
    spacing : float or pair of float
        The distance between neighbours, along both axes or each; give it to
        :class:`finslerconv.geodesics.GridMetric` too.
    model : {"tobler", "matsumoto"}
        Which speeds.
    speed : float
        That on the level, positive, in units of ``spacing`` per unit of time. The default is that
        of Tobler's function, 1.399 m/s: with metres, times are in seconds.
    pull : float, optional
        Of ``"matsumoto"``: the speed that gravity adds straight down a wall; by default half of
        ``speed``, for which all slopes are convex.
    mask : bool array, shape (..., height, width), optional
        True where one may walk. Elsewhere heights are not looked at, NaN is welcome, and the
        terrain is flat; give the mask to :func:`finslerconv.geodesics.distance` too.

    Returns
    -------
    AlphaBeta or Matsumoto
        Of batch shape (..., height, width): vectors are those of the map. Differentiable in
        ``dem``.

    Raises
    ------
    TypeError
        If ``dem`` is no array of real floats, or the mask not boolean.
    ValueError
        If it has fewer than two axes, a height is not finite, an option is out of range, or the
        terrain too steep for ``"matsumoto"``; the message names the first place.

    Notes
    -----
    Tobler, "Three presentations on geographical analysis and modeling" (NCGIA Technical Report
    93-1, 1993), after data of Imhof; Matsumoto, "A slope of a mountain is a Finsler surface with
    respect to a time measure" (J. Math. Kyoto Univ. 29, 1989). Derivatives are central differences,
    one-sided at borders and beside what the mask leaves out.

    With the profile ``phi`` of :class:`finslerconv.metrics.AlphaBeta`, the condition of convexity
    is ``phi - s phi' + (b^2 - s^2) phi'' >= 0`` for ``|s| <= b = |g|``. For ``phi = exp(k |s|)`` it
    holds up to ``b = 1 / k``, and the tangent from 0 continues ``phi`` to the profile of the hull.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.physics import slope_metric
    >>> dem = np.arange(5.0)[:, None] * np.ones((5, 5))  # 1 m for every 10 m down the array
    >>> metric = slope_metric(dem, spacing=10.0)
    >>> uphill, downhill = np.array([[10.0, 0.0], [-10.0, 0.0]])
    >>> [float(metric[2, 2].norm(v).round(2)) for v in (uphill, downhill)]  # seconds
    [10.14, 7.15]
    """
    xp = check_floating(dem=dem)
    if dem.ndim < 2:
        raise ValueError(f"dem: expected shape (..., height, width), got {tuple(dem.shape)}")
    steps = _steps(spacing)
    if model not in ("tobler", "matsumoto"):
        raise ValueError(f"model: expected 'tobler' or 'matsumoto', got {model!r}")
    speed = as_number("speed", speed, above=0)
    if pull is not None and model == "tobler":
        raise ValueError("pull: expected None for 'tobler', which has no such number")
    pull = speed / 2 if pull is None else as_number("pull", pull)
    here = as_mask(mask, tuple(dem.shape), dem)
    dem = filled(dem, here)
    with no_gradient():
        check_where(
            "dem", xp.isfinite(detached(dem)), "finite heights", lambda i: float(dem[i]),
            "mask=isfinite(dem) leaves such places out",
        )  # fmt: skip
    gradient = xp.stack([_derivative(dem, here, axis, steps[axis]) for axis in (-2, -1)], axis=-1)
    if model == "matsumoto":
        return Matsumoto.from_slope(gradient, speed, pull)
    M = (identity_like(2, dem) + xp.zeros_like(gradient)[..., None]) / speed**2
    # In the frame of M a vector on the map is 1 / speed as long.
    return AlphaBeta(_Tobler(), M, gradient / speed, validate=False)


def _steps(spacing: float | Sequence[float]) -> tuple[float, float]:
    pair = (spacing, spacing) if is_number(spacing) else spacing
    try:
        first, second = pair  # type: ignore[misc]
    except (TypeError, ValueError):
        raise ValueError(
            f"spacing: expected a positive number, or two of them, got {shown(spacing)}"
        ) from None
    return as_number("spacing", first, above=0), as_number("spacing", second, above=0)


def _derivative(dem: Array, mask: Array | None, axis: int, step: float) -> Array:
    """Return the mean of the slopes to the two neighbours along an axis, of those that count."""
    xp = namespace(dem)
    before = [slice(None)] * dem.ndim
    after = list(before)
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    rise = (dem[tuple(after)] - dem[tuple(before)]) / step
    counts = xp.ones_like(rise)
    if mask is not None:
        counts = xp.astype(mask[tuple(after)] & mask[tuple(before)], dem.dtype)
    edge = [slice(None)] * dem.ndim
    edge[axis] = slice(0, 1)
    nothing = xp.zeros_like(dem[tuple(edge)])

    def both(x: Array) -> Array:
        return xp.concat((x, nothing), axis=axis) + xp.concat((nothing, x), axis=axis)

    return both(rise * counts) / xp.clip(both(counts), 1.0, None)
