"""Travel times of a boat, an aircraft or a swimmer that a wind or a current carries along."""

from typing import Any

from jaxtyping import Bool, Float

from finslerconv._arrays import (
    Array,
    check_floating,
    check_vectors,
    constant_like,
    detached,
    identity_like,
    is_number,
    namespace,
    no_gradient,
    shown,
)
from finslerconv._linalg import dot
from finslerconv.metrics import Randers
from finslerconv.physics._mask import as_mask, check_where, filled


def zermelo_metric(
    wind: Float[Array, "*batch d"],
    speed: float | Float[Array, "..."],
    *,
    mask: Bool[Array, "..."] | None = None,
) -> Randers:
    r"""Return the travel times of a boat in a wind or a current.

    The boat moves at ``speed`` through the water (the air), and the water moves over the ground
    with the velocity ``wind``. In unit time the boat gets to the circle of radius ``speed`` around
    the tip of ``wind``: that is the unit ball of a Randers metric, whose lengths are times. Its
    shortest paths are the quickest routes, and its distances the travel times, one way; those of
    the way back are longer where the wind is with the boat.

    Parameters
    ----------
    wind : array, shape (..., d)
        Velocities over the ground, in the order of the arrays' axes: component 0 along rows (down
        the array, whichever way that is on the map), component 1 along columns. In units of the
        grid's spacing per unit of time.
    speed : float or array, shape (...)
        The speed of the boat in still water, positive, in the same units; one number or one for
        each place.
    mask : bool array, shape (...), optional
        True where the boat may go. Elsewhere (on land) values are not looked at, NaN is welcome,
        and the metric is that without wind at unit speed; give the mask to
        :func:`finslerconv.geodesics.distance` too.

    Returns
    -------
    Randers
        Of the batch shape of ``wind``, differentiable in ``wind`` and ``speed``.

    Raises
    ------
    TypeError
        If ``wind`` is no array of real floats, or the mask not boolean.
    ValueError
        If a speed is not positive, or the wind somewhere not weaker than the boat: against such a
        wind it makes no way, so that travel times in some directions do not exist. The message
        names the first place.

    Notes
    -----
    Zermelo, "Über das Navigationsproblem" (Z. Angew. Math. Mech. 11, 1931); that the solutions are
    geodesics of Randers metrics is due to Bao, Robles, Shen, "Zermelo navigation on Riemannian
    manifolds" (J. Differential Geom. 66, 2004). The wind is that of all times: one that changes
    during the voyage is none of a metric.

    :class:`finslerconv.metrics.Navigation` is the same for boats that are not equally quick in all
    directions, such as sailing boats.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, distance
    >>> from finslerconv.physics import zermelo_metric
    >>> current = np.zeros((5, 9, 2))
    >>> current[..., 1] = 1.0  # to the right
    >>> field = GridMetric.from_metric(zermelo_metric(current, speed=3.0))
    >>> there = distance(field, (2, 0))[2, 8]  # 8 steps at the speed 4
    >>> back = distance(field, (2, 8))[2, 0]  # 8 steps at the speed 2
    >>> float(there.round(9)), float(back.round(9))
    (2.0, 4.0)
    """
    xp = check_floating(wind=wind)
    d = wind.shape[-1] if wind.ndim else 1
    check_vectors("wind", wind, d)
    batch = tuple(wind.shape[:-1])
    here = as_mask(mask, batch, wind)
    wind = filled(wind, here)
    boat = filled(_speeds(speed, batch, wind), here, 1.0)
    with no_gradient():
        strength = xp.sqrt(dot(detached(wind), detached(wind)))
        check_where(
            "speed", detached(boat) > 0, "positive numbers", lambda i: float(boat[i]),
            "a boat that does not move reaches nothing",
        )  # fmt: skip

        def described(index: tuple[int, ...]) -> str:
            return f"a wind of {float(strength[index]):.6g} against {float(boat[index]):.6g}"

        check_where(
            "wind", strength < detached(boat), "a wind weaker than the boat, |wind| < speed",
            described, "leave such places out by mask, or take a faster boat",
        )  # fmt: skip
    h = identity_like(d, wind) / (boat * boat)[..., None, None]
    return Randers.from_zermelo(h, wind, validate=False)


def _speeds(speed: Any, batch: tuple[int, ...], like: Array) -> Array:
    xp = namespace(like)
    if is_number(speed):
        speed = constant_like(float(speed), like)
    elif xp is not check_floating(speed=speed):
        raise TypeError(
            f"speed: expected a number or an array of the kind of wind, got {type(speed).__name__}"
        )
    try:
        return xp.broadcast_to(speed, batch)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"speed: expected a number, or one for each wind, shape {batch}, got {shown(speed)}"
        ) from error
