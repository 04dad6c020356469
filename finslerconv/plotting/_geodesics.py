"""Distances and paths of metric fields, drawn over the picture that they belong to."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch
from matplotlib.textpath import TextPath

from finslerconv._arrays import as_integer
from finslerconv.plotting._canvas import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Frame,
    GridField,
    axes_or_new,
    bare,
    check_points,
    colour_bar,
    numpy_of,
    photograph,
    plane,
    show,
)


def distance_map(
    distances: Any,
    *,
    image: Any = None,
    field: GridField | None = None,
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
        A picture to show beneath, as for :func:`show`, a pixel for each node (or finer or coarser
        by the same factor both ways); the colours then let it through.
    field : GridMetric, optional
        The field to which the distances of an array belong, for its spacing and origin; a
        DistanceMap has its own. Without it nodes are pixels.
    levels : int
        About how many lines are drawn.
    label : str, optional
        What the colour bar says; without it there is no colour bar.
    ax : Axes, optional

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
            f"{values.shape}; of several problems take one array, distance[i], and give its field"
        )
    levels = as_integer("levels", levels)
    if not np.isfinite(values).any():
        raise ValueError("distances: expected a finite one, got none")
    field = getattr(distances, "field", None) if field is None else field
    frame = Frame((len(values), values.shape[1])) if field is None else Frame.of(field)
    if frame.shape != values.shape:
        raise ValueError(
            f"field: expected the one of the distances, of shape {values.shape}, got {frame.shape}"
        )
    extent = None if image is None else frame.extent(photograph("image", image).shape)
    ax = axes_or_new(ax)
    if extent is not None:
        show(image, field=field, ax=ax)
    shown = np.ma.masked_invalid(values)
    alpha = 1.0 if image is None else 0.55
    colours = ax.imshow(shown, cmap="viridis", alpha=alpha, extent=frame.extent(values.shape))
    rows, columns = frame.axes()
    ax.contour(columns, rows, shown, levels=levels, colors="white", linewidths=0.8, alpha=0.9)
    bare(ax)
    if label is not None:
        colour_bar(colours, ax, 9, 0, shrink=0.8).set_label(label, fontsize=10)
    return ax


#: The colours of curves, one after the other.
_CURVE_COLOURS = (ORANGE, BLUE, VERMILION, GREEN, PURPLE, SKY, INK)

#: Their dashes, the next after each round of the colours.
_CURVE_DASHES = ((2.0, 1.3), (4.0, 1.2, 1.0, 1.2), (1.0, 1.0))


def paths(
    curves: Any,
    *,
    labels: Any = None,
    ends: tuple[str, str] | None = None,
    image: Any = None,
    field: GridField | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw curves with the direction in which they run.

    The first is a line and the others are dashed, so that curves that run over each other are all
    seen. A white disc marks a start and a filled one an end, each place by the first curve there.

    Parameters
    ----------
    curves : array, shape (n, 2), or list of those
        Points (row, column) in the order of travel, at least two.
    labels : str or list of str, optional
        What a legend below the picture calls them, in as many columns as there is room for.
    ends : pair of str, optional
        What is written beside the first curve's start and end.
    image : array, optional
        A picture to show beneath, as for :func:`show`.
    field : GridMetric, optional
        The field in whose positions the curves are, for its spacing and origin: the picture lies
        where its nodes are. Without it positions are pixels.
    ax : Axes, optional

    Warns
    -----
    UserWarning
        If a curve leaves the picture and no field says where the picture lies.

    Raises
    ------
    ValueError
        If a curve has fewer than two points, or they are not finite, or there is not one label
        for each, or ``ends`` are not two.

    Examples
    --------
    >>> import numpy as np
    >>> from matplotlib.figure import Figure
    >>> from finslerconv.plotting import paths
    >>> ax = paths(np.array([[0.0, 0.0], [2.0, 3.0]]), labels="there", ax=Figure().subplots())
    """
    many = [
        check_points("curves", curve)
        for curve in (curves if isinstance(curves, list | tuple) else [curves])
    ]
    for points in many:
        if len(points) < 2:
            raise ValueError(f"curves: expected at least two points, got {len(points)}")
    names = [labels] if isinstance(labels, str) else labels
    if names is not None and len(names) != len(many):
        raise ValueError(f"labels: expected {len(many)}, one for each curve, got {len(names)}")
    if ends is not None and (isinstance(ends, str) or len(ends) != 2):
        raise ValueError(f"ends: expected the names of the start and the end, got {ends!r}")
    if image is not None:
        size = photograph("image", image).shape[:2]
        if field is None:
            _warn_outside(many, size)
        ax = show(image, field=field, ax=ax)
    else:
        ax = axes_or_new(ax)
        if not ax.has_data():
            plane(ax)
    marked: list[np.ndarray] = []
    for i, points in enumerate(many):
        turn, colour_index = divmod(i, len(_CURVE_COLOURS))
        colour = _CURVE_COLOURS[colour_index]
        x, y = points[:, 1], points[:, 0]
        # A pale edge keeps the line apart from any picture.
        ax.plot(x, y, color="white", lw=3.6, alpha=0.9, solid_capstyle="round", zorder=6)
        name = None if names is None else names[i]
        style: Any = "solid" if i == 0 else (0, _CURVE_DASHES[turn % len(_CURVE_DASHES)])
        ax.plot(x, y, color=colour, lw=2.0, ls=style, label=name, zorder=7)
        _arrow(ax, points, colour)
        for place, face, edge in ((points[0], "white", colour), (points[-1], colour, "white")):
            if not any(np.allclose(place, other) for other in marked):
                marked.append(place)
                ax.scatter(place[1], place[0], s=34, color=face, edgecolor=edge, lw=1.5, zorder=9)
        if i == 0 and ends is not None:
            _name_ends(ax, points, ends)
    if names is not None:
        _legend(ax, names)
    return ax


def _warn_outside(curves: list[np.ndarray], size: tuple[int, ...]) -> None:
    for points in curves:
        outside = ((points < -1) | (points > size)).any(axis=1)
        if outside.any():
            i = int(np.argmax(outside))
            warnings.warn(
                f"curves: point {i} of one is at {points[i].tolist()}, outside the picture of "
                f"{size[0]} x {size[1]} pixels; if the curves are in the positions of a field "
                "with a spacing or an origin, give it: field=...",
                stacklevel=3,
            )
            return


def _legend(ax: Axes, names: Sequence[str]) -> None:
    """Name the curves below the picture, in as many columns as fit its width."""
    size = 8.0 if len(names) <= 12 else 6.0
    widest = max(
        TextPath((0, 0), str(name) or " ", size=size).get_extents().width for name in names
    )
    # The line in the legend is three letters long, the gap between entries about as much.
    assert ax.figure is not None
    room = ax.bbox.width * 72 / ax.figure.dpi
    columns = int(room // (widest + 6 * size))
    # Below the tick labels, if there are any.
    pad = 2.5 if len(ax.get_xticks()) else 0.5
    ax.legend(
        fontsize=size, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.0),
        borderaxespad=pad, ncols=min(len(names), max(1, columns)), handlelength=3.0,
    )  # fmt: skip


def _name_ends(ax: Axes, points: np.ndarray, names: tuple[str, str]) -> None:
    """Write the names of the two ends on their outer sides."""
    way = points[-1] - points[0]
    for place, name, sign in ((points[0], names[0], -1.0), (points[-1], names[1], 1.0)):
        left = sign * way[1] < 0
        ax.annotate(
            name, tuple(place[::-1]), (-8 if left else 8, 0), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=10, zorder=10,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.85, "lw": 0},
        )  # fmt: skip


def _arrow(ax: Axes, points: np.ndarray, colour: str) -> None:
    """Draw an arrowhead where the second half of a curve is straightest.

    Its direction is that of a tenth of the curve, since steps from pixel to pixel may point
    anywhere. In the second half the heads of a path and its way back are apart.
    """
    along = np.concatenate(([0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()))
    shares = np.linspace(0.55, 0.85, 31)
    behind, places, ahead = (
        np.stack([np.interp(s * along[-1], along, points[:, axis]) for axis in (1, 0)], -1)
        for s in (shares - 0.05, shares, shares + 0.05)
    )
    sizes = np.linalg.norm(ahead - behind, axis=-1)
    best = int(np.argmax(sizes > 0.999 * sizes.max()))
    middle, size = places[best], sizes[best]
    if size == 0:
        return
    way = (ahead - behind)[best] * 0.01 * along[-1] / size
    ax.add_patch(
        FancyArrowPatch(
            tuple(middle - way), tuple(middle + way), arrowstyle="-|>", mutation_scale=16,
            shrinkA=0, shrinkB=0, facecolor=colour, edgecolor="white", lw=0.8, zorder=8,
        )
    )  # fmt: skip
