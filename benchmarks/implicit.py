"""Metrics from sampling positions: 10^5 kernels of 9 taps in seconds, and how well they are found.

Two tables. The first is the time that ``fit_randers`` takes for very many kernels (claim: the
closed form under 10 s and the refined fit under 60 s for 10^5 kernels on two cores), and the
building of ``Polytope``, with SciPy's ConvexHull in a loop as the peer. The second is the
recovery of random Randers metrics from positions that they made, for every reference set and
both maps, with noise.

    python benchmarks/implicit.py            # a minute or two
    python benchmarks/implicit.py --quick    # a few seconds
    python benchmarks/implicit.py --clock cpu --threads 1  # steadier on a busy machine

The metrics of the second table have axes of ratio up to 3 and ``|omega|_{M^-1}`` up to 0.6. Noise
is normal, its standard deviation a share of the radius of the disc of the ball's area. Errors: of
``M``, the geodesic distance ``|log(M^{-1/2} M' M^{-1/2})|``, about the relative error; of the
ball, one less the overlap (IoU) with the true one. Medians over the metrics.
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import report
import torch
from scipy.spatial import ConvexHull

from finslerconv.balls import (
    BallMap,
    Ellipse,
    ReferenceSet,
    affine,
    concentric,
    lattice,
    overlap,
    polar,
    radial,
    sunflower,
)
from finslerconv.implicit import fit_randers
from finslerconv.metrics import Polytope, Randers

REFERENCES = {
    "lattice 3x3": lattice(3),
    "lattice 5x5": lattice(5),
    "concentric 3x3": concentric(3),
    "concentric 5x5": concentric(5),
    "polar 5x5": polar(5, 5),
    "sunflower 9": sunflower(9),
    "sunflower 25": sunflower(25),
}
MAPS: dict[str, BallMap] = {"radial": radial, "affine": affine}
NOISES = [0.0, 0.01, 0.05]


def random_metrics(n: int, rng: np.random.Generator) -> Randers:
    axes = np.linalg.qr(rng.standard_normal((n, 2, 2)))[0]
    lengths = 3.0 ** rng.uniform(-0.5, 0.5, (n, 2))
    M = np.einsum("bij,bj,bkj->bik", axes, lengths**-2, axes)
    u = rng.standard_normal((n, 2))
    u *= rng.uniform(0, 0.6, (n, 1)) / np.linalg.norm(u, axis=-1, keepdims=True)
    return Randers(M, np.einsum("bij,bj,bj->bi", axes, 1 / lengths, u))


def positions(metric: Randers, reference: ReferenceSet, map: BallMap) -> np.ndarray:
    return np.moveaxis(map(metric, reference.points[:, None]), 0, -2)


def errors(fitted: Randers, true: Randers) -> tuple[float, float]:
    # The eigenvalues of M^{-1} M' are those of M^{-1/2} M' M^{-1/2}.
    ratios = np.linalg.eigvals(np.linalg.solve(true.M, fitted.M)).real
    of_M = np.sqrt((np.log(np.maximum(ratios, 1e-300)) ** 2).sum(-1))
    return float(np.median(of_M)), float(np.median(1 - overlap(fitted, true)))


def recovery(n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    true = random_metrics(n, rng)
    radius = np.sqrt(Ellipse.of(true).area / np.pi)[:, None, None]
    rows = []
    for name, reference in REFERENCES.items():
        noise = radius * rng.standard_normal((n, len(reference), 2))
        for map_name, map in MAPS.items():
            clean = positions(true, reference, map)
            fits: dict[str, dict[str, Any]] = {
                "reference": {"reference": reference, "map": map_name},
                "enclosing": {"objective": "enclosing"},
                "overlap": {"objective": "overlap"},
            }
            if map_name == "radial":
                fits["gauge"] = {"objective": "gauge", "reference": reference}
            for fit_name, options in fits.items():
                row: dict[str, Any] = {"set": name, "map": map_name, "objective": fit_name}
                for size in NOISES:
                    fit = fit_randers(clean + size * noise, **options)
                    row[f"{size}"] = errors(fit.metric, true)
                rows.append(row)
    return rows


def timings(n: int, clock: Callable[[], float]) -> list[tuple[str, float]]:
    rng = np.random.default_rng(0)
    points = lattice(3).points + 0.2 * rng.standard_normal((n, 9, 2))
    cases: dict[str, dict[str, Any]] = {
        "closed form (moments)": {"refine": False},
        "closed form (reference, radial)": {"reference": lattice(3), "refine": False},
        "closed form (reference, affine)": {"reference": lattice(3), "map": "affine"},
        "refined: reference, radial": {"reference": lattice(3)},
        "refined: enclosing": {},
        "refined: gauge": {"objective": "gauge"},
        "refined: overlap": {"objective": "overlap"},
    }
    fit_randers(points[:10])  # compiles
    rows = []
    for name, options in cases.items():
        start = clock()
        fit = fit_randers(points, **options)
        seconds = clock() - start
        rows.append((f"{name} [{fit.converged.mean():.2%} at rest]", seconds))
    start = clock()
    Polytope(points)
    rows.append(("Polytope", clock() - start))
    start = clock()
    for cloud in points[: n // 100]:
        ConvexHull(cloud)
    rows.append(("scipy.spatial.ConvexHull in a loop (from a hundredth)", 100 * (clock() - start)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--kernels", type=int, default=100_000)
    parser.add_argument("--metrics", type=int, default=1000, help="for the table of recovery")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    report.add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.kernels, options.metrics = options.kernels // 10, options.metrics // 10
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    print(
        f"torch {torch.__version__}, {platform.machine()}, {options.threads} thread(s), "
        f"{options.clock} clock\n\n| {options.kernels} kernels of 9 taps | s |\n|---|---|"
    )
    times = timings(options.kernels, clock)
    for name, seconds in times:
        print(f"| {name} | {seconds:.2f} |", flush=True)

    print("\nError of M / 1 - IoU with the true ball\n")
    print("| set | map | objective |" + "".join(f" noise {s:.0%} |" for s in NOISES))
    print("|---|---|---|" + "---|" * len(NOISES))
    rows = recovery(options.metrics)
    for row in rows:
        cells = "".join(f" {row[f'{s}'][0]:.1e} / {row[f'{s}'][1]:.1e} |" for s in NOISES)
        print(f"| {row['set']} | {row['map']} | {row['objective']} |{cells}")
    machine = report.machine(clock=options.clock)
    timed = [{"name": n, "kernels": options.kernels, "seconds": float(s)} for n, s in times]
    rows = [{"metrics": options.metrics, **row} for row in rows]
    report.finish(options, {"machine": machine, "times": timed, "recovery": rows})


if __name__ == "__main__":
    main()
