"""Distances and paths of metric fields, drawn over the picture that they belong to."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch

from finslerconv.plotting._canvas import (
    BLUE,
    ORANGE,
    VERMILION,
    axes_or_new,
    check_points,
    numpy_of,
    photograph,
    show,
)


def distance_map(
    distances: Any,
    *,
    image: Any = None,
    levels: int = 16,
    label: str | None = "distance",
    ax: Axes | None = None,
) -> Axes:
    """Draw distances as colours with lines of equal distance.

    Parameters
    ----------
    distances : array, shape (H, W), or DistanceMap of one problem
        Not negative; nodes at an infinite distance stay blank.
    image : array, optional
        A picture to show beneath, as for :func:`show`, of the same height and width; the colours
        then let it through.
    levels : int
        About how many lines are drawn.
    label : str, optional
        What the colour bar says; without it there is no colour bar.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the distances are no finite picture of at least 2 x 2 nodes.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finslerconv.plotting import distance_map
    >>> rows, columns = np.mgrid[0:8, 0:8]
    >>> ax = distance_map(np.hypot(rows, columns), ax=Figure().subplots())
    """
    values = numpy_of("distances", getattr(distances, "distance", distances)).astype(float)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(
            f"distances: expected those of one problem in the plane, shape (H, W), got "
            f"{values.shape}"
        )
    if not (isinstance(levels, int) and levels >= 1):
        raise ValueError(f"levels: expected a positive integer, got {levels!r}")
    if not np.isfinite(values).any():
        raise ValueError("distances: expected a finite one, got none")
    ax = axes_or_new(ax)
    if image is not None:
        _check_size(image, values.shape)
        show(image, ax=ax)
    shown = np.ma.masked_invalid(values)
    colours = ax.imshow(shown, cmap="viridis", alpha=1.0 if image is None else 0.55)
    ax.contour(shown, levels=levels, colors="white", linewidths=0.8, alpha=0.9)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    if label is not None and ax.figure is not None:
        bar = ax.figure.colorbar(colours, ax=ax, shrink=0.8, pad=0.02)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7, length=0)
        bar.outline.set_visible(False)
    return ax


#: The colours of curves, one after the other.
_CURVE_COLOURS = (ORANGE, BLUE, VERMILION)


def paths(
    curves: Any,
    *,
    labels: Any = None,
    image: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw curves with the direction in which they run.

    Parameters
    ----------
    curves : array, shape (n, 2), or list of those
        Points (row, column) in the order of travel, at least two.
    labels : str or list of str, optional
        What a legend calls them.
    image : array, optional
        A picture to show beneath, as for :func:`show`.
    ax : Axes, optional

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If a curve has fewer than two points, or they are not finite, or there is not one label
        for each.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finslerconv.plotting import paths
    >>> ax = paths(np.array([[0.0, 0.0], [2.0, 3.0]]), labels="there", ax=Figure().subplots())
    """
    many = list(curves) if isinstance(curves, list | tuple) else [curves]
    names = [labels] if isinstance(labels, str) else labels
    if names is not None and len(names) != len(many):
        raise ValueError(f"labels: expected {len(many)}, one for each curve, got {len(names)}")
    ax = axes_or_new(ax)
    if image is not None:
        show(image, ax=ax)
    for i, curve in enumerate(many):
        points = check_points("curves", curve)
        if len(points) < 2:
            raise ValueError(f"curves: expected at least two points, got {len(points)}")
        colour = _CURVE_COLOURS[i % len(_CURVE_COLOURS)]
        x, y = points[:, 1], points[:, 0]
        # A pale edge keeps the line apart from any picture.
        ax.plot(x, y, color="white", lw=3.6, alpha=0.9, solid_capstyle="round", zorder=6)
        name = None if names is None else names[i]
        ax.plot(x, y, color=colour, lw=2.0, label=name, solid_capstyle="round", zorder=7)
        _arrow(ax, points, 0.42 if i % 2 else 0.58, colour)
        ax.scatter(x[0], y[0], s=34, color="white", edgecolor=colour, lw=1.8, zorder=9)
        ax.scatter(x[-1], y[-1], s=34, color=colour, edgecolor="white", lw=1.0, zorder=9)
    if names is not None:
        ax.legend(fontsize=8, framealpha=0.9, loc="best")
    return ax


def _arrow(ax: Axes, points: np.ndarray, share: float, colour: str) -> None:
    """Put the head of an arrow on a curve, at that share of its length."""
    along = np.concatenate(([0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()))
    if along[-1] == 0:
        return
    middle, ahead = (
        [np.interp(s * along[-1], along, points[:, axis]) for axis in (1, 0)]
        for s in (share, min(1.0, share + 0.02))
    )
    ax.add_patch(
        FancyArrowPatch(
            tuple(middle), tuple(ahead), arrowstyle="-|>", mutation_scale=16, color=colour,
            zorder=8,
        )
    )  # fmt: skip


def _check_size(image: Any, shape: tuple[int, ...]) -> None:
    size = photograph("image", image).shape[:2]
    if size != tuple(shape):
        raise ValueError(f"image: expected a picture of {shape[0]} x {shape[1]}, got {size}")
