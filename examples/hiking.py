"""Walking times over a mountain range, there and back: a metric that knows uphill from downhill.

The terrain is the elevation model around the Jacksboro fault in Tennessee that matplotlib ships,
two fifths of it steeper than 16 degrees. ``physics.slope_metric`` makes Tobler's hiking function a
Finsler metric, whose lengths are times: walking is quickest gently downhill, and on steep terrain
in zigzags. Fast marching gives the time from a village to every place, and the time back, which is
another one. The quickest way up need not be the quickest way down.

    python examples/hiking.py --quick   # every third point of the model
    python examples/hiking.py           # the whole model

It writes one picture.

Result of ``python examples/hiking.py`` (34 s of processor time):

    | way           | time | back by the same way | km   | metres up |
    |---------------|------|----------------------|------|-----------|
    | to the summit | 3:28 | 2:55                 | 13.7 | 1485      |
    | home          | 2:52 | 3:31                 | 13.8 | 820       |
    | straight      | 4:13 | 3:44                 | 12.8 | 1455      |
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.colors import LightSource
from matplotlib.figure import Figure

from finslerconv.geodesics import GridMetric, distance, path_length
from finslerconv.metrics import Tabulated
from finslerconv.physics import slope_metric

METRES_PER_DEGREE = 111_320.0

# Latitude and longitude in degrees.
VILLAGE, SUMMIT = (36.600, -84.214), (36.4855, -84.2312)


def terrain(every: int) -> tuple[np.ndarray, tuple[float, float], np.ndarray]:
    """Return heights and the spacing in metres, and the places of village and summit, in metres.

    Rows run from north to south, and columns from west to east.
    """
    with np.load(get_sample_data("jacksboro_fault_dem.npz", asfileobj=False)) as model:
        heights = model["elevation"].astype(float)
        north, west = float(model["ymin"]), float(model["xmin"])  # the file calls the north so
        step = float(model["dy"]), float(model["dx"])
    middle = np.deg2rad(north - step[0] * len(heights) / 2)
    metres = METRES_PER_DEGREE, METRES_PER_DEGREE * np.cos(middle)
    places = [
        ((north - lat) * metres[0], (lon - west) * metres[1]) for lat, lon in (VILLAGE, SUMMIT)
    ]
    spacing = tuple(every * s * m for s, m in zip(step, metres, strict=True))
    return heights[::every, ::every], spacing, np.array(places)


def clock(hours: float) -> str:
    """Return hours as hours and minutes."""
    minutes = round(60 * hours)
    return f"{minutes // 60}:{minutes % 60:02d}"


def main() -> None:
    """Read the command line, march, draw, and print a table."""
    parser = argparse.ArgumentParser(description="Walking times over a mountain range.")
    parser.add_argument("--quick", action="store_true", help="on a coarser model")
    parser.add_argument("--output", type=Path, default=Path("hiking.png"))
    options = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    begin = time.process_time()

    heights, spacing, (village, summit) = terrain(3 if options.quick else 1)
    # Tabulated once for all that follows: in seconds, along 64 directions.
    metric = Tabulated.of(slope_metric(heights, spacing), 64)
    field = GridMetric.from_metric(metric, spacing=spacing, validate=False)
    away = distance(field, village, full=True)
    home = distance(field, village, reverse=True, full=True)
    up, down = away.path(summit), home.path(summit)
    straight = np.linspace(village, summit, 400)

    print("| way | time | back by the same way | km | metres up |")
    print("|-----|------|----------------------|----|-----------|")
    for name, way in (("to the summit", up), ("home", down), ("straight", straight)):
        hours, back = (float(path_length(field, w)) / 3600 for w in (way, way[::-1].copy()))
        kilometres = np.linalg.norm(np.diff(way, axis=0), axis=1).sum() / 1000
        row, column = np.rint(way / spacing).astype(int).T
        climbed = np.clip(np.diff(heights[row, column]), 0, None).sum()
        print(f"| {name} | {clock(hours)} | {clock(back)} | {kilometres:.1f} | {climbed:.0f} |")

    height, width = (n * s / 1000 for n, s in zip(heights.shape, spacing, strict=True))
    figure = Figure(figsize=(15, 7.2), layout="constrained")
    shade = LightSource(315, 45).hillshade(heights, vert_exag=2, dx=spacing[1], dy=spacing[0])
    y, x = (np.arange(n) * s / 1000 for n, s in zip(heights.shape, spacing, strict=True))
    titles = "Hours from the village", "Hours back to the village"
    for ax, times, title in zip(figure.subplots(1, 2), (away, home), titles, strict=True):
        ax.imshow(shade, cmap="gray", extent=(0, width, height, 0), alpha=0.9)
        hours = np.asarray(times.distance) / 3600
        levels = np.arange(0, hours.max() + 0.5, 0.5)
        ax.contourf(x, y, hours, levels, cmap="viridis_r", alpha=0.3)
        lines = ax.contour(x, y, hours, levels[::2], colors="black", linewidths=0.8)
        ax.clabel(lines, fmt="%g h", fontsize=9)
        for way, colour, name in ((up, "#D55E00", "up"), (down, "#0072B2", "down")):
            ax.plot(way[:, 1] / 1000, way[:, 0] / 1000, color=colour, linewidth=2.2, label=name)
        for place, name in ((village, "village"), (summit, "summit")):
            ax.plot(place[1] / 1000, place[0] / 1000, "o", color="white", markeredgecolor="black")
            ax.annotate(
                name, place[::-1] / 1000, (6, 6), textcoords="offset points", fontsize=10,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "lw": 0},
            )  # fmt: skip
        ax.set(title=title, xlabel="km east", ylabel="km south", xlim=(0, width), ylim=(height, 0))
        ax.legend(loc="lower left")
    figure.savefig(options.output, dpi=100)
    print(f"Wrote {options.output} ({time.process_time() - begin:.0f} s of processor time)")


if __name__ == "__main__":
    main()
