"""Kernels as point sets: reference points in their order, and samples with their weights."""

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from finslerconv._arrays import constant_like
from finslerconv.balls import MapName, ReferenceSet, ball_map
from finslerconv.metrics import Euclidean, FinslerMetric
from finslerconv.plotting._balls import unit_balls
from finslerconv.plotting._canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    axes_or_new,
    check_points,
    numpy_of,
    plane,
    show,
)


def kernel_samples(
    positions: Any,
    weights: Any = None,
    *,
    at: tuple[float, float] = (0.0, 0.0),
    image: Any = None,
    size: float = 60.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw where a kernel samples, and with which weights.

    Parameters
    ----------
    positions : array, shape (n, 2)
        The samples' displacements (row, column) from the pixel, in pixels.
    weights : array, shape (n,) or any shape of n elements, optional
        A weight of each sample: the area of its marker is the magnitude, its colour the sign
        (blue negative, red positive).
    at : pair of float
        The pixel (row, column).
    image : array, optional
        A picture to show beneath, as for :func:`show`. Without it, the plane.
    size : float
        Area of the largest marker, in points^2.
    ax : Axes, optional

    Raises
    ------
    ValueError
        If the positions are not points, or the weights not as many.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv import balls, plotting
    >>> ax = plotting.kernel_samples(balls.lattice(3).points, np.arange(9.0) - 4)
    """
    points = check_points("positions", positions)
    centre = numpy_of("at", at).astype(float)
    if centre.shape != (2,) or not np.isfinite(centre).all():
        raise ValueError(f"at: expected a pixel (row, column), got {at!r}")
    style: dict[str, Any] = {"s": 0.5 * size, "color": BLUE}
    if weights is not None:
        values = numpy_of("weights", weights).astype(float).reshape(-1)
        if values.shape != (len(points),) or not np.isfinite(values).all():
            raise ValueError(
                f"weights: expected {len(points)} finite numbers, one for each position, got "
                f"shape {np.shape(numpy_of('weights', weights))}"
            )
        largest = float(np.abs(values).max(initial=0.0)) or 1.0
        style = {
            "s": size * np.abs(values) / largest,
            "c": values,
            "cmap": "RdBu_r",
            "norm": TwoSlopeNorm(0.0, -largest, largest),
        }
    ax = axes_or_new(ax)
    if image is None:
        plane(ax)
    else:
        show(image, ax=ax)
    rows, columns = (centre + points).T
    ax.scatter(columns, rows, edgecolor=INK, linewidth=0.5, zorder=4, **style)
    ax.scatter(centre[1], centre[0], s=60, marker="+", color=ORANGE, linewidth=1.5, zorder=5)
    if image is None:
        ax.margins(0.12)
    return ax


def reference_points(
    reference: ReferenceSet,
    metric: FinslerMetric | None = None,
    *,
    map: MapName = "radial",
    order: Literal["numbers", "line"] | None = "line",
    ax: Axes | None = None,
) -> Axes:
    """Draw a reference set in the unit disc, or its image in the unit ball of a metric.

    Parameters
    ----------
    reference : ReferenceSet
        A set of points of the plane.
    metric : FinslerMetric, optional
        A single planar metric; without it, the Euclidean one, for which the image is the set.
    map : {"radial", "affine"}
        The map into the metric's ball.
    order : {"numbers", "line"}, optional
        How to show the order of the points, which is the order of a kernel's weights: a number at
        each, or a line from the first to the last that goes from light to dark, as do the points.
    ax : Axes, optional

    Raises
    ------
    ValueError
        If the set or the metric is not planar, the metric a field, or an option unknown.
    TypeError
        If the affine map is wanted of a metric that is no Randers metric.

    Examples
    --------
    >>> from finslerconv import balls, plotting
    >>> ax = plotting.reference_points(balls.concentric(5))
    """
    metric = Euclidean() if metric is None else metric
    if reference.dim != 2:
        raise ValueError(f"reference: expected points of the plane, got dimension {reference.dim}")
    if metric.dim != 2 or metric.batch_shape != ():
        raise ValueError(
            f"metric: expected a single planar metric, got dim {metric.dim} and batch shape "
            f"{metric.batch_shape}"
        )
    carry = ball_map(map)
    if order not in ("numbers", "line", None):
        raise ValueError(f"order: expected 'numbers', 'line' or None, got {order!r}")
    images = numpy_of("metric", carry(metric, constant_like(reference.points, metric.like)))
    ax = unit_balls(metric, colour=GREY, ax=ax)
    rows, columns = images[:, 0], images[:, 1]
    if order == "numbers":
        ax.scatter(columns, rows, s=150, color=BLUE, zorder=6)
        for i, (row, column) in enumerate(images):
            ax.annotate(
                str(i), (column, row), color="white", ha="center", va="center", fontsize=9, zorder=7
            )
        return ax
    style: dict[str, Any] = {"color": BLUE}
    if order == "line":
        ax.plot(columns, rows, color=GREY, linewidth=0.8, zorder=5)
        # From green to dark violet: the light end of the map is invisible on a light ground.
        shades = 0.8 - 0.8 * np.arange(len(images)) / len(images)
        style = {"c": shades, "cmap": "viridis", "vmin": 0.0, "vmax": 1.0}
    ax.scatter(columns, rows, s=30, edgecolor="white", linewidth=0.6, zorder=6, **style)
    return ax
