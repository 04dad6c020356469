"""The README's picture: the positions of every kernel are samples of the unit ball of a metric."""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from finslerconv import plotting
from finslerconv.balls import concentric, lattice, radial
from finslerconv.images import gradient_metric, photograph
from finslerconv.metrics import FinslerMetric, Polytope, Randers

ORANGE, BLUE, INK, GREY = "#E69F00", "#0072B2", "#22272E", "#6B7280"


def kernels() -> list[tuple[str, str, np.ndarray, FinslerMetric]]:
    """Return name, kind of ball, positions and metric of five 3 x 3 kernels."""
    grid = lattice(3).points
    shifted = grid + np.array([-0.4, 0.7])
    free = 1.4 * grid + np.random.default_rng(11).uniform(-0.75, 0.75, grid.shape)
    randers = Randers(np.array([[0.56, 0.23], [0.23, 0.36]]), np.array([0.12, 0.25]))
    return [
        ("standard", "a fixed ball", grid, Polytope(grid)),
        ("dilated", "a scaled ball", 2 * grid, Polytope(2 * grid)),
        ("shifted", "a ball off centre", shifted, Polytope(shifted)),
        ("deformable", "a free-form ball, 18 numbers", free, Polytope(free)),
        ("metric", "a Randers ball, 5 numbers", radial(randers, concentric(3).points), randers),
    ]


def draw_kernel(ax, name, kind, positions, metric) -> None:
    """Draw the pixels, the ball and the samples of one kernel."""
    for edge in np.arange(-3.5, 4):
        ax.plot([edge, edge], [-3.5, 3.5], color="#DDE1E6", lw=0.8, zorder=0)
        ax.plot([-3.5, 3.5], [edge, edge], color="#DDE1E6", lw=0.8, zorder=0)
    plotting.unit_balls(metric, ax=ax)
    ax.scatter(positions[:, 1], positions[:, 0], s=42, color=BLUE, edgecolor="white", zorder=6)
    ax.set(xlim=(-3.5, 3.5), ylim=(3.5, -3.5), xticks=[], yticks=[])
    ax.set_title(name, fontsize=13, color=INK, fontweight="bold", pad=18)
    ax.text(0.5, 1.02, kind, transform=ax.transAxes, ha="center", fontsize=9.5, color=GREY)


def draw_photograph(ax) -> None:
    """Draw the unit balls of a photograph's metric, and the samples of every one."""
    top, bottom = 62, 232
    picture = torch.tensor(photograph() / 255)[None, None]
    field = gradient_metric(
        picture, anisotropy=8.0, scale=1 / 7**2, sigma=2.5, tau=0.4, omega="across"
    )
    field = Randers(field.M[:, top:bottom], field.omega[:, top:bottom])
    height, width = bottom - top, picture.shape[-1]
    rows, columns = np.arange(13, height, 29), np.arange(16, width, 32)
    pixels = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    plotting.unit_balls(field, pixels, image=picture[:, :, top:bottom], dim=0.35, ax=ax)
    points = torch.tensor(concentric(3).points)
    for row, column in pixels:
        samples = radial(field[0, int(row), int(column)], points).numpy()
        ax.scatter(column + samples[:, 1], row + samples[:, 0], s=9, color=BLUE, lw=0, zorder=4.5)
    ax.set_title(
        "A metric computed from the picture gives every pixel a ball, and a kernel, of its own",
        fontsize=12,
        color=INK,
        pad=8,
    )


def main() -> None:
    """Write the picture, in 256 colours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/_static/idea.png"))
    parser.add_argument("--quick", action="store_true", help="write it at half the size")
    arguments = parser.parse_args()
    output = arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    # Placed by hand, in inches: the panels are squares above a strip of their common width.
    width, height, side = 11.0, 7.05, 2.08
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(
        0.5,
        6.78 / height,
        "A convolution's kernel positions are samples of the unit ball of a metric",
        ha="center",
        va="center",
        fontsize=15,
        color=INK,
        fontweight="bold",
    )
    for i, kernel in enumerate(kernels()):
        left = 0.1 + i * (10.8 - side) / 4
        place = (left / width, 4.02 / height, side / width, side / height)
        draw_kernel(figure.add_axes(place), *kernel)
    draw_photograph(figure.add_axes((0.1 / width, 0.06 / height, 10.8 / width, 3.59 / height)))
    figure.savefig(output, dpi=55 if arguments.quick else 110)
    Image.open(output).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        output, optimize=True
    )
    print(f"Wrote {output}, {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
