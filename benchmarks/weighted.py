"""Weighted convolution against ``nn.ConvNd``: forward + backward within 3 %, folded 0 %.

Every layer does the same rounds in one process, in an order drawn anew each round, with the plain
convolution as the unit; a second plain convolution shows the noise. Two figures for each layer:
the median over the rounds of its time divided by the plain one's of the same round, and the ratio
of the two least times.

    python benchmarks/weighted.py            # a few minutes
    python benchmarks/weighted.py --quick    # one shape
    python benchmarks/weighted.py --clock cpu  # time of the thread: steadier on a busy machine

Layers: ``plain`` and ``plain again``; ``WeightedConv`` with a fixed and with a trained density;
``weight_convolution``, the parametrization; ``multiply``, the definition ``conv(x, weight * Phi)``
as the reference implementation computes it; ``folded``.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable

import report
import torch
from torch import Tensor, nn

from finslerconv.nn.weighted import (
    SeparableDensity,
    WeightedConv2d,
    WeightedConv3d,
    fold,
    weight_convolution,
)

#: Input shape; the layer keeps its channels.
SHAPES = [(4, 64, 56, 56), (4, 256, 14, 14), (1, 16, 32, 32, 32)]
KERNELS = [3, 5, 7]
PROFILES = {3: [0.7], 5: [0.2, 0.8], 7: [0.25, 0.15, 0.55]}


class Multiply(nn.Module):
    """The definition, with Phi held as a buffer."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, phi: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("phi", phi)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve by ``weight * Phi``."""
        conv = self.conv
        return conv._conv_forward(x, conv.weight * self.phi, conv.bias)


def layers(shape: tuple[int, ...], k: int, device: str) -> dict[str, nn.Module]:
    n = len(shape) - 2
    channels = shape[1]
    plain = nn.Conv2d if n == 2 else nn.Conv3d
    weighted = WeightedConv2d if n == 2 else WeightedConv3d
    fixed = SeparableDensity((k,) * n, PROFILES[k])
    trained = SeparableDensity((k,) * n, PROFILES[k], trainable=True)
    settings = {"kernel_size": k, "padding": k // 2}
    made = {
        "plain": plain(channels, channels, **settings),
        "plain again": plain(channels, channels, **settings),
        "WeightedConv": weighted(channels, channels, **settings, density=fixed),
        "WeightedConv trained": weighted(channels, channels, **settings, density=trained),
        "weight_convolution": weight_convolution(plain(channels, channels, **settings), fixed),
        "multiply": Multiply(plain(channels, channels, **settings), fixed()),
        "folded": fold(weighted(channels, channels, **settings, density=fixed)),
    }
    return {name: module.to(device) for name, module in made.items()}


def measure(
    shape: tuple[int, ...], k: int, seconds: float, device: str, clock: Callable[[], float]
) -> dict[str, tuple[float, float]]:
    torch.manual_seed(0)
    modules = layers(shape, k, device)
    x = torch.randn(shape, device=device, requires_grad=True)
    upstream = torch.randn_like(x)

    def step(module: nn.Module) -> float:
        # Gradients are released before the clock starts: their memory is the allocator's again.
        x.grad = None
        module.zero_grad()
        start = clock()
        module(x).backward(upstream)
        return clock() - start

    for module in modules.values():
        step(module)
        step(module)
    times: dict[str, list[float]] = {name: [] for name in modules}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["plain"]) < 10:
        for name in random.sample(list(modules), len(modules)):
            times[name].append(step(modules[name]))
    plain = times["plain"]
    return {
        name: (
            statistics.median(t / p for t, p in zip(taken, plain, strict=True)),
            min(taken) / min(plain),
        )
        for name, taken in times.items()
    } | {"milliseconds": (statistics.median(plain) * 1e3, min(plain) * 1e3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one shape, a few seconds")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each shape and kernel")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    report.add_arguments(parser)
    options = parser.parse_args()
    if options.clock == "cpu" and (options.threads != 1 or options.device != "cpu"):
        parser.error("--clock cpu measures one thread: it needs --threads 1 and --device cpu")
    torch.set_num_threads(options.threads)

    def wall() -> float:
        if options.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    clock = time.thread_time if options.clock == "cpu" else wall
    cases = [(shape, k) for shape in SHAPES for k in KERNELS]
    if options.quick:
        cases, options.seconds = [((4, 256, 14, 14), 3)], min(options.seconds, 10.0)
    print(
        f"torch {torch.__version__}, {platform.machine()}, device {options.device}, "
        f"{options.threads} thread(s), {options.clock} clock; median ratio (least ratio)\n"
    )
    names = list(layers((1, 2, 4, 4), 3, "cpu"))[1:]
    print(f"| {'input':>19} | k | plain ms |" + "".join(f" {n} |" for n in names))
    print("|---|---|---|" + "---|" * len(names))
    rows = []
    for shape, k in cases:
        figures = measure(shape, k, options.seconds, options.device, clock)
        rows.append({"shape": shape, "k": k, **figures})
        cells = "".join(f" {figures[n][0]:.3f} ({figures[n][1]:.3f}) |" for n in names)
        print(f"| {shape!s:>19} | {k} | {figures['milliseconds'][0]:.1f} |{cells}", flush=True)
    machine = report.machine(device=options.device, clock=options.clock)
    report.finish(options, {"machine": machine, "results": rows})


if __name__ == "__main__":
    main()
