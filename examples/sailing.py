"""The quickest way across a strait with a current, there and back: Zermelo's problem as a metric.

Land and sea come from the relief of Vancouver Island that matplotlib ships, with five points put
between two. The current is made up: a stream function that is constant on land, so that the water
flows along the coasts, strongest in the straits. ``physics.zermelo_metric`` makes a Randers metric
of it and of a boat's speed, whose lengths are travel times. Fast marching goes around the land
(``mask``) and stops at the target; the way back is another one, and takes another time.

    python examples/sailing.py --quick   # twice as coarse
    python examples/sailing.py           # half a minute

It writes one picture, and shows what is refused: a boat that is slower than the current.

Result of ``python examples/sailing.py`` (32 s of processor time), at 10 km/h in a current of up to
7 km/h:

    | way               | hours | km  |
    |-------------------|-------|-----|
    | there             | 24.0  | 348 |
    | back              | 29.8  | 390 |
    | without a current | 32.9  | 328 |
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter, label, zoom

from finslerconv.geodesics import GridMetric, distance
from finslerconv.physics import zermelo_metric

KM_PER_DEGREE = 111.32
BOAT = 10.0  # km/h
# Latitude and longitude of the ports.
START, TARGET = (48.40, -125.40), (49.58, -124.65)


def chart(finer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the relief in metres, and latitudes and longitudes; rows run from south to north."""
    with np.load(get_sample_data("topobathy.npz", asfileobj=False)) as data:
        relief, latitude = data["topo"].astype(float), data["latitude"].astype(float)
        longitude = data["longitude"].astype(float) - 360
    finest = [(n - 1) * finer + 1 for n in relief.shape]
    relief = zoom(relief, [m / n for m, n in zip(finest, relief.shape, strict=True)], order=1)
    return relief, *(
        np.linspace(x[0], x[-1], n) for x, n in zip((latitude, longitude), finest, strict=True)
    )


def current(sea: np.ndarray, spacing: np.ndarray, strongest: float) -> np.ndarray:
    """Return a current (rows, columns, 2) in km/h that flows along the coasts."""
    far = gaussian_filter(sea.astype(float), 3.0 / spacing) ** 2 * sea
    rows, columns = np.meshgrid(
        *(s * np.arange(n) for s, n in zip(spacing, sea.shape, strict=True)), indexing="ij"
    )
    stream = far * (rows + columns + 15 * np.sin(columns / 25) * np.cos(rows / 20))
    down, right = np.gradient(stream, *spacing)
    flow = np.stack((right, -down), -1) * sea[..., None]
    speed = np.linalg.norm(flow, axis=-1)
    # The strongest eddies are cut, not the direction.
    limit = np.quantile(speed[sea], 0.9)
    flow /= np.maximum(1, speed / limit)[..., None]
    return strongest * flow / limit


def main() -> None:
    """Read the command line, march, draw, and print the times."""
    parser = argparse.ArgumentParser(description="The quickest way with a current, there and back.")
    parser.add_argument("--quick", action="store_true", help="on a coarser chart")
    parser.add_argument("--output", type=Path, default=Path("sailing.png"))
    options = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    begin = time.process_time()

    relief, latitude, longitude = chart(2 if options.quick else 5)
    spacing = KM_PER_DEGREE * np.array(
        [
            latitude[1] - latitude[0],
            (longitude[1] - longitude[0]) * np.cos(np.deg2rad(latitude.mean())),
        ]
    )
    regions, _ = label(relief < 0)
    sea = regions == np.bincount(regions[regions > 0]).argmax()
    wind = current(sea, spacing, 0.7 * BOAT)
    corner = latitude[0], longitude[0]
    degrees = latitude[1] - latitude[0], longitude[1] - longitude[0]
    start, target = ((np.array(p) - corner) / degrees * spacing for p in (START, TARGET))

    field = GridMetric.from_metric(zermelo_metric(wind, BOAT, mask=sea), spacing=spacing)
    calm = GridMetric.from_cost(np.full(sea.shape, 1 / BOAT), spacing=spacing)
    away = distance(field, start, mask=sea, full=True)
    home = distance(field, target, mask=sea, targets=start, full=True)
    still = distance(calm, start, mask=sea, targets=target, full=True)
    there, back, without = away.path(target), home.path(start), still.path(target)
    print("| way | hours | km |")
    print("|-----|-------|----|")
    ends = [np.rint(p / spacing).astype(int) for p in (start, target)]
    for name, times, end, way in (
        ("there", away, ends[1], there),
        ("back", home, ends[0], back),
        ("without a current", still, ends[1], without),
    ):
        kilometres = np.linalg.norm(np.diff(way, axis=0), axis=1).sum()
        print(f"| {name} | {times.distance[tuple(end)]:.1f} | {kilometres:.0f} |")
    try:
        zermelo_metric(wind, 0.5 * BOAT, mask=sea)
    except ValueError as error:
        print(f"Refused: {error}")

    figure = Figure(figsize=(11, 8.2), layout="constrained")
    ax = figure.subplots()
    height, width = (n * s for n, s in zip(sea.shape, spacing, strict=True))
    x, y = spacing[1] * np.arange(sea.shape[1]), spacing[0] * np.arange(sea.shape[0])
    hours = np.where(sea, away.distance, np.nan)
    colours = ax.contourf(
        x, y, hours, np.arange(0, np.nanmax(hours[np.isfinite(hours)]) + 2, 2), cmap="YlGnBu"
    )
    figure.colorbar(colours, ax=ax, label="hours from the start", shrink=0.8)
    ax.contourf(x, y, np.where(sea, np.nan, 1.0), colors=["#D9CBA3"])
    ax.contour(x, y, sea, [0.5], colors="#6B5B2E", linewidths=0.8)
    every = max(1, round(8 / spacing[0]))
    part = np.s_[::every, ::every]
    arrows = np.where(sea[..., None], wind, np.nan)[part]
    ax.quiver(
        x[::every],
        y[::every],
        arrows[..., 1],
        arrows[..., 0],
        color="#444444",
        width=0.0016,
        scale=220,
    )
    for way, colour, style, name in (
        (there, "#D55E00", "-", "there"),
        (back, "#0072B2", "-", "back"),
        (without, "black", "--", "without a current"),
    ):
        ax.plot(way[:, 1], way[:, 0], color=colour, linestyle=style, linewidth=2, label=name)
    for place, name in ((start, "start"), (target, "target")):
        ax.plot(place[1], place[0], "o", color="white", markeredgecolor="black", zorder=5)
        ax.annotate(
            name, place[::-1], (7, 5), textcoords="offset points", fontsize=11, weight="bold"
        )
    ax.set(xlabel="km east", ylabel="km north", xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_title("Around Vancouver Island at 10 km/h, in a current of up to 7 km/h", fontsize=12)
    ax.legend(loc="lower left")
    figure.savefig(options.output, dpi=100)
    print(f"Wrote {options.output} ({time.process_time() - begin:.0f} s of processor time)")


if __name__ == "__main__":
    main()
