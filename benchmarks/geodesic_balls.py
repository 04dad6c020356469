"""Geodesic balls of every pixel, a layer's positions and whole layers, in time and accuracy.

Claim: the balls of all pixels of a 256 x 256 picture with 121 samples each take less than 5 s on
two cores (the published code of "Metric Convolutions" takes 0.16 s a pixel, 2.8 hours), the
positions of a 5 x 5 kernel on 128 x 128 pixels, forwards and backwards, less than a second, and a
training step of a small network with geodesic layers less than 20 times that with nn.Conv2d.

    python benchmarks/geodesic_balls.py                      # everything
    python benchmarks/geodesic_balls.py --quick --clock cpu  # a 64 x 64 cut; a busy machine
    python benchmarks/geodesic_balls.py --json results/geodesic_balls.json

The networks are the patch embedding of a vision transformer (a picture of 224 x 224, 16 x 16 taps,
stride 16, 64 outputs; forwards and backwards) and a small classifier of digits (64 pictures of 28 x
28, three layers of 3 x 3 taps and 16, 32, 32 channels; a whole step of training), once with each
kind of layer, in turns; ratios are to the network of nn.Conv2d, medians over the rounds.

The metric of the other tables is that of the gradient of a photograph, smoothed by a Gaussian of
one pixel (raw, it jumps from pixel to pixel and its geodesics cross). Times are the least of
several runs after compilation. Errors are against 128 steps, in pixels. "eikonal" and "heat" solve
on a window for each pixel and are timed on a few; of them the agreement with "exp" is measured:
ratio of areas, overlap (IoU) and Hausdorff distance over the mean radius of the rims.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import report
import torch
from matplotlib.path import Path as Polygon
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter

from finslerconv import balls, images, nn
from finslerconv.geodesics import GridMetric, InjectivityWarning, geodesic_ball
from finslerconv.geodesics.balls import fan, geodesic_positions

PAPER_SECONDS_PER_PIXEL = 0.16
SETS = ("concentric", "lattice", "polar", "sunflower")


def picture_field(side: int, dtype: torch.dtype, tau: float = 0.5) -> GridMetric:
    """Return the Randers field of a photograph's middle."""
    cut = (512 - 2 * side) // 2
    picture = images.photograph()[cut : 512 - cut : 2, cut : 512 - cut : 2] / 255.0
    metric = images.gradient_metric(torch.from_numpy(picture)[None, None], tau=tau)[0]
    M, omega = (
        torch.from_numpy(gaussian_filter(u.numpy(), (1, 1, *(0,) * (u.ndim - 2))))
        for u in (metric.M, metric.omega)
    )
    return GridMetric(M.to(dtype), omega.to(dtype))


def least(call: Callable[[], Any], clock: Callable[[], float], runs: int = 3) -> float:
    """Return the least time of several calls, after one that compiles."""
    call()
    times = []
    for _ in range(runs):
        begin = clock()
        call()
        times.append(clock() - begin)
    return min(times)


def every_pixel(side: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    rows = []
    for dtype in (torch.float32, torch.float64):
        field = picture_field(side, dtype)
        for name in SETS:
            reference = balls.reference_set(name, 11)
            seconds = least(lambda f=field, r=reference: geodesic_ball(f, reference=r), clock)  # type: ignore[misc]
            paper = PAPER_SECONDS_PER_PIXEL * side * side
            rows.append(
                {
                    "samples": name,
                    "dtype": str(dtype).removeprefix("torch."),
                    "rays": len(fan(reference.points).ends),
                    "seconds": seconds,
                    "times faster": paper / seconds,
                }
            )
    return rows


def layer(clock: Callable[[], float]) -> list[dict[str, Any]]:
    rows = []
    field = picture_field(128, torch.float32)
    M, omega = (u[None].clone().requires_grad_() for u in (field.M * 4, field.omega * 2))
    for steps in (2, 4):
        rays = fan(balls.lattice(5).points, steps=steps)
        for compiled in (True, False):

            def forwards(rays: Any = rays, compiled: bool = compiled) -> torch.Tensor:
                return geodesic_positions(M, omega, rays, compiled=compiled)

            def both(forwards: Any = forwards) -> None:
                torch.autograd.grad(forwards().sum(), (M, omega))

            with torch.no_grad():
                forward = least(forwards, clock)
            rows.append(
                {
                    "steps": steps,
                    "backend": "compiled" if compiled else "PyTorch",
                    "forwards": forward,
                    "and backwards": least(both, clock),
                }
            )
    return rows


LAYERS: dict[str, Callable[..., torch.nn.Module]] = {
    "nn.Conv2d": torch.nn.Conv2d,
    "MetricConv2d": nn.MetricConv2d,
    "MetricConv2d, Riemannian": partial(nn.MetricConv2d, eps_omega=1.0),
    "DeformConv2d": nn.DeformConv2d,
    "GeodesicConv2d": nn.GeodesicConv2d,
}


def patch_embedding(conv: Callable[..., torch.nn.Module]) -> Callable[[], None]:
    """Return what runs forwards and backwards."""
    layer = conv(3, 64, 16, stride=16)
    x = torch.randn(1, 3, 224, 224)

    def call() -> None:
        layer(x).sum().backward()

    return call


def training_step(conv: Callable[..., torch.nn.Module]) -> Callable[[], None]:
    """Return a step of training of a small network."""
    network = torch.nn.Sequential(
        conv(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        conv(16, 32, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        conv(32, 32, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), 1e-2)
    x, y = torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))

    def call() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    return call


def networks(clock: Callable[[], float], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for network, make in (
        ("patch embedding", patch_embedding),
        ("classifier, a training step", training_step),
    ):
        calls = {name: make(conv) for name, conv in LAYERS.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds + 1):
            for name, call in calls.items():
                begin = clock()
                call()
                seconds[name].append(clock() - begin)
        plain = np.asarray(seconds["nn.Conv2d"][1:])  # the first round compiles
        for name, found in seconds.items():
            times = np.asarray(found[1:])
            rows.append(
                {
                    "network": network,
                    "layers": name,
                    "ms": 1e3 * float(times.min()),
                    "ratio": float(np.median(times / plain)),
                }
            )
    return rows


def accuracy(side: int) -> list[dict[str, Any]]:
    field = picture_field(side, torch.float64)
    M, omega, points = field.M[None], field.omega[None], balls.concentric(11).points
    exact = geodesic_positions(M, omega, fan(points, steps=128))
    rows = []
    for steps in (1, 2, 4, 8, 16):
        positions = geodesic_positions(M, omega, fan(points, steps=steps))
        error = torch.linalg.norm(positions - exact, dim=-1).flatten()
        rank = int(0.95 * error.numel())
        rows.append(
            {
                "steps": steps,
                "mean": error.mean().item(),
                "95 % below": error.kthvalue(rank).values.item(),
            }
        )
    return rows


def compare(a: np.ndarray, b: np.ndarray, n: int = 400) -> tuple[float, float, float]:
    """Return IoU, ratio of areas and relative Hausdorff distance of two polygons."""
    low, high = np.minimum(a.min(0), b.min(0)), np.maximum(a.max(0), b.max(0))
    points = np.stack(np.meshgrid(*np.linspace(low, high, n).T, indexing="ij"), -1).reshape(-1, 2)
    inside = [Polygon(p).contains_points(points) for p in (a, b)]
    gaps = np.linalg.norm(a[:, None] - b, axis=-1)
    size = np.linalg.norm(a - a.mean(0), axis=-1).mean()
    overlap = (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()
    hausdorff = max(gaps.min(0).max(), gaps.min(1).max()) / size
    return float(overlap), float(inside[1].sum() / inside[0].sum()), float(hausdorff)


def agreement(side: int, count: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    field = picture_field(side, torch.float64)
    rng = np.random.default_rng(0)
    centres = torch.from_numpy(rng.uniform(8, side - 9, (count, 2)))
    rim = balls.polar(1, 360)
    exp = geodesic_ball(field, centres, rim, 1.0, steps=64)
    # Where geodesics cross "exp" is another set.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        geodesic_ball(field, centres, balls.polar(16, 32), 1.0, steps=64)
    crossed = np.zeros(count, bool)
    for each in caught:
        if isinstance(each.message, InjectivityWarning):
            crossed[each.message.centres[:, 0]] = True
    rows = []
    for method in ("eikonal", "heat"):
        begin = clock()
        other = geodesic_ball(field, centres, rim, 1.0, method=method)
        seconds = (clock() - begin) / count
        found = np.array(
            [compare(exp[:, i].numpy(), other[:, i].numpy()) for i in np.flatnonzero(~crossed)]
        )
        iou, area, hausdorff = np.median(found, axis=0)
        rows.append(
            {
                "method": method,
                "pixels": len(found),
                "IoU (median)": iou,
                "worst": found[:, 0].min(),
                "area": area,
                "Hausdorff": hausdorff,
                "ms a pixel": 1e3 * seconds,
            }
        )
    return rows


def show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a cut of 64 x 64 pixels")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    report.add_arguments(parser)
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    side = 64 if arguments.quick else 256
    console = Console()
    # Some balls of a photograph fold; that is no news here.
    warnings.simplefilter("ignore", InjectivityWarning)
    rounds = 5 if arguments.quick else 15
    results = {
        f"Balls of all {side} x {side} pixels, 121 samples, 4 steps (s)": every_pixel(side, clock),
        "Positions of a 5 x 5 kernel on 128 x 128 pixels (s)": layer(clock),
        "Whole networks, by the kind of their layers": networks(clock, rounds),
        "Error by the number of steps (pixels)": accuracy(min(side, 128)),
        "Agreement with exp": agreement(side, 16 if arguments.quick else 64, clock),
    }
    for title, rows in results.items():
        show(console, title, rows)
    machine = report.machine(clock=arguments.clock)
    report.finish(arguments, {"machine": machine, "results": results}, console)


if __name__ == "__main__":
    main()
