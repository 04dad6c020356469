"""What a field of Randers metrics looks like, in a few numbers."""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from finslerconv import _filters
from finslerconv.balls import Ellipse
from finslerconv.implicit._fit import Misfit, RandersFit
from finslerconv.metrics import Randers, Riemannian

#: Sectors of the orientation histogram, over half a turn.
BINS = 12

#: Edges and slope at the centres of a layer's kernels, as :func:`picture_gradient` returns them.
Gradient = tuple[Float[Tensor, "batch rows columns 2"], Float[Tensor, "batch rows columns 2"]]


@dataclass(frozen=True)
class MetricSummary:
    """Numbers about the unit balls of a field: medians over its pixels, unless said otherwise.

    Parameters
    ----------
    n : int
        How many metrics there are.
    explained : float
        The share of them that exist: the fit has no reason against it (:class:`Misfit`).
    diverged : float
        The share of them whose fit runs away, to ever larger balls: ``Misfit.DIVERGED``.
    size : float
        Radius of the disc of the ball's area, in pixels of the layer's input. This and all below
        are about the metrics that exist, and NaN or None if there are none.
    anisotropy : float
        Long over short half-axis, at least 1.
    anisotropy_90 : float
        Its ninth decile.
    asymmetry : float
        ``|omega|_{M^-1}``, in [0, 1): 0 for a symmetric ball.
    asymmetry_90 : float
        Its ninth decile.
    residual : float
        What the fit made small (see :class:`RandersFit`); by default a distance in pixels.
    iou : float
        Intersection over union of the ball and the convex hull of the samples.
    inside : float
        The share of the samples in the ball.
    drift : tuple of float
        The mean (not median) of the balls' centres, (down, right), in pixels: what all kernels are
        shifted by.
    orientation : tuple of float, or None
        Shares of the long axes' directions in 12 sectors of 15 degrees, the first from -90 to -75
        degrees, measured from right to down; each ball counts by ``(a - b) / (a + b)`` of its
        half-axes. None if all are discs.
    edges : float or None
        In [-1, 1]: 1 if the long axes run along the picture's edges, -1 if across, about 0 if
        neither. The mean of ``cos(2 angle)``, by ``(a - b) / (a + b)`` and the strength of the
        gradient. None if no picture was given, it is flat, or all balls are discs.
    uphill : float or None
        In [-1, 1]: 1 if the balls' centres lie up the picture's gradient, -1 if down. The mean of
        the cosine, by the length of the drift and the strength of the gradient. None likewise.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from finslerconv.implicit import implicit_metric
    >>> from finslerconv.nn import DeformConv2d
    >>> layer, x = DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8)
    >>> summary = implicit_metric(layer, x).summary  # untrained: discs of radius 1 at 64 pixels
    >>> summary.n, round(summary.anisotropy, 3)
    (64, 1.0)
    """

    n: int
    explained: float
    diverged: float
    size: float
    anisotropy: float
    anisotropy_90: float
    asymmetry: float
    asymmetry_90: float
    residual: float
    iou: float
    inside: float
    drift: tuple[float, float]
    orientation: tuple[float, ...] | None
    edges: float | None
    uphill: float | None

    def __str__(self) -> str:
        """Return a line for each number."""
        return "\n".join(f"{f.name:<13} {_short(getattr(self, f.name))}" for f in fields(self))


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{part:.2f}" for part in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def summarise(fit: RandersFit, gradient: Gradient | None = None) -> MetricSummary:
    """Return the summary of fitted fields of any batch, and of a picture at the same places."""
    explained = fit.explained
    good = as_randers(fit.metric)[explained]
    n = explained.numel()
    share = float(explained.double().mean())
    diverged = float((fit.reason == Misfit.DIVERGED).double().mean())
    ellipse = Ellipse.of(good)
    long, short = ellipse.axes.unbind(-1)
    anisotropy, asymmetry = long / short, good.omega_norm()
    # Single precision does not resolve smaller elongations.
    eccentricity = (long - short) / (long + short)
    eccentricity = torch.where(eccentricity > 1e-5, eccentricity, 0.0)
    double_angle = torch.stack(((2 * ellipse.angle).cos(), (2 * ellipse.angle).sin()), dim=-1)
    edges = uphill = None
    if gradient is not None:
        batch = explained.shape
        # The axis of the groups comes after that of the batch.
        groups = (slice(None), *(None,) * (len(batch) - 3))
        along, slope = (part.double()[groups].expand(*batch, 2)[explained] for part in gradient)
        edges = _weighted_cosine(eccentricity[..., None] * double_angle, along)
        centre = torch.where(asymmetry[..., None] > 1e-5, ellipse.centre, 0.0)
        uphill = _weighted_cosine(centre, slope)
    down, right = ellipse.centre.mean(0).tolist()
    return MetricSummary(
        n,
        share,
        diverged,
        float((long * short).sqrt().median()),
        float(anisotropy.median()),
        _ninth_decile(anisotropy),
        float(asymmetry.median()),
        _ninth_decile(asymmetry),
        float(fit.residual[explained].median()),
        float(fit.iou[explained].median()),
        float(fit.inside[explained].median()),
        (down, right),
        _histogram(ellipse.angle, eccentricity),
        edges,
        uphill,
    )


def as_randers(metric: Randers | Riemannian) -> Randers:
    """Return a metric as a Randers one in float64; in float32 discs show rounding anisotropy."""
    M, omega = metric.randers_form().with_omega()
    return Randers(M.double(), omega.double(), validate=False)


def _ninth_decile(values: Float[Tensor, " n"]) -> float:
    # Tensor.quantile refuses more than 16 million values.
    k = math.ceil(0.9 * len(values))
    return float(values.kthvalue(k).values) if k else math.nan


def _histogram(angle: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> tuple[float, ...] | None:
    total = float(weight.sum())
    if total == 0:
        return None
    # A rounding error must not move a direction from one end of the histogram to the other.
    position = (angle / math.pi + 0.5) * BINS + 1e-6
    index = position.floor().long() % BINS
    shares = torch.zeros(BINS, dtype=weight.dtype, device=weight.device)
    return tuple((shares.index_add(0, index, weight) / total).tolist())


def _weighted_cosine(u: Float[Tensor, "n 2"], v: Float[Tensor, "n 2"]) -> float | None:
    weight = float((u.norm(dim=-1) * v.norm(dim=-1)).sum())
    return float((u * v).sum()) / weight if weight > 0 else None


def picture_gradient(
    image: Float[Tensor, "batch channels height width"],
    places: Float[Tensor, "places rows columns 2"],
    sigma: float,
) -> Gradient:
    """Return edges and slope of a picture at places in pixels, at scale ``sigma``.

    The pictures, or the places, are one for all or one for each of the batch.

    Edges are cosine and sine of twice the edges' angle (from right to down) times the gradient's
    strength, of the leading direction of the sum of ``g g'`` over the channels; the slope is the
    gradient (down, right) of the mean over the channels.
    """
    image = image.to(places)
    margin = _filters.gaussian_radius(sigma)
    # Mirrored in value too, so that a ramp continues as a ramp.
    border = _filters.continued(image, margin, "replicate")
    mirrored = _filters.continued(image, margin, "reflect")
    g = _filters.gaussian_gradient(2 * border - mirrored, sigma)
    down, right = g.unbind(-1)
    # Of g g', twice the edge's angle is that of the gradient plus half a turn.
    tensor = torch.stack(((down**2 - right**2).sum(1), (-2 * down * right).sum(1)), dim=1)
    # Of the length of the gradient, not of its square.
    length = tensor.norm(dim=1, keepdim=True)
    tensor = tensor / torch.where(length > 0, length, 1.0).sqrt()
    # The gradient of a constant picture is rounding errors.
    if length.amax().sqrt() <= 1e-6 * image.abs().amax():
        tensor, down, right = tensor * 0, down * 0, right * 0
    maps = torch.cat((tensor, down.mean(1, keepdim=True), right.mean(1, keepdim=True)), dim=1)
    size = places.new_tensor(image.shape[2:])
    grid = ((2 * places + 1) / size - 1).flip(-1)
    batch = max(len(image), len(grid))
    maps, grid = maps.expand(batch, -1, -1, -1), grid.expand(batch, -1, -1, -1)
    at = functional.grid_sample(maps, grid, padding_mode="border", align_corners=False)
    at = at.movedim(1, -1)
    return at[..., :2], at[..., 2:]
