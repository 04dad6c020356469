"""Unit geodesic balls: reference points carried to the points at their distance from a centre."""

import math
import warnings
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finslerconv._arrays import Array, as_integer, as_number
from finslerconv._transforms import (
    is_mapped,
    needs_formulas,
    refuse_transforms,
)
from finslerconv.balls import MapName, ReferenceSet, ball_map, concentric
from finslerconv.geodesics.balls._crossings import Arrivals, arrivals
from finslerconv.geodesics.balls._fan import fan
from finslerconv.geodesics.balls._windows import window_ball
from finslerconv.geodesics.fields import (
    GridMetric,
    MetricField,
    Positions,
    as_kind_of,
    as_tensor,
    as_tensors,
    check_finite,
    read_positions,
    shown_shape,
)
from finslerconv.geodesics.flow import (
    exponential,
    in_nodes,
    is_linear,
    shoot,
    tabulated,
)
from finslerconv.metrics import FinslerMetric

BallMethod = Literal["exp", "eikonal", "heat"]
"""How geodesic balls are found: by geodesics, by local distances, by a local heat flow."""

# Nodes from the centre of a window to the rim, by the dimension: what a ball may cost.
_RESOLUTION = {1: 24, 2: 24, 3: 8}


# The part of a ball that samples on straight rays may leave out, and of its radius that they may
# miss by, without a warning.
_MISFIT = 0.05


class InjectivityWarning(UserWarning):
    """Geodesics from a centre go on beyond their cut points, where others are shorter.

    Attributes
    ----------
    samples : ndarray of int, shape (k, 1 + ...)
        The indices of those samples in the result, less its last axis, row-major.
    centres : ndarray of int, shape (k, ...)
        The indices of their centres among all, row-major.
    folds : ndarray, shape (k,)
        Where the ball folds: at which fraction of each named sample's geodesic its first conjugate
        point lies, infinity where there is none before the sample.

    Examples
    --------
    >>> import warnings
    >>> from finslerconv.geodesics import InjectivityWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", InjectivityWarning)  # balls that fold are wanted here
    """

    def __init__(
        self, message: str, samples: np.ndarray, centres: np.ndarray, folds: np.ndarray
    ) -> None:
        super().__init__(message)
        self.samples = samples
        self.centres = centres
        self.folds = folds


class StarShapeWarning(UserWarning):
    """Straight rays from a centre leave its ball and come back, or miss its rim.

    Attributes
    ----------
    centres : ndarray of int, shape (k, ...)
        The indices of those centres among all, row-major.
    covered : ndarray, shape (k,)
        The part of each ball that the rays reach before they leave it, at most: what the window
        around the centre does not show of the ball is not counted.
    levels : ndarray, shape (k, 2)
        The least and the largest distance of each ball's samples, as fractions of what they should
        be.

    Examples
    --------
    >>> import warnings
    >>> from finslerconv.geodesics import StarShapeWarning
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", StarShapeWarning)  # uncovered balls raise
    """

    def __init__(
        self, message: str, centres: np.ndarray, covered: np.ndarray, levels: np.ndarray
    ) -> None:
        super().__init__(message)
        self.centres = centres
        self.covered = covered
        self.levels = levels


def geodesic_ball(
    field: MetricField,
    centres: Positions | None = None,
    reference: ReferenceSet | Float[Array, "n d"] | None = None,
    radius: float = 1.0,
    *,
    method: BallMethod = "exp",
    map: MapName = "radial",
    steps: int = 4,
    resolution: int | None = None,
    check: bool = True,
) -> Float[Array, "n *_ d"]:
    r"""Return the positions of reference points in the geodesic balls ``{y : d(x, y) <= radius}``.

    Parameters
    ----------
    field : GridMetric, FunctionMetric or MetricField
    centres : array or sequence, shape (\*batch, ..., d), optional
        Physical positions ``x``; of a :class:`GridMetric` of several fields the first axes are
        their batch. Unless given, the nodes of the grid.
    reference : ReferenceSet or array, shape (n, d), optional
        Points ``g``; ``finslerconv.balls.concentric(11)`` in the plane unless given. Those of the
        Euclidean unit ball fill the geodesic ball. Others are carried the same way, to their
        distance ``radius |g| > radius``: a lattice has its corners outside, as a kernel has.
    radius : float
        In the units of the metric's lengths.
    method : {"exp", "eikonal", "heat"}
        How the ball is found. With ``v`` the image of ``radius g`` in the tangent space at ``x``
        (see ``map``), the position is

        - ``"exp"``: ``exp_x(v)``, on a geodesic that sets out along ``v``: the whole ball, and
          beyond the cut points of ``x`` some of it twice; for any metric;
        - ``"eikonal"``: where the straight ray from ``x`` along ``v`` first is at distance
          ``F_x(v)`` from ``x``, by fast marching on a window around each centre; for Riemannian
          and Randers metrics, as is
        - ``"heat"``: the same, of the distance that a heat flow on the window finds; for checking,
          not for layers: a ball takes some 0.2 s.

        They parametrise one ball, differently (the same set, not the same points), where it is
        within the injectivity radius and star-shaped: where every straight ray from ``x`` leaves
        it once. Of another ball the last two see what straight rays reach within it. See the
        warnings for what is checked.
    map : {"radial", "affine"}
        How reference points are carried into the tangent ball: ``radial`` to ``g |g| / F(g)``, so
        that the position of ``g`` is at distance ``radius |g|``; ``affine`` to ``W + h^{-1/2} g``.
    steps : int
        Integration steps of ``"exp"`` for fields on grids (other fields: adaptive).
    resolution : int, optional
        Nodes of a window between the centre and the rim of the ball, for the other two methods; 24
        in the plane and 8 in space unless given. A window has some ``(3 resolution)^d`` nodes,
        which in space bounds what is practical: there a ball by ``"heat"`` takes 2 s at 8 and 20 s
        at 11, and does not finish at 24.
    check : bool
        Whether to look for what the warnings name. For ``"exp"`` on a field that bends at every
        node the check takes several times as long as the ball. Nothing is checked in forward mode
        and under transforms of ``torch.func``.

    Returns
    -------
    array, shape (n, \*batch, ..., d)
        Positions; samples lead, as :func:`finslerconv.balls.radial`'s do. Differentiable in the
        field and the centres; once, but for ``"exp"`` with cubic interpolation or a function. The
        gradients are those of the discretisation, exact to rounding.

    Warns
    -----
    InjectivityWarning
        If samples of ``"exp"`` lie beyond a cut point, where another geodesic is as short. A fan of
        48 geodesics from each centre (162 in space) shows candidates. A sample is named if the
        geodesic of one, and the straight way that is left from its end, are more than 2 % shorter
        than its own; and where the fan turns over, if a Jacobi field of its own geodesic vanishes
        before it, by 1 % or more: there the ball folds, and no geodesic is shortest beyond. So what
        is named is true; what is narrower than the fan, or a shortcut that saves less and has no
        fold, can be missed. In dimensions above 3 nothing is checked.
    StarShapeWarning
        If samples of ``"eikonal"`` or ``"heat"`` leave out more than 5 % of a ball, because it is
        not star-shaped (as far as the window around its centre shows it), or are more than 5 % off
        their distances. Those of ``"heat"`` are compared with fast marching on the same window,
        those of ``"eikonal"`` with what it finds at half the resolution, whence its error is
        estimated.

    Raises
    ------
    TypeError
        If arrays are of different kinds, or not of float32 or float64, or if ``"eikonal"``,
        ``"heat"`` or the affine map is asked of metrics that are not Randers ones.
    ValueError
        If shapes do not fit, ``radius`` is not positive, or an option is unknown.
    RuntimeError
        If the result is differentiated twice by a method that has first derivatives only, or
        ``"eikonal"`` or ``"heat"`` in another mode than the reverse one of ``backward()``.

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025): unit geodesic balls from a
    Finsler heat flow.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import polar
    >>> from finslerconv.geodesics import GridMetric, geodesic_ball
    >>> from finslerconv.metrics import Riemannian
    >>> field = GridMetric.from_metric(Riemannian(np.diag([1.0, 0.25])), (16, 16))
    >>> geodesic_ball(field, np.array([8.0, 8.0]), polar(1, 4)).round(12) + 0.0
    array([[ 8., 10.],
           [ 9.,  8.],
           [ 8.,  6.],
           [ 7.,  8.]])
    """
    if method not in ("exp", "eikonal", "heat"):
        raise ValueError(f"method: expected 'exp', 'eikonal' or 'heat', got {method!r}")
    ball_map(map)  # raises if there is no such map
    radius = as_number("radius", radius, above=0)
    steps = as_integer("steps", steps)
    if resolution is None:
        resolution = _RESOLUTION[min(field.dim, 3)]
    resolution = as_integer("resolution", resolution)
    x, kind = _centres(field, centres)
    points = _points(field, reference, x)
    if isinstance(field, GridMetric):
        field = field.torch()
    if method != "exp":
        refuse_transforms(
            f"geodesic_ball by {method!r}",
            "or method='exp', which has the others too",
            (_lengths(field, x), x, points),
        )
    if method == "exp":
        metric = field.at(x)
        positions, velocities = _by_exp(field, metric, x, points, radius, map, steps)
        if check and not needs_formulas(positions):
            _warn_of_crossings(arrivals(field, metric, x, velocities, positions, steps))
    else:
        positions, covered, levels = window_ball(field, x, points, radius, method, map, resolution)
        if check:
            _warn_of_rays(method, covered.cpu().numpy(), levels.cpu().numpy())
    return as_kind_of(positions, kind)


def _lengths(field: MetricField, x: Tensor) -> Tensor:
    """Return a tensor that has the derivatives which a field has at positions."""
    lengths: Tensor = field.at(x).norm(torch.ones_like(x))
    return lengths


def _by_exp(
    field: MetricField,
    metric: FinslerMetric,
    x: Tensor,
    points: Tensor,
    radius: float,
    map: MapName,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Return the positions (n, *centres, d) by geodesics, and the velocities they set out with."""
    batch = field.batch_shape if isinstance(field, GridMetric) else ()
    if x.numel() == 0:
        return (x.expand(len(points), *x.shape),) * 2
    lead = points.reshape(-1, *(1,) * (x.ndim - 1), points.shape[-1])
    velocities = (radius * ball_map(map)(metric, lead)).expand(-1, *x.shape)
    if is_linear(field):
        rays = fan(points, map=map, steps=steps)
        grid, table = tabulated(field, x)
        starts = in_nodes(field, x).reshape(math.prod(batch), -1, field.dim)
        ends = velocities[rays.ends].reshape(-1, *starts.shape).permute(1, 2, 0, 3)
        out = shoot(grid, table, starts, ends, rays.schedule)
        positions = x + out.movedim(-2, 0).reshape(len(points), *x.shape)
    else:
        # The axes of a batch of fields come first.
        ends = velocities.movedim(0, -2)
        positions = exponential(field, x[..., None, :], ends, steps=steps).movedim(-2, 0)
    return positions, velocities


def _warn_of_crossings(found: Arrivals) -> None:
    """Warn of samples that are reached before their time, or that lie beyond a fold."""
    early, folds = found
    beyond = (early < 1.0) | (folds < 1.0)
    samples = np.argwhere(beyond)
    if not len(samples):
        return
    around = beyond.any(0)
    centres = np.argwhere(around)
    index = tuple(centres[0].tolist())
    where = f", the first at index {index}" if index else ""
    faults = []
    if early.min() < 1:
        faults.append(
            "other geodesics reach them earlier, and they are up to "
            f"{100 * (1 - early.min()):.0f} % nearer than they should be"
        )
    if folds.min() < 1:
        faults.append(
            f"{(folds < 1).sum()} lie beyond a conjugate point, where the ball folds, at "
            f"{folds.min():.2f} of the geodesic or later"
        )
    warnings.warn(
        InjectivityWarning(
            f"{len(samples)} of {early.size} samples lie beyond a cut point of their geodesics, "
            f"around {len(centres)} of {around.size} centres{where}: {'; '.join(faults)}. "
            "Use a smaller radius, a smoother field, or method='eikonal'; the warning's "
            ".samples, .centres and .folds have the indices and the places",
            samples,
            centres,
            folds[beyond],
        ),
        stacklevel=3,
    )


def _warn_of_rays(method: str, covered: np.ndarray, levels: np.ndarray) -> None:
    """Warn of balls that samples on straight rays do not fill, or whose rim they miss."""
    ends = np.stack((levels.min(0), levels.max(0)), axis=-1)
    bad = (covered < 1 - _MISFIT) | (np.abs(ends - 1) > _MISFIT).any(-1)
    if not bad.any():
        return
    centres = np.argwhere(bad)
    index = tuple(centres[0].tolist())
    where = f", the first at index {index}" if index else ""
    covered, ends = covered[bad], ends[bad]
    faults = []
    if covered.min() < 1 - _MISFIT:
        faults.append(
            f"of the worst ball they reach at most {100 * covered.min():.0f} %, for it is not "
            "star-shaped"
        )
    if np.abs(ends - 1).max() > _MISFIT:
        faults.append(
            f"samples are at {ends.min():.2f} to {ends.max():.2f} of the distances that they "
            "should have"
        )
    more = ", a larger resolution" if method == "eikonal" else ""
    warnings.warn(
        StarShapeWarning(
            f"the straight rays of {method!r} do not give the balls around {len(centres)} of "
            f"{bad.size} centres{where}: {'; '.join(faults)}. Use a smaller radius, a smoother "
            f"field{more} or method='exp'; the warning's .centres, .covered and .levels have the "
            "figures",
            centres,
            covered,
            ends,
        ),
        stacklevel=3,
    )


def _centres(field: MetricField, centres: Array | None) -> tuple[Tensor, Array]:
    """Return the centres as a tensor, and an array of the kind of the result."""
    batch = field.batch_shape if isinstance(field, GridMetric) else ()
    if centres is None:
        if not isinstance(field, GridMetric):
            raise ValueError(
                "centres: a field without a grid has no nodes; say where the balls' centres are"
            )
        x = as_tensor("centres", field.nodes())
        return x.expand(*batch, *x.shape), field.like
    (centres,) = read_positions(field, centres=centres)
    (x,) = as_tensors(centres=centres)
    d = field.dim
    if x.ndim == 0 or x.shape[-1] != d or x.shape[: len(batch)] != batch or x.ndim <= len(batch):
        wanted = shown_shape(batch, "...", str(d))
        raise ValueError(f"centres: expected shape {wanted}, got {tuple(x.shape)}")
    check_finite("centres", x)
    return x, centres


def _points(
    field: MetricField, reference: ReferenceSet | Array | None, x: Tensor
) -> Float[Tensor, "n d"]:
    d = field.dim
    if reference is None:
        if d != 2:
            raise ValueError(
                f"reference: there is no default in dimension {d}; give a reference set, such as "
                f"finslerconv.balls.lattice({(5,) * d}), or an array of points"
            )
        reference = concentric(11)
    if isinstance(reference, ReferenceSet):
        points = torch.as_tensor(reference.points)
    else:
        points = as_tensor("reference", reference)
    if points.ndim != 2 or points.shape[-1] != d or len(points) == 0:
        raise ValueError(f"reference: expected points of shape (n, {d}), got {tuple(points.shape)}")
    if not is_mapped() and not bool(points.detach().isfinite().all()):
        raise ValueError("reference: expected finite points")
    return points.to(x)
