"""The operators and the layer against nn.Conv2d, torchvision's deform_conv2d and the reference.

Claim: on a CPU a convolution at displaced taps costs at most twice an nn.Conv2d of the same size
forwards, at most 2.5 times with its backward pass, and at most twice the memory; the cost is linear
in pixels, channels and taps.

    python benchmarks/ops.py                         # all shapes, k = 3, 5, 7
    python benchmarks/ops.py --quick --clock cpu     # k = 3; processor time, on a busy machine
    python benchmarks/ops.py --device cuda --dtype float16 --json new.json --compare old.json

``layer`` is MetricConv2d, its head included; ``paper`` computes the same as the paper's code does,
by an offset tensor and torchvision's operator. The contestants take turns, round after round, and
every ratio is taken within a round: its median and quartiles are reported, and beside them what the
least time is of the roofline's, as a part of one (``roofline.py``). Memory is that of one
forward and backward pass beyond the arguments, each measured in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import report
import roofline
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from finslerconv import ops
from finslerconv.balls import lattice
from finslerconv.nn import MetricConv2d


class Size(NamedTuple):
    """The sizes of a layer, and whether the operators multiply their samples with a mask."""

    batch: int
    channels: int
    side: int
    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1
    sample_groups: int = 1
    mask: int = 0


SHAPES = [(4, 64, 56, 64), (4, 256, 14, 256), (1, 3, 1024, 16)]
OTHERS = [
    Size(8, 3, 224, 64, 7, 2),  # a ResNet's first layer
    Size(4, 64, 56, 64, 3, groups=64),  # depthwise
    Size(1, 96, 56, 96, 7, groups=96),
    Size(2, 64, 56, 64, 3, sample_groups=64),
    Size(4, 64, 56, 64, 3, groups=8, sample_groups=8, mask=1),
    Size(1, 1, 256, 1, 11),  # a denoiser of one layer
    Size(64, 16, 16, 16, 3),
    Size(8, 512, 7, 512, 3),
    Size(4, 64, 56, 64, 1),
]
SCALING = {
    "pixels": [Size(1, 32, side, 32, 3) for side in (32, 64, 128, 256)],
    "channels": [Size(1, c, 64, 32, 3) for c in (16, 32, 64, 128)],
    "taps": [Size(1, 32, 64, 32, k) for k in (1, 3, 5, 7)],
}
CONTESTANTS = ["conv", "deform", "metric", "layer", "reference", "torchvision", "paper"]


def torchvision_function() -> Callable[..., Tensor] | None:
    """Return torchvision's operator, or None where it cannot be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError, AttributeError):
        return None
    return deform_conv2d


def contestant(name: str, size: Size, device: str, dtype: torch.dtype) -> Callable[[bool], None]:
    """Return a function that runs a contestant, with its backward pass or without."""
    batch, channels, side, outputs, k, stride, groups, sample_groups, masked = size
    torch.manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    x = normal(batch, channels, side, side)
    pad = k // 2
    rows = (side + 2 * pad - k) // stride + 1
    depth = channels // groups
    weight = normal(outputs, depth, k, k) / (depth * k * k) ** 0.5
    offset = normal(batch, sample_groups * 2 * k * k, rows, rows)
    where = (batch, sample_groups, rows, rows)
    M = torch.eye(2, device=device) * 0.2 + 0.05 * normal(*where, 1, 1, dtype=torch.float32).abs()
    omega = 0.1 * torch.rand(*where, 2, device=device)
    mask = None
    if masked:
        mask = torch.rand(batch, sample_groups * k * k, rows, rows, device=device, dtype=dtype)
    points = torch.as_tensor(lattice(k).points, dtype=torch.float32, device=device)
    how: dict[str, int] = {"stride": stride, "padding": pad}
    theirs = torchvision_function()
    layer = MetricConv2d(
        channels, outputs, k, **how, groups=groups, metric_groups=sample_groups, device=device,
        dtype=dtype,
    )  # fmt: skip
    torch.nn.init.normal_(layer.head.conv.weight, std=0.01)
    learned = [x, *layer.parameters()]

    def as_the_paper_does() -> Tensor:
        positions = layer.positions(x)
        offsets = (positions - layer.geometry().taps(positions)).movedim((-2, -1), (-4, -3))
        assert theirs
        return theirs(x, offsets.flatten(1, -3).to(dtype), layer.weight, layer.bias, **how)

    factors = [] if mask is None else [mask]

    calls: dict[str, tuple[list[Tensor], Callable[[], Tensor]]] = {
        "conv": ([x, weight], lambda: functional.conv2d(x, weight, groups=groups, **how)),
        "deform": (
            [x, offset, weight, *factors],
            lambda: ops.deform_conv2d(x, offset, weight, mask=mask, **how),
        ),
        "metric": (
            [x, M, omega, weight, *factors],
            lambda: ops.metric_conv2d(x, M, omega, points, weight, mask=mask, **how),
        ),
        "layer": (learned, lambda: layer(x)),
        "paper": (learned, as_the_paper_does),
        "reference": (
            [x, offset, weight, *factors],
            lambda: ops.deform_conv2d(x, offset, weight, mask=mask, **how),
        ),
        "torchvision": (
            [x, offset, weight, *factors],
            lambda: theirs(x, offset, weight, mask=mask, **how) if theirs else x,
        ),
    }
    tensors, call = calls[name]
    direction = normal(batch, outputs, rows, rows)

    def run(backward: bool) -> None:
        with ops.use_backend("reference" if name == "reference" else "auto"):
            for tensor in tensors:
                tensor.requires_grad_(backward)
            if backward:
                torch.autograd.grad(call(), tensors, direction)
            else:
                with torch.no_grad():
                    call()

    return run


def peak_memory(name: str, size: Size, device: str, dtype: torch.dtype) -> int:
    """Return the bytes that one forward and backward pass takes beyond its arguments."""
    small = size._replace(batch=1, side=8)
    contestant(name, small, device, dtype)(True)  # libraries, compiled code
    run = contestant(name, size, device, dtype)
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(True)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    status, peak = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    peak.write_text("5")  # forget the peak so far
    before = memory(status, "VmRSS")
    run(True)
    return memory(status, "VmHWM") - before


def memory(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def rounds(
    names: list[str], size: Size, backward: bool, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the times of the contestants in milliseconds, round by round."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    runs = {name: contestant(name, size, options.device, options.dtype) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for run in runs.values():
        run(backward)
    deadline = time.monotonic() + options.seconds
    while True:
        for name, run in runs.items():
            roofline.wait(options.device)
            start = clock()
            run(backward)
            roofline.wait(options.device)
            times[name].append(1e3 * (clock() - start))
        done = len(times[names[0]])
        if done >= options.rounds or (done >= 3 and time.monotonic() > deadline):
            return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return each contestant's least time, and the quartiles of its ratio to the convolution."""
    result = {}
    for name, values in times.items():
        ratios = [t / base for t, base in zip(values, times["conv"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        result[name] = {"ms": min(values), "low": low, "ratio": middle, "high": high}
    return result


def work(name: str, size: Size, itemsize: int, backward: bool) -> roofline.Work:
    """Return what a contestant has to do at least."""
    # An offset for each tap; or M and omega, which a head computes in five channels.
    taps = size.kernel**2
    positions = {"conv": 0, "metric": 6, "layer": 5, "paper": 5}.get(name, 2 * taps)
    head = 5 if name in ("layer", "paper") else 0
    if name != "conv":
        masked = size.mask and name not in ("layer", "paper")
        positions = size.sample_groups * (positions + (taps if masked else 0))
    return roofline.displaced_convolution(
        size[:6], itemsize, positions, backward, head, size.groups
    )


def measure(options: argparse.Namespace, limits: roofline.Roofline) -> list[dict[str, Any]]:
    """Run everything, with a progress bar."""
    names = [n for n in CONTESTANTS if n not in ("torchvision", "paper") or torchvision_function()]
    names = [n for n in names if not options.only or n in options.only or n == "conv"]
    kernels = (3,) if options.quick else (3, 5, 7)
    sizes = [Size(*s, k) for s in SHAPES for k in kernels] + OTHERS
    results = []
    scaling = [] if options.quick else [s for group in SCALING.values() for s in group]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=len(sizes) * (2 + len(names)) + len(scaling))
        for size in sizes:
            entry: dict[str, Any] = {"size": size}
            for label, backward in (("forward", False), ("both", True)):
                progress.update(task, description=f"{size} {label}")
                entry[label] = summary(rounds(names, size, backward, options))
                for name, found in entry[label].items():
                    least = work(name, size, options.dtype.itemsize, backward)
                    found["roofline"] = 1e3 * limits.seconds(least) / found["ms"]
                progress.advance(task)
            entry["memory"] = {}
            for name in names:
                entry["memory"][name] = in_process(name, size, options)
                progress.advance(task)
            results.append(entry)
        for size in scaling:
            progress.update(task, description=f"{size} scaling")
            times = rounds(["conv", "deform"], size, True, options)
            results.append({"size": size, "scaling": min(times["deform"])})
            progress.advance(task)
    return results


def in_process(name: str, size: Size, options: argparse.Namespace) -> float | None:
    """Return :func:`peak_memory`, taken in a fresh process; None where there is no way to tell."""
    if options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--memory", name, *map(str, size)]
    command += ["--device", options.device, "--dtype", str(options.dtype).split(".")[1]]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def show(results: list[dict[str, Any]], console: Console) -> None:
    """Print the tables."""
    for label, title in (("forward", "forward"), ("both", "forward + backward")):
        table = Table(title=f"{title}: ms, ratio to nn.Conv2d (quartiles), part of the roofline")
        table.add_column("B, C, H, O, k, stride, groups, sample groups, mask")
        shown = [r for r in results if label in r]
        names = list(shown[0][label])
        for name in names:
            table.add_column(name, justify="right")
        for r in shown:
            cells = [
                f"{v['ms']:.1f}  {v['ratio']:.2f} ({v['low']:.2f}-{v['high']:.2f})"
                f"  {v['roofline']:.1%}"
                for v in r[label].values()
            ]
            table.add_row(", ".join(map(str, r["size"])), *cells)
        console.print(table)
    table = Table(title="peak extra memory, forward + backward: MB")
    table.add_column("B, C, H, O, k, stride, groups, sample groups, mask")
    for name in names:
        table.add_column(name, justify="right")
    for r in shown:
        cells = ["-" if m is None else f"{m / 1e6:.1f}" for m in r["memory"].values()]
        table.add_row(", ".join(map(str, r["size"])), *cells)
    console.print(table)
    times = {r["size"]: r["scaling"] for r in results if "scaling" in r}
    if times:
        table = Table(title="deform, forward + backward: microseconds per unit of what grows")
        for column in ("what", "amounts", "each"):
            table.add_column(column)
        for what, sizes in SCALING.items():
            index = {"pixels": 2, "channels": 1, "taps": 4}[what]
            amounts = [s[index] if what == "channels" else s[index] ** 2 for s in sizes]
            each = [1e3 * times[s] / a for s, a in zip(sizes, amounts, strict=True)]
            table.add_row(what, " ".join(map(str, amounts)), " ".join(f"{e:.3g}" for e in each))
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", type=lambda name: getattr(torch, name))
    parser.add_argument("--threads", type=int, help="as torch.set_num_threads")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=20, help="for one size, after 3 rounds")
    parser.add_argument("--quick", action="store_true", help="k = 3 only, no scaling")
    parser.add_argument("--only", nargs="*", choices=CONTESTANTS, help="beside nn.Conv2d")
    report.add_arguments(parser)
    parser.add_argument("--memory", nargs=10, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory:
        name, *numbers = options.memory
        size = Size(*map(int, numbers))
        print(peak_memory(name, size, options.device, options.dtype))
        return
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    limits = roofline.measure(options.device, options.dtype, clock)
    results = measure(options, limits)
    machine = report.machine(
        device=torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        clock=options.clock,
        dtype=str(options.dtype),
        copied=f"{limits.bandwidth / 1e9:.3g} GB/s",
        products=f"{limits.rate / 1e9:.4g} GFLOP/s",
    )
    console = Console(width=160)
    console.print(machine)
    show(results, console)
    report.finish(options, {"machine": machine, "results": results}, console)


if __name__ == "__main__":
    main()
