"""Distances on grids: fast marching against the exact distance, scikit-fmm and published figures.

Claim: on the three constant metrics for which figures of Mirebeau's Hamilton-Fast-Marching (C++)
are published, first order and second order with factorisation are no less exact and no slower;
1024 x 1024 nodes of a Randers metric take less than 2.5 s and 224 MiB; asymmetric quadratic and
Matsumoto metrics at most 3 times as long as the Randers metric of the same matrices. In space,
Euclidean distances take at most twice as long as scikit-fmm's of the same order. A call takes at
most 1.3 times as long as its compiled march, and two threads are 1.7 times as fast for many
sources.

    python benchmarks/geodesics.py                       # everything
    python benchmarks/geodesics.py --quick --clock cpu   # n = 256; processor time, a busy machine
    python benchmarks/geodesics.py --only distances --json new.json --compare old.json
    python benchmarks/geodesics.py --only overhead threads

Errors are divided by n. The source is in the centre of n x n nodes; the first three metrics are
constant, those of the published figures (n = 512, one core); the "curved" ones are pulled back from
the plane by a map that folds nothing, plus an exact one-form, so that their distances are known.
The time is the least of several runs after compilation, on one thread. Where scikit-fmm can compute
the same, the contestants take turns, and the ratio is that of the least times. Memory is the peak
of one run beyond the field itself, in a process of its own. Threads are timed by the wall clock,
whatever --clock says, beside two processes that do the same work each: those show what a second
core is worth on the machine at that time.
"""

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from finslerconv.geodesics import GridMetric, distance
from finslerconv.geodesics.distances.fast_marching import _plane
from finslerconv.metrics import AsymmetricQuadratic, Matsumoto, Tabulated

SIZES = (256, 512, 1024)
SIZES_3D = (64, 96)
CONSTANT = ("euclidean", "riemannian", "randers")
CURVED = ("curved riemannian", "curved randers", "curved hard")
SPACE = ("euclidean 3-D", "curved riemannian 3-D", "curved randers 3-D")
VARIANTS = ((1, False), (1, True), (2, False), (2, True))

# Seconds, maximal and mean error at n = 512 in the published comparison of the C++ code; second
# order is with source factorisation there.
PUBLISHED: dict[tuple[str, int, bool], tuple[float, float, float | None]] = {
    ("randers", 1, False): (0.53, 1.8e-3, 8.3e-4),
    ("randers", 2, True): (0.55, 1.3e-4, 3.7e-5),
    ("euclidean", 1, False): (0.15, 3.6e-3, None),
    ("euclidean", 2, True): (0.17, 7e-5, None),
    ("riemannian", 1, False): (0.25, 3.0e-2, 9.5e-3),
    ("riemannian", 2, True): (0.29, 8e-3, 1.5e-4),
}


@dataclass(frozen=True)
class Case:
    """A field on a grid, the source (a node near the centre), and the distance to every node."""

    field: GridMetric
    source: np.ndarray
    exact: np.ndarray


def case(name: str, n: int) -> Case:
    """Return the field that has this name on n nodes a side."""
    if name.startswith("curved"):
        condition, strength, bend = {
            "curved riemannian": (10.0, 0.0, 0.3),
            "curved randers": (10.0, 0.6, 0.3),
            "curved hard": (1000.0, 0.95, 0.05),
            "curved riemannian 3-D": (10.0, 0.0, 0.3),
            "curved randers 3-D": (10.0, 0.6, 0.3),
        }[name]
        return curved(3 if "3-D" in name else 2, n, condition, strength, bend)
    dim = 3 if "3-D" in name else 2
    M, omega = np.eye(dim), np.zeros(dim)
    if name != "euclidean" and dim == 2:
        c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
        condition = 9.0 if name == "randers" else 100.0
        M = np.array([[c, -s], [s, c]]) @ np.diag([condition, 1]) @ np.array([[c, s], [-s, c]])
    if name == "randers":
        omega = np.array([1.0, 0.5])
        omega *= 0.6 / math.sqrt(omega @ np.linalg.solve(M, omega))
    grid = (n,) * dim
    form = np.broadcast_to(omega, (*grid, dim)) if omega.any() else None
    field = GridMetric(np.broadcast_to(M, (*grid, dim, dim)), form)
    source = np.full(dim, float(n // 2))
    v = np.stack(np.meshgrid(*[np.arange(n)] * dim, indexing="ij"), -1) - source
    return Case(field, source, np.sqrt(np.einsum("...i,ij,...j->...", v, M, v)) + v @ omega)


def curved(dim: int, n: int, condition: float, strength: float, bend: float) -> Case:
    """Return the pull-back of a skew plane by ``x_i + bend sin(pi x_i) cos(pi x_j) / pi``.

    The map takes the unit square or cube onto itself, so that shortest paths stay inside. The
    one-form is the differential of ``strength sin(3 d . z) / 3``, z being the point's image.
    """
    x = np.stack(np.meshgrid(*[np.arange(n) / (n - 1)] * dim, indexing="ij"), -1)
    y = np.roll(x, 1, -1)
    phi = x + bend * np.sin(np.pi * x) * np.cos(np.pi * y) / np.pi
    jacobian = np.zeros((*x.shape, dim))
    for i in range(dim):
        jacobian[..., i, i] = 1 + bend * np.cos(np.pi * x[..., i]) * np.cos(np.pi * y[..., i])
        jacobian[..., i, i - 1] -= bend * np.sin(np.pi * x[..., i]) * np.sin(np.pi * y[..., i])
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((dim, dim)))[0]
    A = np.diag(condition ** (-0.5 * np.linspace(0, 1, dim))) @ turn
    z, J = phi @ A.T, A @ jacobian
    d = np.linspace(1.0, 0.6, dim)
    d /= np.linalg.norm(d)
    M = np.swapaxes(J, -1, -2) @ J
    slope = (strength * np.cos(3 * (z @ d)))[..., None] * d
    form = np.einsum("...ij,...i->...j", J, slope) if strength else None
    at = (n // 2, n // 3, n // 2)[:dim]
    psi = strength * np.sin(3 * (z @ d)) / 3
    exact = np.linalg.norm(z - z[at], axis=-1) + psi - psi[at]
    return Case(GridMetric(M, form), np.array(at, float), (n - 1) * exact)


def contestant(name: str, n: int, order: int, factorise: bool) -> Callable[[], np.ndarray]:
    """Return a function that computes the distances of a case."""
    this = case(name, n)

    def run() -> np.ndarray:
        return distance(this.field, this.source, order=order, factorise=factorise)

    return run


def scikit_fmm(name: str, n: int, order: int) -> Callable[[], np.ndarray] | None:
    """Return scikit-fmm's function for a Euclidean case, None where it cannot."""
    if not name.startswith("euclidean"):
        return None
    try:
        import skfmm
    except ImportError:
        return None
    dim = 3 if "3-D" in name else 2
    # Its sources are a level set: a circle of radius 1/2 about the node.
    x = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * dim, indexing="ij"), -1)
    level = np.linalg.norm(x, axis=-1) - 0.5
    return lambda: skfmm.distance(level, order=order) + 0.5


def turns(runs: list[Callable[[], Any]], options: argparse.Namespace) -> list[float]:
    """Return each contestant's least time; they take turns."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    best = [math.inf] * len(runs)
    deadline = time.monotonic() + options.seconds
    for done in range(options.rounds):
        for k, run in enumerate(runs):
            start = clock()
            run()
            best[k] = min(best[k], clock() - start)
        if done >= 2 and time.monotonic() > deadline:
            break
    return best


def measure_distances(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Time all cases and compare them with the truth."""
    sizes, sizes_3d = (SIZES[:1], SIZES_3D[:1]) if options.quick else (SIZES, SIZES_3D)
    cases = [(name, n) for name in (*CONSTANT, *CURVED) for n in sizes]
    cases += [(name, n) for name in SPACE for n in sizes_3d]
    task = progress.add_task("distances", total=len(cases))
    results = []
    for name, n in cases:
        progress.update(task, description=f"{name}, {n}")
        exact = case(name, n).exact
        for order, factorise in VARIANTS:
            run = contestant(name, n, order, factorise)
            error = np.abs(run() - exact) / n
            runs = [run]
            peer = scikit_fmm(name, n, order)
            entry: dict[str, Any] = {"name": name, "n": n, "order": order, "factorise": factorise}
            if peer:
                runs.append(peer)
                theirs = np.abs(peer() - exact) / n
                entry["skfmm_max"], entry["skfmm_mean"] = float(theirs.max()), float(theirs.mean())
            times = turns(runs, options)
            entry |= {"seconds": times[0], "max": float(error.max()), "mean": float(error.mean())}
            if peer:
                entry["skfmm_seconds"] = times[1]
            results.append(entry)
        progress.advance(task)
    return results


def gradient_of(run: Callable[[], Tensor], tensors: tuple[Tensor, ...]) -> None:
    torch.autograd.grad(run().sum(), tensors)


def measure_gradients(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Time the distances with their gradient in the whole field, and without."""
    n = 256 if options.quick else 512
    task = progress.add_task("gradients", total=2)
    results = []
    for order in (1, 2):
        this = case("curved randers", n)
        M = torch.as_tensor(this.field.M).requires_grad_()
        omega = torch.as_tensor(this.field.omega).requires_grad_()
        source = torch.as_tensor(this.source)

        forward = partial(distance, GridMetric(M, omega, validate=False), source, order=order)
        both = partial(gradient_of, forward, (M, omega))
        both()
        alone, together = turns([forward, both], options)
        results.append({"n": n, "order": order, "forward": alone, "both": together})
        progress.advance(task)
    return results


def peak_memory(name: str, n: int) -> int:
    """Return the bytes that one run takes beyond its arguments."""
    contestant(name, 16, 2, True)()  # libraries, compiled code
    run = contestant(name, n, 2, True)
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far

    def field(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    before = field("VmRSS")
    run()
    return field("VmHWM") - before


def measure_memory(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Take :func:`peak_memory` in fresh processes; nothing where there is no way to tell."""
    names = ("randers", "curved randers", "curved hard")
    if not Path("/proc/self/clear_refs").exists():
        return []
    n = 256 if options.quick else 1024
    task = progress.add_task("memory", total=len(names))
    results = []
    for name in names:
        command = [sys.executable, __file__, "--memory", name, str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append({"name": name, "n": n, "bytes": float(done.stdout.split()[-1])})
        progress.advance(task)
    return results


def show_distances(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="distances: seconds; maximal and mean error over n; the same of others")
    for column in ("field", "n", "order", "factored", "s", "max", "mean"):
        table.add_column(column, justify="left" if column == "field" else "right", no_wrap=True)
    for column in ("C++: s, max, mean", "scikit-fmm: s, max, mean", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    last = None
    for r in results:
        if last not in (None, (r["name"], r["n"])):
            table.add_section()
        last = (r["name"], r["n"])
        known = PUBLISHED.get((r["name"], r["order"], r["factorise"])) if r["n"] == 512 else None
        theirs = ""
        if known:
            theirs = f"{known[0]}, {known[1]:.1e}, " + (f"{known[2]:.1e}" if known[2] else "-")
        peer = ratio = ""
        if "skfmm_seconds" in r:
            peer = f"{r['skfmm_seconds']:.3f}, {r['skfmm_max']:.1e}, {r['skfmm_mean']:.1e}"
            ratio = f"{r['seconds'] / r['skfmm_seconds']:.2f}"
        table.add_row(
            r["name"], str(r["n"]), str(r["order"]), "yes" if r["factorise"] else "",
            f"{r['seconds']:.3f}", f"{r['max']:.1e}", f"{r['mean']:.1e}", theirs, peer, ratio,
        )  # fmt: skip
    console.print(table)


def show_gradients(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="curved randers, gradients in the whole field: seconds")
    for column in ("n", "order", "distances", "and gradients", "ratio"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            str(r["n"]), str(r["order"]), f"{r['forward']:.3f}", f"{r['both']:.3f}",
            f"{r['both'] / r['forward']:.2f}",
        )  # fmt: skip
    console.print(table)


def show_memory(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="peak memory beyond the field: MiB (C++: 224 at n = 1024)")
    for column in ("field", "n", "MiB"):
        table.add_column(column, justify="left" if column == "field" else "right")
    for r in results:
        table.add_row(r["name"], str(r["n"]), f"{r['bytes'] / 2**20:.0f}")
    console.print(table)


def measure_norms(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Time fields of other norms against the Randers field of the same matrices."""
    n = 256 if options.quick else 512
    task = progress.add_task("norms", total=2)
    this = case("curved randers", n)
    M, omega = this.field.M, this.field.omega
    kinds = {
        "asymmetric quadratic": AsymmetricQuadratic(M, 2 * omega),
        "matsumoto": Matsumoto(M, 0.6 * omega),
        "matsumoto, tabulated": Tabulated.of(Matsumoto(M, 0.6 * omega), 64),
    }
    results = []
    for order in (1, 2):
        fields = [this.field, *(GridMetric(metric) for metric in kinds.values())]
        runs = [partial(distance, field, this.source, order=order) for field in fields]
        for run in runs:
            run()
        randers, *others = turns(runs, options)
        for name, seconds in zip(kinds, others, strict=True):
            results.append(
                {"name": name, "n": n, "order": order, "seconds": seconds, "randers": randers}
            )
        progress.advance(task)
    return results


def show_norms(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(
        title="norms of other kinds: seconds (C++ at n = 512: Randers, order 2, 0.66 to 1.28 s, "
        "AsymmetricQuadratic2 about as long)"
    )
    for column in ("norm", "n", "order", "s", "randers: s", "ratio"):
        table.add_column(column, justify="left" if column == "norm" else "right")
    for r in results:
        table.add_row(
            r["name"], str(r["n"]), str(r["order"]), f"{r['seconds']:.3f}", f"{r['randers']:.3f}",
            f"{r['seconds'] / r['randers']:.2f}",
        )  # fmt: skip
    console.print(table)


def measure_overhead(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Time whole calls and the compiled marches in them."""
    n = 256 if options.quick else 512
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    names = (*CONSTANT, *CURVED)
    task = progress.add_task("overhead", total=len(names))
    march, marched = _plane.march, 0.0

    def timed(*arguments: Any) -> bool:
        nonlocal marched
        start = clock()
        goes_on: bool = march(*arguments)
        marched += clock() - start
        return goes_on

    results = []
    _plane.march = timed
    try:
        for name in names:
            for order in (1, 2):
                run = contestant(name, n, order, True)
                run()
                least = [math.inf, math.inf]
                for _ in range(options.rounds):
                    marched, start = 0.0, clock()
                    run()
                    whole = clock() - start
                    least = [min(least[0], whole), min(least[1], marched)]
                times = {"seconds": least[0], "march": least[1], "ratio": least[0] / least[1]}
                results.append({"name": name, "n": n, "order": order, **times})
            progress.advance(task)
    finally:
        _plane.march = march
    return results


def show_overhead(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="whole calls, of fields that were checked before, and their marches")
    for column in ("field", "n", "order", "s", "march: s", "ratio"):
        table.add_column(column, justify="left" if column == "field" else "right")
    for r in results:
        table.add_row(
            r["name"], str(r["n"]), str(r["order"]), f"{r['seconds']:.3f}", f"{r['march']:.3f}",
            f"{r['ratio']:.2f}",
        )  # fmt: skip
    console.print(table)


@cache
def many_sources(n: int, count: int) -> tuple[GridMetric, np.ndarray]:
    """Return a field and single sources all over it."""
    sources = np.random.default_rng(0).uniform(0, n - 1, (count, 1, 2))
    return case("curved randers", n).field, sources


def solve_many(n: int, count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    distance(*many_sources(n, count))


def measure_threads(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Time many sources in one thread, in two, and in two processes side by side."""
    n, count = (128, 16) if options.quick else (256, 64)
    task = progress.add_task("threads", total=options.rounds)
    names = ("one", "two", "processes")
    least = dict.fromkeys(names, math.inf)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:

        def apart() -> None:
            for done in [pool.submit(solve_many, n, count, 1) for _ in range(2)]:
                done.result()

        runs = (partial(solve_many, n, count, 1), partial(solve_many, n, count, 2), apart)
        for run in (*runs, apart):  # libraries, compiled code, in both processes
            run()
        for _ in range(options.rounds):
            for name, run in zip(names, runs, strict=True):
                start = time.perf_counter()
                run()
                least[name] = min(least[name], time.perf_counter() - start)
            progress.advance(task)
    torch.set_num_threads(1)
    one, two, both = (least[name] for name in names)
    return [{"n": n, "sources": count, **least, "gain": one / two, "possible": 2 * one / both}]


def show_threads(results: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="many sources on one field: seconds")
    for column in ("n", "sources", "a thread", "two", "gain", "gain of two processes"):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            str(r["n"]), str(r["sources"]), f"{r['one']:.2f}", f"{r['two']:.2f}",
            f"{r['gain']:.2f}", f"{r['possible']:.2f}",
        )  # fmt: skip
    console.print(table)


# What is measured, and how it is shown.
PARTS: dict[str, tuple[Callable[..., list[dict[str, Any]]], Callable[..., None]]] = {
    "distances": (measure_distances, show_distances),
    "gradients": (measure_gradients, show_gradients),
    "norms": (measure_norms, show_norms),
    "overhead": (measure_overhead, show_overhead),
    "threads": (measure_threads, show_threads),
    "memory": (measure_memory, show_memory),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5, help="for one case, after 3 rounds")
    parser.add_argument("--quick", action="store_true", help="the smallest grids only")
    report.add_arguments(parser)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(peak_memory(options.memory[0], int(options.memory[1])))
        return
    results = {}
    with Progress(console=Console(stderr=True)) as progress:
        for part in options.only:
            results[part] = PARTS[part][0](options, progress)
    machine = report.machine(clock=options.clock)
    console = Console(width=160)
    console.print(machine)
    for part, found in results.items():
        PARTS[part][1](found, console)
    report.finish(options, {"machine": machine, **results}, console)


if __name__ == "__main__":
    main()
