"""Trace the vessels of a retina: minimal paths in a metric that is cheap along dark lines.

The metric comes from the photograph's Hessians at several scales (``images.ridge_metric``): along a
vessel a step is up to 20 times as cheap as beside it, and cheaper along than across. One run of
fast marching from the optic disc, which stops when it has reached all tips, gives the shortest path
to every tip: the vessel tree. Where paths share a vessel they coincide.

For comparison the same two points are joined by ``skimage.graph.route_through_array``, with the
cost of a step along the vessel in all directions, and by the straight line. The centre lines with
which all are compared are those of another filter (Sato's, thresholded and thinned).

    python examples/vessels.py --quick   # at a quarter of the size
    python examples/vessels.py           # at half the size of the photograph, a minute

The photograph is in scikit-image's wheel: nothing is downloaded. It writes one picture.

Result of ``python examples/vessels.py`` (10 s of processor time):

    | way                 | pixels | by the metric | from the centre line (mean) | seconds |
    |---------------------|--------|---------------|-----------------------------|---------|
    | metric              | 589    | 36.6          | 0.43                        | 0.8     |
    | route_through_array | 618    | 52.4          | 0.50                        | 0.1     |
    | straight line       | 529    | 435.2         | 13.45                       | 0.0     |

Both follow the vessels. The route steps from pixel to pixel in eight directions, so that it is 5 %
longer than the path, and costs less time.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter
from skimage import data, graph
from skimage.filters import sato
from skimage.morphology import skeletonize

from finslerconv import plotting
from finslerconv.geodesics import GridMetric, distance, path_length
from finslerconv.images import ridge_metric

# In pixels of the whole photograph, row and column.
DISC = (600.0, 210.0)
TIPS = [
    (180, 1140), (304, 1240), (50, 880), (30, 700), (120, 356), (300, 146), (500, 104), (910, 80),
    (950, 1270), (1150, 1200), (1340, 500), (1200, 262), (590, 1180), (1290, 1040), (520, 960),
]  # fmt: skip
ENDS = (1150.0, 1200.0), (880.0, 176.0)


def photograph(reduction: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the colours, the green channel, and where the camera saw the eye, reduced."""
    colours = data.retina() / 255
    size = [n // reduction * reduction for n in colours.shape[:2]]
    shape = (size[0] // reduction, reduction, size[1] // reduction, reduction, 3)
    colours = colours[: size[0], : size[1]].reshape(shape).mean((1, 3))
    green = colours[..., 1]  # where vessels are darkest
    seen = binary_erosion(green > 0.06, iterations=max(1, 10 // reduction))
    # Beyond the rim the picture goes on smoothly, so that the rim is no line.
    width = 40 / reduction
    around = gaussian_filter(green * seen, width) / np.maximum(
        gaussian_filter(1.0 * seen, width), 1e-6
    )
    return colours, np.where(seen, green, around), seen


def tree(
    field: GridMetric, seen: np.ndarray, tips: np.ndarray, disc: np.ndarray
) -> list[np.ndarray]:
    """Return the shortest path from the disc to each tip."""
    return distance(field, disc, mask=seen, targets=tips, full=True).path(tips)


def compared(
    field: GridMetric, seen: np.ndarray, ends: np.ndarray
) -> dict[str, tuple[np.ndarray, float]]:
    """Return three ways between two points, with the seconds of processor time that each took."""
    start, end = ends
    begin = time.process_time()
    ours = distance(field, start, mask=seen, targets=end, full=True).path(end)
    seconds = time.process_time() - begin
    # The cost along the ridge, in all directions.
    cost = np.sqrt(np.linalg.eigvalsh(field.M)[..., 0])
    begin = time.process_time()
    corners = [tuple(np.rint(place).astype(int)) for place in ends]
    route, _ = graph.route_through_array(np.where(seen, cost, np.inf), *corners)
    other = time.process_time() - begin
    straight = np.linspace(start, end, 200)
    return {
        "metric": (ours, seconds),
        "route_through_array": (np.array(route, dtype=float), other),
        "straight line": (straight, 0.0),
    }


def centre_lines(green: np.ndarray, seen: np.ndarray, reduction: int) -> np.ndarray:
    """Return the distance of every pixel from a vessel's centre line, found in another way."""
    response = sato(green, sigmas=[4 / reduction, 8 / reduction], black_ridges=True) * seen
    lines = skeletonize(response > np.quantile(response[seen], 0.9))
    return distance_transform_edt(~lines)


def main() -> None:
    """Read the command line, trace, draw, and print a table."""
    parser = argparse.ArgumentParser(description="Trace the vessels of a retina.")
    parser.add_argument("--quick", action="store_true", help="at a quarter of the size")
    parser.add_argument("--output", type=Path, default=Path("vessels.png"))
    options = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    begin = time.process_time()

    reduction = 4 if options.quick else 2
    colours, green, seen = photograph(reduction)
    metric = ridge_metric(
        green[None, None], scales=[s / reduction for s in (3, 5, 8)], contrast=0.3
    )
    field = GridMetric.from_metric(metric[0])
    disc, tips, ends = (np.array(x) / reduction for x in (DISC, TIPS, ENDS))
    branches = tree(field, seen, tips, disc)
    ways = compared(field, seen, ends)
    away = centre_lines(green, seen, reduction)

    print("| way | pixels | by the metric | from the centre line (mean) | seconds |")
    print("|-----|--------|---------------|-----------------------------|---------|")
    for name, (way, seconds) in ways.items():
        pixels = np.linalg.norm(np.diff(way, axis=0), axis=1)
        middle = (way[1:] + way[:-1]) / 2
        row, column = np.rint(middle).astype(int).T
        off = float((away[row, column] * pixels).sum() / pixels.sum())
        length = float(path_length(field, way))
        print(f"| {name} | {pixels.sum():.0f} | {length:.1f} | {off:.2f} | {seconds:.1f} |")

    figure = Figure(figsize=(15, 8.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    picture = np.moveaxis(colours, -1, 0)
    plotting.show(picture, ax=left)
    for branch in branches:
        left.plot(branch[:, 1], branch[:, 0], color="#56B4E9", linewidth=1.6)
    left.plot(tips[:, 1], tips[:, 0], "o", color="white", markersize=4)
    left.plot(disc[1], disc[0], "s", color="#E69F00", markersize=7)
    left.set_title("The vessel tree: shortest paths from the optic disc to 15 tips", fontsize=11)
    plotting.paths([way for way, _ in ways.values()], labels=list(ways), image=picture, ax=right)
    right.set_title("Two points joined in three ways", fontsize=11)
    for ax in (left, right):
        ax.set_axis_off()
    figure.savefig(options.output, dpi=100)
    print(f"Wrote {options.output} ({time.process_time() - begin:.0f} s of processor time)")


if __name__ == "__main__":
    main()
