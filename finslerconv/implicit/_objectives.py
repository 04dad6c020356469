"""What a fitted ball makes small: the objectives, each with start, refinement and residual."""

import abc
import math
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from finslerconv._linalg import det, dot, outer
from finslerconv.balls import Ellipse, ReferenceSet, ball_map, lattice
from finslerconv.implicit._ellipses import (
    Frame,
    Model,
    Refinement,
    descend,
    holding_pixel,
    stretched_to_pixel,
    where,
)
from finslerconv.implicit._enclosing import smallest_enclosing
from finslerconv.implicit._moments import (
    affine_ellipse,
    conic_ellipse,
    hull_ellipse,
    moment_ellipse,
)
from finslerconv.implicit._overlap import (
    field_along,
    polygon_area,
    shared_area,
    shared_area_derivatives,
    squared_field,
)
from finslerconv.implicit._samples import Samples, as_tensor

#: Curvatures below this share of their sum count as zero.
_UNDETERMINED = 1e-12

#: A ball misses samples by more than this share of their root mean square distance from the pixel.
_MISSED = 0.1


class Start(NamedTuple):
    """Where a refinement begins."""

    ellipse: Ellipse
    determined: Bool[Tensor, " batch"]
    """Whether the samples are enough to tell."""

    proper: Bool[Tensor, " batch"]
    """Whether the samples are not turned or mirrored."""


class Objective(abc.ABC):
    """What :func:`fit_randers` asks of an objective, for flat batches of samples near unit size."""

    def start(self, samples: Samples, centred: bool) -> Start:
        """Return the closed-form start: the ellipse of the samples' moments."""
        everywhere = torch.ones_like(samples.corners, dtype=torch.bool)
        ellipse = moment_ellipse(samples.points, samples.weights, centred)
        return Start(ellipse, everywhere, everywhere)

    @abc.abstractmethod
    def refine(self, samples: Samples, ellipse: Ellipse, how: Refinement) -> tuple[Ellipse, Tensor]:
        """Return the optimum, and where it was reached."""

    @abc.abstractmethod
    def residual(self, samples: Samples, ellipse: Ellipse, scale: Tensor) -> Tensor:
        """Return the value that is made small; ``scale`` is the samples' unit in pixels."""

    def outside(self, samples: Samples, ellipse: Ellipse) -> Tensor:
        """Return where the pixel counts as outside its ball though the ellipse holds it."""
        return torch.zeros_like(samples.corners, dtype=torch.bool)

    def _unreached(self, samples: Samples, ellipse: Ellipse) -> Tensor:
        """Return where the pixel is outside the hull and the ball misses the samples."""
        missed = self.residual(samples, ellipse, torch.ones_like(samples.scale))
        return ~samples.pixel_in_hull() & (missed > _MISSED)


class Smooth(Objective):
    """An objective with two derivatives, refined by Newton steps."""

    @abc.abstractmethod
    def model(self, samples: Samples, ellipse: Ellipse) -> Model:
        """Return the function that is minimised, to the second order."""

    def refine(self, samples: Samples, ellipse: Ellipse, how: Refinement) -> tuple[Ellipse, Tensor]:
        return descend(lambda e, index: self.model(samples[index], e), ellipse, how)

    def _start(self, samples: Samples, ellipse: Ellipse, centred: bool) -> Start:
        """Return a start, determined where the Gauss-Newton matrix is of full rank."""
        p = 3 if centred else 5
        hessian = self.model(samples, holding_pixel(ellipse, 0.9)[0]).far[:, :p, :p]
        size = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        eye = torch.eye(p, dtype=hessian.dtype, device=hessian.device)
        failed = torch.linalg.cholesky_ex(hessian - _UNDETERMINED * size * eye)[1]
        return Start(ellipse, failed == 0, torch.ones_like(failed, dtype=torch.bool))


@final
class RadialMatching(Smooth):
    """Distances of the samples from ``g |g| / F(g)``, which the metric moves only along ``g``."""

    def __init__(self, reference: Float[Tensor, "n 2"]) -> None:
        self.length = reference.norm(dim=-1)
        # A point at the centre stays there: any direction serves, and its weight is 0.
        self.divisor = torch.where(self.length > 0, self.length, torch.ones_like(self.length))
        axis = reference.new_tensor((1.0, 0.0))
        self.direction = torch.where(
            self.length[:, None] > 0, reference / self.divisor[:, None], axis
        )

    def _reach(self, samples: Samples) -> Tensor:
        """Return how far along ``g`` each sample is, in units of ``|g|``."""
        return (samples.points * self.direction).sum(-1) / self.divisor

    def _weights(self, samples: Samples) -> Tensor:
        return samples.weights * self.length**2

    def start(self, samples: Samples, centred: bool) -> Start:
        """Return the conic through the boundary points that belong to the samples."""
        reach = self._reach(samples).clamp_min(0)
        # reach is 1 / F(direction); the equations, times its cube, weigh errors of positions.
        ellipse, proper = conic_ellipse(
            self.direction * reach[..., None],
            torch.ones_like(reach),
            self._weights(samples).sqrt() * reach,
            centred,
        )
        moments = moment_ellipse(samples.points, samples.weights, centred, self.length)
        return self._start(samples, where(proper, ellipse, moments), centred)

    def model(self, samples: Samples, ellipse: Ellipse) -> Model:
        """Return half the weighted square error of the reaches."""
        frame = Frame.of(ellipse)
        rim = _Rim.along(frame.vectors(self.direction.expand_as(samples.points)), frame)
        return rim.least_squares(rim.reach - self._reach(samples), self._weights(samples), 1.0, 0.0)

    def residual(self, samples: Samples, ellipse: Ellipse, scale: Tensor) -> Tensor:
        """Return the root mean square distance, in pixels."""
        frame = Frame.of(ellipse)
        norm = frame.norm(frame.vectors(self.direction.expand_as(samples.points)))
        images = self.direction * (self.length / norm)[..., None]
        return scale * _distance(samples, images)

    def outside(self, samples: Samples, ellipse: Ellipse) -> Tensor:
        # Samples of a part of the kernel need not be around the pixel, and are reached.
        return self._unreached(samples, ellipse)


@final
class AffineMatching(Objective):
    """Distances of the samples from ``W + P^{1/2} g``: linear least squares, nothing to refine."""

    def __init__(self, reference: Float[Tensor, "n 2"]) -> None:
        self.reference = reference

    def start(self, samples: Samples, centred: bool) -> Start:
        ellipse, determined, proper = affine_ellipse(
            samples.points, samples.weights, self.reference, centred
        )
        lengths = self.reference.norm(dim=-1)
        moments = moment_ellipse(samples.points, samples.weights, centred, lengths)
        return Start(where(proper, ellipse, moments), determined, proper)

    def refine(self, samples: Samples, ellipse: Ellipse, how: Refinement) -> tuple[Ellipse, Tensor]:
        return ellipse, torch.ones_like(samples.corners, dtype=torch.bool)

    def residual(self, samples: Samples, ellipse: Ellipse, scale: Tensor) -> Tensor:
        """Return the root mean square distance, in pixels."""
        images = self.reference @ Frame.of(ellipse).root + ellipse.centre[:, None]
        return scale * _distance(samples, images)

    def outside(self, samples: Samples, ellipse: Ellipse) -> Tensor:
        # Other balls are where the samples are, or hold the pixel.
        around = (ellipse.centre == 0).all(dim=-1)
        return around & self._unreached(samples, ellipse)


@final
class Rings(Smooth):
    """Squares of ``F(v_i) - l_i`` for samples on rings of known levels."""

    def __init__(self, levels: Float[Tensor, " n"]) -> None:
        self.levels = levels

    def start(self, samples: Samples, centred: bool) -> Start:
        levels = self.levels.expand_as(samples.weights)
        safe = torch.where(levels > 0, levels, torch.ones_like(levels))
        weights = torch.where(levels > 0, samples.weights, 0.0).sqrt() / safe
        ellipse, proper = conic_ellipse(samples.points, levels, weights, centred)
        moments = moment_ellipse(samples.points, samples.weights, centred, self.levels)
        return self._start(samples, where(proper, ellipse, moments), centred)

    def model(self, samples: Samples, ellipse: Ellipse) -> Model:
        """Return half the weighted square error of the norms, ``F`` being one over the reach."""
        frame = Frame.of(ellipse)
        q = frame.vectors(samples.points)
        away = dot(q, q) > 0
        axis = q.new_tensor((1.0, 0.0))
        rim = _Rim.along(torch.where(away[..., None], q, axis), frame)
        norm = torch.where(away, 1 / rim.reach, 0.0)
        return rim.least_squares(norm - self.levels, samples.weights, -(norm**2), 2 * norm**3)

    def residual(self, samples: Samples, ellipse: Ellipse, scale: Tensor) -> Tensor:
        """Return the root mean square error of the norms."""
        frame = Frame.of(ellipse)
        error = frame.norm(frame.vectors(samples.points)) - self.levels
        return (samples.weights * error**2).sum(1).sqrt()


@final
class Enclosing(Objective):
    """The area of the ball that holds every sample."""

    def refine(self, samples: Samples, ellipse: Ellipse, how: Refinement) -> tuple[Ellipse, Tensor]:
        """Return the smallest enclosing ellipse, by an interior-point method."""
        return smallest_enclosing(samples.hull, how)

    def residual(self, samples: Samples, ellipse: Ellipse, scale: Tensor) -> Tensor:
        """Return the ball's area over the hull's, less 1."""
        area = torch.pi * det(ellipse.shape).clamp_min(0).sqrt()
        return area / polygon_area(samples.hull).clamp_min(0) - 1


@final
class Moments(Objective):
    """Nothing: the ball over which a uniform density has the samples' mean and second moments."""

    def refine(self, samples: Samples, ellipse: Ellipse, how: Refinement) -> tuple[Ellipse, Tensor]:
        return ellipse, torch.ones_like(samples.corners, dtype=torch.bool)

    def residual(self, samples: Samples, ellipse: Ellipse, scale: Tensor) -> Tensor:
        """Return how far the ball had to be drawn towards the pixel to hold it, in pixels."""
        mean = (samples.weights[..., None] * samples.points).sum(1)
        # Of a Riemannian metric the moments are about the pixel, where its ball is.
        off = (ellipse.centre - mean).norm(dim=-1)
        return scale * torch.where((ellipse.centre == 0).all(-1), 0.0, off)


@final
class Overlap(Smooth):
    """One less the intersection over union of the ball and the samples' hull."""

    def model(self, samples: Samples, ellipse: Ellipse) -> Model:
        """Return ``-log`` of the intersection over union."""
        hull = Frame.of(ellipse).places(samples.hull)
        shared = shared_area_derivatives(hull)
        # The disc's area is pi exp(tr E).
        trace = hull.new_tensor((1.0, 0.0, 1.0, 0.0, 0.0))
        union = torch.pi + polygon_area(hull) - shared.value
        union_gradient = torch.pi * trace - shared.gradient
        union_hessian = torch.pi * trace[:, None] * trace - shared.hessian
        value, gradient, hessian = _log(shared.value, shared.gradient, shared.hessian)
        other, other_gradient, other_hessian = _log(union, union_gradient, union_hessian)
        hessian = other_hessian - hessian
        return Model(other - value, other_gradient - gradient, hessian, hessian)

    def refine(self, samples: Samples, ellipse: Ellipse, how: Refinement) -> tuple[Ellipse, Tensor]:
        """Return the optimum, by Newton steps from the ellipse of the hull's moments.

        The start meets the samples, wherever the pixel is: no overlap, no slope.
        """
        filled = stretched_to_pixel(hull_ellipse(samples.hull, how.centred), 0.9 * how.limit)
        return super().refine(samples, filled, how)

    def residual(self, samples: Samples, ellipse: Ellipse, scale: Tensor) -> Tensor:
        """Return one less the intersection over union."""
        return 1 - intersection_over_union(samples, ellipse)


def objective_of(
    name: str | None,
    n: int,
    reference: ReferenceSet | None,
    map: str,
    levels: Any,
    centred: bool,
    device: torch.device,
) -> Objective:
    """Return the objective that the arguments of ``fit_randers`` describe, or raise."""
    name = name or ("enclosing" if reference is None else "reference")
    if name not in ("reference", "enclosing", "gauge", "overlap", "moments"):
        raise ValueError(
            "objective: expected 'reference', 'enclosing', 'gauge', 'overlap' or 'moments', got "
            f"{name!r}"
        )
    ball_map(map)  # raises if there is no such map
    if map == "affine" and name != "reference":
        missing = "; give the reference points" if reference is None else ""
        raise ValueError(f"map: is for the objective 'reference', not for {name!r}{missing}")
    if levels is not None and name != "gauge":
        raise ValueError(f"levels: are for the objective 'gauge', not for {name!r}")
    if levels is not None and reference is not None:
        raise ValueError(
            "levels: the reference points have levels of their own, their lengths; leave one of "
            "the two out"
        )
    if reference is not None:
        if name in ("enclosing", "overlap", "moments"):
            raise ValueError(
                f"reference: the objective {name!r} does not use it; leave it out, or choose "
                "'reference' or 'gauge'"
            )
        if not isinstance(reference, ReferenceSet):
            raise TypeError(
                f"reference: expected a ReferenceSet, such as finslerconv.balls.lattice(3), got "
                f"{type(reference).__name__}"
            )
        if reference.dim != 2 or len(reference) != n:
            raise ValueError(
                f"reference: expected {n} planar points, one for each sample, got {len(reference)} "
                f"of dimension {reference.dim}"
            )
    match name:
        case "enclosing":
            return Enclosing()
        case "overlap":
            return Overlap()
        case "moments":
            return Moments()
        case "gauge":
            return Rings(_tensor(_levels(levels, reference, n), device))
    if reference is None:
        raise ValueError("reference: the objective 'reference' needs the reference points")
    points = _tensor(reference.points, device)
    if map == "affine":
        return AffineMatching(points)
    _check_rays(reference, centred)
    return RadialMatching(points)


def intersection_over_union(samples: Samples, ellipse: Ellipse) -> Float[Tensor, " batch"]:
    """Return the intersection over union of ellipses and the samples' hulls."""
    hull = Frame.of(ellipse).places(samples.hull)
    shared = shared_area(hull).clamp_min(0)
    return (shared / (torch.pi + polygon_area(hull) - shared)).clamp(0, 1)


def _levels(levels: Any, reference: ReferenceSet | None, n: int) -> Float[np.ndarray, " n"]:
    if levels is not None:
        levels = np.asarray(as_tensor(levels).cpu() if isinstance(levels, Tensor) else levels)
        if levels.shape != (n,) or not np.issubdtype(levels.dtype, np.number):
            raise ValueError(f"levels: expected {n} numbers, one for each sample, got {levels!r}")
        if not (np.isfinite(levels) & (levels >= 0)).all() or not (levels > 0).any():
            raise ValueError(
                f"levels: expected finite norms of 0 or more, not all 0, got {levels.tolist()}"
            )
        return levels.astype(float)
    if reference is not None:
        return np.linalg.norm(reference.points, axis=-1)
    side = math.isqrt(n)
    if side * side != n or side % 2 == 0 or side == 1:
        raise ValueError(
            f"levels: {n} samples are no square kernel of odd size, whose rings give the levels; "
            "give the norm that each sample should have, or a reference set"
        )
    return np.abs(lattice(side).points).max(axis=-1)


def determines(reference: ReferenceSet, map: str, centred: bool) -> bool:
    """Return whether images of the reference points determine a metric."""
    if map == "affine":
        return _span_plane(reference)
    return _rays(reference, centred) >= (3 if centred else 5)


def _check_rays(reference: ReferenceSet, centred: bool) -> None:
    """Raise where the reference points lie along too few rays for the radial map."""
    if determines(reference, "radial", centred):
        return
    found = f"{_rays(reference, centred)} {'axes' if centred else 'rays'}"
    if not _span_plane(reference):
        raise ValueError(
            f"reference: the points of {reference.name!r} lie on one line ({found}); no map "
            "determines a metric from them, take a kernel with taps in the plane"
        )
    symmetric_one = "" if centred or _rays(reference, True) < 3 else "kind='riemannian', "
    raise ValueError(
        f"reference: the points of {reference.name!r} lie along {found}, and the radial map needs "
        f"{3 if centred else 5} to determine the metric; use map='affine', {symmetric_one}or a "
        "set with more directions"
    )


def _rays(reference: ReferenceSet, centred: bool) -> int:
    """Return along how many rays the points lie; for a symmetric norm, along how many axes."""
    g = reference.points[np.linalg.norm(reference.points, axis=-1) > 1e-9]
    angles = np.arctan2(g[:, 0], g[:, 1])
    period = np.pi if centred else 2 * np.pi
    angles = np.sort(np.mod(angles + 1e-9, period))
    gaps = np.diff(angles, append=angles[:1] + period)
    return int((gaps > 1e-6).sum())


def _span_plane(reference: ReferenceSet) -> bool:
    away = reference.points - reference.points.mean(axis=0)
    return bool(np.linalg.matrix_rank(away, tol=1e-9) == 2)


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device=device)


class _Rim(NamedTuple):
    """Where rays from the pixel leave the ball, to the second order in the ball's tangent vectors.

    In the frame of the ball a ray ``t q`` meets the rim at ``n = t q - z``, ``|n| = 1``. Once the
    ball has moved by ``X(y) = E y + e`` it meets it where ``|n + dt q - X(n + dt q)| = 1``.
    """

    reach: Tensor
    """``t``, which is ``1 / F``."""

    slope: Tensor
    """The gradient of ``t``, ``X(n).n / q.n``."""

    q: Tensor
    n: Tensor

    @classmethod
    def along(cls, q: Tensor, frame: Frame) -> "_Rim":
        """Return the rim along vectors ``q`` of the frame, none zero."""
        reach = 1 / frame.norm(q)
        n = reach[..., None] * q - frame.wind[:, None]
        return cls(reach, field_along(n, n) / dot(q, n)[..., None], q, n)

    def least_squares(
        self, error: Tensor, weights: Tensor, first: Tensor | float, second: Tensor | float
    ) -> Model:
        """Return half the weighted sum of squares of errors.

        ``first`` and ``second`` are the derivatives of the errors in the reach.
        """
        slope = self.slope
        pull = weights * error * first
        gauss_newton = ((weights * first * first)[..., None] * slope).mT @ slope
        # The second derivative of the reach is -(|X(n)|^2 + mixed slope' + slope mixed' +
        # |q|^2 slope slope') / q.n, the mixed term -(X(n).q + n.(E q)).
        bend = -pull / dot(self.q, self.n)
        mixed = -field_along(self.n, self.q)
        mixed[..., :3] -= field_along(self.q, self.n)[..., :3]
        bent = bend[..., None] * slope
        own = weights * error * second + bend * dot(self.q, self.q)
        curved = bent.mT @ mixed + mixed.mT @ bent + (own[..., None] * slope).mT @ slope
        return Model(
            value=(weights * error**2).sum(1) / 2,
            gradient=(pull[..., None] * slope).sum(1),
            hessian=gauss_newton + curved + squared_field(self.n, bend),
            far=gauss_newton,
        )


def _log(value: Tensor, gradient: Tensor, hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logarithm of a function to the second order, -infinity where not positive."""
    positive = value > 0
    safe = torch.where(positive, value, torch.ones_like(value))
    gradient, hessian = gradient / safe[:, None], hessian / safe[:, None, None]
    log = torch.where(positive, safe.log(), -torch.inf)
    return log, gradient, hessian - outer(gradient, gradient)


def _distance(samples: Samples, images: Tensor) -> Tensor:
    squared = ((samples.points - images) ** 2).sum(-1)
    return (samples.weights * squared).sum(1).sqrt()
