"""The figures that the commands write."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter

from finslerconv import plotting
from finslerconv.balls import polar, radial
from finslerconv.cli.filters import GeodesicFilter, Result
from finslerconv.metrics import Randers
from finslerconv.plotting import BLUE, GREEN, Zoom

Picture = Float[np.ndarray, "channels height width"]


def balls_figure(
    image: Picture,
    metric: Randers,
    spacing: int | None,
    scale: float,
    colour_by: Literal["anisotropy", "asymmetry"] | None,
) -> Figure:
    """Draw the field of a picture's unit balls over it."""
    height, width = image.shape[1:]
    figure = Figure(figsize=(9.5, 0.6 + 8.4 * height / width), layout="constrained")
    ax = figure.subplots()
    plotting.ball_field(
        metric, image=image, spacing=spacing, scale=scale, colour_by=colour_by, ax=ax
    )
    times = "" if scale == 1 else f", drawn {scale:g} times as large"
    ax.set_title(f"Unit balls of the picture's Randers metric{times}", fontsize=11)
    return figure


def denoise_figure(
    results: Sequence[Result], clean: Picture, metric: Randers, geodesic: GeodesicFilter
) -> Figure:
    """Draw the results, the noisy picture first, beside the balls that made them.

    On the left the field of balls, and below it a detail of the noisy picture with the samples of
    some Randers balls, and the geodesic balls there; on the right all pictures with that detail
    enlarged.
    """
    noisy = results[0].picture
    pictures = [*(result.picture for result in results), clean]
    captions = [f"{result.name}, {result.psnr:.2f} dB" for result in results]
    height, width = noisy.shape[1:]
    zoom = _telling_detail(metric)
    columns = 4
    rows = -(-len(pictures) // columns)
    cell = 2.3
    panel_height = cell * (height + width * zoom.height / zoom.width) / width + 0.35
    right_width, total_height = columns * cell, rows * panel_height
    left_width = min(right_width, max(0.5 * right_width, total_height / 2 * width / height))
    figure = Figure(figsize=(left_width + right_width, total_height), layout="constrained")
    halves = figure.subfigures(
        1, 2, width_ratios=[left_width, right_width], wspace=0.02, squeeze=False
    )
    left, right = halves[0]
    field, detail = left.subplots(2, 1)
    plotting.ball_field(metric, image=noisy, scale=1.5, ax=field)
    field.set_title("the noisy picture's unit balls (1.5 x)", fontsize=9)
    _draw_samples(detail, noisy, metric, geodesic, zoom)
    detail.set_title(
        f"Randers balls with their {len(geodesic.reference)} samples; geodesic balls in green",
        fontsize=9,
    )
    plotting.side_by_side(
        pictures,
        [*captions, "the original"],
        zoom=zoom,
        columns=columns,
        highlight=max(range(len(results)), key=lambda i: results[i].psnr),
        figure=right,
    )
    return figure


def _draw_samples(
    ax: Axes, noisy: Picture, metric: Randers, geodesic: GeodesicFilter, zoom: Zoom
) -> None:
    pixels = _telling_pixels(metric, zoom)
    plotting.unit_balls(metric, pixels, image=noisy, dim=0.3, ax=ax)
    for row, column in pixels:
        at = metric[0, int(row), int(column)]
        points = torch.as_tensor(geodesic.reference.points, dtype=at.M.dtype, device=at.M.device)
        samples = radial(at, points).cpu().numpy()
        ax.scatter(column + samples[:, 1], row + samples[:, 0], s=3, color=BLUE, lw=0, zorder=4)
        rim = torch.as_tensor(polar(1, 120).points).to(at.M)
        centre = torch.tensor([[row, column]]).to(at.M)
        edge = geodesic.positions(rim, centre)[0, 0].cpu().numpy()
        ax.fill(
            column + edge[:, 1], row + edge[:, 0], fill=False, edgecolor=GREEN, lw=1.1, zorder=4
        )
    # In the proportions of the whole picture, so that both panels have one width.
    height, width = noisy.shape[1:]
    reach = max(zoom.height / height, zoom.width / width) / 2
    middle = zoom.row + zoom.height / 2 - 0.5, zoom.column + zoom.width / 2 - 0.5
    ax.set_xlim(middle[1] - reach * width, middle[1] + reach * width)
    ax.set_ylim(middle[0] + reach * height, middle[0] - reach * height)


def _stretch(metric: Randers) -> Float[np.ndarray, "height width"]:
    """Return how far the balls are from discs, the logarithm of the ratio of their half-axes."""
    M = metric.M[0].detach().cpu().numpy().astype(float)
    trace, determinant = M[..., 0, 0] + M[..., 1, 1], np.linalg.det(M)
    # Rounding may leave the determinant of an extreme metric at zero or below.
    root = np.sqrt(np.maximum(determinant, np.finfo(float).tiny))
    return np.arccosh(np.maximum(trace / (2 * root), 1))


def _telling_detail(metric: Randers) -> Zoom:
    """Return the window in which the balls are stretched most."""
    stretch = _stretch(metric)
    height, width = stretch.shape
    size = max(8, round(0.25 * min(height, width)))
    mean = uniform_filter(stretch, size)
    inner = mean[
        size // 2 : height - size + size // 2 + 1, size // 2 : width - size + size // 2 + 1
    ]
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    return Zoom(int(row), int(column), size, size)


def _telling_pixels(metric: Randers, zoom: Zoom, n: int = 7) -> np.ndarray:
    """Return pixels of a detail, well apart, with balls from long to round."""
    rows, columns = np.mgrid[0 : zoom.height, 0 : zoom.width]
    stretch = _stretch(metric)[
        zoom.row : zoom.row + zoom.height, zoom.column : zoom.column + zoom.width
    ]
    margin = max(2, zoom.height // 8)
    free = np.minimum(rows, zoom.height - 1 - rows) >= margin
    free &= np.minimum(columns, zoom.width - 1 - columns) >= margin
    pixels = []
    for wanted in np.linspace(0.8 * stretch.max(), stretch.min(), n):
        if not free.any():
            break
        distance = np.where(free, np.abs(stretch - wanted), np.inf)
        row, column = divmod(int(distance.argmin()), zoom.width)
        pixels.append((zoom.row + row, zoom.column + column))
        free &= (rows - row) ** 2 + (columns - column) ** 2 > (zoom.height / 4) ** 2
    return np.array(pixels)
