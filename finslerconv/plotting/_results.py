"""Pictures side by side, each with a caption and the same detail enlarged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from finslerconv.plotting._canvas import INK, VERMILION, photograph, show

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Zoom:
    """The detail that is enlarged: a rectangle of whole pixels.

    Parameters
    ----------
    row, column : int
        Its top left pixel.
    height, width : int
        Its size in pixels.

    Examples
    --------
    >>> from finslerconv.plotting import Zoom
    >>> Zoom(row=200, column=180, height=40, width=60)
    Zoom(row=200, column=180, height=40, width=60)
    """

    row: int
    column: int
    height: int
    width: int


def side_by_side(
    images: Sequence[Any],
    captions: Sequence[str],
    *,
    zoom: Zoom | None = None,
    columns: int | None = None,
    highlight: int | None = None,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Show pictures beside each other, with captions and, below each, the same detail enlarged.

    Parameters
    ----------
    images : sequence of arrays
        Pictures as for :func:`show`, all of one height and width.
    captions : sequence of str
        One for each.
    zoom : Zoom, optional
        The detail; framed in every picture.
    columns : int, optional
        Pictures in a row; all in one row if not given.
    highlight : int, optional
        The index of the picture whose caption is set in bold.
    figure : Figure or SubFigure, optional
        Where to draw; a new figure of matplotlib's (not of pyplot's) if not given.

    Raises
    ------
    ValueError
        If there is nothing to show, the captions are not as many as the pictures, the sizes
        differ, or the detail is not inside.

    Examples
    --------
    >>> from finslerconv import images, plotting
    >>> picture = images.photograph()
    >>> zoom = plotting.Zoom(200, 200, 40, 40)
    >>> figure = plotting.side_by_side([picture, picture[::-1]], ["up", "down"], zoom=zoom)
    """
    pictures = [photograph(f"images[{i}]", image) for i, image in enumerate(images)]
    _check(pictures, captions, zoom, columns, highlight)
    columns = len(pictures) if columns is None else min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    height, width = pictures[0].shape[:2]
    ratios = [height / width] if zoom is None else [height / width, zoom.height / zoom.width]
    if figure is None:
        size = 2.6 * columns, (2.6 * sum(ratios) + 0.4) * rows
        figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        rows * len(ratios), columns, squeeze=False, gridspec_kw={"height_ratios": ratios * rows}
    )
    for ax in grid.flat:
        ax.set_axis_off()
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(i, columns)
        ax = grid[row * len(ratios), column]
        ax.set_axis_on()
        show(picture, ax=ax)
        weight = "bold" if i == highlight else "normal"
        ax.set_title(caption, fontsize=10, color=INK, fontweight=weight)
        if zoom is not None:
            _enlarge(picture, zoom, ax, grid[row * len(ratios) + 1, column])
    return figure


def _enlarge(picture: "np.ndarray", zoom: Zoom, whole: Axes, detail: Axes) -> None:
    corner = (zoom.column - 0.5, zoom.row - 0.5)
    whole.add_patch(
        Rectangle(corner, zoom.width, zoom.height, fill=False, edgecolor=VERMILION, linewidth=1.2)
    )
    detail.set_axis_on()
    rows = slice(zoom.row, zoom.row + zoom.height)
    show(picture[rows, zoom.column : zoom.column + zoom.width], ax=detail)
    detail.spines[:].set(visible=True, edgecolor=VERMILION, linewidth=1.2)


def _check(
    pictures: "list[np.ndarray]",
    captions: Sequence[str],
    zoom: Zoom | None,
    columns: int | None,
    highlight: int | None,
) -> None:
    if not pictures:
        raise ValueError("images: expected at least one picture, got none")
    if len(captions) != len(pictures):
        raise ValueError(
            f"captions: expected {len(pictures)}, one for each picture, got {len(captions)}"
        )
    height, width = pictures[0].shape[:2]
    for i, picture in enumerate(pictures):
        if picture.shape[:2] != (height, width):
            raise ValueError(
                f"images: expected pictures of one size, {height} x {width} as the first, got "
                f"{picture.shape[0]} x {picture.shape[1]} at index {i}"
            )
    if columns is not None and columns < 1:
        raise ValueError(f"columns: expected a positive number, got {columns}")
    if highlight is not None and not 0 <= highlight < len(pictures):
        raise ValueError(f"highlight: expected an index below {len(pictures)}, got {highlight}")
    if zoom is not None and not (
        0 <= zoom.row < zoom.row + zoom.height <= height
        and 0 <= zoom.column < zoom.column + zoom.width <= width
    ):
        raise ValueError(f"zoom: expected a part of {height} x {width} pixels, got {zoom}")
