"""The Randers metric whose unit ball explains the sampling positions of a kernel."""

import enum
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finslerconv._arrays import Array, as_integer, is_number
from finslerconv._linalg import det, inverse
from finslerconv.balls import Ellipse, ReferenceSet
from finslerconv.implicit._ellipses import Frame, Refinement, holding_pixel, put, take, where
from finslerconv.implicit._moments import capped, moment_ellipse, regularised, spread
from finslerconv.implicit._objectives import Objective, intersection_over_union, objective_of
from finslerconv.implicit._samples import Samples, as_kind, flat_tensors
from finslerconv.metrics import Randers, Riemannian

ObjectiveName = Literal["reference", "enclosing", "gauge", "overlap", "moments"]
Kind = Literal["randers", "riemannian"]

#: Samples handled at once: intermediate arrays stay in the cache.
_CHUNK = 2**18

#: Samples are collinear if their standard deviation across is below this share of that along.
_COLLINEAR = 1e-5

#: The smallest half-axis that is returned for samples on a line or in one place, in pixels.
_SMALLEST = 1e-3

#: A ball runs away if a half-axis is longer than this many distances of the farthest sample,
_RUNAWAY = 1000.0
#: or than this many if the refinement did not come to rest,
_RUNNING = 2.0
#: and is cut off at this many, since longer ones are lost in the rounding of single precision.
_CUT = 100.0

#: A sample counts as inside the ball up to this excess of its norm over 1.
_ROUNDING = 1e-6


class Misfit(enum.IntEnum):
    """Why no Randers metric explains a kernel's positions.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.implicit import Misfit, fit_randers
    >>> line = np.linspace(-1, 1, 9)[:, None] * [0.5, 1.0]
    >>> Misfit(int(fit_randers(line).reason)).name
    'DEGENERATE'
    """

    NONE = 0
    """One does."""

    DEGENERATE = 1
    """The samples of non-zero weight are in one place, on one line, or too few to tell."""

    OUTSIDE = 2
    """The pixel is outside its own ball: the ellipse that fits best does not hold it.

    For the radial map, which puts each sample on its own ray from the pixel, and for Riemannian
    balls matched to reference points: the pixel is outside the samples' hull, and the metric misses
    them by more than a tenth of their root mean square distance from the pixel.
    """

    TURNED = 3
    """The samples are turned or mirrored against the reference points (affine map)."""

    DIVERGED = 4
    """The ball runs away: larger balls always fit better.

    Its half-axis is more than 1000 times as long as the farthest sample is away, or more than twice
    and still growing after ``max_steps``.
    """

    UNREPRESENTABLE = 5
    """The samples are so far or so near that the dtype of the positions cannot hold the metric."""


@dataclass(frozen=True, eq=False)
class RandersFit:
    r"""Metrics fitted to the sampling positions of kernels, and how well they fit.

    The arrays are of the kind, device and dtype of the positions, and none holds a NaN. Where
    ``reason`` is not 0 no metric explains the samples. The fit then holds another valid metric,
    with its ``residual``, ``iou`` and ``inside``:

    - ``DEGENERATE``: the ellipse of the samples' moments, its half-axes at least 1/1000 of the
      longer and 1/1000 pixel, its centre drawn towards the pixel until it holds it;
    - ``OUTSIDE``: the best ball that still holds the pixel, most often on the bound
      ``|omega|_{M^-1} = 1 - margin``;
    - ``TURNED``: the ellipse of the samples' moments, in proportion to those of the reference
      points, onto which the map is wrong;
    - ``DIVERGED``: the ball at which the refinement stopped; where a half-axis is more than 1000
      times as long as the farthest sample is away, cut off at 100 times;
    - ``UNREPRESENTABLE``: a disc of about the samples' size, as far as the dtype goes.

    Attributes
    ----------
    metric : Randers or Riemannian
        Of batch ``(*batch,)``.
    residual : array, shape (\*batch,)
        What the objective makes small. ``"reference"``: the root mean square distance of the
        positions from those of the metric, in pixels. ``"gauge"``: the root mean square of
        ``F(v_i) - l_i``. ``"enclosing"``: the ball's area over the hull's, less 1 (infinite for a
        hull without area). ``"overlap"``: ``1 - iou``. ``"moments"``: how far the ball had to be
        drawn towards the pixel to hold it, in pixels.
    iou : array, shape (\*batch,)
        Intersection over union of the ball and the convex hull of the samples.
    inside : array, shape (\*batch,)
        The share of the samples of non-zero weight that are in the ball, up to rounding.
    pixel_in_hull : bool array, shape (\*batch,)
        Whether the pixel is strictly inside the convex hull of the samples, where
        :class:`finslerconv.metrics.Polytope` is the exact metric.
    reason : integer array, shape (\*batch,)
        A :class:`Misfit`: 0 where the metric explains the samples.
    converged : bool array, shape (\*batch,)
        Whether the refinement came to rest within ``max_steps`` (true where there was none). If
        not, it is still explained, unless it has ``DIVERGED``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import lattice, radial
    >>> from finslerconv.implicit import fit_randers
    >>> from finslerconv.metrics import Randers
    >>> metric = Randers(np.diag([1.0, 0.5]), np.array([0.0, 0.2]))
    >>> fit = fit_randers(radial(metric, lattice(3).points), reference=lattice(3))
    >>> bool(np.allclose(fit.metric.omega, metric.omega)), int(fit.reason)
    (True, 0)
    """

    metric: Randers | Riemannian
    residual: Float[Array, "*batch"]
    iou: Float[Array, "*batch"]
    inside: Float[Array, "*batch"]
    pixel_in_hull: Bool[Array, "*batch"]
    reason: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]

    @property
    def explained(self) -> Bool[Array, "*batch"]:
        """Where the metric explains the samples: ``reason == 0``."""
        return self.reason == Misfit.NONE

    def __repr__(self) -> str:
        count = math.prod(self.metric.batch_shape)
        return f"RandersFit({self.metric!r}, explained={int(self.explained.sum())} of {count})"


def fit_randers(
    points: Float[Array, "*batch n 2"],
    weights: Float[Array, "... n"] | None = None,
    *,
    objective: ObjectiveName | None = None,
    kind: Kind = "randers",
    reference: ReferenceSet | None = None,
    map: Literal["radial", "affine"] = "radial",
    levels: Any = None,
    margin: float = 1e-3,
    refine: bool = True,
    max_steps: int = 60,
) -> RandersFit:
    r"""Return the metrics whose unit balls explain kernels' sampling positions.

    A kernel samples at ``v_1, ..., v_n`` around its pixel. The ball of a Randers metric, an ellipse
    that holds the pixel, is first estimated in closed form and then refined by a Riemannian Newton
    method on the product of the manifold of positive definite matrices and the unit ball of the
    drift, for all kernels at once, in float64.

    Parameters
    ----------
    points : array, shape (\*batch, n, 2)
        Sampling positions as displacements (down, right) from the pixel, in pixels, **the samples
        last but one**, as the modules' ``positions`` return them. NumPy or PyTorch.
    weights : array, shape (\*batch, n) or (n,), optional
        Non-negative weights of the samples, such as a modulation; by default all alike. Samples of
        weight 0 are ignored.
    objective : {"reference", "enclosing", "gauge", "overlap", "moments"}, optional
        What is made small; ``"reference"`` if a reference set is given, else ``"enclosing"``.

        - ``"reference"``: the distances between the samples and the images of the known reference
          points under ``map``. Exact for positions that a metric made.
        - ``"enclosing"``: the area of the ball that holds every sample of non-zero weight.
        - ``"gauge"``: the squares of ``F(v_i) - l_i``, for samples on rings of known ``levels``.
        - ``"overlap"``: one less the intersection over union with the convex hull of the samples
          of non-zero weight.
        - ``"moments"``: nothing; the ball over which a uniform density has the mean and the second
          moments of the weighted samples. For clouds of points whose weights tell more than their
          rim.
    kind : {"randers", "riemannian"}
        The kind of metric; a Riemannian ball is an ellipse around the pixel.
    reference : ReferenceSet, optional
        The points of the unit disc that the samples are images of, in their order.
    map : {"radial", "affine"}
        How the metric carries them into its ball; ``"affine"`` is for ``objective="reference"``
        only.
    levels : array, shape (n,), optional
        For ``"gauge"``: the norms ``l_i`` that the samples should have, instead of a ``reference``.
        If not given, the lengths of the reference points; without those, of a square kernel of odd
        size, the place of each tap's square ring, from 0 in the centre to 1 at the rim.
    margin : float
        How far ``|omega|_{M^-1}`` stays below 1, in [1e-4, 1): a ball whose pixel is nearer to the
        rim counts as one that does not hold it.
    refine : bool
        Whether to refine the closed-form start. For ``map="affine"`` that is the optimum already;
        for ``"enclosing"`` and ``"overlap"`` it is the ellipse of the samples' moments, which is
        right for samples that fill the ball evenly and may be far off for others.
    max_steps : int
        Most steps of the refinement.

    Returns
    -------
    RandersFit
        The metrics and the quality of the fit. Detached: no gradients flow through the fit.

    Raises
    ------
    TypeError
        If an argument is no array of real floats, or NumPy and PyTorch are mixed.
    ValueError
        If shapes do not fit, a position or weight is not finite, a weight is negative, the
        arguments contradict each other or one would be without effect, or the reference points
        lie along too few directions to determine a metric through the radial map (five; three axes
        for a Riemannian one).

    References
    ----------
    Dagès, Lindenbaum, Bruckstein, "Metric Convolutions" (ICCV 2025).

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import lattice, radial
    >>> from finslerconv.implicit import fit_randers
    >>> from finslerconv.metrics import Randers
    >>> metric = Randers(np.array([[0.25, 0.1], [0.1, 1.0]]), np.array([0.2, 0.5]))
    >>> taps = lattice(3)
    >>> fit = fit_randers(radial(metric, taps.points), reference=taps)
    >>> fit.metric.M.round(9), fit.metric.omega.round(9), fit.explained
    (array([[0.25, 0.1 ],
           [0.1 , 1.  ]]), array([0.2, 0.5]), np.True_)
    """
    flat, masses = flat_tensors(points, weights)
    if kind not in ("randers", "riemannian"):
        raise ValueError(f"kind: expected 'randers' or 'riemannian', got {kind!r}")
    if not is_number(margin) or not 1e-4 <= margin < 1:
        raise ValueError(f"margin: expected a number in [1e-4, 1), got {margin!r}")
    margin = float(margin)
    max_steps = as_integer("max_steps", max_steps)
    n = flat.shape[1]
    centred = kind == "riemannian"
    chosen = objective_of(objective, n, reference, map, levels, centred, flat.device)
    steps = max_steps if refine else 0
    size = max(1, _CHUNK // n)
    parts = [
        _fit(chosen, Samples.of(*chunk), centred, 1 - margin, steps)
        for chunk in zip(flat.split(size), masses.split(size), strict=True)
    ]
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return _result(_Fitted(*columns), points, flat.dtype, centred)


def known_metric(
    metric: Randers | Riemannian,
    points: Float[Tensor, "*batch n 2"],
    weights: Float[Tensor, "*batch n"] | None,
) -> RandersFit:
    """Return a fit of residual 0: the metric that made the positions, and its quality."""
    flat, masses = flat_tensors(points, weights)
    batch = metric.batch_shape
    M = metric.M.double().reshape(-1, 2, 2)
    omega = metric.omega.double().reshape(-1, 2) if isinstance(metric, Randers) else 0 * M[..., 0]
    ellipse = Ellipse.of(Randers(M, omega, validate=False))
    size = max(1, _CHUNK // flat.shape[1])
    quality = []
    for part in torch.arange(len(flat)).split(size):
        samples = Samples.of(flat[part], masses[part])
        scale = samples.scale[:, None]
        # In the samples' units; one division after the other, as the square may overflow.
        shape = ellipse.shape[part] / scale[..., None] / scale[..., None]
        quality.append(_quality(samples, Ellipse(ellipse.centre[part] / scale, shape)))
    iou, inside, in_hull = (
        torch.cat(column).reshape(batch) for column in zip(*quality, strict=True)
    )
    return RandersFit(
        metric=metric,
        residual=torch.zeros_like(iou).to(flat.dtype),
        iou=iou.to(flat.dtype),
        inside=inside.to(flat.dtype),
        pixel_in_hull=in_hull,
        reason=torch.zeros_like(in_hull, dtype=torch.int64),
        converged=torch.ones_like(in_hull),
    )


class _Fitted(NamedTuple):
    """The columns of a fit over a flat batch, in float64."""

    scale: Tensor
    centre: Tensor
    shape: Tensor
    residual: Tensor
    iou: Tensor
    inside: Tensor
    pixel_in_hull: Tensor
    reason: Tensor
    converged: Tensor


def _fit(
    objective: Objective, samples: Samples, centred: bool, limit: float, steps: int
) -> _Fitted:
    """Fit a flat batch."""
    short, long = spread(samples.points, samples.weights).unbind(-1)
    start = objective.start(samples, centred)
    degenerate = (short <= _COLLINEAR * long) | (long <= _COLLINEAR) | ~start.determined

    moments = moment_ellipse(samples.points, samples.weights, centred)
    # Samples of no size at all have half-axes that overflow in their units.
    smallest = (_SMALLEST / samples.scale).clamp_max(1e70)
    ellipse = where(degenerate, regularised(moments, smallest), start.ellipse)
    ellipse, at_bound = holding_pixel(ellipse, limit)
    converged = torch.ones_like(degenerate)
    good = (~degenerate).nonzero().squeeze(-1)
    if steps and len(good):
        how = Refinement(centred, limit, steps)
        best, at_rest = objective.refine(samples[good], take(ellipse, good), how)
        ellipse = put(ellipse, good, best)
        converged = converged.index_copy(0, good, at_rest)
        ellipse, at_bound = holding_pixel(ellipse, limit)
    ellipse, runs_away = _bounded(samples, ellipse, limit, degenerate)
    running = ~converged & ~at_bound & (ellipse.axes[:, 0] > _RUNNING * samples.farthest())

    reason = torch.zeros_like(degenerate, dtype=torch.int64)
    reason = reason.masked_fill(at_bound | objective.outside(samples, ellipse), Misfit.OUTSIDE)
    reason = reason.masked_fill(runs_away | running, Misfit.DIVERGED)
    reason = reason.masked_fill(~start.proper, Misfit.TURNED)
    reason = reason.masked_fill(degenerate, Misfit.DEGENERATE)
    quality = _quality(samples, ellipse)
    return _Fitted(
        samples.scale, ellipse.centre, ellipse.shape,
        objective.residual(samples, ellipse, samples.scale), *quality, reason, converged,
    )  # fmt: skip


def _bounded(
    samples: Samples, ellipse: Ellipse, limit: float, degenerate: Tensor
) -> tuple[Ellipse, Tensor]:
    """Cut off the ellipses that run away; return also which do."""
    farthest = samples.farthest()
    runs_away = (ellipse.axes[:, 0] > _RUNAWAY * farthest) & ~degenerate
    index = runs_away.nonzero().squeeze(-1)
    if len(index):
        cut = capped(take(ellipse, index), _CUT * farthest[index])
        ellipse = put(ellipse, index, holding_pixel(cut, limit)[0])
    return ellipse, runs_away


def _quality(samples: Samples, ellipse: Ellipse) -> tuple[Tensor, Tensor, Tensor]:
    """Return intersection over union, share of samples inside, whether the hull has the pixel."""
    frame = Frame.of(ellipse)
    held = frame.norm(frame.vectors(samples.points)) <= 1 + _ROUNDING
    present = samples.weights > 0
    inside = (held & present).sum(1) / present.sum(1).clamp_min(1)
    return intersection_over_union(samples, ellipse), inside, samples.pixel_in_hull()


def _result(fitted: _Fitted, points: Array, dtype: torch.dtype, centred: bool) -> RandersFit:
    """Return the fit in the shape, kind and dtype of the positions."""
    batch = tuple(points.shape[:-2])

    def column(values: Tensor) -> Array:
        values = values.to(dtype) if values.is_floating_point() else values
        return as_kind(values.reshape((*batch, *values.shape[1:])), points)

    M, omega, held = _in_pixels(fitted, dtype)
    reason = fitted.reason.masked_fill(~held & (fitted.reason == 0), Misfit.UNREPRESENTABLE)
    metric: Randers | Riemannian = Riemannian(column(M), validate=False)
    if not centred:
        metric = Randers(metric.M, column(omega), validate=False)
    # From the residual on, the columns are those of a RandersFit.
    return RandersFit(metric, *map(column, fitted._replace(reason=reason)[3:]))


def _in_pixels(fitted: _Fitted, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``M`` and ``omega`` in the dtype, and where the dtype holds them.

    Elsewhere they are a disc of the samples' size, whose determinant the dtype holds.
    """
    h = inverse(fitted.shape)
    unit = Randers.from_zermelo((h + h.mT) / 2, fitted.centre, validate=False)
    scale = fitted.scale[:, None]
    # One division after the other: the square of the scale may overflow.
    M = (unit.M / scale[..., None] / scale[..., None]).to(dtype)
    omega = (unit.omega / scale).to(dtype)
    number = torch.finfo(dtype)
    largest = number.tiny**-0.25 / 2
    size = det(M)
    held = (size > number.tiny) & (size < number.max / 4) & (M[:, 0, 0] > 0)
    held = held & (Randers(M, omega, validate=False).omega_norm() < 1)
    disc = fitted.scale.clamp(1 / largest, largest)[:, None, None] ** -2
    eye = torch.eye(2, dtype=dtype, device=M.device)
    M = torch.where(held[:, None, None], M, disc.to(dtype) * eye)
    return M, torch.where(held[:, None], omega, torch.zeros_like(omega)), held
