"""What all pictures share: the axes, the colours, and photographs as matplotlib takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar

from finslerconv.metrics import FinslerMetric

#: The palette of Okabe and Ito, without black and yellow.
ORANGE: Final = "#E69F00"
SKY: Final = "#56B4E9"
GREEN: Final = "#009E73"
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PURPLE: Final = "#CC79A7"
INK: Final = "#22272E"
GREY: Final = "#8A9099"


@runtime_checkable
class GridField(Protocol):
    """What of a :class:`finslerconv.geodesics.GridMetric` is drawn; plots import no solver."""

    @property
    def grid_shape(self) -> tuple[int, ...]: ...
    @property
    def batch_shape(self) -> tuple[int, ...]: ...
    @property
    def spacing(self) -> tuple[float, ...]: ...
    @property
    def origin(self) -> tuple[float, ...]: ...
    @property
    def metric(self) -> FinslerMetric: ...


@dataclass(frozen=True)
class Frame:
    """Where the nodes of a planar grid lie; by default they are pixels, at whole numbers."""

    shape: tuple[int, int]
    spacing: tuple[float, float] = (1.0, 1.0)
    origin: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, field: Any) -> "Frame":
        """Return the frame of a planar field on a grid."""
        if isinstance(field, Frame):
            return field
        if not isinstance(field, GridField):
            raise TypeError(f"field: expected a GridMetric, got {type(field).__name__}")
        if len(field.grid_shape) != 2:
            raise ValueError(
                f"field: expected one in the plane, got a grid of shape {field.grid_shape}"
            )
        (rows, columns), (down, right), (top, left) = field.grid_shape, field.spacing, field.origin
        return cls((rows, columns), (down, right), (top, left))

    def at(self, nodes: np.ndarray) -> Float[np.ndarray, "*batch 2"]:
        """Return the positions of nodes (row, column)."""
        return np.asarray(self.origin) + np.asarray(self.spacing) * nodes

    def axes(self) -> tuple[Float[np.ndarray, " rows"], Float[np.ndarray, " columns"]]:
        """Return the positions of the rows, and those of the columns."""
        (top, left), (down, right), (rows, columns) = self.origin, self.spacing, self.shape
        return top + down * np.arange(rows), left + right * np.arange(columns)

    def extent(self, shape: Sequence[int]) -> tuple[float, float, float, float]:
        """Return the edges of a picture of the grid: left, right, bottom, top.

        The centres of its outermost pixels are the outermost nodes; it may be finer or coarser than
        the grid, by the same factor both ways.
        """
        (rows, columns), (height, width) = self.shape, shape[:2]
        same = (height - 1) * (columns - 1) == (width - 1) * (rows - 1)
        if not same or (height > 1, width > 1) != (rows > 1, columns > 1):
            raise ValueError(
                f"image: expected a picture of {rows} x {columns}, a pixel for each node, got "
                f"{height} x {width}"
            )
        top, left = self.origin
        # The edges are half a pixel beyond the outermost centres.
        down, right = (
            step * (n - 1) / (m - 1) if m > 1 else step
            for step, n, m in zip(self.spacing, self.shape, (height, width), strict=True)
        )
        return (
            left - right / 2,
            left + right * (width - 0.5),
            top + down * (height - 0.5),
            top - down / 2,
        )


def axes_or_new(ax: Axes | None) -> Axes:
    """Return ``ax``, or the axes of a new figure of pyplot's, so that notebooks show it."""
    if ax is not None:
        return ax
    # Importing pyplot chooses a window system.
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(5.0, 5.0), layout="constrained")[1]


def numpy_of(name: str, array: Any) -> np.ndarray:
    """Return an array or tensor of real numbers or booleans as a NumPy array."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        if str(array.dtype) == "torch.bfloat16":  # NumPy has none
            array = array.float()
    converted = np.asarray(array)
    if converted.dtype.kind not in "biuf":
        raise TypeError(
            f"{name}: expected real numbers, got {type(array).__name__} of dtype {converted.dtype}"
        )
    return converted


def photograph(name: str, image: Any) -> Float[np.ndarray, "height width *channels"]:
    """Return an image as :func:`show` takes it in shape (H, W) or (H, W, 3), clipped to [0, 1]."""
    pixels = numpy_of(name, image)
    if pixels.dtype.kind in "iu":
        pixels = pixels / np.iinfo(pixels.dtype).max
    pixels = pixels.astype(float)
    if pixels.ndim == 4 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)) or 0 in pixels.shape:
        raise ValueError(
            f"{name}: expected one picture of shape (H, W), (C, H, W) or (1, C, H, W) with 1 or 3 "
            f"channels, got {np.shape(numpy_of(name, image))}"
        )
    return np.clip(np.nan_to_num(pixels, nan=0.0), 0.0, 1.0)


def check_points(name: str, array: Any) -> Float[np.ndarray, "n 2"]:
    """Return points of the plane as a NumPy array (n, 2) of finite numbers."""
    points = numpy_of(name, array).astype(float)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name}: expected points (row, column), shape (n, 2), got {points.shape}")
    good = np.isfinite(points).all(axis=1)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(f"{name}: expected finite points, got {points[row]} at index {row}")
    return points


def show(
    image: Any, *, field: GridField | Frame | None = None, dim: float = 0.0, ax: Axes | None = None
) -> Axes:
    """Show a picture without ticks, pixel centres at whole numbers or at the nodes of a field.

    Parameters
    ----------
    image : array
        Of shape (H, W), (C, H, W), (1, C, H, W) or (H, W, C) with 1 or 3 channels; floats in [0, 1]
        (clipped), or integers, which are divided by the largest of their type.
    field : GridMetric, optional
        The planar field whose positions the axes show: the centres of the outermost pixels are its
        outermost nodes.
    dim : float
        How far to fade it towards white, in [0, 1], for what is drawn over it.
    ax : Axes, optional

    Raises
    ------
    ValueError
        If it is no picture, or none of the field's grid.

    Examples
    --------
    >>> from finslerconv import images, plotting
    >>> ax = plotting.show(images.photograph())
    """
    pixels = photograph("image", image)
    frame = Frame(pixels.shape[:2]) if field is None else Frame.of(field)
    extent = frame.extent(pixels.shape)
    if not 0 <= dim <= 1:
        raise ValueError(f"dim: expected a number in [0, 1], got {dim!r}")
    ax = axes_or_new(ax)
    ax.imshow(
        dim + (1 - dim) * pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest",
        extent=extent,
    )  # fmt: skip
    bare(ax)
    return ax


def bare(ax: Axes) -> None:
    """Take ticks and spines off the axes."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)


def colour_bar(drawn: ScalarMappable, ax: Axes, size: int, length: int, **style: Any) -> Colorbar:
    """Add a bar without outline and minor ticks, with labels and ticks of a size and length."""
    assert ax.figure is not None
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02, **style)
    bar.ax.tick_params(which="both", labelsize=size, length=length)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    return bar


def plane(ax: Axes) -> None:
    """Set the axes up as a piece of the tangent plane: equal units, rows down, no tick marks."""
    ax.set_aspect("equal", adjustable="box")
    if not ax.yaxis_inverted():
        ax.invert_yaxis()
    ax.set_axisbelow(True)
    ax.grid(color="#E6E8EB", linewidth=0.8)
    ax.tick_params(length=0, labelsize=10, labelcolor=GREY)
    ax.spines[:].set_visible(False)
    # Beside each other, plots of one kind need the names of their axes once.
    place = ax.get_subplotspec()
    if place is None or place.is_last_row():
        ax.set_xlabel("column", color=GREY)
    if place is None or place.is_first_col():
        ax.set_ylabel("row", color=GREY)


def mark_origin(ax: Axes, rows: Any, columns: Any, size: float = 14.0) -> None:
    """Mark the centres of unit balls."""
    ax.scatter(columns, rows, s=size, marker="o", color="white", edgecolor=INK, lw=0.9, zorder=5)
