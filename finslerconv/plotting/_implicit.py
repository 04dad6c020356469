"""What a layer's kernels look like as metrics, over the picture that it saw."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.projections.polar import PolarAxes

from finslerconv.balls import Ellipse
from finslerconv.metrics import Randers
from finslerconv.plotting._balls import _check_pixels, _draw
from finslerconv.plotting._canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    axes_or_new,
    colour_bar,
    mark_origin,
    numpy_of,
    photograph,
    show,
)

if TYPE_CHECKING:
    from finslerconv.implicit import ImplicitMetric


def implicit_metric(
    result: "ImplicitMetric | Mapping[str, ImplicitMetric]",
    image: Any,
    *,
    batch: int = 0,
    group: int = 0,
    figure: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Draw the metrics that layers imply: a row of four panels for each layer.

    Unit balls over the picture, the colour fields of anisotropy and of drift, and the directions
    of the balls' long axes.

    Parameters
    ----------
    result : ImplicitMetric, or mapping of names to them
        What :func:`finslerconv.implicit.implicit_metric` returns.
    image : array
        The picture, as for :func:`show`.
    batch : int
        Which element of the batch the picture is.
    group : int
        Which of the layer's groups to draw.
    figure : Figure or SubFigure, optional
        Where to draw; a new figure of matplotlib's (not of pyplot's) if not given.

    Raises
    ------
    TypeError
        If ``result`` is something else.
    ValueError
        If there is no layer, or no such element of the batch or group.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import plotting
    >>> from finslerconv.implicit import implicit_metric
    >>> from finslerconv.nn import DeformConv2d
    >>> layer, x = DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8)
    >>> figure = plotting.implicit_metric(implicit_metric(layer, x), x)
    """
    from finslerconv.implicit import ImplicitMetric

    results = list(result.values()) if isinstance(result, Mapping) else [result]
    for one in results:
        if not isinstance(one, ImplicitMetric):
            raise TypeError(
                "result: expected what finslerconv.implicit.implicit_metric returns, got "
                f"{type(one).__name__}"
            )
    if not results:
        raise ValueError("result: expected at least one layer, got none")
    pixels = photograph("image", image)
    height, width = pixels.shape[:2]
    if figure is None:
        panel = 2.9
        tall = panel * min(max(height / width, 0.6), 1.6)
        size = (3.8 * panel, len(results) * (tall + 1.1))
        figure = Figure(figsize=size, layout="constrained")
    rows = np.atleast_1d(np.asarray(figure.subfigures(len(results), 1, hspace=0.03)))
    for part, one in zip(rows, results, strict=True):
        part.suptitle(
            _title(one, group), x=0.012, ha="left", fontsize=10, color=INK, fontweight="bold"
        )
        grid = part.add_gridspec(1, 4, width_ratios=[1, 1, 1, 0.75])
        balls, anisotropy, drift = (part.add_subplot(grid[0, i]) for i in range(3))
        implicit_balls(one, image, batch=batch, group=group, ax=balls)
        implicit_field(one, image, "anisotropy", batch=batch, group=group, ax=anisotropy)
        implicit_field(one, image, "drift", batch=batch, group=group, ax=drift)
        for ax in (balls, anisotropy, drift):
            ax.set_anchor("N")
        rose = part.add_subplot(grid[0, 3], projection="polar")
        assert isinstance(rose, PolarAxes)
        orientation_rose(one, ax=rose)
    return figure


def implicit_balls(
    result: "ImplicitMetric",
    image: Any,
    at: Any = None,
    *,
    batch: int = 0,
    group: int = 0,
    scale: float | None = None,
    samples: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the unit balls that a layer implies over the picture, and the samples in them.

    Parameters
    ----------
    result : ImplicitMetric
    image : array
        The picture, as for :func:`show`.
    at : array of int, shape (n, 2), optional
        Pixels (row, column) of the picture; the output pixel nearest to each is drawn. Without
        them, a regular grid of about ten on the longer side.
    batch, group : int
        Which element of the batch, and which of the layer's groups.
    scale : float, optional
        The balls are drawn this many times as large as they are; by default, so that neighbours
        on the grid stay apart, and no smaller than they are.
    samples : bool
        Whether to draw the kernels' samples too.
    ax : Axes, optional

    Returns
    -------
    Axes
        Its title says the scale. Pixels that no metric explains have their samples only.

    Raises
    ------
    ValueError
        If a pixel is outside the picture, or there is no such element or group.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import plotting
    >>> from finslerconv.implicit import implicit_metric
    >>> from finslerconv.nn import DeformConv2d
    >>> layer, x = DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8)
    >>> ax = plotting.implicit_balls(implicit_metric(layer, x), x)
    """
    if scale is not None and not scale > 0:
        raise ValueError(f"scale: expected a positive number, got {scale!r}")
    pixels = photograph("image", image)
    height, width = pixels.shape[:2]
    metric, centres, good, points = _field(result, height, width, batch, group)
    longest = numpy_of("metric", Ellipse.of(metric).axes)[..., 0]
    typical = float(np.median(longest[good])) if good.any() else 1.0
    spacing = max(max(height, width) / 10, 2.3 * typical * (scale or 1.0))
    if at is None:
        row, column = _apart(result, centres, spacing)
    else:
        wanted = _check_pixels(at, (height, width))
        squares = (centres[:, :, None] - wanted).astype(float) ** 2
        nearest = squares.sum(axis=-1).reshape(-1, len(wanted)).argmin(axis=0)
        row, column = np.unravel_index(nearest, centres.shape[:2])
    if scale is None:
        scale = max(1.0, _round_down(0.45 * spacing / typical))
    balls = metric[row, column]
    centres = centres[row, column]
    ax = axes_or_new(ax)
    show(image, dim=0.45, ax=ax)
    ax.autoscale(False)
    boundaries = np.moveaxis(numpy_of("metric", Ellipse.of(balls).boundary(90)), 0, 1)
    kept = good[row, column]
    _draw(ax, centres[kept], scale * boundaries[kept], facecolors=ORANGE, edgecolors=ORANGE)
    if samples:
        places = (centres[:, None] + scale * points[row, column]).reshape(-1, 2)
        size = min(6.0, max(0.6, 2500 / len(places)))
        ax.scatter(places[:, 1], places[:, 0], s=size, color=BLUE, lw=0, zorder=5)
    mark_origin(ax, centres[:, 0], centres[:, 1], size=min(9.0, max(2.0, 900 / len(centres))))
    times = "" if scale == 1 else f", drawn {scale:g} times as large"
    what = "unit balls and samples" if samples else "unit balls"
    ax.set_title(f"{what}{times}{_of_group(result, group)}", fontsize=10)
    return ax


def implicit_field(
    result: "ImplicitMetric",
    image: Any,
    what: Literal["anisotropy", "drift"] = "anisotropy",
    *,
    batch: int = 0,
    group: int = 0,
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a colour field over the picture: how elongated the balls are, or how far off centre.

    Parameters
    ----------
    result : ImplicitMetric
    image : array
        The picture, as for :func:`show`.
    what : {"anisotropy", "drift"}
        The ratio of the half-axes, or ``|omega|_{M^-1}``, with arrows from the pixels to the
        balls' centres (directions only).
    batch, group : int
        Which element of the batch, and which of the layer's groups.
    limit : float, optional
        The end of the colour scale; by default, the largest value.
    ax : Axes, optional

    Returns
    -------
    Axes
        Pixels that no metric explains are left without colour; a field that is the same everywhere
        is a line of text.

    Raises
    ------
    ValueError
        If ``what`` is unknown, or there is no such element or group.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import plotting
    >>> from finslerconv.implicit import implicit_metric
    >>> from finslerconv.nn import DeformConv2d
    >>> layer, x = DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8)
    >>> ax = plotting.implicit_field(implicit_metric(layer, x), x, "anisotropy")
    """
    if what not in ("anisotropy", "drift"):
        raise ValueError(f"what: expected 'anisotropy' or 'drift', got {what!r}")
    pixels = photograph("image", image)
    height, width = pixels.shape[:2]
    metric, centres, good, _ = _field(result, height, width, batch, group)
    ellipse = Ellipse.of(metric)
    axes = numpy_of("metric", ellipse.axes)
    norm: Normalize
    ax = axes_or_new(ax)
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=-1)
    if what == "anisotropy":
        values = axes[..., 0] / axes[..., 1]
        top = limit or max(1.1, float(np.max(values[good], initial=1.0)))
        norm, cmap = LogNorm(1.0, top), "plasma"
    else:
        values = numpy_of("metric", metric.omega_norm())
        # A smaller drift is invisible.
        top = limit or max(0.05, float(np.max(values[good], initial=0.0)))
        norm, cmap = Normalize(0.0, top), "viridis"
    show(grey, dim=0.3, ax=ax)
    ax.autoscale(False)
    names = {"anisotropy": "anisotropy, long / short half-axis", "drift": "drift, |ω| in M⁻¹"}
    ax.set_title(names[what] + _of_group(result, group), fontsize=10)
    shown = values[good]
    if shown.size == 0:
        _say(ax, "no pixel\nhas a metric")
        return ax
    if limit is None and np.ptp(shown) <= 1e-3 * max(1.0, shown.max()):
        _say(ax, f"the same everywhere:\n{what} {abs(round(float(shown[0]), 3)):g}")
        if what == "drift":
            _arrows(ax, result, numpy_of("metric", ellipse.centre), values, good, centres, top)
        return ax
    drawn: Any
    if result.positions.geometry is None:
        # Each query is a dot; all together cover the picture, if they are spread over it.
        size = 0.8 * 72 * ax.get_window_extent().width / ax.figure.dpi / math.sqrt(good.size)
        row, column = centres[good].T
        drawn = ax.scatter(column, row, s=size**2, c=shown, cmap=cmap, norm=norm, lw=0)
    else:
        # Each output pixel fills its share of the picture.
        rows, columns = centres[:, 0, 0], centres[0, :, 1]
        half = [abs(p[-1] - p[0]) / max(1, len(p) - 1) / 2 or 0.5 for p in (rows, columns)]
        extent = (
            columns[0] - half[1], columns[-1] + half[1], rows[-1] + half[0], rows[0] - half[0],
        )  # fmt: skip
        drawn = ax.imshow(
            np.ma.masked_array(values, ~good), cmap=cmap, norm=norm, extent=extent, alpha=0.72,
            interpolation="nearest",
        )  # fmt: skip
    bar = colour_bar(
        drawn, ax, 7, 2, orientation="horizontal", shrink=0.9, aspect=30, format="%.3g"
    )
    if what == "anisotropy":
        bar.set_ticks(_log_ticks(top))
    else:
        _arrows(ax, result, numpy_of("metric", ellipse.centre), values, good, centres, top)
    return ax


def orientation_rose(
    result: "ImplicitMetric", *, colour: str = ORANGE, ax: PolarAxes | None = None
) -> PolarAxes:
    """Draw the histogram of the long axes' directions, as one sees them in the picture.

    Parameters
    ----------
    result : ImplicitMetric
    colour : str
    ax : PolarAxes, optional
        Axes of ``projection="polar"``.

    Returns
    -------
    PolarAxes
        The area of a sector is its share, by ``(a - b) / (a + b)`` of the balls' half-axes; a
        circle is drawn where all directions would be alike. Over the whole batch and all groups.

    Raises
    ------
    TypeError
        If ``ax`` is not polar.

    Examples
    --------
    >>> import torch
    >>> from finslerconv import plotting
    >>> from finslerconv.implicit import implicit_metric
    >>> from finslerconv.nn import DeformConv2d
    >>> layer, x = DeformConv2d(1, 2, 3, padding=1), torch.rand(1, 1, 8, 8)
    >>> ax = plotting.orientation_rose(implicit_metric(layer, x))
    """
    if ax is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(3, 3), layout="constrained")
        ax = figure.add_subplot(projection="polar")  # type: ignore[assignment]
    if not isinstance(ax, PolarAxes):
        raise TypeError(f"ax: expected polar axes (projection='polar'), got {type(ax).__name__}")
    ax.set_theta_direction(-1)  # rows run down
    ax.set_yticks([])
    ax.set_xticks(np.deg2rad([0, 90, 180, 270]), ["", "", "", ""])
    ax.grid(color="#E6E8EB")
    ax.spines["polar"].set_visible(False)
    groups = result.positions.groups
    all_of_them = f", all {groups} {_word(result)}s" if groups > 1 else ""
    ax.set_title(f"long axes{all_of_them}", fontsize=10)
    s = result.summary
    if s.orientation is None:
        text = "all balls\nare discs" if s.explained else "no pixel\nhas a metric"
        ax.grid(False)
        ax.text(0, 0, text, ha="center", va="center", fontsize=9, color=GREY)
        if not s.explained:
            return ax
    else:
        n = len(s.orientation)
        angles = -math.pi / 2 + (np.arange(n) + 0.5) * math.pi / n
        both = np.concatenate((angles, angles + math.pi))
        radii = np.sqrt(n * np.tile(np.asarray(s.orientation), 2))
        ax.bar(both, radii, width=0.92 * math.pi / n, color=colour, alpha=0.85, zorder=3)
        ax.plot(np.linspace(0, 2 * math.pi, 100), np.ones(100), color=GREY, lw=0.8, ls=":")
        ax.set_ylim(0, max(1.5, 1.05 * radii.max()))
    lines = [f"size {s.size:.3g} px", f"anisotropy {s.anisotropy:.3g}"]
    lines += [f"asymmetry {abs(round(s.asymmetry, 2)):g}"]
    if s.edges is not None:
        lines.append(f"along edges {s.edges:+.2f}")
    ax.text(
        0.5, -0.04, "\n".join(lines), transform=ax.transAxes, ha="center", va="top", fontsize=9,
        color=INK,
    )  # fmt: skip
    return ax


def _title(result: "ImplicitMetric", group: int) -> str:
    where = result.positions
    size = where.kernel_name.replace("x", " x ")
    rows, columns = where.input_size
    good = result.summary.explained
    note = ", its own metric" if result.explicit else ""
    if good < 1:
        note += f", {100 * good:.3g} % explained"
    if result.summary.diverged > 0:
        note += f", {100 * result.summary.diverged:.3g} % diverged"
    if where.groups > 1:
        note += f"{_of_group(result, group)} of 0 to {where.groups - 1}"
    return f"{result.name}   {where.kind} {size}, on {rows} x {columns} pixels{note}"


def _of_group(result: "ImplicitMetric", group: int) -> str:
    """Return the group of a panel, if there are several, for its title."""
    groups = result.positions.groups
    return "" if groups == 1 else f", {_word(result)} {group % groups}"


def _word(result: "ImplicitMetric") -> str:
    """Return what the layer's groups are called."""
    return "head" if result.positions.kind == "attention" else "group"


def _say(ax: Axes, text: str) -> None:
    """Write text in the middle of a picture."""
    ax.text(
        0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=9, color=INK,
        bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )  # fmt: skip


def _log_ticks(top: float) -> list[float]:
    """Return about five ticks, well apart, of a logarithmic scale from 1."""
    steps = [base * 10**power for power in range(6) for base in (1, 1.05, 1.1, 1.2, 1.5, 2, 3, 5)]
    ticks: list[float] = []
    for step in steps:
        far = not ticks or math.log(step / ticks[-1]) >= 0.15 * math.log(top)
        if far and step <= top * (1 + 1e-9):
            ticks.append(step)
    return ticks


def _field(
    result: "ImplicitMetric", height: int, width: int, batch: int, group: int
) -> tuple[Randers, np.ndarray, np.ndarray, np.ndarray]:
    """Return metric, centres, what is explained, and samples, for one picture and group."""
    groups = result.positions.groups
    counts = ("batch", batch, len(result.positions.points)), ("group", group, groups)
    for name, i, count in counts:
        if not -count <= i < count:
            raise ValueError(f"{name}: expected an index below {count}, got {i}")
    index = (batch,) if groups == 1 else (batch, group)
    metric, centres = result.in_picture(height, width)
    ratios = np.array((height, width)) / np.array(result.positions.input_size)
    points = numpy_of("points", result.positions.points[index]).astype(float) * ratios
    there = numpy_of("centres", centres[batch if len(centres) > 1 else 0]).astype(float)
    return metric[index], there, numpy_of("explained", result.fit.explained[index]), points


def _apart(
    result: "ImplicitMetric", centres: Float[np.ndarray, "rows columns 2"], spacing: float
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Return rows and columns of output pixels that are about ``spacing`` apart."""
    if result.positions.geometry is not None:
        both = _spread(centres[:, 0, 0], spacing), _spread(centres[0, :, 1], spacing)
        row, column = np.meshgrid(*both, indexing="ij")
        return row.ravel(), column.ravel()
    # Of the queries in a cell, the one that is nearest to its middle.
    flat = centres.reshape(-1, 2)
    first, extent = flat.min(axis=0), np.ptp(flat, axis=0)
    counts = np.maximum(1, np.round(extent / spacing))
    place = (flat - first) / np.where(extent > 0, extent, 1.0) * counts
    cell = np.minimum(np.floor(place), counts - 1)
    order = np.lexsort((((place - cell - 0.5) ** 2).sum(-1), cell[:, 1], cell[:, 0]))
    nearest = np.unique(cell[order], axis=0, return_index=True)[1]
    row, column = np.unravel_index(order[nearest], centres.shape[:2])
    return row, column


def _spread(places: Float[np.ndarray, " n"], spacing: float) -> Int[np.ndarray, " m"]:
    """Return indices of places evenly about ``spacing`` apart, the same margin at both ends."""
    apart = float(places[-1] - places[0]) / max(1, len(places) - 1) or 1.0
    step = min(len(places), max(1, round(spacing / apart)))
    return np.arange((len(places) - 1) % step // 2, len(places), step)


def _arrows(
    ax: Axes,
    result: "ImplicitMetric",
    drift: np.ndarray,
    values: np.ndarray,
    good: np.ndarray,
    centres: np.ndarray,
    top: float,
) -> None:
    spacing = (np.ptp(centres, axis=(0, 1)).max() or 1.0) / 14
    at = _apart(result, centres, spacing)
    drawn = good[at] & (values[at] > 0.1 * top)
    if not drawn.any():
        return
    drift, values, centres = (each[at][drawn] for each in (drift, values, centres))
    length = np.linalg.norm(drift, axis=-1)
    step = drift / np.where(length > 0, length, 1.0)[..., None]
    # Arrows as long as the drift is strong, the strongest nearly as long as their spacing.
    step = 0.8 * spacing * step * (values / top)[..., None]
    ax.quiver(
        centres[:, 1], centres[:, 0], step[:, 1], step[:, 0], angles="xy", scale_units="xy",
        scale=1, color="white", width=0.006, headwidth=4, zorder=5,
    )  # fmt: skip


def _round_down(x: float) -> float:
    """Return the number of one significant digit at or below ``x``."""
    power = 10.0 ** math.floor(math.log10(x))
    return math.floor(x / power * (1 + 1e-9)) * power
