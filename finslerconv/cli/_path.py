"""The shortest path between two pixels of a photograph, there and back, and its figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure

from finslerconv import plotting
from finslerconv.geodesics import DistanceMap, GridMetric, distance, path_length
from finslerconv.metrics import Randers

Pixel = tuple[float, float]
Picture = Float[np.ndarray, "channels height width"]
Curve = Float[np.ndarray, "n 2"]


@dataclass(frozen=True, eq=False)
class Way:
    """A path between the start and one of the ends, its length by the metric and in pixels."""

    name: str
    end: int
    curve: Curve
    length: float
    pixels: float

    @classmethod
    def along(cls, name: str, end: int, curve: Curve, field: GridMetric) -> "Way":
        """Measure a curve."""
        pixels = float(np.linalg.norm(np.diff(curve, axis=0), axis=1).sum())
        return cls(name, end, curve, float(path_length(field, curve)), pixels)

    def to_dict(self) -> dict[str, Any]:
        """Return the path as plain Python: its points are pairs (row, column), as it runs."""
        return {
            "path": self.name,
            "end": self.end,
            "length": self.length,
            "pixels": self.pixels,
            "points": self.curve.tolist(),
        }


def coordinates(ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Return the points of all paths, one after another."""
    return [
        {"path": way.name, "end": way.end, "row": row, "column": column}
        for way in ways
        for row, column in way.curve.tolist()
    ]


def journey(metric: Randers, start: Pixel, ends: Sequence[Pixel]) -> tuple[list[Way], DistanceMap]:
    """Find the shortest paths from ``start`` to each end and back, and the distances from it.

    The third way to each is the straight line. Two marches serve all ends.
    """
    pixels = GridMetric(metric.M[0].double(), metric.omega[0].double())
    # The metric of a photograph turns from pixel to pixel: two nodes a pixel resolve that.
    height, width = pixels.grid_shape
    nodes = (2 * height - 1, 2 * width - 1)
    field = GridMetric.from_function(
        pixels.at, nodes, spacing=0.5, device=metric.M.device, validate=False
    ).numpy()
    there = distance(field, start, full=True)
    back = distance(field, start, reverse=True, targets=ends, full=True)
    ways = []
    for number, end in enumerate(ends):
        straight = np.linspace(start, end, max(2, 4 * int(np.hypot(*np.subtract(start, end)))))
        ways += [
            Way.along("there", number, np.asarray(there.path(end)), field),
            Way.along("back", number, np.asarray(back.path(end)), field),
            Way.along("straight line there", number, straight, field),
        ]
    return ways, there


def path_figure(image: Picture, ways: list[Way], distances: DistanceMap) -> Figure:
    """Draw the paths over the picture, and the distances that they descend."""
    height, width = image.shape[1:]
    figure = Figure(figsize=(12, 0.8 + 5.2 * height / width), layout="constrained")
    left, right = figure.subplots(1, 2)
    there, back = ([way.curve for way in ways[i::3]] for i in (0, 1))
    ends = ("from", "to")
    if len(there) == 1:
        labels = ["there", "back"]
    else:
        labels = [f"{way} {n}" for way in ("there", "back") for n in range(len(there))]
    plotting.paths([*there, *back], labels=labels, ends=ends, image=image, ax=left)
    left.set_title("shortest paths", fontsize=11)
    plotting.distance_map(distances, image=image, label="distance (balls)", ax=right)
    plotting.paths(there, ends=ends, ax=right)
    right.set_title('distances from "from", and the paths there', fontsize=11)
    for ax in (left, right):
        ax.set_xlim(-0.5, width - 0.5)
        ax.set_ylim(height - 0.5, -0.5)
    return figure


def default_ends(metric: Randers) -> tuple[Pixel, Pixel]:
    """Return two pixels far apart, on the strongest edges near opposite corners of a picture."""
    M = metric.M[0].double()
    # Across a strong edge M is large.
    strength = torch.linalg.eigvalsh(M)[..., -1].cpu().numpy()
    height, width = strength.shape
    rows, columns = height // 4, width // 4
    first = _strongest(strength[rows : 2 * rows, columns : 2 * columns])
    last = _strongest(strength[-rows - 1 : -1, -columns - 1 : -1])
    return (
        (float(first[0] + rows), float(first[1] + columns)),
        (float(last[0] + height - rows - 1), float(last[1] + width - columns - 1)),
    )


def _strongest(strength: np.ndarray) -> tuple[int, int]:
    row, column = np.unravel_index(int(strength.argmax()), strength.shape)
    return int(row), int(column)
