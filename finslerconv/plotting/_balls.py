"""Unit balls drawn where they belong: one in the plane, some over a photograph, or a field."""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LogNorm

from finslerconv._arrays import as_integer
from finslerconv._linalg import matvec
from finslerconv._sphere import over_batch, quadrature, round_frame
from finslerconv.balls import Ellipse
from finslerconv.metrics import FinslerMetric
from finslerconv.plotting._canvas import (
    ORANGE,
    Frame,
    GridField,
    axes_or_new,
    colour_bar,
    mark_origin,
    numpy_of,
    photograph,
    plane,
    show,
)


def unit_balls(
    metric: FinslerMetric | GridField,
    at: Any = None,
    *,
    image: Any = None,
    colour: str = ORANGE,
    label: str | None = None,
    dim: float = 0.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw the unit ball of a metric, or those of a field at chosen pixels.

    Parameters
    ----------
    metric : FinslerMetric or GridMetric
        A planar metric: a single one, whose ball is drawn around the origin of the plane, or a
        field, whose balls are drawn around their pixels: a metric of batch shape (H, W) or
        (1, H, W), or a GridMetric, whose nodes are where its spacing and origin put them.
    at : array of int, shape (n, 2) or (2,), optional
        The pixels (row, column) of a field; of a GridMetric the indices of its nodes.
    image : array, optional
        A picture to show beneath, as for :func:`show`, of the field's height and width.
    colour : str
    label : str, optional
        What a legend calls the balls.
    dim : float
        How far to fade the picture towards white, in [0, 1].
    ax : Axes, optional

    Raises
    ------
    ValueError
        If the metric is not planar, or is a field and no pixels are given, or a pixel is outside.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finslerconv.metrics import Randers
    >>> from finslerconv.plotting import unit_balls
    >>> metric = Randers(np.diag([1.0, 0.25]), np.array([0.3, 0.2]))
    >>> ax = unit_balls(metric, ax=Figure().subplots())
    """
    metric, frame = _framed(metric)
    if frame is None:
        if at is not None or image is not None:
            raise ValueError(
                "at, image: they belong to fields of metrics, of batch shape (H, W); this is a "
                "single metric"
            )
        ax = axes_or_new(ax)
        plane(ax)
        centres, boundaries = np.zeros((1, 2)), _boundary(metric).reshape(1, -1, 2)
    else:
        pixels = _check_pixels(at, frame.shape)
        ax = axes_or_new(ax)
        _show_beneath(image, frame, ax, dim=dim)
        centres, boundaries = frame.at(pixels), _boundaries_at(metric, pixels)
    _draw(ax, centres, boundaries, facecolors=colour, edgecolors=colour, label=label)
    if frame is None:
        ax.autoscale_view()
    mark_origin(ax, centres[:, 0], centres[:, 1], size=14.0 if frame is not None else 28.0)
    return ax


def ball_field(
    metric: FinslerMetric | GridField,
    *,
    image: Any = None,
    spacing: int | None = None,
    scale: float = 1.0,
    colour_by: Literal["anisotropy", "asymmetry"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the unit balls of a field on a regular grid of its pixels.

    Parameters
    ----------
    metric : FinslerMetric or GridMetric
        A planar field: a metric of batch shape (H, W) or (1, H, W), or a GridMetric, whose nodes
        are where its spacing and origin put them.
    image : array, optional
        A picture to show beneath, as for :func:`show`, of the field's height and width.
    spacing : int, optional
        Pixels (nodes) between neighbouring balls; without it, about 20 balls on the longer side, or
        as many as leave most of them apart.
    scale : float
        The balls are drawn this many times as large as they are.
    colour_by : {"anisotropy", "asymmetry"}, optional
        Colour the balls, on a logarithmic scale with a colour bar, by the ratio of their long and
        short half-axes (of the ellipse of the same second moments, if the ball is none), or by the
        largest ratio ``F(-v) / F(v)``.
    ax : Axes, optional

    Raises
    ------
    ValueError
        If the metric is no planar field, or an option is out of range.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import images, plotting
    >>> photograph = torch.tensor(images.photograph()[None, None, ::8, ::8] / 255)
    >>> ax = plotting.ball_field(images.gradient_metric(photograph), image=photograph, spacing=8)
    """
    metric, frame = _framed(metric)
    if frame is None:
        raise ValueError(
            "metric: expected a GridMetric, or a field of batch shape (H, W) or (1, H, W), got a "
            "single metric; unit_balls draws that"
        )
    if not scale > 0:
        raise ValueError(f"scale: expected a positive number, got {scale!r}")
    sides = np.asarray(frame.spacing)
    if spacing is None:
        twentieth = np.round((sides * frame.shape).max() / 20 / sides)
        apart = np.ceil(2.2 * scale * _typical_radius(metric) / sides)
        every = np.maximum(np.maximum(twentieth, apart), 1).astype(int)
    else:
        every = np.full(2, as_integer("spacing", spacing))
    if colour_by not in (None, "anisotropy", "asymmetry"):
        raise ValueError(
            f"colour_by: expected 'anisotropy', 'asymmetry' or None, got {colour_by!r}"
        )
    pixels = _grid(frame.shape, every)
    ax = axes_or_new(ax)
    _show_beneath(image, frame, ax, dim=0.4)
    centres, boundaries = frame.at(pixels), scale * _boundaries_at(metric, pixels)
    if colour_by is None:
        _draw(ax, centres, boundaries, facecolors=ORANGE, edgecolors=ORANGE)
    else:
        measure, label = _MEASURES[colour_by]
        values = measure(metric, pixels)
        norm = LogNorm(1.0, max(1.1, float(values.max())))
        balls = _draw(ax, centres, boundaries, array=values, cmap="plasma", norm=norm, alpha=0.75)
        bar = colour_bar(balls, ax, 8, 2, shrink=0.75, format="%g")
        steps = [base * 10**power for power in range(6) for base in (1, 2, 5)]
        bar.set_ticks([step for step in steps if step <= norm.vmax])
        bar.set_label(label)
    ax.scatter(centres[:, 1], centres[:, 0], s=2.5, color="white", edgecolor="none", zorder=5)
    return ax


def _grid(shape: tuple[int, int], every: Int[np.ndarray, "2"]) -> Int[np.ndarray, "n 2"]:
    axes = [np.arange((n - 1) % step // 2, n, step) for n, step in zip(shape, every, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def _typical_radius(metric: FinslerMetric) -> float:
    """Return the median over a coarse grid of the balls' root mean square radii."""
    height, width = metric.batch_shape[-2:]
    every = np.full(2, max(1, max(height, width) // 16))
    boundaries = _boundaries_at(metric, _grid((height, width), every))
    return float(np.median(np.sqrt((boundaries**2).sum(-1).mean(-1))))


def _draw(ax: Axes, pixels: np.ndarray, boundaries: np.ndarray, **style: Any) -> PolyCollection:
    outlines = (pixels[:, None, :] + boundaries)[..., ::-1]  # to (x, y)
    # The picture of a field sets the limits; in the plane, the balls do.
    autolim = ax.get_autoscale_on()
    if "facecolors" in style:
        shade = PolyCollection(list(outlines), facecolors=style["facecolors"], alpha=0.3, zorder=3)
        ax.add_collection(shade, autolim=autolim)
        style["facecolors"] = "none"
    balls = PolyCollection(list(outlines), linewidths=1.1, zorder=4, **style)
    ax.add_collection(balls, autolim=autolim)
    return balls


def _show_beneath(image: Any, frame: Frame, ax: Axes, dim: float = 0.0) -> None:
    left, right, bottom, top = frame.extent(frame.shape)
    if image is not None:
        size = photograph("image", image).shape[:2]
        if size != frame.shape:
            raise ValueError(
                f"image: expected the height and width of the field, {frame.shape}, got {size}"
            )
        show(image, field=frame, dim=dim, ax=ax)
    ax.autoscale(False)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])


def _framed(metric: Any) -> tuple[FinslerMetric, Frame | None]:
    """Return a planar metric, and the frame of a field, None for a single metric."""
    if isinstance(metric, GridField):
        frame = Frame.of(metric)
        if metric.batch_shape not in ((), (1,)):
            raise ValueError(
                "metric: expected one field, got a GridMetric of batch shape "
                f"{metric.batch_shape}; make one of its metrics: "
                "GridMetric.from_metric(field.metric[i], spacing=..., origin=...)"
            )
        return metric.metric, frame
    if not isinstance(metric, FinslerMetric):
        raise TypeError(
            f"metric: expected a FinslerMetric or a GridMetric, got {type(metric).__name__}"
        )
    if metric.dim != 2:
        raise ValueError(f"metric: expected a planar metric (dim 2), got dim {metric.dim}")
    shape = metric.batch_shape
    if shape == ():
        return metric, None
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or 0 in shape:
        one = "take one of a batch with metric[i]"
        if not hasattr(metric, "__getitem__"):
            one = f"a {type(metric).__name__} has no items: make it for one picture of the batch"
        raise ValueError(
            "metric: expected a single metric or one field, of batch shape (H, W) or (1, H, W), "
            f"got batch shape {metric.batch_shape}; {one}"
        )
    return metric, Frame((shape[0], shape[1]))


def _check_pixels(at: Any, shape: tuple[int, int]) -> Int[np.ndarray, "n 2"]:
    if at is None:
        raise ValueError(
            "at: expected the pixels at which to draw the balls of a field; ball_field draws a grid"
        )
    pixels = numpy_of("at", at)
    if pixels.shape == (2,):
        pixels = pixels[None]
    if pixels.ndim != 2 or pixels.shape[1] != 2 or pixels.dtype.kind not in "iu":
        raise ValueError(
            f"at: expected integer pixels (row, column), shape (n, 2), got shape {pixels.shape} of "
            f"dtype {pixels.dtype}"
        )
    outside = ((pixels < 0) | (pixels >= shape)).any(axis=1)
    if outside.any():
        i = int(np.argmax(outside))
        raise ValueError(
            f"at: expected pixels of a field of {shape[0]} rows and {shape[1]} columns, got "
            f"{pixels[i].tolist()} at index {i}"
        )
    return pixels


def _boundary(metric: FinslerMetric, n: int = 180) -> Float[np.ndarray, "n *batch 2"]:
    """Return points around the balls of any metric, evenly spread on elongated ones too."""
    if metric.randers_form() is not None:
        return numpy_of("metric", Ellipse.of(metric).boundary(n))
    frame = round_frame(metric.norm, 2, metric.like)
    directions = over_batch(quadrature(2, n)[0], frame, frame.ndim - 2)
    return numpy_of("metric", metric.indicatrix(matvec(frame, directions)))


def _boundaries_at(
    metric: FinslerMetric, pixels: Int[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n points 2"]:
    part, index = _part(metric, pixels)
    return np.moveaxis(_boundary(part)[(slice(None), *index)], 0, 1)


def _anisotropy(metric: FinslerMetric, pixels: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    if metric.randers_form() is not None:
        part, index = _part(metric, pixels)
        axes = numpy_of("metric", Ellipse.of(part).axes)[index]
    else:
        moments = _second_moments(_boundaries_at(metric, pixels))
        axes = np.sqrt(np.linalg.eigvalsh(moments)[:, ::-1])
    return (axes[:, 0] / axes[:, 1]).astype(float)


def _second_moments(polygons: Float[np.ndarray, "n points 2"]) -> Float[np.ndarray, "n 2 2"]:
    """Return the central second moments of polygons around the origin, as sums over triangles."""
    p, q = polygons, np.roll(polygons, 1, axis=1)
    area = np.abs(p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]) / 2
    share = (area / area.sum(axis=1, keepdims=True))[..., None, None]
    # Of a triangle (0, p, q): the centroid (p + q) / 3, the moments (pp' + qq' + (p+q)(p+q)') / 12.
    centroid = (share[..., 0] * (p + q)).sum(axis=1) / 3
    products = sum(x[..., :, None] * x[..., None, :] for x in (p, q, p + q))
    return (share * products).sum(axis=1) / 12 - centroid[:, :, None] * centroid[:, None, :]


def _asymmetry(metric: FinslerMetric, pixels: Int[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    part, index = _part(metric, pixels)
    return numpy_of("metric", part.asymmetry_ratio())[index].astype(float)


#: What colours balls, and its name.
_MEASURES = {
    "anisotropy": (_anisotropy, "long / short half-axis"),
    "asymmetry": (_asymmetry, "largest F(−v) / F(v)"),
}


def _part(
    metric: FinslerMetric, pixels: Int[np.ndarray, "n 2"]
) -> tuple[FinslerMetric, tuple[Any, ...]]:
    """Return the metric at the pixels, or all of it, and the index of the pixels in that."""
    index: tuple[Any, ...] = (pixels[:, 0], pixels[:, 1])
    if len(metric.batch_shape) == 3:
        index = (0, *index)
    if hasattr(metric, "__getitem__"):
        return metric[index], (slice(None),)
    return metric, index
